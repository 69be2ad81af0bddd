//! Mirror policies. It must not know on which level they stand.

use tidegate_filters::context::CompileContext;
use tidegate_filters::http::HeaderKey;
use tidegate_filters::http::header_mutations::HeaderEdits;
use tidegate_filters::runtime::Fraction;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;

use super::{cluster, headers};
use crate::config::values::runtime_fraction;
use crate::route::{ClusterName, MirrorPolicy};

/// Compiles `request_mirror_policies`.
pub(in crate::config) fn policies(
    policies: &[RequestMirrorPolicy],
    validate_clusters: bool,
    context: &mut CompileContext<'_>,
) -> Result<Vec<MirrorPolicy>, FieldError> {
    let compile = |(index, proto): (usize, &RequestMirrorPolicy)| {
        context.within_item("request_mirror_policies", index, |context| policy(proto, validate_clusters, context))
    };
    policies.iter().enumerate().map(compile).collect()
}

fn policy(
    proto: &RequestMirrorPolicy,
    validate_clusters: bool,
    context: &mut CompileContext<'_>,
) -> Result<MirrorPolicy, FieldError> {
    let cluster = match (proto.cluster.as_str(), proto.cluster_header.as_str()) {
        ("", "") => return Err(context.error("a cluster or a cluster_header is required")),
        (name, "") => {
            cluster::need(name, "cluster", validate_clusters, context);
            ClusterName::Fixed(name.into())
        }
        ("", header) => ClusterName::Header(HeaderKey::new(header)),
        _ => return Err(context.error("only one of cluster and cluster_header may be set")),
    };
    Ok(MirrorPolicy {
        cluster,
        fraction: proto.runtime_fraction.as_ref().map_or(Fraction::ALWAYS, runtime_fraction),
        host_suffix: !proto.disable_shadow_host_suffix_append,
        host_rewrite: headers::value("host_rewrite_literal", &proto.host_rewrite_literal, context)?,
        edits: HeaderEdits::compile("request_headers_mutations", &proto.request_headers_mutations, context)?,
    })
}
