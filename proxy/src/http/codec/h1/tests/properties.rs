//! What holds for all bytes and all messages.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::prelude::*;
use tidegate_filters::http::{RequestHead, ResponseHead};

use super::request::rules;
use crate::http::codec::h1::Framing;
use crate::http::codec::h1::body::{BodyDecoder, Piece};
use crate::http::codec::h1::encode::{self, Delimit};
use crate::http::codec::h1::fields::HeadEnd;
use crate::http::codec::h1::io::Writer;
use crate::http::codec::h1::outgoing::Outgoing;
use crate::http::codec::h1::{request, response};
use crate::http::downstream::BodyLength;
use crate::http::protocol::{HeaderCase, Http1Options};

/// Everything that a decoder says about bytes that arrive in these pieces.
fn requests(pieces: &[&[u8]]) -> String {
    let (rules, mut buffer, mut end, mut said) = (rules(), BytesMut::new(), HeadEnd::default(), String::new());
    let mut body: Option<BodyDecoder> = None;
    let mut data = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let Some(decoder) = &mut body else {
                match request::decode(&mut buffer, &mut end, &rules) {
                    Ok(Some(decoded)) => {
                        said += &format!("{decoded:?}");
                        body = Some(BodyDecoder::new(decoded.framing));
                        continue;
                    }
                    Ok(None) => break,
                    Err(error) => return format!("{said}{error:?}"),
                }
            };
            match decoder.decode(&mut buffer) {
                Ok(Some(Piece::Data(piece))) => data.extend_from_slice(&piece),
                Ok(Some(Piece::End(trailers))) => {
                    said += &format!("{:?}{trailers:?}", Bytes::from(std::mem::take(&mut data)));
                    body = None;
                }
                Ok(None) => break,
                Err(error) => return format!("{said}{:?}{error:?}", Bytes::from(data)),
            }
        }
    }
    format!("{said}{:?}", Bytes::from(data))
}

fn responses(pieces: &[&[u8]], method: &Method) -> String {
    let (limits, mut buffer, mut end) = (rules().limits, BytesMut::new(), HeadEnd::default());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        match response::decode(&mut buffer, &mut end, method, false, &limits) {
            Ok(Some(decoded)) => return format!("{decoded:?}"),
            Ok(None) => {}
            Err(error) => return format!("{error:?}"),
        }
    }
    "more".into()
}

/// Bytes that look like HTTP/1 in most places.
fn nearly_http() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        8 => prop_oneof![
            Just("GET"), Just("POST"), Just("HTTP/1.1"), Just("HTTP/1.0"), Just("200"), Just("101"), Just("204"), Just("/"),
            Just("/a?b"), Just("http://a/b"), Just("Host"), Just("Content-Length"), Just("Transfer-Encoding"),
            Just("chunked"), Just("Connection"), Just("Upgrade"), Just("close"), Just("h2c"), Just("Expect"), Just("5"),
            Just("0"), Just("a"), Just("x_y"), Just("GET / HTTP/1.1\r\nHost: a\r\n"), Just("HTTP/1.1 200 OK\r\n"),
            Just("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), Just("5\r\nhello\r\n"),
            Just("Content-Length: 5\r\n"),
        ].prop_map(|text| text.as_bytes().to_vec()),
        8 => prop_oneof![
            6 => Just("\r\n"), 3 => Just(": "), 3 => Just(" "), 2 => Just("\r\n\r\n"), 1 => Just("\n"), 1 => Just("\r"),
            1 => Just(","), 1 => Just(";"), 1 => Just("\t"), 1 => Just("\0"),
        ].prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(token, 0..24).prop_map(|parts| parts.concat())
}

fn name() -> impl Strategy<Value = HeaderName> {
    "[a-z][a-z0-9-]{0,12}".prop_map(|name| HeaderName::try_from(name).unwrap()).prop_filter(
        "framing and the connection are the codec's",
        |name| {
            let own = ["host", "connection", "upgrade", "content-length", "transfer-encoding", "te", "expect"];
            !own.contains(&name.as_str())
        },
    )
}

fn value() -> impl Strategy<Value = HeaderValue> {
    let bytes = prop_oneof![Just(b'\t'), b' '..=b'~', 0x80..=0xffu8];
    proptest::collection::vec(bytes, 0..20).prop_map(|bytes| HeaderValue::from_bytes(bytes.trim_ascii()).unwrap())
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    proptest::collection::vec((name(), value()), 0..12).prop_map(|fields| fields.into_iter().collect())
}

fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6)
}

