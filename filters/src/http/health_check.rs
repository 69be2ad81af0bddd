//! `envoy.extensions.filters.http.health_check.v3.HealthCheck`: answers health checks of this process, and tells its clients
//! when it was asked to fail them.
//!
//! Acts: all fields. In pass-through mode checks go to the upstream unless they must fail, or a recent answer is kept: it is
//! forgotten every `cache_time` of the filter's life, as by Envoy's timer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::http::health_check::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::body::discard;
use super::filter::{Services, Verdict};
use super::{
    BodyError, FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Response, Step,
    StreamContext,
};
use crate::context::CompileContext;
use crate::matching::HeaderMatcher;
use crate::network::milliseconds;
use crate::stream_info::ResponseFlags;

const MESSAGE: &str = "envoy.extensions.filters.http.health_check.v3.HealthCheck";
const CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");
const FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");

stats_block! {
    struct Stats {
        counters { cached_response, degraded, failed, failed_cluster_empty, failed_cluster_not_found, failed_cluster_unhealthy, ok, request_total }
        gauges {}
        histograms {}
    }
}

struct Config {
    stats: Stats,
    pass_through: bool,
    headers: Vec<HeaderMatcher>,
    /// How many percent of which clusters must be healthy.
    clusters: Vec<(String, f64)>,
    cache: Option<Cache>,
}

/// What checks were answered last.
struct Cache {
    time: Duration,
    epoch: Instant,
    last: Mutex<Option<Kept>>,
}

#[derive(Clone, Copy)]
struct Kept {
    /// Which `time` since the epoch it is of.
    turn: u128,
    status: StatusCode,
    degraded: bool,
}

impl Cache {
    fn turn(&self, now: Instant) -> u128 {
        now.saturating_duration_since(self.epoch).as_nanos() / self.time.as_nanos().max(1)
    }

    fn get(&self, now: Instant) -> Option<Kept> {
        self.last.lock().filter(|kept| kept.turn == self.turn(now))
    }

    fn keep(&self, status: StatusCode, degraded: bool, now: Instant) {
        *self.last.lock() = Some(Kept { turn: self.turn(now), status, degraded });
    }
}

struct Filter {
    config: Arc<Config>,
    is_check: bool,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, _: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter { config: self, is_check: false }))
    }
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        self.is_check = self.config.headers.iter().all(|matcher| matcher.matches(&request.head));
        if !self.is_check {
            return Step::Continue;
        }
        stream.info.health_check_request = true;
        let config = &self.config;
        let failing = stream.services.health_check_failing();
        let kept = config.cache.as_ref().filter(|_| !failing).and_then(|cache| cache.get(Instant::now()));
        if config.pass_through && !failing && kept.is_none() {
            return Step::Continue;
        }
        config.stats.request_total().inc();
        let details = match kept {
            _ if failing => Err("health_check_failed"),
            Some(_) => Ok("health_check_cached"),
            None => config.details(&*stream.services),
        };
        let reply = config.reply(details, kept);
        if request.body.is_end() {
            return Step::reply(reply);
        }
        // As in Envoy, it answers a request that is whole.
        Step::wait(async move {
            match discard(&mut request.body).await {
                Ok(()) => Verdict::Reply(Box::new(reply)),
                Err(BodyError::Reply(reply)) => Verdict::Reply(reply),
                Err(_) => Verdict::Reply(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "request_body_cut"))),
            }
        })
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, stream: &'a mut StreamContext) -> Step<'a> {
        if self.is_check {
            if let Some(cache) = &self.config.cache {
                let degraded = response.head.headers.contains_key(DEGRADED);
                cache.keep(response.head.status, degraded, Instant::now());
            }
            let cluster = HeaderValue::from_str(stream.services.node_cluster());
            response.head.set(CHECKED_CLUSTER, cluster.unwrap_or(HeaderValue::from_static("")));
        } else if stream.services.health_check_failing() {
            response.head.set(FAIL, HeaderValue::from_static("true"));
        }
        Step::Continue
    }
}

impl Config {
    /// The answer to a check; `Err` holds the details of one that fails.
    fn reply(&self, details: Result<&'static str, &'static str>, kept: Option<Kept>) -> LocalReply {
        let stats = &self.stats;
        let status = match (details, kept) {
            (Err(_), _) => StatusCode::SERVICE_UNAVAILABLE,
            (Ok(_), Some(kept)) => kept.status,
            (Ok(_), None) => StatusCode::OK,
        };
        let (Ok(details) | Err(details)) = details;
        let mut reply = LocalReply::new(status, details);
        if status.is_success() {
            stats.ok().inc();
        } else {
            stats.failed().inc();
            reply = reply.flag(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK);
        }
        if let Some(kept) = kept {
            stats.cached_response().inc();
            if kept.degraded {
                stats.degraded().inc();
                reply.headers.insert(DEGRADED, HeaderValue::from_static(""));
            }
        }
        reply
    }

