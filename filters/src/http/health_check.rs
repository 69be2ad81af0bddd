//! `envoy.extensions.filters.http.health_check.v3.HealthCheck`: answers health checks of this process, and tells its clients
//! when it was asked to fail them.
//!
//! Acts: all fields but `cache_time`, which is refused. In pass-through mode checks go to the upstream unless they must fail.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::http::health_check::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::Services;
use super::{
    FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Response, Step, StreamContext,
};
use crate::context::CompileContext;
use crate::matching::HeaderMatcher;
use crate::stream_info::ResponseFlags;

const MESSAGE: &str = "envoy.extensions.filters.http.health_check.v3.HealthCheck";
const CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
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
        let failing = stream.services.health_check_failing();
        if self.config.pass_through && !failing {
            return Step::Continue;
        }
        let stats = &self.config.stats;
        stats.request_total().inc();
        let details = if failing { Some("health_check_failed") } else { self.config.fault(&*stream.services) };
        Step::reply(match details {
            None => {
                stats.ok().inc();
                let checked = !self.config.clusters.is_empty();
                let details = if checked { "health_check_ok_cluster_healthy" } else { "health_check_ok" };
                LocalReply::new(StatusCode::OK, details)
            }
            Some(details) => {
                stats.failed().inc();
                LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, details).flag(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK)
            }
        })
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, stream: &'a mut StreamContext) -> Step<'a> {
        if self.is_check {
            let cluster = HeaderValue::from_str(stream.services.node_cluster());
            response.head.set(CHECKED_CLUSTER, cluster.unwrap_or(HeaderValue::from_static("")));
        } else if stream.services.health_check_failing() {
            response.head.set(FAIL, HeaderValue::from_static("true"));
        }
        Step::Continue
    }
}

impl Config {
    /// What is wrong with the clusters, as response code details.
    fn fault(&self, services: &dyn Services) -> Option<&'static str> {
        self.clusters.iter().find_map(|(cluster, least)| match services.cluster_healthy_percent(cluster) {
            None => {
                self.stats.failed_cluster_not_found().inc();
                Some("health_check_failed_no_cluster_found")
            }
            Some(percent) if percent < *least => {
                self.stats.failed_cluster_unhealthy().inc();
                Some("health_check_failed_cluster_unhealthy")
            }
            Some(_) => None,
        })
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
        let clusters = config.cluster_min_healthy_percentages.iter();
        let mut clusters: Vec<_> = clusters.map(|(name, percent)| (name.clone(), percent.value)).collect();
        clusters.sort_by(|(a, _), (b, _)| a.cmp(b));
        let headers = HeaderMatcher::compile_all(&config.headers, "headers", context)?;
        let stats = Stats::new(&context.stats.scope("health_check."));
        Ok(Arc::new(Config { stats, pass_through, headers, clusters }))
    }
}

const COVERAGE: &[Coverage] = &[
    Coverage {
        message: MESSAGE,
        enforced: &["pass_through_mode", "cluster_min_healthy_percentages", "headers"],
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

    fn ask(config: &str, path: &'static str, failing: bool, a: Option<f64>) -> (u16, String, Vec<String>) {
        let mut filter = Bench::new(&Factory).filter(config).unwrap();
        let healthy = a.map(|percent| ("a", percent)).into_iter().chain([("b", 10.0)]).collect();
        let mut stream = stream_with(connection(), FakeServices { failing, healthy, ..FakeServices::default() });
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
        assert_eq!(ask(CONFIG, "/healthz", false, Some(50.0)), answer(200, "health_check_ok_cluster_healthy"));
        assert_eq!(ask(CONFIG, "/healthz", false, Some(49.0)), answer(503, "health_check_failed_cluster_unhealthy"));
        assert_eq!(ask(CONFIG, "/healthz", false, None), answer(503, "health_check_failed_no_cluster_found"));
        assert_eq!(ask(CONFIG, "/healthz", true, Some(90.0)), answer(503, "health_check_failed"));
        assert_eq!(ask(CONFIG, "/other", true, None), (0, String::new(), failed));
        assert_eq!(ask(CONFIG, "/other", false, None), (0, String::new(), vec![]));
        assert_eq!(ask("pass_through_mode: true", "/", false, None), answer(0, ""));
        assert_eq!(ask("pass_through_mode: true", "/", true, None), answer(503, "health_check_failed"));
    }
}
