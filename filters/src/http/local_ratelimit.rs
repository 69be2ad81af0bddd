//! `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`: answers 429 when a token bucket is empty.
//!
//! Buckets live as long as the configuration that holds them: of the listener or of the route, as in Envoy.
//!
//! Acts: all fields but `local_cluster_rate_limit`, which is refused. Without `rate_limits` of its own it counts by those of the
//! route and the virtual host.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::common::ratelimit::v3::{VhRateLimitsOptions, XRateLimitHeadersRfcVersion};
use tidegate_xds::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::local_limiter::{self, Blueprint, Bucket, Limiter};
use super::rate_limit::{self, Descriptor, RateLimit};
use super::{
    FilterFactory, HeaderMutations, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, RequestHead,
    Response, ResponseHead, Step, StreamContext,
};
use crate::context::CompileContext;
use crate::matching::{count, gather};
use crate::runtime::Fraction;
use crate::stream_info::ResponseFlags;

const MESSAGE: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u32 = 8;
/// Where the streams of a connection find their limiter: one for all configurations, as in Envoy.
const PER_CONNECTION: &str = "per_connection_local_rate_limiter";

stats_block! {
    struct Stats {
        counters { enabled, enforced, ok, rate_limited, shadow_mode }
        gauges {}
        histograms {}
    }
}

struct Config {
    stats: Stats,
    status: StatusCode,
    /// Nothing is limited without it.
    enabled: Option<Fraction>,
    enforced: Fraction,
    /// What requests are counted under beside the default bucket.
    counted: Counted,
    blueprint: Blueprint,
    limiter: Limiter,
    per_connection: bool,
    response_headers: HeaderMutations,
    unenforced_request_headers: HeaderMutations,
    x_ratelimit: bool,
    retry_after: bool,
    grpc_status: Option<u32>,
}

enum Counted {
    /// There are no descriptors.
    Nothing,
    Own(Vec<RateLimit>),
    /// The route's, of this stage.
    OfRoute {
        stage: u32,
        virtual_host: VirtualHostLimits,
    },
}

/// When the virtual host's limits count beside the route's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VirtualHostLimits {
    WithoutOthers,
    Always,
    Never,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let config = overrides.shared().unwrap_or(self);
        config.enabled.is_some().then(|| Box::new(Filter { config, outcome: None }) as _)
    }
}

struct Filter {
    config: Arc<Config>,
    /// The bucket that the response's headers speak of.
    outcome: Option<Arc<Bucket>>,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let config = &self.config;
        if !config.enabled.as_ref().is_some_and(|share| stream.is_in(share)) {
            return Step::Continue;
        }
        config.stats.enabled().inc();
        let descriptors = config.counted.descriptors(&request.head, stream);
        let now = Instant::now();
        let outcome = match config.connection_limiter(stream) {
            Some(limiter) => limiter.ask(&descriptors, now),
            None => config.limiter.ask(&descriptors, now),
        };
        self.outcome = outcome.bucket.clone().filter(|_| outcome.x_ratelimit.unwrap_or(config.x_ratelimit));
        if outcome.allowed {
            config.stats.ok().inc();
            return Step::Continue;
        }
        config.stats.rate_limited().inc();
        if outcome.bucket.as_ref().is_some_and(|bucket| bucket.shadow) {
            config.stats.shadow_mode().inc();
            return Step::Continue;
        }
        if !stream.is_in(&config.enforced) {
            config.unenforced_request_headers.apply_request(&mut request.head, &stream.info);
            return Step::Continue;
        }
        config.stats.enforced().inc();
        Step::reply(config.reply(outcome.bucket.as_deref(), request, stream, now))
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        if let Some(bucket) = &self.outcome {
            let now = Instant::now();
            let headers = &mut response.head.headers;
            headers.append(LIMIT, bucket.tokens.max().into());
            headers.append(REMAINING, bucket.tokens.remaining(now).into());
            headers.append(RESET, bucket.tokens.seconds_to_next(now).into());
        }
        Step::Continue
    }
}

