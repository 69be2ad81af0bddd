//! Bodies through the gateway: lengths, chunks, HEAD, 100-continue, keep-alive, pipelining, early answers.

use crate::support::gateway::free_port;
use crate::support::upstream::{Answer, ok};
use crate::support::{Client, Gateway, Upstream, http_bootstrap};

const TO_UP: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";

fn gateway(upstream: &Upstream) -> (Gateway, u16) {
    let port = free_port();
    (Gateway::start(&http_bootstrap(port, TO_UP, &[("up", upstream.port)])), port)
}

#[test]
fn requests_keep_their_connections_on_both_sides() {
    let upstream = Upstream::text("hello");
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    for _ in 0..3 {
        let response = client.get("/a?b=c");
        assert_eq!((response.status, response.text().as_str()), (200, "hello"));
        let seen = upstream.next();
        assert_eq!(seen.line(), "GET /a?b=c HTTP/1.1");
        assert_eq!(seen.connection, 0);
        assert_eq!(seen.header("host"), Some("test"));
    }
}

#[test]
fn bodies_arrive_as_they_were_framed() {
    let upstream = Upstream::scripted(|seen| Answer::Bytes(ok(&String::from_utf8_lossy(&seen.body))));
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!(client.response().text(), "hello");
    assert_eq!(upstream.next().header("content-length"), Some("5"));
    client.send("POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(upstream.next().header("transfer-encoding"), Some("chunked"));
}

#[test]
fn large_bodies_survive_both_ways() {
    let size = 3 << 20;
    let upstream = Upstream::scripted(move |seen| {
        assert_eq!(seen.body.len(), size);
        Answer::Bytes(ok(&String::from_utf8_lossy(&seen.body)))
    });
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    let body: Vec<u8> = (0..size).map(|at| b'a' + (at % 26) as u8).collect();
    client.send(format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {size}\r\n\r\n"));
    client.send(&body);
    assert!(client.response().body == body, "what came back is not what was sent");
}

#[test]
fn chunked_responses_keep_their_chunks_and_lose_no_byte() {
    let upstream = Upstream::scripted(|_| {
        Answer::Bytes(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n".to_vec(),
        )
    });
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!(response.header("transfer-encoding"), Some("chunked"));
        assert_eq!(response.text(), "hello world");
    }
}

#[test]
fn a_response_that_ends_with_its_connection_becomes_chunked() {
    let upstream = Upstream::scripted(|_| Answer::Close(b"HTTP/1.1 200 OK\r\n\r\nall of it".to_vec()));
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    assert_eq!(client.get("/").text(), "all of it");
    assert_eq!(client.get("/").text(), "all of it");
}

#[test]
fn head_204_and_304_have_no_body() {
    let upstream = Upstream::scripted(|seen| match seen.line() {
        line if line.starts_with("HEAD") => Answer::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_vec()),
        line if line.contains("/204") => Answer::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        _ => Answer::Bytes(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()),
    });
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    client.send("HEAD / HTTP/1.1\r\nhost: test\r\n\r\n");
    assert_eq!(client.response_to("HEAD").header("content-length"), Some("5"));
    assert_eq!(client.get("/204").status, 204);
    assert_eq!(client.get("/304").status, 304);
}

#[test]
fn a_client_that_waits_is_told_to_go_on() {
    let upstream = Upstream::text("done");
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(client.response().status, 100);
    client.send("ok");
    assert_eq!(client.response().text(), "done");
    assert_eq!(upstream.next().header("expect"), None);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::scripted(|seen| Answer::Bytes(ok(seen.line())));
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    let requests: String = (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: test\r\n\r\n")).collect();
    client.send(requests);
    for n in 0..5 {
        assert_eq!(client.response().text(), format!("GET /{n} HTTP/1.1"));
    }
}

#[test]
fn informational_responses_reach_the_client() {
    let upstream = Upstream::scripted(|_| {
        let mut bytes = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".to_vec();
        bytes.extend(ok("final"));
        Answer::Bytes(bytes)
    });
    let (_gateway, port) = gateway(&upstream);
    let mut client = Client::new(port);
    let hints = client.get("/");
    assert_eq!((hints.status, hints.header("link")), (103, Some("</a>")));
    assert_eq!(client.response().text(), "final");
}