    /// What the clusters say, as response code details.
    fn details(&self, services: &dyn Services) -> Result<&'static str, &'static str> {
        for (cluster, least) in &self.clusters {
            match services.cluster_members(cluster) {
                None => {
                    self.stats.failed_cluster_not_found().inc();
                    return Err("health_check_failed_no_cluster_found");
                }
                Some((_, 0)) if *least == 0.0 => {}
                Some((_, 0)) => {
                    self.stats.failed_cluster_empty().inc();
                    return Err("health_check_failed_cluster_empty");
                }
                Some((serving, all)) if (serving as f64) < all as f64 * least / 100.0 => {
                    self.stats.failed_cluster_unhealthy().inc();
                    return Err("health_check_failed_cluster_unhealthy");
                }
                Some(_) => {}
            }
        }
        Ok(if self.clusters.is_empty() { "health_check_ok" } else { "health_check_ok_cluster_healthy" })
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let config: pb::HealthCheck = context.decode(config)?;
        let pass_through = config.pass_through_mode.is_some_and(|value| value.value);
        if pass_through && !config.cluster_min_healthy_percentages.is_empty() {
            let reason = "cluster_min_healthy_percentages must not be set in pass-through mode";
            return Err(context.error_at("cluster_min_healthy_percentages", reason));
        }
        let cache_time = milliseconds(config.cache_time.as_ref());
        if !pass_through && !cache_time.is_zero() {
            let reason = "cache_time_ms must not be set when path_through_mode is disabled";
            return Err(context.error_at("cache_time", reason));
        }
        let cache = || Cache { time: cache_time, epoch: Instant::now(), last: Mutex::default() };
        let clusters = config.cluster_min_healthy_percentages.iter();
        let mut clusters: Vec<_> = clusters.map(|(name, percent)| (name.clone(), percent.value)).collect();
        clusters.sort_by(|(a, _), (b, _)| a.cmp(b));
        let headers = HeaderMatcher::compile_all(&config.headers, "headers", context)?;
        let stats = Stats::new(&context.stats.scope("health_check."));
        Ok(Arc::new(Config { stats, pass_through, headers, clusters, cache: (!cache_time.is_zero()).then(cache) }))
    }
}

const COVERAGE: &[Coverage] = &[
    Coverage {
        message: MESSAGE,
        enforced: &["pass_through_mode", "cache_time", "cluster_min_healthy_percentages", "headers"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.Percent", enforced: &["value"], listed: &[] },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;
    use crate::http::testing::*;

    const CONFIG: &str = "pass_through_mode: false
headers: [{name: ':path', string_match: {exact: /healthz}}]
cluster_min_healthy_percentages: {a: {value: 50}, b: {value: 10}}";

    type Members = Option<(u64, u64)>;

    fn ask(config: &str, path: &'static str, failing: bool, a: Members) -> (u16, String, Vec<String>) {
        let mut filter = Bench::new(&Factory).filter(config).unwrap();
        let members = a.map(|members| ("a", members)).into_iter().chain([("b", (1, 10))]).collect();
        let mut stream = stream_with(connection(), FakeServices { failing, members, ..FakeServices::default() });
        let reply = now(on_request(&mut *filter, &mut get(path, &[]), &mut stream));
        let (status, details) = reply.map_or((0, String::new()), |r| (r.status.as_u16(), r.details.into_owned()));
        let mut out = response(200, &[], Body::Empty);
        now(on_response(&mut *filter, &mut out, &mut stream));
        (status, details, lines(&out.head.headers))
    }

    #[test]
    fn checks_are_answered_and_failure_is_announced() {
        let checked = vec!["x-envoy-upstream-healthchecked-cluster: ".to_owned()];
        let failed = vec!["x-envoy-immediate-health-check-fail: true".to_owned()];
        let answer = |status, details: &str| (status, details.to_owned(), checked.clone());
        assert_eq!(ask(CONFIG, "/healthz", false, Some((1, 2))), answer(200, "health_check_ok_cluster_healthy"));
        assert_eq!(ask(CONFIG, "/healthz", false, Some((1, 3))), answer(503, "health_check_failed_cluster_unhealthy"));
        assert_eq!(ask(CONFIG, "/healthz", false, Some((0, 0))), answer(503, "health_check_failed_cluster_empty"));
        assert_eq!(ask(CONFIG, "/healthz", false, None), answer(503, "health_check_failed_no_cluster_found"));
        assert_eq!(ask(CONFIG, "/healthz", true, Some((9, 9))), answer(503, "health_check_failed"));
        assert_eq!(ask(CONFIG, "/other", true, None), (0, String::new(), failed));
        assert_eq!(ask(CONFIG, "/other", false, None), (0, String::new(), vec![]));
        assert_eq!(ask("pass_through_mode: true", "/", false, None), answer(0, ""));
        assert_eq!(ask("pass_through_mode: true", "/", true, None), answer(503, "health_check_failed"));
    }

    #[test]
    fn what_is_kept_is_of_its_turn() {
        let epoch = Instant::now();
        let cache = Cache { time: Duration::from_secs(2), epoch, last: Mutex::default() };
        let at = |seconds| epoch + Duration::from_secs(seconds);
        cache.keep(StatusCode::NOT_FOUND, true, at(3));
        assert!(cache.get(at(3)).is_some_and(|kept| kept.status == StatusCode::NOT_FOUND && kept.degraded));
        assert!(cache.get(at(4)).is_none() && cache.get(at(1)).is_none());
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn a_passed_check_is_answered_from_memory() {
        let bench = Bench::new(&Factory);
        let config = bench.compile("{pass_through_mode: true, cache_time: 3600s}").unwrap();
        let mut answers = Vec::new();
        for _ in 0..2 {
            let mut filter = Arc::clone(&config).new_stream(Overrides::default()).unwrap();
            let mut stream = stream();
            let reply = now(on_request(&mut *filter, &mut get("/", &[]), &mut stream));
            answers.push(reply.map(|reply| (reply.status.as_u16(), reply.details, lines(&reply.headers))));
            now(on_response(&mut *filter, &mut response(500, &[("x-envoy-degraded", "1")], Body::Empty), &mut stream));
        }
        let kept = (500, "health_check_cached".into(), vec!["x-envoy-degraded: ".to_owned()]);
        assert_eq!(answers, [None, Some(kept)]);
        let error = bench.compile("{pass_through_mode: false, cache_time: 1s}").err().unwrap();
        assert_eq!(error, "cache_time: cache_time_ms must not be set when path_through_mode is disabled");
    }
}
