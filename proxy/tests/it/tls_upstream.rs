//! TLS to hosts: by which name they are asked for, which one they must have, and what they speak.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tidegate_tls::parameters::{Version, Wanted};
use tidegate_tls::server::Stapling;
use tidegate_tls::{Identity, Parameters, ServerContext, ServerSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::certificates::Authority;
use crate::support::gateway::{Directory, free_port};
use crate::support::{Client, Gateway, cluster};

const UPSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A host that tells by which name it was asked for. The connections that it takes speak these protocols in turn, and end
/// after a request.
struct Host {
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl Host {
    fn start(root: &Authority, names: &[&str], protocols: &[&str]) -> Self {
        let (chain, key) = root.issue(names);
        let identity = Arc::new(Identity::load(chain.as_bytes(), key.as_bytes(), None, "<inline>").unwrap());
        let contexts: Arc<[ServerContext]> = protocols.iter().map(|protocol| context(&identity, protocol)).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            let count = AtomicUsize::new(0);
            while let Ok((stream, _)) = listener.accept().await {
                let (contexts, place) = (Arc::clone(&contexts), count.fetch_add(1, Relaxed) % contexts.len());
                tokio::spawn(async move {
                    if let Ok((stream, session)) = contexts[place].accept(stream).await {
                        answer(stream, session).await;
                    }
                });
            }
        });
        Self { port, _runtime: runtime }
    }
}

fn context(identity: &Arc<Identity>, protocol: &str) -> ServerContext {
    let wanted =
        Wanted { min: Version::Tls12, max: Version::Tls13, cipher_suites: &[], groups: &[], signature_algorithms: &[] };
    let settings = ServerSettings {
        parameters: Parameters::new(&wanted).unwrap(),
        identities: vec![Arc::clone(identity)],
        validation: Arc::default(),
        require_client_certificate: false,
        require_server_name: false,
        alpn: vec![protocol.as_bytes().to_vec()],
        prefer_client_ciphers: false,
        full_scan: false,
        stapling: Stapling::Lenient,
        tickets: None,
        stateful_sessions: false,
        session_timeout: None,
        digest: [0; 32],
    };
    ServerContext::build(settings).unwrap()
}

