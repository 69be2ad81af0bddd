//! Clusters: groups of hosts that serve the same, how one of them is picked, and how much of them may be used at once.
//! They must not know routes, filters nor configuration messages.

pub mod circuit_breaker;
pub mod codes;
pub mod cycle;
pub mod dns;
pub mod endpoint;
mod happy_eyeballs;
pub mod host;
pub mod host_set;
pub mod lb;
pub mod options;
pub(crate) mod pool;
pub mod priority_load;
pub mod proxied;
pub mod sockets;
pub mod stats;
pub mod status;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tidegate_filters::runtime::Runtime;
use tidegate_filters::stream_info::UpstreamInfo;
use tidegate_stats::Scope;

use circuit_breaker::{Breakers, InUse, Resource, RoutingPriority};
use endpoint::Assignment;
use host::Host;
use host_set::{HostSet, MembershipChange};
use lb::{Loads, PickContext, PickTrace, Picked, Scheduler};
use options::{ClusterConfig, Discovery};
use stats::ClusterStats;

/// A cluster: its configuration, its hosts as of now, and the counters that an update of the configuration keeps.
pub struct Cluster {
    config: ClusterConfig,
    stats: ClusterStats,
    /// Made with the first request.
    maintenance_key: OnceLock<Box<str>>,
    hosts: ArcSwap<HostSet>,
    /// One update at a time.
    standing: Mutex<Standing>,
    breakers: [Arc<Breakers>; 2],
    state: Arc<ClusterState>,
}

/// Where a cluster stands between the one before it and the one after.
#[derive(Default)]
struct Standing {
    /// The hosts of the cluster that it replaces, until it has its own.
    inherited: Option<Arc<HostSet>>,
    /// Whether its own place was taken.
    retired: bool,
    /// It had its first hosts.
    served: bool,
}

/// What belongs to a cluster's name and outlives its configuration.
pub struct ClusterState {
    id: u64,
    in_use: [Arc<InUse>; 2],
    picks: AtomicU64,
    dropped: AtomicU64,
    drop_overload: AtomicU64,
}

impl ClusterState {
    /// State of a name that is not known yet; `seed` is where round robin starts.
    pub fn new(seed: u64) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Relaxed);
        let (dropped, drop_overload) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { id, in_use: Default::default(), picks: AtomicU64::new(seed >> 1), dropped, drop_overload })
    }
}

impl Cluster {
    /// A cluster without hosts, unless they are static. `previous` is the cluster that it replaces, whose counters it keeps;
    /// `root` is the root of all stats, `seed` random.
    pub fn new(
        config: ClusterConfig,
        previous: Option<&Self>,
        root: &Scope,
        runtime: &dyn Runtime,
        seed: u64,
    ) -> Arc<Self> {
        let state = previous.map_or_else(|| ClusterState::new(seed), |previous| Arc::clone(&previous.state));
        let stats = ClusterStats::new(root, &config);
        let breakers = RoutingPriority::ALL.map(|priority| {
            let in_use = Arc::clone(&state.in_use[priority as usize]);
            Breakers::new(Arc::clone(&config.thresholds), &config.name, priority, in_use, &stats.scope, runtime)
        });
        let inherited = previous.map(|previous| previous.hosts.load_full());
        let cluster = Self {
            hosts: ArcSwap::from_pointee(HostSet::empty(&config.balancing)),
            standing: Mutex::new(Standing { inherited, retired: false, served: false }),
            breakers,
            state,
            stats,
            maintenance_key: OnceLock::new(),
            config,
        };
        if let Discovery::Static(assignment) = &cluster.config.discovery {
            cluster.update_hosts(assignment, runtime);
        }
        Arc::new(cluster)
    }

    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    pub fn stats(&self) -> &ClusterStats {
        &self.stats
    }

    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Names the cluster as logs and filters see it.
    pub(crate) fn name_in(&self, upstream: &mut UpstreamInfo) {
        upstream.cluster = Some(Arc::clone(&self.config.name));
        upstream.observability_name = Some(Arc::clone(self.config.observability_name()));
        upstream.cluster_metadata = Some(Arc::clone(&self.config.metadata));
    }

    /// The runtime key that turns requests away (`upstream.maintenance_mode.<name>`).
    pub(crate) fn maintenance_key(&self) -> &str {
        self.maintenance_key.get_or_init(|| format!("upstream.maintenance_mode.{}", self.name()).into())
    }

