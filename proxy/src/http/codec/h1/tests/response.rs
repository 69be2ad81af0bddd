//! Responses: how they are framed, and what an upstream must not say.

use bytes::BytesMut;
use http::{Method, Version};

use super::request::rules;
use crate::http::codec::CodecError;
use crate::http::codec::h1::Framing;
use crate::http::codec::h1::encode::{self, Delimit};
use crate::http::codec::h1::fields::{HeadEnd, HeadLimits};
use crate::http::codec::h1::response::{self, DecodedResponse};
use crate::http::protocol::{HeaderCase, Preserved};

struct Asked {
    method: Method,
    tunnel: bool,
    allow_chunked_length: bool,
}

const GET: Asked = Asked { method: Method::GET, tunnel: false, allow_chunked_length: false };
const HEAD: Asked = Asked { method: Method::HEAD, ..GET };
const CONNECT: Asked = Asked { method: Method::CONNECT, tunnel: true, ..GET };
const UPGRADE: Asked = Asked { tunnel: true, ..GET };

/// Decodes the bytes given at once, and checks that every other way to cut them in two gives the same.
fn decode(asked: &Asked, bytes: impl AsRef<[u8]>) -> Result<DecodedResponse, CodecError> {
    let bytes = bytes.as_ref();
    let mut limits = rules().limits;
    limits.allow_chunked_length = asked.allow_chunked_length;
    let decode =
        |buffer: &mut BytesMut, end: &mut HeadEnd| response::decode(buffer, end, &asked.method, asked.tunnel, &limits);
    let whole = decode(&mut BytesMut::from(bytes), &mut HeadEnd::default());
    for at in 0..bytes.len().min(600) {
        let (mut buffer, mut end) = (BytesMut::from(&bytes[..at]), HeadEnd::default());
        let split = decode(&mut buffer, &mut end).and_then(|first| match first {
            Some(first) => Ok(Some(first)),
            None => {
                buffer.extend_from_slice(&bytes[at..]);
                decode(&mut buffer, &mut end)
            }
        });
        assert_eq!(format!("{split:?}"), format!("{whole:?}"), "cut at {at}");
    }
    whole.map(|decoded| decoded.expect("a whole head"))
}

fn ok(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n")
}

fn refuse(asked: &Asked, bytes: impl AsRef<[u8]>) -> CodecError {
    let bytes = bytes.as_ref();
    match decode(asked, bytes) {
        Err(error) => error,
        Ok(decoded) => panic!("{} was taken: {decoded:?}", bytes.escape_ascii()),
    }
}

#[test]
fn status_lines() {
    for (line, status) in [
        ("HTTP/1.1 200 OK", 200),
        ("HTTP/1.1 200", 200),
        ("HTTP/1.1 200 ", 200),
        ("HTTP/1.0 404 \u{e9}", 404),
        ("HTTP/1.1 599 x", 599),
    ] {
        assert_eq!(decode(&GET, format!("{line}\r\nx: 1\r\n\r\n")).unwrap().head.status.as_u16(), status, "{line:?}");
    }
    for bad in [
        "http/1.1 200 OK",
        "HTTP/2.0 200 OK",
        "HTTP/1.2 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 abc OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 000 OK",
        "HTTP/1.1 600 OK",
        "HTTP/1.1 999 OK",
        " HTTP/1.1 200 OK",
        "\r\nHTTP/1.1 200 OK",
        "200 OK",
        "HTTP/1.1 -20 OK",
        "HTTP/1.1 200 O\rK",
        "HTTP/1.1 200 O\nK",
        "H",
        "",
    ] {
        assert_eq!(refuse(&GET, format!("{bad}\r\nx: 1\r\n\r\n")), CodecError::MALFORMED, "{bad:?}");
    }
    assert_eq!(refuse(&GET, "HTTP/1.1 200 O\x01K\r\n\r\n"), CodecError::INVALID_CHARACTERS);
}

