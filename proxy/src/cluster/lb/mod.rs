//! Which host gets a request: `pick` chooses priority, tier and locality, then asks the policy; each policy is one file.
//! Pure: no clock, no I/O, no randomness of its own. It must not know pools, requests nor configuration messages.

mod edf;
mod hash;
mod least_request;
mod maglev;
mod random;
mod ring_hash;
mod round_robin;
mod subset;
mod tables;
#[cfg(test)]
pub(crate) mod testing;
mod trace;

use std::sync::Arc;

use tidegate_filters::runtime::Runtime;

use super::host::Host;
use super::host_set::{HostGroup, HostSet, PriorityHosts};
use super::priority_load::{PriorityLoads, Tier};
pub use edf::Scheduler;
pub use hash::{HashFunction, HashKey, HashOptions};
pub use least_request::LeastRequest;
pub use maglev::Maglev;
pub use ring_hash::RingHash;
pub use subset::{Fallback, MetadataMatch, Outcome, Selector, SelectorFallback, SubsetConfig, Subsets};
pub use tables::{TableSize, Tables};
pub use trace::{PickTrace, Step};

/// How a cluster balances, compiled.
#[derive(Debug, Clone)]
pub struct Balancing {
    pub policy: Policy,
    /// `locality_weighted_lb_config`.
    pub locality_weighted: bool,
    /// `healthy_panic_threshold`, in percent; runtime's `upstream.healthy_panic_threshold` overrides it.
    pub panic_threshold: u32,
    pub fail_traffic_on_panic: bool,
    /// The cluster is divided by its hosts' metadata.
    pub subsets: Option<Arc<SubsetConfig>>,
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            policy: Policy::RoundRobin,
            locality_weighted: false,
            panic_threshold: 50,
            fail_traffic_on_panic: false,
            subsets: None,
        }
    }
}

/// What runtime may change about balancing; read whenever a host set is built, as in Envoy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// Percent, at most 100.
    pub panic_threshold: u32,
    /// Not negative.
    pub active_request_bias: f64,
}

impl Balancing {
    /// The values that act now.
    pub fn tuning(&self, runtime: &dyn Runtime) -> Tuning {
        let threshold = runtime.integer("upstream.healthy_panic_threshold");
        let bias = match &self.policy {
            Policy::LeastRequest(least) => least.bias.get(runtime),
            _ => 1.0,
        };
        Tuning {
            panic_threshold: threshold.map_or(self.panic_threshold, |percent| percent.min(100) as u32),
            active_request_bias: if bias >= 0.0 { bias } else { 1.0 },
        }
    }

    /// Whether a worker keeps queues between picks.
    pub(crate) fn needs_scheduler(&self) -> bool {
        matches!(self.policy, Policy::LeastRequest(_))
    }

    /// Whether hosts are looked up in tables.
    pub(crate) fn has_tables(&self) -> bool {
        matches!(self.policy, Policy::RingHash(_) | Policy::Maglev(_))
    }
}

/// A load balancing policy and its options.
#[derive(Debug, Clone)]
pub enum Policy {
    RoundRobin,
    LeastRequest(LeastRequest),
    Random,
    RingHash(RingHash),
    Maglev(Maglev),
}

/// What a policy may ask about hosts beyond the host set. What is read through it can be recorded and replayed.
pub trait Loads {
    /// Requests under way on the host.
    fn requests(&self, host: &Host) -> u32;
    /// Requests under way on the whole cluster.
    fn cluster_requests(&self) -> u64;
}

/// One choice to make.
#[derive(Clone, Copy)]
pub struct PickContext<'a> {
    /// The hash of the route's hash policy.
    pub hash: Option<u64>,
    /// Hosts that are not wanted (retry host predicates).
    pub excluded: Option<&'a (dyn Fn(&Host) -> bool + 'a)>,
    /// How often another host is looked for when the chosen one is not wanted (`host_selection_retry_max_attempts`).
    pub retries: u32,
    /// What the host's metadata must hold, where the cluster is divided into subsets.
    pub metadata_match: Option<&'a MetadataMatch>,
    /// Replaces the host set's priority loads (retry priority).
    pub priority_loads: Option<&'a PriorityLoads>,
    /// Counts the cluster's picks; round robin goes by it.
    pub sequence: u64,
    /// Random; everything drawn in one pick derives from it.
    pub seed: u64,
}

