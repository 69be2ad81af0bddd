//! `envoy.extensions.filters.http.fault.v3.HTTPFault`: delays requests, aborts them and slows responses down, for tests of what
//! depends on this service.
//!
//! Acts: all fields. A route replaces the filter's settings. Only what a header decides may have its share lowered by one.
//! Differs: faults are counted apart for so many downstream clusters only, since clients choose their names.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use serde_json::{Map, Value};
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::common::fault::v3 as pb_common;
use tidegate_xds::pb::envoy::extensions::filters::http::fault::v3 as pb;
use tidegate_xds::pb::envoy::r#type::v3::FractionalPercent;
use tidegate_xds::{Coverage, FieldError};

use super::body::read_ahead;
use super::filter::{OverrideConfig, Verdict};
use super::named_counters::NamedCounters;
use super::slow_body::SlowBody;
use super::{
    FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, RequestHead, Response, Step,
    StreamContext,
};
use crate::context::CompileContext;
use crate::matching::HeaderMatcher;
use crate::metadata;
use crate::runtime::Fraction;
use crate::shown::Tags;
use crate::stream_info::ResponseFlags;

const MESSAGE: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const DOWNSTREAM_NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");
const DOWNSTREAM_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const RATE: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response");
const RATE_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response-percentage");
/// What is taken of a request while it is delayed.
const MOST_AHEAD_BYTES: usize = 1 << 20;
/// Where it notes which fault acted.
const NAMESPACE: &str = "envoy.filters.http.fault";
const ABORT_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");

stats_block! {
    struct Stats {
        counters { aborts_injected, delays_injected, faults_overflow, response_rl_injected }
        gauges { active_faults }
        histograms {}
    }
}

struct Config {
    stats: Stats,
    /// The same by downstream cluster, which is whatever the request's header says.
    delays_by_cluster: NamedCounters,
    aborts_by_cluster: NamedCounters,
    settings: Arc<Settings>,
}

struct Settings {
    delay: Option<Delay>,
    abort: Option<Abort>,
    rate: Option<Rate>,
    /// What is noted of a delay or an abort.
    metadata: Map<String, Value>,
    upstream_cluster: String,
    downstream_nodes: Vec<String>,
    headers: Vec<HeaderMatcher>,
    most_active: Option<u64>,
    keys: Keys,
    by_downstream_cluster: bool,
}

/// The runtime keys that replace values.
struct Keys {
    delay_percent: Arc<str>,
    abort_percent: Arc<str>,
    rate_percent: Arc<str>,
    delay_millis: String,
    abort_http_status: String,
    abort_grpc_status: String,
    most_active: String,
}

struct Delay {
    /// `None` where the request's header says how long.
    fixed_millis: Option<u64>,
    share: Fraction,
}

struct Rate {
    /// KiB a second; `None` where the request's header says how many.
    fixed: Option<u64>,
    share: Fraction,
}

struct Abort {
    with: AbortWith,
    share: Fraction,
    body: Bytes,
}

enum AbortWith {
    Http(u64),
    Grpc(u64),
    /// The request's headers say with what.
    Header,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let settings: Arc<Settings> = overrides.shared().unwrap_or_else(|| Arc::clone(&self.settings));
        let inert = settings.delay.is_none() && settings.abort.is_none() && settings.rate.is_none();
        (!inert).then(|| Box::new(Filter { config: self, settings, active: false, cluster: None, rate: None }) as _)
    }
}

struct Filter {
    config: Arc<Config>,
    settings: Arc<Settings>,
    /// Whether this stream counts as one with a fault.
    active: bool,
    /// Who calls, where it says so, be it with nothing.
    cluster: Option<String>,
    /// KiB of the response a second.
    rate: Option<u64>,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        if !self.settings.concerns(&request.head, stream) {
            return Step::Continue;
        }
        let cluster = request.head.headers.get(DOWNSTREAM_CLUSTER).and_then(|value| value.to_str().ok());
        self.cluster = cluster.map(str::to_owned);
        self.rate = self.rate(&request.head, stream).filter(|_| self.become_active(stream));
        if self.rate.is_some() {
            self.config.stats.response_rl_injected().inc();
        }
        if let Some(delay) = self.delay(&request.head, stream)
            && self.become_active(stream)
        {
            tracing::debug!("{} fault: delaying request {}ms", Tags::stream(stream), delay.as_millis());
            self.config.stats.delays_injected().inc();
            self.count_cluster(&self.config.delays_by_cluster);
            stream.info.flags |= ResponseFlags::DELAY_INJECTED;
            self.note(stream);
            return Step::wait(async move {
                read_ahead(&mut request.body, MOST_AHEAD_BYTES, tokio::time::sleep(delay)).await;
                match self.abort(&request.head, stream) {
                    Some(reply) => Verdict::Reply(Box::new(reply)),
                    None => {
                        if self.rate.is_none() {
                            self.end_fault();
                        }
                        Verdict::Continue
                    }
                }
            });
        }
        self.abort(&request.head, stream).map_or(Step::Continue, Step::reply)
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        if let Some(rate) = self.rate {
            response.body = SlowBody::wrap(response.body.take(), rate);
        }
        Step::Continue
    }

    fn on_complete(&mut self, _: &mut StreamContext) {
        self.end_fault();
    }
}

