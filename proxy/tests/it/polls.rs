//! Resources that are polled for over REST: what is asked, what an answer changes, and what a bad one leaves as it was.

use std::sync::Arc;
use std::sync::Mutex;

use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::upstream::{Answer, Seen, ok};
use crate::support::{Client, Gateway, Upstream, cluster};

const TYPE: &str = "type.googleapis.com/envoy.";

/// What each path is answered with, in turn; the last for ever.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Vec<Told>>>);

/// A path, and its answers.
type Told = (&'static str, Vec<Vec<u8>>);

impl Script {
    fn say(&self, path: &'static str, answers: &[Vec<u8>]) {
        let mut said = self.0.lock().unwrap();
        said.retain(|(known, _)| *known != path);
        said.push((path, answers.to_vec()));
    }

    fn answer(&self, seen: &Seen) -> Answer {
        let mut said = self.0.lock().unwrap();
        let path = seen.line().split(' ').nth(1).unwrap().to_owned();
        let Some((_, answers)) = said.iter_mut().find(|(known, _)| format!("/v3/discovery:{known}") == path) else {
            return Answer::Bytes(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec());
        };
        Answer::Bytes(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
    }
}

fn response(version: &str, resources: &[String]) -> Vec<u8> {
    ok(&format!("{{\"version_info\": \"{version}\", \"resources\": [{}]}}", resources.join(",")))
}

fn unavailable() -> Vec<u8> {
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec()
}

const SOURCE: &str = "{\"resource_api_version\": \"V3\", \"initial_fetch_timeout\": \"0s\", \"api_config_source\": {\"api_type\": \"REST\", \"transport_api_version\": \"V3\", \"cluster_names\": [\"control\"], \"refresh_delay\": \"0.02s\", \"request_timeout\": \"5s\"}}";

fn eds(name: &str) -> String {
    format!(
        "{{\"@type\": \"{TYPE}config.cluster.v3.Cluster\", \"name\": \"{name}\", \"type\": \"EDS\", \"eds_cluster_config\": {{\"eds_config\": {SOURCE}}}}}"
    )
}

fn endpoints(name: &str, port: u16) -> String {
    format!(
        "{{\"@type\": \"{TYPE}config.endpoint.v3.ClusterLoadAssignment\", \"cluster_name\": \"{name}\", \"endpoints\": [{{\"lb_endpoints\": [{{\"endpoint\": {{\"address\": {{\"socket_address\": {{\"address\": \"127.0.0.1\", \"port_value\": {port}}}}}}}}}]}}]}}"
    )
}

fn listener(port: u16) -> String {
    format!(
        "{{\"@type\": \"{TYPE}config.listener.v3.Listener\", \"name\": \"main\", \"address\": {{\"socket_address\": {{\"address\": \"127.0.0.1\", \"port_value\": {port}}}}}, \"filter_chains\": [{{\"filters\": [{{\"name\": \"http\", \"typed_config\": {{\"@type\": \"{TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\", \"stat_prefix\": \"t\", \"rds\": {{\"route_config_name\": \"routes\", \"config_source\": {SOURCE}}}, \"http_filters\": [{{\"name\": \"router\", \"typed_config\": {{\"@type\": \"{TYPE}extensions.filters.http.router.v3.Router\"}}}}]}}}}]}}]}}"
    )
}

fn routes(version: &str, cluster: &str) -> String {
    format!(
        "{{\"@type\": \"{TYPE}config.route.v3.RouteConfiguration\", \"name\": \"routes\", \"response_headers_to_add\": [{{\"header\": {{\"key\": \"x-version\", \"value\": \"{version}\"}}}}], \"virtual_hosts\": [{{\"name\": \"all\", \"domains\": [\"*\"], \"routes\": [{{\"match\": {{\"prefix\": \"/\"}}, \"route\": {{\"cluster\": \"{cluster}\"}}}}]}}]}}"
    )
}

fn bootstrap(control: u16, admin: u16) -> String {
    let control = cluster("control", control, "");
    format!(
        "node: {{ id: node, cluster: test }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
stats_flush_interval: 0.1s
dynamic_resources: {{ cds_config: {SOURCE}, lds_config: {SOURCE} }}
static_resources:
  clusters:
{control}"
    )
}

/// The next request for this type; others are passed over.
fn next(control: &Upstream, kind: &str) -> (Seen, serde_json::Value) {
    loop {
        let seen = control.next();
        if seen.line() == format!("POST /v3/discovery:{kind} HTTP/1.1") {
            let body = serde_json::from_slice(&seen.body).unwrap();
            return (seen, body);
        }
    }
}

fn stat(admin: u16, name: &str) -> u64 {
    let told = Client::new(admin).get(&format!("/stats?filter=^{}$", name.replace('.', "\\."))).text();
    told.trim().rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// The headers, the paths and the words are those of Envoy 1.40.
#[test]
fn everything_is_polled_for_and_changes_while_it_serves() {
    let (first, second) = (Upstream::text("first"), Upstream::text("second"));
    let (script, port, admin) = (Script::default(), free_port(), free_port());
    script.say("clusters", &[response("1", &[eds("up")])]);
    script.say("endpoints", &[response("1", &[endpoints("up", first.port)])]);
    script.say("listeners", &[response("1", &[listener(port)])]);
    script.say("routes", &[response("1", &[routes("1", "up")])]);
    let answers = script.clone();
    let control = Upstream::scripted(move |seen| answers.answer(seen));
    let mut gateway = Gateway::spawn(&bootstrap(control.port, admin), &[]);
    let (head, body) = next(&control, "clusters");
    for (name, value) in [
        ("host", "control"),
        ("content-type", "application/json"),
        ("x-envoy-internal", "true"),
        ("x-envoy-expected-rq-timeout-ms", "5000"),
    ] {
        assert_eq!(head.header(name), Some(value), "{name}");
    }
    assert_eq!(body["node"]["id"], "node");
    assert_eq!(body["type_url"], format!("{}config.cluster.v3.Cluster", "type.googleapis.com/envoy."));
    assert_eq!((body.get("version_info"), body.get("resource_names")), (None, None));
    let (_, body) = next(&control, "endpoints");
    assert_eq!((&body["resource_names"], body.get("version_info")), (&serde_json::json!(["up"]), None));
    gateway.wait_for("listening");
    assert_eq!(next(&control, "routes").1["resource_names"], serde_json::json!(["routes"]));
    eventually("versions are told", || next(&control, "clusters").1["version_info"] == "1");
    let mut client = Client::new(port);
    assert_eq!(client.get("/").text(), "first");
    script.say("endpoints", &[response("2", &[endpoints("up", second.port)])]);
    eventually("the new endpoint", || client.get("/").text() == "second");
    script.say("routes", &[response("2", &[routes("2", "up")])]);
    eventually("the new routes", || client.get("/").header("x-version") == Some("2"));
    assert_eq!(stat(admin, "cluster_manager.cds.config_reload"), 1, "the same again changes nothing");
    script.say("clusters", &[response("2", &[])]);
    eventually("a cluster that is gone", || client.get("/").status == 503);
    while control.next().line().contains("endpoints") {}
}

#[test]
fn what_fails_or_is_bad_is_counted_and_polled_for_again_and_what_serves_goes_on() {
    let upstream = Upstream::text("hello");
    let (script, port, admin) = (Script::default(), free_port(), free_port());
    let good = response("1", &[eds("up")]);
    // Nobody waits for more than an answer, be it a bad one.
    script.say("clusters", &[unavailable(), ok("{no"), good.clone()]);
    script.say("endpoints", &[unavailable(), response("1", &[endpoints("up", upstream.port)])]);
    script.say("listeners", &[response("1", &[listener(port)])]);
    script.say("routes", &[response("1", &[routes("1", "up")])]);
    let answers = script.clone();
    let control = Upstream::scripted(move |seen| answers.answer(seen));
    let mut gateway = Gateway::spawn(&bootstrap(control.port, admin), &[]);
    gateway.wait_for("listening");
    let mut client = Client::new(port);
    eventually("it serves", || client.get("/").text() == "hello");
    let counts = |name: &str| ["update_failure", "update_rejected"].map(|what| stat(admin, &format!("{name}.{what}")));
    eventually("one failure, one rejection", || counts("cluster_manager.cds") == [1, 1]);
    assert_eq!(counts("cluster.up"), [1, 0]);
    let bad = "{\"@type\": \"TYPEconfig.cluster.v3.Cluster\", \"name\": \"bad\", \"type\": \"STATIC\", \"lb_policy\": \"CLUSTER_PROVIDED\"}";
    script.say("clusters", &[response("2", &[eds("up"), bad.replace("TYPE", TYPE)])]);
    script.say("endpoints", &[response("2", &[endpoints("other", 1)])]);
    script.say("routes", &[response("2", &[routes("2", "up"), routes("3", "up")])]);
    eventually("rejections", || {
        counts("cluster_manager.cds")[1] > 2 && counts("cluster.up")[1] > 1 && counts("http.t.rds.routes")[1] > 1
    });
    assert_eq!(client.get("/").header("x-version"), Some("1"));
    eventually("the version that acts is told", || next(&control, "routes").1["version_info"] == "1");
    let unchanged = b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec();
    script.say("clusters", &[good, unchanged.clone()]);
    script.say("endpoints", &[response("1", &[endpoints("up", upstream.port)]), unchanged]);
    let before = stat(admin, "cluster_manager.cds.update_attempt");
    eventually("more polls", || stat(admin, "cluster_manager.cds.update_attempt") > before + 5);
    let all = ["attempt", "success", "rejected", "failure"]
        .map(|what| stat(admin, &format!("cluster_manager.cds.update_{what}")));
    assert!(all[0] > all[1] + all[2] + all[3], "what has not changed is an attempt and nothing else: {all:?}");
    assert_eq!(client.get("/").text(), "hello");
}

/// With `--snapshot-dir` a start while no poll succeeds serves what the last process had.
#[test]
fn a_start_without_the_control_plane_serves_what_was_polled_before() {
    let upstream = Upstream::text("hello");
    let (script, port, admin, directory) = (Script::default(), free_port(), free_port(), Directory::new());
    let good = || {
        script.say("clusters", &[response("1", &[eds("up")])]);
        script.say("endpoints", &[response("1", &[endpoints("up", upstream.port)])]);
        script.say("listeners", &[response("1", &[listener(port)])]);
        script.say("routes", &[response("1", &[routes("1", "up")])]);
    };
    good();
    let answers = script.clone();
    let control = Upstream::scripted(move |seen| answers.answer(seen));
    let flags = ["--snapshot-dir", directory.0.to_str().unwrap()];
    let bootstrap = bootstrap(control.port, admin);
    let mut gateway = Gateway::start_with(&bootstrap, &flags);
    eventually("it serves", || Client::new(port).get("/").text() == "hello");
    gateway.signal("INT");
    assert!(gateway.wait().success());
    for kind in ["clusters", "endpoints", "listeners", "routes"] {
        script.say(kind, &[unavailable()]);
    }
    let mut gateway = Gateway::spawn(&bootstrap, &flags);
    gateway.wait_for("what was kept on disk is served");
    gateway.wait_for("listening");
    let mut client = Client::new(port);
    eventually("it serves again", || client.get("/").text() == "hello");
    let status = || Client::new(admin).get("/status").text();
    assert!(status().contains("KEPT ON DISK at "));
    control.all();
    eventually("the version that was kept is told", || next(&control, "clusters").1["version_info"] == "1");
    good();
    eventually("the control plane", || !status().contains("KEPT ON DISK"));
    assert_eq!(client.get("/").text(), "hello");
}

#[test]
fn what_cannot_be_polled_is_refused() {
    for (from, to, reason) in [
        ("\"refresh_delay\": \"0.02s\", ", "", "refresh_delay is required for REST API configuration sources"),
        ("0.02s", "0s", "refresh_delay: must be at least 1ms"),
        ("[\"control\"]", "[\"control\", \"b\"]", "must have a singleton cluster name specified"),
        (
            "[\"control\"]",
            "[\"nowhere\"]",
            "cluster_names[0]: envoy.config.core.v3.ApiConfigSource must have a statically defined non-EDS cluster: 'nowhere' does",
        ),
        ("\"REST\"", "\"GRPC\"", "a gRPC source must not have a cluster name specified"),
    ] {
        let bootstrap = bootstrap(1, free_port());
        assert!(bootstrap.contains(from));
        let mut gateway = Gateway::spawn(&bootstrap.replace(from, to), &[]);
        gateway.wait_for(reason);
        assert!(!gateway.wait().success());
    }
}
