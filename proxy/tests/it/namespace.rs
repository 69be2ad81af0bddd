//! What needs a network of its own: redirected connections, and addresses that the machine does not have. Each test runs
//! itself again in a network namespace, where it may change rules and addresses; without the right to make one it is skipped.

use std::process::Command;

use crate::support::{Client, Gateway};

const INSIDE: &str = "TIDEGATE_TEST_NAMESPACE";

/// Runs `inside` in a namespace whose loopback is up.
fn in_namespace(name: &str, tools: &[&str], inside: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run(&["ip", "link", "set", "lo", "up"]);
        return inside();
    }
    for tool in ["unshare", "ip"].iter().chain(tools) {
        if Command::new(tool).arg("--version").output().is_err() {
            println!("skipped: {name} needs the command {tool}");
            return;
        }
    }
    if !Command::new("unshare").args(["--net", "true"]).output().unwrap().status.success() {
        println!("skipped: {name} needs the right to make a network namespace");
        return;
    }
    let itself = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&itself.stderr);
    assert!(itself.status.success() && String::from_utf8_lossy(&itself.stdout).contains("1 passed"), "{said}");
}

fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A listener that answers with its own name.
fn listener(name: &str, address: &str, port: u16, fields: &str) -> String {
    format!(
        "  - name: {name}
    address: {{ socket_address: {{ address: {address}, port_value: {port} }} }}
    {fields}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: t
          http_filters:
          - name: router
            typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: {name} }} }} }}] }}]
"
    )
}

fn bootstrap(listeners: &[String]) -> String {
    format!("static_resources:\n  listeners:\n{}", listeners.concat())
}

fn answer(address: &str) -> String {
    let mut client = Client::to(address.parse().unwrap());
    client.get("/").text()
}

#[test]
fn a_redirected_connection_goes_to_the_listener_of_its_destination() {
    in_namespace("namespace::a_redirected_connection_goes_to_the_listener_of_its_destination", &["nft"], || {
        run(&["nft", "add table ip nat"]);
        run(&["nft", "add chain ip nat output { type nat hook output priority -100; }"]);
        run(&["nft", "add rule ip nat output tcp dport 18000-18099 redirect to :15001"]);
        let unbound = "bind_to_port: false";
        let _gateway = Gateway::start(&bootstrap(&[
            listener("outbound", "0.0.0.0", 15001, "use_original_dst: true"),
            listener("exact", "127.0.0.7", 18001, unbound),
            listener("any", "0.0.0.0", 18001, unbound),
        ]));
        assert_eq!(answer("127.0.0.7:18001"), "exact");
        assert_eq!(answer("127.0.0.8:18001"), "any");
        assert_eq!(answer("127.0.0.8:18002"), "outbound");
        assert_eq!(answer("127.0.0.1:15001"), "outbound");
    });
}

#[test]
fn freebind_and_transparent_listen_where_the_address_is_not() {
    in_namespace("namespace::freebind_and_transparent_listen_where_the_address_is_not", &[], || {
        let mut refused = Gateway::spawn(&bootstrap(&[listener("plain", "192.0.2.1", 18000, "")]), &[]);
        refused.wait_for("192.0.2.1:18000");
        assert!(!refused.wait().success());
        let _gateway = Gateway::start(&bootstrap(&[
            listener("free", "192.0.2.1", 18001, "freebind: true"),
            listener("transparent", "192.0.2.1", 18002, "transparent: true"),
        ]));
        run(&["ip", "address", "add", "192.0.2.1/32", "dev", "lo"]);
        assert_eq!(answer("192.0.2.1:18001"), "free");
        assert_eq!(answer("192.0.2.1:18002"), "transparent");
    });
}