impl PickContext<'_> {
    /// A context with nothing special about it.
    pub fn new(sequence: u64, seed: u64) -> Self {
        Self { hash: None, excluded: None, retries: 0, metadata_match: None, priority_loads: None, sequence, seed }
    }
}

/// The choice.
#[derive(Debug, Clone)]
pub struct Picked {
    pub host: Arc<Host>,
    /// Chosen while its priority was in panic (`lb_healthy_panic`).
    pub panic: bool,
    /// Which subset it comes from.
    pub subset: Outcome,
}

/// Draws of one pick, all from its seed (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// Where a policy chooses.
pub(crate) struct Candidates<'a> {
    pub(crate) group: &'a HostGroup,
    /// Names the group within its host set, for schedulers.
    pub(crate) group_id: u32,
    pub(crate) generation: u64,
    pub(crate) active_request_bias: f64,
    pub(crate) sequence: u64,
}

/// Chooses a host, or none when there is none to be had.
pub fn pick(
    hosts: &HostSet,
    balancing: &Balancing,
    loads: &dyn Loads,
    context: &PickContext<'_>,
    scheduler: &mut Scheduler,
    mut trace: Option<&mut PickTrace>,
) -> Option<Picked> {
    let (Some(config), Some(subsets)) = (&balancing.subsets, &hosts.subsets) else {
        return pick_among(hosts, balancing, loads, context, scheduler, trace);
    };
    subsets.pick(config, hosts, context.metadata_match, |subset| {
        pick_among(subset, balancing, loads, context, scheduler, trace.as_deref_mut())
    })
}

/// Chooses among the hosts of one set.
fn pick_among(
    hosts: &HostSet,
    balancing: &Balancing,
    loads: &dyn Loads,
    context: &PickContext<'_>,
    scheduler: &mut Scheduler,
    mut trace: Option<&mut PickTrace>,
) -> Option<Picked> {
    let mut draws = Draws(context.seed);
    let mut last = None;
    for attempt in 0..=context.retries {
        let picked = pick_once(hosts, balancing, loads, context, attempt, &mut draws, scheduler, trace.as_deref_mut())?;
        if !context.excluded.is_some_and(|excluded| excluded(&picked.host)) {
            return Some(picked);
        }
        if let Some(trace) = trace.as_deref_mut() {
            trace.push(Step::Excluded(Arc::clone(&picked.host)));
        }
        last = Some(picked);
    }
    last
}

#[expect(clippy::too_many_arguments, reason = "one attempt of pick, with all that pick has")]
fn pick_once(
    hosts: &HostSet,
    balancing: &Balancing,
    loads: &dyn Loads,
    context: &PickContext<'_>,
    attempt: u32,
    draws: &mut Draws,
    scheduler: &mut Scheduler,
    mut trace: Option<&mut PickTrace>,
) -> Option<Picked> {
    let hashed = balancing.has_tables();
    let point = context.hash.filter(|_| hashed).unwrap_or_else(|| draws.next());
    let (index, tier) = context.priority_loads.unwrap_or(&hosts.loads).choose(point);
    let priority = hosts.priorities.get(index)?;
    if let Some(trace) = trace.as_deref_mut() {
        trace.push(Step::Priority { index, tier, panic: priority.panic });
    }
    if priority.panic && balancing.fail_traffic_on_panic && !hashed {
        return None;
    }
    let sequence = context.sequence.wrapping_add(u64::from(attempt));
    let host = match &balancing.policy {
        Policy::RingHash(ring) => ring.pick(priority, point, attempt, loads),
        Policy::Maglev(maglev) => maglev.pick(priority, point, attempt, loads),
        policy => {
            let (group, group_id) = group_of(priority, index, tier, policy, sequence);
            let candidates = Candidates {
                group,
                group_id,
                generation: hosts.generation,
                active_request_bias: hosts.tuning.active_request_bias,
                sequence,
            };
            match policy {
                Policy::LeastRequest(least) => least.pick(&candidates, loads, draws, scheduler),
                Policy::Random => random::pick(&candidates, draws),
                _ => round_robin::pick(&candidates),
            }
        }
    }?;
    if let Some(trace) = trace {
        trace.push(Step::Chosen(Arc::clone(host)));
    }
    Some(Picked { host: Arc::clone(host), panic: priority.panic, subset: Outcome::Whole })
}

