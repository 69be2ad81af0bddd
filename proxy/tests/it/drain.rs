//! Leaving: SIGTERM lets what runs finish, tells connections to go, and ends with 0.

use std::time::Duration;

use crate::support::frames::{Frame, GET, GOAWAY, HEADERS, Peer, WHOLE};
use crate::support::gateway::free_port;
use crate::support::upstream::{Answer, ok};
use crate::support::{Client, Gateway, Upstream, http_bootstrap};

const ROUTES: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";

#[test]
fn a_request_that_runs_is_finished_and_its_connection_closed() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (asked, is_asked) = std::sync::mpsc::channel::<()>();
    let upstream = Upstream::scripted(move |_| {
        asked.send(()).unwrap();
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(10));
        Answer::Bytes(ok("finished"))
    });
    let port = free_port();
    let bootstrap = http_bootstrap(port, ROUTES, &[("up", upstream.port)]);
    let mut gateway = Gateway::start_with(&bootstrap, &["--drain-time-s", "5"]);
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    is_asked.recv_timeout(Duration::from_secs(20)).unwrap();
    gateway.signal("TERM");
    gateway.wait_for("draining");
    go.send(()).unwrap();
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "finished"));
    assert_eq!(response.header("connection"), Some("close"));
    assert!(gateway.wait().success());
}

/// A terminal that goes away sends it, and who expects files to be read again.
#[test]
fn a_hang_up_is_told_of_and_ends_nothing() {
    let upstream = Upstream::text("still here");
    let port = free_port();
    let mut gateway = Gateway::start(&http_bootstrap(port, ROUTES, &[("up", upstream.port)]));
    gateway.signal("HUP");
    gateway.wait_for("caught and eating SIGHUP. See documentation for how to hot restart.");
    assert_eq!(Client::new(port).get("/").text(), "still here");
}

/// They come although nobody was there when the drain began.
#[test]
fn connections_that_still_come_are_served_and_told_to_go() {
    let upstream = Upstream::text("still here");
    let port = free_port();
    let bootstrap = http_bootstrap(port, ROUTES, &[("up", upstream.port)]);
    let mut gateway = Gateway::start_with(&bootstrap, &["--drain-time-s", "600"]);
    gateway.signal("TERM");
    gateway.wait_for("draining");
    for _ in 0..3 {
        let response = Client::new(port).get("/");
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    }
    // Whoever asks again does not wait.
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}

/// A connection is there, and stays.
#[test]
fn quitting_ends_a_drain_at_once() {
    let (port, admin) = (free_port(), free_port());
    let bootstrap = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n{}",
        http_bootstrap(port, ROUTES, &[("up", free_port())])
    );
    let mut gateway = Gateway::start_with(&bootstrap, &["--drain-time-s", "600"]);
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\n");
    gateway.signal("TERM");
    gateway.wait_for("draining");
    let asked = "POST /quitquitquit HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(Client::new(admin).send(asked).response().text(), "OK\n");
    assert!(gateway.wait().success());
}

#[test]
fn an_interrupt_ends_as_soon_as_nobody_is_there() {
    let port = free_port();
    let bootstrap = http_bootstrap(port, ROUTES, &[("up", free_port())]);
    let mut gateway = Gateway::start_with(&bootstrap, &["--drain-time-s", "600"]);
    gateway.signal("INT");
    assert!(gateway.wait().success());
}

/// As those of the quickstart to its demonstration's upstreams.
#[test]
fn connections_to_itself_do_not_keep_a_process() {
    let port = free_port();
    let routes = "[{ match: { path: /self }, direct_response: { status: 200 } }, \
                  { match: { prefix: / }, route: { cluster: up, prefix_rewrite: /self } }]";
    let bootstrap = http_bootstrap(port, routes, &[("up", port)]);
    let mut gateway = Gateway::start_with(&bootstrap, &["--drain-time-s", "600"]);
    assert_eq!(Client::new(port).get("/").status, 200);
    gateway.signal("INT");
    assert!(gateway.wait().success());
}

#[test]
fn an_http2_client_is_told_by_goaway() {
    let upstream = Upstream::text("still here");
    let port = free_port();
    let bootstrap = http_bootstrap(port, ROUTES, &[("up", upstream.port)]);
    let mut gateway = Gateway::start_with(&bootstrap, &["--drain-time-s", "4", "--drain-strategy", "immediate"]);
    let mut peer = Peer::client(port);
    peer.send(&Frame::new(HEADERS, WHOLE, 1, GET));
    assert_eq!(peer.next_of(HEADERS).unwrap().stream, 1);
    gateway.signal("TERM");
    gateway.wait_for("draining");
    peer.send(&Frame::new(HEADERS, WHOLE, 3, GET));
    // What was asked is answered; the first GOAWAY takes every stream still.
    let mut answered = false;
    let goaway = loop {
        let frame = peer.next().unwrap();
        match frame.kind {
            GOAWAY => break frame.goaway(),
            HEADERS => answered |= frame.stream == 3,
            _ => {}
        }
    };
    assert_eq!(goaway, (0x7fff_ffff, 0));
    if !answered {
        assert_eq!(peer.next_of(HEADERS).unwrap().stream, 3);
    }
    drop(peer);
    assert!(gateway.wait().success());
}
