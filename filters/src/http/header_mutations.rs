//! Adding, replacing and removing headers as configurations say it (`HeaderValueOption`, Envoy's `HeaderParser`).
//! It must not know on which level a mutation stands, nor in which order levels go.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::{RequestHead, ResponseHead};
use crate::format::{Format, FormatContext};
use crate::matching::StringMatcher;

/// A list of headers to remove and one to add. All values are rendered before any header changes; then headers that
/// replace are set, and after them those that add, as in Envoy.
#[derive(Default)]
pub struct HeaderMutations(Option<Box<Edits>>);

/// Most routes, of which there may be many, have none.
struct Edits {
    remove: Vec<HeaderName>,
    add: Vec<HeaderAddition>,
}

/// One `HeaderValueOption`.
pub struct HeaderAddition {
    pub name: HeaderName,
    pub value: HeaderText,
    pub action: AppendAction,
    /// Act even when the value is empty.
    pub keep_empty: bool,
}

/// `HeaderValueOption.HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendAction {
    #[default]
    Append,
    AddIfAbsent,
    Overwrite,
    OverwriteIfExists,
}

/// What a header is set to.
pub enum HeaderText {
    Fixed(HeaderValue),
    /// Rendered for each message. A value that is not there is empty.
    Format(Format),
}

impl HeaderText {
    /// The value. What cannot stand in a header is no value: nothing is set then.
    fn render(&self, context: &FormatContext<'_>) -> Option<HeaderValue> {
        match self {
            Self::Fixed(value) => Some(value.clone()),
            Self::Format(format) => {
                let mut text = Vec::new();
                format.render(context, &mut text);
                HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
            }
        }
    }
}

/// Which head a header stands in: Envoy joins repeated values of some headers, by direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Request,
    Response,
}

impl HeaderMutations {
    /// Removes these, then adds those.
    pub fn new(remove: Vec<HeaderName>, add: Vec<HeaderAddition>) -> Self {
        let is_empty = remove.is_empty() && add.is_empty();
        Self((!is_empty).then(|| Box::new(Edits { remove, add })))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Changes a request's headers; values may refer to them as they were, after the removals.
    pub fn apply_request<'f>(&self, head: &mut RequestHead, facts: impl Into<FormatContext<'f>>) {
        let Some(edits) = &self.0 else { return };
        edits.remove(&mut head.headers);
        let changes = edits.render(&head.headers, &FormatContext { request: Some(head), ..facts.into() });
        changes.apply(&mut head.headers, Direction::Request);
    }

    /// Changes a response's. `request` is what the values may refer to besides; a codec error has none.
    pub fn apply_response<'f>(
        &self,
        head: &mut ResponseHead,
        request: Option<&RequestHead>,
        facts: impl Into<FormatContext<'f>>,
    ) {
        let Some(edits) = &self.0 else { return };
        edits.remove(&mut head.headers);
        let context = FormatContext { request, response: Some(head), ..facts.into() };
        let changes = edits.render(&head.headers, &context);
        changes.apply(&mut head.headers, Direction::Response);
    }
}

impl Edits {
    fn remove(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
    }

    fn render<'a>(&'a self, headers: &HeaderMap, context: &FormatContext<'_>) -> Changes<'a> {
        let mut changes = Changes::default();
        for addition in &self.add {
            let Some(value) = addition.render(context) else { continue };
            let (entry, present) = ((&addition.name, value), headers.contains_key(&addition.name));
            match addition.action {
                AppendAction::Append => changes.added.push(entry),
                AppendAction::AddIfAbsent if !present => changes.added.push(entry),
                AppendAction::Overwrite => changes.replaced.push(entry),
                AppendAction::OverwriteIfExists if present => changes.replaced.push(entry),
                AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
            }
        }
        changes
    }
}