/// The hosts to choose among: all in panic, else the tier, or one locality of it. Round robin's order of the tier already
/// follows the localities' weights.
fn group_of<'a>(
    priority: &'a PriorityHosts,
    index: usize,
    tier: Tier,
    policy: &Policy,
    sequence: u64,
) -> (&'a HostGroup, u32) {
    let id = |kind: usize| (index as u32) << 16 | kind as u32;
    if priority.panic {
        return (&priority.hosts, id(0));
    }
    let tier_id = 1 + usize::from(tier == Tier::Degraded);
    if !matches!(policy, Policy::RoundRobin)
        && let Some(localities) = &priority.localities
        && let Some(order) = localities.order(tier)
    {
        let chosen = order.index(sequence);
        return (localities.list[chosen].tier(tier), id(tier_id + 2 * (chosen + 1)));
    }
    (priority.tier(tier), id(tier_id))
}

#[cfg(test)]
mod tests {
    use super::testing::{FixedLoads, assignment, counts, endpoints, fits, flat, locality, number, policy, set};
    use tidegate_filters::stream_info::Address;

    use super::*;
    use crate::cluster::host::HealthStatus;

    const PICKS: u64 = 20_000;

    fn idle() -> FixedLoads {
        FixedLoads::default()
    }

    #[test]
    fn without_hosts_nothing_is_picked() {
        let policies = [
            Policy::RoundRobin,
            Policy::LeastRequest(LeastRequest::default()),
            Policy::LeastRequest(LeastRequest { choices: None, ..Default::default() }),
            Policy::Random,
            Policy::RingHash(RingHash::default()),
            Policy::Maglev(Maglev::default()),
        ];
        for policy in policies {
            let balancing = testing::policy(policy);
            assert_eq!(counts(&flat(&[], &balancing), &balancing, &idle(), 3), [3.0]);
            assert_eq!(counts(&flat(&[7], &balancing), &balancing, &idle(), 3), [0.0, 3.0]);
        }
    }

    #[test]
    fn round_robin_visits_hosts_by_weight_exactly() {
        let balancing = policy(Policy::RoundRobin);
        assert_eq!(counts(&flat(&[1, 1, 1], &balancing), &balancing, &idle(), 9), [0.0, 3.0, 3.0, 3.0]);
        assert_eq!(counts(&flat(&[10, 30, 60], &balancing), &balancing, &idle(), 20), [0.0, 2.0, 6.0, 12.0]);
    }

    #[test]
    fn random_has_no_regard_for_weights() {
        let balancing = policy(Policy::Random);
        let counts = counts(&flat(&[1, 5, 1, 9], &balancing), &balancing, &idle(), PICKS);
        assert!(fits(&counts, &[0.0, 1.0, 1.0, 1.0, 1.0]), "{counts:?}");
    }

    #[test]
    fn least_request_compares_random_hosts() {
        let balancing = policy(Policy::LeastRequest(LeastRequest::default()));
        let hosts = flat(&[1, 1, 1, 1], &balancing);
        let even = counts(&hosts, &balancing, &idle(), PICKS);
        assert!(fits(&even, &[0.0, 1.0, 1.0, 1.0, 1.0]), "{even:?}");
        // A host loses unless it is compared with itself or one at least as busy: 7, 5, 3 and 1 of 16.
        let busy = counts(&hosts, &balancing, &FixedLoads(vec![0, 1, 2, 3]), PICKS);
        assert!(fits(&busy, &[0.0, 7.0, 5.0, 3.0, 1.0]), "{busy:?}");
        let all = policy(Policy::LeastRequest(LeastRequest { choices: None, ..Default::default() }));
        let least = counts(&hosts, &all, &FixedLoads(vec![3, 1, 2, 1]), PICKS);
        assert!(fits(&least, &[0.0, 0.0, 1.0, 0.0, 1.0]), "{least:?}");
    }

