//! The short form: `tidegate expand` shows what it stands for.

use std::process::Command;

use crate::support::gateway::Directory;

fn expand(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("expand").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_it_stands_for_is_shown() {
    let directory = Directory::new();
    let text = "tidegate: v1\nlisten: { web: 127.0.0.1:80 }\nhosts: [{ routes: [{ to: u }] }]\n";
    let hosts = directory.put("hosts.yaml", text);
    let (code, _, wrong) = expand(&[hosts.to_str().unwrap()]);
    let told = format!("error: {}:3: hosts[0].routes[0].to: there is no upstream 'u'\n", hosts.display());
    assert_eq!((code, wrong), (Some(1), told));
    directory.put("upstreams.yaml", "tidegate: v1\nupstreams: { u: { endpoints: [127.0.0.1:1] } }\n");
    let path = directory.0.to_str().unwrap();
    let (code, yaml, _) = expand(&[path]);
    assert!(
        code == Some(0)
            && yaml.starts_with(
                "resources:\n- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: u\n"
            ),
        "{yaml}"
    );
    let (_, json, _) = expand(&[path, "--format", "json"]);
    assert!(json.starts_with("{\n  \"resources\": [\n") && json.contains("\"route_config_name\": \"web\""), "{json}");
    // What is shown says the same as what it was made from.
    let again = Directory::new();
    again.put("all.yaml", &yaml);
    assert_eq!(expand(&[again.0.to_str().unwrap()]).1, yaml);
    let (code, _, wrong) = expand(&[path, "--group", "edge"]);
    assert!(code == Some(1) && wrong.contains("there is no group 'edge'; there are: default"), "{wrong}");
    assert!(expand(&["--schema"]).1.contains("\"$schema\""));
}
