//! Who does not read stops who sends, in both directions: what is under way is bounded, whatever a body's size.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::frames::{DATA, END_HEADERS, Frame, GET, HEADERS, POST, Peer, SETTINGS, WHOLE, WINDOW_UPDATE};
use crate::support::gateway::{eventually, free_port};
use crate::support::upstream::Answer;
use crate::support::{Client, Gateway, Upstream, http_bootstrap, http_bootstrap_with};

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

/// Writes a line to its log for each request that is over.
const SAYS_WHEN_OVER: &str = "access_log: [{ name: e, typed_config: { '@type': type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog, log_format: { text_format_source: { inline_string: \"over: %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_SENT%\\n\" } } } }]";

fn is_held_back(held: &Receiver<usize>) {
    let sent = held.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(sent < UNDER_WAY_BYTES, "{sent} bytes are under way to a client that reads none");
}

/// A bootstrap with an admin interface on `admin`.
fn with_admin(admin: u16, bootstrap: &str) -> String {
    format!("admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n{bootstrap}")
}

/// Waits until of these pairs of counters, begun and over, as many are at work as `held` says.
fn await_flow(admin: u16, pairs: &[(&str, &str)], held: u64) {
    let count = |name: &str| -> u64 {
        let told = Client::new(admin).get(&format!("/stats?filter=^{name}$")).text();
        told.trim().rsplit(": ").next().and_then(|count| count.parse().ok()).unwrap()
    };
    eventually("what is held back is counted", || {
        pairs.iter().all(|(begun, over)| {
            let begun = count(begun);
            begun > 0 && begun == count(over) + held
        })
    });
}

const OF_CLIENT: (&str, &str) =
    ("cluster.up.upstream_flow_control_paused_reading_total", "cluster.up.upstream_flow_control_resumed_reading_total");
const OF_HOST: [(&str, &str); 2] = [
    ("cluster.up.upstream_flow_control_backed_up_total", "cluster.up.upstream_flow_control_drained_total"),
    (
        "http.test.downstream_flow_control_paused_reading_total",
        "http.test.downstream_flow_control_resumed_reading_total",
    ),
];

#[test]
fn over_http1() {
    let ((upstream, held), port, admin) = (fountain(), free_port(), free_port());
    let _gateway = Gateway::start(&with_admin(admin, &http_bootstrap(port, ROUTES, &[("up", upstream)])));
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    is_held_back(&held);
    await_flow(admin, &[OF_CLIENT], 1);
    drop(client);
    await_flow(admin, &[OF_CLIENT], 0);
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

/// An upstream that takes connections and reads nothing from them.
fn sink() -> (u16, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap().port(), listener)
}

#[test]
fn an_upload_over_http1() {
    let ((upstream, _listener), port, admin) = (sink(), free_port(), free_port());
    let _gateway = Gateway::start(&with_admin(admin, &http_bootstrap(port, ROUTES, &[("up", upstream)])));
    let mut client = Client::new(port);
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {RESPONSE_BYTES}\r\n\r\n"));
    client.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let (piece, mut sent) = (vec![b'x'; 64 << 10], 0);
    while let Ok(n) = client.stream.write(&piece) {
        sent += n;
        assert!(sent < UNDER_WAY_BYTES, "{sent} bytes are under way to a host that reads none");
    }
    await_flow(admin, &OF_HOST, 1);
}

#[test]
fn an_upload_over_http2() {
    let ((upstream, _listener), port) = (sink(), free_port());
    let _gateway = Gateway::start(&http_bootstrap(port, ROUTES, &[("up", upstream)]));
    let mut peer = Peer::client(port);
    peer.send(&Frame::new(HEADERS, END_HEADERS, 1, POST));
    peer.stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // Of the connection and of the stream; what the settings say beyond the first 65,535 bytes counts as a gift.
    let (mut windows, mut sent) = ([65_535_usize; 2], 0);
    loop {
        while windows.iter().all(|window| *window > 0) {
            let piece = windows[0].min(windows[1]).min(16 << 10);
            peer.send(&Frame::new(DATA, 0, 1, &vec![b'x'; piece]));
            windows.iter_mut().for_each(|window| *window -= piece);
            sent += piece;
            assert!(sent < UNDER_WAY_BYTES, "{sent} bytes are under way to a host that reads none");
        }
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap()) as usize;
        match peer.try_next() {
            None => break,
            Some(frame) if frame.kind == WINDOW_UPDATE => {
                windows[usize::from(frame.stream > 0)] += number(&frame.payload);
            }
            Some(frame) if frame.kind == SETTINGS => {
                let initial = frame.payload.chunks(6).find(|setting| setting[..2] == [0, 4]);
                windows[1] += initial.map_or(0, |setting| number(&setting[2..]).saturating_sub(65_535));
            }
            Some(_) => {}
        }
    }
    assert!(sent >= 65_535);
}

/// All of the response is with the proxy, and the client takes nothing of it.
#[test]
fn a_client_that_never_reads_the_rest_is_let_go_after_the_idle_timeout() {
    const BYTES: usize = 32 << 20;
    let upstream = Upstream::scripted(|_| {
        let mut response = format!("HTTP/1.1 200 OK\r\ncontent-length: {BYTES}\r\n\r\n").into_bytes();
        response.resize(response.len() + BYTES, b'x');
        Answer::Bytes(response)
    });
    let port = free_port();
    let manager = format!(
        "{SAYS_WHEN_OVER}\n          common_http_protocol_options: {{ idle_timeout: 0.5s }}\n          drain_timeout: 0.2s"
    );
    let bootstrap = http_bootstrap_with(port, &manager, ROUTES, &[("up", upstream.port)], "").replace(
        "    filter_chains:",
        &format!("    per_connection_buffer_limit_bytes: {}\n    filter_chains:", 2 * BYTES),
    );
    let mut gateway = Gateway::start(&bootstrap);
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    // To everyone else the response was whole.
    gateway.wait_for(&format!("over: 200 - {BYTES}"));
    let mut read = Vec::new();
    let _ = client.stream.read_to_end(&mut read);
    assert!(read.len() < BYTES, "the client got all {} bytes", read.len());
}

/// The clock runs on while nobody can take what the host says.
#[test]
fn a_clusters_longest_time_of_a_stream_ends_also_what_a_client_does_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap().port();
    let port = free_port();
    let fields = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, common_http_protocol_options: { max_stream_duration: 1s }, explicit_http_config: { http_protocol_options: {} } } }";
    let mut gateway = Gateway::start(&http_bootstrap_with(port, SAYS_WHEN_OVER, ROUTES, &[("up", upstream)], fields));
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.read(&mut [0; 4096]).unwrap();
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {RESPONSE_BYTES}\r\n\r\n").unwrap();
    let piece = vec![b'x'; 64 << 10];
    // Held back at first, then told that nobody wants it any more.
    while stream.write_all(&piece).is_ok() {}
    gateway.wait_for("over: 200 UMSDR");
}