#[test]
fn bodies_are_framed_by_status_method_and_fields() {
    for (asked, text, framing) in [
        (&GET, ok("Content-Length: 5\r\n"), Framing::Length(5)),
        (&GET, ok("Content-Length: 05\r\n"), Framing::Length(5)),
        (&GET, ok("Content-Length: 0\r\n"), Framing::None),
        (&GET, ok("Transfer-Encoding: Chunked\r\n"), Framing::Chunked),
        (&GET, ok(""), Framing::UntilClose),
        (&HEAD, ok("Content-Length: 5\r\n"), Framing::None),
        (&HEAD, ok("Transfer-Encoding: chunked\r\n"), Framing::None),
        (&HEAD, ok(""), Framing::None),
        (&GET, "HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n".into(), Framing::None),
        (&GET, "HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n".into(), Framing::None),
        (&GET, "HTTP/1.1 304 x\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Framing::None),
        (&GET, "HTTP/1.1 205 x\r\n\r\n".into(), Framing::UntilClose),
        (&GET, "HTTP/1.1 100 x\r\n\r\n".into(), Framing::None),
        (&GET, "HTTP/1.1 103 x\r\nLink: a\r\n\r\n".into(), Framing::None),
        (&UPGRADE, "HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n".into(), Framing::UntilClose),
        (&UPGRADE, ok("Content-Length: 5\r\n"), Framing::Length(5)),
        (&CONNECT, ok("Content-Length: 5\r\n"), Framing::UntilClose),
        (&CONNECT, ok("Transfer-Encoding: chunked\r\n"), Framing::UntilClose),
        (&CONNECT, "HTTP/1.1 403 x\r\nContent-Length: 5\r\n\r\n".into(), Framing::Length(5)),
    ] {
        assert_eq!(decode(asked, &text).unwrap().framing, framing, "{} {text:?}", asked.method);
    }
    assert!(!decode(&CONNECT, ok("Content-Length: 5\r\n")).unwrap().head.headers.contains_key("content-length"));
    assert!(
        !decode(&GET, "HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n")
            .unwrap()
            .head
            .headers
            .contains_key("content-length")
    );
}

#[test]
fn what_an_upstream_must_not_say() {
    for (fields, error) in [
        ("Content-Length: 2\r\nContent-Length: 2\r\n", CodecError::MALFORMED),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", CodecError::MALFORMED),
        ("Content-Length: 2, 2\r\n", CodecError::MALFORMED),
        ("Content-Length: +2\r\n", CodecError::MALFORMED),
        ("Content-Length: -1\r\n", CodecError::MALFORMED),
        ("Content-Length: \r\n", CodecError::MALFORMED),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", CodecError::CONTENT_LENGTH_AND_CHUNKED),
        ("Transfer-Encoding: gzip, chunked\r\n", CodecError::INVALID_TRANSFER_ENCODING),
        ("Transfer-Encoding: identity\r\n", CodecError::INVALID_TRANSFER_ENCODING),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CodecError::INVALID_TRANSFER_ENCODING),
        ("X-Bad : 1\r\n", CodecError::MALFORMED),
        ("X: a\0b\r\n", CodecError::INVALID_CHARACTERS),
        ("X: a\r\n b\r\n", CodecError::MALFORMED),
        ("X: a\nY: b\r\n", CodecError::MALFORMED),
        ("X: a\rb\r\n", CodecError::MALFORMED),
        (": b\r\n", CodecError::MALFORMED),
    ] {
        assert_eq!(refuse(&GET, ok(fields)), error, "{fields:?}");
        assert_eq!(refuse(&HEAD, ok(fields)), error, "{fields:?}");
    }
    for status in [100, 103, 204] {
        let with = |fields: &str| format!("HTTP/1.1 {status} x\r\n{fields}\r\n");
        assert_eq!(refuse(&GET, with("Content-Length: 2\r\n")), CodecError::CONTENT_LENGTH_NOT_ALLOWED);
        assert_eq!(refuse(&GET, with("Transfer-Encoding: chunked\r\n")), CodecError::TRANSFER_ENCODING_NOT_ALLOWED);
    }
    let lenient = Asked { allow_chunked_length: true, ..GET };
    let decoded = decode(&lenient, ok("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n")).unwrap();
    assert_eq!(decoded.framing, Framing::Chunked);
    assert!(!decoded.head.headers.contains_key("content-length"));
}

#[test]
fn protocols_are_switched_only_when_asked() {
    let switch = "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    for asked in [&GET, &HEAD, &CONNECT] {
        assert_eq!(refuse(asked, switch), CodecError::UNASKED_UPGRADE);
    }
    assert!(!decode(&UPGRADE, switch).unwrap().keep_alive);
}

#[test]
fn connections_that_can_carry_another_request() {
    let kept = |text: String| decode(&GET, text).unwrap().keep_alive;
    assert!(kept(ok("Content-Length: 2\r\n")));
    assert!(kept(ok("Transfer-Encoding: chunked\r\n")));
    assert!(!kept(ok("")));
    assert!(!kept(ok("Connection: x, Close\r\nContent-Length: 2\r\n")));
    assert!(!kept(ok("Proxy-Connection: close\r\nContent-Length: 2\r\n")));
    let ten = |fields: &str| format!("HTTP/1.0 200 OK\r\n{fields}\r\n");
    assert!(!kept(ten("Content-Length: 2\r\n")));
    assert!(kept(ten("Connection: keep-alive\r\nContent-Length: 2\r\n")));
    assert!(!kept(ten("Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n")));
    assert!(decode(&HEAD, ok("")).unwrap().keep_alive);
}

#[test]
fn limits() {
    let many = |n: usize| ok(&(0..n).map(|i| format!("h{i}: v\r\n")).collect::<String>());
    assert_eq!(decode(&GET, many(100)).unwrap().head.headers.len(), 100);
    assert_eq!(refuse(&GET, many(101)), CodecError::TOO_MANY_HEADERS);
    assert_eq!(refuse(&GET, ok(&format!("x: {}\r\n", "a".repeat(70_000)))), CodecError::HEADERS_TOO_LARGE);
    assert_eq!(refuse(&GET, format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(70_000))), CodecError::HEADERS_TOO_LARGE);
}

#[test]
fn underscores_are_only_a_matter_of_requests() {
    assert_eq!(decode(&GET, ok("x_y: 1\r\n")).unwrap().head.headers["x_y"], "1");
}

#[test]
fn spelling_is_kept_where_asked() {
    let limits = HeadLimits { keep_spelling: Some(Preserved { reason: true, proper_words: true }), ..rules().limits };
    let mut buffer =
        BytesMut::from(&b"HTTP/1.1 200 Fine\r\nX-RESP-hDR: 1\r\nx-other: 2\r\nContent-LENGTH: 2\r\n\r\n"[..]);
    let decoded = response::decode(&mut buffer, &mut HeadEnd::default(), &Method::GET, false, &limits);
    let head = decoded.unwrap().unwrap().head;
    let mut out = BytesMut::new();
    encode::response(&head, Delimit::AsIs, Some(true), Version::HTTP_11, HeaderCase::ProperWords, &mut out);
    let expected = "HTTP/1.1 200 Fine\r\nX-RESP-hDR: 1\r\nx-other: 2\r\nContent-LENGTH: 2\r\nConnection: close\r\n\r\n";
    assert_eq!(out, expected);
}
