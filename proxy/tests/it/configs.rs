//! Configurations from outside: what is refused says where and why, and every example of the project loads.

use std::path::Path;
use std::process::Command;

use crate::support::gateway::Directory;
use crate::support::http_bootstrap;

fn check(text: &str) -> (bool, String) {
    let directory = Directory::new();
    let path = directory.put("a.yaml", text);
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("check").arg(path).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_typo_is_named_with_its_line_and_the_nearest_name() {
    let (ok, text) = check("static_resources:\n  clusterz: []\n");
    assert!(!ok);
    assert!(text.contains(":2:3:") && text.contains("clusterz") && text.contains("clusters"), "{text}");
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let (ok, text) = check(
        "static_resources:
  listeners:
  - name: a
    address: { socket_address: { address: 127.0.0.1, port_value: 1 } }
    filter_chains: [{ filters: [{ name: m, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy, stat_prefix: m } }] }]
",
    );
    assert!(!ok);
    assert!(text.contains("not supported yet") && text.contains("mongo_proxy"), "{text}");
}

/// Envoy refuses a pattern whose program is larger.
#[test]
fn the_size_of_a_regexs_program_is_refused() {
    let with = |engine: &str| {
        check(&http_bootstrap(
            1,
            &format!(
                "[{{ match: {{ safe_regex: {{ google_re2: {engine}, regex: /a.* }} }}, direct_response: {{ status: 200 }} }}]"
            ),
            &[],
        ))
    };
    let (ok, text) = with("{}");
    assert!(ok && !text.contains("without effect"), "{text}");
    let (ok, text) = with("{ max_program_size: 1 }");
    assert!(!ok && text.contains("not supported yet") && text.contains("google_re2.max_program_size"), "{text}");
}

/// As in Envoy it acts only where it says how clusters are fetched, and that is refused.
#[test]
fn a_tcp_proxys_clusters_on_demand_are_refused_where_they_would_act() {
    let with = |on_demand: &str| {
        check(&format!(
            "static_resources:
  listeners:
  - name: a
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 1 }} }}
    filter_chains: [{{ filters: [{{ name: t, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c, on_demand: {on_demand} }} }}] }}]
"
        ))
    };
    let (ok, text) = with("{ timeout: 1s }");
    assert!(ok, "{text}");
    let (ok, text) = with("{ odcds_config: { resource_api_version: V3, path_config_source: { path: /a } } }");
    assert!(!ok && text.contains("not supported yet") && text.contains("on_demand.odcds_config"), "{text}");
}

#[test]
fn every_example_of_the_project_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut checked = 0;
    let bootstrap = folder.join("control/bootstrap.yaml");
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).chain([bootstrap]);
    for path in all {
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("check").arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}:\n{text}", path.display());
        checked += 1;
    }
    assert!(checked > 0);
}

/// As Envoy 1.40 takes and refuses them.
#[test]
fn a_name_and_an_address_are_one_resources() {
    let clusters = |second: &str| check(&format!("static_resources: {{ clusters: [{{ name: a }}, {{ {second} }}] }}"));
    let (ok, text) = clusters("name: a, connect_timeout: 1s");
    assert!(
        !ok && text.contains("static_resources.clusters[1].name") && text.contains("duplicate cluster 'a'"),
        "{text}"
    );
    assert!(clusters("name: b").0);

    let listeners = |first: &str, second: &str| {
        let listener = |name: &str, rest: &str| {
            format!(
                "{{ name: {name}, {rest}, filter_chains: [{{ filters: [{{ name: e, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo }} }}] }}] }}"
            )
        };
        check(&format!("static_resources: {{ listeners: [{}, {}] }}", listener("a", first), listener("b", second)))
    };
    let at = |port: u16| format!("address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}");
    for (first, second, taken) in [
        (at(2), at(3), false),
        (at(2), at(2), true),
        (at(0), at(0), false),
        (at(2), format!("{}, bind_to_port: false", at(2)), true),
        (at(2), format!("{}, additional_addresses: [{{ {} }}]", at(3), at(2)), true),
    ] {
        let (ok, text) = listeners(&first, &second);
        assert_eq!(ok, !taken, "{second}: {text}");
        assert!(ok || text.contains("static_resources.listeners[1].address"), "{text}");
    }
}
