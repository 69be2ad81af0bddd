//! `ConfigSource` and what is below it -> where resources come from. It must not know which resources.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_filters::context::{CompileContext, ConfigSource, ControlPlane, RequestRate, RestControlPlane, Wait};
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::{Coverage, FieldError};

use super::grpc_services::{grpc_service, waits};
use super::values::duration;

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.core.v3.ConfigSource",
        enforced: &["path", "path_config_source", "api_config_source", "ads", "initial_fetch_timeout"],
        listed: &[("resource_api_version", "there is only V3")],
    },
    Coverage {
        message: "envoy.config.core.v3.PathConfigSource",
        enforced: &["path", "watched_directory"],
        listed: &[],
    },
    Coverage { message: "envoy.config.core.v3.WatchedDirectory", enforced: &["path"], listed: &[] },
    Coverage { message: "envoy.config.core.v3.AggregatedConfigSource", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.config.core.v3.ApiConfigSource",
        enforced: &[
            "api_type",
            "transport_api_version",
            "cluster_names",
            "grpc_services",
            "refresh_delay",
            "request_timeout",
            "rate_limit_settings",
            "set_node_on_first_message_only",
        ],
        listed: &[],
    },
    Coverage { message: "envoy.config.core.v3.RateLimitSettings", enforced: &["max_tokens", "fill_rate"], listed: &[] },
];

/// Envoy's `initial_fetch_timeout` where none is given.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Envoy's `request_timeout` where none is given.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Envoy's requests to a control plane where they are limited, and nothing is said of how: 100 at once, 10 more each second.
const DEFAULT_RATE: RequestRate = RequestRate { burst: 100, per_second: 10.0 };

/// What sources may refer to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Known {
    /// There is an aggregated stream (`ads_config`).
    pub(crate) ads: bool,
    /// It says only what changed.
    pub(crate) ads_delta: bool,
    /// The node has an id and a cluster, which every source is told.
    pub(crate) node: bool,
    /// The clusters that a control plane may be behind: those of the bootstrap that need no control plane themselves.
    pub(crate) primary: Arc<BTreeSet<String>>,
}

impl Known {
    /// # Errors
    /// What a control plane cannot be behind, in Envoy's words.
    fn check(&self, cluster: &str, field: &str, context: &CompileContext<'_>) -> Result<(), FieldError> {
        if self.primary.contains(cluster) {
            return Ok(());
        }
        let reason = format!(
            "envoy.config.core.v3.ApiConfigSource must have a statically defined non-EDS cluster: '{cluster}' does not \
             exist, was added via api, or is an EDS cluster"
        );
        Err(context.error_at(field, reason))
    }
}

/// A configuration source that we can read.
///
/// # Errors
/// What cannot be read from, or not yet.
#[expect(deprecated, reason = "Envoy 1.40 reads `path`")]
pub(crate) fn config_source(
    source: &core::ConfigSource,
    known: &Known,
    context: &mut CompileContext<'_>,
) -> Result<ConfigSource, FieldError> {
    use core::config_source::ConfigSourceSpecifier as Specifier;
    if !known.node {
        return Err(context.error(
            "node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and \
             --service-cluster options.",
        ));
    }
    let timeout = source.initial_fetch_timeout.as_ref().map_or(FETCH_TIMEOUT, duration);
    let wait = Wait(Some(timeout).filter(|timeout| !timeout.is_zero()));
    match &source.config_source_specifier {
        Some(Specifier::PathConfigSource(path)) => Ok(ConfigSource::File {
            path: context.within("path_config_source", |context| existing(&path.path, context))?,
            watched_directory: path.watched_directory.as_ref().map(|directory| PathBuf::from(&directory.path)),
        }),
        Some(Specifier::Path(path)) => {
            Ok(ConfigSource::File { path: existing(path, context)?, watched_directory: None })
        }
        Some(Specifier::ApiConfigSource(api)) => context.within("api_config_source", |context| {
            use core::api_config_source::ApiType;
            if matches!(api.api_type(), ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc) {
                // The type of the aggregated stream, named from elsewhere.
                return Err(context.error_at("api_type", "not supported yet: an aggregated stream but in ads_config"));
            }
            check_version(api, context)?;
            if api.api_type() == ApiType::Rest {
                let polled = polled(api, context)?;
                known.check(&polled.cluster, "cluster_names[0]", context)?;
                return Ok(ConfigSource::Rest(Arc::new(polled), wait));
            }
            let control_plane = control_plane(api, context)?;
            known.check(&control_plane.service.cluster, "grpc_services[0].envoy_grpc.cluster_name", context)?;
            Ok(ConfigSource::Stream(Arc::new(control_plane), wait))
        }),
        Some(Specifier::Ads(_)) if known.ads => Ok(ConfigSource::Ads(wait)),
        Some(Specifier::Ads(_)) => {
            Err(context.error_at("ads", "ADS must be configured to support an ADS config source"))
        }
        Some(Specifier::Self_(_)) => Err(context.error_at("self", "not supported yet: self")),
        None => Err(context.error("a config source is required")),
    }
}

