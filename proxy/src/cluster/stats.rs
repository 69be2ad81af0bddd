//! A cluster's stats, `cluster.<name>.*`, under Envoy's names. Groups that are seldom touched are apart from those of every
//! request: a group costs memory once something in it was counted. It must not know when things are counted.

use std::time::{Duration, SystemTime};

use tidegate_stats::{BlockHandle, Counter, Gauge, Histogram, Layout, Scope, TextReadout, Unit, stats_block};

use super::circuit_breaker::{Resource, RoutingPriority};
use super::codes::{CodeStats, RetryCodes};
use super::host_set::{HostSet, Membership, MembershipChange};
use super::lb::{Balancing, Outcome, Picked, Policy, Subsets, TableSize};
use super::options::{ClusterConfig, Discovery};
use crate::http::codec::stats::CodecStats;
use crate::stats::cluster_manager::ClusterManagerStats;
use crate::stats::subscription::{Update, millis, version_hash};

stats_block! {
    /// Connections and requests.
    pub struct TrafficStats {
        counters {
            bind_errors, original_dst_host_invalid, retry_or_shadow_abandoned, upstream_cx_close_notify,
            upstream_cx_connect_attempts_exceeded, upstream_cx_connect_fail, upstream_cx_connect_timeout,
            upstream_cx_connect_with_0_rtt, upstream_cx_destroy, upstream_cx_destroy_local,
            upstream_cx_destroy_local_with_active_rq, upstream_cx_destroy_remote,
            upstream_cx_destroy_remote_with_active_rq, upstream_cx_destroy_with_active_rq, upstream_cx_http1_total,
            upstream_cx_http2_total, upstream_cx_http3_total, upstream_cx_idle_timeout, upstream_cx_max_duration_reached,
            upstream_cx_max_requests, upstream_cx_none_healthy, upstream_cx_overflow, upstream_cx_pool_overflow,
            upstream_cx_preconnect_skipped, upstream_cx_protocol_error, upstream_cx_rx_bytes_total, upstream_cx_total,
            upstream_cx_tx_bytes_total, upstream_flow_control_backed_up_total, upstream_flow_control_drained_total,
            upstream_flow_control_paused_reading_total, upstream_flow_control_resumed_reading_total,
            upstream_http3_broken, upstream_internal_redirect_failed_total, upstream_internal_redirect_succeeded_total,
            upstream_rq_0rtt, upstream_rq_active_overflow, upstream_rq_cancelled,
            upstream_rq_completed, upstream_rq_maintenance_mode, upstream_rq_max_duration_reached,
            upstream_rq_pending_failure_eject, upstream_rq_pending_overflow, upstream_rq_pending_total,
            upstream_rq_per_try_idle_timeout, upstream_rq_per_try_timeout, upstream_rq_retry,
            upstream_rq_retry_backoff_exponential, upstream_rq_retry_backoff_ratelimited,
            upstream_rq_retry_limit_exceeded, upstream_rq_retry_overflow, upstream_rq_retry_success,
            upstream_rq_rx_reset, upstream_rq_rx_reset_no_error, upstream_rq_timeout, upstream_rq_total,
            upstream_rq_tx_reset,
        }
        gauges {
            upstream_queue_overloaded,
            upstream_cx_active, upstream_cx_rx_bytes_buffered, upstream_cx_tx_bytes_buffered, upstream_rq_active,
            upstream_rq_pending_active,
        }
        histograms {
            upstream_cx_connect_ms: Milliseconds, upstream_cx_length_ms: Milliseconds, upstream_rq_per_cx: Unspecified,
        }
    }
}

stats_block! {
    /// Load balancing.
    pub struct BalancingStats {
        counters {
            lb_healthy_panic, lb_local_cluster_not_ok, lb_recalculate_zone_structures, lb_subsets_created,
            lb_subsets_fallback, lb_subsets_fallback_panic, lb_subsets_removed, lb_subsets_selected,
            lb_zone_cluster_too_small, lb_zone_no_capacity_left, lb_zone_routing_all_directly,
            lb_zone_routing_cross_zone, lb_zone_routing_sampled,
        }
        gauges { lb_subsets_active }
        histograms {}
    }
}

