//! Bodies: where they end, what is refused, and that it does not matter how the bytes arrive.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::http::codec::CodecError;
use crate::http::codec::h1::Framing;
use crate::http::codec::h1::body::{BodyDecoder, Piece};

/// A decoded body: its data, its trailers once it has ended, what is left in the buffer.
type Decoded = (Vec<u8>, Option<Option<HeaderMap>>, Vec<u8>);

/// Decodes what is given, piece by piece.
fn feed(framing: Framing, pieces: &[&[u8]]) -> Result<Decoded, CodecError> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut buffer, mut data, mut end) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while end.is_none() {
            match decoder.decode(&mut buffer)? {
                Some(Piece::Data(bytes)) => {
                    assert!(!bytes.is_empty());
                    data.extend_from_slice(&bytes);
                }
                Some(Piece::End(trailers)) => {
                    assert!(decoder.is_done());
                    end = Some(trailers);
                }
                None => break,
            }
        }
    }
    Ok((data, end, buffer.to_vec()))
}

/// Decodes the bytes given at once, and checks that every other way to cut them in two gives the same.
fn decode(framing: Framing, bytes: &[u8]) -> Result<Decoded, CodecError> {
    let whole = feed(framing, &[bytes]);
    for at in 0..bytes.len().min(600) {
        assert_eq!(feed(framing, &[&bytes[..at], &bytes[at..]]), whole, "{} cut at {at}", bytes.escape_ascii());
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(feed(framing, &single), whole);
    whole
}

fn refuse(bytes: impl AsRef<[u8]>) -> CodecError {
    let bytes = bytes.as_ref();
    match decode(Framing::Chunked, bytes) {
        Err(error) => error,
        Ok(decoded) => panic!("{} was taken: {decoded:?}", bytes.escape_ascii()),
    }
}

#[test]
fn lengths() {
    assert_eq!(decode(Framing::Length(3), b"abcGET"), Ok((b"abc".to_vec(), Some(None), b"GET".to_vec())));
    assert_eq!(decode(Framing::Length(3), b"ab"), Ok((b"ab".to_vec(), None, Vec::new())));
    assert_eq!(decode(Framing::None, b"GET"), Ok((Vec::new(), Some(None), b"GET".to_vec())));
    assert_eq!(decode(Framing::UntilClose, b"abc"), Ok((b"abc".to_vec(), None, Vec::new())));
}

#[test]
fn input_that_ends_early_is_noticed() {
    for (framing, bytes, whole) in [
        (Framing::Length(3), &b"ab"[..], false),
        (Framing::Length(3), b"abc", true),
        (Framing::Chunked, b"3\r\nabc\r\n", false),
        (Framing::Chunked, b"0\r\n", false),
        (Framing::Chunked, b"0\r\n\r\n", true),
        (Framing::UntilClose, b"abc", true),
        (Framing::None, b"", true),
    ] {
        let mut decoder = BodyDecoder::new(framing);
        let mut buffer = BytesMut::from(bytes);
        while let Some(Piece::Data(_)) = decoder.decode(&mut buffer).unwrap() {}
        assert_eq!(decoder.end_of_input(), whole, "{framing:?} {}", bytes.escape_ascii());
    }
}

#[test]
fn data_is_not_copied() {
    let mut buffer = BytesMut::from(&b"5\r\nhello\r\n0\r\n\r\n"[..]);
    let range = buffer.as_ptr_range();
    let Some(Piece::Data(data)) = BodyDecoder::new(Framing::Chunked).decode(&mut buffer).unwrap() else { panic!() };
    assert_eq!(data, Bytes::from_static(b"hello"));
    assert!(range.contains(&data.as_ptr()));
}

#[test]
fn chunks() {
    for bytes in [
        "5\r\nhello\r\n0\r\n\r\n",
        "0005\r\nhello\r\n000\r\n\r\n",
        "00000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n0;x=\"y\"\r\n\r\n",
        "5 ;a=b\r\nhello\r\n0\r\n\r\n",
        "5  \t\r\nhello\r\n0 \r\n\r\n",
        "5\t; a=\"b;c\\\"\"\r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;\u{e9}\r\nhello\r\n0\r\n\r\n",
    ] {
        let decoded = decode(Framing::Chunked, format!("{bytes}GET").as_bytes());
        assert_eq!(decoded, Ok((b"hello".to_vec(), Some(None), b"GET".to_vec())), "{bytes:?}");
    }
    let hex = decode(Framing::Chunked, b"aB\r\n").unwrap();
    assert_eq!(hex, (Vec::new(), None, Vec::new()));
}

#[test]
fn chunks_that_two_parsers_could_read_differently_are_refused() {
    for bad in [
        " 5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello",
        "+5\r\nhello",
        "0x5\r\nhello",
        "g\r\n",
        "5g\r\nhello",
        "\r\nhello\r\n",
        "5,\r\nhello",
        "5\0\r\nhello",
        "5\x0c\r\nhello",
        "5 \r\r\nhello",
        "5\thello\r\n0\r\n\r\n",
        "5\r\r\nhello",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5;a\rb\r\nhello",
        "5;a\nb\r\nhello",
        "5;\0\r\nhello",
        "5;\x7f\r\nhello",
        "ffffffffffffffff\r\nhello",
        "10000000000000000\r\nhello",
        "1000000000000000\r\nhello",
        "5;a\n",
        "5\r\nhello\r\n\r\n",
    ] {
        assert_eq!(refuse(bad), CodecError::MALFORMED, "{bad:?}");
    }
}

#[test]
fn extensions_are_limited() {
    let ext = |n: usize| format!("1;{}\r\na\r\n", "x".repeat(n));
    assert!(decode(Framing::Chunked, ext(4000).as_bytes()).is_ok());
    assert_eq!(refuse(ext(5000)), CodecError::MALFORMED);
    assert_eq!(refuse(format!("1;{}", "x".repeat(5000))), CodecError::MALFORMED);
    // Each line is short enough, all of them together are not.
    assert!(decode(Framing::Chunked, ext(1000).repeat(16).as_bytes()).is_ok());
    assert_eq!(refuse(ext(1000).repeat(17)), CodecError::MALFORMED);
}

#[test]
fn trailers() {
    let (_, end, left) = decode(Framing::Chunked, b"1\r\na\r\n0\r\nX-Sum: 1\r\ny:2\r\nx-sum: 3 \r\n\r\nGET").unwrap();
    let trailers = end.flatten().unwrap();
    assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["1", "3"]);
    assert_eq!((trailers["y"].as_bytes(), &left[..]), (&b"2"[..], &b"GET"[..]));

    let evil = "0\r\nHost: evil\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nAuthorization: x\r\nCookie: x\r\n\
                X-Forwarded-For: x\r\nX-Envoy-Internal: true\r\nTE: x\r\nConnection: x\r\nok: 1\r\n\r\n";
    let (_, end, _) = decode(Framing::Chunked, evil.as_bytes()).unwrap();
    assert_eq!(end.flatten().unwrap().keys().collect::<Vec<_>>(), ["ok"]);
}

#[test]
fn bad_trailers_are_refused() {
    for bad in [
        "x : 1\r\n\r\n",
        ": 1\r\n\r\n",
        "x\r\n\r\n",
        "x: a\n\r\n",
        "x: 1\r\n\n",
        "x: 1\r\n y\r\n\r\n",
        "x: a\rb\r\n\r\n",
        ":path: /x\r\n\r\n",
        "\n",
    ] {
        assert_eq!(refuse(format!("0\r\n{bad}")), CodecError::MALFORMED, "{bad:?}");
    }
    assert_eq!(refuse("0\r\nx: a\0\r\n\r\n"), CodecError::INVALID_CHARACTERS);
    assert_eq!(refuse(format!("0\r\nx: {}\r\n\r\n", "a".repeat(70_000))), CodecError::HEADERS_TOO_LARGE);
    assert_eq!(refuse(format!("0\r\n{}\r\n", "x: 1\r\n".repeat(101))), CodecError::TOO_MANY_HEADERS);
}
