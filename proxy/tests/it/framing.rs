//! Requests that two parsers could read differently never reach an upstream.

use crate::support::gateway::free_port;
use crate::support::{Client, Gateway, Upstream, http_bootstrap, http_bootstrap_with};

/// Raw requests, one a family, that are refused before a byte goes upstream.
const REFUSED: &[(&str, &str)] = &[
    ("CL.TE", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG"),
    ("TE.TE", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n"),
    ("TE on 1.0", "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("duplicate CL", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
    ("CL list", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\na"),
    ("bare LF", "GET / HTTP/1.1\nhost: a\n\n"),
    ("obs-fold", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n"),
    ("space before colon", "GET / HTTP/1.1\r\nhost: a\r\nx : 1\r\n\r\n"),
    ("NUL", "GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n"),
    ("CR in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n\r\n"),
    ("folded TE", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("TE with a parameter", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked;a\r\n\r\n0\r\n\r\n"),
    ("CL with a sign", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na"),
    ("CL over 2^64", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551616\r\n\r\na"),
    ("no name", "GET / HTTP/1.1\r\nhost: a\r\n: 1\r\n\r\n"),
    ("slash in host", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n"),
    ("space in host", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n"),
    ("upgrade that is not allowed", "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nGET /2"),
    ("nominated host", "GET / HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n"),
    ("%00", "GET /a%00b HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("doubly escaped dot segment", "GET /a/%252e%252e/admin HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\n\r\n"),
    ("userinfo", "GET / HTTP/1.1\r\nhost: a@b\r\n\r\n"),
    ("fragment", "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("hidden dot segment", "GET /a/..%2fadmin HTTP/1.1\r\nhost: a\r\n\r\n"),
];

#[test]
fn ambiguous_requests_are_refused() {
    let upstream = Upstream::text("reached");
    let port = free_port();
    let routes = "[{ match: { prefix: / }, route: { cluster: up } }]";
    let _gateway = Gateway::start(&http_bootstrap(port, routes, &[("up", upstream.port)]));
    for (family, request) in REFUSED {
        let mut client = Client::new(port);
        client.send(request);
        let status = client.response().status;
        assert!((400..=501).contains(&status) && status != 404, "{family}: {status}");
        assert!(upstream.is_quiet(), "{family}: reached the upstream");
    }
}

#[test]
fn a_bad_chunk_cuts_the_request_before_it_is_whole() {
    let upstream = Upstream::text("reached");
    let port = free_port();
    let routes = "[{ match: { prefix: / }, route: { cluster: up } }]";
    let _gateway = Gateway::start(&http_bootstrap(port, routes, &[("up", upstream.port)]));
    for body in ["0x5\r\nhello\r\n0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n"] {
        let mut client = Client::new(port);
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}"));
        client.rest();
        assert!(upstream.is_quiet(), "{body:?} was forwarded whole");
    }
}

#[test]
fn what_is_legal_but_dangerous_is_taken_out() {
    let upstream = Upstream::text("reached");
    let port = free_port();
    let routes = "[{ match: { prefix: / }, route: { cluster: up } }]";
    let manager = "http_protocol_options: { enable_trailers: true }";
    let options = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { '@type': \
                   type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { \
                   http_protocol_options: { enable_trailers: true } } } }";
    let _gateway = Gateway::start(&http_bootstrap_with(port, manager, routes, &[("up", upstream.port)], options));
    let mut client = Client::new(port);
    client.send(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: x-secret, http2-settings, upgrade\r\n\
         upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nx-secret: a\r\nkeep-alive: 5\r\n\r\n\
         3;ext=\"x\"\r\nabc\r\n0\r\nhost: evil\r\ncontent-length: 5\r\nx-forwarded-for: 1.2.3.4\r\nx-sum: 1\r\n\r\n",
    );
    assert_eq!(client.response().status, 200);
    let seen = upstream.next();
    for gone in ["connection", "upgrade", "http2-settings", "x-secret", "keep-alive"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert_eq!(String::from_utf8(seen.body).unwrap(), "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n");
    // Only exactly 100-continue is an expectation that is met at once.
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue, x\r\ncontent-length: 3\r\n\r\nabc");
    assert_ne!(client.response().status, 100);
}