    #[test]
    fn least_request_with_weights_divides_them_by_the_load() {
        let balancing = policy(Policy::LeastRequest(LeastRequest::default()));
        let hosts = flat(&[1, 2, 4], &balancing);
        let counts = counts(&hosts, &balancing, &FixedLoads(vec![0, 0, 3]), 4000);
        assert!(fits(&counts, &[0.0, 1.0, 2.0, 1.0]), "{counts:?}");
    }

    #[test]
    fn localities_share_by_weight_and_hosts_within_them_by_theirs() {
        for kind in [Policy::RoundRobin, Policy::LeastRequest(LeastRequest::default()), Policy::Random] {
            let balancing = Balancing { policy: kind, locality_weighted: true, ..Balancing::default() };
            let hosts = set(
                &assignment(vec![
                    locality("a", 0, 1, endpoints(1, &[1, 1])),
                    locality("b", 0, 3, endpoints(3, &[1, 1, 1])),
                    locality("none", 0, 0, endpoints(6, &[1])),
                ]),
                &balancing,
            );
            let counts = counts(&hosts, &balancing, &idle(), PICKS);
            let shares = [0.0, 1.0 / 8.0, 1.0 / 8.0, 0.25, 0.25, 0.25, 0.0];
            assert!(fits(&counts, &shares), "{:?}: {counts:?}", balancing.policy);
        }
    }

    #[test]
    fn a_locality_in_poor_health_loses_weight() {
        let balancing = Balancing { locality_weighted: true, ..Balancing::default() };
        let mut sick = endpoints(1, &[1, 1]);
        sick[0].health_status = HealthStatus::Unhealthy;
        let hosts =
            set(&assignment(vec![locality("a", 0, 1, sick), locality("b", 0, 1, endpoints(3, &[1, 1]))]), &balancing);
        // Half of a's hosts times 1.4 leaves 0.7 of its weight.
        let counts = counts(&hosts, &balancing, &idle(), PICKS);
        assert!(fits(&counts, &[0.0, 0.0, 0.7, 0.5, 0.5]), "{counts:?}");
    }

    #[test]
    fn load_spills_to_the_next_priority_and_degraded_hosts_come_last() {
        let balancing = policy(Policy::RoundRobin);
        let mut first = endpoints(1, &[1, 1, 1, 1]);
        for endpoint in &mut first[..2] {
            endpoint.health_status = HealthStatus::Unhealthy;
        }
        let spilt = assignment(vec![locality("", 0, 0, first.clone()), locality("", 1, 0, endpoints(5, &[1, 1]))]);
        let spread = counts(&set(&spilt, &balancing), &balancing, &idle(), PICKS);
        assert!(fits(&spread, &[0.0, 0.0, 0.0, 35.0, 35.0, 15.0, 15.0]), "{spread:?}");
        for endpoint in &mut first[..2] {
            endpoint.health_status = HealthStatus::Degraded;
        }
        let degraded =
            counts(&set(&assignment(vec![locality("", 0, 0, first)]), &balancing), &balancing, &idle(), PICKS);
        assert!(fits(&degraded, &[0.0, 15.0, 15.0, 35.0, 35.0]), "{degraded:?}");
    }

