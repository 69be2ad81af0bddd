//! Resources in files: clusters, listeners, routes and endpoints come, change and go while traffic flows.

use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, Upstream};

fn bootstrap(directory: &Directory) -> String {
    let path = directory.0.display();
    format!(
        "node: {{ id: node, cluster: test }}
dynamic_resources:
  lds_config: {{ path_config_source: {{ path: {path}/lds.yaml }} }}
  cds_config: {{ path_config_source: {{ path: {path}/cds.yaml }} }}
"
    )
}

fn lds(directory: &Directory, port: u16) -> String {
    format!(
        "resources:
- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: main
  address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: t
        rds: {{ route_config_name: routes, config_source: {{ path_config_source: {{ path: {}/rds.yaml }} }} }}
        http_filters:
        - name: router
          typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
",
        directory.0.display()
    )
}

fn cds(directory: &Directory) -> String {
    format!(
        "resources:
- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: up
  type: EDS
  eds_cluster_config: {{ eds_config: {{ path_config_source: {{ path: {}/eds.yaml }} }} }}
",
        directory.0.display()
    )
}

fn rds(prefix: &str) -> String {
    format!(
        "resources:
- '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: routes
  virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: {prefix} }}, route: {{ cluster: up }} }}] }}]
"
    )
}

fn eds(port: u16) -> String {
    format!(
        "resources:
- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: up
  endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}]
"
    )
}

#[test]
fn everything_comes_from_files_and_changes_while_it_serves() {
    let (first, second) = (Upstream::text("first"), Upstream::text("second"));
    let directory = Directory::new();
    let port = free_port();
    directory.put("eds.yaml", &eds(first.port));
    directory.put("rds.yaml", &rds("/"));
    directory.put("cds.yaml", &cds(&directory));
    directory.put("lds.yaml", &lds(&directory, port));
    let mut gateway = Gateway::start(&bootstrap(&directory));
    let mut client = Client::new(port);
    assert_eq!(client.get("/a").text(), "first");

    directory.put("eds.yaml", &eds(second.port));
    eventually("the new endpoint", || client.get("/a").text() == "second");

    directory.put("rds.yaml", &rds("/only"));
    eventually("the new routes", || client.get("/a").status == 404);
    assert_eq!(client.get("/only").text(), "second");

    directory.put("rds.yaml", "resources: [{ '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: routes, virtual_hosts: [{ name: a, domains: [] }] }]");
    gateway.wait_for("rejected");
    assert_eq!(client.get("/only").text(), "second", "a bad update disturbed what serves");
}

#[test]
fn a_listener_waits_for_its_routes() {
    let upstream = Upstream::text("hello");
    let directory = Directory::new();
    let port = free_port();
    directory.put("eds.yaml", &eds(upstream.port));
    directory.put("cds.yaml", &cds(&directory));
    directory.put("lds.yaml", &lds(&directory, port));
    let mut gateway = Gateway::spawn(&bootstrap(&directory), &[]);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    directory.put("rds.yaml", &rds("/"));
    gateway.wait_for("listening");
    assert_eq!(Client::new(port).get("/").text(), "hello");
}

/// A process that leaves still takes connections for a while; they are not to go to who has left before it.
#[test]
fn hosts_still_change_while_a_process_leaves() {
    let (first, second) = (Upstream::text("first"), Upstream::text("second"));
    let directory = Directory::new();
    let port = free_port();
    directory.put("eds.yaml", &eds(first.port));
    directory.put("rds.yaml", &rds("/"));
    directory.put("cds.yaml", &cds(&directory));
    directory.put("lds.yaml", &lds(&directory, port));
    let mut gateway = Gateway::start_with(&bootstrap(&directory), &["--drain-time-s", "600"]);
    assert_eq!(Client::new(port).get("/").text(), "first");
    gateway.signal("TERM");
    gateway.wait_for("draining");
    directory.put("eds.yaml", &eds(second.port));
    eventually("the new endpoint", || Client::new(port).get("/").text() == "second");
    directory.put("lds.yaml", "resources: []");
    directory.put("rds.yaml", &rds("/only"));
    eventually("the new routes", || Client::new(port).get("/").status == 404);
    assert_eq!(
        Client::new(port).get("/only").text(),
        "second",
        "the sockets of a process that leaves stay as they are"
    );
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}