    /// The hosts as of now.
    pub fn hosts(&self) -> Guard<Arc<HostSet>> {
        self.hosts.load()
    }

    pub fn breakers(&self, priority: RoutingPriority) -> &Arc<Breakers> {
        &self.breakers[priority as usize]
    }

    /// Takes limits from runtime again, after it has changed. What balancing takes from it is read with the next hosts, as in
    /// Envoy.
    pub fn runtime_changed(&self, runtime: &dyn Runtime) {
        for breakers in &self.breakers {
            breakers.read_runtime(&self.config.name, runtime);
        }
    }

    /// Replaces the hosts. One that was retired keeps those that it has.
    pub fn update_hosts(&self, assignment: &Assignment, runtime: &dyn Runtime) -> MembershipChange {
        let mut standing = self.standing.lock();
        if standing.retired {
            return MembershipChange::default();
        }
        let inherited = standing.inherited.take();
        let previous = self.hosts.load_full();
        let balancing = &self.config.balancing;
        let tuning = balancing.tuning(runtime);
        let (set, change) = HostSet::build(assignment, balancing, tuning, Some(&*previous), inherited.as_deref());
        if set.same_as(&previous) {
            if matches!(self.config.discovery, Discovery::Eds(_)) {
                self.stats.updates.update_no_rebuild().inc();
            }
            return change;
        }
        let (added, removed) = (change.added.len(), change.removed.len());
        tracing::debug!("membership update of cluster '{}': added {added} removed {removed}", self.name());
        self.publish(set, &previous, &change);
        if std::mem::replace(&mut standing.served, true) {
            self.stats.count_change(&change);
        }
        change
    }

    /// Whether its place was taken.
    pub fn is_retired(&self) -> bool {
        self.standing.lock().retired
    }

    /// Says that another cluster has taken this one's place, or that it is gone: connections to its hosts drain.
    pub fn retire(&self) {
        self.standing.lock().retired = true;
        for host in self.hosts.load().hosts() {
            host.state.set_removed();
        }
    }

    fn publish(&self, set: HostSet, previous: &HostSet, change: &MembershipChange) {
        for (priority, before) in set.priorities.iter().zip(&previous.priorities) {
            if before.tables.built() {
                priority.build_table(&self.config.balancing);
            }
        }
        self.stats.show_subsets(set.subsets.as_deref(), previous.subsets.as_deref());
        let weighed = matches!(self.config.discovery, Discovery::Eds(_) | Discovery::StrictDns(_));
        self.stats.show_hosts(&set, change, weighed);
        self.stats.show_tables(&set, &self.config.balancing);
        self.hosts.store(Arc::new(set));
        for host in &change.removed {
            host.state.set_removed();
        }
        if self.config.connection.close_on_host_set_change && !change.is_empty() {
            for host in self.hosts.load().hosts() {
                host.state.drain();
            }
        }
    }

    /// Draws whether a request is dropped before a host is picked (`drop_overloads`): it is answered 503 with flag `DO`, or
    /// `UDO` where all are dropped.
    pub fn drops(&self, runtime: &dyn Runtime, random: u64) -> bool {
        random % 1_000_000 < self.dropped_share(runtime)
    }

    /// Whether every request is dropped.
    pub fn drops_all(&self, runtime: &dyn Runtime) -> bool {
        self.dropped_share(runtime) >= 1_000_000
    }

    /// In millionths.
    fn dropped_share(&self, runtime: &dyn Runtime) -> u64 {
        let hosts = self.hosts.load();
        let Some(drop) = &hosts.drop_overload else { return 0 };
        let limit = runtime.integer("load_balancing_policy.drop_overload_limit").filter(|&percent| percent <= 100);
        let configured = drop.fraction.numerator * 1_000_000 / drop.fraction.denominator.max(1);
        limit.map_or(configured, |percent| configured.min(percent * 10_000))
    }

    /// A request was turned away before it had a host; `shed`: by `drop_overloads`.
    pub(crate) fn count_drop(&self, shed: bool) {
        self.state.dropped.fetch_add(1, Relaxed);
        self.state.drop_overload.fetch_add(u64::from(shed), Relaxed);
    }

