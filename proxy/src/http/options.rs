//! A connection manager's options as compiled values (Envoy's `HttpConnectionManager` message, fields by the same names).
//! It must not know protos nor streams; `config/http_connection_manager` fills it, everyone else reads it.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tidegate_filters::access_log::AccessLog;
use tidegate_filters::http::HttpFilterConfig;
use tidegate_filters::http::header_mutations::HeaderEdits;
use tidegate_filters::matching::StringMatcher;
use tidegate_filters::matching::cidr::CidrList;

use super::access_logs::AccessLogOptions;
use super::codec::stats::CodecStats;
use super::local_reply::LocalReplyRules;
use super::protocol::{Http1Options, Http2Options, Underscores};
use super::stats::{HttpStats, RouterStats, TracingStats};
use crate::route::{RouteTable, ScopedRoutes};

/// Which protocol a listener's HTTP connections speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CodecType {
    /// By ALPN, else by looking for HTTP/2's preface.
    #[default]
    Auto,
    Http1,
    Http2,
}

/// Where the routes come from.
#[derive(Clone)]
pub enum RouteSource {
    Inline(Arc<RouteTable>),
    /// The name of a route configuration that the snapshot holds once it has arrived.
    Rds(Arc<str>),
    /// A table for each key that requests may have.
    Scoped(Arc<ScopedRoutes>),
}

/// The cors filter's own name: legacy policies of routes stand under it, whatever a chain calls the filter.
pub const CORS_NAME: &str = "envoy.filters.http.cors";

/// One configured filter of a chain.
#[derive(Clone)]
pub struct FilterSlot {
    /// The name under which routes override it.
    pub name: Arc<str>,
    pub config: Arc<dyn HttpFilterConfig>,
    /// Left out unless a route enables it.
    pub disabled: bool,
    /// Where routes say something to it that do not name it.
    pub legacy_name: Option<&'static str>,
}

/// Filters in their order; the one that ends the chain is not among them.
#[derive(Clone, Default)]
pub struct FilterChain(pub Arc<[FilterSlot]>);

impl std::fmt::Debug for FilterChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|slot| &slot.name)).finish()
    }
}

/// `upgrade_configs` of one type.
#[derive(Clone)]
pub struct Upgrade {
    /// Lower case; `connect` for CONNECT.
    pub kind: Box<str>,
    pub enabled: bool,
    /// A filter chain of its own.
    pub filters: Option<Arc<[FilterSlot]>>,
}

/// The `Router` filter's options.
#[derive(Default)]
pub struct RouterOptions {
    pub dynamic_stats: bool,
    pub suppress_envoy_headers: bool,
    pub respect_expected_timeout: bool,
    pub strict_headers: Vec<StrictHeader>,
    /// Codes of gRPC requests are not counted.
    pub suppress_grpc_codes: bool,
    /// A CONNECT may send nothing before it is answered.
    pub reject_early_connect_data: bool,
    /// `upstream_log`: a line for each try.
    pub upstream_logs: Vec<Arc<AccessLog>>,
    /// `flush_upstream_log_on_upstream_stream`: a line also when a try has its connection.
    pub log_new_streams: bool,
    /// `upstream_log_flush_interval`
    pub log_interval: Option<Duration>,
}

/// A header that the router reads, and refuses where it cannot (`strict_check_headers`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrictHeader {
    Timeout,
    PerTryTimeout,
    MaxRetries,
    RetryOn,
    RetryGrpcOn,
}

/// `server_header_transformation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerHeader {
    #[default]
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    #[default]
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

/// How a path becomes the one that is matched, authorised and forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathRules {
    pub normalize: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    /// Ours: a dot segment that hides behind an escape is refused (DESIGN: safe defaults).
    pub reject_hidden_dot_segments: bool,
}

/// `forward_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCert {
    #[default]
    Sanitize,
    ForwardOnly,
    AppendForward(ClientCertDetails),
    SanitizeSet(ClientCertDetails),
    AlwaysForwardOnly,
}

/// `set_current_client_cert_details`: what is said of a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

/// Whom to believe about the client.
#[derive(Clone, Default)]
pub struct ClientAddress {
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub append_x_forwarded_port: bool,
    /// Envoy's default believes `x-forwarded-for` when `use_remote_address` is false; ours does not.
    pub trust_xff: bool,
    pub internal: CidrList,
    pub internal_unix_sockets: bool,
    pub detection: Vec<OriginalIp>,
}

/// An `original_ip_detection` extension.
#[derive(Clone)]
pub enum OriginalIp {
    /// `xff`: trusted hops, or trusted CIDRs; whether to skip appending.
    Xff { hops: u32, trusted: Option<CidrList>, skip_append: bool },
    /// `custom_header`: header, reject status, whether the address counts as trusted (internal).
    CustomHeader { header: http::HeaderName, reject_with: Option<http::StatusCode>, trusted: bool },
}