impl Filter {
    /// How long to wait, if at all.
    fn delay(&self, head: &RequestHead, stream: &mut StreamContext) -> Option<Duration> {
        let delay = self.settings.delay.as_ref()?;
        let header = delay.fixed_millis.is_none().then_some(DELAY_PERCENTAGE);
        let share = self.share(&delay.share, head, header, "delay.fixed_delay_percent");
        if !stream.is_in(&share) {
            return None;
        }
        let millis = delay.fixed_millis.or_else(|| number(head, DELAY))?;
        let millis = self.value(&self.settings.keys.delay_millis, "delay.fixed_duration_ms", millis, stream);
        Some(Duration::from_millis(millis)).filter(|delay| !delay.is_zero())
    }

    fn abort(&mut self, head: &RequestHead, stream: &mut StreamContext) -> Option<LocalReply> {
        let settings = Arc::clone(&self.settings);
        let abort = settings.abort.as_ref()?;
        let header = matches!(abort.with, AbortWith::Header).then_some(ABORT_PERCENTAGE);
        let share = self.share(&abort.share, head, header, "abort.abort_percent");
        if !stream.is_in(&share) {
            return None;
        }
        let asked = || number(head, ABORT).filter(|status| (200..600).contains(status));
        let (http, grpc) = match abort.with {
            AbortWith::Http(status) => (Some(status), None),
            AbortWith::Grpc(status) => (None, Some(status)),
            AbortWith::Header => (asked(), number(head, ABORT_GRPC)),
        };
        let keys = &settings.keys;
        let http = http.map(|status| self.status(&keys.abort_http_status, "abort.http_status", status, stream));
        let grpc = match http {
            Some(_) => None,
            None => grpc.map(|status| self.status(&keys.abort_grpc_status, "abort.grpc_status", status, stream)),
        };
        let status = http.or(grpc.map(|_| 200))?;
        if !self.become_active(stream) {
            return None;
        }
        self.config.stats.aborts_injected().inc();
        self.count_cluster(&self.config.aborts_by_cluster);
        self.note(stream);
        let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let reply = LocalReply::new(status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), "fault_filter_abort");
        let mut reply = reply.body(abort.body.clone()).flag(ResponseFlags::FAULT_INJECTED);
        reply.grpc_status = grpc.and_then(|status| u32::try_from(status).ok());
        Some(reply)
    }

    /// How fast the response may be, if that is limited. The calling cluster has no key for it, as in Envoy.
    fn rate(&self, head: &RequestHead, stream: &mut StreamContext) -> Option<u64> {
        let rate = self.settings.rate.as_ref()?;
        let header = rate.fixed.is_none().then_some(RATE_PERCENTAGE);
        let share = lowered(&rate.share, head, header);
        stream.is_in(&share).then(|| rate.fixed.or_else(|| number(head, RATE).filter(|rate| *rate > 0))).flatten()
    }

    /// The share that acts on this request: its header may lower it, and a key of the calling cluster stands for it.
    fn share(&self, share: &Fraction, head: &RequestHead, header: Option<HeaderName>, key: &str) -> Fraction {
        let share = lowered(share, head, header);
        let of_cluster = self.cluster.as_ref().map(|cluster| format!("fault.http.{cluster}.{key}").into());
        Fraction { key: of_cluster.or(share.key), ..share }
    }

    /// Notes which fault acted.
    fn note(&self, stream: &mut StreamContext) {
        if !self.settings.metadata.is_empty() {
            stream.info.dynamic_metadata.merge(NAMESPACE, self.settings.metadata.clone());
        }
    }

    /// A value that the runtime may replace, the calling cluster's key last.
    fn value(&self, key: &str, of_cluster: &str, default: u64, stream: &StreamContext) -> u64 {
        let runtime = stream.services.runtime();
        let cluster = self.cluster.as_ref();
        let replaced = cluster.and_then(|cluster| runtime.integer(&format!("fault.http.{cluster}.{of_cluster}")));
        replaced.or_else(|| runtime.integer(key)).unwrap_or(default)
    }

    /// A status that the runtime may replace: where the calling cluster is known, only by that cluster's key.
    fn status(&self, key: &str, of_cluster: &str, default: u64, stream: &StreamContext) -> u64 {
        let runtime = stream.services.runtime();
        let replaced = match &self.cluster {
            Some(cluster) => runtime.integer(&format!("fault.http.{cluster}.{of_cluster}")),
            None => runtime.integer(key),
        };
        replaced.unwrap_or(default)
    }

    /// Whether one more stream may have a fault.
    fn become_active(&mut self, stream: &StreamContext) -> bool {
        if !self.active {
            let stats = &self.config.stats;
            let most = stream.services.runtime().integer(&self.settings.keys.most_active);
            if most.or(self.settings.most_active).is_some_and(|most| stats.active_faults().value() >= most) {
                stats.faults_overflow().inc();
                return false;
            }
            stats.active_faults().inc();
            self.active = true;
        }
        true
    }

    fn end_fault(&mut self) {
        if std::mem::take(&mut self.active) {
            self.config.stats.active_faults().dec();
        }
    }

    fn count_cluster(&self, counters: &NamedCounters) {
        let counted = |cluster: &&String| !cluster.is_empty() && self.settings.by_downstream_cluster;
        if let Some(cluster) = self.cluster.as_ref().filter(counted) {
            counters.inc(cluster);
        }
    }
}

