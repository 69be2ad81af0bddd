//! Fixtures: a running gateway, upstreams that record what they saw, clients that speak bytes.

pub mod certificates;
pub mod contract;
pub mod control_plane;
pub mod frames;
pub mod gateway;
pub mod http;
pub mod upstream;

pub use gateway::Gateway;
pub use http::Client;
pub use upstream::Upstream;

/// A bootstrap with one HTTP listener whose routes and filters are given; `ROUTES` and `CLUSTERS` are YAML at the right
/// indentation for a flow or block list.
pub fn http_bootstrap(port: u16, routes: &str, clusters: &[(&str, u16)]) -> String {
    http_bootstrap_with(port, "", routes, clusters, "")
}

/// The same with more fields of the connection manager and of each cluster (flow style).
pub fn http_bootstrap_with(
    port: u16,
    manager: &str,
    routes: &str,
    clusters: &[(&str, u16)],
    cluster_fields: &str,
) -> String {
    let clusters: String = clusters.iter().map(|(name, port)| cluster(name, *port, cluster_fields)).collect();
    format!(
        "static_resources:
  listeners:
  - name: main
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: test
          {manager}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ['*']
              routes: {routes}
  clusters:
{clusters}"
    )
}

/// A static cluster of one host.
pub fn cluster(name: &str, port: u16, fields: &str) -> String {
    format!(
        "  - name: {name}
    type: STATIC
    {fields}
    load_assignment:
      cluster_name: {name}
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}]
"
    )
}