impl Counted {
    fn descriptors(&self, head: &RequestHead, stream: &StreamContext) -> SmallVec<[Descriptor; 4]> {
        let of = |limits: &[RateLimit], stage| {
            let counts =
                move |limit: &&RateLimit| limit.stage == stage && limit.disable_key.is_none() && !limit.on_stream_done;
            let descriptors = limits.iter().filter(counts).filter_map(|limit| limit.descriptor(head, stream));
            descriptors.collect::<SmallVec<[Descriptor; 4]>>()
        };
        match (self, &stream.route) {
            (Self::Own(limits), _) => of(limits, 0),
            (Self::OfRoute { stage, virtual_host }, Some(route)) if route.cluster().is_some() => {
                let mut descriptors = of(route.rate_limits(), *stage);
                let too = match virtual_host {
                    _ if route.include_virtual_host_rate_limits() => true,
                    VirtualHostLimits::Always => true,
                    VirtualHostLimits::WithoutOthers => route.rate_limits().is_empty(),
                    VirtualHostLimits::Never => false,
                };
                if too {
                    descriptors.extend(of(route.virtual_host_rate_limits(), *stage));
                }
                descriptors
            }
            _ => SmallVec::new(),
        }
    }
}

impl Config {
    fn connection_limiter(&self, stream: &StreamContext) -> Option<Arc<Limiter>> {
        let make = || Limiter::new(&self.blueprint, Instant::now());
        self.per_connection.then(|| stream.info.connection.shared.get_or_make(PER_CONNECTION, make)).flatten()
    }

    fn reply(&self, bucket: Option<&Bucket>, request: &Request, stream: &StreamContext, now: Instant) -> LocalReply {
        let mut head = ResponseHead::new(self.status);
        self.response_headers.apply_response(&mut head, Some(&request.head), &stream.info);
        if self.retry_after
            && self.status == StatusCode::TOO_MANY_REQUESTS
            && !head.headers.contains_key(http::header::RETRY_AFTER)
            && let Some(bucket) = bucket
        {
            head.set(http::header::RETRY_AFTER, HeaderValue::from(bucket.tokens.seconds_to_next(now).max(1)));
        }
        let mut reply = LocalReply::new(self.status, "local_rate_limited")
            .body("local_rate_limited")
            .flag(ResponseFlags::RATE_LIMITED);
        reply.headers = head.headers;
        reply.grpc_status = self.grpc_status;
        reply
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(MESSAGE)
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        Ok(Arc::new(Config::compile(&context.decode(config)?, context)?))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        let config: pb::LocalRateLimit = context.decode(config)?;
        if config.token_bucket.is_none() {
            return Err(context.error_at("token_bucket", "must be set for per filter configs"));
        }
        let config: Arc<dyn Any + Send + Sync> = Arc::new(Config::compile(&config, context)?);
        Ok(config)
    }
}

