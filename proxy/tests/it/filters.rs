//! The filter contract, proved by filters that exist for nothing else: both directions at once, whole bodies, replies from
//! either side, attempts, and an end that always comes.

use std::io::{Read, Write};
use std::net::TcpListener;

use bytes::Bytes;

use crate::support::contract::{completed, filter, serve};
use crate::support::gateway::{eventually, free_port};
use crate::support::upstream::{Answer, ok};
use crate::support::{Client, Upstream, cluster};

const ROUTES: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";

/// Serves with these filters before the router (and below it) and these routes.
fn start(filters: &[&str], upstream_filters: &[&str], routes: &str, clusters: &[(&str, u16)]) -> u16 {
    let port = free_port();
    let each = |kinds: &[&str]| kinds.iter().map(|kind| filter(kind) + ", ").collect::<String>();
    let (filters, below) = (each(filters), each(upstream_filters));
    let clusters: String = clusters.iter().map(|(name, port)| cluster(name, *port, "")).collect();
    serve(
        &format!(
            "static_resources:
  listeners:
  - name: main
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: test
          http_protocol_options: {{ enable_trailers: true }}
          http_filters: [{filters}{{ name: router, typed_config: {{ \"@type\": \
             type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, upstream_http_filters: [{below}{{ name: c, \
             typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec \
             }} }}] }} }}]
          route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: {routes} }}] }}
  clusters:
{clusters}"
        ),
        port,
    );
    port
}

/// An upstream that answers with a head at once and ends its body when the request has ended.
fn early() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut seen = Vec::new();
            let mut piece = [0; 4096];
            let mut answered = false;
            while let Ok(n) = stream.read(&mut piece) {
                seen.extend_from_slice(&piece[..n]);
                if !answered && seen.windows(4).any(|window| window == b"\r\n\r\n") {
                    answered = true;
                    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
                }
                if n == 0 {
                    break;
                }
            }
        }
    });
    port
}

#[test]
fn both_directions_of_a_filter_run_at_once_over_http1() {
    let port = start(&["echo"], &[], ROUTES, &[("up", early())]);
    let mut client = Client::new(port);
    client.send("POST /echo1 HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n");
    // The first piece is back before the second is sent.
    let mut seen = String::new();
    while !seen.ends_with("3\r\none\r\n") {
        seen.push(char::from(client.take(1)[0]));
    }
    client.send("3\r\ntwo\r\n0\r\nx-last: yes\r\n\r\n");
    while !seen.ends_with("3\r\ntwo\r\n0\r\nx-last: yes\r\n\r\n") {
        seen.push(char::from(client.take(1)[0]));
    }
    eventually("it completes", || completed("echo", "/echo1") == 1);
}

#[test]
fn both_directions_of_a_filter_run_at_once_over_http2() {
    let port = start(&["echo"], &[], ROUTES, &[("up", early())]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::post("http://test/echo2").body(()).unwrap();
        let (response, mut body) = sender.ready().await.unwrap().send_request(request, false).unwrap();
        let mut back = response.await.unwrap().into_body();
        for piece in ["one", "two", "three"] {
            body.send_data(Bytes::from_static(piece.as_bytes()), false).unwrap();
            assert_eq!(back.data().await.unwrap().unwrap(), piece.as_bytes());
        }
        body.send_trailers([("x-last".parse().unwrap(), "yes".parse().unwrap())].into_iter().collect()).unwrap();
        assert!(back.data().await.is_none());
        assert_eq!(back.trailers().await.unwrap().unwrap()["x-last"], "yes");
        connection.abort();
    });
    eventually("it completes", || completed("echo", "/echo2") == 1);
}

#[test]
fn a_whole_body_is_rewritten_and_sent_so_by_a_retry_too() {
    let upstream = Upstream::scripted(|seen| match seen.header("x-envoy-attempt-count") {
        Some("1") => Answer::Bytes(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec()),
        _ => Answer::Bytes(ok(&String::from_utf8_lossy(&seen.body[..3]))),
    });
    let routes = "[{ match: { prefix: / }, route: { cluster: up, retry_policy: { retry_on: 5xx } } }], include_request_attempt_count: true";
    let port = start(&["rewrite"], &[], routes, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    client.send(
        "POST /rewrite HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    );
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "abcabc"));
    assert_eq!((response.header("x-was"), response.header("content-length")), (Some("3"), Some("6")));
    for _ in 0..2 {
        let seen = upstream.next();
        assert_eq!((seen.header("content-length"), seen.header("x-was")), (Some("6"), Some("3")));
        assert_eq!(seen.body, b"abcabc");
    }
    eventually("it completes", || completed("rewrite", "/rewrite") == 1);
}

#[test]
fn what_is_longer_than_a_filter_may_hold_is_refused_on_either_way() {
    let upstream = Upstream::text("this is longer than ten bytes");
    let port = start(&["rewrite"], &[], ROUTES, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    client.send("POST /long HTTP/1.1\r\nhost: test\r\ncontent-length: 20\r\n\r\n01234567890123456789");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (413, "Payload Too Large"));
    assert_eq!(response.header("connection"), Some("close"));
    let response = Client::new(port).get("/long");
    assert_eq!((response.status, response.text().as_str()), (500, "Internal Server Error"));
    eventually("both complete", || completed("rewrite", "/long") == 2);
}

