//! HTTP/2 connections as such: settings, PINGs, GOAWAY, and what is done about floods; on both sides.

use std::io::Write;
use std::net::TcpListener;

use crate::access_logs::log;
use crate::support::frames::{
    ACK, Frame, GET, GOAWAY, HEADERS, PING, Peer, RST_STREAM, SETTINGS, WHOLE, WINDOW_UPDATE,
};
use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::http::Response;
use crate::support::{Client, Gateway, Upstream, http_bootstrap_with};

const ROUTES: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";
const ENHANCE_YOUR_CALM: u32 = 11;
const INTERNAL_ERROR: u32 = 2;
const ALL_STREAMS: u32 = 0x7fff_ffff;

/// A gateway whose connection manager has these fields, before an upstream that answers all.
fn gateway(manager: &str) -> (Gateway, Upstream, u16) {
    let (upstream, port) = (Upstream::text("hello"), free_port());
    let gateway = Gateway::start(&http_bootstrap_with(port, manager, ROUTES, &[("up", upstream.port)], ""));
    (gateway, upstream, port)
}

/// HTTP/2 towards a cluster's hosts, with these options.
fn http2(options: &str) -> String {
    format!(
        "typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ '@type': \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{ \
         http2_protocol_options: {options} }} }} }}"
    )
}

#[test]
fn floods_of_cheap_frames_end_the_connection() {
    let (_gateway, upstream, port) = gateway("");
    let floods = [
        Frame::new(PING, 0, 0, &[0; 8]),
        Frame::new(SETTINGS, 0, 0, &[]),
        Frame::new(2, 0, 1, &[0, 0, 0, 0, 16]),
        Frame::new(8, 0, 0, &[0, 0, 0, 1]),
    ];
    for frame in floods {
        let mut peer = Peer::client(port);
        peer.send(&Frame::new(HEADERS, WHOLE, 1, GET));
        upstream.next();
        assert_eq!(peer.next_of(HEADERS).unwrap().stream, 1);
        // It may close before all of it has been written.
        let _ = peer.stream.write_all(&frame.bytes().repeat(5000));
        let goaway = peer.next_of(GOAWAY);
        assert!(goaway.is_none_or(|goaway| goaway.goaway().1 == ENHANCE_YOUR_CALM), "kind {}", frame.kind);
        assert_eq!(peer.next(), None, "kind {}", frame.kind);
    }
    assert_eq!(Client::new(port).get("/").status, 200);
}

#[test]
fn streams_that_are_reset_at_once_end_the_connection() {
    let (_gateway, _upstream, port) = gateway("");
    let mut peer = Peer::client(port);
    let attack: Vec<u8> = (0..4000)
        .map(|n| 2 * n + 1)
        .flat_map(|stream| {
            let reset = Frame::new(RST_STREAM, 0, stream, &[0, 0, 0, 8]).bytes();
            [Frame::new(HEADERS, WHOLE, stream, GET).bytes(), reset].concat()
        })
        .collect();
    let _ = peer.stream.write_all(&attack);
    let goaway = peer.next_of(GOAWAY);
    assert!(goaway.is_none_or(|goaway| goaway.goaway().1 == INTERNAL_ERROR));
}

#[test]
fn a_connection_that_was_idle_is_pinged_with_its_next_stream() {
    let (_gateway, _upstream, port) =
        gateway("http2_protocol_options: { connection_keepalive: { timeout: 5s, connection_idle_interval: 0.3s } }");
    let mut peer = Peer::client(port);
    peer.send(&Frame::new(HEADERS, WHOLE, 1, GET));
    peer.stream.set_read_timeout(Some(std::time::Duration::from_millis(600))).unwrap();
    // All that comes until nothing has come for longer than the interval.
    let first: Vec<Frame> = std::iter::from_fn(|| peer.try_next()).collect();
    assert!(first.iter().any(|frame| frame.kind == HEADERS));
    assert!(first.iter().all(|frame| frame.kind != PING), "{first:?}");
    peer.stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    peer.send(&Frame::new(HEADERS, WHOLE, 3, GET));
    assert_eq!(peer.next_of(PING).unwrap().flags, 0);
}

