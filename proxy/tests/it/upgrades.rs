//! Tunnels: WebSocket upgrades and CONNECT, only where they are configured.

use std::io::Read;

use crate::support::gateway::free_port;
use crate::support::upstream::Answer;
use crate::support::{Client, Gateway, Upstream, http_bootstrap, http_bootstrap_with};

const ROUTES: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";
const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

#[test]
fn an_upgrade_that_is_not_configured_is_a_403() {
    let upstream = Upstream::text("no");
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, ROUTES, &[("up", upstream.port)]));
    assert_eq!(Client::new(port).send(HANDSHAKE).response().status, 403);
    assert!(upstream.is_quiet());
}

#[test]
fn a_websocket_carries_bytes_both_ways() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhi")
            .unwrap();
        let mut said = [0; 5];
        stream.read_exact(&mut said).unwrap();
        stream.write_all(&said).unwrap();
        String::from_utf8(head).unwrap()
    });
    let port = free_port();
    let manager = "upgrade_configs: [{ upgrade_type: websocket }]";
    let _gateway = Gateway::start(&http_bootstrap_with(port, manager, ROUTES, &[("up", upstream)], ""));
    let mut client = Client::new(port);
    let response = client.send(HANDSHAKE).response();
    assert_eq!((response.status, response.header("upgrade")), (101, Some("websocket")));
    assert_eq!(client.take(2), b"hi");
    client.send("hello");
    assert_eq!(client.take(5), b"hello");
    assert!(client.rest().is_empty());
    let head = serving.join().unwrap().to_lowercase();
    assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
}

#[test]
fn an_upstream_that_declines_answers_as_usual() {
    let upstream =
        Upstream::scripted(|_| Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno".to_vec()));
    let port = free_port();
    let manager = "upgrade_configs: [{ upgrade_type: websocket }]";
    let _gateway = Gateway::start(&http_bootstrap_with(port, manager, ROUTES, &[("up", upstream.port)], ""));
    let response = Client::new(port).send(HANDSHAKE).response();
    assert_eq!((response.status, response.text().as_str()), (400, "no"));
}
