//! What a route asks of a request (`RouteMatch`): one condition on the path, and criteria that must all hold.
//! It must not know other routes, nor what happens once one matches.

use http::{HeaderName, Method};
use tidegate_filters::http::RequestHead;
use tidegate_filters::matching::{
    CookieMatcher, FilterStateMatcher, HeaderMatcher, MetadataMatcher, QueryParameterMatcher, Regex, RegexError,
};
use tidegate_filters::runtime::Fraction;

use super::UriTemplate;
use super::input::{Mismatch, RouteInput};
use super::path_index::Key;

/// One route's `match`.
#[derive(Debug)]
pub struct RouteMatch {
    pub path: PathMatch,
    /// In Envoy's order: runtime fraction, gRPC, headers, query, TLS, metadata, filter state.
    pub criteria: Vec<Criterion>,
}

/// The condition on the path; query and fragment are never part of it.
#[derive(Debug, Clone)]
pub enum PathMatch {
    Prefix(Text),
    Exact(Text),
    /// The text itself, or the text and then `/`.
    SeparatedPrefix(Text),
    /// The whole path.
    Regex(PathRegex),
    /// `path_match_policy`: a URI template. Path parameters are part of what it sees.
    Template(UriTemplate),
    /// CONNECT and CONNECT-UDP, whatever the path; all that can match a request without one.
    Connect,
}

/// A literal that may ignore (ASCII) case.
#[derive(Debug, Clone)]
pub struct Text {
    pub bytes: Box<[u8]>,
    pub ignore_case: bool,
}

/// A regex that whole paths are matched against.
#[derive(Debug, Clone)]
pub struct PathRegex {
    regex: Regex,
    text: Box<str>,
    /// What every path that matches begins with.
    literal: Box<[u8]>,
}

impl PathRegex {
    pub fn new(text: &str) -> Result<Self, RegexError> {
        Ok(Self { regex: Regex::new(text)?, text: text.into(), literal: literal_start(text).into() })
    }
}

impl Text {
    fn same(&self, bytes: &[u8]) -> bool {
        if self.ignore_case { bytes.eq_ignore_ascii_case(&self.bytes) } else { *bytes == *self.bytes }
    }

    fn begins(&self, bytes: &[u8]) -> bool {
        bytes.get(..self.bytes.len()).is_some_and(|start| self.same(start))
    }
}

/// The path of a request as routes look at it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PathView<'a> {
    /// Without query, and without path parameters where the table says so.
    pub(crate) path: &'a [u8],
    /// Without query.
    pub(crate) whole: &'a [u8],
    pub(crate) connect: bool,
}

impl<'a> PathView<'a> {
    pub(crate) fn new(head: &'a RequestHead, ignore_parameters: bool) -> Self {
        let path = head.path.as_bytes();
        let ends = |byte: &u8| matches!(byte, b'?' | b'#') || (ignore_parameters && *byte == b';');
        let end = path.iter().position(ends).unwrap_or(path.len());
        Self { path: &path[..end], whole: head.path_only(), connect: is_connect(head) }
    }
}

const CONNECT_UDP: &[u8] = b"connect-udp";

/// CONNECT, extended or not, and what upgrades to connect-udp.
pub(crate) fn is_connect(head: &RequestHead) -> bool {
    head.method == Method::CONNECT
        || head.headers.get(http::header::UPGRADE).is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(CONNECT_UDP))
}

