//! Routes that are answered here: redirects and direct responses.
//! It must not know how a local reply is sent.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, StatusCode};
use tidegate_filters::format::{Format, FormatContext, SubstitutionFormat};
use tidegate_filters::http::{LocalReply, RequestHead};
use tidegate_filters::stream_info::StreamInfo;

use super::Substitution;
use super::matcher::{PathMatch, first};
use super::rewrite;

/// `RedirectAction`, compiled.
#[derive(Debug)]
pub struct Redirect {
    pub status: StatusCode,
    /// `None` keeps the request's.
    pub scheme: Option<Box<str>>,
    pub host: Option<Box<str>>,
    pub port: Option<u32>,
    pub path: RedirectPath,
    pub strip_query: bool,
}

/// What becomes of a redirect's path.
#[derive(Debug, Default)]
pub enum RedirectPath {
    #[default]
    Keep,
    /// `path_redirect`: the whole path. A query in it takes the place of the request's.
    Replace(Box<str>),
    /// `prefix_rewrite`
    Prefix(HeaderValue),
    /// `regex_rewrite`
    Regex(Substitution),
    /// `path_rewrite`: as `Replace`, once it is rendered; nothing rendered keeps the path.
    Format(Format),
}

/// `DirectResponseAction`, compiled.
#[derive(Debug)]
pub struct DirectResponse {
    pub status: StatusCode,
    pub body: Bytes,
    /// `body_format`: makes the body of the request, and of `body` as `%LOCAL_REPLY_BODY%`.
    pub format: Option<SubstitutionFormat>,
}

impl Redirect {
    /// The reply; a prefix or regex rewrite changes the request's path too, which logs see.
    pub(crate) fn reply(
        &self,
        matched: &PathMatch,
        head: &mut RequestHead,
        info: &StreamInfo,
        keep_original: bool,
    ) -> LocalReply {
        let new_path = match &self.path {
            RedirectPath::Prefix(prefix) => rewrite::replace_matched(matched, head, prefix.as_bytes()),
            RedirectPath::Regex(substitution) => {
                let only = head.path_only();
                rewrite::with_query(&substitution.apply(only), &head.path.as_bytes()[only.len()..])
            }
            RedirectPath::Keep | RedirectPath::Replace(_) | RedirectPath::Format(_) => None,
        };
        if let Some(path) = new_path {
            rewrite::set_path(head, path, keep_original);
        }
        let reply = LocalReply::new(self.status, "direct_response");
        match (head.path.is_empty(), HeaderValue::from_bytes(&self.location(head, info))) {
            (false, Ok(location)) => reply.header(LOCATION, location),
            _ => reply,
        }
    }

    /// Envoy's `Utility::newUri`.
    fn location(&self, head: &RequestHead, info: &StreamInfo) -> Vec<u8> {
        let scheme = self.scheme.as_deref().map_or(head.scheme.as_bytes(), str::as_bytes);
        let host = match &self.host {
            Some(host) => host.as_bytes(),
            None => kept_host(head, scheme, self.port.is_some()),
        };
        let mut url = [scheme, b"://", host].concat();
        if let Some(port) = self.port {
            url.extend_from_slice(format!(":{port}").as_bytes());
        }
        let rendered = match &self.path {
            RedirectPath::Format(format) => rewrite::render(format, head, info),
            RedirectPath::Replace(path) => path.as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let (path, query) = self.path_and_query(head, &rendered);
        if !path.starts_with(b"/") {
            url.push(b'/');
        }
        url.extend_from_slice(path);
        url.extend_from_slice(query);
        url
    }

    /// The path and its query; `replacement` is the new path, if there is one.
    fn path_and_query<'a>(&self, head: &'a RequestHead, replacement: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let request = head.path.as_bytes();
        let (path, query) = request.split_at(request.iter().position(|byte| *byte == b'?').unwrap_or(request.len()));
        let query = if self.strip_query { &[] } else { query };
        match replacement {
            [] => (path, query),
            replacement if replacement.contains(&b'?') => (replacement, &[]),
            replacement => (replacement, query),
        }
    }
}

/// The request's host. Its port goes when another takes its place, or when it was the default of the scheme that goes.
fn kept_host<'a>(head: &'a RequestHead, scheme: &[u8], other_port: bool) -> &'a [u8] {
    const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    let host = head.authority.as_bytes();
    let colon = match host.first() {
        Some(b'[') => host.windows(2).rposition(|pair| pair == b"]:").map(|bracket| bracket + 1),
        _ => host.iter().rposition(|byte| *byte == b':'),
    };
    let Some(colon) = colon else { return host };
    let protocol = first(head, &X_FORWARDED_PROTO).unwrap_or(head.scheme.as_bytes());
    let default_of = |name: &[u8], port: &[u8]| protocol.eq_ignore_ascii_case(name) && host[colon..] == *port;
    let was_default = scheme != protocol && (default_of(b"https", b":443") || default_of(b"http", b":80"));
    if other_port || was_default { &host[..colon] } else { host }
}

/// The URL that `require_tls` sends a request to.
pub fn tls_location(head: &RequestHead) -> Option<HeaderValue> {
    HeaderValue::from_bytes(&[b"https://", head.authority.as_bytes(), head.path.as_bytes()].concat()).ok()
}

