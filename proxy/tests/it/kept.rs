//! Starts without the control plane: what it said last is kept on disk and served until it is there again.

use crate::discovery::{cluster, endpoints, listener, routes};
use crate::support::control_plane::{Own, bootstrap_of};
use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, Upstream};

/// With a control plane that is away a start serves what was kept, says so, and follows the control plane once it is there:
/// what that no longer names is gone.
#[test]
fn a_start_without_the_control_plane_serves_what_was_kept() {
    for dialect in ["GRPC", "DELTA_GRPC"] {
        let upstream = Upstream::text("hello");
        let (port, admin, control, directory) = (free_port(), free_port(), free_port(), Directory::new());
        let kept = directory.0.join("kept");
        let flags = ["--snapshot-dir", kept.to_str().unwrap()];
        let resources = |names: &[&str]| {
            let mut resources = vec![listener("main", port), routes("up")];
            resources.extend(names.iter().flat_map(|name| [cluster(name), endpoints(name, upstream.port)]));
            resources
        };
        let bootstrap = bootstrap_of(control, dialect).replace(
            "static_resources:",
            &format!("admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\nstatic_resources:"),
        );
        let running = Own::start(&directory, control, &resources(&["up", "old"]));
        let mut gateway = Gateway::start_with(&bootstrap, &flags);
        gateway.signal("INT");
        assert!(gateway.wait().success());
        drop(running);

        let mut gateway = Gateway::spawn(&bootstrap, &flags);
        gateway.wait_for("what was kept on disk is served");
        gateway.wait_for("listening");
        let mut client = Client::new(port);
        assert_eq!(client.get("/").text(), "hello", "{dialect}");
        let status = || Client::new(admin).get("/status").text();
        assert!(status().contains("KEPT ON DISK at ") && status().contains("clusters        3 (0 warming)"));

        let _running = Own::start(&directory, control, &resources(&["up"]));
        eventually("the control plane", || {
            let status = status();
            !status.contains("KEPT ON DISK") && status.contains("clusters        2 (0 warming)")
        });
        assert_eq!(client.get("/").text(), "hello", "{dialect}");
    }
}

/// Nothing of a type may be what was kept of it: that is not waited for either, though it may take for ever to come.
#[test]
fn a_start_does_not_wait_for_what_was_not_kept() {
    for dialect in ["GRPC", "DELTA_GRPC"] {
        let (port, control, directory) = (free_port(), free_port(), Directory::new());
        let kept = directory.0.join("kept");
        let flags = ["--snapshot-dir", kept.to_str().unwrap()];
        let answer = "direct_response: { status: 200, body: { inline_string: hello } }";
        let routes = routes("up").replace("route: { cluster: up }", answer);
        assert!(routes.contains(answer));
        let bootstrap = bootstrap_of(control, dialect);
        let running = Own::start(&directory, control, &[listener("main", port), routes]);
        let mut gateway = Gateway::start_with(&bootstrap, &flags);
        gateway.signal("INT");
        assert!(gateway.wait().success());
        drop(running);
        let mut gateway = Gateway::spawn(&bootstrap, &flags);
        gateway.wait_for("what was kept on disk is served");
        gateway.wait_for("listening");
        assert_eq!(Client::new(port).get("/").text(), "hello", "{dialect}");
    }
}
