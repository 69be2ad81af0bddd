//! Requests: what is taken, what is refused and with which detail, however the bytes arrive.

use std::sync::Arc;

use bytes::BytesMut;
use http::{HeaderValue, Method, Version};
use tidegate_filters::matching::StringMatcher;

use crate::http::codec::CodecError;
use crate::http::codec::h1::Framing;
use crate::http::codec::h1::encode::{self, Delimit};
use crate::http::codec::h1::fields::{HeadEnd, HeadLimits};
use crate::http::codec::h1::request::{self, DecodedRequest, RequestRules};
use crate::http::protocol::{Http1Options, Preserved, Underscores};

/// Envoy's defaults.
pub(super) fn rules() -> RequestRules {
    let limits = HeadLimits {
        max_bytes: 60 * 1024,
        max_headers: 100,
        underscores: Underscores::Allow,
        allow_chunked_length: false,
        keep_spelling: None,
    };
    let http1 = Http1Options { allow_absolute_url: true, ..Default::default() };
    RequestRules { limits, http1, default_host: None, keep_expect: false, ignored_upgrades: Arc::new([]) }
}

fn with(change: impl FnOnce(&mut RequestRules)) -> RequestRules {
    let mut rules = rules();
    change(&mut rules);
    rules
}

/// Decodes the bytes given at once, and checks that every other way to cut them in two gives the same.
fn decode_with(rules: &RequestRules, bytes: &[u8]) -> Result<Option<DecodedRequest>, CodecError> {
    let whole = request::decode(&mut BytesMut::from(bytes), &mut HeadEnd::default(), rules);
    for at in 0..bytes.len().min(600) {
        let (mut buffer, mut end) = (BytesMut::from(&bytes[..at]), HeadEnd::default());
        let split = request::decode(&mut buffer, &mut end, rules).and_then(|first| match first {
            Some(first) => Ok(Some(first)),
            None => {
                buffer.extend_from_slice(&bytes[at..]);
                request::decode(&mut buffer, &mut end, rules)
            }
        });
        assert_eq!(format!("{split:?}"), format!("{whole:?}"), "{} cut at {at}", bytes.escape_ascii());
    }
    whole
}

fn decode(bytes: impl AsRef<[u8]>) -> DecodedRequest {
    decode_with(&rules(), bytes.as_ref()).unwrap().unwrap()
}

fn refuse(bytes: impl AsRef<[u8]>) -> CodecError {
    let bytes = bytes.as_ref();
    match decode_with(&rules(), bytes) {
        Err(error) => error,
        Ok(decoded) => panic!("{} was taken: {decoded:?}", bytes.escape_ascii()),
    }
}