stats_block! {
    /// Of clusters that are divided into subsets.
    pub struct SubsetStats {
        counters {}
        gauges { lb_subsets_single_host_per_subset_duplicate }
        histograms {}
    }
}

/// Hosts, and `default.total_match_count`: those that got the cluster's own transport socket.
#[derive(Clone)]
pub struct EndpointStats(BlockHandle);

impl EndpointStats {
    fn new(scope: &Scope) -> Self {
        static LAYOUT: Layout = Layout {
            counters: &["membership_change", "default.total_match_count"],
            gauges: &[
                "max_host_weight",
                "membership_degraded",
                "membership_excluded",
                "membership_healthy",
                "membership_total",
            ],
            histograms: &[],
            zeros: &[],
        };
        Self(scope.block(&LAYOUT))
    }

    fn changed(&self, change: &MembershipChange) {
        self.0.counter(0).add(change.priorities() as u64);
        self.0.counter(1).add(change.added.len() as u64);
    }

    fn show(&self, membership: &Membership, max_host_weight: Option<u32>) {
        if let Some(weight) = max_host_weight {
            self.0.gauge(0).set(u64::from(weight));
        }
        self.0.gauge(1).set(membership.degraded);
        self.0.gauge(2).set(membership.excluded);
        self.0.gauge(3).set(membership.healthy);
        self.0.gauge(4).set(membership.total);
    }
}

stats_block! {
    /// Discovery: EDS and DNS.
    pub struct UpdateStats {
        counters {
            assignment_stale, assignment_timeout_received, assignment_use_cached, update_attempt, update_empty,
            update_failure, update_no_rebuild, update_success,
        }
        gauges { version, warming_state }
        histograms {}
        zeros { warming_state }
    }
}

/// What an EDS cluster counts of its discovery, in one block: [`UpdateStats`], and what a subscription has besides.
static EDS: Layout = Layout {
    counters: &[
        "assignment_stale",
        "assignment_timeout_received",
        "assignment_use_cached",
        "update_attempt",
        "update_empty",
        "update_failure",
        "update_no_rebuild",
        "update_success",
        "init_fetch_timeout",
        "update_rejected",
    ],
    gauges: &["version", "warming_state", "update_time"],
    histograms: &[("update_duration", Unit::Milliseconds)],
    zeros: &["warming_state"],
};

/// The subscription of an EDS cluster.
struct SubscriptionStats {
    block: BlockHandle,
    version_text: TextReadout,
}

impl SubscriptionStats {
    fn new(scope: &Scope) -> Self {
        Self { block: scope.block(&EDS), version_text: shown_empty(scope.text_readout("version_text")) }
    }

    fn init_fetch_timeout(&self) -> Counter<'_> {
        self.block.counter(8)
    }

    fn update_rejected(&self) -> Counter<'_> {
        self.block.counter(9)
    }

    fn update_time(&self) -> Gauge<'_> {
        self.block.gauge(2)
    }

    fn update_duration(&self) -> Histogram<'_> {
        self.block.histogram(0)
    }
}

stats_block! {
    /// `track_cluster_stats.request_response_sizes`.
    pub struct SizeStats {
        counters {}
        gauges {}
        histograms {
            upstream_rq_headers_size: Bytes, upstream_rq_headers_count: Unspecified, upstream_rq_body_size: Bytes,
            upstream_rs_headers_size: Bytes, upstream_rs_headers_count: Unspecified, upstream_rs_body_size: Bytes,
        }
    }
}

