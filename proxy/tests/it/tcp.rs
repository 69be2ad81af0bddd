//! Connections that are not HTTP: proxied bytes, half closes, echo, direct responses.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::support::gateway::{connect, free_port};
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
