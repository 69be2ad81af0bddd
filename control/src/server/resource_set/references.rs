//! Which resource names which other one: a table of fields, read through the schema, and nothing else of a resource.
//! It must not know what is there.

use std::sync::Arc;

use tidegate_xds::walk::walk;
use tidegate_xds::{FieldPath, Location, SourceMap};

use super::ResourceType;

/// One resource names another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub to: ResourceType,
    pub name: Arc<str>,
    /// The field that names it.
    pub path: FieldPath,
    /// Where the field stands in the file, for what came from one.
    pub location: Option<Location>,
}

struct Row {
    message: &'static str,
    /// Where the name stands; of several the first that is set.
    names: &'static [&'static str],
    to: ResourceType,
    /// The `ConfigSource` that says whether this control plane is asked; none: the name alone decides.
    source: Option<&'static str>,
}

const fn row(message: &'static str, names: &'static [&'static str], to: ResourceType) -> Row {
    Row { message, names, to, source: None }
}

const fn asked(message: &'static str, names: &'static [&'static str], to: ResourceType, source: &'static str) -> Row {
    Row { message, names, to, source: Some(source) }
}

/// Extension names of clusters that proxies have from their bootstrap are told apart by who reads a set, not here.
const ROWS: &[Row] = {
    use ResourceType as T;
    &[
        asked(
            "envoy.config.cluster.v3.Cluster",
            &["eds_cluster_config.service_name", "name"],
            T::ENDPOINTS,
            "eds_cluster_config.eds_config",
        ),
        row("envoy.extensions.clusters.aggregate.v3.ClusterConfig", &["clusters"], T::CLUSTER),
        row("envoy.config.route.v3.RouteAction", &["cluster"], T::CLUSTER),
        row("envoy.config.route.v3.RouteAction.RequestMirrorPolicy", &["cluster"], T::CLUSTER),
        row("envoy.config.route.v3.WeightedCluster.ClusterWeight", &["name"], T::CLUSTER),
        row("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", &["cluster"], T::CLUSTER),
        row(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
            &["name"],
            T::CLUSTER,
        ),
        row("envoy.config.core.v3.GrpcService.EnvoyGrpc", &["cluster_name"], T::CLUSTER),
        row("envoy.config.core.v3.HttpUri", &["cluster"], T::CLUSTER),
        asked(
            "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
            &["route_config_name"],
            T::ROUTES,
            "config_source",
        ),
        row("envoy.config.route.v3.ScopedRouteConfiguration", &["route_configuration_name"], T::ROUTES),
        asked("envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig", &["name"], T::SECRET, "sds_config"),
        asked(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
            &["name"],
            T::EXTENSION,
            "config_discovery.config_source",
        ),
        asked("envoy.config.listener.v3.Filter", &["name"], T::EXTENSION, "config_discovery.config_source"),
        asked("envoy.config.listener.v3.ListenerFilter", &["name"], T::EXTENSION, "config_discovery.config_source"),
    ]
};

/// All that a message names. Only `ads` and `self` are sure to mean the control plane that serves the resource: what comes
/// from elsewhere is not judged.
pub(super) fn of(message: &str, bytes: &[u8], source: Option<(&SourceMap, &FieldPath)>) -> Vec<Reference> {
    let mut found = Vec::new();
    walk(message, bytes, &mut |visited| {
        for row in ROWS.iter().filter(|row| row.message == visited.message()) {
            let ours =
                |source: &str| ["ads", "self"].iter().any(|specifier| visited.holds(&format!("{source}.{specifier}")));
            if row.source.is_some_and(|source| !ours(source)) {
                continue;
            }
            let names = row.names.iter().map(|path| visited.texts(path)).find(|names| !names.is_empty());
            found.extend(names.into_iter().flatten().map(|(path, name)| {
                let locate = |(map, base): (&SourceMap, &FieldPath)| map.locate(&path.clone().under(base));
                let location = source.and_then(locate);
                Reference { to: row.to, name: name.into(), path, location }
            }));
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_xds::{Format, UnknownFields, decode, schema};

    #[test]
    fn the_table_names_fields_that_exist() {
        for row in ROWS {
            for path in row.names.iter().chain(&row.source) {
                let mut message = schema::message(row.message).expect(row.message);
                for (last, name) in path.split('.').enumerate() {
                    let field = message.field(name).unwrap_or_else(|| panic!("{}.{path}", row.message));
                    message = field.message().unwrap_or(message);
                    assert!(last < 3);
                }
            }
        }
    }

    fn names(kind: ResourceType, text: &str) -> Vec<String> {
        let bytes = decode(kind.message(), text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap().bytes;
        of(kind.message(), &bytes, None)
            .iter()
            .map(|found| format!("{} {} {}", found.path, found.to.short(), found.name))
            .collect()
    }

    #[test]
    fn endpoints_are_named_by_service_or_cluster() {
        let ads = "eds_config: { ads: {} }";
        let named = format!("name: a\ntype: EDS\neds_cluster_config: {{ {ads}, service_name: s }}");
        let path = "eds_cluster_config.service_name";
        assert_eq!(names(ResourceType::CLUSTER, &named), [format!("{path} ClusterLoadAssignment s")]);
        let unnamed = format!("name: a\neds_cluster_config: {{ {ads} }}");
        assert_eq!(names(ResourceType::CLUSTER, &unnamed), ["name ClusterLoadAssignment a"]);
        let file = "name: a\neds_cluster_config: { eds_config: { path_config_source: { path: /p } } }";
        assert_eq!(names(ResourceType::CLUSTER, file), [""; 0]);
    }

    #[test]
    fn listeners_name_routes_secrets_and_clusters() {
        let text = r#"
name: l
filter_chains:
- transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      common_tls_context:
        tls_certificate_sds_secret_configs: [{ name: cert, sds_config: { ads: {} } }]
  filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: x
      rds: { route_config_name: r, config_source: { ads: {} } }
      http_filters:
      - { name: lua, config_discovery: { config_source: { ads: {} }, type_urls: [t] } }
- filters:
  - name: tcp
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: x
      weighted_clusters: { clusters: [{ name: one, weight: 1 }, { name: two, weight: 1 }] }
"#;
        let mut found = names(ResourceType::LISTENER, text);
        found.iter_mut().for_each(|line| *line = line.split_once(' ').unwrap().1.to_owned());
        found.sort();
        assert_eq!(
            found,
            ["Cluster one", "Cluster two", "RouteConfiguration r", "Secret cert", "TypedExtensionConfig lua"]
        );
    }
}
