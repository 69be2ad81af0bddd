//! The route configurations that stand in a listener: what a configuration dump shows as static ones.
//! It must not know what becomes of them.

use tidegate_xds::FieldPath;
use tidegate_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use tidegate_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// In the order of the filter chains.
pub(crate) fn of(listener: &Listener) -> Vec<RouteConfiguration> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain).flat_map(of_chain).collect()
}

fn of_chain(chain: &FilterChain) -> Vec<RouteConfiguration> {
    use proto::http_connection_manager::RouteSpecifier;
    let managers = chain.filters.iter().filter_map(|filter| match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) if tidegate_xds::any::type_name(&config.type_url) == Some(HCM) => {
            tidegate_xds::any::unpack::<proto::HttpConnectionManager>(config, &FieldPath::root()).ok()
        }
        _ => None,
    });
    managers
        .filter_map(|manager| match manager.route_specifier {
            Some(RouteSpecifier::RouteConfig(routes)) => Some(routes),
            _ => None,
        })
        .collect()
}
