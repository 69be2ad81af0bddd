//! One request, several tries: repeated, hedged, bounded in time.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::gateway::free_port;
use crate::support::upstream::{Answer, ok};
use crate::support::{Client, Gateway, Upstream, http_bootstrap, http_bootstrap_with};

fn status(code: u16) -> Vec<u8> {
    format!("HTTP/1.1 {code} Something\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

/// An upstream that keeps the first request until it is told, or the test ends, and answers all others at once.
struct Held {
    upstream: Upstream,
    arrived: Receiver<()>,
    release: Sender<()>,
}

fn first_is_held(first: &'static str, later: Vec<u8>) -> Held {
    let (release, released) = channel::<()>();
    let (arrive, arrived) = channel::<()>();
    let ends = Mutex::new((arrive, released));
    let count = AtomicUsize::new(0);
    let upstream = Upstream::scripted(move |_| {
        if count.fetch_add(1, SeqCst) > 0 {
            return Answer::Bytes(later.clone());
        }
        let ends = ends.lock().unwrap();
        let _ = ends.0.send(());
        let _ = ends.1.recv_timeout(Duration::from_secs(20));
        Answer::Bytes(ok(first))
    });
    Held { upstream, arrived, release }
}

fn hedged(port: u16, upstream: u16) -> String {
    let routes = "[{ match: { prefix: / }, route: { cluster: up, timeout: 20s, hedge_policy: { hedge_on_per_try_timeout: true }, \
                  retry_policy: { retry_on: 5xx, num_retries: 1, per_try_timeout: 0.05s } } }]";
    http_bootstrap(port, routes, &[("up", upstream)])
}

#[test]
fn a_slow_try_is_joined_by_another_and_the_first_good_answer_wins() {
    let held = first_is_held("slow", ok("fast"));
    let port = free_port();
    let _gateway = Gateway::start(&hedged(port, held.upstream.port));
    assert_eq!(Client::new(port).get("/").text(), "fast");
}

#[test]
fn a_bad_answer_beside_a_try_that_still_runs_is_not_taken() {
    let held = first_is_held("slow", status(503));
    let port = free_port();
    let _gateway = Gateway::start(&hedged(port, held.upstream.port));
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    // The second has been answered.
    held.upstream.next();
    held.release.send(()).unwrap();
    assert_eq!(client.response().text(), "slow");
}

#[test]
fn a_retried_request_carries_its_body_again_and_says_which_try_it_is() {
    let count = Arc::new(AtomicUsize::new(0));
    let upstream = Upstream::scripted(move |_| {
        Answer::Bytes(if count.fetch_add(1, SeqCst) == 0 { status(503) } else { ok("good") })
    });
    let routes = "[{ match: { prefix: / }, route: { cluster: up, retry_policy: { retry_on: 5xx } } }]";
    let port = free_port();
    let bootstrap = http_bootstrap(port, routes, &[("up", upstream.port)])
        .replace("domains: ['*']", "domains: ['*']\n              include_request_attempt_count: true");
    let _gateway = Gateway::start(&bootstrap);
    let mut client = Client::new(port);
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc");
    assert_eq!(client.response().text(), "good");
    let (first, second) = (upstream.next(), upstream.next());
    assert_eq!((first.body.as_slice(), second.body.as_slice()), (&b"abc"[..], &b"abc"[..]));
    assert_eq!(first.header("x-envoy-attempt-count"), Some("1"));
    assert_eq!(second.header("x-envoy-attempt-count"), Some("2"));
}

#[test]
fn after_a_retry_the_reply_says_so() {
    let upstream = Upstream::scripted(|_| Answer::Close(Vec::new()));
    let routes = "[{ match: { prefix: / }, route: { cluster: up, retry_policy: { retry_on: reset } } }]";
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, routes, &[("up", upstream.port)]));
    let expected = "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: \
                    connection termination";
    assert_eq!(Client::new(port).get("/").text(), expected);
}

#[test]
fn a_try_that_says_nothing_is_given_up_also_within_its_body() {
    let upstream = Upstream::scripted(|_| Answer::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab".to_vec()));
    let routes = "[{ match: { prefix: / }, route: { cluster: up, timeout: 20s, \
                  retry_policy: { retry_on: 5xx, per_try_idle_timeout: 0.1s } } }]";
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, routes, &[("up", upstream.port)]));
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    let all = String::from_utf8(client.rest()).unwrap();
    assert!(all.starts_with("HTTP/1.1 200") && all.ends_with("ab"), "{all}");
}

#[test]
fn the_routes_time_begins_when_the_request_is_whole_also_while_there_is_no_connection() {
    let held = first_is_held("held", ok("free"));
    let routes = "[{ match: { prefix: /hold }, route: { cluster: up, timeout: 20s } }, \
                  { match: { prefix: / }, route: { cluster: up, timeout: 0.1s } }]";
    let port = free_port();
    let one = "circuit_breakers: { thresholds: [{ max_connections: 1 }] }";
    let _gateway = Gateway::start(&http_bootstrap_with(port, "", routes, &[("up", held.upstream.port)], one));
    let mut holder = Client::new(port);
    holder.send("GET /hold HTTP/1.1\r\nhost: test\r\n\r\n");
    held.arrived.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut client = Client::new(port);
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc");
    let response = client.response();
    assert_eq!((response.status, response.text()), (504, "upstream request timeout".into()));
}

#[test]
fn each_hedged_try_has_upstream_filters_of_its_own() {
    let held = first_is_held("slow", ok("fast"));
    let port = free_port();
    let routes = "[{ match: { prefix: / }, route: { cluster: up, timeout: 20s, hedge_policy: { hedge_on_per_try_timeout: true }, \
                  retry_policy: { retry_on: 5xx, num_retries: 1, per_try_timeout: 0.05s } } }]";
    let add = |name: &str| format!("[{{ append: {{ header: {{ key: {name}, value: once }} }} }}]");
    let filters = format!(
        "typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ '@type': \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{ \
         http_protocol_options: {{}} }}, http_filters: [{{ name: m, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {{ \
         request_mutations: {}, response_mutations: {} }} }} }}, {{ name: c, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec }} }}] }} }}",
        add("x-try"),
        add("x-answer")
    );
    let _gateway = Gateway::start(&http_bootstrap_with(port, "", routes, &[("up", held.upstream.port)], &filters));
    let response = Client::new(port).get("/");
    assert_eq!((response.text().as_str(), response.header("x-answer")), ("fast", Some("once")));
    held.release.send(()).unwrap();
    for seen in [held.upstream.next(), held.upstream.next()] {
        assert_eq!(seen.head.matches("x-try: once").count(), 1, "{}", seen.head);
    }
}
