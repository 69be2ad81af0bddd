//! Host and path of a request as its route rewrites them. It must not know when headers are mutated.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};
use tidegate_filters::format::{Format, FormatContext};
use tidegate_filters::http::header_mutations::{self, Direction};
use tidegate_filters::http::{HeaderKey, Headers, RequestHead};
use tidegate_filters::stream_info::StreamInfo;

use super::matcher::PathMatch;
use super::{Substitution, UriRewrite};

const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
pub(crate) const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What becomes of the path; its query stays.
#[derive(Debug)]
pub enum PathRewrite {
    /// `prefix_rewrite`: in place of what the route matched.
    Prefix(HeaderValue),
    /// `regex_rewrite`
    Regex(Substitution),
    /// `path_rewrite_policy`
    Template(UriRewrite),
    /// `path_rewrite`: the whole path; a value that is not there is empty.
    Format(Format),
}

/// What becomes of the host.
#[derive(Debug, Default)]
pub enum HostRewrite {
    #[default]
    Keep,
    Literal(HeaderValue),
    /// `host_rewrite_header`: the first value of that header, if there is one.
    Header(HeaderKey),
    /// `host_rewrite_path_regex`: what the path becomes by it, also when it does not match.
    PathRegex(Substitution),
    /// `host_rewrite`: a value that is not there is `-`.
    Format(Format),
    /// `auto_host_rewrite`: the host name of the endpoint, once one is chosen.
    Auto,
}

impl PathRewrite {
    /// The whole new path. `None` when there is none: an empty result, or a path that the route would no longer match.
    pub(crate) fn apply(&self, matched: &PathMatch, head: &RequestHead, info: &StreamInfo) -> Option<HeaderValue> {
        let path = head.path.as_bytes();
        let only = head.path_only();
        let query = &path[only.len()..];
        match self {
            Self::Prefix(prefix) => replace_matched(matched, head, prefix.as_bytes()),
            Self::Regex(substitution) => with_query(&substitution.apply(only), query),
            Self::Template(template) => with_query(&template.apply(only)?, query),
            Self::Format(format) => with_query(&render(format, head, info), query),
        }
    }
}

/// The path with `replacement` in place of what the route matched: the literal, or the whole path of a regex.
pub(crate) fn replace_matched(matched: &PathMatch, head: &RequestHead, replacement: &[u8]) -> Option<HeaderValue> {
    let path = head.path.as_bytes();
    let literal: &[u8] = match matched {
        PathMatch::Prefix(text) | PathMatch::Exact(text) | PathMatch::SeparatedPrefix(text) => &text.bytes,
        PathMatch::Template(template) => template.text.as_bytes(),
        PathMatch::Regex { .. } | PathMatch::Connect => head.path_only(),
    };
    let (start, rest) = path.split_at_checked(literal.len())?;
    // A filter may have changed the path since.
    if replacement.is_empty() || !start.eq_ignore_ascii_case(literal) {
        return None;
    }
    HeaderValue::from_bytes(&[replacement, rest].concat()).ok()
}

pub(crate) fn with_query(path: &[u8], query: &[u8]) -> Option<HeaderValue> {
    if path.is_empty() { None } else { HeaderValue::from_bytes(&[path, query].concat()).ok() }
}

/// The text of a format that a request fills.
pub(crate) fn render(format: &Format, head: &RequestHead, info: &StreamInfo) -> Vec<u8> {
    let mut text = Vec::new();
    format.render(&FormatContext { request: Some(head), ..FormatContext::of(info) }, &mut text);
    text
}

/// Sets the path, and keeps the old one in `x-envoy-original-path` if asked to.
pub(crate) fn set_path(head: &mut RequestHead, path: HeaderValue, keep_original: bool) {
    let old = std::mem::replace(&mut head.path, path);
    if keep_original {
        head.headers.insert(X_ENVOY_ORIGINAL_PATH, old);
    }
}

impl HostRewrite {
    /// The new host, when there is one now.
    pub(crate) fn apply<'a>(&'a self, head: &'a RequestHead, info: &StreamInfo) -> Option<HeaderValue> {
        let host: Cow<'a, [u8]> = match self {
            Self::Keep | Self::Auto => return None,
            Self::Literal(host) => return Some(host.clone()),
            Self::Header(name) => Cow::Borrowed(head.first(name)?),
            Self::PathRegex(substitution) => Cow::Owned(substitution.apply(head.path_only())),
            Self::Format(format) => Cow::Owned(render(format, head, info)),
        };
        if host.is_empty() { None } else { HeaderValue::from_bytes(&host).ok() }
    }
}