fn decode_body(framing: Framing, bytes: &[u8]) -> (Vec<u8>, Option<HeaderMap>) {
    let (mut decoder, mut buffer, mut data) = (BodyDecoder::new(framing), BytesMut::from(bytes), Vec::new());
    loop {
        match decoder.decode(&mut buffer).unwrap().unwrap() {
            Piece::Data(piece) => data.extend_from_slice(&piece),
            Piece::End(trailers) => {
                assert!(buffer.is_empty());
                return (data, trailers);
            }
        }
    }
}

/// Writes head and body, and gives the bytes.
fn wire(head: &BytesMut, mut body: Outgoing, pieces: &[Vec<u8>], trailers: &HeaderMap) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), 1 << 20);
    writer.encode(|out| out.extend_from_slice(head));
    for piece in pieces {
        body.data(Bytes::from(piece.clone()), &mut writer).unwrap();
    }
    body.end(Some(trailers), &mut writer).unwrap();
    futures_util::FutureExt::now_or_never(writer.flush()).unwrap().unwrap();
    writer.into_io()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        requests(&[&bytes]);
        responses(&[&bytes], &Method::GET);
    }

    #[test]
    fn it_does_not_matter_how_requests_arrive(bytes in nearly_http(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        prop_assert_eq!(requests(&pieces), requests(&[&bytes]));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(requests(&single), requests(&[&bytes]));
    }

    #[test]
    fn it_does_not_matter_how_responses_arrive(bytes in nearly_http()) {
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        for method in [Method::GET, Method::HEAD, Method::CONNECT] {
            prop_assert_eq!(responses(&single, &method), responses(&[&bytes], &method));
        }
    }

    /// What is written is read again as the same one request, whatever is in it.
    #[test]
    fn requests_survive_the_wire(
        path in "/[!-~]{0,30}",
        host in "[a-z0-9.-]{1,12}(:[0-9]{1,4})?",
        headers in headers(),
        body in pieces(),
        announced in any::<bool>(),
    ) {
        let mut head = RequestHead::new(Method::POST, host.parse().unwrap(), path.parse().unwrap());
        head.headers = headers;
        let length: usize = body.iter().map(Vec::len).sum();
        let delimit = if announced { Delimit::Length(length as u64) } else { Delimit::Chunked };
        let mut encoded = BytesMut::new();
        let options = Http1Options { header_case: HeaderCase::ProperWords, ..Default::default() };
        encode::request(&head, delimit, false, &options, &mut encoded);
        let mut bytes =
            BytesMut::from(&wire(&encoded, Outgoing::of_request(&head.headers, delimit, false), &body, &HeaderMap::new())[..]);

        let decoded = request::decode(&mut bytes, &mut HeadEnd::default(), &rules()).unwrap().unwrap();
        prop_assert_eq!(decoded.head_bytes, encoded.len());
        prop_assert_eq!(&decoded.head.authority, &head.authority);
        prop_assert_eq!(&decoded.head.path, &head.path);
        for name in head.headers.keys() {
            let [read, written] =
                [&decoded.head, &head].map(|head| head.headers.get_all(name).iter().cloned().collect::<Vec<_>>());
            prop_assert_eq!(read, written);
        }
        prop_assert_eq!(decode_body(decoded.framing, &bytes), (body.concat(), None));
    }

    #[test]
    fn responses_survive_the_wire(
        status in 200u16..600,
        headers in headers(),
        trailers in headers(),
        body in pieces(),
        announced in any::<bool>(),
        head_request in any::<bool>(),
    ) {
        let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
        head.headers = headers;
        let size: usize = body.iter().map(Vec::len).sum();
        let length = if announced { BodyLength::Known(size as u64) } else { BodyLength::Unknown };
        let answered = crate::http::codec::h1::outgoing::Answered { version: http::Version::HTTP_11, head_request };
        let (delimit, sending) = Outgoing::of_response(head.status, &head.headers, length, answered);
        let mut encoded = BytesMut::new();
        encode::response(&head, delimit, None, http::Version::HTTP_11, HeaderCase::Lower, &mut encoded);
        let mut bytes = BytesMut::from(&wire(&encoded, sending, &body, &trailers)[..]);

        let method = if head_request { Method::HEAD } else { Method::GET };
        let decoded = response::decode(&mut bytes, &mut HeadEnd::default(), &method, false, &rules().limits);
        let decoded = decoded.unwrap().unwrap();
        prop_assert_eq!(decoded.head.status, head.status);
        prop_assert!(decoded.keep_alive);
        let bodyless = head_request || matches!(status, 204 | 304);
        let (data, read) = decode_body(decoded.framing, &bytes);
        prop_assert_eq!(data, if bodyless { Vec::new() } else { body.concat() });
        let sent = trailers.keys().any(crate::http::codec::h1::body::may_be_a_trailer);
        prop_assert_eq!(read.is_some_and(|read| !read.is_empty()), sending == Outgoing::Chunked && sent);
    }
}
