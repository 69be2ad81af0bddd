//! `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy` -> [`TcpProxy`]. It must not know connections.

use std::time::Duration;

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use tidegate_xds::{Coverage, FieldError};

use super::Compiler;
use super::values::{timeout, wrapped_u32};
use crate::tcp::{TcpCluster, TcpProxy, TcpStats};

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        enforced: &[
            "stat_prefix",
            "cluster",
            "weighted_clusters",
            "idle_timeout",
            "access_log",
            "max_connect_attempts",
            "max_downstream_connection_duration",
            "hash_policy",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster",
        enforced: &["clusters"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        enforced: &["name", "weight"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.HashPolicy", enforced: &["source_ip"], listed: &[] },
    Coverage { message: "envoy.type.v3.HashPolicy.SourceIp", enforced: &[], listed: &[] },
];

/// Compiles a TCP proxy.
pub(crate) fn compile(
    compiler: &Compiler,
    config: &proto::TcpProxy,
    context: &mut CompileContext<'_>,
) -> Result<TcpProxy, FieldError> {
    use proto::tcp_proxy::ClusterSpecifier;
    let clusters = match &config.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![TcpCluster { name: name.as_str().into(), weight: 1 }],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted
            .clusters
            .iter()
            .map(|cluster| TcpCluster { name: cluster.name.as_str().into(), weight: cluster.weight })
            .collect(),
        None => return Err(context.error("a cluster or weighted_clusters is required")),
    };
    let scope = compiler.stats.scope(&format!("tcp.{}.", config.stat_prefix.replace(':', "_")));
    Ok(TcpProxy {
        stats: TcpStats::new(&scope),
        clusters,
        idle_timeout: timeout(config.idle_timeout.as_ref(), Some(Duration::from_secs(3600))),
        max_downstream_connection_duration: timeout(config.max_downstream_connection_duration.as_ref(), None),
        max_connect_attempts: wrapped_u32(config.max_connect_attempts.as_ref(), 1),
        hash_source_ip: !config.hash_policy.is_empty(),
        access_logs: compiler.access_logs("access_log", &config.access_log, context)?,
    })
}
