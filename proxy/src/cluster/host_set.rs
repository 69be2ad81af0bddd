//! All hosts of a cluster as balancing sees them: by priority, health and locality, computed once per update and immutable.
//! It must not know requests, and where endpoints come from.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use smallvec::SmallVec;
use tidegate_filters::listener::HOST_TLVS;
use tidegate_filters::runtime::NoRuntime;
use tidegate_filters::stream_info::{Address, Locality};

use super::cycle::Cycle;
use super::endpoint::{Assignment, DropOverload, Endpoint, LocalityEndpoints};
use super::host::{Health, Host, HostState};
use super::lb::{Balancing, Subsets, Tables, Tuning};
use super::priority_load::{Availability, PriorityLoads, Tier, distribute, distribute_without};

/// The hosts of a cluster.
pub struct HostSet {
    /// Unique in the process, so that a worker's scheduler knows when it is out of date.
    pub generation: u64,
    /// Never empty.
    pub priorities: Box<[PriorityHosts]>,
    pub loads: PriorityLoads,
    pub tuning: Tuning,
    /// Percent.
    pub overprovisioning_factor: u32,
    pub weighted_priority_health: bool,
    pub drop_overload: Option<Arc<DropOverload>>,
    /// Present when the cluster is divided into subsets.
    pub subsets: Option<Box<Subsets>>,
}

/// Hosts by priority and locality, before anything is computed of them.
#[derive(Clone)]
pub(crate) struct Sorted {
    pub(crate) priorities: Vec<Vec<SortedLocality>>,
    pub(crate) overprovisioning_factor: u32,
    pub(crate) weighted_priority_health: bool,
}

#[derive(Clone)]
pub(crate) struct SortedLocality {
    pub(crate) locality: Arc<Locality>,
    pub(crate) weight: u32,
    pub(crate) hosts: Vec<Arc<Host>>,
}

/// The hosts of one priority.
pub struct PriorityHosts {
    pub hosts: Arc<HostGroup>,
    pub healthy: Arc<HostGroup>,
    pub degraded: Arc<HostGroup>,
    /// How many hosts do not count for the priority's health.
    pub excluded: usize,
    /// All hosts get traffic, since too few are healthy.
    pub panic: bool,
    /// Present when localities are weighted (`locality_weighted_lb_config`).
    pub localities: Option<Box<WeightedLocalities>>,
    /// What consistent hashing looks hosts up in.
    pub tables: Tables,
}

/// The localities of a priority with their weights.
pub struct WeightedLocalities {
    pub list: Box<[LocalityHosts]>,
    /// By weight times availability; `None` when no locality has any.
    pub healthy: Option<Cycle>,
    pub degraded: Option<Cycle>,
}

/// The hosts of one locality.
pub struct LocalityHosts {
    pub locality: Arc<Locality>,
    pub weight: u32,
    pub hosts: Arc<HostGroup>,
    pub healthy: Arc<HostGroup>,
    pub degraded: Arc<HostGroup>,
}

/// Hosts that are chosen among.
#[derive(Default)]
pub struct HostGroup {
    pub hosts: Box<[Arc<Host>]>,
    /// Whether all weights are the same.
    pub equal: bool,
    /// The order of round robin; `None` when it is one after the other.
    pub order: Option<Cycle>,
}

impl HostGroup {
    fn new(hosts: Vec<Arc<Host>>) -> Self {
        let equal = hosts.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let order = if equal { None } else { Cycle::new(hosts.iter().map(|host| u64::from(host.weight))) };
        Self { hosts: hosts.into(), equal, order }
    }

    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    fn excluded(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.hosts.iter().filter(|host| host.is_excluded())
    }

    pub fn len(&self) -> usize {
        self.hosts.len()
    }
}

/// What an update changed.
#[derive(Debug, Default)]
pub struct MembershipChange {
    pub added: Vec<Arc<Host>>,
    pub removed: Vec<Arc<Host>>,
}

impl MembershipChange {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }

    /// How many priorities it touches: Envoy counts a change for each.
    pub(crate) fn priorities(&self) -> usize {
        let hosts = self.added.iter().chain(&self.removed);
        hosts.map(|host| host.priority).collect::<HashSet<_>>().len()
    }
}

/// Numbers for the `membership_*` gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Membership {
    pub total: u64,
    pub healthy: u64,
    pub degraded: u64,
    pub excluded: u64,
}