stats_block! {
    /// `track_cluster_stats.timeout_budgets`.
    pub struct TimeoutBudgetStats {
        counters {}
        gauges {}
        histograms {
            upstream_rq_timeout_budget_percent_used: Unspecified,
            upstream_rq_timeout_budget_per_try_percent_used: Unspecified,
        }
    }
}

/// `circuit_breakers.<priority>.*_open`. Names with dots stand in the cluster's own scope: a scope costs more than a name.
#[derive(Clone)]
pub struct BreakerStats(BlockHandle);

impl BreakerStats {
    pub(crate) fn new(scope: &Scope) -> Self {
        static LAYOUT: Layout = Layout {
            counters: &[],
            gauges: &[
                "circuit_breakers.default.cx_open",
                "circuit_breakers.default.rq_pending_open",
                "circuit_breakers.default.rq_open",
                "circuit_breakers.default.rq_retry_open",
                "circuit_breakers.default.cx_pool_open",
                "circuit_breakers.high.cx_open",
                "circuit_breakers.high.rq_pending_open",
                "circuit_breakers.high.rq_open",
                "circuit_breakers.high.rq_retry_open",
                "circuit_breakers.high.cx_pool_open",
            ],
            histograms: &[],
            zeros: &[],
        };
        Self(scope.block(&LAYOUT))
    }

    /// Whether the resource is used up.
    pub fn open(&self, priority: RoutingPriority, resource: Resource) -> Gauge<'_> {
        self.0.gauge(5 * priority as usize + resource as usize)
    }
}

/// `circuit_breakers.<priority>.remaining_*`, with `track_remaining`.
#[derive(Clone)]
pub struct RemainingStats(BlockHandle);

impl RemainingStats {
    pub(crate) fn new(scope: &Scope, priority: RoutingPriority) -> Self {
        static DEFAULT: Layout = Layout {
            counters: &[],
            gauges: &[
                "circuit_breakers.default.remaining_cx",
                "circuit_breakers.default.remaining_pending",
                "circuit_breakers.default.remaining_rq",
                "circuit_breakers.default.remaining_retries",
                "circuit_breakers.default.remaining_cx_pools",
            ],
            histograms: &[],
            zeros: &[],
        };
        static HIGH: Layout = Layout {
            counters: &[],
            gauges: &[
                "circuit_breakers.high.remaining_cx",
                "circuit_breakers.high.remaining_pending",
                "circuit_breakers.high.remaining_rq",
                "circuit_breakers.high.remaining_retries",
                "circuit_breakers.high.remaining_cx_pools",
            ],
            histograms: &[],
            zeros: &[],
        };
        Self(scope.block(match priority {
            RoutingPriority::Default => &DEFAULT,
            RoutingPriority::High => &HIGH,
        }))
    }

    /// How many are left.
    pub fn remaining(&self, resource: Resource) -> Gauge<'_> {
        self.0.gauge(resource as usize)
    }
}

stats_block! {
    /// `ring_hash_lb.*`.
    pub struct RingHashStats {
        counters {}
        gauges { size, min_hashes_per_host, max_hashes_per_host }
        histograms {}
    }
}

stats_block! {
    /// `maglev_lb.*`.
    pub struct MaglevStats {
        counters {}
        gauges { min_entries_per_host, max_entries_per_host }
        histograms {}
    }
}

impl BalancingStats {
    /// Counts what is special about a pick.
    #[inline]
    pub(crate) fn count(&self, picked: &Picked) {
        if picked.panic {
            self.lb_healthy_panic().inc();
        }
        match picked.subset {
            Outcome::Whole | Outcome::SelectorFallback => {}
            Outcome::Selected => self.lb_subsets_selected().inc(),
            Outcome::Fallback => self.lb_subsets_fallback().inc(),
            Outcome::FallbackPanic => self.lb_subsets_fallback_panic().inc(),
        }
    }
}

