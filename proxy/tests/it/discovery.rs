//! Resources from a control plane over gRPC, both dialects: order, answers, rejections, reconnects, and what serves
//! meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tidegate_xds::pb::google::protobuf::Any;

use crate::support::control_plane::{Asked, ControlPlane, any};
use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, Upstream};

pub const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RTDS: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

pub fn cluster(name: &str) -> String {
    format!("{{ '@type': {CDS}, name: {name}, type: EDS, eds_cluster_config: {{ eds_config: {{ ads: {{}} }} }} }}")
}

pub fn endpoints(name: &str, port: u16) -> String {
    format!(
        "{{ '@type': {EDS}, cluster_name: {name}, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}] }}"
    )
}

pub fn listener(name: &str, port: u16) -> String {
    format!(
        "{{ '@type': {LDS}, name: {name}, address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}, filter_chains: [{{ filters: [{{ name: http, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, rds: {{ route_config_name: routes, config_source: {{ ads: {{}} }} }}, http_filters: [{{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}] }} }}] }}] }}"
    )
}

pub fn routes(cluster: &str) -> String {
    format!(
        "{{ '@type': {RDS}, name: routes, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: {cluster} }} }}] }}] }}"
    )
}

/// Serves `up` from a control plane that speaks state of the world.
fn serving(control: &ControlPlane, upstream: &Upstream, port: u16) -> Gateway {
    serving_from(control, &control.bootstrap("GRPC"), upstream, port)
}

pub fn serving_from(control: &ControlPlane, bootstrap: &str, upstream: &Upstream, port: u16) -> Gateway {
    let mut gateway = Gateway::spawn(bootstrap, &[]);
    assert_eq!(control.asked(), "connected");
    let first = control.next();
    assert!(matches!(&first, Asked::Sotw(asked) if asked.node.as_ref().is_some_and(|node| node.id == "node")));
    assert_eq!(first.short(), "Cluster v n []");
    control.answer("1", "a", &[cluster("up")]);
    let second = control.next();
    assert!(matches!(&second, Asked::Sotw(asked) if asked.node.is_none()), "the node goes once");
    assert_eq!(
        second.short(),
        "ClusterLoadAssignment v n [up]",
        "endpoints are asked for before clusters are accepted"
    );
    control.answer("1", "b", &[endpoints("up", upstream.port)]);
    assert_eq!(control.asked(), "Cluster v1 na []");
    assert_eq!(control.asked(), "Listener v n []", "listeners follow clusters, before what let them begin is answered");
    assert_eq!(control.asked(), "ClusterLoadAssignment v1 nb [up]");
    control.answer("1", "c", &[listener("main", port)]);
    assert_eq!(control.asked(), "RouteConfiguration v n [routes]");
    assert_eq!(control.asked(), "Listener v1 nc []");
    control.answer("1", "d", &[routes("up")]);
    assert_eq!(control.asked(), "RouteConfiguration v1 nd [routes]");
    gateway.wait_for("listening");
    gateway
}

#[test]
fn everything_comes_in_order_and_changes_while_it_serves() {
    let (first, second) = (Upstream::text("first"), Upstream::text("second"));
    let (control, port) = (ControlPlane::start(), free_port());
    let _gateway = serving(&control, &first, port);
    let mut client = Client::new(port);
    assert_eq!(client.get("/").text(), "first");
    control.answer("2", "e", &[endpoints("up", second.port)]);
    assert_eq!(control.asked(), "ClusterLoadAssignment v2 ne [up]");
    eventually("the new endpoint", || client.get("/").text() == "second");
    control.answer("2", "f", &[routes("none")]);
    assert_eq!(control.asked(), "RouteConfiguration v2 nf [routes]");
    eventually("the new routes", || client.get("/").status == 503);
}

