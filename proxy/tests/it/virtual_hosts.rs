//! Virtual hosts from a control plane (VHDS), all at first and one by one as requests ask for them: what is asked for, what
//! serves, what is refused.

use crate::support::control_plane::{Asked, ControlPlane, Own, bootstrap_of};
use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, Upstream};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const VHDS: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";

fn listener(port: u16, source: &str) -> String {
    format!(
        "{{ '@type': {LDS}, name: main, address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}, filter_chains: [{{ filters: [{{ name: http, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, rds: {{ route_config_name: routes, config_source: {source} }}, http_filters: [{{ name: on_demand, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand }} }}, {{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}] }} }}] }}] }}"
    )
}

fn fields(name: &str, domain: &str, action: &str) -> String {
    format!("name: {name}, domains: [{domain}], routes: [{{ match: {{ prefix: / }}, {action} }}]")
}

fn says(text: &str) -> String {
    format!("direct_response: {{ status: 200, body: {{ inline_string: {text} }} }}")
}

fn host(name: &str, domain: &str, text: &str) -> String {
    format!("{{ '@type': {VHDS}, {} }}", fields(name, domain, &says(text)))
}

/// Routes with a host of their own, and others from there.
fn routes(text: &str, source: &str) -> String {
    let own = fields("own", "own.com", &says(text));
    format!("{{ '@type': {RDS}, name: routes, virtual_hosts: [{{ {own} }}], vhds: {{ config_source: {source} }} }}")
}

fn answer(port: u16, host: &str) -> String {
    let answer = Client::new(port).send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).response();
    if answer.status == 200 { answer.text() } else { answer.status.to_string() }
}

/// Up to the route configuration, whose hosts are asked for.
fn begin(control: &ControlPlane, port: u16, admin: u16) -> Gateway {
    let address = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\nstatic_resources:"
    );
    let gateway = Gateway::spawn(&control.bootstrap("DELTA_GRPC").replace("static_resources:", &address), &[]);
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster n +[] -[] has[]"]);
    control.change(CDS, "a", &[], &[]);
    let mut both = [control.asked(), control.asked()];
    both.sort();
    assert_eq!(both, ["Cluster na +[] -[] has[]", "Listener n +[] -[] has[]"]);
    control.change(LDS, "b", &[("main", "1", listener(port, "{ ads: {} }"))], &[]);
    assert_eq!(
        [control.asked(), control.asked()],
        ["RouteConfiguration n +[routes] -[] has[]", "Listener nb +[] -[] has[]"]
    );
    control.change(RDS, "c", &[("routes", "1", routes("own", "{ ads: {} }"))], &[]);
    assert_eq!(control.asked(), "VirtualHost n +[] -[] has[]", "before routes are accepted");
    assert_eq!(control.asked(), "RouteConfiguration nc +[] -[] has[]");
    gateway
}

