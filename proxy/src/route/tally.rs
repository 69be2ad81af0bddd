//! What a virtual cluster or a route counts of its requests, under Envoy's names, beside what their cluster counts.
//! It must not know when things are counted.

use std::sync::Arc;

use http::StatusCode;
use tidegate_stats::{Scope, stats_block};

use crate::cluster::codes::Codes;

stats_block! {
    /// `vhost.<virtual host>.vcluster.<name>.*`, `vhost.<virtual host>.route.<stat_prefix>.*`.
    pub struct RequestStats {
        counters {
            upstream_rq_retry, upstream_rq_retry_limit_exceeded, upstream_rq_retry_overflow, upstream_rq_retry_success,
            upstream_rq_timeout, upstream_rq_total,
        }
        gauges {}
        histograms {}
    }
}

/// The stats of one virtual cluster or route.
pub struct Tally {
    pub requests: RequestStats,
    codes: Codes,
}

impl Tally {
    /// Of a virtual cluster. Names stay as they are written, as in Envoy.
    pub(crate) fn of_virtual_cluster(stats: &Scope, host: &str, name: &str) -> Self {
        Self::new(&stats.root().verbatim(&format!("vhost.{host}.vcluster.{name}.")))
    }

    /// Of a route, by its `stat_prefix`.
    pub(crate) fn of_route(stats: &Scope, host: &str, stat_prefix: &str) -> Self {
        Self::new(&stats.root().verbatim(&format!("vhost.{host}.route.{stat_prefix}.")))
    }

    fn new(scope: &Scope) -> Self {
        Self { requests: RequestStats::new(scope), codes: Codes::new(scope, "") }
    }

    /// A response that was handed on, or what stands in for one.
    pub(crate) fn code(&self, status: StatusCode) {
        self.codes.count(status, false);
    }

    /// How long the response took.
    pub(crate) fn time(&self, millis: u64) {
        self.codes.record_time(millis);
    }
}

/// All that count one request beside its cluster.
#[derive(Clone, Default)]
pub struct Tallies {
    pub virtual_cluster: Option<Arc<Tally>>,
    pub route: Option<Arc<Tally>>,
}

impl Tallies {
    /// Counts in each of them.
    pub(crate) fn each(&self, count: impl Fn(&Tally)) {
        self.virtual_cluster.iter().chain(&self.route).for_each(|tally| count(tally));
    }
}

#[cfg(test)]
mod tests {
    use tidegate_stats::Store;

    use super::*;

    #[test]
    fn names_stay_as_they_are_written() {
        let stats = Store::new().root();
        let tallies = Tallies {
            virtual_cluster: Some(Tally::of_virtual_cluster(&stats.scope("http.a."), "a:b c", "v:1").into()),
            route: Some(Tally::of_route(&stats, "a:b c", "r").into()),
        };
        tallies.each(|tally| {
            tally.requests.upstream_rq_total().inc();
            tally.code(StatusCode::NOT_FOUND);
            tally.time(5);
        });
        tallies.clone().each(|tally| tally.code(StatusCode::OK));
        for prefix in ["vhost.a:b c.vcluster.v:1.", "vhost.a:b c.route.r."] {
            let scope = stats.verbatim(prefix);
            assert_eq!(RequestStats::new(&scope).upstream_rq_total().value(), 1);
            assert_eq!(scope.counter("upstream_rq_completed").value(), 2);
            assert_eq!(scope.counter("upstream_rq_404").value(), 1);
            assert_eq!(scope.counter("upstream_rq_2xx").value(), 1);
        }
    }
}
