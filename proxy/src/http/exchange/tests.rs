//! What an exchange asks of the process, seen from its connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use prost::Message;
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::context::Defaults;
use tidegate_filters::stream_info::Address;
use tidegate_stats::Store as StatsStore;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::{FieldPath, Format, UnknownFields, decode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::config::bootstrap::{Bootstrap, Overrides};
use crate::config::store::Placed;
use crate::http::connection_manager;
use crate::io::Transport;
use crate::listener::accept::Chosen;
use crate::listener::filter_chain::Terminal;
use crate::runtime::Layers;
use crate::server::make_store;

const ROUTES: &str = "name: routes, virtual_hosts: [{ name: all, domains: ['*'], routes: [{ match: { prefix: / }, \
                      direct_response: { status: 200 } }] }]";

fn bootstrap(routes: &str) -> Bootstrap {
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let text = format!(
        "node: {{ id: a, cluster: a }}
dynamic_resources: {{ ads_config: {{ api_type: GRPC, transport_api_version: V3, grpc_services: [{{ envoy_grpc: {{ cluster_name: c }} }}] }} }}
static_resources:
  clusters: [{{ name: c, type: STATIC }}]
  listeners:
  - name: l
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 1 }} }}
    filter_chains: [{{ filters: [{{ name: http, typed_config: {{ '@type': {hcm}, stat_prefix: t, {routes}, http_filters: [{{ name: router, typed_config: {{ '@type': {router} }} }}] }} }}] }}]
"
    );
    Bootstrap::read(text.as_bytes(), Format::Yaml, &Overrides::default(), Defaults::Safe).unwrap()
}

#[tokio::test]
async fn an_exchange_loads_the_configuration_once() {
    let rds = "rds: { route_config_name: routes, config_source: { ads: {}, resource_api_version: V3 } }";
    for source in [rds, &format!("route_config: {{ {ROUTES} }}")] {
        let bootstrap = bootstrap(source);
        let stats = StatsStore::new();
        let layers = Arc::new(Layers::new(bootstrap.runtime_layers.clone(), &stats));
        let (mut store, shared) = make_store(&bootstrap, Defaults::Safe, &stats, layers, None);
        let (root, version): (_, Arc<str>) = (FieldPath::root(), "".into());
        let clusters = bootstrap.clusters().iter().cloned();
        let clusters = clusters.map(|cluster| Placed::encoded(cluster, root.clone(), &version)).collect();
        assert_eq!(store.update_clusters(clusters), []);
        let listeners = bootstrap.listeners().iter().cloned();
        let listeners = listeners.map(|listener| Placed::encoded(listener, root.clone(), &version)).collect();
        assert_eq!(store.update_listeners(listeners), []);
        let text = format!("{{ {ROUTES} }}");
        let routes =
            decode("envoy.config.route.v3.RouteConfiguration", text.as_bytes(), Format::Yaml, UnknownFields::Reject);
        let routes = RouteConfiguration::decode(&*routes.unwrap().bytes).unwrap();
        assert_eq!(store.update_routes(vec![Placed::encoded(routes, root, &version)]), []);
        let chain = Arc::clone(&shared.snapshot().listeners["l"].chains.all[0]);
        let Terminal::Http(hcm, listener_stats) = chain.terminal.clone() else { panic!("no HTTP") };
        let before = shared.loads.load(Relaxed);

        let address = Address::Ip(SocketAddr::from(([127, 0, 0, 1], 1)));
        let info = Arc::new(ConnectionInfo::new(1, address.clone(), address, Instant::now()));
        let (own, mut peer) = UnixStream::pair().unwrap();
        let transport = Transport::Unix(own);
        let chosen = Chosen { shared: Arc::clone(&shared), chain, info, transport, seen: None };
        let serving = tokio::spawn(connection_manager::serve(chosen, hcm, listener_stats));
        peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        peer.read_exact(&mut head).await.unwrap();
        drop(peer);
        serving.await.unwrap();
        assert_eq!((&head, shared.loads.load(Relaxed) - before), (b"HTTP/1.1 200", 1), "{source}");
    }
}
