//! How load is shared among priorities by how many of their hosts are healthy, and when a priority panics, as Envoy
//! computes it. Pure arithmetic: it must not know hosts.

use smallvec::SmallVec;

/// What counts of one priority: hosts, or their weights (`weighted_priority_health`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Availability {
    /// Numbers of hosts, without those excluded.
    pub hosts: u64,
    pub healthy_hosts: u64,
    pub degraded_hosts: u64,
    /// The same by weight, or again by number.
    pub weight: u64,
    pub healthy_weight: u64,
    pub degraded_weight: u64,
    /// All hosts, excluded ones too.
    pub all_hosts: u64,
}

/// Percentages by priority; `healthy` and `degraded` together make 100.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PriorityLoads {
    pub healthy: SmallVec<[u32; 2]>,
    pub degraded: SmallVec<[u32; 2]>,
}

/// Which hosts of a priority a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    Healthy,
    Degraded,
}

impl PriorityLoads {
    /// The priority and tier that a hash or random value falls on (Envoy's `choosePriority`).
    pub fn choose(&self, hash: u64) -> (usize, Tier) {
        let point = (hash % 100 + 1) as u32;
        let mut sum = 0;
        let tiers = [(Tier::Healthy, &self.healthy), (Tier::Degraded, &self.degraded)];
        for (tier, loads) in tiers {
            for (priority, load) in loads.iter().enumerate() {
                sum += load;
                if point <= sum {
                    return (priority, tier);
                }
            }
        }
        (0, Tier::Healthy)
    }
}

/// The shares of all priorities, and which of them are in panic.
/// `overprovisioning` and `panic_threshold` are percentages.
pub fn distribute(
    priorities: &[Availability],
    overprovisioning: u32,
    panic_threshold: u32,
) -> (PriorityLoads, SmallVec<[bool; 2]>) {
    let (healthy, degraded) = percentages(priorities, overprovisioning);
    let available = healthy.iter().chain(&degraded).sum::<u32>().min(100);
    let panic: SmallVec<[bool; 2]> = priorities
        .iter()
        .map(|priority| available != 100 && panics(priority, panic_threshold) && panic_threshold > 0)
        .collect();
    if panic_threshold == 0 && available == 0 {
        return (all_to_first(priorities.len()), panic);
    }
    if panic.iter().all(|&panic| panic) {
        return (by_size(priorities), panic);
    }
    (by_availability(&healthy, &degraded, available), panic)
}

/// The shares when the excluded priorities count as having no host; `None` when nothing is left.
pub fn distribute_without(
    priorities: &[Availability],
    overprovisioning: u32,
    excluded: &[bool],
) -> Option<PriorityLoads> {
    let (mut healthy, mut degraded) = percentages(priorities, overprovisioning);
    for (index, _) in excluded.iter().enumerate().filter(|(_, excluded)| **excluded) {
        healthy[index] = 0;
        degraded[index] = 0;
    }
    let available = healthy.iter().chain(&degraded).sum::<u32>().min(100);
    (available > 0).then(|| by_availability(&healthy, &degraded, available))
}

/// How healthy and how degraded each priority is, overprovisioned, at most 100.
fn percentages(priorities: &[Availability], overprovisioning: u32) -> (SmallVec<[u32; 2]>, SmallVec<[u32; 2]>) {
    let percent = |weight: u64, total: u64| {
        (u64::from(overprovisioning) * weight).checked_div(total).map_or(0, |percent| percent.min(100) as u32)
    };
    let healthy = priorities.iter().map(|priority| percent(priority.healthy_weight, priority.weight));
    let degraded = priorities.iter().map(|priority| percent(priority.degraded_weight, priority.weight));
    (healthy.collect(), degraded.collect())
}

fn panics(priority: &Availability, threshold: u32) -> bool {
    let available = priority.healthy_hosts + priority.degraded_hosts;
    let percent = if priority.hosts == 0 { 0.0 } else { 100.0 * available as f64 / priority.hosts as f64 };
    percent < f64::from(threshold.min(100))
}

fn all_to_first(priorities: usize) -> PriorityLoads {
    let mut loads = PriorityLoads {
        healthy: SmallVec::from_elem(0, priorities.max(1)),
        degraded: SmallVec::from_elem(0, priorities.max(1)),
    };
    loads.healthy[0] = 100;
    loads
}