async fn answer(mut stream: tidegate_tls::TlsStream<tokio::net::TcpStream>, session: tidegate_tls::Session) {
    let name = session.server_name.unwrap_or_else(|| "none".to_owned());
    if session.alpn.as_deref() == Some(b"h2") {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        if let Some(Ok((_, mut respond))) = connection.accept().await {
            let response = http::Response::builder().header("x-named", name).body(()).unwrap();
            respond.send_response(response, true).unwrap();
        }
        connection.graceful_shutdown();
        // Until the client has left.
        while connection.accept().await.is_some() {}
        return;
    }
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let response = format!("HTTP/1.1 200 OK\r\nx-named: {name}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(response.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// A gateway with a cluster for each of these contexts, named by the first path segment.
fn gateway(clusters: &[(&str, u16, String, String)]) -> (Gateway, u16, u16) {
    let (port, admin) = (free_port(), free_port());
    let route = |(name, ..): &(&str, u16, String, String)| {
        format!("{{ match: {{ prefix: /{name} }}, route: {{ cluster: {name} }} }}")
    };
    let routes: Vec<String> = clusters.iter().map(route).collect();
    let described: String = clusters
        .iter()
        .map(|(name, host, context, options)| {
            let socket = format!(
                "transport_socket: {{ name: tls, typed_config: {{ '@type': {UPSTREAM}, {context} }} }}\n    \
                 typed_extension_protocol_options: {{ {OPTIONS}: {{ '@type': type.googleapis.com/{OPTIONS}, {options} }} }}"
            );
            cluster(name, *host, &socket)
        })
        .collect();
    let bootstrap = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
static_resources:
  listeners:
  - name: l
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: s
          local_reply_config: {{ body_format: {{ text_format_source: {{ inline_string: '%UPSTREAM_TRANSPORT_FAILURE_REASON%' }} }} }}
          http_filters: [{{ name: r, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]
          route_config: {{ virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}] }}
  clusters:
{described}",
        routes = routes.join(", ")
    );
    (Gateway::start(&bootstrap), port, admin)
}

fn trusting(directory: &Directory, root: &Authority, more: &str) -> String {
    let ca = root.trusted(directory, "root.pem");
    format!("{more} common_tls_context: {{ validation_context: {{ trusted_ca: {ca} }} }}")
}

const HTTP1: &str = "explicit_http_config: { http_protocol_options: {} }";

#[test]
fn the_name_that_is_told_and_the_one_that_must_be_there_are_two() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let host = Host::start(&root, &["a.test", "b.test", "10.0.0.1", "spiffe://td/host"], &["http/1.1"]);
    let options = |which: &str| format!("upstream_http_protocol_options: {{ {which} }}, {HTTP1}");
    let named = trusting(&directory, &root, "sni: b.test,");
    let matched = named.replace(
        "trusted_ca",
        "match_typed_subject_alt_names: [{ san_type: DNS, matcher: { exact: z.test } }], trusted_ca",
    );
    let (_gateway, port, _) = gateway(&[
        ("sni", host.port, named.clone(), options("auto_sni: true")),
        ("san", host.port, named.clone(), options("auto_san_validation: true")),
        ("both", host.port, named.clone(), options("auto_sni: true, auto_san_validation: true")),
        ("own", host.port, format!("auto_sni_san_validation: true, {matched}"), HTTP1.to_owned()),
        ("beside", host.port, matched, options("auto_san_validation: true")),
        ("unvouched", host.port, "sni: b.test".to_owned(), options("auto_san_validation: true")),
    ]);
    for (path, authority, told) in [
        ("/sni", "a.test:8080", Some("a.test")),
        ("/sni", "elsewhere.test", Some("elsewhere.test")),
        // An address is not told: what is configured is.
        ("/sni", "10.0.0.1", Some("b.test")),
        ("/sni", "[::1]:80", Some("b.test")),
        ("/san", "a.test", Some("b.test")),
        ("/san", "10.0.0.1:80", Some("b.test")),
        ("/san", "10.0.0.2", None),
        ("/san", "c.test", None),
        ("/both", "a.test", Some("a.test")),
        ("/both", "10.0.0.1", Some("b.test")),
        ("/both", "c.test", None),
        // It goes in place of the names that are configured; the request's go beside them.
        ("/own", "whatever", Some("b.test")),
        ("/beside", "a.test", None),
        ("/unvouched", "a.test", None),
    ] {
        let mut client = Client::new(port);
        client.send(format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\n\r\n"));
        assert_eq!(client.response().header("x-named"), told, "{path} {authority}");
    }
}

#[test]
fn a_name_that_tls_cannot_say_is_no_fault_of_the_host() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let host = Host::start(&root, &["a.test"], &["http/1.1"]);
    let context = trusting(&directory, &root, "");
    let options = format!("upstream_http_protocol_options: {{ auto_sni: true }}, {HTTP1}");
    let (_gateway, port, admin) = gateway(&[("up", host.port, context, options)]);
    for name in ["-", "a..test", "*.a.test"] {
        let mut client = Client::new(port);
        client.send(format!("GET /up HTTP/1.1\r\nhost: {name}\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status, 503, "{name}");
        let expected = format!("TLS_cannot_name_the_host_'{name}'_(RFC_6066_section_3)");
        assert_eq!(response.text(), expected);
    }
    let failures = Client::new(admin).get("/stats?filter=cluster.up.upstream_cx_connect_fail").text();
    assert_eq!(failures.trim(), "cluster.up.upstream_cx_connect_fail: 0");
    let mut client = Client::new(port);
    client.send("GET /up HTTP/1.1\r\nhost: a_b.test.\r\n\r\n");
    assert_eq!(client.response().header("x-named"), Some("a_b.test"));
}

#[test]
fn a_host_may_speak_another_protocol_on_each_connection() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let host = Host::start(&root, &["a.test"], &["h2", "http/1.1"]);
    let context = trusting(&directory, &root, "sni: a.test,");
    let (_gateway, port, _) = gateway(&[("up", host.port, context, "auto_config: {}".to_owned())]);
    for request in 0..20 {
        assert_eq!(Client::new(port).get("/up").status, 200, "{request}");
    }
}