#[test]
fn one_bad_cluster_is_rejected_and_the_others_act() {
    let upstream = Upstream::text("hello");
    let (control, port) = (ControlPlane::start(), free_port());
    let _gateway = serving(&control, &upstream, port);
    let bad = format!("{{ '@type': {CDS}, name: bad, type: STATIC, lb_policy: CLUSTER_PROVIDED }}");
    control.answer("2", "e", &[cluster("up"), bad, cluster("more")]);
    assert_eq!(control.asked(), "ClusterLoadAssignment v1 nb [more,up]");
    control.answer("2", "f", &[endpoints("more", upstream.port)]);
    let mut both = [control.next(), control.next()];
    both.sort_by_key(Asked::short);
    assert_eq!(both[0].short(), "Cluster v1 ne [] !");
    let Asked::Sotw(rejection) = &both[0] else { panic!("not state of the world") };
    let detail = rejection.error_detail.as_ref().unwrap();
    assert_eq!(detail.code, 13);
    assert!(detail.message.starts_with("Error adding/updating cluster(s) bad: "), "{}", detail.message);
    assert_eq!(both[1].short(), "ClusterLoadAssignment v2 nf [more,up]");
    let mut client = Client::new(port);
    assert_eq!(client.get("/").text(), "hello");
    control.answer("2", "g", &[routes("more")]);
    eventually("the cluster beside the bad one", || client.get("/").text() == "hello");
}

#[test]
fn what_serves_goes_on_without_the_control_plane_and_says_what_it_has_on_the_next_stream() {
    let upstream = Upstream::text("hello");
    let (control, port) = (ControlPlane::start(), free_port());
    let _gateway = serving(&control, &upstream, port);
    control.hang_up();
    let mut client = Client::new(port);
    assert_eq!(client.get("/").text(), "hello");
    let again: Vec<String> = (0..5).map(|_| control.asked()).collect();
    assert_eq!(
        again,
        [
            "connected",
            "Cluster v1 n []",
            "ClusterLoadAssignment v1 n [up]",
            "Listener v1 n []",
            "RouteConfiguration v1 n [routes]",
        ]
    );
    control.answer_as(CDS, "2", "a", Vec::new());
    assert_eq!(control.asked(), "ClusterLoadAssignment v1 n []");
    assert_eq!(control.asked(), "Cluster v2 na []");
    eventually("a cluster that is gone", || client.get("/").status == 503);
}

