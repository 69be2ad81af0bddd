//! Which cluster a route forwards to. It must not know which there are; those that must exist become needs.

use std::sync::Arc;

use serde_json::{Map, Value};
use tidegate_filters::context::CompileContext;
use tidegate_filters::http::HeaderKey;
use tidegate_filters::runtime::Keyed;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::Metadata as MetadataProto;
use tidegate_xds::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use tidegate_xds::pb::envoy::config::route::v3::weighted_cluster::cluster_weight::HostRewriteSpecifier;
use tidegate_xds::pb::envoy::config::route::v3::weighted_cluster::{ClusterWeight, RandomValueSpecifier};
use tidegate_xds::pb::envoy::config::route::v3::{RouteAction, WeightedCluster as WeightedProto};

use super::overrides::{self, Level};
use super::virtual_host::Host;
use super::{headers, specifier, values};
use crate::route::{ClusterName, ClusterSelector, MetadataMatch, WeightedCluster, WeightedClusters};

/// The namespace that load balancers read.
const LB: &str = "envoy.lb";

/// Compiles a route action's cluster specifier.
pub(super) fn selector(
    proto: &RouteAction,
    metadata_match: Option<&Arc<MetadataMatch>>,
    host: &Host<'_>,
    levels: &[&Level; 3],
    validate: bool,
    context: &mut CompileContext<'_>,
) -> Result<ClusterSelector, FieldError> {
    match &proto.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            need(name, "cluster", validate, context);
            Ok(ClusterSelector::Named(name.as_str().into()))
        }
        Some(ClusterSpecifier::ClusterHeader(header)) => Ok(ClusterSelector::Header(HeaderKey::new(header))),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => context.within("weighted_clusters", |context| {
            let compiled = self::weighted(weighted, metadata_match, host, levels, validate, context)?;
            Ok(ClusterSelector::Weighted(Box::new(compiled)))
        }),
        Some(ClusterSpecifier::ClusterSpecifierPlugin(name)) => match host.table.common.plugins.get(name) {
            Some(plugin) => Ok(plugin.selector()),
            None => {
                let reason = format!("there is no cluster specifier plugin '{name}'");
                Err(context.error_at("cluster_specifier_plugin", reason))
            }
        },
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(proto)) => {
            let compile = |context: &mut CompileContext<'_>| specifier::compile(proto, context);
            Ok(context.within("inline_cluster_specifier_plugin", compile)?.selector())
        }
        None => Err(context.error("a cluster specifier is required")),
    }
}

/// Notes that the cluster that a field names must exist.
pub(super) fn need(name: &str, field: &str, validate: bool, context: &mut CompileContext<'_>) {
    if validate {
        let path = context.path.clone().field(field);
        context.needs.clusters.entry(name.to_owned()).or_insert(path);
    }
}

fn weighted(
    proto: &WeightedProto,
    metadata_match: Option<&Arc<MetadataMatch>>,
    host: &Host<'_>,
    levels: &[&Level; 3],
    validate: bool,
    context: &mut CompileContext<'_>,
) -> Result<WeightedClusters, FieldError> {
    let compile = |(index, cluster): (usize, &ClusterWeight)| {
        context.within_item("clusters", index, |context| {
            let key = &proto.runtime_key_prefix;
            one(cluster, key, metadata_match, host, levels, validate, context).map(Arc::new)
        })
    };
    let clusters: Vec<_> = proto.clusters.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
    match clusters.iter().map(|cluster| cluster.weight.default).sum::<u64>() {
        0 => return Err(context.error_at("clusters", "the sum of weights must be greater than 0")),
        sum if sum > u64::from(u32::MAX) => {
            return Err(context.error_at("clusters", format!("the sum of weights exceeds {}", u32::MAX)));
        }
        _ => {}
    }
    let (random_header, use_hash_policy) = match &proto.random_value_specifier {
        Some(RandomValueSpecifier::HeaderName(name)) if !name.is_empty() => (Some(HeaderKey::new(name)), false),
        Some(RandomValueSpecifier::UseHashPolicy(use_hash_policy)) => (None, use_hash_policy.value),
        Some(RandomValueSpecifier::HeaderName(_)) | None => (None, false),
    };
    Ok(WeightedClusters { clusters, random_header, use_hash_policy })
}