impl PathMatch {
    pub(crate) fn matches(&self, view: PathView<'_>) -> bool {
        match self {
            Self::Prefix(text) => text.begins(view.path),
            Self::Exact(text) => text.same(view.path),
            Self::SeparatedPrefix(text) => {
                text.begins(view.path) && matches!(view.path.get(text.bytes.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.regex.matches(view.path),
            Self::Template(template) => template.matches(view.whole),
            Self::Connect => view.connect,
        }
    }

    /// What an index may look up for it.
    pub(crate) fn key(&self) -> Key<'_> {
        match self {
            Self::Exact(text) => Key::Exact { text: &text.bytes, ignore_case: text.ignore_case },
            Self::Prefix(text) | Self::SeparatedPrefix(text) => {
                Key::Prefix { text: &text.bytes, ignore_case: text.ignore_case }
            }
            Self::Regex(regex) => Key::Prefix { text: &regex.literal, ignore_case: false },
            // Where parameters are cut, the path that is looked up is shorter than the one that the template sees.
            Self::Template(template) => {
                let start = template.literal_start();
                let cut = start.iter().position(|byte| *byte == b';').unwrap_or(start.len());
                Key::Prefix { text: &start[..cut], ignore_case: false }
            }
            Self::Connect => Key::Prefix { text: &[], ignore_case: false },
        }
    }

    fn mismatch(&self) -> Mismatch {
        let text = |text: &Text| String::from_utf8_lossy(&text.bytes).into_owned();
        let (field, wants) = match self {
            Self::Prefix(prefix) => ("prefix", text(prefix)),
            Self::Exact(path) => ("path", text(path)),
            Self::SeparatedPrefix(prefix) => ("path_separated_prefix", text(prefix)),
            Self::Regex(regex) => ("safe_regex", regex.text.to_string()),
            Self::Template(template) => ("path_match_policy", template.text.to_string()),
            Self::Connect => ("connect_matcher", "CONNECT".to_owned()),
        };
        Mismatch::new(field, wants)
    }
}

/// One condition besides the path's.
#[derive(Debug)]
pub enum Criterion {
    Runtime(Fraction),
    Grpc,
    /// Place in `headers`, for traces.
    Header(usize, HeaderMatcher),
    /// Place in `query_parameters`.
    Query(usize, QueryParameterMatcher),
    /// Place in `cookies`.
    Cookie(usize, CookieMatcher),
    /// Whether the client presented a certificate, and whether it was validated.
    Tls {
        presented: Option<bool>,
        validated: Option<bool>,
    },
    /// Place in `dynamic_metadata`.
    Metadata(usize, MetadataMatcher),
    /// Place in `filter_state`.
    FilterState(usize, FilterStateMatcher),
}

impl Criterion {
    pub(crate) fn holds(&self, input: &RouteInput<'_>) -> bool {
        match self {
            Self::Runtime(fraction) => fraction.holds(input.runtime, input.random),
            Self::Grpc => input.head.is_grpc(),
            Self::Header(_, matcher) => matcher.matches(input.head),
            Self::Query(_, matcher) => matcher.matches(input.head.query()),
            Self::Cookie(_, matcher) => matcher.matches(input.head),
            Self::Tls { presented, validated } => {
                let tls = input.connection.tls.as_deref();
                presented.is_none_or(|wanted| wanted == tls.is_some_and(|tls| tls.peer_presented))
                    && validated.is_none_or(|wanted| wanted == tls.is_some_and(|tls| tls.peer_validated))
            }
            Self::Metadata(_, matcher) => matcher.matches(input.metadata),
            Self::FilterState(_, matcher) => matcher.matches(input.filter_state),
        }
    }

    fn mismatch(&self) -> Mismatch {
        let (field, wants) = match self {
            Self::Runtime(fraction) => {
                return Mismatch::new(
                    "runtime_fraction",
                    format!("{} of {}", fraction.numerator, fraction.denominator),
                );
            }
            Self::Grpc => ("grpc".to_owned(), "content-type application/grpc".to_owned()),
            Self::Header(at, matcher) => (format!("headers[{at}]"), format!("{matcher:?}")),
            Self::Query(at, matcher) => (format!("query_parameters[{at}]"), format!("{matcher:?}")),
            Self::Cookie(at, matcher) => (format!("cookies[{at}]"), format!("{matcher:?}")),
            Self::Tls { presented, validated } => {
                ("tls_context".to_owned(), format!("presented {presented:?}, validated {validated:?}"))
            }
            Self::Metadata(at, matcher) => (format!("dynamic_metadata[{at}]"), format!("{matcher:?}")),
            Self::FilterState(at, matcher) => (format!("filter_state[{at}]"), format!("{matcher:?}")),
        };
        Mismatch::new(field, wants)
    }
}

impl RouteMatch {
    pub(crate) fn matches(&self, view: PathView<'_>, input: &RouteInput<'_>) -> bool {
        self.path.matches(view) && self.criteria.iter().all(|criterion| criterion.holds(input))
    }

    /// The first condition that fails.
    pub(crate) fn mismatch(&self, view: PathView<'_>, input: &RouteInput<'_>) -> Option<Mismatch> {
        if !self.path.matches(view) {
            return Some(self.path.mismatch());
        }
        self.criteria.iter().find(|criterion| !criterion.holds(input)).map(Criterion::mismatch)
    }
}

/// What every path that `regex` matches begins with, as far as a glance tells: plain characters and escaped punctuation
/// before the first thing that is neither. It may be shorter than the truth, never wrong.
pub(crate) fn literal_start(regex: &str) -> Vec<u8> {
    let mut literal = Vec::new();
    // An alternative anywhere outside a group, or within one that this scan does not enter anyway, ends the claim.
    if regex.contains('|') {
        return literal;
    }
    let mut chars = regex.strip_prefix('^').unwrap_or(regex).chars().peekable();
    while let Some(char) = chars.next() {
        let plain = match char {
            '\\' => match chars.next() {
                Some(escaped) if escaped.is_ascii_punctuation() => escaped,
                _ => break,
            },
            '.' | '+' | '*' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' => break,
            other => other,
        };
        // A quantifier makes the character before it optional, or repeats it.
        if matches!(chars.peek(), Some('*' | '?' | '{')) {
            break;
        }
        literal.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes());
    }
    literal
}

/// The first value of a header, for what Envoy reads one value of.
pub(crate) fn first<'a>(head: &'a RequestHead, name: &HeaderName) -> Option<&'a [u8]> {
    head.headers.get(name).map(http::HeaderValue::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn text(bytes: &str) -> Text {
        Text { bytes: bytes.as_bytes().into(), ignore_case: false }
    }

    fn view(path: &str) -> PathView<'_> {
        PathView { path: path.as_bytes(), whole: path.as_bytes(), connect: false }
    }

    #[test]
    fn a_separated_prefix_ends_at_a_segment() {
        let path = PathMatch::SeparatedPrefix(text("/sep"));
        assert!(path.matches(view("/sep")) && path.matches(view("/sep/x")));
        assert!(!path.matches(view("/sepx")) && !path.matches(view("/se")));
    }

    #[test]
    fn parameters_and_query_are_cut() {
        let head =
            RequestHead::new(Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/a;v=1/b?q#f"));
        assert_eq!(PathView::new(&head, false).path, b"/a;v=1/b");
        assert_eq!(PathView::new(&head, true).path, b"/a");
    }

    #[test]
    fn connect_udp_over_http_1_is_a_connect() {
        let mut head = RequestHead::new(Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/"));
        assert!(!is_connect(&head));
        head.headers.insert(http::header::UPGRADE, HeaderValue::from_static("Connect-UDP"));
        assert!(is_connect(&head));
    }

    #[test]
    fn the_literal_start_of_a_regex_is_never_too_long() {
        for (regex, literal) in [
            ("/api/v[0-9]", "/api/v"),
            ("^/a\\.b/.*", "/a.b/"),
            ("/ab*", "/a"),
            ("/ab+", "/ab"),
            ("/ab{0,2}", "/a"),
            ("/a|/b", ""),
            ("(?i)/a", ""),
            ("/a\\d", "/a"),
            ("/plain$", "/plain"),
        ] {
            assert_eq!(String::from_utf8(literal_start(regex)).unwrap(), literal, "{regex}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_a_regex_matches_begins_with_its_literal_start(
            regex in "(/|a|b|\\\\.|\\[ab\\]|\\.|a\\*|b\\?|a\\+|a\\{0,2\\}|\\(a\\|b\\)|\\(ab\\)\\?|\\\\Qb|\\|){0,6}",
            path in "[/ab.]{0,5}",
        ) {
            if let Ok(compiled) = Regex::new(&regex) {
                proptest::prop_assert!(!compiled.matches(path.as_bytes()) || path.as_bytes().starts_with(&literal_start(&regex)));
            }
        }
    }
}