/// Sets the host (Envoy's `updateAuthority`). The old one is appended to `x-forwarded-host` unless it is its last value,
/// and kept in `x-envoy-original-host`, each if asked for.
pub fn set_host(head: &mut RequestHead, host: HeaderValue, append_forwarded: bool, keep_original: bool) {
    let old = std::mem::replace(&mut head.authority, host);
    if append_forwarded && !old.is_empty() {
        let forwarded = head.headers.get(&X_FORWARDED_HOST).map(HeaderValue::as_bytes).unwrap_or_default();
        if forwarded.rsplit(|byte| *byte == b',').find(|part| !part.is_empty()) != Some(old.as_bytes()) {
            header_mutations::append(&mut head.headers, Direction::Request, &X_FORWARDED_HOST, old.clone());
        }
    }
    if keep_original {
        head.headers.insert(X_ENVOY_ORIGINAL_HOST, old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::testing::{exact, get, info, prefix, regex};

    fn rewritten(rewrite: &PathRewrite, matched: &PathMatch, path: &str) -> Option<String> {
        let value = rewrite.apply(matched, &get("h", path), &info())?;
        Some(value.to_str().unwrap().to_owned())
    }

    /// Envoy 1.40's results.
    #[test]
    fn a_prefix_replaces_what_was_matched() {
        let to = |text| PathRewrite::Prefix(HeaderValue::from_static(text));
        let ignoring_case = match prefix("/CaSe") {
            PathMatch::Prefix(text) => PathMatch::Prefix(crate::route::Text { ignore_case: true, ..text }),
            other => other,
        };
        for (rewrite, matched, path, expected) in [
            (to("/"), prefix("/pr/x"), "/pr/xyz?q=1", Some("/yz?q=1")),
            (to("/new"), ignoring_case, "/caSEx/y?q=1", Some("/newx/y?q=1")),
            (to("/all"), exact("/r"), "/r?q", Some("/all?q")),
            (to("/all"), regex("/r.*"), "/r/a/b?q=1", Some("/all?q=1")),
            (to("/n"), prefix("/other"), "/r", None),
            (to(""), prefix("/r"), "/r", None),
        ] {
            assert_eq!(rewritten(&rewrite, &matched, path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_regex_sees_the_path_without_its_query() {
        let swap = Substitution::new("^/([^/]+)/([^/?]+)$", "/\\2/\\1").unwrap();
        let swap = PathRewrite::Regex(swap);
        assert_eq!(rewritten(&swap, &prefix("/"), "/a/b?c/d").as_deref(), Some("/b/a?c/d"));
        let empty = PathRewrite::Regex(Substitution::new(".*", "").unwrap());
        assert_eq!(rewritten(&empty, &prefix("/"), "/a?b"), None);
    }

    #[test]
    fn the_old_host_is_forwarded_once() {
        for (forwarded, expected) in [("", "h.com"), ("a,h.com", "a,h.com"), ("a, h.com", "a, h.com,h.com")] {
            let mut head = get("h.com", "/");
            if !forwarded.is_empty() {
                head.headers.insert(X_FORWARDED_HOST, HeaderValue::from_str(forwarded).unwrap());
            }
            set_host(&mut head, HeaderValue::from_static("new"), true, true);
            assert_eq!(
                (&head.authority, &head.headers[X_ENVOY_ORIGINAL_HOST]),
                (&HeaderValue::from_static("new"), &HeaderValue::from_static("h.com"))
            );
            assert_eq!(head.headers[X_FORWARDED_HOST], expected);
        }
    }

    #[test]
    fn a_host_from_the_path_is_the_path_when_nothing_matches() {
        let host = HostRewrite::PathRegex(Substitution::new("^/hx/(.+)/.*$", "\\1").unwrap());
        assert_eq!(host.apply(&get("h", "/hx/foo/bar?q"), &info()).unwrap(), "foo");
        assert_eq!(host.apply(&get("h", "/hx"), &info()).unwrap(), "/hx");
        let header = HostRewrite::Header(HeaderKey::new("x-h"));
        assert_eq!(header.apply(&get("h", "/"), &info()), None);
    }
}
