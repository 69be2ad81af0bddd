//! Hosts that are told whom a connection is for, by a header in front of everything else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::support::certificates::Authority;
use crate::support::gateway::{Directory, free_port};
use crate::support::{Client, Gateway};

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str =
    "{ name: r, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }";
const PROXY: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
const UPSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const DOWNSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

/// A listener that tells whom its PROXY header named.
fn told(name: &str, port: u16, socket: &str) -> String {
    format!(
        "  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    listener_filters: [{{ name: p, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol }} }}]
    filter_chains:
    - {socket}
      filters:
      - name: h
        typed_config:
          '@type': {HCM}
          stat_prefix: {name}
          http_filters: [{ROUTER}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200 }} }}]
              response_headers_to_add: [{{ header: {{ key: x-from, value: '%DOWNSTREAM_REMOTE_ADDRESS%' }} }}, {{ header: {{ key: x-connection, value: '%CONNECTION_ID%' }} }}]
"
    )
}

fn entrance(address: &str) -> String {
    format!(
        "  - name: {}
    address: {address}
    filter_chains:
    - filters:
      - name: h
        typed_config:
          '@type': {HCM}
          stat_prefix: outer
          http_filters: [{ROUTER}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes: [{{ match: {{ prefix: /secure }}, route: {{ cluster: secure }} }}, {{ match: {{ prefix: /second }}, route: {{ cluster: second }} }}, {{ match: {{ prefix: / }}, route: {{ cluster: first }} }}]
",
        if address.contains("pipe") { "pipe" } else { "tcp" }
    )
}

fn cluster(name: &str, port: u16, version: &str, inner: &str) -> String {
    let socket = format!(
        "transport_socket: {{ name: p, typed_config: {{ '@type': {PROXY}, config: {{ version: {version} }}, transport_socket: {inner} }} }}"
    );
    crate::support::cluster(name, port, &socket)
}

#[test]
fn hosts_are_told_who_the_client_is_and_no_two_clients_share_a_connection() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let (port, plain, secure) = (free_port(), free_port(), free_port());
    let pipe = directory.0.join("in.sock");
    let raw = "{ name: raw, typed_config: { '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }";
    let ca = root.trusted(&directory, "root.pem");
    let certificate = root.certificate(&directory, "server", &["a.test"]);
    let tls = format!(
        "{{ name: tls, typed_config: {{ '@type': {UPSTREAM}, sni: a.test, auto_sni_san_validation: true, \
         common_tls_context: {{ validation_context: {{ trusted_ca: {ca} }} }} }} }}"
    );
    let ends_tls = format!(
        "transport_socket: {{ name: tls, typed_config: {{ '@type': {DOWNSTREAM}, common_tls_context: {{ tls_certificates: [{certificate}] }} }} }}"
    );
    let bootstrap = [
        "static_resources:\n  listeners:\n".to_owned(),
        entrance(&format!("{{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}")),
        entrance(&format!("{{ pipe: {{ path: {} }} }}", pipe.display())),
        told("plain", plain, "name: plain"),
        told("secure", secure, &ends_tls),
        "  clusters:\n".to_owned(),
        cluster("first", plain, "V1", raw),
        cluster("second", plain, "V2", raw),
        cluster("secure", secure, "V2", &tls),
    ]
    .concat();
    let _gateway = Gateway::start(&bootstrap);
    let mut connections = Vec::new();
    for _ in 0..2 {
        let mut client = Client::new(port);
        for path in ["/", "/", "/second", "/secure"] {
            let response = client.get(path);
            assert_eq!(response.header("x-from"), Some(&*client.address().to_string()), "{path}");
            connections.push(response.header("x-connection").unwrap().to_owned());
        }
    }
    // The same client's second request takes the connection of its first, and nobody else's.
    assert_eq!(connections[0], connections[1]);
    assert!(connections[0] != connections[4] && connections[2] != connections[6] && connections[3] != connections[7]);
    // Of whom nothing can be said, nothing is: the host sees the gateway itself. (Envoy dies of it, or says nothing at all.)
    for path in ["/", "/second"] {
        let mut client = UnixStream::connect(&pipe).unwrap();
        write!(client, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200") && response.contains("x-from: 127.0.0.1:"), "{response}");
    }
}
