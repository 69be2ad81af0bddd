//! Redirects of the upstream that the proxy follows itself (`InternalRedirectPolicy`).
//! It must not know how an exchange begins anew; it says whether and with which head.

use std::sync::Arc;

use ahash::AHashSet;
use http::header::CONTENT_LENGTH;
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use tidegate_filters::http::RequestHead;

/// `InternalRedirectPolicy`, compiled.
#[derive(Debug, Clone)]
pub struct InternalRedirectPolicy {
    pub max: u32,
    /// The statuses that are followed, of 301, 302, 303, 307 and 308.
    pub statuses: Vec<StatusCode>,
    pub predicates: Vec<RedirectPredicate>,
    /// Follow from HTTP to HTTPS and back.
    pub cross_scheme: bool,
    /// `response_headers_to_copy`: into the next request.
    pub copied_headers: Vec<HeaderName>,
}

/// What a redirect's target route must be.
#[derive(Debug, Clone)]
pub enum RedirectPredicate {
    /// `allow_listed_routes`, by name.
    Allowed(AHashSet<Box<str>>),
    /// `previous_routes`: none that a redirect from this route led to before.
    NotPrevious,
    /// `safe_cross_scheme`: never from HTTP to HTTPS.
    SafeCrossScheme,
}

/// What earlier redirects of a request left behind: kept while it is recreated.
#[derive(Debug, Clone, Default)]
pub struct RedirectHistory {
    pub followed: u32,
    /// (route that redirected, route it led to)
    visited: Vec<(Arc<str>, Arc<str>)>,
}

/// Why a redirect is handed on to the client; each has its counter, `passthrough_internal_redirect_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectRefusal {
    BadLocation,
    UnsafeScheme,
    TooManyRedirects,
    NoRoute,
    Predicate,
}

/// A redirect that may be followed, if its route agrees.
#[derive(Debug)]
pub struct RedirectTarget {
    /// The next request's head.
    pub head: RequestHead,
    /// The body goes: a 303 turned the method into GET.
    pub drop_body: bool,
    from_https: bool,
    to_https: bool,
}

impl InternalRedirectPolicy {
    pub fn follows(&self, status: StatusCode) -> bool {
        self.statuses.contains(&status)
    }

    /// The next request, from the finalized head of the last one and the response that redirects. `secure`: the client's
    /// connection is TLS.
    pub fn target(
        &self,
        head: &RequestHead,
        secure: bool,
        status: StatusCode,
        response: &HeaderMap,
        history: &RedirectHistory,
    ) -> Result<RedirectTarget, RedirectRefusal> {
        let location = response.get(http::header::LOCATION).ok_or(RedirectRefusal::BadLocation)?;
        let url = parse(location).ok_or(RedirectRefusal::BadLocation)?;
        let from_https = secure && !head.scheme.as_bytes().eq_ignore_ascii_case(b"http");
        if !self.cross_scheme && from_https != url.https {
            return Err(RedirectRefusal::UnsafeScheme);
        }
        if history.followed >= self.max {
            return Err(RedirectRefusal::TooManyRedirects);
        }
        let mut next = head.clone();
        for name in &self.copied_headers {
            next.headers.remove(name);
            for value in response.get_all(name) {
                next.headers.append(name, value.clone());
            }
        }
        let original = [head.scheme.as_bytes(), b"://", head.authority.as_bytes(), head.path.as_bytes()].concat();
        if let Ok(original) = HeaderValue::from_bytes(&original) {
            next.headers.insert(HeaderName::from_static("x-envoy-original-url"), original);
        }
        let drop_body = status == StatusCode::SEE_OTHER && head.method != Method::GET && head.method != Method::HEAD;
        if drop_body {
            next.method = Method::GET;
            next.headers.remove(CONTENT_LENGTH);
        }
        let to_https = url.https;
        (next.scheme, next.authority, next.path) = (url.scheme, url.authority, url.path);
        Ok(RedirectTarget { head: next, drop_body, from_https, to_https })
    }

    /// Whether the route that the target leads to is one that may be followed; notes the redirect if so. `from` is the
    /// route that this policy stands in.
    pub fn accepts(
        &self,
        from: &Arc<str>,
        to: Option<&Arc<str>>,
        target: &RedirectTarget,
        history: &mut RedirectHistory,
    ) -> Result<(), RedirectRefusal> {
        let to = to.ok_or(RedirectRefusal::NoRoute)?;
        for predicate in &self.predicates {
            let holds = match predicate {
                RedirectPredicate::Allowed(names) => names.contains(&**to),
                RedirectPredicate::SafeCrossScheme => target.from_https || !target.to_https,
                RedirectPredicate::NotPrevious => {
                    let visit = (Arc::clone(from), Arc::clone(to));
                    let new = !history.visited.contains(&visit);
                    if new {
                        history.visited.push(visit);
                    }
                    new
                }
            };
            if !holds {
                return Err(RedirectRefusal::Predicate);
            }
        }
        history.followed += 1;
        Ok(())
    }
}

struct Location {
    https: bool,
    scheme: HeaderValue,
    authority: HeaderValue,
    path: HeaderValue,
}

