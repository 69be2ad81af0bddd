//! What stats, states and waits say of discovery: streams, starts, answers that are rejected or name something twice.

use crate::discovery::{CDS, EDS, cluster, endpoints, listener, routes, serving_from, with_admin};
use crate::support::control_plane::ControlPlane;
use crate::support::gateway::{eventually, free_port};
use crate::support::{Client, Gateway, Upstream};

/// With each subscription that a stream carries, as if each had one of its own; the bare place is ADS's.
#[test]
fn a_stream_counts_with_what_it_carries() {
    let (aggregated, own, admin) = (ControlPlane::start(), ControlPlane::start(), free_port());
    let bootstrap = with_admin(&aggregated.bootstrap("GRPC"), admin);
    let second = own.bootstrap("GRPC").split_once("  clusters:\n").unwrap().1.replace("xds", "second");
    let _gateway = Gateway::spawn(&(bootstrap + &second), &[]);
    assert_eq!([aggregated.asked(), aggregated.asked()], ["connected", "Cluster v n []"]);
    let source = "api_config_source: { api_type: GRPC, transport_api_version: V3, grpc_services: [{ envoy_grpc: { cluster_name: second } }] }";
    let from_second = |name: &str, more: &str| {
        cluster(name).replace("ads: {}", source).replace("type: EDS", &format!("type: EDS{more}"))
    };
    aggregated.answer("1", "a", &[from_second("a", ""), from_second("b", ", alt_stat_name: beta")]);
    assert_eq!([own.asked(), own.asked()], ["connected", "ClusterLoadAssignment v n [a,b]"]);
    own.answer_by("EDS", "1", "b", &[endpoints("a", 1), endpoints("b", 1)]);
    assert_eq!(own.asked(), "ClusterLoadAssignment v1 nb [a,b]");
    let shown = |text: &str| Client::new(admin).get("/stats?filter=control_plane.(ident|conn)").text().contains(text);
    for name in ["cluster.a", "cluster.beta"] {
        eventually("who it is", || shown(&format!("{name}.control_plane.identifier: \"EDS\"\n")));
        assert!(shown(&format!("{name}.control_plane.connected_state: 1\n")));
    }
    assert!(shown("\ncontrol_plane.identifier: \"\"\n"), "ADS has not said who it is");
    let status = Client::new(admin).get("/status").text();
    assert!(status.contains("control plane   ads connected\n"), "{status}");
}

/// Readiness checks read these while a process starts.
#[test]
fn a_start_is_told_step_by_step() {
    let upstream = Upstream::text("hello");
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let _gateway = Gateway::spawn(&with_admin(&control.bootstrap("GRPC"), admin), &[]);
    let stats = || Client::new(admin).get("/stats?filter=^(server.(live|state)|.*workers_started|.*warming.*)$").text();
    let shows = |what: &str| eventually(what, || what.split(", ").all(|line| stats().contains(&format!("{line}\n"))));
    let ready = || Client::new(admin).get("/ready").text();
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster v n []"]);
    shows("listener_manager.workers_started: 0, server.live: 1, server.state: 2");
    assert_eq!(ready(), "PRE_INITIALIZING\n");
    control.answer("1", "a", &[cluster("up")]);
    control.asked();
    shows("cluster.up.warming_state: 1");
    control.answer("1", "b", &[endpoints("up", upstream.port)]);
    shows("cluster.up.warming_state: 0, server.live: 1, server.state: 3, listener_manager.workers_started: 0");
    assert_eq!(ready(), "INITIALIZING\n");
    control.answer("1", "c", &[listener("main", port)]);
    control.answer("1", "d", &[routes("up")]);
    shows("server.state: 0, server.live: 1, listener_manager.workers_started: 1");
    shows("listener_manager.total_listeners_warming: 0");
    let late = listener("late", free_port()).replace("route_config_name: routes", "route_config_name: late");
    control.answer("2", "e", &[listener("main", port), late]);
    shows("listener_manager.total_listeners_warming: 1");
    control.answer("3", "f", &[listener("main", port)]);
    shows("listener_manager.total_listeners_warming: 0");
}

/// A response is rejected for everybody who asks for its type, also where it does not name them.
#[test]
fn a_rejected_first_assignment_holds_up_nobody() {
    for dialect in ["GRPC", "DELTA_GRPC"] {
        let (control, admin) = (ControlPlane::start(), free_port());
        let _gateway = Gateway::spawn(&with_admin(&control.bootstrap(dialect), admin), &[]);
        assert_eq!(control.asked(), "connected");
        control.asked();
        let (listeners, bad) = if dialect == "GRPC" {
            control.answer("1", "a", &[cluster("bad"), cluster("other")]);
            assert_eq!(control.asked(), "ClusterLoadAssignment v n [bad,other]");
            let bad = format!("{{ '@type': {EDS}, cluster_name: bad, endpoints: [{{ priority: 200 }}] }}");
            control.answer("1", "b", &[bad]);
            ("Listener v n []", "ClusterLoadAssignment v nb [bad,other] !")
        } else {
            control.change(CDS, "a", &[("bad", "1", cluster("bad")), ("other", "1", cluster("other"))], &[]);
            assert_eq!(control.asked(), "ClusterLoadAssignment n +[bad,other] -[] has[]");
            let twice = [("bad", "1", endpoints("bad", 1)), ("bad", "1", endpoints("bad", 1))];
            control.change(EDS, "b", &twice, &[]);
            ("Listener n +[] -[] has[]", "ClusterLoadAssignment nb +[] -[] has[] !")
        };
        let next: Vec<_> = (0..3).map(|_| control.asked()).collect();
        assert_eq!(next[1..], [listeners, bad]);
        for name in ["bad", "other"] {
            let told = Client::new(admin).get("/stats?filter=update_rejected").text();
            assert!(told.contains(&format!("cluster.{name}.update_rejected: 1\n")), "{told}");
        }
    }
}

#[test]
fn of_two_routes_of_one_name_the_first_serves() {
    let upstream = Upstream::text("hello");
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let _gateway = serving_from(&control, &with_admin(&control.bootstrap("GRPC"), admin), &upstream, port);
    control.answer("2", "e", &[routes("none"), routes("up")]);
    assert_eq!(control.asked(), "RouteConfiguration v2 ne [routes]");
    let mut client = Client::new(port);
    eventually("the first", || client.get("/").status == 503);
    let told = Client::new(admin).get("/stats?filter=rds.routes.(update_success|config_reload)$").text();
    assert!(told.contains("config_reload: 2\n") && told.contains("update_success: 2\n"), "{told}");
    control.answer("3", "f", &[routes("none"), routes("up")]);
    assert_eq!(control.asked(), "RouteConfiguration v3 nf [routes]");
    assert_eq!(client.get("/").status, 503, "the first acts already");
}