#[test]
fn hosts_come_beside_those_of_the_route_configuration_and_on_demand() {
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let mut gateway = begin(&control, port, admin);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "the listener waits for hosts");
    let first =
        [("routes/one", "1", host("routes/one", "one.com", "first")), ("other/x", "1", host("other/x", "x.com", "x"))];
    control.change(VHDS, "d", &first, &[]);
    assert_eq!(control.asked(), "VirtualHost nd +[] -[] has[]");
    gateway.wait_for("listening");
    assert_eq!([answer(port, "own.com"), answer(port, "one.com")], ["own", "first"]);
    // One that a request asks for; two who ask for the same wait together.
    let waiting: Vec<_> = (0..2).map(|_| std::thread::spawn(move || answer(port, "TWO.com"))).collect();
    assert_eq!(control.asked(), "VirtualHost n +[routes/two.com] -[] has[]");
    control.find("e", &[("routes/two", "1", &["routes/two.com"], Some(host("routes/two", "two.com", "second")))]);
    assert_eq!(control.asked(), "VirtualHost ne +[] -[] has[]");
    waiting.into_iter().for_each(|waiting| assert_eq!(waiting.join().unwrap(), "second"));
    // One that is not there is asked for once.
    let waiting = std::thread::spawn(move || answer(port, "x.com"));
    assert_eq!(control.asked(), "VirtualHost n +[routes/x.com] -[] has[]");
    control.find("f", &[("routes/x.com", "0", &["routes/x.com"], None)]);
    assert_eq!(control.asked(), "VirtualHost nf +[] -[] has[]");
    assert_eq!((waiting.join().unwrap().as_str(), answer(port, "x.com").as_str()), ("404", "404"));
    // Changes, removals, and other routes with the same hosts.
    control.change(VHDS, "g", &[("routes/one", "2", host("routes/one", "one.com", "changed"))], &["routes/two"]);
    assert_eq!(control.asked(), "VirtualHost ng +[] -[] has[]");
    assert_eq!([answer(port, "one.com"), answer(port, "two.com")], ["changed", "404"]);
    control.change(RDS, "h", &[("routes", "2", routes("again", "{ ads: {} }"))], &[]);
    assert_eq!(control.asked(), "RouteConfiguration nh +[] -[] has[]");
    assert_eq!([answer(port, "own.com"), answer(port, "one.com")], ["again", "changed"]);
    // A host that cannot stand beside the others changes nothing.
    control.change(VHDS, "i", &[("routes/bad", "1", host("routes/bad", "own.com", "bad"))], &["routes/one"]);
    assert_eq!(control.asked(), "VirtualHost ni +[] -[] has[] !");
    assert_eq!([answer(port, "own.com"), answer(port, "one.com")], ["again", "changed"]);
    let stats =
        Client::new(admin).get("/stats?filter=^http.t.rds.*(config_reload|update_success|update_rejected)$").text();
    assert_eq!(
        stats,
        "http.t.rds.routes.config_reload: 5\nhttp.t.rds.routes.update_rejected: 0\nhttp.t.rds.routes.update_success: 2\n\
         http.t.rds.vhds.routes.config_reload: 4\nhttp.t.rds.vhds.routes.update_rejected: 1\nhttp.t.rds.vhds.routes.update_success: 4\n"
    );
    let dump = Client::new(admin).get("/config_dump?resource=dynamic_route_configs").text();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let hosts = dump["configs"][0]["route_config"]["virtual_hosts"].as_array().unwrap();
    assert_eq!(hosts.iter().map(|host| host["name"].as_str().unwrap()).collect::<Vec<_>>(), ["own", "routes/one"]);
    control.hang_up();
    let again: Vec<String> = (0..5).map(|_| control.asked()).collect();
    assert_eq!(
        again[3..],
        [
            "RouteConfiguration n +[routes] -[] has[routes@2]",
            "VirtualHost n +[*,routes/two.com,routes/x.com] -[] has[other/x@1,routes/one@2,routes/x.com@0]",
        ]
    );
    assert_eq!(answer(port, "one.com"), "changed");
    // Without VHDS its hosts are gone.
    let alone = format!(
        "{{ '@type': {RDS}, name: routes, virtual_hosts: [{{ {} }}] }}",
        fields("own", "own.com", &says("last"))
    );
    control.change(RDS, "j", &[("routes", "3", alone)], &[]);
    eventually("routes without other hosts", || answer(port, "one.com") == "404");
    assert_eq!(answer(port, "own.com"), "last");
}

/// A request goes on upstream once its host has come, with the body that it had sent before.
#[test]
fn the_body_of_a_request_that_waits_is_kept() {
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let upstream = Upstream::text("hello");
    let mut gateway = begin(&control, port, admin);
    control.change(VHDS, "d", &[("routes/one", "1", host("routes/one", "one.com", "first"))], &[]);
    assert_eq!(control.asked(), "VirtualHost nd +[] -[] has[]");
    gateway.wait_for("listening");
    let cluster = format!(
        "{{ '@type': {CDS}, name: up, type: STATIC, load_assignment: {{ cluster_name: up, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }} }}] }}] }} }}",
        upstream.port
    );
    control.change(CDS, "e", &[("up", "1", cluster)], &[]);
    assert_eq!(control.asked(), "Cluster ne +[] -[] has[]");
    let mut client = Client::new(port);
    client.send("POST / HTTP/1.1\r\nhost: two.com\r\ncontent-length: 5\r\n\r\nbo");
    assert_eq!(control.asked(), "VirtualHost n +[routes/two.com] -[] has[]");
    let two = format!("{{ '@type': {VHDS}, {} }}", fields("routes/two", "two.com", "route: { cluster: up }"));
    control.find("f", &[("routes/two", "1", &["routes/two.com"], Some(two))]);
    assert_eq!(control.asked(), "VirtualHost nf +[] -[] has[]");
    client.send("dy!");
    assert_eq!(client.response_to("POST").text(), "hello");
    assert_eq!(upstream.next().body, b"body!");
    let counted = || Client::new(admin).get("/stats?filter=^http.t.downstream_rq_(total|completed)$").text();
    // It is completed after its last byte was written.
    eventually("one request", || counted() == "http.t.downstream_rq_completed: 1\nhttp.t.downstream_rq_total: 1\n");
}

