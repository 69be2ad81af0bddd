//! What a bootstrap may say and hardly means: for a person, nothing is refused for it. It must not know how anything is served.

use std::collections::HashSet;

use tidegate_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use tidegate_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use tidegate_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use tidegate_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use tidegate_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use tidegate_xds::{FieldError, FieldPath, any};

/// Everything of that kind in the static resources.
pub(super) fn of(bootstrap: &Bootstrap) -> Vec<FieldError> {
    let Some(resources) = &bootstrap.static_resources else { return Vec::new() };
    let comes = bootstrap.dynamic_resources.as_ref().is_some_and(|dynamic| dynamic.cds_config.is_some());
    // Where clusters are discovered, any name may come.
    let clusters = (!comes).then(|| resources.clusters.iter().map(|cluster| cluster.name.as_str()).collect());
    let mut warnings = Warnings { clusters, found: Vec::new() };
    let mut names = HashSet::new();
    for (index, listener) in resources.listeners.iter().enumerate() {
        let path = FieldPath::root().field("static_resources").field("listeners").index(index);
        if !listener.name.is_empty() && !names.insert(listener.name.as_str()) {
            let reason = format!("listener '{}' is there already: this one is left out, as Envoy does", listener.name);
            warnings.found.push(FieldError::new(path.clone().field("name"), reason));
        }
        warnings.listener(listener, &path);
    }
    for (index, cluster) in resources.clusters.iter().enumerate() {
        let path = FieldPath::root().field("static_resources").field("clusters").index(index);
        let matched = cluster.transport_socket_matches.iter().enumerate().filter_map(|(index, given)| {
            let path = path.clone().field("transport_socket_matches").index(index).field("transport_socket");
            Some((given.transport_socket.as_ref()?, path))
        });
        let own = cluster.transport_socket.as_ref().map(|socket| (socket, path.clone().field("transport_socket")));
        for (socket, path) in own.into_iter().chain(matched) {
            warnings.found.extend(super::tls::doubts(socket, &path));
        }
    }
    warnings.found
}

struct Warnings<'a> {
    /// All that there can be, if that is known.
    clusters: Option<HashSet<&'a str>>,
    found: Vec<FieldError>,
}

impl Warnings<'_> {
    fn listener(&mut self, listener: &Listener, path: &FieldPath) {
        for (index, chain) in listener.filter_chains.iter().enumerate() {
            self.chain(chain, &path.clone().field("filter_chains").index(index));
        }
        if let Some(chain) = &listener.default_filter_chain {
            self.chain(chain, &path.clone().field("default_filter_chain"));
        }
    }

    fn chain(&mut self, chain: &FilterChain, path: &FieldPath) {
        if chain.filters.is_empty() {
            self.found.push(FieldError::new(path.clone(), "there are no filters: each connection is closed at once"));
        }
        if let Some(socket) = &chain.transport_socket {
            self.found.extend(super::tls::doubts(socket, &path.clone().field("transport_socket")));
        }
        for (index, filter) in chain.filters.iter().enumerate() {
            let path = path.clone().field("filters").index(index).field("typed_config");
            if let Some(ConfigType::TypedConfig(config)) = &filter.config_type
                && let Ok(proxy) = any::unpack::<TcpProxy>(config, &path)
            {
                self.tcp_proxy(&proxy, &path);
            }
        }
    }

    fn tcp_proxy(&mut self, proxy: &TcpProxy, path: &FieldPath) {
        match &proxy.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => self.cluster(name, path.clone().field("cluster")),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                for (index, cluster) in weighted.clusters.iter().enumerate() {
                    let path = path.clone().field("weighted_clusters").field("clusters").index(index);
                    self.cluster(&cluster.name, path.field("name"));
                }
            }
            None => {}
        }
    }

    fn cluster(&mut self, name: &str, path: FieldPath) {
        let Some(clusters) = &self.clusters else { return };
        if !clusters.contains(name) {
            let near = tidegate_xds::nearest(name, clusters.iter().copied());
            let hint = near.map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
            let reason = format!("unknown cluster '{name}': its connections are closed{hint}");
            self.found.push(FieldError::new(path, reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_filters::context::Defaults;
    use tidegate_xds::Format;

    use crate::config::bootstrap::{Bootstrap, Overrides};

    fn warnings(yaml: &str) -> Vec<String> {
        let read = Bootstrap::read(yaml.as_bytes(), Format::Yaml, &Overrides::default(), Defaults::Envoy);
        let read = read.map_err(|errors| errors[0].to_string()).unwrap();
        read.warnings.iter().map(ToString::to_string).collect()
    }

    fn listener(name: &str, filters: &str) -> String {
        let address = "{socket_address: {address: 127.0.0.1, port_value: 0}}";
        format!("{{name: {name}, address: {address}, filter_chains: [{{filters: [{filters}]}}]}}")
    }

    fn proxy(clusters: &str) -> String {
        let url = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
        format!("{{name: t, typed_config: {{'@type': {url}, stat_prefix: t, {clusters}}}}}")
    }

    #[test]
    fn what_is_hardly_meant_is_told_with_its_place() {
        let tcp = proxy("weighted_clusters: {clusters: [{name: web, weight: 1}, {name: wbe, weight: 1}]}");
        let yaml = format!(
            "static_resources:\n  clusters: [{{name: web}}]\n  listeners:\n  - {}\n  - {}\nstatic_resources: ~\n\
             static_resources:\n  clusters: [{{name: web}}]\n  listeners:\n  - {}\n  - {}\n",
            listener("a", ""),
            listener("a", ""),
            listener("a", &proxy("cluster: other")),
            listener("a", &tcp),
        );
        let found = warnings(&yaml);
        let told = [
            "`static_resources` is set again below, which counts (line 1, column 1)",
            "`static_resources` is set again below, which counts (line 6, column 1)",
            "filters[0].typed_config.cluster: unknown cluster 'other': its connections are closed (line 10, ",
            "listeners[1].name: listener 'a' is there already: this one is left out, as Envoy does (line 11, ",
            "clusters[1].name: unknown cluster 'wbe': its connections are closed; did you mean 'web'? (line 11, ",
        ];
        assert_eq!(found.len(), told.len(), "{found:#?}");
        assert!(found.iter().zip(told).all(|(found, told)| found.contains(told)), "{found:#?}");
    }

    #[test]
    fn what_is_meant_is_not() {
        let yaml = |listener: &str, dynamic: &str| {
            format!("static_resources:\n  clusters: [{{name: web}}]\n  listeners: [{listener}]\n{dynamic}")
        };
        assert_eq!(warnings(&yaml(&listener("a", &proxy("cluster: web")), "")), Vec::<String>::new());
        let dynamic =
            "node: {id: a, cluster: b}\ndynamic_resources: {cds_config: {path_config_source: {path: /dev/null}}}";
        assert_eq!(warnings(&yaml(&listener("a", &proxy("cluster: other")), dynamic)), Vec::<String>::new());
        assert!(warnings(&yaml(&listener("a", ""), ""))[0].contains("filter_chains[0]: there are no filters"));
    }
}