impl HostSet {
    /// No hosts yet.
    pub fn empty(balancing: &Balancing) -> Self {
        let tuning = balancing.tuning(&NoRuntime);
        Self::build(&Assignment::default(), balancing, tuning, None, None).0
    }

    /// Makes hosts of endpoints. Hosts of `previous` whose facts are the same are kept; of those whose facts changed, their
    /// state. New ones go on with the counts that their address has in `inherited`, the set of a replaced cluster.
    pub fn build(
        assignment: &Assignment,
        balancing: &Balancing,
        tuning: Tuning,
        previous: Option<&Self>,
        inherited: Option<&Self>,
    ) -> (Self, MembershipChange) {
        let mut known = Known {
            previous: by_address(previous),
            inherited: by_address(inherited),
            unique: assignment.unique_addresses.then(HashSet::new),
            added: Vec::new(),
            replaced: Vec::new(),
        };
        let levels = assignment.localities.iter().map(|locality| locality.priority as usize + 1).max().unwrap_or(1);
        let mut sorted = Sorted {
            priorities: vec![Vec::new(); levels],
            overprovisioning_factor: assignment.overprovisioning_factor,
            weighted_priority_health: assignment.weighted_priority_health,
        };
        for from in &assignment.localities {
            let hosts = from.endpoints.iter().filter_map(|endpoint| known.host(from, endpoint)).collect();
            let locality = Arc::clone(&from.locality);
            sorted.priorities[from.priority as usize].push(SortedLocality { locality, weight: from.weight, hosts });
        }
        let subsets = balancing.subsets.as_ref();
        let weighted = subsets.map_or(balancing.locality_weighted, |subsets| subsets.locality_weight_aware);
        let mut set = Self::of(&sorted, weighted, tuning);
        set.drop_overload = assignment.drop_overload.clone();
        set.subsets = subsets.map(|config| Box::new(Subsets::build(config, &sorted, tuning)));
        (set, known.change())
    }

    /// The set of hosts that are sorted already.
    pub(crate) fn of(sorted: &Sorted, locality_weighted: bool, tuning: Tuning) -> Self {
        let factor = sorted.overprovisioning_factor;
        let priorities = sorted.priorities.iter();
        let mut priorities: Box<[PriorityHosts]> =
            priorities.map(|localities| PriorityHosts::new(localities, factor, locality_weighted)).collect();
        let weighted = sorted.weighted_priority_health;
        let availability: Vec<_> = priorities.iter().map(|priority| priority.availability(weighted)).collect();
        let (loads, panic) = distribute(&availability, factor, tuning.panic_threshold);
        for (priority, panic) in priorities.iter_mut().zip(panic) {
            priority.panic = panic;
        }
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let generation = GENERATION.fetch_add(1, Relaxed);
        Self {
            generation,
            priorities,
            loads,
            tuning,
            overprovisioning_factor: factor,
            weighted_priority_health: weighted,
            drop_overload: None,
            subsets: None,
        }
    }

    /// The loads for a retry that leaves out priorities which were tried (`previous_priorities`): they are taken into
    /// account after every `update_frequency` tries, and all anew once none is left. `tried` are the priorities of the hosts
    /// tried so far, in order; `None` leaves the loads as they are.
    pub fn loads_after(&self, tried: impl IntoIterator<Item = u32>, update_frequency: u32) -> Option<PriorityLoads> {
        let frequency = update_frequency.max(1) as usize;
        let availability = || -> SmallVec<[Availability; 2]> {
            self.priorities.iter().map(|priority| priority.availability(self.weighted_priority_health)).collect()
        };
        let distribute =
            |excluded: &[bool]| distribute_without(&availability(), self.overprovisioning_factor, excluded);
        let mut excluded = vec![false; self.priorities.len()];
        let mut since = Vec::new();
        let mut loads = None;
        for priority in tried {
            since.push(priority);
            if since.len() < frequency {
                loads = None;
            } else if since.len() % frequency == 0 {
                for (index, excluded) in excluded.iter_mut().enumerate() {
                    *excluded |= since.contains(&(index as u32));
                }
                loads = distribute(&excluded);
                if loads.is_none() {
                    excluded.fill(false);
                    since.clear();
                    loads = distribute(&excluded);
                }
            }
        }
        loads
    }

