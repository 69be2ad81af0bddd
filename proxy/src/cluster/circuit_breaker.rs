//! Circuit breakers: how much of each resource a cluster may use at once, for each routing priority, over all workers.
//! It must not know what a caller does when it is told no, nor count overflows: whoever is refused knows which stat that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use tidegate_filters::runtime::Runtime;
use tidegate_stats::Scope;

use super::host::Host;
use super::stats::{BreakerStats, RemainingStats};

/// `envoy.config.core.v3.RoutingPriority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RoutingPriority {
    #[default]
    Default,
    High,
}

impl RoutingPriority {
    pub const ALL: [Self; 2] = [Self::Default, Self::High];

    /// As stats and runtime keys spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::High => "high",
        }
    }
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// `max_connections`
    Connections,
    /// `max_pending_requests`
    PendingRequests,
    /// `max_requests`
    Requests,
    /// `max_retries`, or the retry budget
    Retries,
    /// `max_connection_pools`
    Pools,
}

/// The limits of one routing priority (`CircuitBreakers.Thresholds`).
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    /// Pools of HTTP: one for each host, protocol and worker. `u64::MAX` when not set.
    pub max_connection_pools: u64,
    pub retry_budget: Option<RetryBudget>,
    pub track_remaining: bool,
    /// `per_host_thresholds`: connections to each host.
    pub max_connections_per_host: Option<u32>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            max_connection_pools: u64::MAX,
            retry_budget: None,
            track_remaining: false,
            max_connections_per_host: None,
        }
    }
}

/// Retries as a share of the requests under way and waiting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    pub percent: f64,
    pub min_concurrency: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20.0, min_concurrency: 3 }
    }
}

/// What is in use; kept by cluster name when the cluster is updated.
#[derive(Debug, Default)]
pub struct InUse([AtomicU32; 5]);

/// The breakers of one cluster and routing priority.
pub struct Breakers {
    thresholds: Arc<[Thresholds; 2]>,
    priority: RoutingPriority,
    /// The limits after runtime had its say, by resource.
    limits: [AtomicU64; 5],
    /// The budget's percentage as bits, and its minimum; a percentage that is not a number means no budget.
    budget_percent: AtomicU64,
    budget_minimum: AtomicU32,
    in_use: Arc<InUse>,
    /// A bit a resource: whether its breaker is shown. Envoy shows it from the first use on.
    shown: AtomicU8,
    stats: BreakerStats,
    remaining: Option<Box<RemainingStats>>,
}

impl Breakers {
    /// The breakers of `cluster` (its name, for runtime keys); `scope` is the cluster's.
    pub(crate) fn new(
        thresholds: Arc<[Thresholds; 2]>,
        cluster: &str,
        priority: RoutingPriority,
        in_use: Arc<InUse>,
        scope: &Scope,
        runtime: &dyn Runtime,
    ) -> Arc<Self> {
        let breakers = Self {
            priority,
            limits: Default::default(),
            budget_percent: AtomicU64::new(f64::NAN.to_bits()),
            budget_minimum: AtomicU32::new(0),
            in_use,
            shown: AtomicU8::new(0),
            stats: BreakerStats::new(scope),
            remaining: thresholds[priority as usize]
                .track_remaining
                .then(|| Box::new(RemainingStats::new(scope, priority))),
            thresholds,
        };
        breakers.read_runtime(cluster, runtime);
        Arc::new(breakers)
    }

