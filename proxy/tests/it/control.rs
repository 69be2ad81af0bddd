//! `tidegate control`, the process: what it says of a source that is wrong, and how it ends.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support::control_plane::bootstrap_of;
use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::upstream::Answer;
use crate::support::{Client, Gateway, Upstream};

const CLUSTER: &str = "{ \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, type: EDS, eds_cluster_config: { eds_config: { ads: {} } } }";

fn control(directory: &Directory, listen: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("control").arg("--source").arg(&directory.0).arg("--listen").arg(format!("127.0.0.1:{listen}"));
    command
}

#[test]
fn a_source_that_names_what_is_not_there_is_refused_with_its_line() {
    let directory = Directory::new();
    directory.put("a.yaml", &format!("resources:\n- {CLUSTER}\n"));
    let output = control(&directory, free_port()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("error: a.yaml:2: Cluster 'a': name: there is no ClusterLoadAssignment 'a'\n"), "{said}");
}

fn tidegate(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn a_store_is_changed_from_the_command_line() {
    let directory = Directory::new();
    let (listen, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let kept = directory.0.join("kept");
    let file = |name: &str, timeout: &str| {
        let text = format!(
            "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\nconnect_timeout: {timeout}\n"
        );
        directory.put(name, &text).to_str().unwrap().to_owned()
    };
    let (one, other) = (file("one.yaml", "1s"), file("other.yaml", "2s"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["control", "--listen", &listen, "--admin", &admin, "--store"]).arg(kept);
    let mut running = command.stderr(Stdio::null()).spawn().unwrap();
    eventually("it listens", || std::net::TcpStream::connect(&admin).is_ok());
    let on = ["--admin", admin.as_str()];
    let say = |arguments: &[&str]| tidegate(&[arguments, &on].concat());
    let (code, said) = say(&["apply", "-f", &one]);
    assert!(code == Some(0) && said.starts_with("created Cluster 'a' "), "{said}");
    assert_eq!(say(&["apply", "-f", &one]).1, "nothing to change\n");
    let (code, said) = say(&["diff", "-f", &other]);
    assert!(
        code == Some(1) && said.contains("-   \"connect_timeout\": \"1s\"\n+   \"connect_timeout\": \"2s\"\n"),
        "{said}"
    );
    assert_eq!(say(&["diff", "-f", &one]), (Some(0), String::new()));
    let wrong = directory.put("wrong.yaml", "resources:\n- name: x\n").display().to_string();
    let (code, said) = say(&["apply", "-f", &wrong]);
    assert!(code == Some(1) && said.contains(&format!("{wrong}:2: resources[0]: `@type` is missing")), "{said}");
    assert!(say(&["get"]).1.contains("  a  resources.json\n"), "{}", say(&["get"]).1);
    let (code, said) = say(&["apply", "-f", &other, "--if-version", "0"]);
    assert!(code == Some(1) && said.contains("expected version 0 of all"), "{said}");
    assert!(say(&["get"]).1.contains("Cluster ") && say(&["get", "Cluster", "a"]).1.contains("\"1s\""));
    assert!(say(&["get", "Cluster", "a", "--group", "default"]).1.contains("\"1s\""));
    let (code, said) = say(&["get", "cluster"]);
    assert!(code == Some(1) && said.contains("there is no type 'cluster', only Cluster, "), "{said}");
    for asked in [&["get", "--group", "x"][..], &["get", "Cluster", "a", "--group", "x"]] {
        let (code, said) = say(asked);
        assert!(code == Some(1) && said.contains("there is no group 'x'"), "{said}");
    }
    let (code, said) = say(&["apply", "-f", directory.0.to_str().unwrap()]);
    assert!(code == Some(1) && said.contains(" | tidegate apply -f -"), "{said}");
    let mut piped = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    piped.args(["apply", "-f", "-"]).args(on).stdin(std::fs::File::open(&other).unwrap());
    let piped = String::from_utf8(piped.output().unwrap().stdout).unwrap();
    assert!(piped.starts_with("changed Cluster 'a' "), "{piped}");
    let (code, said) = say(&["delete", "Cluster", "b"]);
    assert!(code == Some(1) && said.contains("there is no Cluster 'b'"), "{said}");
    assert_eq!(say(&["delete", "Cluster", "a"]).1, "deleted Cluster 'a'\n");
    let _ = running.kill();
    running.wait().unwrap();
}

/// From a registry through the control plane to a proxy and its requests.
#[test]
fn endpoints_come_from_a_registry() {
    let upstreams = ["first", "second"].map(Upstream::text);
    let ports = [upstreams[0].port, upstreams[1].port];
    let moved = Arc::new(AtomicBool::new(false));
    let has_moved = Arc::clone(&moved);
    let consul = Upstream::scripted(move |seen| {
        let (known, began) = (seen.line().contains("&index="), Instant::now());
        while known && !has_moved.load(Relaxed) && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let (index, port) = if known { (8, ports[1]) } else { (7, ports[0]) };
        let body = format!(r#"[{{"Node":{{"Address":"127.0.0.1"}},"Service":{{"Address":"","Port":{port}}}}}]"#);
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nx-consul-index: {index}\r\ncontent-length: {length}\r\n\r\n");
        Answer::Bytes((head + &body).into_bytes())
    });
    let (directory, listen, port) = (Directory::new(), free_port(), free_port());
    let routes = "{ '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, route_config: { virtual_hosts: [{ name: all, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: a } }] }] }, http_filters: [{ name: router, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }] }";
    let listener = format!(
        "{{ '@type': type.googleapis.com/envoy.config.listener.v3.Listener, name: l, address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}, filter_chains: [{{ filters: [{{ name: h, typed_config: {routes} }}] }}] }}"
    );
    let cluster = CLUSTER.replace("eds_config:", "service_name: consul/web, eds_config:");
    directory.put("all.yaml", &format!("resources:\n- {cluster}\n- {listener}\n"));
    let mut running = control(&directory, listen)
        .arg(format!("--registry=consul://127.0.0.1:{}", consul.port))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let gateway = Gateway::start(&bootstrap_of(listen, "DELTA_GRPC"));
    let mut client = Client::new(port);
    assert_eq!(client.get("/").text(), "first");
    moved.store(true, Relaxed);
    eventually("the other endpoint", || client.get("/").text() == "second");
    drop(gateway);
    let _ = running.kill();
    running.wait().unwrap();
}

#[test]
fn it_listens_and_ends_with_0() {
    let directory = Directory::new();
    let (listen, admin) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let mut running = control(&directory, listen).args(["--admin", &admin]).stderr(Stdio::null()).spawn().unwrap();
    eventually("it listens", || std::net::TcpStream::connect(&admin).is_ok());
    let hung_up = Command::new("kill").args(["-HUP", &running.id().to_string()]).status().unwrap();
    assert!(hung_up.success() && std::net::TcpStream::connect(&admin).is_ok());
    let ended = Command::new("kill").arg(running.id().to_string()).status().unwrap();
    assert!(ended.success() && running.wait().unwrap().success());
}

#[test]
fn a_file_without_a_token_lets_nobody_in() {
    let directory = Directory::new();
    let file = directory.put("tokens", "\n\n");
    let output = control(&directory, free_port()).arg("--token-file").arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("error: there is no token in "), "{said}");
}

#[test]
fn what_is_wrong_with_a_store_is_said_at_once() {
    let directory = Directory::new();
    let password = directory.put("password", "hidden\n");
    let password = password.to_str().unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let control = |arguments: &[&str]| {
        tidegate(&[&["control", "--listen", &listen, "--admin", "127.0.0.1:0"], arguments].concat())
    };
    for (arguments, reason) in [
        (&["--store", "etcds://localhost/t"][..], "error: --store: TLS is spoken with etcd+https://HOST"),
        (&["--store", "etcd://me:hidden@localhost"], "error: --store: a password stands in no URL"),
        (&["--store", "etcd://me@localhost"], "error: etcd: a password is required for the user 'me'"),
        (&["--store", "etcd://localhost", "--store-password-file", password], "error: etcd: a password without a user"),
        (
            &["--store", "kept", "--store-password-file", password],
            "error: --store-password-file: that is for etcd, not for kept",
        ),
        (&["--store", "etcd://me@localhost", "--store-password-file", "none"], "error: --store-password-file: none: "),
        (&["--store", "etcd+https://localhost/t"], "error: etcd: etcd+https:// requires --store-ca FILE"),
        (&["--store", "etcd+https://localhost/t", "--store-ca", "none"], "error: TLS of etcd: cannot read none: "),
        (&["--store", "kept", "--store-ca", password], "error: --store-ca: that is for etcd, not for kept"),
        (&["--source", "etcd://localhost/t"], "error: --source: etcd keeps what is changed"),
    ] {
        let (code, said) = control(arguments);
        assert!(code == Some(1) && said.contains(reason) && !said.contains("hidden"), "{arguments:?}: {said}");
    }
}

#[test]
fn what_is_wrong_with_the_files_of_a_registry_is_said_at_once() {
    let directory = Directory::new();
    let file = directory.put("ca.pem", "nothing\n").display().to_string();
    let (listen, source) = (format!("127.0.0.1:{}", free_port()), directory.0.display().to_string());
    let of = |name: &str| format!("{name}={file}");
    for (flags, reason) in [
        (
            &["--registry", "consul+https://a"][..],
            "registry 'consul': consul+https:// requires --registry-ca consul=FILE",
        ),
        (&["--registry-ca", &of("b")], "error: --registry-ca: there is no registry 'b'"),
        (&["--registry-ca", "b"], "error: --registry-ca: 'b' is not NAME=FILE"),
        (&["--registry", "nacos+https://a", "--registry-ca", &of("nacos")], "error: TLS of registry 'nacos': "),
        (
            &["--registry", "nacos+https://a", "--registry-certificate", &of("nacos")],
            "error: --registry-certificate: --registry-key nacos=FILE is required, too",
        ),
        (
            &["--registry-key", &of("x"), "--registry-certificate", &of("x"), "--registry", "x=consul+https://a"],
            "error: --registry-certificate: --registry-ca x=FILE is required, too",
        ),
    ] {
        let (code, said) = tidegate(&[&["control", "--source", &source, "--listen", &listen], flags].concat());
        assert!(code == Some(1) && said.contains(reason), "{flags:?}: {said}");
    }
}

/// It waits for etcd, listens to nobody meanwhile, and ends when it is told to.
#[test]
fn a_store_that_is_not_there_yet_is_waited_for() {
    let (listen, admin) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let store = format!("etcd://127.0.0.1:{}", free_port());
    let mut running = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["control", "--listen", &format!("127.0.0.1:{listen}"), "--admin", &admin, "--store", &store])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(running.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("etcd cannot be read yet")));
    assert!(std::net::TcpStream::connect(("127.0.0.1", listen)).is_err());
    let ended = Command::new("kill").arg(running.id().to_string()).status().unwrap();
    assert!(ended.success() && running.wait().unwrap().success());
}