    /// Whether both hold the very same hosts in the same places, balanced the same way.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let same_priority = |(a, b): (&PriorityHosts, &PriorityHosts)| {
            let weights = |priority: &PriorityHosts| -> Vec<(Arc<Locality>, u32, usize)> {
                let list = priority.localities.iter().flat_map(|localities| &localities.list);
                list.map(|from| (Arc::clone(&from.locality), from.weight, from.hosts.len())).collect()
            };
            a.hosts.len() == b.hosts.len()
                && a.hosts.hosts.iter().zip(&b.hosts.hosts).all(|(a, b)| Arc::ptr_eq(a, b))
                && weights(a) == weights(b)
        };
        self.tuning == other.tuning
            && self.overprovisioning_factor == other.overprovisioning_factor
            && self.weighted_priority_health == other.weighted_priority_health
            && self.drop_overload == other.drop_overload
            && self.priorities.len() == other.priorities.len()
            && self.priorities.iter().zip(&other.priorities).all(same_priority)
    }

    /// Every host, by priority.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(|priority| priority.hosts.hosts.iter())
    }

    pub fn membership(&self) -> Membership {
        let mut membership = Membership::default();
        for priority in &self.priorities {
            membership.total += priority.hosts.len() as u64;
            membership.healthy += priority.healthy.len() as u64;
            membership.degraded += priority.degraded.len() as u64;
            membership.excluded += priority.excluded as u64;
        }
        membership
    }
}

impl PriorityHosts {
    fn new(localities: &[SortedLocality], factor: u32, weighted: bool) -> Self {
        let all: Vec<_> = localities.iter().flat_map(|locality| locality.hosts.iter().cloned()).collect();
        let tiers = Tiers::of(all);
        let excluded = tiers.hosts.excluded().count();
        if !weighted {
            return Self {
                hosts: tiers.hosts,
                healthy: tiers.healthy,
                degraded: tiers.degraded,
                excluded,
                panic: false,
                localities: None,
                tables: Tables::default(),
            };
        }
        let list: Box<[LocalityHosts]> = localities
            .iter()
            .map(|from| {
                let Tiers { hosts, healthy, degraded } = Tiers::of(from.hosts.clone());
                LocalityHosts { locality: Arc::clone(&from.locality), weight: from.weight, hosts, healthy, degraded }
            })
            .collect();
        let localities = WeightedLocalities {
            healthy: locality_order(&list, factor, Tier::Healthy),
            degraded: locality_order(&list, factor, Tier::Degraded),
            list,
        };
        Self {
            hosts: tiers.hosts,
            healthy: localities.reorder(tiers.healthy, Tier::Healthy),
            degraded: localities.reorder(tiers.degraded, Tier::Degraded),
            excluded,
            panic: false,
            localities: Some(Box::new(localities)),
            tables: Tables::default(),
        }
    }

    /// The hosts of a tier.
    pub fn tier(&self, tier: Tier) -> &Arc<HostGroup> {
        match tier {
            Tier::Healthy => &self.healthy,
            Tier::Degraded => &self.degraded,
        }
    }

    fn availability(&self, weighted: bool) -> Availability {
        let measure = |group: &HostGroup| -> u64 {
            if weighted { group.hosts.iter().map(|host| u64::from(host.weight)).sum() } else { group.len() as u64 }
        };
        let excluded: u64 = self.hosts.excluded().map(|host| if weighted { u64::from(host.weight) } else { 1 }).sum();
        Availability {
            hosts: (self.hosts.len() - self.excluded) as u64,
            healthy_hosts: self.healthy.len() as u64,
            degraded_hosts: self.degraded.len() as u64,
            weight: measure(&self.hosts) - excluded,
            healthy_weight: measure(&self.healthy),
            degraded_weight: measure(&self.degraded),
            all_hosts: self.hosts.len() as u64,
        }
    }
}

impl LocalityHosts {
    /// The hosts of a tier.
    pub fn tier(&self, tier: Tier) -> &Arc<HostGroup> {
        match tier {
            Tier::Healthy => &self.healthy,
            Tier::Degraded => &self.degraded,
        }
    }
}

impl WeightedLocalities {
    /// The order in which localities of a tier are visited.
    pub fn order(&self, tier: Tier) -> Option<&Cycle> {
        match tier {
            Tier::Healthy => self.healthy.as_ref(),
            Tier::Degraded => self.degraded.as_ref(),
        }
    }

