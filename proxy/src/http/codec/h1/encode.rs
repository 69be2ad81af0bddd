//! Writes heads and body framing in HTTP/1, as Envoy writes them: host first, framing last, its reason phrases.
//! Framing fields are written once and only if they are true. It must not know sockets; bytes go to a buffer.

use bytes::{BufMut, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use tidegate_filters::http::{RequestHead, ResponseHead};

use super::names::{Names, reason_phrase};
use crate::http::protocol::{HeaderCase, Http1Options};

/// How a body follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delimit {
    /// Nothing is said: there is no body, or the headers already say it.
    AsIs,
    /// `content-length: 0` for a message that could have had a body.
    Zero,
    Length(u64),
    Chunked,
}

/// A request's head. Unless `delimit` is `AsIs` it says how the body is framed, whatever the headers say. `connection` and
/// `upgrade` go out for an upgrade alone. Returns how many bytes its fields take.
pub(crate) fn request(
    head: &RequestHead,
    delimit: Delimit,
    upgrade: bool,
    options: &Http1Options,
    out: &mut BytesMut,
) -> usize {
    let target = if head.method == Method::CONNECT { &head.authority } else { &head.path };
    out.reserve(estimate(&head.headers) + target.len() + head.authority.len());
    out.put_slice(head.method.as_str().as_bytes());
    out.put_u8(b' ');
    if options.send_fully_qualified_url && head.method != Method::CONNECT {
        put_word(&head.scheme, out);
        out.put_slice(b"://");
        put_word(&head.authority, out);
    }
    if target.is_empty() {
        out.put_u8(b'/');
    }
    put_word(target, out);
    out.put_slice(b" HTTP/1.1\r\n");
    let line_end = out.len();
    let names = Names { case: options.header_case, spelling: head.spelling.as_deref() };
    names.put(&HOST, out);
    out.put_slice(b": ");
    put_word(&head.authority, out);
    out.put_slice(b"\r\n");
    let stated = if upgrade { None } else { stated_length(&head.headers) };
    put_fields(&head.headers, stated, delimit, upgrade, |name| *name == HOST, names, out);
    delimiter(stated, delimit, names, out);
    let field_bytes = out.len() - line_end;
    out.put_slice(b"\r\n");
    field_bytes
}

