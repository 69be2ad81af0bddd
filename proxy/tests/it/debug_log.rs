//! What the application log says of connections, requests and configuration at its finer levels, and under which component.

use crate::support::gateway::{Directory, free_port};
use crate::support::{Client, Gateway, Upstream, http_bootstrap};

const ROUTES: &str = "[{ match: { prefix: /tried }, route: { cluster: gone, retry_policy: { retry_on: connect-failure } } }, \
                      { match: { prefix: /up }, route: { cluster: up } }]";
const FORMAT: [&str; 2] = ["--log-format", "%l|%n|%v"];

/// In this order, lines that hold these texts.
fn holds_in_order(lines: &[String], texts: &[&str]) {
    let mut rest = lines.iter();
    for text in texts {
        assert!(rest.any(|line| line.contains(text)), "no {text:?} where it belongs in:\n{}", lines.join("\n"));
    }
}

fn started(flags: &[&str]) -> (Gateway, Upstream, u16) {
    let (upstream, port) = (Upstream::text("hello"), free_port());
    let bootstrap = http_bootstrap(port, ROUTES, &[("up", upstream.port), ("gone", free_port())]);
    (Gateway::start_with(&bootstrap, &[&FORMAT, flags].concat()), upstream, port)
}

fn post(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
}

#[test]
fn a_request_is_told_from_its_connection_to_its_end() {
    let (mut gateway, _upstream, port) = started(&["-l", "debug"]);
    let mut client = Client::new(port);
    let head = "GET /up?a HTTP/1.1\r\nhost: a\r\nauthorization: let-me-in\r\ncookie: let-me-in\r\nx-seen: 1\r\n\r\n";
    assert_eq!(client.send(head).response().status, 200);
    drop(client);
    let lines = gateway.lines_until("debug|connection|[Tags: \"ConnectionId\":\"1\"] closed");
    holds_in_order(
        &lines,
        &[
            "debug|conn_handler|[Tags: \"ConnectionId\":\"1\"] new connection from 127.0.0.1:",
            "debug|http|[Tags: \"ConnectionId\":\"1\",\"StreamId\":\"",
            "':path', '/up?a'",
            "'authorization', '[hidden]'",
            "'cookie', '[hidden]'",
            "'x-seen', '1'",
            "cluster 'up' match for URL '/up?a'",
            "router decoding headers:",
            "debug|pool|queueing stream",
            "debug|pool|creating a new connection",
            "debug|connection|",
            "pool ready: host 127.0.0.1:",
            "upstream headers complete: end_stream=false",
            "encoding headers via codec (end_stream=false):",
            "':status', '200'",
            "Codec completed encoding stream.",
        ],
    );
    assert!(lines.iter().all(|line| !line.contains("let-me-in")), "{}", lines.join("\n"));
}

#[test]
fn what_filters_decide_is_told_under_their_components() {
    let port = free_port();
    let policy = |header: &str| {
        format!(
            "{{ permissions: [{{ header: {{ name: {header}, present_match: true }} }}], principals: [{{ any: true }}] }}"
        )
    };
    let filters = format!(
        "http_filters:
          - {{ name: rbac, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, \
         rules: {{ action: DENY, policies: {{ bad: {} }} }}, shadow_rules: {{ policies: {{ good: {} }} }} }} }}
          - {{ name: fault, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, \
         delay: {{ fixed_delay: 0.001s, percentage: {{ numerator: 100 }} }} }} }}
",
        policy("x-bad"),
        policy("x-good")
    );
    let bootstrap = http_bootstrap(port, "[{ match: { prefix: / }, direct_response: { status: 200 } }]", &[]);
    let bootstrap = bootstrap.replacen("http_filters:\n", &filters, 1);
    assert!(bootstrap.contains("x-bad"), "{bootstrap}");
    let mut gateway = Gateway::start_with(&bootstrap, &[&FORMAT[..], &["-l", "debug"]].concat());
    let mut client = Client::new(port);
    let asked = |header: &str| format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: let-me-in\r\n{header}: 1\r\n\r\n");
    assert_eq!(client.send(asked("x-good")).response().status, 200);
    assert_eq!(client.send(asked("x-bad")).response().status, 403);
    let lines = gateway.lines_until("details rbac_access_denied_matched_policy[bad]");
    holds_in_order(
        &lines,
        &[
            "debug|rbac|[Tags: \"ConnectionId\":\"",
            "shadow allowed, matched policy good",
            "enforced allowed, matched policy none",
            "debug|filter|[Tags: ",
            "debug|rbac|[Tags: \"ConnectionId\":\"",
            "shadow denied, matched policy none",
            "enforced denied, matched policy bad",
        ],
    );
    assert!(lines.iter().any(|line| line.contains("fault: delaying request 1ms")), "{}", lines.join("\n"));
    assert!(lines.iter().all(|line| !line.contains("let-me-in")), "{}", lines.join("\n"));
}

