//! Configurations from outside: what is refused says where and why, and every example of the project loads.

use std::path::Path;
use std::process::Command;

use crate::support::gateway::Directory;

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

#[test]
fn every_example_of_the_project_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
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