/// Total panic: by the number of hosts, whatever their health.
fn by_size(priorities: &[Availability]) -> PriorityLoads {
    let total: u64 = priorities.iter().map(|priority| priority.all_hosts).sum();
    if total == 0 {
        return all_to_first(priorities.len());
    }
    let mut healthy: SmallVec<[u32; 2]> = priorities.iter().map(|p| (100 * p.all_hosts / total) as u32).collect();
    let rest = 100 - healthy.iter().sum::<u32>();
    if let Some(first) = priorities.iter().position(|priority| priority.all_hosts > 0) {
        healthy[first] += rest;
    }
    PriorityLoads { degraded: SmallVec::from_elem(0, healthy.len()), healthy }
}

fn by_availability(healthy: &[u32], degraded: &[u32], available: u32) -> PriorityLoads {
    let mut rest = 100;
    let mut share = |availability: &[u32]| -> SmallVec<[u32; 2]> {
        let loads = availability.iter().map(|percent| {
            let load = (percent * 100 / available).min(rest);
            rest -= load;
            load
        });
        loads.collect()
    };
    let mut loads = PriorityLoads { healthy: share(healthy), degraded: share(degraded) };
    // What remains are rounding errors.
    if let Some(first) = healthy.iter().position(|&percent| percent > 0) {
        loads.healthy[first] += rest;
    } else if let Some(first) = degraded.iter().position(|&percent| percent > 0) {
        loads.degraded[first] += rest;
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(all: u64, healthy: u64, degraded: u64) -> Availability {
        Availability {
            hosts: all,
            healthy_hosts: healthy,
            degraded_hosts: degraded,
            weight: all,
            healthy_weight: healthy,
            degraded_weight: degraded,
            all_hosts: all,
        }
    }

    fn loads(priorities: &[Availability]) -> (Vec<u32>, Vec<u32>, Vec<bool>) {
        let (loads, panic) = distribute(priorities, 140, 50);
        (loads.healthy.to_vec(), loads.degraded.to_vec(), panic.to_vec())
    }

    #[test]
    fn a_priority_keeps_its_load_until_its_health_times_overprovisioning_falls_below_all() {
        assert_eq!(loads(&[hosts(4, 4, 0), hosts(4, 4, 0)]).0, [100, 0]);
        assert_eq!(loads(&[hosts(100, 72, 0), hosts(4, 4, 0)]).0, [100, 0]);
        assert_eq!(loads(&[hosts(100, 71, 0), hosts(4, 4, 0)]).0, [99, 1]);
        assert_eq!(loads(&[hosts(4, 1, 0), hosts(4, 4, 0)]).0, [35, 65]);
        assert_eq!(loads(&[hosts(4, 0, 0), hosts(4, 4, 0)]).0, [0, 100]);
    }

    /// The example of Envoy's documentation on degraded endpoints.
    #[test]
    fn degraded_hosts_take_what_healthy_ones_cannot() {
        assert_eq!(loads(&[hosts(100, 0, 100)]), (vec![0], vec![100], vec![false]));
        assert_eq!(loads(&[hosts(100, 50, 50)]), (vec![70], vec![30], vec![false]));
        let (loads, _) = distribute(&[hosts(100, 5, 0), hosts(100, 0, 0)], 140, 0);
        assert_eq!(loads.healthy.to_vec(), [100, 0]);
    }

    #[test]
    fn panic_is_per_priority_and_never_when_the_rest_suffices() {
        assert_eq!(loads(&[hosts(4, 1, 0), hosts(4, 4, 0)]).2, [false, false]);
        // 35 % + 35 %: both are below 50 %, so load goes by size.
        assert_eq!(loads(&[hosts(4, 1, 0), hosts(12, 3, 0)]), (vec![25, 75], vec![0, 0], vec![true, true]));
        // 35 % + 55 % (half of the hosts and more are there): only the first panics.
        assert_eq!(loads(&[hosts(4, 0, 0), hosts(10, 6, 0)]).2, [true, false]);
        assert_eq!(loads(&[hosts(0, 0, 0)]), (vec![100], vec![0], vec![true]));
    }

    #[test]
    fn a_hash_falls_on_the_priority_whose_share_it_is_in() {
        let (loads, _) = distribute(&[hosts(4, 1, 0), hosts(4, 4, 0)], 140, 50);
        assert_eq!(loads.choose(34), (0, Tier::Healthy));
        assert_eq!(loads.choose(35), (1, Tier::Healthy));
        assert_eq!(loads.choose(99), (1, Tier::Healthy));
        assert_eq!(loads.choose(100), (0, Tier::Healthy));
    }
}