/// Names of hosts are clients' to choose: those that are not there are remembered for so long only.
#[test]
fn hosts_that_are_not_there_are_forgotten_when_there_are_many() {
    let (control, port, admin) = (ControlPlane::start(), free_port(), free_port());
    let mut gateway = begin(&control, port, admin);
    control.change(VHDS, "d", &[("routes/one", "1", host("routes/one", "one.com", "first"))], &[]);
    assert_eq!(control.asked(), "VirtualHost nd +[] -[] has[]");
    gateway.wait_for("listening");
    let mut client = Client::new(port);
    for index in 0..=1000 {
        client.send(format!("GET / HTTP/1.1\r\nhost: {index}.com\r\n\r\n"));
        let name = format!("routes/{index}.com");
        assert_eq!(control.asked(), format!("VirtualHost n +[{name}] -[] has[]"));
        control.find("x", &[(&name, "0", &[&name], None)]);
        let answer = control.asked();
        assert_eq!(client.response().status, 404);
        let forgotten = if index < 1000 { "" } else { "routes/0.com" };
        assert_eq!(answer, format!("VirtualHost nx +[] -[{forgotten}] has[]"));
    }
}

#[test]
fn hosts_come_from_a_stream_of_changes_or_not_at_all() {
    let own = "{ api_config_source: { api_type: GRPC, transport_api_version: V3, grpc_services: [{ envoy_grpc: { cluster_name: xds } }] } }";
    let only = "vhds: only 'DELTA_GRPC' or 'ADS' (which uses Delta xDS) is supported as a config source.";
    for (dialect, source, reason) in [
        ("DELTA_GRPC", own, only),
        ("GRPC", "{ ads: {} }", "vhds: ADS must use DELTA_GRPC api_type when used as VHDS config source."),
    ] {
        let (control, port) = (ControlPlane::start(), free_port());
        let _gateway = Gateway::spawn(&control.bootstrap(dialect), &[]);
        assert_eq!(control.asked(), "connected");
        control.next();
        let delta = dialect == "DELTA_GRPC";
        let change = |kind: &str, nonce: &str, name: &str, text: Option<String>| {
            if delta {
                let came: Vec<_> = text.into_iter().map(|text| (name, "1", text)).collect();
                control.change(kind, nonce, &came, &[]);
            } else {
                let resources = text.iter().map(|text| crate::support::control_plane::any(text)).collect();
                control.answer_as(kind, "1", nonce, resources);
            }
        };
        change(CDS, "a", "", None);
        let _both = [control.asked(), control.asked()];
        change(LDS, "b", "main", Some(listener(port, "{ ads: {} }")));
        let _both = [control.asked(), control.asked()];
        change(RDS, "c", "routes", Some(routes("own", source)));
        let detail = match control.next() {
            Asked::Delta(asked) => asked.error_detail,
            Asked::Sotw(asked) => asked.error_detail,
            other => panic!("{}", other.short()),
        };
        assert!(detail.as_ref().is_some_and(|detail| detail.message.contains(reason)), "{detail:?}");
    }
    let directory = Directory::new();
    let resource = routes("own", "{ ads: {} }");
    let file = directory.put("routes.yaml", &format!("resources: [{resource}]\n"));
    let own = listener(free_port(), &format!("{{ path_config_source: {{ path: {} }} }}", file.display()));
    let own = own.replace(&format!("'@type': {LDS}, "), "");
    let bootstrap = format!("{{ node: {{ id: node, cluster: test }}, static_resources: {{ listeners: [{own}] }} }}");
    let mut gateway = Gateway::spawn(&bootstrap, &[]);
    gateway.wait_for("vhds: ADS config source specified but no ADS configured in bootstrap.");
}