/// All groups of one cluster; those of options that are off are absent.
pub struct ClusterStats {
    pub scope: Scope,
    pub traffic: TrafficStats,
    pub balancing: BalancingStats,
    pub endpoints: EndpointStats,
    pub updates: UpdateStats,
    /// Of EDS clusters.
    subscription: Option<Box<SubscriptionStats>>,
    /// Few clusters have any of these.
    rare: Option<Box<RareStats>>,
    pub codec: CodecStats,
    pub codes: CodeStats,
    /// Those of all clusters.
    manager: ClusterManagerStats,
    pub retry_codes: RetryCodes,
}

/// The groups of options that few clusters have.
#[derive(Default)]
struct RareStats {
    /// By load balancing policy.
    ring_hash: Option<RingHashStats>,
    maglev: Option<MaglevStats>,
    subsets: Option<SubsetStats>,
    sizes: Option<SizeStats>,
    timeout_budgets: Option<TimeoutBudgetStats>,
}

impl RareStats {
    fn new(scope: &Scope, config: &ClusterConfig) -> Option<Box<Self>> {
        let policy = &config.balancing.policy;
        let (ring_hash, maglev) = (matches!(policy, Policy::RingHash(_)), matches!(policy, Policy::Maglev(_)));
        let rare = Self {
            ring_hash: ring_hash.then(|| RingHashStats::new(&scope.scope("ring_hash_lb."))),
            maglev: maglev.then(|| MaglevStats::new(&scope.scope("maglev_lb."))),
            subsets: config.balancing.subsets.is_some().then(|| SubsetStats::new(scope)),
            sizes: config.track_request_response_sizes.then(|| SizeStats::new(scope)),
            timeout_budgets: config.track_timeout_budgets.then(|| TimeoutBudgetStats::new(scope)),
        };
        let is_some =
            ring_hash || maglev || rare.subsets.is_some() || rare.sizes.is_some() || rare.timeout_budgets.is_some();
        is_some.then(|| Box::new(rare))
    }
}

impl ClusterStats {
    /// The stats under `cluster.<name>.`, below the root scope.
    pub fn new(root: &Scope, config: &ClusterConfig) -> Self {
        let scope = root.scope(&config.stats_prefix());
        let subscription = matches!(config.discovery, Discovery::Eds(_)).then(|| SubscriptionStats::new(&scope));
        let updates = match &subscription {
            Some(subscription) => UpdateStats(subscription.block.clone()),
            None => UpdateStats::new(&scope),
        };
        Self {
            traffic: TrafficStats::deferrable(&scope, &"ClusterTrafficStats"),
            balancing: BalancingStats::new(&scope),
            endpoints: EndpointStats::new(&scope),
            updates,
            subscription: subscription.map(Box::new),
            rare: RareStats::new(&scope, config),
            codec: CodecStats::new(&scope),
            codes: CodeStats::new(&scope, config.own_zone.clone()),
            manager: ClusterManagerStats::new(&root.scope("cluster_manager.")),
            retry_codes: RetryCodes::new(&scope),
            scope,
        }
    }

    /// With `track_cluster_stats.request_response_sizes`.
    pub fn sizes(&self) -> Option<&SizeStats> {
        self.rare.as_ref()?.sizes.as_ref()
    }

    /// With `track_cluster_stats.timeout_budgets`.
    pub fn timeout_budgets(&self) -> Option<&TimeoutBudgetStats> {
        self.rare.as_ref()?.timeout_budgets.as_ref()
    }

    #[cfg(test)]
    pub(crate) fn maglev_entries(&self) -> Option<u64> {
        Some(self.rare.as_ref()?.maglev.as_ref()?.max_entries_per_host().value())
    }

    /// Hosts came or went once the cluster served.
    pub(crate) fn count_change(&self, change: &MembershipChange) {
        self.manager.cluster_updated().add(change.priorities() as u64);
    }

