//! Requests that two parsers could read differently never reach an upstream.

use crate::support::gateway::free_port;
use crate::support::{Client, Gateway, Upstream, http_bootstrap};

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
