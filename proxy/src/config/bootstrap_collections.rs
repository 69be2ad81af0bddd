//! `cds_resources_locator` and `lds_resources_locator`: a collection that is asked for in place of everything.
//! It must not know what it holds.

use std::sync::Arc;

use tidegate_control::client::xdstp;
use tidegate_filters::context::{CompileContext, ConfigSource};
use tidegate_xds::FieldError;

use super::Node;

type Parameter = (&'static str, fn(&Node) -> &str);

/// What `node_context_params` may name, and where the node says it.
const PARAMETERS: [Parameter; 5] = [
    ("id", |node| &node.id),
    ("cluster", |node| &node.cluster),
    ("locality.region", |node| &node.region),
    ("locality.zone", |node| &node.zone),
    ("locality.sub_zone", |node| &node.sub_zone),
];

/// The parameters that say who asks.
///
/// # Errors
/// One that is not told.
pub(super) fn node_parameters(
    names: &[String],
    node: &Node,
    context: &CompileContext<'_>,
) -> Result<Vec<(String, String)>, FieldError> {
    let parameter = |(index, name): (usize, &String)| match PARAMETERS.iter().find(|(known, _)| known == name) {
        Some((_, of)) => Ok((format!("xds.node.{name}"), of(node).to_owned())),
        None => {
            let field = format!("node_context_params[{index}]");
            Err(context.error_at(&field, format!("not supported yet: the node's {name} in xdstp names")))
        }
    };
    names.iter().enumerate().map(parameter).collect()
}

/// The collection that a field names; none where it is empty.
///
/// # Errors
/// What is no collection, or one that does not come from its source, as in Envoy.
pub(super) fn collection(
    field: &str,
    locator: &str,
    message: &str,
    source: Option<&ConfigSource>,
    node: &[(String, String)],
    context: &CompileContext<'_>,
) -> Result<Option<Arc<str>>, FieldError> {
    if locator.is_empty() {
        return Ok(None);
    }
    let name = xdstp::collection(locator, message, node).map_err(|reason| context.error_at(field, reason))?;
    match source {
        Some(ConfigSource::Ads(_)) => Ok(Some(name)),
        Some(ConfigSource::Stream(control_plane, _)) if control_plane.delta => Ok(Some(name)),
        Some(ConfigSource::Stream(..) | ConfigSource::Rest(..)) => {
            Err(context.error_at(field, "Unknown xdstp:// transport API type: a collection needs ADS or DELTA_GRPC"))
        }
        Some(ConfigSource::File { .. }) | None => Err(context.error_at(
            field,
            "Missing or not supported config source specifier in envoy::config::core::v3::ConfigSource for a \
             collection. Only ADS and gRPC in delta-xDS mode are supported.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use tidegate_filters::context::Defaults;
    use tidegate_xds::Format;

    use crate::config::bootstrap::{Bootstrap, Overrides};

    fn read(dynamic: &str, more: &str) -> Result<Bootstrap, String> {
        let text = format!(
            "node: {{id: node, cluster: test, locality: {{zone: z}}}}
dynamic_resources: {{{dynamic}}}
static_resources: {{clusters: [{{name: xds, type: STATIC}}]}}
{more}"
        );
        let read = Bootstrap::read(text.as_bytes(), Format::Yaml, &Overrides::default(), Defaults::Envoy);
        read.map_err(|errors| errors[0].to_string())
    }

    fn from(source: &str) -> String {
        format!("cds_config: {source}, cds_resources_locator: 'xdstp://a/envoy.config.cluster.v3.Cluster/b/*?z=1'")
    }

    fn api(kind: &str) -> String {
        format!(
            "{{api_type: {kind}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}"
        )
    }

    #[test]
    fn a_collection_is_asked_for_in_the_nodes_context() {
        let ads = format!("ads_config: {}, {}", api("GRPC"), from("{ads: {}}"));
        let bootstrap = read(&ads, "node_context_params: [id, locality.zone]").unwrap();
        assert_eq!(
            bootstrap.cds_collection.as_deref(),
            Some("xdstp://a/envoy.config.cluster.v3.Cluster/b/*?xds.node.id=node&xds.node.locality.zone=z&z=1")
        );
        assert!(bootstrap.lds_collection.is_none());
        let own = from(&format!("{{api_config_source: {}}}", api("DELTA_GRPC")));
        assert!(read(&own, "").unwrap().cds_collection.is_some());
    }

    #[test]
    fn what_brings_no_collections_is_refused() {
        let told = |dynamic: &str, more: &str| read(dynamic, more).err().unwrap_or_default();
        let own = from(&format!("{{api_config_source: {}}}", api("GRPC")));
        assert!(told(&own, "").contains("cds_resources_locator: Unknown xdstp:// transport API type"));
        let none = "lds_resources_locator: 'xdstp://a/envoy.config.listener.v3.Listener/b/*'";
        assert!(told(none, "").contains("Only ADS and gRPC in delta-xDS mode are supported."));
        assert!(told("", "node_context_params: [metadata]").contains("the node's metadata in xdstp names"));
    }
}
