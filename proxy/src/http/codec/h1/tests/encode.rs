//! Heads and bodies on their way out.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use tidegate_filters::http::{RequestHead, ResponseHead};

use crate::http::codec::h1::encode::{self, Delimit};
use crate::http::codec::h1::io::Writer;
use crate::http::codec::h1::outgoing::{Answered, Outgoing, WrongLength};
use crate::http::downstream::BodyLength;
use crate::http::protocol::{HeaderCase, Http1Options};

type Given = &'static [(&'static str, &'static str)];

fn request(method: &str, fields: Given) -> RequestHead {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let path = HeaderValue::from_static(if method == Method::CONNECT { "" } else { "/p?q" });
    let mut head = RequestHead::new(method, HeaderValue::from_static("a.test:80"), path);
    head.headers = headers(fields);
    head
}

fn headers(fields: Given) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
}

fn encode(head: &RequestHead, delimit: Delimit) -> String {
    let mut out = BytesMut::new();
    encode::request(head, delimit, false, &Http1Options::default(), &mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn host_is_first_and_framing_last() {
    let head = request("POST", &[("foo", "b"), ("x-a", "1")]);
    let start = "POST /p?q HTTP/1.1\r\nhost: a.test:80\r\nfoo: b\r\nx-a: 1\r\n";
    assert_eq!(encode(&head, Delimit::Chunked), format!("{start}transfer-encoding: chunked\r\n\r\n"));
    assert_eq!(encode(&head, Delimit::Zero), format!("{start}content-length: 0\r\n\r\n"));
    assert_eq!(encode(&head, Delimit::Length(7)), format!("{start}content-length: 7\r\n\r\n"));
    assert_eq!(encode(&head, Delimit::AsIs), format!("{start}\r\n"));
}

#[test]
fn a_length_that_is_not_true_is_not_written() {
    let head =
        request("GET", &[("content-length", "5"), ("transfer-encoding", "chunked"), ("host", "evil"), ("x", "1")]);
    let start = "GET /p?q HTTP/1.1\r\nhost: a.test:80\r\n";
    assert_eq!(encode(&head, Delimit::Zero), format!("{start}x: 1\r\ncontent-length: 0\r\n\r\n"));
    assert_eq!(encode(&head, Delimit::Length(7)), format!("{start}x: 1\r\ncontent-length: 7\r\n\r\n"));
    assert_eq!(encode(&head, Delimit::Length(5)), format!("{start}content-length: 5\r\nx: 1\r\n\r\n"));
    assert_eq!(encode(&head, Delimit::AsIs), format!("{start}content-length: 5\r\nx: 1\r\n\r\n"));
    assert_eq!(encode(&head, Delimit::Chunked), format!("{start}x: 1\r\ntransfer-encoding: chunked\r\n\r\n"));
    for bad in [
        &[("content-length", "5, 5")],
        &[("content-length", "+5")],
        &[("content-length", "05")],
        &[("content-length", "")],
    ] {
        assert_eq!(encode(&request("GET", bad), Delimit::AsIs), format!("{start}\r\n"), "{bad:?}");
    }
    let twice = request("GET", &[("content-length", "5"), ("content-length", "5")]);
    assert_eq!(encode(&twice, Delimit::AsIs), format!("{start}\r\n"));
}

#[test]
fn hop_by_hop_fields_go_out_for_upgrades_alone() {
    let head = request("GET", &[("connection", "Upgrade"), ("upgrade", "websocket"), ("content-length", "0")]);
    let start = "GET /p?q HTTP/1.1\r\nhost: a.test:80\r\n";
    let mut out = BytesMut::new();
    encode::request(&head, Delimit::AsIs, true, &Http1Options::default(), &mut out);
    assert_eq!(out, format!("{start}connection: Upgrade\r\nupgrade: websocket\r\n\r\n"));
    assert_eq!(encode(&head, Delimit::Chunked), format!("{start}transfer-encoding: chunked\r\n\r\n"));
    let connect = request("CONNECT", &[]);
    assert_eq!(encode(&connect, Delimit::AsIs), "CONNECT a.test:80 HTTP/1.1\r\nhost: a.test:80\r\n\r\n");
}

#[test]
fn neither_target_nor_host_can_end_its_line() {
    let mut head = request("GET", &[]);
    head.path = HeaderValue::from_bytes(b"/a HTTP/1.1\tb\xe9").unwrap();
    head.authority = HeaderValue::from_static("a b");
    let mut out = BytesMut::new();
    encode::request(&head, Delimit::AsIs, false, &Http1Options::default(), &mut out);
    assert_eq!(&out[..], b"GET /a%20HTTP/1.1%09b\xe9 HTTP/1.1\r\nhost: a%20b\r\n\r\n");
}

#[test]
fn proper_case_and_whole_urls() {
    let options =
        Http1Options { header_case: HeaderCase::ProperWords, send_fully_qualified_url: true, ..Default::default() };
    let mut out = BytesMut::new();
    encode::request(&request("POST", &[("x-foo-bar", "1")]), Delimit::Chunked, false, &options, &mut out);
    encode::request(&request("CONNECT", &[]), Delimit::AsIs, true, &options, &mut out);
    let expected = "POST http://a.test:80/p?q HTTP/1.1\r\nHost: a.test:80\r\nX-Foo-Bar: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
                    CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n";
    assert_eq!(out, expected);
}

#[test]
fn requests_without_a_body_say_so_where_their_method_may_have_one() {
    for method in ["GET", "HEAD", "DELETE", "TRACE", "CONNECT"] {
        assert_eq!(encode::delimit_request(&request(method, &[]), true), Delimit::AsIs, "{method}");
    }
    for method in ["POST", "PUT", "PATCH", "OPTIONS", "PURGE", "PROPFIND"] {
        assert_eq!(encode::delimit_request(&request(method, &[]), true), Delimit::Zero, "{method}");
    }
    assert_eq!(encode::delimit_request(&request("GET", &[]), false), Delimit::Chunked);
    assert_eq!(encode::delimit_request(&request("GET", &[("content-length", "5")]), false), Delimit::AsIs);
}

const GET: Answered = Answered { version: Version::HTTP_11, head_request: false };
const HEAD: Answered = Answered { version: Version::HTTP_11, head_request: true };
const TEN: Answered = Answered { version: Version::HTTP_10, head_request: false };

/// A response's fields, and how its body is written.
fn respond(status: u16, fields: Given, answered: Answered, length: BodyLength) -> (String, Outgoing) {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
    head.headers = headers(fields);
    let (delimit, body) = Outgoing::of_response(head.status, &head.headers, length, answered);
    let mut out = BytesMut::new();
    encode::response(&head, delimit, None, answered.version, HeaderCase::Lower, &mut out);
    let text = String::from_utf8(out.to_vec()).unwrap();
    (text.split_once("\r\n").unwrap().1.trim_end_matches("\r\n").replace("\r\n", "|"), body)
}

#[test]
fn responses_are_framed_by_what_is_sent() {
    let cl: Given = &[("content-length", "2"), ("server", "envoy")];
    let none: Given = &[("server", "envoy")];
    for (status, fields, answered, length, expected, body) in [
        (200, cl, GET, BodyLength::Known(2), "content-length: 2|server: envoy", Outgoing::Length(2)),
        (200, cl, GET, BodyLength::Known(3), "server: envoy|content-length: 3", Outgoing::Length(3)),
        (200, cl, GET, BodyLength::Unknown, "content-length: 2|server: envoy", Outgoing::Length(2)),
        (200, cl, GET, BodyLength::None, "server: envoy|content-length: 0", Outgoing::Nothing),
        (200, none, GET, BodyLength::None, "server: envoy|content-length: 0", Outgoing::Nothing),
        (200, none, GET, BodyLength::Known(2), "server: envoy|content-length: 2", Outgoing::Length(2)),
        (200, none, GET, BodyLength::Unknown, "server: envoy|transfer-encoding: chunked", Outgoing::Chunked),
        (200, none, TEN, BodyLength::Unknown, "server: envoy", Outgoing::Raw),
        (200, cl, TEN, BodyLength::Known(2), "content-length: 2|server: envoy", Outgoing::Length(2)),
        (200, cl, HEAD, BodyLength::None, "content-length: 2|server: envoy", Outgoing::Nothing),
        (200, cl, HEAD, BodyLength::Unknown, "content-length: 2|server: envoy", Outgoing::Nothing),
        (200, none, HEAD, BodyLength::None, "server: envoy|transfer-encoding: chunked", Outgoing::Nothing),
        (200, none, HEAD, BodyLength::Unknown, "server: envoy|transfer-encoding: chunked", Outgoing::Nothing),
        (200, none, HEAD, BodyLength::Known(9), "server: envoy|content-length: 9", Outgoing::Nothing),
        (204, cl, GET, BodyLength::None, "server: envoy", Outgoing::Nothing),
        (204, none, GET, BodyLength::Unknown, "server: envoy", Outgoing::Nothing),
        (204, none, HEAD, BodyLength::None, "server: envoy", Outgoing::Nothing),
        (304, cl, GET, BodyLength::None, "content-length: 2|server: envoy", Outgoing::Nothing),
        (304, none, GET, BodyLength::Unknown, "server: envoy", Outgoing::Nothing),
        (103, cl, GET, BodyLength::None, "server: envoy", Outgoing::Nothing),
        (200, none, GET, BodyLength::Tunnel, "server: envoy", Outgoing::Raw),
    ] {
        let answer = respond(status, fields, answered, length);
        assert_eq!(answer, (expected.into(), body), "{status} {fields:?} {answered:?} {length:?}");
    }
    let hop: Given = &[("connection", "keep-alive"), ("upgrade", "x"), ("transfer-encoding", "chunked")];
    assert_eq!(respond(200, hop, GET, BodyLength::None).0, "content-length: 0");
    let switch: Given = &[("connection", "Upgrade"), ("upgrade", "websocket"), ("content-length", "0")];
    assert_eq!(respond(101, switch, GET, BodyLength::Tunnel).0, "connection: Upgrade|upgrade: websocket");
}

#[test]
fn status_lines() {
    let line = |status, close, version| {
        let mut out = BytesMut::new();
        let head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
        encode::response(&head, Delimit::Zero, close, version, HeaderCase::Lower, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    };
    assert_eq!(line(200, None, Version::HTTP_11), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let closing = "HTTP/1.0 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(line(503, Some(true), Version::HTTP_10), closing);
    let staying = "HTTP/1.0 418 Unknown\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(line(418, Some(false), Version::HTTP_10), staying);
}

/// What a body looks like on the wire.
async fn write(
    mut body: Outgoing,
    pieces: &[&'static [u8]],
    trailers: Option<&HeaderMap>,
) -> (Vec<u8>, Result<(), WrongLength>) {
    let mut writer = Writer::new(Vec::new(), 1 << 20);
    let mut result = Ok(());
    for piece in pieces {
        result = result.and(body.data(Bytes::from_static(piece), &mut writer).map(drop));
    }
    result = result.and(body.end(trailers, &mut writer).map(drop));
    writer.flush().await.unwrap();
    (writer.into_io(), result)
}

#[tokio::test]
async fn bodies_keep_to_what_was_announced() {
    let trailers = headers(&[("x-sum", "1"), ("content-length", "3"), ("authorization", "x")]);
    let pieces: &[&[u8]] = &[b"hello world, hello", b"", b"!"];
    let chunked = b"12\r\nhello world, hello\r\n1\r\n!\r\n0\r\nx-sum: 1\r\n\r\n".to_vec();
    assert_eq!(write(Outgoing::Chunked, pieces, Some(&trailers)).await, (chunked, Ok(())));
    assert_eq!(write(Outgoing::Chunked, &[], None).await, (b"0\r\n\r\n".to_vec(), Ok(())));
    assert_eq!(write(Outgoing::Length(3), &[b"ab", b"c"], None).await, (b"abc".to_vec(), Ok(())));
    assert_eq!(write(Outgoing::Length(3), &[b"ab", b"cd"], None).await, (b"abc".to_vec(), Err(WrongLength)));
    assert_eq!(write(Outgoing::Length(3), &[b"ab"], None).await, (b"ab".to_vec(), Err(WrongLength)));
    assert_eq!(write(Outgoing::Nothing, &[b"ab"], Some(&trailers)).await, (Vec::new(), Ok(())));
    assert_eq!(write(Outgoing::Raw, &[b"ab"], Some(&trailers)).await, (b"ab".to_vec(), Ok(())));
}