impl Settings {
    fn concerns(&self, head: &RequestHead, stream: &StreamContext) -> bool {
        let cluster = || stream.route.as_ref().and_then(|route| route.cluster());
        let node = || head.headers.get(DOWNSTREAM_NODE);
        (self.upstream_cluster.is_empty() || cluster() == Some(&*self.upstream_cluster))
            && (self.downstream_nodes.is_empty()
                || node().is_some_and(|node| self.downstream_nodes.iter().any(|known| node == known)))
            && self.headers.iter().all(|matcher| matcher.matches(head))
    }
}

/// A share that a header may lower.
fn lowered(share: &Fraction, head: &RequestHead, header: Option<HeaderName>) -> Fraction {
    let asked = header.and_then(|header| number(head, header));
    let numerator = asked.map_or(share.numerator, |asked| asked.min(share.numerator));
    Fraction { numerator, ..share.clone() }
}

fn number(head: &RequestHead, header: HeaderName) -> Option<u64> {
    head.headers.get(header)?.to_str().ok()?.trim().parse().ok()
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
        let settings = Arc::new(Settings::compile(&context.decode(config)?, context)?);
        let scope = context.stats.scope("fault.");
        Ok(Arc::new(Config {
            stats: Stats::new(&scope),
            delays_by_cluster: NamedCounters::of_clients(&scope, "", ".delays_injected"),
            aborts_by_cluster: NamedCounters::of_clients(&scope, "", ".aborts_injected"),
            settings,
        }))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        Ok(Arc::new(Settings::compile(&context.decode(config)?, context)?))
    }
}

