//! Scopes of routes from a control plane and from files (SRDS): what is asked for, in which order, what serves, and what is
//! refused.

use tidegate_xds::pb::google::protobuf::Any;

use crate::support::control_plane::{Asked, ControlPlane, Own, bootstrap_of};
use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, Upstream};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const SRDS: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";

const ON_DEMAND: &str = "{ name: on_demand, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand } }";

fn listener(port: u16, source: &str) -> String {
    format!(
        "{{ '@type': {LDS}, name: main, address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}, filter_chains: [{{ filters: [{{ name: http, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, scoped_routes: {{ name: s, scope_key_builder: {{ fragments: [{{ header_value_extractor: {{ name: x-scope, index: 0 }} }}] }}, rds_config_source: {{ ads: {{}} }}, scoped_rds: {{ scoped_rds_config_source: {source} }} }}, http_filters: [{{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}] }} }}] }}] }}"
    )
}

fn virtual_hosts(text: &str) -> String {
    format!(
        "virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: {text} }} }} }}] }}]"
    )
}

fn routes(name: &str, text: &str) -> String {
    format!("{{ '@type': {RDS}, name: {name}, {} }}", virtual_hosts(text))
}

fn scope(name: &str, key: &str, leads_to: &str) -> String {
    format!("{{ '@type': {SRDS}, name: {name}, key: {{ fragments: [{{ string_key: {key} }}] }}, {leads_to} }}")
}

fn named(name: &str, key: &str, routes: &str) -> String {
    scope(name, key, &format!("route_configuration_name: {routes}"))
}

/// What a request of this scope is answered: its status, or the text of a 200.
fn answer(port: u16, scope: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: test\r\nx-scope: {scope}\r\n\r\n");
    let answer = Client::new(port).send(request).response();
    if answer.status == 200 { answer.text() } else { answer.status.to_string() }
}

fn with_admin(bootstrap: &str, admin: u16) -> String {
    let address = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\nstatic_resources:"
    );
    bootstrap.replace("static_resources:", &address)
}

/// Up to the listener, which waits for its scopes.
fn begin(control: &ControlPlane, port: u16, admin: u16) -> Gateway {
    begin_with(control, listener(port, "{ ads: {} }"), admin)
}

fn begin_with(control: &ControlPlane, listener: String, admin: u16) -> Gateway {
    let gateway = Gateway::spawn(&with_admin(&control.bootstrap("DELTA_GRPC"), admin), &[]);
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster n +[] -[] has[]"]);
    control.change(CDS, "a", &[], &[]);
    let mut both = [control.asked(), control.asked()];
    both.sort();
    assert_eq!(both, ["Cluster na +[] -[] has[]", "Listener n +[] -[] has[]"]);
    control.change(LDS, "b", &[("main", "1", listener)], &[]);
    assert_eq!(control.asked(), "ScopedRouteConfiguration n +[] -[] has[]");
    assert_eq!(control.asked(), "Listener nb +[] -[] has[]");
    gateway
}