#[test]
fn a_client_that_answers_no_ping_is_left() {
    let directory = Directory::new();
    let path = directory.0.join("log");
    let (upstream, port) = (Upstream::text("hello"), free_port());
    let manager = "http2_protocol_options: { connection_keepalive: { interval: 0.1s, timeout: 0.2s } }";
    let bootstrap = http_bootstrap_with(port, manager, ROUTES, &[("up", upstream.port)], "");
    let listener = log(&path, "%DOWNSTREAM_LOCAL_CLOSE_REASON%").replace("\n          ", "\n    ");
    let bootstrap = bootstrap.replacen("    filter_chains:", &format!("    {listener}\n    filter_chains:"), 1);
    let _gateway = Gateway::start_with(&bootstrap, &["--file-flush-interval-msec", "10"]);
    let mut peer = Peer::client(port);
    for _ in 0..3 {
        let ping = peer.next_of(PING).unwrap();
        assert_eq!(ping.flags, 0);
        peer.send(&Frame::new(PING, ACK, 0, &ping.payload));
    }
    assert_eq!(peer.next_of(PING).unwrap().flags, 0);
    assert_eq!(peer.next_of(PING), None);
    eventually("the listener's line", || std::fs::read_to_string(&path).unwrap_or_default() == "http2_ping_timeout\n");
}

#[test]
fn a_host_that_answers_no_ping_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free_port();
    let upstream = listener.local_addr().unwrap().port();
    let options = http2("{ connection_keepalive: { interval: 0.1s, timeout: 0.2s } }");
    let _gateway = Gateway::start(&http_bootstrap_with(port, "", ROUTES, &[("up", upstream)], &options));
    let host = std::thread::spawn(move || {
        let mut peer = Peer::server(listener.accept().unwrap().0);
        let ping = peer.next_of(PING).unwrap();
        peer.send(&Frame::new(PING, ACK, 0, &ping.payload));
        assert!(peer.next_of(PING).is_some());
        peer.next_of(PING)
    });
    let response = Client::new(port).get("/");
    assert_eq!(response.status, 503);
    assert!(response.text().ends_with("reset reason: connection termination"), "{}", response.text());
    assert_eq!(host.join().unwrap(), None);
}

#[test]
fn a_head_that_does_not_come_ends_the_connection() {
    let (_gateway, upstream, port) = gateway("request_headers_timeout: 0.3s");
    let whole = Frame::new(HEADERS, WHOLE, 3, GET).bytes();
    for part in [Frame::new(HEADERS, 1, 3, GET).bytes(), whole[..12].to_vec()] {
        let mut peer = Peer::client(port);
        // What is whole in time is served, however long it takes to ask again.
        peer.send(&Frame::new(HEADERS, WHOLE, 1, GET));
        upstream.next();
        assert_eq!(peer.next_of(HEADERS).unwrap().stream, 1);
        peer.stream.write_all(&part).unwrap();
        assert_eq!(peer.next_of(GOAWAY).unwrap().goaway(), (1, 0));
        assert_eq!(peer.next(), None);
    }
}

/// The port of a host that answers the first request of each connection with these bytes, and waits until it is left.
fn host_that_says(bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut peer = Peer::server(stream.unwrap());
            assert!(peer.next_of(HEADERS).is_some());
            // It may be left before all of it has been written.
            let _ = peer.stream.write_all(&bytes);
            while peer.try_next().is_some() {}
        }
    });
    port
}

/// What a client gets from such a host.
fn response_from(bytes: Vec<u8>) -> Response {
    let (port, host) = (free_port(), host_that_says(bytes));
    let _gateway = Gateway::start(&http_bootstrap_with(port, "", ROUTES, &[("up", host)], &http2("{}")));
    Client::new(port).get("/")
}

#[test]
fn a_host_that_breaks_its_connection_is_a_protocol_error() {
    let answers = [
        b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n".to_vec(),
        Frame::new(PING, 0, 0, &[0; 8]).bytes().repeat(20_000),
        Frame::new(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).bytes().repeat(1000),
        Frame::new(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]).bytes(),
        Frame::new(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]).bytes().repeat(2),
        Frame::new(HEADERS, WHOLE, 1, &[0xff; 5]).bytes(),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let response = response_from(answer);
        assert_eq!(response.status, 502, "answer {number}");
        assert!(response.text().ends_with("reset reason: protocol error"), "answer {number}: {}", response.text());
    }
}

