//! Connections that are not HTTP: proxied bytes, half closes, echo, direct responses.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::access_logs::log;
use crate::support::gateway::{Directory, connect, eventually, free_port};
use crate::support::{Gateway, cluster};

fn listener(name: &str, port: u16, filter: &str) -> String {
    format!(
        "  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains: [{{ filters: [{{ name: f, typed_config: {filter} }}] }}]
"
    )
}

const ECHO: &str = "{ '@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo }";

fn proxied_echo() -> (Gateway, u16) {
    let (front, back) = (free_port(), free_port());
    let proxy = "{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: up }";
    let listeners = listener("front", front, proxy) + &listener("back", back, ECHO);
    let bootstrap = format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{}", cluster("up", back, ""));
    (Gateway::start(&bootstrap), front)
}

#[test]
fn bytes_go_both_ways_and_a_half_close_arrives() {
    let (_gateway, port) = proxied_echo();
    let mut stream = connect(port);
    let sent = vec![b'x'; 1 << 20];
    let mut reader = stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        read
    });
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(reading.join().unwrap() == sent, "what came back is not what was sent");
}

#[test]
fn a_direct_response_is_sent_and_the_connection_closed() {
    let port = free_port();
    let filter = "{ '@type': type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config, response: { inline_string: hello } }";
    let _gateway = Gateway::start(&format!("static_resources:\n  listeners:\n{}", listener("d", port, filter)));
    let mut text = String::new();
    connect(port).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn an_upstream_that_refuses_closes_the_client() {
    let port = free_port();
    let proxy = "{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: up }";
    let clusters = cluster("up", free_port(), "");
    let bootstrap = format!("static_resources:\n  listeners:\n{}  clusters:\n{clusters}", listener("f", port, proxy));
    let _gateway = Gateway::start(&bootstrap);
    let mut read = Vec::new();
    // Closed or reset, perhaps before the client has looked at its socket: either way it ends, and nothing was sent.
    if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) {
        let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(20)));
        let _ = stream.read_to_end(&mut read);
    }
    assert!(read.is_empty());
}

#[test]
fn a_line_tells_how_a_connection_was_closed() {
    let directory = Directory::new();
    let path = directory.0.join("log");
    let format = "%UPSTREAM_CLUSTER% %DOWNSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_DETECTED_CLOSE_TYPE% \
                  %DOWNSTREAM_LOCAL_CLOSE_REASON% %UPSTREAM_LOCAL_CLOSE_REASON%";
    let log = log(&path, format);
    let (front, idle, nowhere, back) = (free_port(), free_port(), free_port(), free_port());
    let proxy = |cluster: &str, more: &str| {
        format!(
            "
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: {cluster}
          {more}
          {log}"
        )
    };
    let listener = |name: &str, port: u16, filter: &str| {
        format!(
            "  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: f
        typed_config:{filter}
"
        )
    };
    let echo = "\n          '@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo";
    let listeners = [
        listener("front", front, &proxy("up", "")),
        listener("idle", idle, &proxy("up", "idle_timeout: 0.1s")),
        listener("nowhere", nowhere, &proxy("none", "")),
        listener("back", back, echo),
    ];
    let clusters = cluster("up", back, "");
    let bootstrap = format!("static_resources:\n  listeners:\n{}  clusters:\n{clusters}", listeners.concat());
    let _gateway = Gateway::start_with(&bootstrap, &["--file-flush-interval-msec", "10"]);
    let is_next = |line: &str| {
        eventually(line, || std::fs::read_to_string(&path).unwrap_or_default().lines().last() == Some(line));
    };
    let mut byte = [0];
    let mut stream = connect(front);
    stream.write_all(b"a").unwrap();
    stream.read_exact(&mut byte).unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(stream);
    is_next("up RemoteReset Normal - -");
    let mut stream = connect(idle);
    stream.write_all(b"a").unwrap();
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(stream.read(&mut byte).unwrap(), 0);
    is_next("up Normal Normal tcp_session_idle_timeout tcp_session_idle_timeout");
    // Closed or reset, perhaps before the client has looked at its socket.
    let _ = std::net::TcpStream::connect(("127.0.0.1", nowhere)).map(|mut stream| stream.read(&mut byte));
    is_next("- Normal Normal tcp_initializion_failure:3 -");
}

/// A byte that passes early does not double the time.
#[test]
fn a_tunnel_that_falls_silent_ends_after_its_idle_timeout_and_no_later() {
    const IDLE: Duration = Duration::from_secs(3);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = std::thread::spawn({
        let listener = listener.try_clone().unwrap();
        move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nx").unwrap();
            // Until the other side is done with it.
            let _ = stream.read(&mut [0; 1]);
        }
    });
    let port = free_port();
    let proxy = "{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: up, idle_timeout: 3s, tunneling_config: { hostname: 'far:1' } }";
    let clusters = cluster("up", listener.local_addr().unwrap().port(), "");
    let bootstrap =
        format!("static_resources:\n  listeners:\n{}  clusters:\n{clusters}", self::listener("f", port, proxy));
    let _gateway = Gateway::start(&bootstrap);
    let mut stream = connect(port);
    stream.read_exact(&mut [0]).unwrap();
    let moved = Instant::now();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    let took = moved.elapsed();
    assert!(took > IDLE - Duration::from_millis(500) && took < IDLE * 2 - Duration::from_millis(200), "{took:?}");
    host.join().unwrap();
}