/// Writes what must not end the line or the word that it stands in: blanks and control bytes, which only a rewrite can have
/// brought in, are percent-encoded.
fn put_word(value: &HeaderValue, out: &mut BytesMut) {
    let bytes = value.as_bytes();
    if bytes.iter().all(|b| *b > b' ' && *b != 0x7f) {
        out.put_slice(bytes);
        return;
    }
    for &byte in bytes {
        if byte > b' ' && byte != 0x7f {
            out.put_u8(byte);
        } else {
            let digit = |nibble: u8| HEX[usize::from(nibble)].to_ascii_uppercase();
            out.put_slice(&[b'%', digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
}

/// A response's head; `version` is the client's. `close` writes `connection`: `close` or `keep-alive`. `connection` and
/// `upgrade` of the headers go out with 101 alone, framing fields with neither 1xx nor 204.
/// Returns how many bytes its fields take.
pub(crate) fn response(
    head: &ResponseHead,
    delimit: Delimit,
    close: Option<bool>,
    version: Version,
    case: HeaderCase,
    out: &mut BytesMut,
) -> usize {
    out.reserve(estimate(&head.headers));
    // Envoy answers HTTP/1.0 with an HTTP/1.0 status line and everyone else with 1.1.
    out.put_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(head.status.as_str().as_bytes());
    out.put_u8(b' ');
    let reason = head.spelling.as_ref().and_then(|spelling| spelling.reason.as_deref());
    out.put_slice(reason.unwrap_or(reason_phrase(head.status).as_bytes()));
    out.put_slice(b"\r\n");
    let line_end = out.len();
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let unframed = head.status.is_informational() || head.status == StatusCode::NO_CONTENT;
    let stated = if unframed { None } else { stated_length(&head.headers) };
    let names = Names { case, spelling: head.spelling.as_deref() };
    put_fields(&head.headers, stated, delimit, switching, |_| false, names, out);
    match close {
        Some(true) => field(&CONNECTION, b"close", names, out),
        Some(false) => field(&CONNECTION, b"keep-alive", names, out),
        None => {}
    }
    if !unframed {
        delimiter(stated, delimit, names, out);
    }
    let field_bytes = out.len() - line_end;
    out.put_slice(b"\r\n");
    field_bytes
}

/// The length that the headers state, if they state one and only one.
pub(crate) fn stated_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let digits = value.iter().all(u8::is_ascii_digit) && (value[..].first() != Some(&b'0') || value.len() == 1);
    if digits { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}

/// The length that `delimit` wants to see in the head.
fn wanted_length(stated: Option<u64>, delimit: Delimit) -> Option<u64> {
    match delimit {
        Delimit::AsIs => stated,
        Delimit::Zero => Some(0),
        Delimit::Length(length) => Some(length),
        Delimit::Chunked => None,
    }
}

/// All fields but framing that does not hold, those of the connection, and those of `skip`.
fn put_fields(
    headers: &HeaderMap,
    stated: Option<u64>,
    delimit: Delimit,
    upgrade: bool,
    skip: impl Fn(&HeaderName) -> bool,
    names: Names<'_>,
    out: &mut BytesMut,
) {
    let length_holds = stated.is_some() && stated == wanted_length(stated, delimit);
    let is_ours = |name: &HeaderName| {
        *name == TRANSFER_ENCODING
            || skip(name)
            || (*name == CONTENT_LENGTH && !length_holds)
            || (!upgrade && (*name == CONNECTION || *name == UPGRADE))
    };
    for (name, value) in headers {
        if !is_ours(name) {
            field(name, value.as_bytes(), names, out);
        }
    }
}

/// Writes the framing that the headers have not stated already.
fn delimiter(stated: Option<u64>, delimit: Delimit, names: Names<'_>, out: &mut BytesMut) {
    match wanted_length(stated, delimit) {
        Some(length) if stated != Some(length) => {
            field(&CONTENT_LENGTH, Decimal::new(length).as_bytes(), names, out);
        }
        _ if delimit == Delimit::Chunked => field(&TRANSFER_ENCODING, b"chunked", names, out),
        _ => {}
    }
}

fn field(name: &HeaderName, value: &[u8], names: Names<'_>, out: &mut BytesMut) {
    names.put(name, out);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// About how many bytes a head takes.
fn estimate(headers: &HeaderMap) -> usize {
    192 + headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// How a request is framed whose body is this long, if that is known. Envoy says `content-length: 0` where the method may
/// have a body.
pub(crate) fn delimit_request(head: &RequestHead, empty: bool) -> Delimit {
    let silent = matches!(head.method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT);
    match (stated_length(&head.headers), empty) {
        (Some(_), _) => Delimit::AsIs,
        (None, true) if silent => Delimit::AsIs,
        (None, true) => Delimit::Zero,
        (None, false) => Delimit::Chunked,
    }
}

/// What stands before a chunk's data.
pub(crate) fn chunk_prefix(length: usize, out: &mut BytesMut) {
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.put_u8(HEX[length >> (digit * 4) & 0xf]);
    }
    out.put_slice(b"\r\n");
}

/// The last chunk with its trailers, and how many bytes those take. Their names are lower case whatever is configured, as
/// Envoy's are.
pub(crate) fn last_chunk(trailers: Option<&HeaderMap>, out: &mut BytesMut) -> usize {
    let names = Names { case: HeaderCase::Lower, spelling: None };
    out.put_slice(b"0\r\n");
    let line_end = out.len();
    for (name, value) in trailers.into_iter().flatten() {
        if super::body::may_be_a_trailer(name) {
            field(name, value.as_bytes(), names, out);
        }
    }
    let field_bytes = out.len() - line_end;
    out.put_slice(b"\r\n");
    field_bytes
}

/// A number in decimal digits, without allocating.
pub(crate) struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    pub(crate) fn new(mut number: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            if number == 0 {
                return Self { digits, start };
            }
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_chunk_sizes() {
        assert_eq!(Decimal::new(0).as_bytes(), b"0");
        assert_eq!(Decimal::new(u64::MAX).as_bytes(), u64::MAX.to_string().as_bytes());
        for (length, expected) in [(1, &b"1\r\n"[..]), (16, b"10\r\n"), (255, b"ff\r\n"), (65_536, b"10000\r\n")] {
            let mut out = BytesMut::new();
            chunk_prefix(length, &mut out);
            assert_eq!(&out[..], expected);
        }
    }
}