    /// This came of the cluster's endpoints. Successes are counted where they act.
    pub(crate) fn count_update(&self, update: &Update, now: SystemTime) {
        match (update, &self.subscription) {
            (Update::Success(version), subscription) => {
                self.updates.version().set(version_hash(version));
                if let Some(subscription) = subscription {
                    subscription.version_text.set(version);
                    subscription.update_time().set(millis(now));
                }
            }
            (Update::Failure, _) => self.updates.update_failure().inc(),
            (Update::Rejected, Some(subscription)) => subscription.update_rejected().inc(),
            (Update::Rejected, None) => {}
        }
    }

    /// An update of the cluster's endpoints took so long to take in.
    pub(crate) fn update_took(&self, time: Duration) {
        if let Some(subscription) = &self.subscription {
            subscription.update_duration().record(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
    }

    /// The cluster's endpoints did not come in time.
    pub(crate) fn fetch_timed_out(&self) {
        if let Some(subscription) = &self.subscription {
            subscription.init_fetch_timeout().inc();
        }
    }

    /// Shows the hosts of a set in the gauges. `max_host_weight` is Envoy's: of EDS and STRICT_DNS clusters only (`weighed`),
    /// the largest weight that came new to the last priority, and at least 1.
    pub(crate) fn show_hosts(&self, hosts: &HostSet, change: &MembershipChange, weighed: bool) {
        self.endpoints.changed(change);
        let last = hosts.priorities.len() as u32 - 1;
        let new = change.added.iter().filter(|host| host.priority == last).map(|host| host.weight).max();
        self.endpoints.show(&hosts.membership(), weighed.then(|| new.unwrap_or(1)));
    }

    /// Shows the subsets of a set, and how they differ from those before.
    pub(crate) fn show_subsets(&self, subsets: Option<&Subsets>, before: Option<&Subsets>) {
        let Some(subsets) = subsets else { return };
        self.balancing.lb_subsets_active().set(subsets.len() as u64);
        self.balancing.lb_subsets_created().add(subsets.not_in(before) as u64);
        self.balancing.lb_subsets_removed().add(before.map_or(0, |before| before.not_in(Some(subsets))) as u64);
        if let Some(stats) = self.rare.as_ref().and_then(|rare| rare.subsets.as_ref()) {
            stats.lb_subsets_single_host_per_subset_duplicate().set(subsets.single_host_duplicates);
        }
    }

    /// Shows the sizes of tables in the gauges of their policy; of several priorities the last, as in Envoy.
    pub(crate) fn show_tables(&self, hosts: &HostSet, balancing: &Balancing) {
        for size in hosts.priorities.iter().filter_map(|priority| priority.table_size(balancing)) {
            let Some(rare) = &self.rare else { continue };
            match (size, &rare.ring_hash, &rare.maglev) {
                (TableSize::Ring { size, min_hashes_per_host, max_hashes_per_host }, Some(stats), _) => {
                    stats.size().set(size);
                    stats.min_hashes_per_host().set(min_hashes_per_host);
                    stats.max_hashes_per_host().set(max_hashes_per_host);
                }
                (TableSize::Maglev { min_entries_per_host, max_entries_per_host }, _, Some(stats)) => {
                    stats.min_entries_per_host().set(min_entries_per_host);
                    stats.max_entries_per_host().set(max_entries_per_host);
                }
                _ => {}
            }
        }
    }
}

/// A text that is there before anything is known.
fn shown_empty(text: TextReadout) -> TextReadout {
    if text.value().is_empty() {
        text.set("");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place in one is the same place in the other.
    #[test]
    fn what_an_eds_cluster_counts_begins_with_what_others_count() {
        let common = UpdateStats::LAYOUT;
        assert!(EDS.counters.starts_with(common.counters) && EDS.gauges.starts_with(common.gauges));
        assert_eq!(
            (EDS.zeros, &EDS.counters[8..], &EDS.gauges[2..]),
            (common.zeros, &["init_fetch_timeout", "update_rejected"][..], &["update_time"][..])
        );
    }
}