    /// How many requests were turned away, and how many of those by `drop_overloads`: what load reports say.
    pub(crate) fn dropped(&self) -> (u64, u64) {
        (self.state.dropped.load(Relaxed), self.state.drop_overload.load(Relaxed))
    }

    /// The number of the next pick. Counting is by cluster, over all workers.
    pub fn next_sequence(&self) -> u64 {
        self.state.picks.fetch_add(1, Relaxed)
    }

    /// Picks a host from the set as of now, by the counters as of now and this worker's scheduler.
    pub fn pick(&self, context: &PickContext<'_>, trace: Option<&mut PickTrace>) -> Option<Picked> {
        let hosts = self.hosts.load();
        let picked =
            self.with_scheduler(|scheduler| lb::pick(&hosts, &self.config.balancing, self, context, scheduler, trace));
        match &picked {
            Some(picked) => self.stats.balancing.count(picked),
            // Panic counts even where it has nobody to fall back on.
            None if hosts.priorities.iter().any(|priority| priority.panic) => {
                self.stats.balancing.lb_healthy_panic().inc();
            }
            None => {}
        }
        picked
    }

    fn with_scheduler<T>(&self, run: impl FnOnce(&mut Scheduler) -> T) -> T {
        thread_local! {
            static SCHEDULERS: RefCell<Schedulers> = RefCell::default();
        }
        if !self.config.balancing.needs_scheduler() {
            return run(&mut Scheduler::default());
        }
        SCHEDULERS.with_borrow_mut(|schedulers| run(schedulers.of(&self.state)))
    }
}

/// The schedulers of one worker, by cluster.
#[derive(Default)]
struct Schedulers {
    by_cluster: HashMap<u64, (Weak<ClusterState>, Scheduler), ahash::RandomState>,
    /// At this size those of clusters that are gone are dropped.
    sweep_at: usize,
}

impl Schedulers {
    fn of(&mut self, cluster: &Arc<ClusterState>) -> &mut Scheduler {
        if self.by_cluster.len() >= self.sweep_at {
            self.by_cluster.retain(|_, (cluster, _)| cluster.strong_count() > 0);
            self.sweep_at = 2 * self.by_cluster.len() + 16;
        }
        let entry = self.by_cluster.entry(cluster.id);
        &mut entry.or_insert_with(|| (Arc::downgrade(cluster), Scheduler::default())).1
    }
}

impl Loads for Cluster {
    fn requests(&self, host: &Host) -> u32 {
        host.state.requests_active()
    }