/// Our own control plane tells all hosts to whoever names none; they are kept on disk, and served while it is away.
#[test]
fn a_start_without_the_control_plane_serves_the_hosts_that_were_kept() {
    let (port, control, directory) = (free_port(), free_port(), Directory::new());
    let (bootstrap, kept) = (bootstrap_of(control, "DELTA_GRPC"), directory.0.join("kept"));
    let flags = ["--snapshot-dir", kept.to_str().unwrap()];
    let cluster = format!("{{ '@type': {CDS}, name: unused, type: STATIC }}");
    let first = host("routes/one", "one.com", "kept");
    let resources = [cluster, listener(port, "{ ads: {} }"), routes("own", "{ ads: {} }"), first];
    let running = Own::start(&directory, control, &resources);
    let mut gateway = Gateway::start_with(&bootstrap, &flags);
    assert_eq!([answer(port, "own.com"), answer(port, "one.com"), answer(port, "none.com")], ["own", "kept", "404"]);
    gateway.signal("INT");
    assert!(gateway.wait().success());
    drop(running);
    let mut gateway = Gateway::spawn(&bootstrap, &flags);
    gateway.wait_for("what was kept on disk is served");
    gateway.wait_for("listening");
    assert_eq!([answer(port, "own.com"), answer(port, "one.com")], ["own", "kept"]);
}

/// Routes that stand in a listener: its update leaves the hosts that came; a name stands for one of them.
#[test]
fn hosts_come_beside_those_of_routes_in_line() {
    let (control, port) = (ControlPlane::start(), free_port());
    let lined = |name: &str, port: u16, text: &str, vhds: &str| {
        let own = fields("own", "own.com", &says(text));
        let rds = "rds: { route_config_name: routes, config_source: { ads: {} } }";
        listener(port, "{ ads: {} }")
            .replace(rds, &format!("route_config: {{ name: routes, virtual_hosts: [{{ {own} }}]{vhds} }}"))
            .replace("name: main", &format!("name: {name}"))
    };
    let vhds = ", vhds: { config_source: { ads: {} } }";
    let mut gateway = Gateway::spawn(&control.bootstrap("DELTA_GRPC"), &[]);
    assert_eq!([control.asked(), control.asked()], ["connected", "Cluster n +[] -[] has[]"]);
    control.change(CDS, "a", &[], &[]);
    let _both = [control.asked(), control.asked()];
    control.change(LDS, "b", &[("main", "1", lined("main", port, "own", vhds))], &[]);
    assert_eq!([control.asked(), control.asked()], ["VirtualHost n +[] -[] has[]", "Listener nb +[] -[] has[]"]);
    control.change(VHDS, "c", &[("routes/one", "1", host("routes/one", "one.com", "first"))], &[]);
    assert_eq!(control.asked(), "VirtualHost nc +[] -[] has[]");
    gateway.wait_for("listening");
    assert_eq!([answer(port, "own.com"), answer(port, "one.com")], ["own", "first"]);
    let waiting = std::thread::spawn(move || answer(port, "two.com"));
    assert_eq!(control.asked(), "VirtualHost n +[routes/two.com] -[] has[]");
    control.find("d", &[("routes/two", "1", &["routes/two.com"], Some(host("routes/two", "two.com", "second")))]);
    assert_eq!(control.asked(), "VirtualHost nd +[] -[] has[]");
    assert_eq!(waiting.join().unwrap(), "second");
    control.change(LDS, "e", &[("main", "2", lined("main", port, "again", vhds))], &[]);
    assert_eq!(control.asked(), "Listener ne +[] -[] has[]");
    eventually("the listener's new routes", || answer(port, "own.com") == "again");
    assert_eq!(answer(port, "one.com"), "first");
    control.change(LDS, "f", &[("other", "1", lined("other", free_port(), "other", vhds))], &[]);
    assert_eq!(control.asked(), "Listener nf +[] -[] has[] !");
    control.change(LDS, "g", &[("main", "3", lined("main", port, "alone", ""))], &[]);
    assert_eq!(control.asked(), "Listener ng +[] -[] has[]");
    eventually("routes without other hosts", || answer(port, "own.com") == "alone");
    assert_eq!(answer(port, "one.com"), "404");
}