/// A file must be there when it is named, as in Envoy: nothing waits for one to appear.
fn existing(path: &str, context: &CompileContext<'_>) -> Result<PathBuf, FieldError> {
    let known = PathBuf::from(path);
    if known.exists() {
        return Ok(known);
    }
    let reason = format!("paths must refer to an existing path in the system: '{path}' does not exist");
    Err(context.error_at("path", reason))
}

/// Everybody but `ads_config` says which version is spoken.
///
/// # Errors
/// Any but the third.
pub(crate) fn check_version(api: &core::ApiConfigSource, context: &CompileContext<'_>) -> Result<(), FieldError> {
    if api.transport_api_version() == core::ApiVersion::V3 {
        return Ok(());
    }
    Err(context.error_at("transport_api_version", "V2 (and AUTO) xDS transport protocol versions are deprecated"))
}

/// The control plane of an `ApiConfigSource`: `ads_config` (whose version Envoy does not look at), or a source of its own.
///
/// # Errors
/// A protocol that is not spoken, or a service that cannot be called.
pub(crate) fn control_plane(
    api: &core::ApiConfigSource,
    context: &mut CompileContext<'_>,
) -> Result<ControlPlane, FieldError> {
    use core::api_config_source::ApiType;
    let delta = match api.api_type() {
        ApiType::Grpc | ApiType::AggregatedGrpc => false,
        ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc => true,
        _ => return Err(context.error_at("api_type", "must be GRPC or DELTA_GRPC")),
    };
    if !api.cluster_names.is_empty() {
        return Err(context.error_at("cluster_names", "a gRPC source must not have a cluster name specified"));
    }
    let (service, waits) = match api.grpc_services.as_slice() {
        [service] => context.within_item("grpc_services", 0, |context| {
            Ok((grpc_service(service, context)?, waits(service, context)?))
        })?,
        [] => return Err(context.error_at("grpc_services", NOBODY)),
        _ => return Err(context.error_at("grpc_services", "must have no more than 1 gRPC services specified")),
    };
    let rate_limit = api.rate_limit_settings.as_ref().map(|settings| RequestRate {
        burst: settings.max_tokens.map_or(DEFAULT_RATE.burst, |most| most.value),
        per_second: settings.fill_rate.map_or(DEFAULT_RATE.per_second, |rate| rate.value),
    });
    Ok(ControlPlane { service, delta, node_once: api.set_node_on_first_message_only, rate_limit, waits })
}

const NOBODY: &str = "API configs must have either a gRPC service or a cluster name defined";

/// The control plane of an `ApiConfigSource` that is polled.
///
/// # Errors
/// What names no single cluster, or does not say how often to poll.
fn polled(api: &core::ApiConfigSource, context: &CompileContext<'_>) -> Result<RestControlPlane, FieldError> {
    if !api.grpc_services.is_empty() {
        return Err(context.error_at("grpc_services", "REST must not have a gRPC service specified"));
    }
    let cluster = match api.cluster_names.as_slice() {
        [cluster] => cluster.clone(),
        [] => return Err(context.error_at("cluster_names", NOBODY)),
        _ => return Err(context.error_at("cluster_names", "must have a singleton cluster name specified")),
    };
    let Some(refresh_delay) = api.refresh_delay.as_ref().map(duration) else {
        return Err(context.error_at("refresh_delay", "refresh_delay is required for REST API configuration sources"));
    };
    if refresh_delay < SHORTEST_DELAY {
        return Err(context.error_at("refresh_delay", "must be at least 1ms"));
    }
    let request_timeout = api.request_timeout.as_ref().map_or(REQUEST_TIMEOUT, duration);
    Ok(RestControlPlane { cluster, refresh_delay, request_timeout })
}

/// Envoy takes less and divides by it.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);