/// A GET for host `a` with these fields.
fn get(fields: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

fn line(line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: a\r\n\r\n").into_bytes()
}

#[test]
fn a_plain_request() {
    let bytes = b"GET /x?y HTTP/1.1\r\nHost: a.test:80\r\nFoo: \t b \t\r\nX-FOO: 1\r\nx-foo: 2\r\nEmpty:\r\n\r\n";
    let decoded = decode(bytes);
    let head = &decoded.head;
    assert_eq!((head.method.as_str(), head.path.to_str().unwrap()), ("GET", "/x?y"));
    assert_eq!((head.authority.to_str().unwrap(), head.version), ("a.test:80", Version::HTTP_11));
    assert_eq!(head.headers["foo"], "b");
    assert_eq!(head.headers["empty"], "");
    assert_eq!(head.headers.get_all("x-foo").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert!(!head.headers.contains_key("host"));
    assert_eq!((decoded.framing, decoded.head_bytes), (Framing::None, bytes.len()));
    assert!(decoded.keep_alive && !decoded.expects_continue && !decoded.tunnel);
}

#[test]
fn what_follows_stays_in_the_buffer() {
    let mut buffer = BytesMut::from(&b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET"[..]);
    let decoded = request::decode(&mut buffer, &mut HeadEnd::default(), &rules()).unwrap().unwrap();
    assert_eq!(decoded.framing, Framing::Length(3));
    assert_eq!(&buffer[..], b"abcGET");
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    assert_eq!(decode(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").head.authority, "a");
    assert_eq!(refuse(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), CodecError::MALFORMED);
    assert_eq!(refuse(b"\r\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), CodecError::MALFORMED);
    assert!(decode_with(&rules(), b"\r\n\r\n").unwrap().is_none());
    assert_eq!(refuse("\r\n".repeat(40_000)), CodecError::HEADERS_TOO_LARGE);
}

#[test]
fn request_lines() {
    for bad in [
        "GET / http/1.1",
        "GET / HTTP/1.1 HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "get / HTTP/1.1",
        "FOO / HTTP/1.1",
        "(GET) / HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET / HTTP/1.10",
        "GET / HTTP/11",
        "GET / HTTPS/1.1",
        "GET /a b HTTP/1.1",
        "GET x HTTP/1.1",
        "GET ?x HTTP/1.1",
        "GET b.test:80 HTTP/1.1",
        "GET / HTTP/1.\u{e9}",
        "GET /\u{e9} HTTP/1.1",
        "",
        "GET",
        "GET ",
        ":",
    ] {
        assert_eq!(refuse(line(bad)), CodecError::MALFORMED, "{bad:?}");
    }
    for bad in ["GET /\0 HTTP/1.1", "GET /\x7f HTTP/1.1", "GET / HTTP/1.1\x01", "G\0T / HTTP/1.1"] {
        assert_eq!(refuse(line(bad)), CodecError::INVALID_CHARACTERS, "{bad:?}");
    }
    for low in ["GET / HTTP/1.0", "GET / HTTP/0.9", "GET / HTTP/2.0", "GET / HTTP/1.2", "GET /"] {
        assert_eq!(refuse(line(low)), CodecError::LOW_VERSION, "{low:?}");
    }
    assert_eq!(refuse(b"GET /x\r\n"), CodecError::LOW_VERSION);
    assert_eq!(refuse(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"), CodecError::MALFORMED);
    for good in ["QUERY", "MSEARCH", "PURGE", "UNSUBSCRIBE"] {
        assert_eq!(decode(line(&format!("{good} / HTTP/1.1"))).head.method.as_str(), good);
    }
}

#[test]
fn custom_methods_need_an_option() {
    let rules = with(|rules| rules.http1.allow_custom_methods = true);
    let decoded = decode_with(&rules, &line("foo / HTTP/1.1")).unwrap().unwrap();
    assert_eq!(decoded.head.method.as_str(), "foo");
    assert_eq!(decode_with(&rules, &line("F(O / HTTP/1.1")).unwrap_err(), CodecError::MALFORMED);
}

#[test]
fn lines_end_with_crlf_and_nothing_else() {
    for bad in [
        &b"GET / HTTP/1.1\nHost: a\n\n"[..],
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n X: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
    ] {
        assert_eq!(refuse(bad), CodecError::MALFORMED, "{}", bad.escape_ascii());
    }
}

#[test]
fn field_lines() {
    for bad in ["X\r\n", "X : a\r\n", ": b\r\n", "X(: b\r\n", "X\u{e9}: b\r\n", "X\ta: b\r\n", "a b: c\r\n"] {
        assert_eq!(refuse(get(bad)), CodecError::MALFORMED, "{bad:?}");
    }
    for bad in ["X: a\0b\r\n", "X: a\x01b\r\n", "X: a\x7fb\r\n", "X\0: b\r\n", "Transfer-Encoding: chunked\0\r\n"] {
        assert_eq!(refuse(get(bad)), CodecError::INVALID_CHARACTERS, "{bad:?}");
    }
    assert_eq!(decode(get("X: a\tb\u{e9}\r\n")).head.headers["x"].as_bytes(), "a\tb\u{e9}".as_bytes());
}

#[test]
fn underscores_as_configured() {
    let with = |underscores| with(|rules| rules.limits.underscores = underscores);
    let bytes = get("X_y: b\r\nz: c\r\n");
    assert_eq!(decode(&bytes).head.headers["x_y"], "b");
    assert_eq!(decode_with(&with(Underscores::Reject), &bytes).unwrap_err(), CodecError::UNEXPECTED_UNDERSCORE);
    let dropped = decode_with(&with(Underscores::Drop), &bytes).unwrap().unwrap();
    assert!(!dropped.head.headers.contains_key("x_y") && dropped.head.headers.contains_key("z"));
    assert_eq!(dropped.underscored, 1);
}

#[test]
fn content_length() {
    let post = |value: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:{value}\r\n\r\n");
    for bad in [
        " +5",
        " -5",
        " 5,5",
        " 5, 5",
        " 0x5",
        " 5 5",
        " ",
        "",
        " 5;",
        " 18446744073709551616",
        " 5.0",
        " 5\u{b2}",
        " 5\r\nContent-Length: 5",
        " 5\r\nContent-Length: 6",
        " 0\r\nContent-Length: 0",
    ] {
        assert_eq!(refuse(post(bad)), CodecError::MALFORMED, "{bad:?}");
    }
    let long = decode(post("\t0000000000000000000000005 "));
    assert_eq!((long.framing, &long.head.headers["content-length"]), (Framing::Length(5), &HeaderValue::from(5)));
    assert_eq!(decode(post(" 18446744073709551615")).framing, Framing::Length(u64::MAX));
    assert_eq!(decode(post("0")).framing, Framing::None);
    assert_eq!(decode(get("Content_Length: 5\r\n")).framing, Framing::None);
}

#[test]
fn transfer_encoding_is_exactly_chunked() {
    for good in ["chunked", "Chunked", "\tchunked\t"] {
        let decoded = decode(get(&format!("Transfer-Encoding:{good}\r\n")));
        assert_eq!(decoded.framing, Framing::Chunked, "{good:?}");
        assert!(!decoded.head.headers.contains_key("transfer-encoding"));
    }
    for bad in [
        "chunked,chunked",
        "identity",
        "gzip, chunked",
        "chunked, gzip",
        "chunked;q=1",
        "\"chunked\"",
        ", chunked",
        "chunked,",
        "xchunked",
        "",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: chunked",
        "\u{a0}chunked",
    ] {
        let error = refuse(get(&format!("Transfer-Encoding: {bad}\r\n")));
        assert_eq!(error, CodecError::INVALID_TRANSFER_ENCODING, "{bad:?}");
    }
    assert_eq!(refuse(get("Transfer-Encoding: chunked\x0b\r\n")), CodecError::INVALID_CHARACTERS);
    assert_eq!(decode(get("Transfer_Encoding: chunked\r\n")).framing, Framing::None);
}

#[test]
fn a_length_beside_an_encoding_is_refused_or_dropped() {
    let lenient = with(|rules| rules.limits.allow_chunked_length = true);
    for (length, encoding) in [("5", "chunked"), ("0", "Chunked")] {
        let [length, encoding] =
            [format!("Content-Length: {length}\r\n"), format!("Transfer-Encoding: {encoding}\r\n")];
        for fields in [format!("{length}{encoding}"), format!("{encoding}{length}")] {
            assert_eq!(refuse(get(&fields)), CodecError::CONTENT_LENGTH_AND_CHUNKED);
            let decoded = decode_with(&lenient, &get(&fields)).unwrap().unwrap();
            assert_eq!(decoded.framing, Framing::Chunked);
            assert!(!decoded.head.headers.contains_key("content-length"));
        }
    }
    for (fields, error) in [
        ("Content-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n", CodecError::CONTENT_LENGTH_AND_CHUNKED),
        ("Content-Length: 5x\r\nTransfer-Encoding: chunked\r\n", CodecError::MALFORMED),
        ("Content-Length: 5\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n", CodecError::MALFORMED),
    ] {
        assert_eq!(decode_with(&lenient, &get(fields)).unwrap_err(), error, "{fields:?}");
    }
}

#[test]
fn one_host_at_most() {
    assert_eq!(refuse(get("Host: a\r\n")), CodecError::INVALID_AUTHORITY);
    assert_eq!(refuse(get("hOST: b\r\n")), CodecError::INVALID_AUTHORITY);
    assert!(decode(b"GET / HTTP/1.1\r\n\r\n").head.authority.is_empty());
    for bad in [
        "u@a", "a b", "a/b", "a?b", "a#b", "a\\b", "a<b", "a\u{e9}", "a\"b", "a|b", "^", "a{b}", "a\tb", "http://a",
        "a,b",
    ] {
        let error = refuse(format!("GET / HTTP/1.1\r\nHost: {bad}\r\n\r\n"));
        assert_eq!(error, CodecError::INVALID_AUTHORITY, "{bad:?}");
    }
    for good in ["a:80", "[::1]:80", "A.Test", "a%20b", "a_b", "*", "a;b=c!$&'()+~"] {
        assert_eq!(decode(format!("GET / HTTP/1.1\r\nHost: {good}\r\n\r\n")).head.authority, good);
    }
}

#[test]
fn an_absolute_target_wins_over_host() {
    let head = decode(line("GET https://b.test:81/p?q HTTP/1.1")).head;
    assert_eq!(
        (head.scheme, head.authority, head.path),
        ("https".parse().unwrap(), "b.test:81".parse().unwrap(), "/p?q".parse().unwrap())
    );
    assert_eq!(decode(b"GET http://b.test HTTP/1.1\r\n\r\n").head.path, "/");
    assert_eq!(refuse(line("GET ftp://b.test/ HTTP/1.1")), CodecError::INVALID_SCHEME);
    assert_eq!(refuse(line("GET http://u:p@b.test/ HTTP/1.1")), CodecError::INVALID_URL);
    assert_eq!(refuse(line("GET * HTTP/1.1")), CodecError::INVALID_URL);
    let rules = with(|rules| rules.http1.allow_absolute_url = false);
    let head = decode_with(&rules, &line("GET http://b.test/ HTTP/1.1")).unwrap().unwrap().head;
    assert_eq!((head.authority, head.path), ("a".parse().unwrap(), "http://b.test/".parse().unwrap()));
}

#[test]
fn http_10_where_it_is_accepted() {
    let rules = with(|rules| rules.http1.accept_http_10 = true);
    let ten = |fields: &str| decode_with(&rules, format!("GET / HTTP/1.0\r\n{fields}\r\n").as_bytes());
    let decoded = ten("Host: a\r\n").unwrap().unwrap();
    assert_eq!((decoded.head.version, decoded.keep_alive), (Version::HTTP_10, false));
    assert!(ten("Connection: Keep-Alive\r\n").unwrap().unwrap().keep_alive);
    assert_eq!(ten("Transfer-Encoding: chunked\r\n").unwrap_err(), CodecError::TRANSFER_ENCODING_NOT_ALLOWED);
    assert!(!ten("Connection: upgrade\r\nUpgrade: websocket\r\n").unwrap().unwrap().tunnel);
    for low in ["GET / HTTP/0.9", "GET / HTTP/2.0", "GET /"] {
        assert_eq!(decode_with(&rules, &line(low)).unwrap_err(), CodecError::LOW_VERSION, "{low:?}");
    }
    let rules = RequestRules { default_host: Some(HeaderValue::from_static("default.test")), ..rules };
    let host = |bytes: &[u8]| decode_with(&rules, bytes).unwrap().unwrap().head.authority;
    assert_eq!(host(b"GET / HTTP/1.0\r\n\r\n"), "default.test");
    assert_eq!(host(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"), "a");
    assert_eq!(host(b"GET / HTTP/1.1\r\n\r\n"), "");
}

#[test]
fn connections_that_end() {
    assert!(!decode(get("Connection: Close, foo\r\n")).keep_alive);
    assert!(!decode(get("Connection: foo\r\nConnection: close\r\n")).keep_alive);
    assert!(!decode(get("Proxy-Connection: close\r\n")).keep_alive);
    assert!(decode(get("Connection: closed\r\n")).keep_alive);
}

#[test]
fn nominated_fields_are_gone() {
    let headers = decode(get("Connection: foo, te\r\nFoo: 1\r\nTE: gzip, trailers\r\nBar: 2\r\n")).head.headers;
    assert!(!headers.contains_key("foo"));
    assert_eq!((headers["te"].to_str().unwrap(), headers["bar"].to_str().unwrap()), ("trailers", "2"));
    assert_eq!(refuse(get("Connection: x-forwarded-for\r\n")), CodecError::CONNECTION_HEADER_REJECTED);
    assert_eq!(refuse(get("Connection: host\r\n")), CodecError::CONNECTION_HEADER_REJECTED);
    let post = decode(get("Connection: content-length\r\nContent-Length: 5\r\n"));
    assert_eq!((post.framing, post.head.headers["content-length"].as_bytes()), (Framing::Length(5), &b"5"[..]));
    let upgrade = decode(get("Connection: Upgrade, foo\r\nUpgrade: websocket\r\nfoo: 1\r\n")).head.headers;
    assert_eq!(upgrade["connection"], "Upgrade");
    assert!(!upgrade.contains_key("foo"));
}

#[test]
fn upgrades() {
    let decoded = decode(get("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"));
    assert_eq!((decoded.tunnel, decoded.framing), (true, Framing::UntilClose));
    assert_eq!(decoded.head.headers["upgrade"], "websocket");
    assert_eq!(decoded.head.headers["connection"], "keep-alive, Upgrade");
    assert!(!decode(get("Upgrade: websocket\r\n")).tunnel);
    assert!(!decode(get("Connection: upgrade\r\n")).tunnel);
    for body in ["Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"] {
        let error = refuse(get(&format!("Connection: upgrade\r\nUpgrade: websocket\r\n{body}")));
        assert_eq!(error, CodecError::BODY_DISALLOWED);
    }
    assert!(decode(get("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n")).tunnel);
}

#[test]
fn h2c_is_taken_out() {
    for offer in ["h2c", "H2C", "h2c\r\nUpgrade: h2c"] {
        let fields = format!(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {offer}\r\nHTTP2-Settings: x\r\nContent-Length: 3\r\n"
        );
        let decoded = decode(get(&fields));
        assert_eq!((decoded.tunnel, decoded.framing), (false, Framing::Length(3)), "{offer:?}");
        for name in ["upgrade", "http2-settings"] {
            assert!(!decoded.head.headers.contains_key(name), "{offer:?}: {name}");
        }
    }
}

#[test]
fn all_offers_of_an_upgrade_are_judged() {
    for offer in ["websocket, h2c", "websocket\r\nUpgrade:  h2c", "websocket,\r\nUpgrade: h2c"] {
        let decoded = decode(get(&format!("Connection: upgrade\r\nUpgrade: {offer}\r\n")));
        let offers: Vec<_> = decoded.head.headers.get_all("upgrade").iter().collect();
        assert!(decoded.tunnel && offers.len() == 1, "{offer:?}: {offers:?}");
        assert!(offers[0] != "websocket" && offers[0].to_str().unwrap().ends_with("h2c"), "{offer:?}: {offers:?}");
    }
}

#[test]
fn connect() {
    let bytes = |target: &str, fields: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let decoded = decode(bytes("b.test:443", "Content-Length: 0\r\n"));
    assert_eq!((decoded.head.method, decoded.tunnel), (Method::CONNECT, true));
    assert_eq!((decoded.head.authority, decoded.head.path.len()), ("b.test:443".parse().unwrap(), 0));
    assert_eq!(decoded.framing, Framing::UntilClose);
    assert!(!decoded.head.headers.contains_key("content-length"));
    assert_eq!(refuse(bytes("b.test:443", "Content-Length: 3\r\n")), CodecError::BODY_DISALLOWED);
    assert_eq!(refuse(bytes("b.test:443", "Transfer-Encoding: chunked\r\n")), CodecError::INVALID_TRANSFER_ENCODING);
    assert_eq!(refuse(bytes("b.test", "")), CodecError::INVALID_URL);
    assert_eq!(refuse(bytes("/x", "")), CodecError::INVALID_URL);
}

#[test]
fn only_100_continue_counts() {
    let decoded = decode(get("Expect: 100-Continue\r\n"));
    assert!(decoded.expects_continue && !decoded.head.headers.contains_key("expect"));
    for not in [
        "100-continue, foo",
        "100",
        "foo",
        "x 100-continue",
        "100-continue\r\nExpect: foo",
        "foo\r\nExpect: 100-continue",
    ] {
        let decoded = decode(get(&format!("Expect: {not}\r\n")));
        assert!(!decoded.expects_continue && decoded.head.headers.contains_key("expect"), "{not:?}");
    }
}

#[test]
fn limits() {
    let many = |n: usize| get(&(0..n).map(|i| format!("h{i}: v\r\n")).collect::<String>());
    assert_eq!(decode(many(99)).head.headers.len(), 99);
    assert_eq!(refuse(many(100)), CodecError::TOO_MANY_HEADERS);
    let wide = with(|rules| rules.limits.max_headers = 300);
    assert!(decode_with(&wide, &many(299)).unwrap().is_some());
    assert_eq!(decode_with(&wide, &many(300)).unwrap_err(), CodecError::TOO_MANY_HEADERS);

    let sized = |n: usize| get(&format!("x: {}\r\n", "a".repeat(n - get("x: \r\n").len())));
    assert_eq!(decode(sized(60 * 1024)).head_bytes, 60 * 1024);
    assert_eq!(refuse(sized(60 * 1024 + 1)), CodecError::HEADERS_TOO_LARGE);
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "a".repeat(70_000));
    assert_eq!(refuse(endless), CodecError::HEADERS_TOO_LARGE);
    assert_eq!(refuse("A".repeat(70_000)), CodecError::HEADERS_TOO_LARGE);
}

#[test]
fn a_head_that_drips_is_searched_once() {
    let head = get(&format!("x: {}\r\n", "a".repeat(50_000)));
    let (rules, mut end, mut buffer) = (rules(), HeadEnd::default(), BytesMut::new());
    let started = std::time::Instant::now();
    for byte in &head[..head.len() - 1] {
        buffer.extend_from_slice(&[*byte]);
        assert!(request::decode(&mut buffer, &mut end, &rules).unwrap().is_none());
    }
    buffer.extend_from_slice(b"\n");
    assert!(request::decode(&mut buffer, &mut end, &rules).unwrap().is_some());
    // Searched from the start each time this takes minutes without optimisation.
    assert!(started.elapsed().as_secs() < 5);
}

#[test]
fn upgrades_that_are_ignored_are_no_upgrades() {
    let rules = with(|rules| {
        rules.ignored_upgrades = Arc::new([StringMatcher::prefix("TLS/"), StringMatcher::exact("foo")]);
    });
    for (offers, left) in [
        ("Upgrade: TLS/1.2, foo\r\n", None),
        ("Upgrade: foo\r\nUpgrade: TLS/1.0\r\n", None),
        ("Upgrade: FOO\r\n", Some("FOO")),
        ("Upgrade: foo, websocket\r\n", Some("websocket")),
        ("Upgrade: a,b\r\n", Some("a,b")),
        ("Upgrade: h2c, foo\r\n", Some("h2c")),
    ] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n{offers}\r\n");
        let decoded = decode_with(&rules, bytes.as_bytes()).unwrap().unwrap();
        let upgrade = decoded.head.headers.get("upgrade").map(|value| value.to_str().unwrap());
        assert_eq!((decoded.tunnel, upgrade), (left.is_some(), left), "{offers}");
    }
}

#[test]
fn spelling_is_kept_where_asked() {
    let bytes = b"GET / HTTP/1.1\r\nHOST: a\r\nX-FOO-bar: 1\r\nx-foo-BAR: 2\r\n\r\n";
    assert!(decode(bytes).head.spelling.is_none());
    let rules = with(|rules| rules.limits.keep_spelling = Some(Preserved::default()));
    let head = decode_with(&rules, bytes).unwrap().unwrap().head;
    assert_eq!(head.headers.get_all("x-foo-bar").iter().count(), 2);
    let mut out = BytesMut::new();
    encode::request(&head, Delimit::AsIs, false, &Http1Options::default(), &mut out);
    assert_eq!(&out[..], b"GET / HTTP/1.1\r\nHOST: a\r\nX-FOO-bar: 1\r\nX-FOO-bar: 2\r\n\r\n");
}