#[test]
fn a_reply_may_come_from_the_response_side() {
    let upstream = Upstream::text("hello");
    let port = start(&["reply-to-response"], &[], ROUTES, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    for n in 1..3 {
        let response = client.get("/reply");
        assert_eq!((response.status, response.text().as_str()), (418, "instead"));
        eventually("it completes", || completed("reply-to-response", "/reply") == n);
    }
}

#[test]
fn a_reply_that_comes_too_late_cuts_the_response() {
    let upstream = Upstream::text("hello");
    let port = start(&["cut-response"], &[], ROUTES, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    client.send("GET /cut HTTP/1.1\r\nhost: test\r\n\r\n");
    let all = String::from_utf8(client.rest()).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 OK\r\n") && all.ends_with("5\r\nhello\r\n"), "{all}");
    eventually("it completes", || completed("cut-response", "/cut") == 1);
}

#[test]
fn a_filter_that_finds_fault_with_a_body_on_its_way_is_heard() {
    let upstream = Upstream::text("hello");
    let port = start(&["fault-in-body"], &[], ROUTES, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    client.send(
        "POST /fault HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n",
    );
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (422, "no"));
    eventually("it completes", || completed("fault-in-body", "/fault") == 1);
}

#[test]
fn a_filter_is_told_of_the_end_when_the_client_leaves_while_it_waits() {
    let upstream = Upstream::text("hello");
    let port = start(&["hold-response"], &["mark-attempt"], ROUTES, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    client.send("GET /left HTTP/1.1\r\nhost: test\r\n\r\n");
    upstream.next();
    assert_eq!(completed("hold-response", "/left"), 0);
    drop(client);
    eventually("it completes", || completed("hold-response", "/left") == 1);
    eventually("so does the attempt", || completed("mark-attempt", "/left") == 1);
}

#[test]
fn a_filter_may_have_the_route_chosen_again() {
    let (up, other) = (Upstream::text("up"), Upstream::text("other"));
    let routes = "[{ match: { prefix: /, headers: [{ name: x-way, string_match: { exact: other } }] }, route: { cluster: other } }, \
                  { match: { prefix: / }, route: { cluster: up } }]";
    let port = start(&["choose-again"], &[], routes, &[("up", up.port), ("other", other.port)]);
    assert_eq!(Client::new(port).get("/").text(), "other");
    assert!(up.is_quiet());
}

#[test]
fn a_filter_may_begin_its_stream_anew_but_not_for_ever() {
    let upstream = Upstream::scripted(|seen| Answer::Bytes(ok(seen.header("x-times").unwrap_or("none"))));
    let port = start(&["begin-anew"], &[], ROUTES, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    assert_eq!(client.get("/anew").text(), "2");
    eventually("each stream completes once", || completed("begin-anew", "/anew") == 3);
    assert_eq!(client.get("/for-ever").text(), "6");
}

#[test]
fn informational_responses_pass_the_filters() {
    let upstream = Upstream::scripted(|_| {
        let mut bytes = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".to_vec();
        bytes.extend(ok("final"));
        Answer::Bytes(bytes)
    });
    let port = start(&["hints"], &[], ROUTES, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    let hints = client.get("/hints");
    assert_eq!((hints.status, hints.header("x-hinted")), (103, Some("yes")));
    let last = client.response();
    assert_eq!((last.text().as_str(), last.header("x-hinted")), ("final", None));
}

#[test]
fn upstream_filters_run_once_an_attempt() {
    let upstream = Upstream::scripted(|seen| match seen.header("x-attempt") {
        Some("1") if seen.head.matches("x-attempt").count() == 1 => {
            Answer::Bytes(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec())
        }
        _ => Answer::Bytes(ok("fine")),
    });
    let routes = "[{ match: { prefix: / }, route: { cluster: up, retry_policy: { retry_on: 5xx } } }]";
    let port = start(&[], &["mark-attempt"], routes, &[("up", upstream.port)]);
    let mut client = Client::new(port);
    let response = client.get("/attempts");
    assert_eq!((response.status, response.header("x-attempt")), (200, Some("2")));
    eventually("both attempts complete", || completed("mark-attempt", "/attempts") == 2);
    let response = client.get("/refused");
    assert_eq!((response.status, response.text().as_str()), (403, "refused"));
    eventually("a refused one too", || completed("mark-attempt", "/refused") == 1);
}

#[test]
fn services_are_called_through_clusters() {
    let up = Upstream::scripted(|seen| Answer::Bytes(ok(seen.header("x-said").unwrap_or("none"))));
    let side = Upstream::scripted(|seen| {
        assert_eq!((seen.line(), &seen.body[..]), ("POST /ask HTTP/1.1", &b"question"[..]));
        Answer::Bytes(ok("answer"))
    });
    let long = Upstream::text("an answer that is too long to be held");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let clusters =
        [("up", up.port), ("side", side.port), ("long", long.port), ("silent", silent_port), ("dead", free_port())];
    let port = start(&["call"], &[], ROUTES, &clusters);
    let mut client = Client::new(port);
    let mut ask = |whom: &str| {
        client.send(format!("GET / HTTP/1.1\r\nhost: test\r\nx-ask: {whom}\r\n\r\n"));
        client.response().text()
    };
    assert_eq!(ask("side"), "200 answer");
    assert_eq!(ask("nobody"), "no such cluster");
    assert_eq!(ask("long"), "the response is longer than 20 bytes");
    assert_eq!(ask("silent"), "the call timed out");
    assert!(ask("dead").starts_with("no response: "));
}
