//! `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy` -> [`TcpProxy`]. It must not know connections.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tidegate_filters::context::CompileContext;
use tidegate_filters::format::Format;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use tidegate_xds::{Coverage, FieldError, any};

use super::route::metadata_match;
use super::values::{duration, timeout, wrapped_u32};
use super::{Compiler, proxy_tlvs};
use crate::route::HeaderMutations;
use crate::tcp::{BackOff, LogOptions, MergeTlvs, RequestId, TcpCluster, TcpHash, TcpProxy, TcpStats, TcpTlvs, Tunnel};

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        enforced: &[
            "stat_prefix",
            "cluster",
            "weighted_clusters",
            "metadata_match",
            "idle_timeout",
            "access_log",
            "access_log_options",
            "access_log_flush_interval",
            "flush_access_log_on_connected",
            "max_connect_attempts",
            "backoff_options",
            "max_downstream_connection_duration",
            "max_downstream_connection_duration_jitter_percentage",
            "hash_policy",
            "tunneling_config",
            "upstream_connect_mode",
            "max_early_data_bytes",
            "check_drain_close",
            "on_demand",
            "proxy_protocol_tlvs",
            "proxy_protocol_tlv_merge_policy",
        ],
        listed: &[("downstream_idle_timeout", "Envoy ignores it"), ("upstream_idle_timeout", "Envoy ignores it")],
    },
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.OnDemand",
        enforced: &[],
        listed: &[("resources_locator", "Envoy ignores it"), ("timeout", "acts only with odcds_config")],
    },
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster",
        enforced: &["clusters"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        enforced: &["name", "weight", "metadata_match"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TcpAccessLogOptions",
        enforced: &["access_log_flush_interval", "flush_access_log_on_connected", "flush_access_log_on_start"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig",
        enforced: &[
            "hostname",
            "use_post",
            "post_path",
            "headers_to_add",
            "propagate_response_headers",
            "propagate_response_trailers",
            "request_id_extension",
            "request_id_header",
            "request_id_metadata_key",
            "formatters",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.BackoffStrategy",
        enforced: &["base_interval", "max_interval"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.HashPolicy", enforced: &["source_ip", "filter_state"], listed: &[] },
    Coverage { message: "envoy.type.v3.HashPolicy.FilterState", enforced: &["key"], listed: &[] },
    Coverage { message: "envoy.type.v3.HashPolicy.SourceIp", enforced: &[], listed: &[] },
];

/// Compiles a TCP proxy.
pub(crate) fn compile(
    compiler: &Compiler,
    config: &proto::TcpProxy,
    context: &mut CompileContext<'_>,
) -> Result<TcpProxy, FieldError> {
    let scope = compiler.stats.scope(&format!("tcp.{}.", config.stat_prefix.replace(':', "_")));
    let jitter = &config.max_downstream_connection_duration_jitter_percentage;
    Ok(TcpProxy {
        stats: TcpStats::new(&scope),
        clusters: clusters(config, context)?,
        weighted: matches!(&config.cluster_specifier, Some(proto::tcp_proxy::ClusterSpecifier::WeightedClusters(_))),
        idle_timeout: timeout(config.idle_timeout.as_ref(), Some(Duration::from_secs(3600))),
        max_downstream_connection_duration: timeout(config.max_downstream_connection_duration.as_ref(), None),
        duration_jitter_percent: jitter.as_ref().map_or(0.0, |percent| percent.value),
        max_connect_attempts: wrapped_u32(config.max_connect_attempts.as_ref(), 1),
        back_off: config.backoff_options.as_ref().map(|options| back_off(options, context)).transpose()?,
        early_bytes: early_bytes(config, context)?,
        // Without TLS there is no handshake to wait for.
        connects_on_data: config.upstream_connect_mode() == proto::UpstreamConnectMode::OnDownstreamData,
        leaves_when_draining: config.check_drain_close.is_some_and(|check| check.value),
        tlvs: tlvs(config, context)?,
        tunnel: config.tunneling_config.as_ref().map(|config| tunnel(config, context)).transpose()?,
        hash: config.hash_policy.first().and_then(hash),
        access_logs: compiler.access_logs("access_log", &config.access_log, context)?,
        log_options: log_options(config, context)?,
    })
}

fn tlvs(config: &proto::TcpProxy, context: &mut CompileContext<'_>) -> Result<TcpTlvs, FieldError> {
    use proto::ProxyProtocolTlvMergePolicy as Policy;
    let merge = match config.proxy_protocol_tlv_merge_policy() {
        Policy::AddIfAbsent => MergeTlvs::AddIfAbsent,
        Policy::OverwriteByTypeIfExistsOrAdd => MergeTlvs::Overwrite,
        Policy::AppendIfExistsOrAdd => MergeTlvs::Append,
    };
    Ok(TcpTlvs { added: proxy_tlvs::compile(&config.proxy_protocol_tlvs, "proxy_protocol_tlvs", context)?, merge })
}

fn clusters(config: &proto::TcpProxy, context: &CompileContext<'_>) -> Result<Vec<TcpCluster>, FieldError> {
    use proto::tcp_proxy::ClusterSpecifier;
    let wanted = metadata_match(config.metadata_match.as_ref(), None);
    match &config.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            Ok(vec![TcpCluster { name: name.as_str().into(), weight: 1, metadata_match: wanted }])
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let compile = |cluster: &proto::tcp_proxy::weighted_cluster::ClusterWeight| TcpCluster {
                name: cluster.name.as_str().into(),
                weight: cluster.weight,
                metadata_match: metadata_match(cluster.metadata_match.as_ref(), wanted.as_ref())
                    .or_else(|| wanted.clone()),
            };
            Ok(weighted.clusters.iter().map(compile).collect())
        }
        None => Err(context.error("a cluster or weighted_clusters is required")),
    }
}

fn tunnel(config: &proto::tcp_proxy::TunnelingConfig, context: &mut CompileContext<'_>) -> Result<Tunnel, FieldError> {
    context.within("tunneling_config", |context| {
        let hostname =
            Format::compile(&config.hostname).map_err(|error| context.error_at("hostname", error.to_string()))?;
        if !config.use_post && !config.post_path.is_empty() {
            return Err(context.error_at("post_path", "Can't set a post path when POST method isn't used"));
        }
        let path = if config.post_path.is_empty() { "/" } else { &config.post_path };
        let path = HeaderValue::from_str(path).map_err(|_| context.error_at("post_path", "not a path"))?;
        Ok(Tunnel {
            hostname,
            post_path: config.use_post.then_some(path),
            headers: HeaderMutations::compile_formatted(
                "headers_to_add",
                &config.headers_to_add,
                &config.formatters,
                context,
            )?,
            request_id: request_id(config, context)?,
            tells_headers: config.propagate_response_headers,
            tells_trailers: config.propagate_response_trailers,
        })
    })
}

/// Only UUIDs; whether they say what is traced makes no difference without traces.
fn request_id(
    config: &proto::tcp_proxy::TunnelingConfig,
    context: &CompileContext<'_>,
) -> Result<Option<RequestId>, FieldError> {
    let Some(extension) = &config.request_id_extension else { return Ok(None) };
    let url = extension.typed_config.as_ref().map_or("", |config| &config.type_url);
    if any::type_name(url) != Some("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig") {
        return Err(context.error_at("request_id_extension.typed_config", format!("not supported yet: {url}")));
    }
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    let header = HeaderName::from_bytes(or(&config.request_id_header, "x-request-id").as_bytes());
    Ok(Some(RequestId {
        header: header.map_err(|_| context.error_at("request_id_header", "not a header's name"))?,
        metadata_key: or(&config.request_id_metadata_key, "tunnel_request_id"),
    }))
}

fn back_off(options: &core::BackoffStrategy, context: &CompileContext<'_>) -> Result<BackOff, FieldError> {
    let base = options.base_interval.as_ref().map(duration).unwrap_or_default();
    let most = options.max_interval.as_ref().map_or(base.saturating_mul(10), duration);
    if most < base {
        let reason = "max_backoff_interval must be greater or equal to base_backoff_interval";
        return Err(context.error_at("backoff_options.max_interval", reason));
    }
    Ok(BackOff { base, most })
}

fn hash(policy: &tidegate_xds::pb::envoy::r#type::v3::HashPolicy) -> Option<TcpHash> {
    use tidegate_xds::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
    match policy.policy_specifier.as_ref()? {
        PolicySpecifier::SourceIp(_) => Some(TcpHash::SourceIp),
        PolicySpecifier::FilterState(state) => Some(TcpHash::FilterState(state.key.as_str().into())),
    }
}

/// How much may be read before there is a host; `None` reads nothing.
fn early_bytes(config: &proto::TcpProxy, context: &CompileContext<'_>) -> Result<Option<usize>, FieldError> {
    match &config.max_early_data_bytes {
        Some(most) => Ok(Some(most.value as usize)),
        None if config.upstream_connect_mode() == proto::UpstreamConnectMode::Immediate => Ok(None),
        None => {
            let reason = "max_early_data_bytes must be set when upstream_connect_mode is not IMMEDIATE";
            Err(context.error_at("max_early_data_bytes", reason))
        }
    }
}

#[expect(deprecated, reason = "Envoy takes the fields that access_log_options replaced")]
fn log_options(config: &proto::TcpProxy, context: &CompileContext<'_>) -> Result<LogOptions, FieldError> {
    let old = config.access_log_flush_interval.as_ref();
    let Some(options) = &config.access_log_options else {
        return Ok(LogOptions {
            on_start: false,
            on_connected: config.flush_access_log_on_connected,
            interval: old.map(duration),
        });
    };
    for (set, field) in [
        (config.flush_access_log_on_connected, "flush_access_log_on_connected"),
        (old.is_some(), "access_log_flush_interval"),
    ] {
        if set {
            let reason = format!("Only one of {field} or access_log_options can be specified.");
            return Err(context.error_at(field, reason));
        }
    }
    Ok(LogOptions {
        on_start: options.flush_access_log_on_start,
        on_connected: options.flush_access_log_on_connected,
        interval: options.access_log_flush_interval.as_ref().map(duration),
    })
}