fn one(
    proto: &ClusterWeight,
    runtime_key_prefix: &str,
    metadata_match: Option<&Arc<MetadataMatch>>,
    host: &Host<'_>,
    levels: &[&Level; 3],
    validate: bool,
    context: &mut CompileContext<'_>,
) -> Result<WeightedCluster, FieldError> {
    let cluster = match (proto.name.as_str(), proto.cluster_header.as_str()) {
        ("", "") => return Err(context.error("a name or a cluster_header is required")),
        (name, "") => {
            need(name, "name", validate, context);
            ClusterName::Fixed(name.into())
        }
        ("", header) => ClusterName::Header(HeaderKey::new(header)),
        _ => return Err(context.error("only one of name and cluster_header may be set")),
    };
    let Some(weight) = &proto.weight else { return Err(context.error_at("weight", "a weight is required")) };
    let key = (!runtime_key_prefix.is_empty()).then(|| format!("{runtime_key_prefix}.{}", proto.name).into());
    let own = overrides::level(&proto.typed_per_filter_config, host.table.factories, context)?;
    let [config, virtual_host, route] = *levels;
    let host_rewrite = match &proto.host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(literal)) => {
            headers::value("host_rewrite_literal", literal, context)?
        }
        None => None,
    };
    Ok(WeightedCluster {
        cluster,
        weight: Keyed { key, default: u64::from(weight.value) },
        metadata_match: self::metadata_match(proto.metadata_match.as_ref(), metadata_match),
        request_headers: headers::request(&proto.request_headers_to_add, &proto.request_headers_to_remove, context)?,
        response_headers: headers::response(
            &proto.response_headers_to_add,
            &proto.response_headers_to_remove,
            context,
        )?,
        host_rewrite,
        overrides: overrides::merge(&[config, virtual_host, route, &own]),
    })
}

/// The `envoy.lb` part of a `metadata_match`, over that of the route it stands in.
pub(in crate::config) fn metadata_match(
    proto: Option<&MetadataProto>,
    parent: Option<&Arc<MetadataMatch>>,
) -> Option<Arc<MetadataMatch>> {
    let own: Map<String, Value> = values::object(proto?.filter_metadata.get(LB)?);
    let mut merged = parent.map(|parent| parent.0.clone()).unwrap_or_default();
    merged.extend(own);
    Some(Arc::new(MetadataMatch(merged)))
}

#[cfg(test)]
mod tests {
    use crate::config::route::testing::{chosen, get, route_error, routes};
    use serde_json::json;

    fn weighted(rest: &str) -> String {
        format!("[{{match: {{prefix: /}}, route: {{weighted_clusters: {{{rest}}}}}}}]")
    }

    /// As Envoy 1.40 refuses them.
    #[test]
    fn weights_that_divide_nothing_are_refused() {
        for (clusters, error) in [
            ("{name: a, weight: 0}", "clusters: the sum of weights must be greater than 0"),
            ("{name: a}", "clusters[0].weight: a weight is required"),
            ("{name: a, weight: 4294967295}, {name: b, weight: 1}", "clusters: the sum of weights exceeds 4294967295"),
            ("{name: a, cluster_header: x, weight: 1}", "clusters[0]: only one of name and cluster_header may be set"),
            ("{weight: 1}", "clusters[0]: a name or a cluster_header is required"),
        ] {
            let found = route_error(&weighted(&format!("clusters: [{clusters}]")));
            assert_eq!(found, format!("routes[0].route.weighted_clusters.{error}"));
        }
        routes(&weighted("clusters: [{name: a, weight: 3}], total_weight: 100"));
    }

    #[test]
    fn a_header_draws_and_names() {
        let table = routes(&weighted(
            "header_name: x-r, clusters: [{name: a, weight: 1}, {cluster_header: ':authority', weight: 1}]",
        ));
        let cluster = |random| chosen(&table, &get("/", &[("x-r", random)])).cluster.clone().unwrap();
        assert_eq!((&*cluster("2"), &*cluster("3")), ("a", "h.com"));
    }

    #[test]
    fn metadata_of_a_weighted_cluster_goes_over_the_routes() {
        let table = routes(
            "[{match: {prefix: /}, route: {metadata_match: {filter_metadata: {envoy.lb: {a: 1, b: 1}, other: {c: 1}}}, \
               weighted_clusters: {clusters: [{name: w, weight: 1, metadata_match: {filter_metadata: {envoy.lb: {b: 2}}}}]}}}]",
        );
        let found = chosen(&table, &get("/", &[]));
        assert_eq!(serde_json::Value::Object(found.metadata_match().unwrap().0.clone()), json!({"a": 1, "b": 2}));
    }
}