impl DirectResponse {
    /// The reply. 201 and 3xx get a `location`: the request's own URL.
    pub(crate) fn reply(&self, head: &RequestHead, info: &StreamInfo) -> LocalReply {
        let reply = LocalReply::new(self.status, "direct_response").body(self.render(head, info));
        if head.path.is_empty() || !(self.status == StatusCode::CREATED || self.status.is_redirection()) {
            return reply;
        }
        let url = [head.scheme.as_bytes(), b"://", head.authority.as_bytes(), head.path.as_bytes()].concat();
        match HeaderValue::from_bytes(&url) {
            Ok(location) => reply.header(LOCATION, location),
            Err(_) => reply,
        }
    }
}

impl DirectResponse {
    fn render(&self, head: &RequestHead, info: &StreamInfo) -> Bytes {
        let Some(format) = &self.format else { return self.body.clone() };
        let body = String::from_utf8_lossy(&self.body);
        let context = FormatContext { request: Some(head), local_reply_body: Some(&body), ..FormatContext::of(info) };
        let mut text = Vec::new();
        format.render(&context, &mut text);
        text.into()
    }

    /// The content type that the format makes, whatever headers the route sets.
    pub(crate) fn content_type(&self) -> Option<(HeaderName, HeaderValue)> {
        let value = HeaderValue::from_str(self.format.as_ref()?.content_type()).ok()?;
        Some((CONTENT_TYPE, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::testing::{get, info, prefix};

    fn redirect() -> Redirect {
        Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            host: None,
            port: None,
            path: RedirectPath::Keep,
            strip_query: false,
        }
    }

    fn location(redirect: &Redirect, host: &str, path: &str) -> String {
        let mut head = get(host, path);
        let reply = redirect.reply(&prefix("/r"), &mut head, &info(), true);
        reply.headers[LOCATION].to_str().unwrap().to_owned()
    }

    /// Envoy 1.40's results.
    #[test]
    fn locations_are_envoys() {
        let replace = |path: &str| RedirectPath::Replace(path.into());
        let regex = RedirectPath::Regex(Substitution::new("/r/(.*)", "/z/\\1").unwrap());
        let cases: Vec<(Redirect, &str)> = vec![
            (Redirect { path: replace("/np"), ..redirect() }, "http://h.com/np?q=1"),
            (Redirect { path: replace("/np?z=1"), ..redirect() }, "http://h.com/np?z=1"),
            (Redirect { path: replace("/np?z=1"), strip_query: true, ..redirect() }, "http://h.com/np?z=1"),
            (Redirect { path: replace("np"), strip_query: true, ..redirect() }, "http://h.com/np"),
            (
                Redirect { path: RedirectPath::Prefix(HeaderValue::from_static("/new")), ..redirect() },
                "http://h.com/new/a/b?q=1",
            ),
            (Redirect { path: regex, ..redirect() }, "http://h.com/z/a/b?q=1"),
            (Redirect { scheme: Some("https".into()), ..redirect() }, "https://h.com/r/a/b?q=1"),
            (Redirect { port: Some(8443), ..redirect() }, "http://h.com:8443/r/a/b?q=1"),
            (
                Redirect { host: Some("new.com:77".into()), port: Some(99), ..redirect() },
                "http://new.com:77:99/r/a/b?q=1",
            ),
            (Redirect { strip_query: true, ..redirect() }, "http://h.com/r/a/b"),
        ];
        for (redirect, expected) in cases {
            assert_eq!(location(&redirect, "h.com", "/r/a/b?q=1"), expected);
        }
    }

    #[test]
    fn a_default_port_goes_with_its_scheme() {
        let https = Redirect { scheme: Some("https".into()), ..redirect() };
        let port = Redirect { port: Some(8443), ..redirect() };
        for (redirect, host, expected) in [
            (&https, "h.com:80", "https://h.com/r"),
            (&https, "h.com:443", "https://h.com:443/r"),
            (&https, "[::1]:80", "https://[::1]/r"),
            (&https, "[::1]", "https://[::1]/r"),
            (&https, "h.com:", "https://h.com:/r"),
            (&port, "h.com:", "http://h.com:8443/r"),
            (&port, "[::1]:80", "http://[::1]:8443/r"),
        ] {
            assert_eq!(location(redirect, host, "/r"), expected, "{host}");
        }
    }

    #[test]
    fn a_rewriting_redirect_leaves_the_new_path_for_the_logs() {
        let redirect = Redirect { path: RedirectPath::Prefix(HeaderValue::from_static("/new")), ..redirect() };
        let mut head = get("h", "/r/a");
        redirect.reply(&prefix("/r"), &mut head, &info(), true);
        assert_eq!(
            (&head.path, &head.headers[rewrite::X_ENVOY_ORIGINAL_PATH]),
            (&HeaderValue::from_static("/new/a"), &HeaderValue::from_static("/r/a"))
        );
    }

    #[test]
    fn a_direct_201_says_where() {
        let response = |status| DirectResponse { status, body: Bytes::from_static(b"b"), format: None };
        let created = response(StatusCode::CREATED).reply(&get("h", "/d?x"), &info());
        assert_eq!(created.headers[LOCATION], "http://h/d?x");
        assert!(response(StatusCode::OK).reply(&get("h", "/d"), &info()).headers.is_empty());
    }
}