    /// Takes the limits from runtime where it has them; `cluster` is its name. Called again when runtime changes.
    pub(crate) fn read_runtime(&self, cluster: &str, runtime: &dyn Runtime) {
        let key = |name: &str| format!("circuit_breakers.{cluster}.{}.{name}", self.priority.name());
        let limit = |name: &str, default: u64| runtime.integer(&key(name)).unwrap_or(default);
        let configured = self.thresholds();
        let limits = [
            limit("max_connections", configured.max_connections.into()),
            limit("max_pending_requests", configured.max_pending_requests.into()),
            limit("max_requests", configured.max_requests.into()),
            limit("max_retries", configured.max_retries.into()),
            limit("max_connection_pools", configured.max_connection_pools),
        ];
        let percent = runtime.double(&key("retry_budget.budget_percent"));
        let minimum = runtime.integer(&key("retry_budget.min_retry_concurrency"));
        let budget = configured.retry_budget.or((percent.is_some() || minimum.is_some()).then(RetryBudget::default));
        let percent = budget.map_or(f64::NAN, |budget| percent.unwrap_or(budget.percent));
        let minimum = budget.map_or(0, |budget| minimum.map_or(budget.min_concurrency, |value| value as u32));
        self.budget_percent.store(percent.to_bits(), Relaxed);
        self.budget_minimum.store(minimum, Relaxed);
        for (resource, limit) in RESOURCES.into_iter().zip(limits) {
            self.limits[resource as usize].store(limit, Relaxed);
            self.show_remaining(resource, self.used(resource));
        }
    }

    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds[self.priority as usize]
    }

    /// How many are in use.
    pub fn used(&self, resource: Resource) -> u32 {
        self.in_use.0[resource as usize].load(Relaxed)
    }

    /// How many may be in use at once.
    pub fn limit(&self, resource: Resource) -> u64 {
        let percent = f64::from_bits(self.budget_percent.load(Relaxed));
        if resource != Resource::Retries || percent.is_nan() {
            return self.limits[resource as usize].load(Relaxed);
        }
        let active = self.used(Resource::Requests) + self.used(Resource::PendingRequests);
        ((percent / 100.0 * f64::from(active)) as u64).max(self.budget_minimum.load(Relaxed).into())
    }

    /// Whether one more would be within the limit.
    pub fn allows(&self, resource: Resource) -> bool {
        u64::from(self.used(resource)) < self.limit(resource)
    }

    /// Whether one more connection to this host would be within its own limit.
    pub fn allows_connection_to(&self, host: &Host) -> bool {
        self.thresholds().max_connections_per_host.is_none_or(|limit| host.state.connections_active() < limit)
    }

    /// Takes one, if that is within the limit.
    pub fn acquire(self: &Arc<Self>, resource: Resource) -> Option<Permit> {
        let limit = self.limit(resource);
        let count = &self.in_use.0[resource as usize];
        let before = count.fetch_add(1, Relaxed);
        if u64::from(before) >= limit {
            count.fetch_sub(1, Relaxed);
            return None;
        }
        self.show(resource, before + 1);
        Some(Permit { breakers: Arc::clone(self), resource })
    }

    /// Takes one whatever the limit: a host without any connection may always have one.
    pub fn take(self: &Arc<Self>, resource: Resource) -> Permit {
        let before = self.in_use.0[resource as usize].fetch_add(1, Relaxed);
        self.show(resource, before + 1);
        Permit { breakers: Arc::clone(self), resource }
    }

    fn give_back(&self, resource: Resource) {
        let before = self.in_use.0[resource as usize].fetch_sub(1, Relaxed);
        self.show(resource, before.saturating_sub(1));
    }

    /// Shows the state in the gauges; whether a breaker is open is written at its first use and where it may have changed.
    fn show(&self, resource: Resource, used: u32) {
        let limit = self.limits[resource as usize].load(Relaxed);
        let bit = 1 << resource as u8;
        let unseen = self.shown.load(Relaxed) & bit == 0;
        if unseen {
            self.shown.fetch_or(bit, Relaxed);
        }
        if unseen || u64::from(used) + 1 >= limit {
            self.stats.open(self.priority, resource).set(u64::from(u64::from(used) >= limit));
        }
        self.show_remaining(resource, used);
    }

    /// With a retry budget there is no telling how many retries are left; Envoy shows 0.
    fn show_remaining(&self, resource: Resource, used: u32) {
        let Some(remaining) = &self.remaining else { return };
        let budget = !f64::from_bits(self.budget_percent.load(Relaxed)).is_nan();
        let limit =
            if budget && resource == Resource::Retries { 0 } else { self.limits[resource as usize].load(Relaxed) };
        remaining.remaining(resource).set(limit.saturating_sub(used.into()));
    }
}