#[test]
fn failures_and_retries_are_told() {
    let (mut gateway, _upstream, port) = started(&["-l", "debug"]);
    let mut client = Client::new(port);
    assert_eq!(client.get("/tried").status, 503);
    assert_eq!(client.get("/nowhere").status, 404);
    let lines = gateway.lines_until("details route_not_found");
    let failed =
        "upstream reset: reset reason: remote connection failure, transport failure reason: delayed connect error";
    holds_in_order(
        &lines,
        &[
            "connect failed: ",
            failed,
            "performing retry",
            failed,
            "retry limit exceeded",
            "no route match for URL '/nowhere'",
        ],
    );
}

#[test]
fn a_component_speaks_alone_and_when_it_is_told_to() {
    let (upstream, port, admin) = (Upstream::text("hello"), free_port(), free_port());
    let admin_address =
        format!("admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n");
    let bootstrap = admin_address + &http_bootstrap(port, ROUTES, &[("up", upstream.port), ("gone", free_port())]);
    let flags = [&FORMAT[..], &["--component-log-level", "pool:debug"]].concat();
    let mut gateway = Gateway::start_with(&bootstrap, &flags);
    let mut client = Client::new(port);
    assert_eq!(client.get("/up").status, 200);
    assert_eq!(client.get("/up").status, 200);
    let lines = gateway.lines_until("using existing fully connected connection");
    assert!(lines.iter().all(|line| line.starts_with("debug|pool|")), "{}", lines.join("\n"));
    let mut asked = Client::new(admin);
    assert_eq!(asked.send(post("/logging?paths=pool:info,router:debug")).response().status, 200);
    assert_eq!(client.get("/up").status, 200);
    let lines = gateway.lines_until("upstream headers complete");
    assert!(lines.iter().any(|line| line.starts_with("debug|router|")));
    assert!(lines.iter().all(|line| !line.contains("|pool|")), "{}", lines.join("\n"));
}

#[test]
fn http2_tells_of_frames() {
    let (mut gateway, _upstream, port) = started(&["--component-log-level", "http2:debug"]);
    let mut client = Client::new(port);
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00");
    let lines = gateway.lines_until("received");
    assert!(lines.iter().all(|line| line.starts_with("debug|http2|")), "{}", lines.join("\n"));
    assert!(lines.last().is_some_and(|line| line.contains("Settings")), "{}", lines.join("\n"));
}

#[test]
fn files_may_have_levels_of_their_own() {
    let (upstream, port, admin) = (Upstream::text("hello"), free_port(), free_port());
    let admin_address =
        format!("admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n");
    let bootstrap = admin_address + &http_bootstrap(port, ROUTES, &[("up", upstream.port), ("gone", free_port())]);
    let mut gateway = Gateway::start_with(&bootstrap, &["--enable-fine-grain-logging", "--log-format", "%l|%g|%v"]);
    let mut asked = Client::new(admin);
    let mut change = |query: &str| asked.send(post(&format!("/logging?{query}"))).response().text();
    assert!(change("").contains("  proxy/src/server.rs: info\n"));
    change("paths=attempt:debug");
    assert_eq!(Client::new(port).get("/up").status, 200);
    let lines = gateway.lines_until("upstream headers complete");
    assert!(lines.iter().any(|line| line.starts_with("debug|proxy/src/http/router/attempt.rs|")));
    assert!(lines.iter().all(|line| !line.contains("new connection from")), "{}", lines.join("\n"));
    assert!(change("").contains("  proxy/src/http/router/attempt.rs: debug\n"));
    change("group=conn_handler:debug");
    drop(Client::new(port).get("/up"));
    gateway.wait_for("debug|proxy/src/listener/accept.rs|");
}

#[test]
fn updates_are_told() {
    let directory = Directory::new();
    let cluster = |name: &str| {
        format!(
            "resources:\n- {{ '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: {name}, connect_timeout: 1s }}\n"
        )
    };
    let path = directory.put("cds.yaml", &cluster("one"));
    let bootstrap = format!(
        "node: {{ id: one, cluster: web }}\ndynamic_resources: {{ cds_config: {{ path_config_source: {{ path: {} }} }} }}\n{}",
        path.display(),
        http_bootstrap(free_port(), "[{ match: { prefix: / }, direct_response: { status: 200 } }]", &[])
    );
    let mut gateway = Gateway::spawn(&bootstrap, &[&FORMAT[..], &["-l", "debug"]].concat());
    let lines = gateway.lines_until("debug|config|cluster 'one' serves");
    holds_in_order(&lines, &["debug|config|add/update cluster 'one'"]);
    directory.put("cds.yaml", &cluster("two"));
    let lines = gateway.lines_until("debug|config|cluster 'two' serves");
    holds_in_order(&lines, &["add/update cluster 'two'"]);
    // Before or after.
    if lines.iter().all(|line| !line.contains("removing cluster 'one'")) {
        gateway.wait_for("debug|config|removing cluster 'one'");
    }
}