/// An absolute `http` or `https` URL; its fragment goes.
fn parse(location: &HeaderValue) -> Option<Location> {
    let bytes = location.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'#').unwrap_or(bytes.len());
    let url = Uri::try_from(&bytes[..end]).ok()?;
    let https = match url.scheme()? {
        scheme if *scheme == Scheme::HTTP => false,
        scheme if *scheme == Scheme::HTTPS => true,
        _ => return None,
    };
    Some(Location {
        https,
        scheme: HeaderValue::from_static(if https { "https" } else { "http" }),
        authority: HeaderValue::from_str(url.authority()?.as_str()).ok()?,
        path: HeaderValue::from_str(url.path_and_query().map_or("/", |path| path.as_str())).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::testing::get;

    fn policy() -> InternalRedirectPolicy {
        InternalRedirectPolicy {
            max: 1,
            statuses: vec![StatusCode::FOUND],
            predicates: Vec::new(),
            cross_scheme: false,
            copied_headers: vec![HeaderName::from_static("x-copy"), HeaderName::from_static("x-gone")],
        }
    }

    fn response(location: &'static str) -> HeaderMap {
        let pairs = [("location", location), ("x-copy", "new")];
        pairs
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect()
    }

    fn target(
        policy: &InternalRedirectPolicy,
        status: StatusCode,
        location: &'static str,
    ) -> Result<RedirectTarget, RedirectRefusal> {
        let mut head = get("h.com", "/a?b");
        head.method = Method::POST;
        head.headers.insert("x-gone", HeaderValue::from_static("old"));
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("3"));
        policy.target(&head, false, status, &response(location), &RedirectHistory::default())
    }

    #[test]
    fn the_next_request_goes_where_the_location_says() {
        let found = target(&policy(), StatusCode::FOUND, "http://other:81/c?d#e").unwrap();
        let head = &found.head;
        assert_eq!(
            (&head.method, &head.authority, &head.path),
            (&Method::POST, &HeaderValue::from_static("other:81"), &HeaderValue::from_static("/c?d"))
        );
        assert_eq!(head.headers["x-envoy-original-url"], "http://h.com/a?b");
        assert_eq!(
            (head.headers.get("x-copy").unwrap(), head.headers.get("x-gone")),
            (&HeaderValue::from_static("new"), None)
        );
        assert!(!found.drop_body && head.headers.contains_key(CONTENT_LENGTH));
        let see_other = target(&policy(), StatusCode::SEE_OTHER, "http://other").unwrap();
        assert!(see_other.drop_body && see_other.head.method == Method::GET && see_other.head.path == "/");
        assert!(!see_other.head.headers.contains_key(CONTENT_LENGTH));
    }

    #[test]
    fn what_is_not_followed_is_named() {
        let refusal =
            |policy: &InternalRedirectPolicy, location| target(policy, StatusCode::FOUND, location).unwrap_err();
        for location in ["", "/relative", "ftp://h/", "http://"] {
            assert_eq!(refusal(&policy(), location), RedirectRefusal::BadLocation, "{location}");
        }
        assert_eq!(refusal(&policy(), "https://h/"), RedirectRefusal::UnsafeScheme);
        assert_eq!(
            refusal(&InternalRedirectPolicy { max: 0, ..policy() }, "http://h/"),
            RedirectRefusal::TooManyRedirects
        );
    }

    #[test]
    fn predicates_judge_the_target_route() {
        let names = |name: &str| Arc::<str>::from(name);
        let with = |predicates| InternalRedirectPolicy { predicates, cross_scheme: true, ..policy() };
        let mut history = RedirectHistory::default();
        let to_http = target(&policy(), StatusCode::FOUND, "http://h/").unwrap();
        let previous = with(vec![RedirectPredicate::NotPrevious]);
        assert_eq!(previous.accepts(&names("a"), None, &to_http, &mut history), Err(RedirectRefusal::NoRoute));
        assert_eq!(previous.accepts(&names("a"), Some(&names("b")), &to_http, &mut history), Ok(()));
        assert_eq!(
            previous.accepts(&names("a"), Some(&names("b")), &to_http, &mut history),
            Err(RedirectRefusal::Predicate)
        );
        assert_eq!(previous.accepts(&names("b"), Some(&names("b")), &to_http, &mut history), Ok(()));
        assert_eq!(history.followed, 2);
        let allowed = with(vec![RedirectPredicate::Allowed(["b".into()].into_iter().collect())]);
        assert_eq!(
            allowed.accepts(&names("a"), Some(&names("c")), &to_http, &mut history),
            Err(RedirectRefusal::Predicate)
        );
        let safe = with(vec![RedirectPredicate::SafeCrossScheme]);
        let to_https = target(&with(Vec::new()), StatusCode::FOUND, "https://h/").unwrap();
        assert_eq!(
            safe.accepts(&names("a"), Some(&names("c")), &to_https, &mut history),
            Err(RedirectRefusal::Predicate)
        );
        assert_eq!(safe.accepts(&names("a"), Some(&names("c")), &to_http, &mut history), Ok(()));
    }
}