const GROUPS: [&[Coverage]; 3] = [OWN_COVERAGE, local_limiter::COVERAGE, rate_limit::COVERAGE];
const COVERAGE: &[Coverage] = &gather::<{ count(&GROUPS) }>(&GROUPS);
const OWN_COVERAGE: &[Coverage] = &[
    Coverage {
        message: MESSAGE,
        enforced: &[
            "stat_prefix",
            "status",
            "token_bucket",
            "filter_enabled",
            "filter_enforced",
            "request_headers_to_add_when_not_enforced",
            "response_headers_to_add",
            "descriptors",
            "stage",
            "vh_rate_limits",
            "local_rate_limit_per_downstream_connection",
            "enable_x_ratelimit_headers",
            "always_consume_default_token_bucket",
            "rate_limited_as_resource_exhausted",
            "rate_limits",
            "max_dynamic_descriptors",
            "enable_retry_after_header",
        ],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.HttpStatus", enforced: &["code"], listed: &[] },
];

impl Config {
    fn compile(config: &pb::LocalRateLimit, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let status = config.status.as_ref().and_then(|status| u16::try_from(status.code).ok());
        let status = status.filter(|code| *code >= 400).and_then(|code| StatusCode::from_u16(code).ok());
        let own = RateLimit::compile_own("rate_limits", &config.rate_limits, context)?;
        let counted = match VhRateLimitsOptions::try_from(config.vh_rate_limits) {
            _ if config.descriptors.is_empty() => Counted::Nothing,
            _ if !own.is_empty() => Counted::Own(own),
            vh => Counted::OfRoute {
                stage: config.stage,
                virtual_host: match vh {
                    Ok(VhRateLimitsOptions::Include) => VirtualHostLimits::Always,
                    Ok(VhRateLimitsOptions::Ignore) => VirtualHostLimits::Never,
                    Ok(VhRateLimitsOptions::Override) | Err(_) => VirtualHostLimits::WithoutOthers,
                },
            },
        };
        let blueprint = Blueprint::compile(config, context)?;
        let scope = context.stats.root().scope(&format!("{}.http_local_rate_limit.", config.stat_prefix));
        Ok(Self {
            stats: Stats::new(&scope),
            status: status.unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            enabled: config.filter_enabled.as_ref().map(Fraction::compile),
            enforced: config.filter_enforced.as_ref().map_or(Fraction::NEVER, Fraction::compile),
            counted,
            limiter: Limiter::new(&blueprint, Instant::now()),
            blueprint,
            per_connection: config.local_rate_limit_per_downstream_connection,
            response_headers: HeaderMutations::compile_additions(
                "response_headers_to_add",
                &config.response_headers_to_add,
                context,
            )?,
            unenforced_request_headers: HeaderMutations::compile_additions(
                "request_headers_to_add_when_not_enforced",
                &config.request_headers_to_add_when_not_enforced,
                context,
            )?,
            x_ratelimit: config.enable_x_ratelimit_headers == i32::from(XRateLimitHeadersRfcVersion::DraftVersion03),
            retry_after: config.enable_retry_after_header,
            grpc_status: config.rate_limited_as_resource_exhausted.then_some(RESOURCE_EXHAUSTED),
        })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_xds::pb::envoy::config::route::v3::RouteAction;

    use super::*;
    use crate::http::Body;
    use crate::http::testing::*;

    const ON: &str = "filter_enabled: {default_value: {numerator: 100}}
filter_enforced: {default_value: {numerator: 100}}";

    /// Status, headers that the response ends up with, flags.
    fn pass(filter: &mut dyn HttpFilter, request: &mut Request, stream: &mut StreamContext) -> (u16, Vec<String>) {
        let reply = now(on_request(filter, request, stream));
        let mut out = match reply {
            Some(reply) => {
                assert_eq!(reply.details, "local_rate_limited");
                assert_eq!(reply.flags, ResponseFlags::RATE_LIMITED);
                assert_eq!(&reply.body[..], b"local_rate_limited");
                let mut out = response(reply.status.as_u16(), &[], Body::Empty);
                out.head.headers = reply.headers;
                out
            }
            None => response(200, &[], Body::Empty),
        };
        now(on_response(filter, &mut out, stream));
        (out.head.status.as_u16(), lines(&out.head.headers))
    }

    /// Reference §4, row 37.
    #[test]
    fn the_third_of_two_is_refused_and_told_when_to_return() {
        let bench = Bench::new(&Factory);
        let base = bench.compile("stat_prefix: base").unwrap();
        assert!(Arc::clone(&base).new_stream(Overrides::default()).is_none(), "without a share it limits nothing");
        let limited = format!(
            "stat_prefix: rt
token_bucket: {{max_tokens: 2, tokens_per_fill: 2, fill_interval: 60s}}
enable_x_ratelimit_headers: DRAFT_VERSION_03
response_headers_to_add: [{{header: {{key: x-l, value: v}}}}]
{ON}"
        );
        let config = bench.compile_override(&limited).unwrap();
        let level = super::super::Override { disabled: None, config: Some(config), levels: Vec::new() };
        let mut answers = Vec::new();
        for _ in 0..3 {
            let mut filter = Arc::clone(&base).new_stream(Overrides(Some(&level))).unwrap();
            answers.push(pass(&mut *filter, &mut get("/", &[]), &mut stream()));
        }
        let headers = |remaining: &str, reset: &str| {
            [
                "x-ratelimit-limit: 2".into(),
                format!("x-ratelimit-remaining: {remaining}"),
                format!("x-ratelimit-reset: {reset}"),
            ]
        };
        assert_eq!(answers[0], (200, headers("1", "0").to_vec()));
        assert_eq!(answers[1], (200, headers("0", "30").to_vec()));
        assert_eq!(answers[2], (429, [&["x-l: v".to_owned()][..], &headers("0", "30")].concat()));
        let prefix = "rt.http_local_rate_limit";
        assert_eq!(
            bench.counted(),
            ["enabled: 3", "enforced: 1", "ok: 2", "rate_limited: 1"].map(|stat| format!("{prefix}.{stat}"))
        );
    }

    #[test]
    fn what_is_not_enforced_is_marked() {
        let bench = Bench::new(&Factory);
        let mut filter = bench
            .filter(
                "stat_prefix: p
token_bucket: {max_tokens: 0, fill_interval: 60s}
filter_enabled: {default_value: {numerator: 100}}
request_headers_to_add_when_not_enforced: [{header: {key: x-over, value: 'yes'}}]",
            )
            .unwrap();
        let mut request = get("/", &[]);
        assert_eq!(pass(&mut *filter, &mut request, &mut stream()), (200, vec![]));
        assert_eq!(lines(&request.head.headers), ["x-over: yes"]);
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn descriptors_have_their_own_buckets() {
        let bench = Bench::new(&Factory);
        let config = bench
            .compile(&format!(
                "stat_prefix: p
token_bucket: {{max_tokens: 2, tokens_per_fill: 2, fill_interval: 60s}}
enable_x_ratelimit_headers: DRAFT_VERSION_03
enable_retry_after_header: true
always_consume_default_token_bucket: false
rate_limits:
- actions: [{{request_headers: {{header_name: x-u, descriptor_key: u}}}}]
- actions: [{{request_headers: {{header_name: x-s, descriptor_key: s}}}}]
- actions: [{{request_headers: {{header_name: x-h, descriptor_key: u}}}}]
  hits_addend: {{number: 3}}
- actions: [{{request_headers: {{header_name: x-q, descriptor_key: u}}}}]
  x_ratelimit_option: 'OFF'
descriptors:
- entries: [{{key: u, value: a}}]
  token_bucket: {{max_tokens: 1, tokens_per_fill: 1, fill_interval: 10s}}
- entries: [{{key: u}}]
  token_bucket: {{max_tokens: 5, tokens_per_fill: 5, fill_interval: 10s}}
- entries: [{{key: s, value: a}}]
  shadow_mode: true
  token_bucket: {{max_tokens: 1, tokens_per_fill: 1, fill_interval: 7s}}
{ON}"
            ))
            .unwrap();
        let told = |limit: &str, remaining: &str, reset: &str| {
            vec![
                format!("x-ratelimit-limit: {limit}"),
                format!("x-ratelimit-remaining: {remaining}"),
                format!("x-ratelimit-reset: {reset}"),
            ]
        };
        let refused = |retry: &str, told: Vec<String>| [vec![format!("retry-after: {retry}")], told].concat();
        for (step, (headers, status, expected)) in [
            (&[("x-u", "a")][..], 200, told("1", "0", "10")),
            (&[("x-u", "a")], 429, refused("10", told("1", "0", "10"))),
            (&[("x-u", "b")], 200, told("5", "4", "0")),
            (&[("x-s", "a")], 200, told("1", "0", "7")),
            (&[("x-s", "a")], 200, told("1", "0", "7")),
            (&[("x-h", "c")], 200, told("5", "2", "0")),
            (&[("x-h", "c")], 429, refused("1", told("5", "2", "0"))),
            (&[("x-q", "b")], 200, vec![]),
            (&[("x-u", "z"), ("x-s", "a")], 200, told("1", "0", "7")),
            (&[("x-s", "none")], 200, told("2", "1", "0")),
        ]
        .into_iter()
        .enumerate()
        {
            let mut filter = Arc::clone(&config).new_stream(Overrides::default()).unwrap();
            assert_eq!(pass(&mut *filter, &mut get("/", headers), &mut stream()), (status, expected), "step {step}");
        }
        let prefix = "p.http_local_rate_limit";
        assert_eq!(
            bench.counted(),
            ["enabled: 10", "enforced: 2", "ok: 6", "rate_limited: 4", "shadow_mode: 2"]
                .map(|stat| format!("{prefix}.{stat}"))
        );
    }

    const ROUTE: &[Coverage] = &[Coverage {
        message: "envoy.config.route.v3.RouteAction",
        enforced: &["rate_limits", "cluster"],
        listed: &[],
    }];

    #[test]
    fn the_limits_of_routes_count_where_there_are_no_own() {
        let limits = |yaml: &str| {
            let bytes = checked("envoy.config.route.v3.RouteAction", yaml, &[ROUTE, COVERAGE].concat()).unwrap();
            let action: RouteAction = prost::Message::decode(&bytes[..]).unwrap();
            crate::matching::testing::ok(|context| RateLimit::compile_all("rate_limits", &action.rate_limits, context))
        };
        let of_route = "cluster: c\nrate_limits: [{actions: [{generic_key: {descriptor_value: route}}]}, {stage: 1, actions: \
                        [{generic_key: {descriptor_value: one}}]}, {disable_key: k, actions: [{remote_address: {}}]}]";
        let of_host = "cluster: c\nrate_limits: [{actions: [{generic_key: {descriptor_value: host}}]}]";
        let counted = |virtual_host, stage, of_route: &str| {
            let mut stream = stream();
            let (rate_limits, of_virtual_host) = (limits(of_route), limits(of_host));
            stream.route = Some(Arc::new(FakeRoute { rate_limits, of_virtual_host, ..FakeRoute::to("service") }));
            let counted = Counted::OfRoute { stage, virtual_host };
            let descriptors = counted.descriptors(&get("/", &[]).head, &stream);
            let value = |descriptor: &Descriptor| String::from_utf8_lossy(&descriptor.entries[0].value).into_owned();
            descriptors.iter().map(value).collect::<Vec<_>>().join(",")
        };
        assert_eq!(counted(VirtualHostLimits::WithoutOthers, 0, of_route), "route");
        assert_eq!(counted(VirtualHostLimits::WithoutOthers, 0, "cluster: c"), "host");
        assert_eq!(counted(VirtualHostLimits::Always, 0, of_route), "route,host");
        assert_eq!(counted(VirtualHostLimits::Always, 1, of_route), "one");
        assert_eq!(counted(VirtualHostLimits::Never, 0, "cluster: c"), "");
    }

    #[test]
    fn each_connection_may_have_its_own_bucket() {
        let bench = Bench::new(&Factory);
        let config = bench
            .compile(&format!(
                "stat_prefix: p
token_bucket: {{max_tokens: 1, fill_interval: 60s}}
local_rate_limit_per_downstream_connection: true
rate_limited_as_resource_exhausted: true
{ON}"
            ))
            .unwrap();
        let (first, second) = (connection(), connection());
        let ask = |connection: &crate::connection::ConnectionInfo| {
            let mut filter = Arc::clone(&config).new_stream(Overrides::default()).unwrap();
            let mut stream = stream_with(connection.clone(), FakeServices::default());
            now(on_request(&mut *filter, &mut get("/", &[]), &mut stream)).map(|reply| reply.grpc_status)
        };
        assert_eq!([ask(&first), ask(&first), ask(&second)], [None, Some(Some(8)), None]);
    }

    #[test]
    fn bad_configurations_name_their_field() {
        let bench = Bench::new(&Factory);
        let error = |yaml: &str| bench.compile(&format!("stat_prefix: p\n{yaml}")).err().unwrap();
        assert_eq!(
            error("token_bucket: {max_tokens: 1, fill_interval: 0.01s}"),
            "token_bucket.fill_interval: the fill interval of a token bucket must be >= 50ms"
        );
        let staged = error("rate_limits: [{stage: 1, actions: [{generic_key: {descriptor_value: a}}]}]");
        assert_eq!(staged, "rate_limits[0]: 'stage' field and 'disable_key' field are not supported");
        assert!(error("local_cluster_rate_limit: {}").starts_with("local_cluster_rate_limit: not supported yet"));
        let twice = "rate_limits: [{actions: [{generic_key: {descriptor_value: a}}]}]
descriptors:
- {entries: [{key: a}], token_bucket: {fill_interval: 1s}}
- {entries: [{key: a}], token_bucket: {fill_interval: 2s}}";
        assert_eq!(error(twice), "descriptors[1]: duplicate descriptor in the local rate descriptor");
        let error = bench.compile_override("stat_prefix: p").err().unwrap();
        assert_eq!(error, "token_bucket: must be set for per filter configs");
    }
}
