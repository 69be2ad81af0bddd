//! A store that serves nothing yet, for the tests of this folder. It must not be used outside tests.

use std::sync::Arc;

use tidegate_filters::context::Defaults;
use tidegate_stats::Store as StatsStore;
use tidegate_xds::Format;

use super::Store;
use crate::config::bootstrap::{Bootstrap, Overrides};
use crate::runtime::Layers;

const BOOTSTRAP: &str = "node: {id: node, cluster: test}\n\
     dynamic_resources: {ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, \
     grpc_services: [{envoy_grpc: {cluster_name: xds}}]}}\n\
     static_resources: {clusters: [{name: xds, type: STATIC}]}";

pub(super) fn store() -> Store {
    let read = Bootstrap::read(BOOTSTRAP.as_bytes(), Format::Yaml, &Overrides::default(), Defaults::Envoy);
    let (bootstrap, stats) = (read.unwrap(), StatsStore::new());
    let layers = Arc::new(Layers::new(bootstrap.runtime_layers.clone(), &stats));
    crate::server::make_store(&bootstrap, Defaults::Envoy, &stats, layers, None).0
}
