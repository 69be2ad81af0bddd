//! The route configurations and scopes that stand in a listener: what a configuration dump shows as static ones.
//! It must not know what becomes of them.

use proto::http_connection_manager::RouteSpecifier;
use tidegate_xds::FieldPath;
use tidegate_xds::pb::envoy::config::listener::v3::Listener;
use tidegate_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use tidegate_xds::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration};
use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Route configurations, in the order of the filter chains.
pub(crate) fn of(listener: &Listener) -> Vec<RouteConfiguration> {
    let routes = managers(listener).filter_map(|manager| match manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => Some(routes),
        _ => None,
    });
    routes.collect()
}

/// Scoped routes whose scopes stand there, each with its name, in the same order.
pub(crate) fn scopes_of(listener: &Listener) -> Vec<(String, Vec<ScopedRouteConfiguration>)> {
    use proto::scoped_routes::ConfigSpecifier;
    let scopes = managers(listener).filter_map(|manager| match manager.route_specifier {
        Some(RouteSpecifier::ScopedRoutes(scoped)) => match scoped.config_specifier {
            Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
                Some((scoped.name, list.scoped_route_configurations))
            }
            _ => None,
        },
        _ => None,
    });
    scopes.collect()
}

fn managers(listener: &Listener) -> impl Iterator<Item = proto::HttpConnectionManager> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains.flat_map(|chain| &chain.filters).filter_map(|filter| match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) if tidegate_xds::any::type_name(&config.type_url) == Some(HCM) => {
            tidegate_xds::any::unpack::<proto::HttpConnectionManager>(config, &FieldPath::root()).ok()
        }
        _ => None,
    })
}
