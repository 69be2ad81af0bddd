//! What a client is told when something is wrong upstream, in Envoy's words.

use crate::support::gateway::free_port;
use crate::support::upstream::Answer;
use crate::support::{Client, Gateway, Upstream, http_bootstrap};

const TO_UP: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";

#[test]
fn no_route_is_a_404_without_a_body() {
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, "[]", &[]));
    let response = Client::new(port).get("/");
    assert_eq!((response.status, response.body.len()), (404, 0));
    assert_eq!(response.header("server"), Some("envoy"));
    assert!(response.header("date").is_some());
}

#[test]
fn a_host_that_refuses_is_a_503() {
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, TO_UP, &[("up", free_port())]));
    let response = Client::new(port).get("/");
    assert_eq!(response.status, 503);
    let expected = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
    assert_eq!(response.text(), expected);
}

#[test]
fn a_host_that_closes_before_it_answers_is_a_503() {
    let upstream = Upstream::scripted(|_| Answer::Close(Vec::new()));
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, TO_UP, &[("up", upstream.port)]));
    let response = Client::new(port).get("/");
    assert_eq!(response.status, 503);
    let expected = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
    assert_eq!(response.text(), expected);
}

#[test]
fn bad_framing_from_a_host_is_a_502_and_its_connection_is_dropped() {
    for bad in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 999 No\r\ncontent-length: 0\r\n\r\n",
        "not a response at all\r\n\r\n",
    ] {
        let upstream = Upstream::scripted(move |seen| {
            if seen.connection == 0 {
                Answer::Bytes(bad.as_bytes().to_vec())
            } else {
                Answer::Bytes(crate::support::upstream::ok("good"))
            }
        });
        let port = free_port();
        let _gateway = Gateway::start(&http_bootstrap(port, TO_UP, &[("up", upstream.port)]));
        let mut client = Client::new(port);
        assert_eq!(client.get("/").status, 502, "{bad:?}");
        assert_eq!(client.get("/").text(), "good", "{bad:?}");
    }
}

#[test]
fn a_response_that_is_cut_short_is_visible_to_the_client() {
    let upstream = Upstream::scripted(|_| Answer::Close(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec()));
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, TO_UP, &[("up", upstream.port)]));
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    let all = String::from_utf8(client.rest()).unwrap();
    assert!(all.contains("content-length: 10") && all.ends_with("half"), "{all}");
}

#[test]
fn left_over_bytes_never_answer_the_next_request() {
    let upstream = Upstream::scripted(|seen| {
        let mut bytes = crate::support::upstream::ok("first");
        if seen.connection == 0 {
            bytes.extend(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged");
        }
        Answer::Bytes(bytes)
    });
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, TO_UP, &[("up", upstream.port)]));
    let mut client = Client::new(port);
    assert_eq!(client.get("/").text(), "first");
    assert_eq!(client.get("/").text(), "first");
    assert_eq!(upstream.next().connection, 0);
    assert_eq!(upstream.next().connection, 1);
}