    fn cluster_requests(&self) -> u64 {
        self.breakers.iter().map(|breakers| u64::from(breakers.used(Resource::Requests))).sum()
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("name", &self.config.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tidegate_filters::runtime::NoRuntime;
    use tidegate_stats::Store;

    use super::lb::testing::{assignment, endpoints, locality};
    use super::*;
    use crate::config::cluster::testing::cluster as compiled;

    fn cluster(text: &str, previous: Option<&Cluster>, root: &Scope) -> Arc<Cluster> {
        Cluster::new(compiled(text).config, previous, root, &NoRuntime, 7)
    }

    fn hosts(cluster: &Cluster) -> Vec<Arc<Host>> {
        cluster.hosts().hosts().cloned().collect()
    }

    const TWO: &str = "{name: a, load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [\
        {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}, \
        {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]}";

    #[test]
    fn an_update_keeps_hosts_that_are_the_same_and_states_of_those_that_changed() {
        let cluster = cluster("{name: a}", None, &Store::new().root());
        let first = assignment(vec![locality("", 0, 0, endpoints(1, &[1, 1, 1]))]);
        let change = cluster.update_hosts(&first, &NoRuntime);
        assert_eq!((change.added.len(), change.removed.len()), (3, 0));
        let before = hosts(&cluster);
        let mut second = endpoints(1, &[1, 5, 1]);
        second.remove(2);
        let change = cluster.update_hosts(&assignment(vec![locality("", 0, 0, second)]), &NoRuntime);
        assert_eq!((change.added.len(), change.removed.len()), (0, 1));
        let after = hosts(&cluster);
        assert!(Arc::ptr_eq(&before[0], &after[0]));
        assert!(!Arc::ptr_eq(&before[1], &after[1]) && Arc::ptr_eq(&before[1].state, &after[1].state));
        assert!(before[2].state.is_removed() && !after[1].state.is_removed());
        // The same again is no change: workers keep their queues.
        let mut again = endpoints(1, &[1, 5, 1]);
        again.remove(2);
        let generation = cluster.hosts().generation;
        cluster.update_hosts(&assignment(vec![locality("", 0, 0, again)]), &NoRuntime);
        assert_eq!(cluster.hosts().generation, generation);
    }

    #[test]
    fn an_address_twice_is_two_hosts_but_in_eds() {
        let root = Store::new().root();
        let two = hosts(&cluster(&format!("{TWO}}}"), None, &root));
        assert_eq!(two.len(), 2);
        assert_ne!(two[0].state.id, two[1].state.id);
        let eds = cluster("{name: b}", None, &root);
        let mut twice = assignment(vec![locality("", 0, 0, [endpoints(1, &[1]), endpoints(1, &[2])].concat())]);
        twice.unique_addresses = true;
        eds.update_hosts(&twice, &NoRuntime);
        assert_eq!(hosts(&eds).len(), 1);
    }

    #[test]
    fn a_replaced_cluster_drains_while_its_counts_go_on() {
        let root = Store::new().root();
        let old = cluster(&format!("{TWO}}}"), None, &root);
        let request = hosts(&old)[1].begin_request();
        let permit = old.breakers(RoutingPriority::Default).acquire(Resource::Requests);
        let new = cluster(&format!("{TWO}, connect_timeout: 1s}}"), Some(&old), &root);
        assert_ne!(hosts(&old)[0].state.id, hosts(&new)[0].state.id);
        assert_eq!(hosts(&new)[1].state.requests_active(), 1);
        assert_eq!(new.breakers(RoutingPriority::Default).used(Resource::Requests), 1);
        old.retire();
        assert!(hosts(&old)[0].state.is_removed() && !hosts(&new)[0].state.is_removed());
        assert!(old.update_hosts(&assignment(Vec::new()), &NoRuntime).is_empty());
        drop((request, permit));
        assert_eq!(hosts(&new)[1].state.requests_active(), 0);
        assert_eq!(new.breakers(RoutingPriority::Default).used(Resource::Requests), 0);
    }

    #[test]
    fn stats_have_envoys_names() {
        let store = Store::new();
        let text =
            format!("{TWO}, alt_stat_name: 'x:y', circuit_breakers: {{thresholds: [{{track_remaining: true}}]}}}}");
        let _cluster = cluster(&text, None, &store.root());
        let shown = |name: &str| {
            let all = [store.counters(), store.gauges()].concat();
            all.iter().find(|reading| reading.name == name).map(|reading| reading.value)
        };
        assert_eq!(shown("cluster.x_y.membership_total"), Some(2));
        assert_eq!(shown("cluster.x_y.membership_change"), Some(1));
        assert_eq!(shown("cluster.x_y.default.total_match_count"), Some(2));
        assert_eq!(shown("cluster.x_y.circuit_breakers.default.remaining_retries"), Some(3));
        assert_eq!(shown("cluster.x_y.circuit_breakers.high.rq_open"), Some(0));
        assert_eq!(shown("cluster.x_y.upstream_rq_total"), Some(0));
        assert_eq!(shown("cluster.x_y.max_host_weight"), Some(0));
    }

    #[test]
    fn a_share_of_requests_is_dropped() {
        let cluster = cluster("{name: a}", None, &Store::new().root());
        assert!(!cluster.drops(&NoRuntime, 3));
        let policy = "{name: b, load_assignment: {cluster_name: b, \
                      policy: {drop_overloads: [{category: c, drop_percentage: {numerator: 10}}]}}}";
        let cluster = self::cluster(policy, None, &Store::new().root());
        let dropped = (0..1_000_000).step_by(1000).filter(|&random| cluster.drops(&NoRuntime, random)).count();
        assert_eq!(dropped, 100);
    }

    #[test]
    fn a_pick_tells_its_stats() {
        let text = "{name: a, lb_policy: MAGLEV, load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: \
                    [{health_status: UNHEALTHY, endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]}}";
        let cluster = cluster(text, None, &Store::new().root());
        assert!(cluster.pick(&PickContext::new(0, 0), None).is_some());
        assert_eq!(cluster.stats().balancing.lb_healthy_panic().value(), 1);
        assert_eq!(cluster.stats().maglev_entries(), Some(65_537));
    }
}