/// How long things may take; `None` means for ever.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpTimeouts {
    pub request_headers: Option<Duration>,
    pub request: Option<Duration>,
    pub stream_idle: Option<Duration>,
    /// `stream_flush_timeout`, where it is set: else the idle timeout holds.
    pub stream_flush: Option<Option<Duration>>,
    pub max_stream_duration: Option<Duration>,
    pub connection_idle: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// Up to so much of it longer.
    pub max_connection_duration_jitter_percent: f64,
    /// `http1_safe_max_connection_duration`: HTTP/1 connections end with a response that says so.
    pub closes_http1_safely: bool,
    pub drain: Duration,
    /// Up to so much of it longer.
    pub drain_jitter_percent: f64,
    pub delayed_close: Option<Duration>,
}

impl HttpTimeouts {
    /// How long one connection may live.
    pub(crate) fn of_connection(&self) -> Option<Duration> {
        self.max_connection_duration.map(|most| jittered(most, self.max_connection_duration_jitter_percent))
    }

    /// How long one connection that was told to leave may stay without a stream.
    pub(crate) fn of_drain(&self) -> Duration {
        jittered(self.drain, self.drain_jitter_percent)
    }
}

fn jittered(time: Duration, percent: f64) -> Duration {
    if percent > 0.0 {
        time.saturating_add(time.mul_f64(percent.min(100.0) / 100.0 * rand::random::<f64>()))
    } else {
        time
    }
}

/// A connection manager, shared by all its connections.
pub struct HttpConnectionManager {
    pub stat_prefix: Arc<str>,
    pub stats: HttpStats,
    pub router_stats: RouterStats,
    pub tracing_stats: TracingStats,
    pub codec_stats: CodecStats,
    pub codec: CodecType,
    pub routes: RouteSource,
    pub filters: Arc<[FilterSlot]>,
    pub router: RouterOptions,
    /// The router's `upstream_http_filters`, for clusters that have none of their own.
    pub upstream_filters: FilterChain,
    pub upgrades: Vec<Upgrade>,
    pub http1: Http1Options,
    pub default_host_for_http_10: Option<HeaderValue>,
    pub http2: Http2Options,
    pub timeouts: HttpTimeouts,
    pub max_request_headers_bytes: usize,
    pub max_headers_count: usize,
    pub max_requests_per_connection: Option<u32>,
    pub underscores: Underscores,
    /// Ours: a name that differs from a framing, routing or trusted one in underscores alone is dropped.
    pub drop_colliding_names: bool,
    pub server_name: HeaderValue,
    pub server_header: ServerHeader,
    pub scheme_override: Option<&'static str>,
    pub add_user_agent: bool,
    pub service_cluster: HeaderValue,
    pub service_node: HeaderValue,
    pub access_logs: Vec<Arc<AccessLog>>,
    pub access_log_options: AccessLogOptions,
    pub client_address: ClientAddress,
    pub early_mutations: Vec<HeaderEdits>,
    pub via: Option<HeaderValue>,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub always_set_request_id_in_response: bool,
    pub client_cert: ClientCert,
    pub proxy_100_continue: bool,
    pub path: PathRules,
    pub local_replies: LocalReplyRules,
    pub strip_port: StripPort,
    pub strip_trailing_host_dot: bool,
    /// `ignore_http_11_upgrade`
    pub ignored_upgrades: Arc<[StringMatcher]>,
    pub forwarded_proto: ForwardedProto,
    /// `scheme_header_transformation.match_upstream`
    pub scheme_matches_upstream: bool,
    pub proxy_status: Option<ProxyStatus>,
    pub buffer_limit_bytes: usize,
}

/// `strip_port_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StripPort {
    #[default]
    Keep,
    /// Only the listener's own port.
    Matching,
    Any,
}

/// `proxy_status_config` (RFC 9209).
#[derive(Debug, Clone)]
pub struct ProxyStatus {
    pub name: Box<str>,
    pub details: bool,
    pub connection_termination_details: bool,
    pub response_flags: bool,
    /// The response gets the status that the error's type recommends.
    pub recommended_status: bool,
}

/// `forward_proto_config`: what the port that a PROXY protocol header named says of the client's transport.
#[derive(Debug, Clone, Default)]
pub struct ForwardedProto {
    pub https_ports: Vec<u32>,
    pub http_ports: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_lengthens_by_no_more_than_it_says() {
        let second = Duration::from_secs(1);
        let timeouts = HttpTimeouts {
            max_connection_duration: Some(10 * second),
            max_connection_duration_jitter_percent: 50.0,
            drain: 4 * second,
            drain_jitter_percent: 25.0,
            ..HttpTimeouts::default()
        };
        let most = |times: Vec<Duration>, least: Duration, most: Duration| {
            assert!(times.iter().all(|time| (least..=most).contains(time)), "{times:?}");
            // Of so many some are near either end.
            let quarter = (most - least) / 4;
            assert!(
                times.iter().any(|time| *time < least + quarter) && times.iter().any(|time| *time > most - quarter)
            );
        };
        most((0..1000).map(|_| timeouts.of_connection().unwrap()).collect(), 10 * second, 15 * second);
        most((0..1000).map(|_| timeouts.of_drain()).collect(), 4 * second, 5 * second);
        let plain = HttpTimeouts { drain_jitter_percent: 0.0, ..timeouts };
        assert_eq!((plain.of_drain(), HttpTimeouts::default().of_connection()), (4 * second, None));
    }
}