/// What is to be done once all values are rendered.
#[derive(Default)]
struct Changes<'a> {
    replaced: SmallVec<[(&'a HeaderName, HeaderValue); 4]>,
    added: SmallVec<[(&'a HeaderName, HeaderValue); 4]>,
}

impl Changes<'_> {
    fn apply(self, headers: &mut HeaderMap, direction: Direction) {
        for (name, value) in self.replaced {
            headers.insert(name, value);
        }
        for (name, value) in self.added {
            append(headers, direction, name, value);
        }
    }
}

/// Mutations that each see what the ones before them did (`HeaderMutation`: mirrors, early header mutation, the
/// header_mutation filter).
#[derive(Default)]
pub struct HeaderEdits(pub Vec<HeaderEdit>);

/// One `HeaderMutation`.
pub enum HeaderEdit {
    Remove(HeaderName),
    RemoveMatching(StringMatcher),
    Add(HeaderAddition),
}

impl HeaderEdit {
    /// Removes what is to be removed; an addition is handed back.
    fn remove(&self, headers: &mut HeaderMap) -> Option<&HeaderAddition> {
        match self {
            Self::Remove(name) => {
                headers.remove(name);
                None
            }
            Self::RemoveMatching(matcher) => {
                let matches = |name: &&HeaderName| matcher.matches(name.as_str().as_bytes());
                let matching: SmallVec<[HeaderName; 4]> = headers.keys().filter(matches).cloned().collect();
                for name in matching {
                    headers.remove(name);
                }
                None
            }
            Self::Add(addition) => Some(addition),
        }
    }
}

impl HeaderEdits {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn apply_request<'f>(&self, head: &mut RequestHead, facts: impl Into<FormatContext<'f>>) {
        let facts = facts.into();
        for edit in &self.0 {
            if let Some(addition) = edit.remove(&mut head.headers) {
                let value = addition.render(&FormatContext { request: Some(head), ..facts });
                addition.apply(value, &mut head.headers, Direction::Request);
            }
        }
    }

    /// Changes a response's headers. `request` is what the values may refer to besides.
    pub fn apply_response<'f>(
        &self,
        head: &mut ResponseHead,
        request: Option<&RequestHead>,
        facts: impl Into<FormatContext<'f>>,
    ) {
        let facts = facts.into();
        for edit in &self.0 {
            if let Some(addition) = edit.remove(&mut head.headers) {
                let context = FormatContext { request, response: Some(head), ..facts };
                let value = addition.render(&context);
                addition.apply(value, &mut head.headers, Direction::Response);
            }
        }
    }

    /// Changes trailers; `context` is what the values may refer to.
    pub fn apply_trailers(&self, trailers: &mut HeaderMap, direction: Direction, context: &FormatContext<'_>) {
        for edit in &self.0 {
            if let Some(addition) = edit.remove(trailers) {
                addition.apply(addition.render(context), trailers, direction);
            }
        }
    }

    /// Whether a value depends on the message.
    pub fn is_dynamic(&self) -> bool {
        self.0.iter().any(|edit| matches!(edit, HeaderEdit::Add(HeaderAddition { value: HeaderText::Format(_), .. })))
    }
}

impl HeaderAddition {
    /// The value, unless it is an empty one that does not count.
    fn render(&self, context: &FormatContext<'_>) -> Option<HeaderValue> {
        self.value.render(context).filter(|value| self.keep_empty || !value.is_empty())
    }

    fn apply(&self, value: Option<HeaderValue>, headers: &mut HeaderMap, direction: Direction) {
        let Some(value) = value else { return };
        let present = headers.contains_key(&self.name);
        match self.action {
            AppendAction::Append => append(headers, direction, &self.name, value),
            AppendAction::AddIfAbsent if !present => append(headers, direction, &self.name, value),
            AppendAction::Overwrite => drop(headers.insert(&self.name, value)),
            AppendAction::OverwriteIfExists if present => drop(headers.insert(&self.name, value)),
            AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
        }
    }
}

/// Adds one value. Headers that Envoy keeps one line of (its inline headers) get `first,second` when present.
pub fn append(headers: &mut HeaderMap, direction: Direction, name: &HeaderName, value: HeaderValue) {
    let one_line = match direction {
        Direction::Request => REQUEST_LINES.binary_search(&name.as_str()).is_ok(),
        Direction::Response => RESPONSE_LINES.binary_search(&name.as_str()).is_ok(),
    };
    let joined = one_line
        .then(|| headers.get(name))
        .flatten()
        .and_then(|present| HeaderValue::from_bytes(&[present.as_bytes(), b",", value.as_bytes()].concat()).ok());
    match joined {
        Some(joined) => {
            headers.insert(name, joined);
        }
        None => {
            headers.append(name, value);
        }
    }
}