    /// Gives a tier's hosts the round robin order that follows both locality and host weights.
    fn reorder(&self, group: Arc<HostGroup>, tier: Tier) -> Arc<HostGroup> {
        let Some(order) = self.order(tier) else {
            return group;
        };
        let mut weights = Vec::with_capacity(group.len());
        for (index, locality) in self.list.iter().enumerate() {
            let hosts = &locality.tier(tier).hosts;
            let sum: f64 = hosts.iter().map(|host| f64::from(host.weight)).sum();
            weights.extend(hosts.iter().map(|host| order.share(index) * f64::from(host.weight) / sum));
        }
        let order = Cycle::of_fractions(&weights);
        Arc::new(HostGroup { hosts: group.hosts.clone(), equal: group.equal, order })
    }
}

/// Envoy's effective locality weights: weight times availability, overprovisioned.
fn locality_order(localities: &[LocalityHosts], factor: u32, tier: Tier) -> Option<Cycle> {
    let weights: Vec<f64> = localities
        .iter()
        .map(|locality| {
            let all = locality.hosts.len() - locality.hosts.excluded().count();
            if all == 0 {
                return 0.0;
            }
            let available = locality.tier(tier).len() as f64 / all as f64;
            f64::from(locality.weight) * (f64::from(factor) / 100.0 * available).min(1.0)
        })
        .collect();
    Cycle::of_fractions(&weights)
}

/// One list of hosts split by health; lists that are the same are shared.
struct Tiers {
    hosts: Arc<HostGroup>,
    healthy: Arc<HostGroup>,
    degraded: Arc<HostGroup>,
}

impl Tiers {
    fn of(hosts: Vec<Arc<Host>>) -> Self {
        let select = |health: Health| -> Vec<_> { hosts.iter().filter(|h| h.health() == health).cloned().collect() };
        let (healthy, degraded) = (select(Health::Healthy), select(Health::Degraded));
        let all = hosts.len();
        let hosts = Arc::new(HostGroup::new(hosts));
        /// Most sets have nobody who is degraded.
        static NOBODY: LazyLock<Arc<HostGroup>> = LazyLock::new(|| Arc::new(HostGroup::new(Vec::new())));
        let share = |selected: Vec<Arc<Host>>| match selected.len() {
            len if len == all => Arc::clone(&hosts),
            0 => Arc::clone(&NOBODY),
            _ => Arc::new(HostGroup::new(selected)),
        };
        Self { healthy: share(healthy), degraded: share(degraded), hosts }
    }
}

/// The hosts of former sets, by address, and what became of them.
struct Known<'a> {
    /// Those not met again yet; several of one address in their order.
    previous: ByAddress<'a>,
    inherited: ByAddress<'a>,
    /// The addresses met, where each may be there once only.
    unique: Option<HashSet<Address>>,
    added: Vec<Arc<Host>>,
    /// Those in whose place another one came.
    replaced: Vec<Arc<Host>>,
}

type ByAddress<'a> = HashMap<&'a Address, VecDeque<&'a Arc<Host>>>;

fn by_address(set: Option<&HostSet>) -> ByAddress<'_> {
    let mut by_address = ByAddress::new();
    for host in set.into_iter().flat_map(HostSet::hosts) {
        by_address.entry(&host.address).or_default().push_back(host);
    }
    by_address
}