/// A graceful end: first a GOAWAY that takes every stream, then, once the client has answered, one that names the last.
fn ends_gracefully(peer: &mut Peer, last: u32) {
    assert_eq!(peer.next_of(GOAWAY).unwrap().goaway(), (ALL_STREAMS, 0));
    let ping = peer.next_of(PING).unwrap();
    peer.send(&Frame::new(PING, ACK, 0, &ping.payload));
    assert_eq!(peer.next_of(GOAWAY).unwrap().goaway(), (last, 0));
    assert_eq!(peer.next_of(GOAWAY), None);
}

#[test]
fn max_requests_and_max_duration_end_a_connection_gracefully() {
    let (_gateway, _upstream, port) = gateway("common_http_protocol_options: { max_requests_per_connection: 2 }");
    let mut peer = Peer::client(port);
    for stream in [1, 3] {
        peer.send(&Frame::new(HEADERS, WHOLE, stream, GET));
    }
    ends_gracefully(&mut peer, 3);

    let (_gateway, _upstream, port) = gateway("common_http_protocol_options: { max_connection_duration: 0.2s }");
    ends_gracefully(&mut Peer::client(port), 0);
}

#[test]
fn a_client_that_ignores_goaway_is_left_after_the_drain() {
    let manager = "common_http_protocol_options: { max_connection_duration: 0.1s }\n          drain_timeout: 0.2s";
    let (_gateway, _upstream, port) = gateway(manager);
    let mut peer = Peer::client(port);
    assert_eq!(peer.next_of(GOAWAY).unwrap().goaway(), (ALL_STREAMS, 0));
    // Its PING is not answered.
    while peer.next().is_some() {}
}

#[test]
fn settings_say_what_is_configured() {
    let manager = "http2_protocol_options: { hpack_table_size: 1024, max_concurrent_streams: 7, \
                   initial_stream_window_size: 70000, allow_connect: true }";
    let (_gateway, _upstream, port) = gateway(manager);
    let settings = Peer::client(port).next_of(SETTINGS).unwrap().payload;
    let of = |id: u16| {
        settings
            .chunks(6)
            .find(|one| one[..2] == id.to_be_bytes())
            .map(|one| u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
    };
    assert_eq!((of(1), of(3), of(4), of(8)), (Some(1024), Some(7), Some(70000), Some(1)));
}

/// A field in HPACK: literal, without an index and without Huffman.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |text: &[u8]| u8::try_from(text.len()).unwrap();
    [&[0, length(name)], name, &[length(value)], value].concat()
}

/// Fields that make a request malformed, or that HTTP/1 would read as something else (RFC 9113 §8.2, §8.3, §10.3).
const MALFORMED: &[(&[u8], &[u8])] = &[
    (b"x", b"a\r\nadmin: b"),
    (b"x", b"a\nb"),
    (b"x", b"a\0b"),
    (b"x\r\ny", b"a"),
    (b"x y", b"a"),
    (b"x:y", b"a"),
    (b"", b"a"),
    (b"X-Upper", b"a"),
    (b":path", b"/admin"),
    (b":unknown", b"a"),
    (b"connection", b"close"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"h2c"),
    (b"keep-alive", b"a"),
    (b"te", b"gzip"),
    (b"host", b"b"),
    (b"content-length", b"5"),
];

#[test]
fn a_malformed_header_block_never_becomes_a_request() {
    let (_gateway, upstream, port) = gateway("");
    for (name, value) in MALFORMED {
        let shown = String::from_utf8_lossy(name).into_owned();
        let mut peer = Peer::client(port);
        let block = [GET, &literal(name, value)].concat();
        peer.send(&Frame::new(HEADERS, WHOLE, 1, &block));
        let answer =
            std::iter::from_fn(|| peer.next()).find(|frame| matches!(frame.kind, RST_STREAM | GOAWAY | HEADERS));
        // 0x8c is `:status: 400`.
        let refused = answer.is_none_or(|frame| frame.kind != HEADERS || frame.payload[0] == 0x8c);
        assert!(refused, "{shown}: {value:?}");
        assert!(upstream.is_quiet(), "{shown}: {value:?} reached the upstream");
    }
}