/// Request headers that Envoy 1.40 holds as one line (measured).
const REQUEST_LINES: &[&str] = &[
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "authentication",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-modified-since",
    "if-none-match",
    "keep-alive",
    "origin",
    "pragma",
    "proxy-connection",
    "referer",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-is-timeout-retry",
    "x-envoy-max-retries",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

/// Response headers that Envoy 1.40 holds as one line (measured).
const RESPONSE_LINES: &[&str] = &[
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "age",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "etag",
    "expires",
    "grpc-message",
    "grpc-status",
    "keep-alive",
    "last-modified",
    "location",
    "proxy-connection",
    "proxy-status",
    "server",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-degraded",
    "x-envoy-immediate-health-check-fail",
    "x-envoy-ratelimited",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-healthchecked-cluster",
    "x-envoy-upstream-service-time",
    "x-request-id",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream_info::StreamInfo;
    use AppendAction::*;

    fn add(name: &'static str, value: &'static str, action: AppendAction) -> HeaderAddition {
        let value = HeaderText::Fixed(HeaderValue::from_static(value));
        HeaderAddition { name: HeaderName::from_static(name), value, action, keep_empty: false }
    }

    fn info() -> StreamInfo {
        let address = |text: &str| crate::stream_info::Address::Ip(text.parse().unwrap());
        let now = std::time::Instant::now();
        let connection = crate::connection::ConnectionInfo::new(1, address("10.0.0.1:1"), address("10.0.0.2:2"), now);
        StreamInfo::new(std::sync::Arc::new(connection), now, std::time::SystemTime::now())
    }

    fn apply(mutations: &HeaderMutations, headers: &[(&'static str, &'static str)]) -> Vec<String> {
        let text = HeaderValue::from_static;
        let mut head = RequestHead::new(http::Method::GET, text("h"), text("/p"));
        for (name, value) in headers {
            head.headers.append(*name, text(value));
        }
        mutations.apply_request(&mut head, &info());
        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut lines: Vec<String> = head.headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn removal_goes_first_then_replacing_then_adding() {
        let mutations = HeaderMutations::new(
            vec![HeaderName::from_static("gone"), HeaderName::from_static("back")],
            vec![
                add("a", "new", Append),
                add("b", "set", Overwrite),
                add("b", "more", Append),
                add("c", "set", OverwriteIfExists),
                add("d", "set", OverwriteIfExists),
                add("e", "set", AddIfAbsent),
                add("f", "set", AddIfAbsent),
                add("g", "", Append),
                HeaderAddition { keep_empty: true, ..add("h", "", Append) },
                add("back", "again", Append),
            ],
        );
        let headers = [("a", "old"), ("b", "old"), ("c", "old"), ("e", "old"), ("gone", "x"), ("back", "x")];
        assert_eq!(
            apply(&mutations, &headers),
            ["a: new", "a: old", "b: more", "b: set", "back: again", "c: set", "e: old", "f: set", "h: "]
        );
    }

    /// As Envoy 1.40 does: values are rendered after removals, before anything is set.
    #[test]
    fn values_are_rendered_from_the_headers_as_they_came() {
        let format = |name, text: &str| {
            let value = HeaderText::Format(Format::compile_omitting_empty(text).unwrap());
            HeaderAddition { value, ..add(name, "", Append) }
        };
        let mutations = HeaderMutations::new(
            vec![HeaderName::from_static("gone")],
            vec![
                add("a", "new", Overwrite),
                format("b", "%REQ(a)%-%REQ(gone)%%PROTOCOL%"),
                format("c", "%REQ(none)%"),
                HeaderAddition { keep_empty: true, ..format("d", "%REQ(none)%") },
            ],
        );
        assert_eq!(apply(&mutations, &[("a", "old"), ("gone", "x")]), ["a: new", "b: old-", "d: "]);
    }

    #[test]
    fn one_line_headers_are_joined() {
        let mutations = HeaderMutations::new(Vec::new(), vec![add("via", "b", Append)]);
        assert_eq!(apply(&mutations, &[("via", "a")]), ["via: a,b"]);
        assert!(REQUEST_LINES.is_sorted() && RESPONSE_LINES.is_sorted());
    }
}