const COVERAGE: &[Coverage] = &[
    Coverage {
        message: MESSAGE,
        enforced: &[
            "delay",
            "abort",
            "upstream_cluster",
            "headers",
            "downstream_nodes",
            "max_active_faults",
            "delay_percent_runtime",
            "abort_percent_runtime",
            "delay_duration_runtime",
            "abort_http_status_runtime",
            "max_active_faults_runtime",
            "abort_grpc_status_runtime",
            "disable_downstream_cluster_stats",
            "response_rate_limit",
            "response_rate_limit_percent_runtime",
            "filter_metadata",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.common.fault.v3.FaultRateLimit",
        enforced: &["fixed_limit", "header_limit", "percentage"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.common.fault.v3.FaultRateLimit.FixedLimit",
        enforced: &["limit_kbps"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.common.fault.v3.FaultRateLimit.HeaderLimit",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.http.fault.v3.FaultAbort",
        enforced: &["http_status", "grpc_status", "header_abort", "percentage", "response_body"],
        listed: &[],
    },
    Coverage { message: "envoy.extensions.filters.http.fault.v3.FaultAbort.HeaderAbort", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.extensions.filters.common.fault.v3.FaultDelay",
        enforced: &["fixed_delay", "header_delay", "percentage"],
        listed: &[],
    },
    Coverage { message: "envoy.extensions.filters.common.fault.v3.FaultDelay.HeaderDelay", enforced: &[], listed: &[] },
];

impl Settings {
    fn compile(fault: &pb::HttpFault, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let key = |name: &str, default: &str| if name.is_empty() { default.to_owned() } else { name.to_owned() };
        let keys = Keys {
            delay_percent: key(&fault.delay_percent_runtime, "fault.http.delay.fixed_delay_percent").into(),
            abort_percent: key(&fault.abort_percent_runtime, "fault.http.abort.abort_percent").into(),
            rate_percent: key(&fault.response_rate_limit_percent_runtime, "fault.http.rate_limit.response_percent")
                .into(),
            delay_millis: key(&fault.delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
            abort_http_status: key(&fault.abort_http_status_runtime, "fault.http.abort.http_status"),
            abort_grpc_status: key(&fault.abort_grpc_status_runtime, "fault.http.abort.grpc_status"),
            most_active: key(&fault.max_active_faults_runtime, "fault.http.max_active_faults"),
        };
        Ok(Self {
            delay: fault.delay.as_ref().map(|delay| Delay::compile(delay, &keys)),
            abort: fault.abort.as_ref().and_then(|abort| Abort::compile(abort, &keys)),
            rate: fault.response_rate_limit.as_ref().map(|rate| Rate::compile(rate, &keys)),
            metadata: fault.filter_metadata.as_ref().map(metadata::object).unwrap_or_default(),
            upstream_cluster: fault.upstream_cluster.clone(),
            downstream_nodes: fault.downstream_nodes.clone(),
            headers: HeaderMatcher::compile_all(&fault.headers, "headers", context)?,
            most_active: fault.max_active_faults.map(|most| u64::from(most.value)),
            keys,
            by_downstream_cluster: !fault.disable_downstream_cluster_stats,
        })
    }
}

fn share(percentage: Option<&FractionalPercent>, key: &Arc<str>) -> Fraction {
    let share = percentage.map_or(Fraction::NEVER, Fraction::compile_percent);
    Fraction { key: Some(Arc::clone(key)), ..share }
}

impl Delay {
    fn compile(delay: &pb_common::FaultDelay, keys: &Keys) -> Self {
        use pb_common::fault_delay::FaultDelaySecifier as Specifier;
        let fixed_millis = match &delay.fault_delay_secifier {
            Some(Specifier::FixedDelay(delay)) => {
                let millis = delay.seconds.saturating_mul(1000).saturating_add(i64::from(delay.nanos / 1_000_000));
                Some(u64::try_from(millis).unwrap_or(0))
            }
            Some(Specifier::HeaderDelay(_)) | None => None,
        };
        Self { fixed_millis, share: share(delay.percentage.as_ref(), &keys.delay_percent) }
    }
}

impl Rate {
    fn compile(rate: &pb_common::FaultRateLimit, keys: &Keys) -> Self {
        use pb_common::fault_rate_limit::LimitType;
        let fixed = match &rate.limit_type {
            Some(LimitType::FixedLimit(limit)) => Some(limit.limit_kbps),
            Some(LimitType::HeaderLimit(_)) | None => None,
        };
        Self { fixed, share: share(rate.percentage.as_ref(), &keys.rate_percent) }
    }
}

impl Abort {
    fn compile(abort: &pb::FaultAbort, keys: &Keys) -> Option<Self> {
        use pb::fault_abort::ErrorType;
        let with = match abort.error_type.as_ref()? {
            ErrorType::HttpStatus(status) => AbortWith::Http(u64::from(*status)),
            ErrorType::GrpcStatus(status) => AbortWith::Grpc(u64::from(*status)),
            ErrorType::HeaderAbort(_) => AbortWith::Header,
        };
        let body = match abort.response_body.as_str() {
            "" => Bytes::from_static(b"fault filter abort"),
            body => Bytes::copy_from_slice(body.as_bytes()),
        };
        Some(Self { with, share: share(abort.percentage.as_ref(), &keys.abort_percent), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::*;

    type Told = Option<(u16, Option<u32>, String)>;

    fn ask(bench: &Bench, config: &Arc<dyn HttpFilterConfig>, headers: &[(&'static str, &'static str)]) -> Told {
        let _ = bench;
        let mut filter = Arc::clone(config).new_stream(Overrides::default())?;
        let reply = now(on_request(&mut *filter, &mut get("/", headers), &mut stream()));
        filter.on_complete(&mut stream());
        reply.map(|reply| (reply.status.as_u16(), reply.grpc_status, String::from_utf8_lossy(&reply.body).into_owned()))
    }

    #[test]
    fn requests_are_aborted_as_configured_or_as_they_ask() {
        let bench = Bench::new(&Factory);
        let fixed = bench.compile("{abort: {http_status: 418, percentage: {numerator: 100}}, headers: [{name: x-f}]}");
        let fixed = fixed.unwrap();
        assert_eq!(ask(&bench, &fixed, &[]), None);
        assert_eq!(ask(&bench, &fixed, &[("x-f", "")]), Some((418, None, "fault filter abort".into())));
        let share = [("x-f", ""), ("x-envoy-fault-abort-request-percentage", "0")];
        assert!(ask(&bench, &fixed, &share).is_some(), "only what a header decides is lowered by one");
        let asked =
            bench.compile("{abort: {header_abort: {}, percentage: {numerator: 100}, response_body: b}}").unwrap();
        assert_eq!(ask(&bench, &asked, &[]), None);
        assert_eq!(ask(&bench, &asked, &[("x-envoy-fault-abort-request", "503")]), Some((503, None, "b".into())));
        assert_eq!(ask(&bench, &asked, &[("x-envoy-fault-abort-request", "99")]), None);
        let lowered = [("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "0")];
        assert_eq!(ask(&bench, &asked, &lowered), None);
        assert_eq!(ask(&bench, &asked, &[("x-envoy-fault-abort-grpc-request", "7")]), Some((200, Some(7), "b".into())));
        let caller = [("x-f", ""), ("x-envoy-downstream-service-cluster", "web")];
        assert!(ask(&bench, &fixed, &caller).is_some());
        assert_eq!(bench.counted(), ["http.test.fault.aborts_injected: 5", "http.test.fault.web.aborts_injected: 1"]);
    }

    #[test]
    fn clients_cannot_fill_the_stats_with_names() {
        let bench = Bench::new(&Factory);
        let config = bench.compile("{abort: {http_status: 418, percentage: {numerator: 100}}}").unwrap();
        let ask = |cluster: String| {
            let mut request = get("/", &[]);
            request.head.headers.insert(DOWNSTREAM_CLUSTER, cluster.parse().unwrap());
            let mut filter = Arc::clone(&config).new_stream(Overrides::default()).unwrap();
            assert!(now(on_request(&mut *filter, &mut request, &mut stream())).is_some());
            filter.on_complete(&mut stream());
        };
        ask("x".repeat(10_000));
        for n in 0..5000 {
            ask(n.to_string());
        }
        // Those of so many clusters, and that of all.
        assert_eq!(bench.counted().len(), super::super::named_counters::MOST_NAMES + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_delayed_but_not_too_many_at_once() {
        let bench = Bench::new(&Factory);
        let config =
            bench.compile("{delay: {fixed_delay: 3s, percentage: {numerator: 100}}, max_active_faults: 1}").unwrap();
        let mut first = Arc::clone(&config).new_stream(Overrides::default()).unwrap();
        let mut second = Arc::clone(&config).new_stream(Overrides::default()).unwrap();
        let start = tokio::time::Instant::now();
        let (mut request, mut stream) = (get("/", &[]), stream());
        {
            let waiting = first.on_request(&mut request, &mut stream);
            let (mut other_request, mut other_stream) = (get("/", &[]), super::super::testing::stream());
            assert!(matches!(second.on_request(&mut other_request, &mut other_stream), Step::Continue));
            let Step::Wait(waiting) = waiting else { panic!("does not wait") };
            assert!(matches!(waiting.await, Verdict::Continue));
        }
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(stream.info.flags, ResponseFlags::DELAY_INJECTED);
        assert_eq!(bench.counted(), ["http.test.fault.delays_injected: 1", "http.test.fault.faults_overflow: 1"]);
        assert!(bench.filter("{}").is_none(), "without a fault it is inert");
    }
}
