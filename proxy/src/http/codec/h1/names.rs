//! How names look on the wire: the case of header names (`header_key_format`) and reason phrases.
//! Inside the proxy names are lower case; nothing may depend on their spelling.

use bytes::{BufMut, BytesMut};
use http::{HeaderName, StatusCode};
use tidegate_filters::http::Spelling;

use crate::http::protocol::HeaderCase;

/// How the names of one message are written.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub case: HeaderCase,
    /// What the message brought along goes before `case`.
    pub spelling: Option<&'a Spelling>,
}

impl Names<'_> {
    pub(super) fn put(&self, name: &HeaderName, out: &mut BytesMut) {
        match self.spelling {
            Some(spelling) => match spelling.of(name) {
                Some(spelled) => out.put_slice(spelled),
                None if spelling.proper_words => put_proper_words(name.as_str().as_bytes(), out),
                None => out.put_slice(name.as_str().as_bytes()),
            },
            None if self.case == HeaderCase::ProperWords => put_proper_words(name.as_str().as_bytes(), out),
            None => out.put_slice(name.as_str().as_bytes()),
        }
    }
}

/// `content-type` becomes `Content-Type` (Envoy's `proper_case_words`): the first letter, and each after something that is
/// no letter or digit.
fn put_proper_words(name: &[u8], out: &mut BytesMut) {
    let mut in_word = false;
    for byte in name {
        out.put_u8(if in_word { *byte } else { byte.to_ascii_uppercase() });
        in_word = byte.is_ascii_alphanumeric();
    }
}

/// The reason phrase that Envoy writes for a status.
pub(super) fn reason_phrase(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        599 => "Last Unassigned Server Error Code",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_with_capitals() {
        for (name, expected) in [("x1y-2z_3w.4q!u", "X1y-2z_3w.4q!U"), ("x-long-te_st", "X-Long-Te_St"), ("te", "Te")] {
            let mut out = BytesMut::new();
            put_proper_words(name.as_bytes(), &mut out);
            assert_eq!(&out[..], expected.as_bytes());
        }
    }

    #[test]
    fn a_message_keeps_the_spelling_it_came_with() {
        let [foo, bar, date] = ["x-foo", "x-bar", "date"].map(HeaderName::from_static);
        let mut spelling = Spelling::default();
        for (name, spelled) in [(&foo, "X-FOO"), (&foo, "x-Foo"), (&bar, "x-bar"), (&bar, "X-BAR")] {
            spelling.keep(name, spelled.as_bytes());
        }
        let names = Names { case: HeaderCase::ProperWords, spelling: Some(&spelling) };
        let mut out = BytesMut::new();
        for name in [&foo, &bar, &date] {
            names.put(name, &mut out);
            out.put_u8(b' ');
        }
        assert_eq!(&out[..], b"X-FOO x-bar date ");
        spelling.proper_words = true;
        out.clear();
        Names { case: HeaderCase::Lower, spelling: Some(&spelling) }.put(&date, &mut out);
        assert_eq!(&out[..], b"Date");
    }

    #[test]
    fn phrases_are_envoys() {
        assert_eq!(reason_phrase(StatusCode::IM_A_TEAPOT), "Unknown");
        assert_eq!(reason_phrase(StatusCode::EARLY_HINTS), "Unknown");
        assert_eq!(reason_phrase(StatusCode::PAYLOAD_TOO_LARGE), "Payload Too Large");
    }
}