impl Known<'_> {
    /// The host for an endpoint; `None` for a second one of the same address where that may not be.
    fn host(&mut self, locality: &LocalityEndpoints, endpoint: &Endpoint) -> Option<Arc<Host>> {
        if let Some(unique) = &mut self.unique
            && !unique.insert(endpoint.address.clone())
        {
            return None;
        }
        let make = |state: Arc<HostState>| Host {
            address: endpoint.address.clone(),
            more_addresses: endpoint.more_addresses.clone().into(),
            hostname: Arc::clone(&endpoint.hostname),
            locality: Arc::clone(&locality.locality),
            locality_metadata: Arc::clone(&locality.metadata),
            priority: locality.priority,
            weight: endpoint.weight,
            health_status: endpoint.health_status,
            canary: endpoint.canary,
            metadata: Arc::clone(&endpoint.metadata),
            state,
        };
        let Some(host) = self.previous.get_mut(&endpoint.address).and_then(VecDeque::pop_front) else {
            let predecessor = self.inherited.get_mut(&endpoint.address).and_then(VecDeque::pop_front);
            let host = Arc::new(make(HostState::new(predecessor.map(|host| &*host.state))));
            self.added.push(Arc::clone(&host));
            return Some(host);
        };
        // Connections that were made under another name, or told something else, are not for what it is now.
        if host.hostname != endpoint.hostname || host.metadata.typed(HOST_TLVS) != endpoint.metadata.typed(HOST_TLVS) {
            let new = Arc::new(make(HostState::new(Some(&host.state))));
            self.added.push(Arc::clone(&new));
            self.replaced.push(Arc::clone(host));
            return Some(new);
        }
        let new = make(Arc::clone(&host.state));
        Some(if host.same_facts(&new) { Arc::clone(host) } else { Arc::new(new) })
    }

    fn change(self) -> MembershipChange {
        let gone = self.previous.into_values().flatten();
        let removed = gone.map(Arc::clone).chain(self.replaced).collect();
        MembershipChange { added: self.added, removed }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};
    use tidegate_filters::metadata::Metadata;

    use super::*;
    use crate::cluster::host::HealthStatus;
    use crate::cluster::lb::testing::{assignment, endpoints, locality, set};

    /// What Envoy 1.40 does with hosts of these health states: healthy, unhealthy, draining.
    /// Connections are for a host by its name; whatever else changes about it is the same host.
    #[test]
    fn another_name_is_another_host() {
        let balancing = Balancing::default();
        let build = |hostname: &str, key: &str, previous: Option<&HostSet>| {
            let mut hosts = endpoints(1, &[1]);
            hosts[0].hostname = hostname.into();
            let mut metadata = Metadata::default();
            metadata.set("envoy.lb", Map::from_iter([(key.to_owned(), Value::from(1))]));
            hosts[0].metadata = Arc::new(metadata);
            let tuning = balancing.tuning(&NoRuntime);
            HostSet::build(&assignment(vec![locality("", 0, 0, hosts)]), &balancing, tuning, previous, None)
        };
        let first = build("a", "k", None).0;
        let id = |set: &HostSet| set.hosts().next().unwrap().state.id;
        let (changed, change) = build("a", "l", Some(&first));
        assert!(change.is_empty() && id(&changed) == id(&first));
        let (renamed, change) = build("b", "l", Some(&changed));
        assert_eq!((change.added.len(), change.removed.len()), (1, 1));
        assert!(id(&renamed) != id(&first) && Arc::ptr_eq(&change.removed[0], changed.hosts().next().unwrap()));
    }

    #[test]
    fn draining_hosts_count_for_nothing_but_in_panic() {
        use HealthStatus::{Draining, Healthy, Unhealthy};
        let panics = |states: &[HealthStatus]| {
            let mut hosts = endpoints(1, &vec![1; states.len()]);
            for (endpoint, state) in hosts.iter_mut().zip(states) {
                endpoint.health_status = *state;
            }
            let set = set(&assignment(vec![locality("", 0, 0, hosts)]), &Balancing::default());
            (set.priorities[0].panic, set.membership().excluded)
        };
        assert_eq!(panics(&[Healthy, Draining, Draining]), (false, 2));
        assert_eq!(panics(&[Healthy, Unhealthy, Draining]), (false, 1));
        assert_eq!(panics(&[Healthy, Unhealthy, Unhealthy]), (true, 0));
        assert_eq!(panics(&[Unhealthy, Draining]), (true, 1));
        assert_eq!(panics(&[Draining, Draining]), (true, 2));
    }

    #[test]
    fn a_retry_goes_to_priorities_that_were_not_tried() {
        let all = (0..3).map(|priority| locality("", priority, 0, endpoints(priority as u8, &[1]))).collect();
        let set = set(&assignment(all), &Balancing::default());
        let healthy = |tried: &[u32], frequency| {
            set.loads_after(tried.iter().copied(), frequency).map(|loads| loads.healthy.to_vec())
        };
        assert_eq!(healthy(&[], 1), None);
        assert_eq!(healthy(&[0], 1), Some(vec![0, 100, 0]));
        assert_eq!(healthy(&[0, 1], 1), Some(vec![0, 0, 100]));
        // All were tried: begin again.
        assert_eq!(healthy(&[0, 1, 2], 1), Some(vec![100, 0, 0]));
        assert_eq!(healthy(&[0, 1, 2, 0], 1), Some(vec![0, 100, 0]));
        assert_eq!(healthy(&[0], 2), None);
        assert_eq!(healthy(&[0, 0], 2), Some(vec![0, 100, 0]));
        assert_eq!(healthy(&[0, 0, 1], 2), Some(vec![0, 100, 0]));
    }
}