#[test]
fn scopes_come_with_their_routes_and_go_with_them() {
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let mut gateway = begin(&control, port, admin);
    let both = [("a", "1", named("a", "ka", "ra")), ("b", "1", named("b", "kb", "rb"))];
    control.change(SRDS, "c", &both, &[]);
    assert_eq!(control.asked(), "RouteConfiguration n +[ra,rb] -[] has[]", "before scopes are accepted");
    assert_eq!(control.asked(), "ScopedRouteConfiguration nc +[] -[] has[]");
    control.change(RDS, "d", &[("ra", "1", routes("ra", "first"))], &[]);
    assert_eq!(control.asked(), "RouteConfiguration nd +[] -[] has[]");
    assert!(
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the listener waits for all routes of its scopes"
    );
    control.change(RDS, "e", &[("rb", "1", routes("rb", "second"))], &[]);
    assert_eq!(control.asked(), "RouteConfiguration ne +[] -[] has[]");
    gateway.wait_for("listening");
    assert_eq!([answer(port, "ka"), answer(port, "kb"), answer(port, "kc")], ["first", "second", "404"]);
    // A scope that shares the routes of another; one that goes.
    control.change(SRDS, "f", &[("c", "1", named("c", "kc", "ra"))], &["b"]);
    assert_eq!(control.asked(), "RouteConfiguration n +[] -[rb] has[]");
    assert_eq!(control.asked(), "ScopedRouteConfiguration nf +[] -[] has[]");
    assert_eq!([answer(port, "ka"), answer(port, "kb"), answer(port, "kc")], ["first", "404", "first"]);
    // Routes of its own, and a key that another had.
    let own = scope("c", "kb", &format!("route_configuration: {{ name: own, {} }}", virtual_hosts("own")));
    control.change(SRDS, "g", &[("c", "2", own)], &[]);
    assert_eq!(control.asked(), "ScopedRouteConfiguration ng +[] -[] has[]");
    assert_eq!([answer(port, "ka"), answer(port, "kb"), answer(port, "kc")], ["first", "own", "404"]);
    // Of what nobody has asked for there is nothing.
    control.change(SRDS, "h", &[("d", "1", scope("d", "kd", "route_configuration_name: rd, on_demand: true"))], &[]);
    assert_eq!(control.asked(), "ScopedRouteConfiguration nh +[] -[] has[]");
    assert_eq!(answer(port, "kd"), "404");
    let stats = Client::new(admin).get("/stats?filter=scoped_rds.s.(.*_scopes|config_reload|update_success)$").text();
    assert_eq!(
        stats,
        "http.t.scoped_rds.s.active_scopes: 1\nhttp.t.scoped_rds.s.all_scopes: 3\nhttp.t.scoped_rds.s.config_reload: 4\n\
         http.t.scoped_rds.s.on_demand_scopes: 1\nhttp.t.scoped_rds.s.update_success: 4\n"
    );
    let dump = Client::new(admin).get("/config_dump?resource=dynamic_scoped_route_configs").text();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let source = &dump["configs"][0];
    assert_eq!(source["name"], "s");
    let scopes = source["scoped_route_configs"].as_array().unwrap();
    assert_eq!(scopes.iter().map(|scope| scope["name"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "c", "d"]);
    control.hang_up();
    let again: Vec<String> = (0..5).map(|_| control.asked()).collect();
    assert_eq!(
        again,
        [
            "connected",
            "Cluster n +[] -[] has[]",
            "Listener n +[] -[] has[main@1]",
            "ScopedRouteConfiguration n +[] -[] has[a@1,c@2,d@1]",
            "RouteConfiguration n +[ra] -[] has[ra@1]",
        ]
    );
    assert_eq!([answer(port, "ka"), answer(port, "kb")], ["first", "own"]);
}

/// What conflicts changes nothing; the first scope that cannot act ends an update after what is gone, and after those before it.
#[test]
fn what_cannot_stand_together_is_refused_whole_and_the_rest_from_the_first_mistake_on() {
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let mut gateway = begin(&control, port, admin);
    let own = |name: &str, key: &str| {
        scope(name, key, &format!("route_configuration: {{ name: {name}, {} }}", virtual_hosts(name)))
    };
    control.change(SRDS, "c", &[("a", "1", own("a", "ka")), ("b", "1", own("b", "kb"))], &[]);
    assert_eq!(control.asked(), "ScopedRouteConfiguration nc +[] -[] has[]");
    gateway.wait_for("listening");
    let rejected = || match control.next() {
        Asked::Delta(asked) => asked.error_detail.map(|detail| (detail.code, detail.message)).unwrap_or_default(),
        other => panic!("{}", other.short()),
    };
    control.change(SRDS, "d", &[("c", "1", own("c", "ka"))], &["b"]);
    let conflict =
        "Error adding/updating scoped route(s): scope key conflict found, first scope is 'a', second scope is 'c'";
    assert_eq!(rejected(), (13, conflict.to_owned()));
    assert_eq!([answer(port, "ka"), answer(port, "kb")], ["a", "b"]);
    let good_and_bad = [("c", "1", own("c", "kc")), ("d", "1", scope("d", "kd", "")), ("e", "1", own("e", "ke"))];
    control.change(SRDS, "e", &good_and_bad, &["b"]);
    assert_eq!(rejected(), (13, "route_configuration_name is empty.".to_owned()));
    assert_eq!(["ka", "kb", "kc", "kd", "ke"].map(|key| answer(port, key)), ["a", "404", "c", "404", "404"]);
    let unknown = "route_configuration: { name: x, virtual_hosts: [{ name: x, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: nowhere } }] }] }";
    control.change(SRDS, "f", &[("a", "2", scope("a", "ka", unknown))], &[]);
    let (code, message) = rejected();
    assert!(code == 13 && message.contains("unknown cluster 'nowhere'"), "{message}");
    assert_eq!(answer(port, "ka"), "a");
    let status = Client::new(admin).get("/status").text();
    assert!(status.contains("ScopedRouteConfiguration 'a' version 2, since "), "{status}");
    control.change(SRDS, "g", &[("a", "3", own("a", "ka"))], &["d"]);
    assert_eq!(control.asked(), "ScopedRouteConfiguration ng +[] -[] has[]");
    eventually("nothing wrong any more", || Client::new(admin).get("/status").text().contains("rejected        0\n"));
}

fn lazy(name: &str, key: &str, routes: &str) -> String {
    scope(name, key, &format!("route_configuration_name: {routes}, on_demand: true"))
}

/// A listener whose requests wait for routes.
fn with_filter(port: u16) -> String {
    listener(port, "{ ads: {} }").replace("http_filters: [", &format!("http_filters: [{ON_DEMAND}, "))
}

/// The routes of a scope that is loaded on demand are asked for by its first request, which is held meanwhile with its body.
#[test]
fn routes_of_a_scope_come_when_a_request_asks_for_them() {
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let upstream = Upstream::text("hello");
    let mut gateway = begin_with(&control, with_filter(port), admin);
    control.change(SRDS, "c", &[("a", "1", lazy("a", "ka", "ra")), ("b", "1", lazy("b", "kb", "rb"))], &[]);
    assert_eq!(control.asked(), "ScopedRouteConfiguration nc +[] -[] has[]", "nobody asks for their routes");
    gateway.wait_for("listening");
    assert_eq!(answer(port, "none"), "404");
    let mut held = Client::new(port);
    held.send("POST / HTTP/1.1\r\nhost: test\r\nx-scope: ka\r\ncontent-length: 5\r\n\r\nbo");
    assert_eq!(control.asked(), "RouteConfiguration n +[ra] -[] has[]");
    let counted = Client::new(admin).get("/stats?filter=scoped_rds.s.(active|on_demand)_scopes").text();
    assert_eq!(counted, "http.t.scoped_rds.s.active_scopes: 1\nhttp.t.scoped_rds.s.on_demand_scopes: 2\n");
    let to_upstream = format!(
        "{{ '@type': {RDS}, name: ra, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: up }} }}] }}] }}"
    );
    let cluster = format!(
        "{{ '@type': {CDS}, name: up, type: STATIC, load_assignment: {{ cluster_name: up, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }} }}] }}] }} }}",
        upstream.port
    );
    control.change(CDS, "d", &[("up", "1", cluster)], &[]);
    assert_eq!(control.asked(), "Cluster nd +[] -[] has[]");
    control.change(RDS, "e", &[("ra", "1", to_upstream)], &[]);
    assert_eq!(control.asked(), "RouteConfiguration ne +[] -[] has[]");
    held.send("dy!");
    assert_eq!(held.response_to("POST").text(), "hello");
    assert_eq!(upstream.next().body, b"body!", "what had come of the body is kept");
    assert_eq!(answer(port, "ka"), "hello");
    // A scope that goes lets those that wait go on.
    let waiting = std::thread::spawn(move || answer(port, "kb"));
    assert_eq!(control.asked(), "RouteConfiguration n +[rb] -[] has[]");
    control.change(SRDS, "f", &[], &["b"]);
    assert_eq!(control.asked(), "RouteConfiguration n +[] -[rb] has[]");
    assert_eq!(control.asked(), "ScopedRouteConfiguration nf +[] -[] has[]");
    assert_eq!(waiting.join().unwrap(), "404");
}

/// Routes that do not come are waited for as long as a stream may be idle.
#[test]
fn a_request_does_not_wait_longer_than_a_stream_may() {
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let listener = with_filter(port).replace("http_filters:", "stream_idle_timeout: 0.2s, http_filters:");
    let mut gateway = begin_with(&control, listener, admin);
    control.change(SRDS, "c", &[("a", "1", lazy("a", "ka", "ra"))], &[]);
    assert_eq!(control.asked(), "ScopedRouteConfiguration nc +[] -[] has[]");
    gateway.wait_for("listening");
    assert_eq!(answer(port, "ka"), "504");
    assert_eq!(control.asked(), "RouteConfiguration n +[ra] -[] has[]");
    control.change(RDS, "d", &[("ra", "1", routes("ra", "late"))], &[]);
    assert_eq!(control.asked(), "RouteConfiguration nd +[] -[] has[]");
    assert_eq!(answer(port, "ka"), "late");
}

#[test]
fn state_of_the_world_says_all_scopes_each_time() {
    let (control, port) = (ControlPlane::start(), free_port());
    let mut gateway = Gateway::spawn(&control.bootstrap("GRPC"), &[]);
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster v n []"]);
    control.answer_as(CDS, "1", "a", Vec::<Any>::new());
    let mut both = [control.asked(), control.asked()];
    both.sort();
    assert_eq!(both, ["Cluster v1 na []", "Listener v n []"]);
    control.answer("1", "b", &[listener(port, "{ ads: {} }")]);
    assert_eq!([control.asked(), control.asked()], ["ScopedRouteConfiguration v n []", "Listener v1 nb []"]);
    control.answer("1", "c", &[named("a", "ka", "ra"), named("b", "kb", "rb")]);
    assert_eq!(
        [control.asked(), control.asked()],
        ["RouteConfiguration v n [ra,rb]", "ScopedRouteConfiguration v1 nc []"]
    );
    control.answer("1", "d", &[routes("ra", "first"), routes("rb", "second")]);
    assert_eq!(control.asked(), "RouteConfiguration v1 nd [ra,rb]");
    gateway.wait_for("listening");
    assert_eq!([answer(port, "ka"), answer(port, "kb")], ["first", "second"]);
    control.answer("2", "e", &[named("b", "ka", "rb")]);
    assert_eq!(
        [control.asked(), control.asked()],
        ["RouteConfiguration v1 nd [rb]", "ScopedRouteConfiguration v2 ne []"]
    );
    assert_eq!([answer(port, "ka"), answer(port, "kb")], ["second", "404"]);
    control.answer("3", "f", &[named("a", "ka", "rb"), named("a", "kb", "rb")]);
    assert_eq!(control.asked(), "ScopedRouteConfiguration v2 nf [] !");
    control.answer_as(SRDS, "4", "g", Vec::<Any>::new());
    assert_eq!(
        [control.asked(), control.asked()],
        ["RouteConfiguration v1 nd []", "ScopedRouteConfiguration v4 ng []"]
    );
    assert_eq!(answer(port, "ka"), "404");
}

/// A listener does not wait for ever, nor for a second answer.
#[test]
fn scopes_that_do_not_come_in_time_or_are_no_good_leave_the_listener_without() {
    for rejected in [false, true] {
        let (control, port) = (ControlPlane::start(), free_port());
        let mut gateway = Gateway::spawn(&control.bootstrap("GRPC"), &[]);
        assert_eq!([control.asked(), control.asked()], ["connected", "Cluster v n []"]);
        control.answer_as(CDS, "1", "a", Vec::<Any>::new());
        let mut both = [control.asked(), control.asked()];
        both.sort();
        assert_eq!(both, ["Cluster v1 na []", "Listener v n []"]);
        let source = if rejected { "{ ads: {} }" } else { "{ ads: {}, initial_fetch_timeout: 0.1s }" };
        control.answer("1", "b", &[listener(port, source)]);
        assert_eq!([control.asked(), control.asked()], ["ScopedRouteConfiguration v n []", "Listener v1 nb []"]);
        if rejected {
            control.answer("1", "c", &[scope("a", "ka", "")]);
            assert_eq!(control.asked(), "ScopedRouteConfiguration v nc [] !");
        }
        gateway.wait_for("listening");
        assert_eq!(answer(port, "ka"), "404");
    }
}

#[test]
fn scopes_come_from_a_file_and_change_with_it() {
    let (port, directory) = (free_port(), Directory::new());
    let file = directory.0.join("scopes.yaml");
    let own = |name: &str, text: &str| {
        scope(name, name, &format!("route_configuration: {{ name: own, {} }}", virtual_hosts(text)))
    };
    let write = |version: &str, scopes: &[String]| {
        directory.put("scopes.yaml", &format!("version_info: '{version}'\nresources: [{}]\n", scopes.join(", ")));
    };
    write("1", &[own("a", "first"), own("b", "second")]);
    let listener = listener(port, &format!("{{ path_config_source: {{ path: {} }} }}", file.display()))
        .replace(&format!("'@type': {LDS}, "), "")
        .replace("rds_config_source: { ads: {} }, ", "");
    let bootstrap =
        format!("{{ node: {{ id: node, cluster: test }}, static_resources: {{ listeners: [{listener}] }} }}");
    let _gateway = Gateway::start_with(&bootstrap, &[]);
    assert_eq!([answer(port, "a"), answer(port, "b")], ["first", "second"]);
    write("2", &[own("b", "third")]);
    eventually("the second file", || answer(port, "b") == "third");
    assert_eq!(answer(port, "a"), "404");
    write("3", &[own("b", "fourth"), named("c", "c", "r")]);
    eventually("what comes before the mistake", || answer(port, "b") == "fourth");
    assert_eq!(answer(port, "c"), "404");
}

/// Scopes are kept on disk, and served while their control plane is away.
#[test]
fn a_start_without_the_control_plane_serves_the_scopes_that_were_kept() {
    for dialect in ["GRPC", "DELTA_GRPC"] {
        let (port, control, directory) = (free_port(), free_port(), Directory::new());
        let (bootstrap, kept) = (bootstrap_of(control, dialect), directory.0.join("kept"));
        let flags = ["--snapshot-dir", kept.to_str().unwrap()];
        let cluster = format!("{{ '@type': {CDS}, name: unused, type: STATIC }}");
        let resources = [cluster, listener(port, "{ ads: {} }"), named("a", "ka", "ra"), routes("ra", "kept")];
        let running = Own::start(&directory, control, &resources);
        let mut gateway = Gateway::start_with(&bootstrap, &flags);
        assert_eq!(answer(port, "ka"), "kept", "{dialect}");
        gateway.signal("INT");
        assert!(gateway.wait().success());
        drop(running);
        let mut gateway = Gateway::spawn(&bootstrap, &flags);
        gateway.wait_for("what was kept on disk is served");
        gateway.wait_for("listening");
        assert_eq!(answer(port, "ka"), "kept", "{dialect}");
    }
}