/// A name within a resource may be that of another one, or of another source's.
#[test]
fn what_calls_itself_otherwise_than_it_came_is_refused() {
    let control = ControlPlane::start();
    let _gateway = Gateway::spawn(&control.bootstrap("DELTA_GRPC"), &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Cluster n +[] -[] has[]");
    control.change(CDS, "a", &[("up", "1", cluster("up")), ("other", "1", cluster("other"))], &[]);
    assert_eq!(control.asked(), "ClusterLoadAssignment n +[other,up] -[] has[]");
    assert_eq!(control.asked(), "Cluster na +[] -[] has[]");
    control.change(EDS, "b", &[("up", "1", endpoints("other", 1))], &[]);
    // Whoever waited for it goes on meanwhile, and asks for more.
    let refusal = (0..3).find_map(|_| match control.next() {
        Asked::Delta(asked) => asked.error_detail,
        _ => None,
    });
    let said = refusal.unwrap().message;
    assert!(said.contains("Unexpected envoy.config.endpoint.v3.ClusterLoadAssignment (expecting up): other"), "{said}");
}

#[test]
fn delta_brings_only_what_changed_and_takes_away_by_name() {
    let upstream = Upstream::text("hello");
    let (control, port) = (ControlPlane::start(), free_port());
    let mut gateway = Gateway::spawn(&control.bootstrap("DELTA_GRPC"), &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Cluster n +[] -[] has[]");
    control.change(CDS, "a", &[("up", "1", cluster("up")), ("other", "1", cluster("other"))], &[]);
    assert_eq!(control.asked(), "ClusterLoadAssignment n +[other,up] -[] has[]");
    // While it starts nothing is served that could break: clusters are acknowledged at once.
    assert_eq!(control.asked(), "Cluster na +[] -[] has[]");
    control.change(EDS, "b", &[("up", "1", endpoints("up", upstream.port))], &[]);
    assert_eq!(control.asked(), "ClusterLoadAssignment nb +[] -[] has[]");
    control.change(EDS, "c", &[("other", "1", endpoints("other", upstream.port))], &[]);
    assert_eq!(control.asked(), "Listener n +[] -[] has[]");
    assert_eq!(control.asked(), "ClusterLoadAssignment nc +[] -[] has[]");
    control.change(LDS, "d", &[("main", "1", listener("main", port))], &[]);
    assert_eq!(control.asked(), "RouteConfiguration n +[routes] -[] has[]");
    assert_eq!(control.asked(), "Listener nd +[] -[] has[]");
    control.change(RDS, "e", &[("routes", "1", routes("up"))], &[]);
    assert_eq!(control.asked(), "RouteConfiguration ne +[] -[] has[]");
    gateway.wait_for("listening");
    let mut client = Client::new(port);
    assert_eq!(client.get("/").text(), "hello");
    // After that only once they are warm.
    control.change(CDS, "g", &[("late", "1", cluster("late"))], &[]);
    assert_eq!(control.asked(), "ClusterLoadAssignment n +[late] -[] has[]");
    control.change(EDS, "h", &[("late", "1", endpoints("late", upstream.port))], &[]);
    let mut both = [control.asked(), control.asked()];
    both.sort();
    assert_eq!(both, ["Cluster ng +[] -[] has[]", "ClusterLoadAssignment nh +[] -[] has[]"]);
    control.change(CDS, "i", &[], &["late"]);
    assert_eq!(control.asked(), "ClusterLoadAssignment n +[] -[late] has[]");
    assert_eq!(control.asked(), "Cluster ni +[] -[] has[]");
    control.change(CDS, "f", &[], &["other"]);
    assert_eq!(control.asked(), "ClusterLoadAssignment n +[] -[other] has[]");
    assert_eq!(control.asked(), "Cluster nf +[] -[] has[]");
    control.hang_up();
    let again: Vec<String> = (0..5).map(|_| control.asked()).collect();
    assert_eq!(
        again,
        [
            "connected",
            "Cluster n +[] -[] has[up@1]",
            "ClusterLoadAssignment n +[up] -[] has[up@1]",
            "Listener n +[] -[] has[main@1]",
            "RouteConfiguration n +[routes] -[] has[routes@1]",
        ]
    );
    assert_eq!(client.get("/").text(), "hello");
}

#[test]
fn a_control_plane_that_is_no_cluster_is_refused() {
    let control = ControlPlane::start();
    let mut gateway =
        Gateway::spawn(&control.bootstrap("GRPC").replace("cluster_name: xds }", "cluster_name: nowhere }"), &[]);
    gateway.wait_for("Unknown gRPC client cluster 'nowhere'");
    assert!(!gateway.wait().success());
}

/// Not even by a resource that comes later: control planes are behind what the bootstrap says.
#[test]
fn a_source_behind_no_static_cluster_is_refused_with_its_resource() {
    const REASON: &str = "must have a statically defined non-EDS cluster: 'late' does not exist, was added via api";
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let own = "{ api_config_source: { api_type: GRPC, transport_api_version: V3, grpc_services: [{ envoy_grpc: { cluster_name: late } }] } }";
    let lost = listener("main", port).replace("config_source: { ads: {} }", &format!("config_source: {own}"));
    let bootstrap = with_admin(&control.bootstrap("GRPC"), admin);
    let _gateway = Gateway::spawn(&bootstrap, &[]);
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster v n []"]);
    let late = format!("{{ '@type': {CDS}, name: late, load_assignment: {{ cluster_name: late }} }}");
    control.answer("1", "a", &[late]);
    assert_eq!([control.asked(), control.asked()], ["Listener v n []", "Cluster v1 na []"]);
    control.answer("1", "b", &[lost]);
    assert_eq!(control.asked(), "Listener v nb [] !");
    let told = Client::new(admin).get("/config_dump").text();
    assert!(told.contains(REASON), "{told}");
}

#[test]
fn only_a_stream_of_its_own_needs_a_version() {
    let control = ControlPlane::start();
    let bootstrap = control.bootstrap("GRPC").replace("    transport_api_version: V3\n", "");
    let _gateway = Gateway::spawn(&bootstrap, &[]);
    assert_eq!(control.asked(), "connected");
    let own = "{ api_config_source: { api_type: GRPC, grpc_services: [{ envoy_grpc: { cluster_name: xds } }] } }";
    let bootstrap = bootstrap.replace(
        "cds_config: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s }",
        &format!("cds_config: {own}"),
    );
    let mut refused = Gateway::spawn(&bootstrap, &[]);
    refused.wait_for("V2 (and AUTO) xDS transport protocol versions are deprecated");
    assert!(!refused.wait().success());
}

#[test]
fn ads_without_a_stream_is_refused() {
    let bootstrap = "{ node: { id: node, cluster: test }, dynamic_resources: { cds_config: { ads: {} } } }";
    let mut gateway = Gateway::spawn(bootstrap, &[]);
    gateway.wait_for("ADS must be configured to support an ADS config source");
    assert!(!gateway.wait().success());
}

/// A bootstrap with a listener of its own, beside what the control plane says.
pub fn with_admin(bootstrap: &str, admin: u16) -> String {
    let admin = format!("admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}");
    bootstrap.replace("static_resources:", &format!("{admin}\nstats_flush_interval: 0.1s\nstatic_resources:"))
}

fn with_static_listener(control: &ControlPlane, dialect: &str, port: u16) -> String {
    let own = listener("own", port).replace("rds: { route_config_name: routes, config_source: { ads: {} } }", "route_config: { virtual_hosts: [{ name: all, domains: ['*'], routes: [{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: own } } }] }] }");
    let own = own.replace(&format!("'@type': {LDS}, "), "");
    format!("{}  listeners: [{own}]\n", control.bootstrap(dialect))
}

#[test]
fn what_is_in_the_bootstrap_is_not_the_control_planes_to_change() {
    let (control, port) = (ControlPlane::start(), free_port());
    let mut gateway = Gateway::spawn(&with_static_listener(&control, "DELTA_GRPC", port), &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Cluster n +[] -[] has[]");
    let other = format!("{{ '@type': {CDS}, name: xds, type: STATIC }}");
    control.change(CDS, "a", &[("xds", "1", other)], &[]);
    assert_eq!(control.asked(), "Listener n +[] -[] has[]");
    assert_eq!(control.asked(), "Cluster na +[] -[] has[]");
    control.change(LDS, "b", &[("own", "1", listener("own", free_port()))], &[]);
    assert_eq!(control.asked(), "Listener nb +[] -[] has[]");
    gateway.wait_for("listening");
    control.change(CDS, "c", &[], &["xds"]);
    assert_eq!(control.asked(), "Cluster nc +[] -[] has[]");
    control.change(LDS, "d", &[], &["own"]);
    assert_eq!(control.asked(), "Listener nd +[] -[] has[]");
    assert_eq!(Client::new(port).get("/").text(), "own");
    control.hang_up();
    assert_eq!(control.asked(), "connected", "the cluster of the control plane is still there");
}

#[test]
fn what_cannot_be_read_is_rejected_whole_and_a_start_goes_on() {
    let (control, port) = (ControlPlane::start(), free_port());
    let mut gateway = Gateway::spawn(&with_static_listener(&control, "GRPC", port), &[]);
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster v n []"]);
    let garbage = Any { type_url: CDS.to_owned(), value: vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f, 1] };
    control.answer_as(CDS, "1", "a", vec![any(&cluster("good")), garbage]);
    assert_eq!(control.asked(), "Listener v n []", "nothing of it acts, and nothing waits for it");
    assert_eq!(control.asked(), "Cluster v na [] !");
    control.answer_as(LDS, "1", "b", vec![any(&cluster("good"))]);
    assert_eq!(control.asked(), "Listener v nb [] !");
    gateway.wait_for("listening");
    assert_eq!(Client::new(port).get("/").text(), "own");
}

#[test]
fn a_bad_first_assignment_lets_the_others_go_on() {
    let (control, port) = (ControlPlane::start(), free_port());
    let mut gateway = Gateway::spawn(&with_static_listener(&control, "GRPC", port), &[]);
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster v n []"]);
    control.answer("1", "a", &[cluster("up")]);
    assert_eq!(control.asked(), "ClusterLoadAssignment v n [up]");
    let bad = format!(
        "{{ '@type': {EDS}, cluster_name: up, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: no.ip, port_value: 1 }} }} }} }}] }}] }}"
    );
    control.answer("1", "b", &[bad]);
    assert_eq!(control.asked(), "Cluster v1 na []");
    assert_eq!(control.asked(), "Listener v n []");
    assert_eq!(control.asked(), "ClusterLoadAssignment v nb [up] !");
    control.answer_as(LDS, "1", "c", Vec::new());
    gateway.wait_for("listening");
}

#[test]
fn a_silent_control_plane_is_waited_for_as_long_as_it_says() {
    let (control, port) = (ControlPlane::start(), free_port());
    let bootstrap = with_static_listener(&control, "GRPC", port).replace("timeout: 0s", "timeout: 0.2s");
    let mut gateway = Gateway::spawn(&bootstrap, &[]);
    gateway.wait_for("gave up waiting for the first answer");
    gateway.wait_for("listening");
    assert_eq!(Client::new(port).get("/").text(), "own");
}

#[test]
fn a_start_that_waits_can_be_ended() {
    let control = ControlPlane::start();
    let mut gateway = Gateway::spawn(&control.bootstrap("GRPC"), &[]);
    assert_eq!(control.asked(), "connected");
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}

#[test]
fn a_cluster_that_comes_back_is_waited_for_again() {
    let (control, port) = (ControlPlane::start(), free_port());
    let upstream = Upstream::text("hello");
    let _gateway = serving(&control, &upstream, port);
    control.answer_as(CDS, "2", "e", Vec::new());
    assert_eq!(control.asked(), "ClusterLoadAssignment v1 nb []");
    assert_eq!(control.asked(), "Cluster v2 ne []");
    control.answer("3", "f", &[cluster("up").replace("ads: {}", "ads: {}, initial_fetch_timeout: 0.1s")]);
    assert_eq!(control.asked(), "ClusterLoadAssignment v1 nb [up]");
    assert_eq!(control.asked(), "Cluster v3 nf []", "it goes on without endpoints that do not come");
    control.answer("2", "g", &[endpoints("up", upstream.port)]);
    assert_eq!(control.asked(), "ClusterLoadAssignment v2 ng [up]");
    let mut client = Client::new(port);
    eventually("the endpoints that came late", || client.get("/").text() == "hello");
}

#[test]
fn updates_good_and_bad_under_traffic_fail_no_request() {
    let upstreams = [Upstream::text("hello"), Upstream::text("hello")];
    let (control, port) = (ControlPlane::start(), free_port());
    let _gateway = serving(&control, &upstreams[0], port);
    let done = Arc::new(AtomicBool::new(false));
    let traffic: Vec<_> = (0..4)
        .map(|_| {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                let mut client = Client::new(port);
                let mut answered = 0;
                while !done.load(Relaxed) {
                    assert_eq!(client.get("/").text(), "hello");
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    for round in 0..40 {
        let (nonce, port) = (format!("r{round}"), upstreams[round % 2].port);
        let changed = cluster("up").replace("type: EDS", &format!("type: EDS, connect_timeout: {}s", round + 1));
        let bad = format!("{{ '@type': {CDS}, name: bad, type: STATIC, lb_policy: CLUSTER_PROVIDED }}");
        match round % 4 {
            0 => control.answer(&nonce, &nonce, &[endpoints("up", port)]),
            1 => control.answer(&nonce, &nonce, &[changed, bad]),
            2 => control.answer(&nonce, &nonce, &[routes("up")]),
            _ => control.answer(
                &nonce,
                &nonce,
                &[format!("{{ '@type': {RDS}, name: routes, virtual_hosts: [{{ name: a, domains: [] }}] }}")],
            ),
        }
        // Each is taken before the next.
        eventually("an answer", || control.asked().contains(&format!(" n{nonce} ")));
    }
    done.store(true, Relaxed);
    let answered: usize = traffic.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(answered > 0);
}

#[test]
fn names_with_times_of_their_own_are_asked_for_together_and_once() {
    for dialect in ["GRPC", "DELTA_GRPC"] {
        let control = ControlPlane::start();
        let _gateway = Gateway::spawn(&control.bootstrap(dialect), &[]);
        assert_eq!(control.asked(), "connected");
        let first = control.asked();
        let slow = cluster("slow").replace("ads: {}", "ads: {}, initial_fetch_timeout: 60s");
        let (both, ask) = if dialect == "GRPC" {
            assert_eq!(first, "Cluster v n []");
            control.answer("1", "a", &[cluster("quick"), slow]);
            (endpoints("quick", 1), "ClusterLoadAssignment v n [quick,slow]")
        } else {
            control.change(CDS, "a", &[("quick", "1", cluster("quick")), ("slow", "1", slow)], &[]);
            (endpoints("quick", 1), "ClusterLoadAssignment n +[quick,slow] -[] has[]")
        };
        assert_eq!(control.asked(), ask);
        if dialect == "GRPC" {
            assert_eq!(control.asked(), "Cluster v1 na []");
            control.answer("1", "b", &[both]);
            assert_eq!(control.asked(), "ClusterLoadAssignment v1 nb [quick,slow]");
        } else {
            assert_eq!(control.asked(), "Cluster na +[] -[] has[]");
            control.change(EDS, "b", &[("quick", "1", both)], &["slow"]);
            assert_eq!(control.asked(), "Listener n +[] -[] has[]", "there is no slow");
            assert_eq!(control.asked(), "ClusterLoadAssignment nb +[] -[] has[]");
        }
    }
}

/// The admin interface says which version acts, what was refused and why, and what warms; so does `tidegate status`.
#[test]
fn what_became_of_each_resource_is_shown() {
    let upstream = Upstream::text("hello");
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let bootstrap = with_admin(&control.bootstrap("GRPC"), admin);
    let _gateway = serving_from(&control, &bootstrap, &upstream, port);
    eventually("times of all four", || {
        let told = Client::new(admin).get("/stats?filter=update_duration").text();
        told.lines().count() == 4 && !told.contains("No recorded values")
    });
    let bad = cluster("up").replace("type: EDS", "type: EDS, lb_policy: CLUSTER_PROVIDED");
    control.answer("2", "e", &[bad, cluster("more")]);
    assert_eq!(control.asked(), "ClusterLoadAssignment v1 nb [more,up]");
    let mut client = Client::new(admin);
    let mut dump = |resource: &str| -> serde_json::Value {
        serde_json::from_str(&client.get(&format!("/config_dump?resource={resource}")).text()).unwrap()
    };
    let clusters = &dump("dynamic_active_clusters")["configs"][0];
    assert_eq!((&clusters["version_info"], &clusters["client_status"]), (&"1".into(), &"NACKED".into()));
    assert_eq!(clusters["error_state"]["version_info"], "2");
    assert_eq!(clusters["error_state"]["failed_configuration"]["lb_policy"], "CLUSTER_PROVIDED");
    assert!(clusters["error_state"]["details"].as_str().unwrap().starts_with("lb_policy"), "{clusters}");
    let warming = &dump("dynamic_warming_clusters")["configs"][0];
    assert_eq!((&warming["cluster"]["name"], &warming["version_info"]), (&"more".into(), &"2".into()));
    let active = &dump("dynamic_listeners")["configs"][0];
    assert_eq!((&active["active_state"]["version_info"], &active["client_status"]), (&"1".into(), &"ACKED".into()));
    let program = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let told = { program }.args(["status", "--admin", &format!("127.0.0.1:{admin}")]).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    for line in [
        "state           LIVE, up ",
        "control plane   ads connected",
        "rejected        1\n  Cluster 'up' version 2, since ",
    ] {
        assert!(told.contains(line), "{told}");
    }
    let section = |index: usize| {
        let told = Client::new(admin).get("/config_dump").text();
        serde_json::from_str::<serde_json::Value>(&told).unwrap()["configs"][index].take()
    };
    assert_eq!(section(1)["version_info"], "2", "what changed something, whatever was refused beside it");
    let refused = listener("refused", port);
    control.answer("2", "f", &[listener("main", port), refused]);
    assert_eq!(control.asked(), "Listener v1 nf [] !");
    let listeners = section(2);
    assert_eq!(listeners["version_info"], "1", "nothing changed");
    let named = listeners["dynamic_listeners"].as_array().unwrap().iter().find(|one| one["name"] == "refused").unwrap();
    assert_eq!(named["client_status"], "NACKED");
    assert!(named["error_state"]["details"].as_str().unwrap().contains("duplicate address"), "{named}");
    control.answer("3", "g", &[cluster("up")]);
    control.answer("3", "h", &[listener("main", port)]);
    eventually("nothing wrong any more", || client.get("/status").text().contains("rejected        0\n"));
}

/// A layer of the runtime comes first, acts at once, and goes on with its last good values.
#[test]
fn the_runtime_comes_before_clusters_and_changes_while_it_serves() {
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let layer = "layered_runtime: { layers: [{ name: base, static_layer: { limit: 1, other: 2 } }, { name: rtds, rtds_layer: { name: values, rtds_config: { ads: {}, initial_fetch_timeout: 0s } } }] }";
    let bootstrap = with_static_listener(&control, "DELTA_GRPC", port).replace(
        "static_resources:",
        &format!("{layer}\nadmin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\nstatic_resources:"),
    );
    let mut gateway = Gateway::spawn(&bootstrap, &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Runtime n +[values] -[] has[]");
    let values = |layer: &str| format!("{{ '@type': {RTDS}, name: values, layer: {layer} }}");
    control.change(RTDS, "a", &[("values", "1", values("{ limit: 5 }"))], &[]);
    let both = [control.asked(), control.asked()];
    assert_eq!(both, ["Cluster n +[] -[] has[]", "Runtime na +[] -[] has[]"], "clusters follow the runtime");
    control.change(CDS, "b", &[], &[]);
    assert_eq!([control.asked(), control.asked()], ["Listener n +[] -[] has[]", "Cluster nb +[] -[] has[]"]);
    control.change(LDS, "c", &[], &[]);
    assert_eq!(control.asked(), "Listener nc +[] -[] has[]");
    gateway.wait_for("listening");
    let mut client = Client::new(admin);
    let mut limit = || -> serde_json::Value {
        let shown: serde_json::Value = serde_json::from_str(&client.get("/runtime").text()).unwrap();
        shown["entries"]["limit"]["final_value"].clone()
    };
    assert_eq!(limit(), "5");
    control.change(RTDS, "d", &[("values", "2", values("{ limit: [1] }"))], &[]);
    assert_eq!(control.asked(), "Runtime nd +[] -[] has[] !");
    assert_eq!(limit(), "5");
    control.change(RTDS, "e", &[], &["values"]);
    assert_eq!(control.asked(), "Runtime ne +[] -[] has[]");
    eventually("the layer below", || limit() == "1");
    let told = Client::new(admin).get("/stats?filter=^runtime.update_success").text();
    assert!(told.contains("runtime.update_success: 2\n"), "that it is gone is an update, too: {told}");
}

/// Requests wait for tokens, and who waits is counted.
#[test]
fn a_stream_asks_no_more_often_than_it_may() {
    let (control, admin) = (ControlPlane::start(), free_port());
    let bootstrap = control.bootstrap("GRPC").replace(
        "    grpc_services:",
        "    rate_limit_settings: { max_tokens: 2, fill_rate: 0.25 }\n    grpc_services:",
    );
    let bootstrap = with_admin(&bootstrap, admin);
    let _gateway = Gateway::spawn(&bootstrap, &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Cluster v n []");
    control.answer_as(CDS, "1", "a", Vec::new());
    let began = std::time::Instant::now();
    assert_eq!(control.asked(), "Listener v n []");
    eventually("a request that waits", || {
        let told = Client::new(admin).get("/stats?filter=^control_plane").text();
        told.contains("control_plane.pending_requests: 1\n") && told.contains("control_plane.rate_limit_enforced: 1\n")
    });
    assert_eq!(control.asked(), "Cluster v1 na []");
    assert!(began.elapsed() > std::time::Duration::from_millis(500), "it waited for a token");
    eventually("none waits", || {
        Client::new(admin).get("/stats?filter=^control_plane").text().contains("control_plane.pending_requests: 0\n")
    });
}

/// What a service is told beside messages, and how soon it is tried again.
#[test]
fn a_stream_carries_its_headers_and_is_opened_again_as_its_policy_says() {
    let control = ControlPlane::start();
    let service = "{ envoy_grpc: { cluster_name: xds, retry_policy: { retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } }, initial_metadata: [{ key: x-who, value: one }, { key: X-Who, value: other }, { key: x-host, value: '%HOSTNAME%' }, { key: x-none, value: '' }] }";
    let bootstrap = control.bootstrap("GRPC").replace("{ envoy_grpc: { cluster_name: xds } }", service);
    let _gateway = Gateway::spawn(&bootstrap, &[]);
    // Envoy's own waits would come to a minute.
    for _ in 0..10 {
        assert_eq!([control.asked(), control.asked()], ["connected", "Cluster v n []"]);
        control.hang_up();
    }
    assert_eq!(control.headers("x-who"), ["other"]);
    assert_eq!(control.headers("x-host"), ["%HOSTNAME%"], "no request stands behind it");
    assert!(control.headers("x-none").is_empty());
}

/// A stream of one type lasts as long as somebody needs something from it.
#[test]
fn a_stream_that_nobody_needs_is_closed() {
    let (control, directory, port, admin) = (ControlPlane::start(), Directory::new(), free_port(), free_port());
    let own = "{ api_config_source: { api_type: GRPC, transport_api_version: V3, grpc_services: [{ envoy_grpc: { cluster_name: xds } }] } }";
    let with = listener("main", port).replace("config_source: { ads: {} }", &format!("config_source: {own}"));
    let lds = |resources: &str| directory.put("lds.yaml", &format!("resources: [{resources}]"));
    lds(&with);
    let bootstrap = control.bootstrap("GRPC");
    let (_, clusters) = bootstrap.split_once("static_resources:").unwrap();
    let bootstrap = format!(
        "node: {{ id: node, cluster: test }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
dynamic_resources: {{ lds_config: {{ path_config_source: {{ path: {}/lds.yaml }} }} }}
static_resources:{clusters}",
        directory.0.display()
    );
    let _gateway = Gateway::spawn(&bootstrap, &["--drain-time-s", "1"]);
    assert_eq!([control.asked(), control.asked()], ["connected", "RouteConfiguration v n [routes]"]);
    control.answer("1", "a", &[routes("xds")]);
    assert_eq!(control.asked(), "RouteConfiguration v1 na [routes]");
    let connected = || {
        Client::new(admin)
            .get("/stats?filter=^http.t.rds.routes.control_plane.connected_state")
            .text()
            .contains(": 1\n")
    };
    eventually("the stream", connected);
    lds("");
    assert_eq!(control.asked(), "closed");
    eventually("no stream", || !connected());
    lds(&with);
    assert_eq!([control.asked(), control.asked()], ["connected", "RouteConfiguration v n [routes]"]);
}

#[test]
fn a_control_plane_behind_a_unix_socket_is_reached() {
    let directory = Directory::new();
    let path = directory.0.join("xds.sock");
    let (control, upstream, port) = (ControlPlane::start_at(&path), Upstream::text("hello"), free_port());
    let bootstrap = control.bootstrap("GRPC");
    let pipe = format!("pipe: {{ path: {} }}", path.display());
    let bootstrap = bootstrap.replace("socket_address: { address: 127.0.0.1, port_value: 1 }", &pipe);
    assert!(bootstrap.contains(&pipe));
    let _gateway = serving_from(&control, &bootstrap, &upstream, port);
    assert_eq!(Client::new(port).get("/").text(), "hello");
}
