//! `Router` -> [`RouterOptions`]. It must not know requests.

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{Coverage, FieldError, any};

use super::Compiler;
use super::http_connection_manager::Terminal;
use super::values::{duration, wrapped_bool};
use crate::http::options::{RouterOptions, StrictHeader};

pub(super) const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: ROUTER,
        enforced: &[
            "dynamic_stats",
            "upstream_log",
            "upstream_log_options",
            "suppress_envoy_headers",
            "strict_check_headers",
            "respect_expected_rq_timeout",
            "suppress_grpc_request_failure_code_stats",
            "upstream_http_filters",
            "reject_connect_request_early_data",
        ],
        listed: &[("start_child_span", "acts with tracing only, which is refused until it is built")],
    },
    Coverage {
        message: "envoy.extensions.filters.http.router.v3.Router.UpstreamAccessLogOptions",
        enforced: &["flush_upstream_log_on_upstream_stream", "upstream_log_flush_interval"],
        listed: &[],
    },
];

/// The options of a router, and the filters that run once an attempt.
pub(super) fn options(
    compiler: &Compiler,
    config: &Any,
    context: &mut CompileContext<'_>,
) -> Result<Terminal, FieldError> {
    let router: Router = any::unpack(config, &context.path)?;
    let log = router.upstream_log_options.unwrap_or_default();
    let upstream = compiler.upstream_filters("upstream_http_filters", &router.upstream_http_filters, context)?;
    let options = RouterOptions {
        dynamic_stats: wrapped_bool(router.dynamic_stats.as_ref(), true),
        suppress_envoy_headers: router.suppress_envoy_headers,
        respect_expected_timeout: router.respect_expected_rq_timeout,
        strict_headers: router.strict_check_headers.iter().filter_map(|name| strict_header(name)).collect(),
        suppress_grpc_codes: router.suppress_grpc_request_failure_code_stats,
        reject_early_connect_data: wrapped_bool(router.reject_connect_request_early_data.as_ref(), false),
        upstream_logs: compiler.access_logs("upstream_log", &router.upstream_log, context)?,
        log_new_streams: log.flush_upstream_log_on_upstream_stream,
        log_interval: log.upstream_log_flush_interval.as_ref().map(duration),
    };
    Ok((options, upstream))
}

/// The schema's rules let no other name pass.
fn strict_header(name: &str) -> Option<StrictHeader> {
    match name {
        "x-envoy-upstream-rq-timeout-ms" => Some(StrictHeader::Timeout),
        "x-envoy-upstream-rq-per-try-timeout-ms" => Some(StrictHeader::PerTryTimeout),
        "x-envoy-max-retries" => Some(StrictHeader::MaxRetries),
        "x-envoy-retry-on" => Some(StrictHeader::RetryOn),
        "x-envoy-retry-grpc-on" => Some(StrictHeader::RetryGrpcOn),
        _ => None,
    }
}
