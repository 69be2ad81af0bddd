//! What a cluster with one endpoint costs while nobody uses it: at most 4 KiB, wherever it comes from. A measurement, which a machine that
//! does something else meanwhile disturbs: `cargo test --test it memory -- --ignored --nocapture`.

use std::fmt::Write as _;

use crate::discovery::{cluster, endpoints};
use crate::support::Gateway;
use crate::support::control_plane::ControlPlane;
use crate::support::gateway::eventually;

/// Two processes are compared: what a start leaves behind, and the stacks of an unoptimised build, cost both the same.
const FEW: u64 = 1000;
const MANY: u64 = 4000;
const MOST_BYTES: u64 = 4096;

/// What a process holds of its own, in bytes.
fn held(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Memory is given back a while after a start.
fn costs_little(of: &str, few: &Gateway, many: &Gateway) {
    let each = || held(many).saturating_sub(held(few)) / (MANY - FEW);
    eventually("memory that was given back", || each() <= MOST_BYTES);
    println!("{of}: {} bytes a cluster", each());
}

fn named(index: u64) -> String {
    format!("cluster-{index}")
}

fn with_static(clusters: u64) -> Gateway {
    let mut text = "static_resources:\n  listeners: [{ name: echo, address: { socket_address: { address: 127.0.0.1, port_value: 0 } }, filter_chains: [{ filters: [{ name: echo, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo } }] }] }]\n  clusters:\n".to_owned();
    for index in 0..clusters {
        let hosts = endpoints(&named(index), 80)
            .replace("'@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, ", "");
        writeln!(text, "  - {{ name: {}, type: STATIC, load_assignment: {hosts} }}", named(index)).unwrap();
    }
    Gateway::start(&text)
}

fn with_discovered(control: &ControlPlane, count: u64) -> Gateway {
    let gateway = Gateway::spawn(&control.bootstrap("GRPC"), &[]);
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster v n []"]);
    control.answer("1", "a", &(0..count).map(|index| cluster(&named(index))).collect::<Vec<_>>());
    assert!(control.asked().starts_with("ClusterLoadAssignment v n ["));
    assert_eq!(control.asked(), "Cluster v1 na []");
    control.answer("1", "b", &(0..count).map(|index| endpoints(&named(index), 80)).collect::<Vec<_>>());
    assert_eq!(control.asked(), "Listener v n []");
    control.answer_as("type.googleapis.com/envoy.config.listener.v3.Listener", "1", "c", Vec::new());
    gateway
}

#[test]
#[ignore = "a measurement"]
fn an_idle_static_cluster_costs_4_kib_at_most() {
    costs_little("static", &with_static(FEW), &with_static(MANY));
}

#[test]
#[ignore = "a measurement"]
fn an_idle_discovered_cluster_costs_4_kib_at_most() {
    let (one, other) = (ControlPlane::start(), ControlPlane::start());
    costs_little("over EDS", &with_discovered(&one, FEW), &with_discovered(&other, MANY));
}
