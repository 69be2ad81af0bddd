//! A client that does not read stops the upstream: what is under way is bounded, whatever the response's size.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::frames::{Frame, GET, HEADERS, Peer, WHOLE};
use crate::support::gateway::free_port;
use crate::support::{Client, Gateway, http_bootstrap};

const ROUTES: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";
const RESPONSE_BYTES: usize = 256 << 20;
/// What the kernel's buffers on the way and ours may hold.
const UNDER_WAY_BYTES: usize = 32 << 20;

/// An upstream that sends one huge response; the receiver tells how much of it went out before it was held back.
fn fountain() -> (u16, Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, held) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {RESPONSE_BYTES}\r\n\r\n").unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let (piece, mut sent) = (vec![b'x'; 64 << 10], 0);
        while sent < RESPONSE_BYTES {
            match stream.write(&piece) {
                Ok(n) => sent += n,
                Err(_) => break,
            }
        }
        sender.send(sent).unwrap();
        // Until the other side is done with it.
        let _ = stream.read(&mut [0; 1]);
    });
    (port, held)
}

fn is_held_back(held: &Receiver<usize>) {
    let sent = held.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(sent < UNDER_WAY_BYTES, "{sent} bytes are under way to a client that reads none");
}

#[test]
fn over_http1() {
    let ((upstream, held), port) = (fountain(), free_port());
    let _gateway = Gateway::start(&http_bootstrap(port, ROUTES, &[("up", upstream)]));
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    is_held_back(&held);
}

#[test]
fn over_http2() {
    let ((upstream, held), port) = (fountain(), free_port());
    let _gateway = Gateway::start(&http_bootstrap(port, ROUTES, &[("up", upstream)]));
    let mut peer = Peer::client(port);
    // No window is ever opened beyond the initial 65,535 bytes.
    peer.send(&Frame::new(HEADERS, WHOLE, 1, GET));
    is_held_back(&held);
    let mut received = 0;
    peer.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    while let Some(frame) = peer.try_next() {
        received += if frame.kind == 0 { frame.payload.len() } else { 0 };
    }
    assert_eq!(received, 65_535);
}
