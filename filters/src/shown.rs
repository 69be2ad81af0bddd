//! What lines of the debug level show: whose they are, and headers, without what is secret. It must not know who logs.

use std::fmt::{self, Display, Formatter};

use http::{HeaderMap, HeaderValue};

use crate::http::{RequestHead, ResponseHead, StreamContext};

/// `[Tags: "ConnectionId":"1","StreamId":"2"]`, as Envoy writes it.
#[derive(Clone, Copy)]
pub struct Tags {
    connection: u64,
    stream: Option<u64>,
}

impl Tags {
    /// Of all that is said on one connection.
    pub fn connection(id: u64) -> Self {
        Self { connection: id, stream: None }
    }

    /// Of one stream.
    pub fn stream(stream: &StreamContext) -> Self {
        Self { connection: stream.info.connection.id, stream: Some(stream.random) }
    }
}

impl Display for Tags {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "[Tags: \"ConnectionId\":\"{}\"", self.connection)?;
        if let Some(stream) = self.stream {
            write!(f, ",\"StreamId\":\"{stream}\"")?;
        }
        f.write_str("]")
    }
}

/// The headers of a request, one a line.
pub struct RequestHeaders<'a>(pub &'a RequestHead);

impl Display for RequestHeaders<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for name in [":authority", ":path", ":method", ":scheme", ":protocol"] {
            if let Some(value) = self.0.get(name) {
                line(f, name, value)?;
            }
        }
        headers(f, &self.0.headers)
    }
}

/// The headers of a response, one a line.
pub struct ResponseHeaders<'a>(pub &'a ResponseHead);

impl Display for ResponseHeaders<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        line(f, ":status", self.0.status.as_str().as_bytes())?;
        headers(f, &self.0.headers)
    }
}

/// Headers whose values let in whoever reads them.
const SECRET: [&str; 5] = ["authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"];

fn headers(f: &mut Formatter<'_>, headers: &HeaderMap<HeaderValue>) -> fmt::Result {
    headers.iter().try_for_each(|(name, value)| {
        let secret = SECRET.contains(&name.as_str());
        line(f, name.as_str(), if secret { b"[hidden]" } else { value.as_bytes() })
    })
}

/// What a terminal would obey is escaped.
fn line(f: &mut Formatter<'_>, name: &str, value: &[u8]) -> fmt::Result {
    write!(f, "'{name}', '")?;
    for char in String::from_utf8_lossy(value).chars() {
        if char.is_control() { write!(f, "{}", char.escape_default())? } else { write!(f, "{char}")? }
    }
    f.write_str("'\n")
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};

    use super::*;

    #[test]
    fn headers_are_shown_a_line_each_and_secrets_are_not() {
        let mut head = RequestHead::new(Method::GET, HeaderValue::from_static("a"), HeaderValue::from_static("/x"));
        for name in SECRET {
            head.headers.insert(name, HeaderValue::from_static("let-me-in"));
        }
        head.headers.insert("x-odd", HeaderValue::from_bytes(b"a\tb\xff").unwrap());
        let text = RequestHeaders(&head).to_string();
        assert!(text.starts_with("':authority', 'a'\n':path', '/x'\n':method', 'GET'\n':scheme', 'http'\n"), "{text}");
        assert!(text.contains("'x-odd', 'a\\tb\u{fffd}'\n") && text.contains("'cookie', '[hidden]'\n"), "{text}");
        assert!(!text.contains("let-me-in"), "{text}");
        let mut response = ResponseHead::new(StatusCode::OK);
        response.headers.insert("set-cookie", HeaderValue::from_static("let-me-in"));
        assert_eq!(ResponseHeaders(&response).to_string(), "':status', '200'\n'set-cookie', '[hidden]'\n");
    }

    #[test]
    fn tags_have_envoys_form() {
        assert_eq!(Tags::connection(3).to_string(), "[Tags: \"ConnectionId\":\"3\"]");
        let tags = Tags { connection: 3, stream: Some(4) };
        assert_eq!(tags.to_string(), "[Tags: \"ConnectionId\":\"3\",\"StreamId\":\"4\"]");
    }
}