    #[test]
    fn in_panic_all_hosts_are_picked_unless_traffic_is_to_fail() {
        let mut hosts = endpoints(1, &[1, 1, 1, 1]);
        for endpoint in &mut hosts[..3] {
            endpoint.health_status = HealthStatus::Unhealthy;
        }
        let assignment = assignment(vec![locality("", 0, 0, hosts)]);
        let balancing = policy(Policy::RoundRobin);
        let panic = set(&assignment, &balancing);
        let picked = pick(&panic, &balancing, &idle(), &PickContext::new(0, 0), &mut Scheduler::default(), None);
        assert!(picked.is_some_and(|picked| picked.panic));
        assert_eq!(counts(&panic, &balancing, &idle(), 8), [0.0, 2.0, 2.0, 2.0, 2.0]);
        let failing = Balancing { fail_traffic_on_panic: true, ..policy(Policy::RoundRobin) };
        assert_eq!(counts(&set(&assignment, &failing), &failing, &idle(), 8), [8.0]);
        let never = Balancing { panic_threshold: 0, ..policy(Policy::RoundRobin) };
        assert_eq!(counts(&set(&assignment, &never), &never, &idle(), 8), [0.0, 0.0, 0.0, 0.0, 8.0]);
    }

    #[test]
    fn an_unwanted_host_is_passed_over_while_attempts_last() {
        let balancing = policy(Policy::RoundRobin);
        let hosts = flat(&[1, 1], &balancing);
        let unwanted = |host: &Host| number(host) == 1;
        let mut trace = PickTrace::default();
        let context = PickContext { excluded: Some(&unwanted), retries: 1, ..PickContext::new(0, 0) };
        let picked = pick(&hosts, &balancing, &idle(), &context, &mut Scheduler::default(), Some(&mut trace));
        assert_eq!(number(&picked.unwrap().host), 2);
        assert!(trace.steps.iter().any(|step| matches!(step, Step::Excluded(host) if number(host) == 1)));
        let everything = |_: &Host| true;
        let context = PickContext { excluded: Some(&everything), retries: 3, ..PickContext::new(0, 0) };
        assert!(pick(&hosts, &balancing, &idle(), &context, &mut Scheduler::default(), None).is_some());
    }

    /// Choices of Envoy 1.40 for the header values `key0`, `key1`, … among hosts of weights 1 to 6.
    #[test]
    fn consistent_hashing_chooses_as_envoy_does() {
        let mut hosts = endpoints(1, &[1, 2, 3, 4, 5, 6]);
        for (port, endpoint) in (39_910..).zip(&mut hosts) {
            endpoint.address = Address::Ip(([127, 0, 0, 1], port).into());
        }
        let murmur = RingHash {
            minimum_ring_size: 50,
            maximum_ring_size: 70,
            function: HashFunction::Murmur2,
            ..Default::default()
        };
        let maglev = Maglev { table_size: 101, ..Default::default() };
        let expected: [(Policy, [u16; 8]); 3] = [
            (Policy::RingHash(RingHash::default()), [6, 6, 2, 5, 6, 4, 6, 5]),
            (Policy::RingHash(murmur), [3, 2, 5, 5, 4, 5, 3, 4]),
            (Policy::Maglev(maglev), [4, 4, 5, 6, 6, 4, 2, 4]),
        ];
        let assignment = assignment(vec![locality("", 0, 0, hosts)]);
        for (kind, expected) in expected {
            let balancing = policy(kind);
            let hosts = set(&assignment, &balancing);
            let chosen: Vec<u16> = (0..expected.len())
                .map(|key| {
                    let hash = xxhash_rust::xxh64::xxh64(format!("key{key}").as_bytes(), 0);
                    let context = PickContext { hash: Some(hash), ..PickContext::new(0, 0) };
                    let picked = pick(&hosts, &balancing, &idle(), &context, &mut Scheduler::default(), None);
                    picked.unwrap().host.address.ip().unwrap().port() - 39_909
                })
                .collect();
            assert_eq!(chosen, expected, "{:?}", balancing.policy);
        }
    }

    #[test]
    fn a_pick_is_a_function_of_what_it_is_given() {
        let balancing = policy(Policy::LeastRequest(LeastRequest::default()));
        let hosts = flat(&[1; 9], &balancing);
        let pick = |seed| {
            let context = PickContext::new(5, seed);
            number(&pick(&hosts, &balancing, &idle(), &context, &mut Scheduler::default(), None).unwrap().host)
        };
        for seed in 0..50 {
            assert_eq!(pick(seed), pick(seed));
        }
    }
}