const RESOURCES: [Resource; 5] =
    [Resource::Connections, Resource::PendingRequests, Resource::Requests, Resource::Retries, Resource::Pools];

/// One of a resource, in use until it is dropped.
pub struct Permit {
    breakers: Arc<Breakers>,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breakers.give_back(self.resource);
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Permit").field(&self.resource).finish()
    }
}

#[cfg(test)]
mod tests {
    use tidegate_filters::runtime::NoRuntime;
    use tidegate_stats::Store;

    use super::*;

    fn breakers(thresholds: Thresholds, runtime: &dyn Runtime) -> Arc<Breakers> {
        let scope = Store::new().root().scope("cluster.a.");
        Breakers::new(
            Arc::new([thresholds, Thresholds::default()]),
            "a",
            RoutingPriority::Default,
            Arc::default(),
            &scope,
            runtime,
        )
    }

    fn open(breakers: &Breakers) -> u64 {
        breakers.stats.open(RoutingPriority::Default, Resource::Requests).value()
    }

    #[test]
    fn a_breaker_opens_at_its_limit_and_closes_again() {
        let breakers =
            breakers(Thresholds { max_requests: 2, track_remaining: true, ..Default::default() }, &NoRuntime);
        let first = breakers.acquire(Resource::Requests).unwrap();
        assert_eq!((open(&breakers), breakers.allows(Resource::Requests)), (0, true));
        let second = breakers.acquire(Resource::Requests).unwrap();
        assert_eq!(open(&breakers), 1);
        assert!(breakers.acquire(Resource::Requests).is_none());
        assert_eq!(breakers.used(Resource::Requests), 2);
        let forced = breakers.take(Resource::Requests);
        drop(first);
        assert_eq!(open(&breakers), 1);
        drop(forced);
        assert_eq!(open(&breakers), 0);
        drop(second);
        assert_eq!(breakers.remaining.as_ref().unwrap().remaining(Resource::Requests).value(), 2);
    }

    #[test]
    fn a_limit_of_none_refuses_without_showing_as_open() {
        let breakers = breakers(Thresholds { max_retries: 0, ..Default::default() }, &NoRuntime);
        assert!(breakers.acquire(Resource::Retries).is_none());
        let open = breakers.stats.open(RoutingPriority::Default, Resource::Retries).value();
        assert_eq!((open, breakers.used(Resource::Retries)), (0, 0));
    }

    #[test]
    fn a_retry_budget_follows_the_requests_under_way() {
        let budget = RetryBudget { percent: 50.0, min_concurrency: 1 };
        let breakers = breakers(Thresholds { retry_budget: Some(budget), ..Default::default() }, &NoRuntime);
        assert_eq!(breakers.limit(Resource::Retries), 1);
        let _requests: Vec<_> = (0..8).map(|_| breakers.acquire(Resource::Requests)).collect();
        let _pending = breakers.acquire(Resource::PendingRequests);
        assert_eq!(breakers.limit(Resource::Retries), 4);
    }

    #[test]
    fn runtime_overrides_a_limit() {
        struct One;
        impl Runtime for One {
            fn integer(&self, key: &str) -> Option<u64> {
                (key == "circuit_breakers.a.default.max_connections").then_some(1)
            }
            fn double(&self, _: &str) -> Option<f64> {
                None
            }
            fn boolean(&self, _: &str) -> Option<bool> {
                None
            }
            fn string(&self, _: &str) -> Option<String> {
                None
            }
            fn fraction(&self, _: &str) -> Option<(u64, u64)> {
                None
            }
        }
        let breakers = breakers(Thresholds::default(), &One);
        assert_eq!((breakers.limit(Resource::Connections), breakers.limit(Resource::Requests)), (1, 1024));
    }
}
