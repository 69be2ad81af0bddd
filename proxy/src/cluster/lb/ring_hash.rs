//! `RING_HASH` (`envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash`): hosts stand on a ring at many hashes of
//! their keys, and a request goes to the next one from its own hash. The ring is Envoy's, point for point.

use std::fmt::Write;
use std::sync::Arc;

use super::hash::Members;
use super::{HashFunction, HashOptions, Loads, TableSize};
use crate::cluster::host::Host;
use crate::cluster::host_set::PriorityHosts;

/// Options of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingHash {
    pub minimum_ring_size: u64,
    /// At least the minimum.
    pub maximum_ring_size: u64,
    pub function: HashFunction,
    pub hash: HashOptions,
}

impl Default for RingHash {
    fn default() -> Self {
        Self {
            minimum_ring_size: 1024,
            maximum_ring_size: 8 << 20,
            function: HashFunction::XxHash,
            hash: HashOptions::default(),
        }
    }
}

/// The ring of one priority.
pub(super) struct Ring {
    members: Members,
    /// Hash and member, by hash.
    points: Box<[(u64, u32)]>,
}

impl RingHash {
    pub(super) fn pick<'a>(
        &self,
        priority: &'a PriorityHosts,
        hash: u64,
        attempt: u32,
        loads: &dyn Loads,
    ) -> Option<&'a Arc<Host>> {
        let ring = priority.tables.ring(|| self.build(priority))?;
        if ring.points.is_empty() {
            return None;
        }
        let next = ring.points.partition_point(|(point, _)| *point < hash);
        let (_, member) = ring.points[(next % ring.points.len() + attempt as usize) % ring.points.len()];
        self.hash.bound(&ring.members, member as usize, hash, loads)
    }

    pub(super) fn build(&self, priority: &PriorityHosts) -> Ring {
        let members = Members::of(priority);
        let mut points = Vec::with_capacity(self.scale(&members).ceil() as usize);
        let mut text = String::new();
        for (index, ((host, _), count)) in members.0.iter().zip(self.counts(&members)).enumerate() {
            let key = self.hash.key(host);
            for at in 0..count {
                text.clear();
                // Writing to a string cannot fail.
                let _ = write!(text, "{key}_{at}");
                points.push((self.function.hash(text.as_bytes()), index as u32));
            }
        }
        points.sort_unstable();
        Ring { members, points: points.into() }
    }

    /// The sizes of a ring, built or not.
    pub(super) fn size(&self, priority: &PriorityHosts) -> TableSize {
        let members = Members::of(priority);
        let size = self.scale(&members).ceil() as u64;
        let (fewest, most) =
            self.counts(&members).fold((size, 0), |(fewest, most), count| (fewest.min(count), most.max(count)));
        TableSize::Ring { size, min_hashes_per_host: fewest, max_hashes_per_host: most }
    }

    /// How many points the whole ring has: the least host gets a whole number of them, if the ring may be that large.
    fn scale(&self, members: &Members) -> f64 {
        if members.0.is_empty() {
            return 0.0;
        }
        let least = members.0.iter().map(|(_, weight)| *weight).fold(1.0, f64::min);
        ((least * self.minimum_ring_size as f64).ceil() / least).min(self.maximum_ring_size as f64)
    }

    /// How many points each member has: those up to the sum of the shares so far.
    fn counts<'m>(&self, members: &'m Members) -> impl Iterator<Item = u64> + 'm {
        let scale = self.scale(members);
        let (mut placed, mut target) = (0.0, 0.0);
        members.0.iter().map(move |(_, weight)| {
            target += scale * weight;
            let count = (target - placed).ceil().max(0.0);
            placed += count;
            count as u64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::host_set::HostSet;
    use crate::cluster::lb::testing::{FixedLoads, assignment, endpoints, locality, number, set};
    use crate::cluster::lb::{Balancing, HashKey, PickContext, Policy, Scheduler, pick};

    fn balancing(ring: RingHash) -> Balancing {
        Balancing { policy: Policy::RingHash(ring), ..Balancing::default() }
    }

    fn choose(hosts: &HostSet, balancing: &Balancing, hash: u64) -> usize {
        let context = PickContext { hash: Some(hash), ..PickContext::new(0, hash) };
        let picked = pick(hosts, balancing, &FixedLoads::default(), &context, &mut Scheduler::default(), None);
        number(&picked.unwrap().host)
    }

    fn hosts(weights: &[u32], balancing: &Balancing) -> HostSet {
        set(&assignment(vec![locality("", 0, 0, endpoints(1, weights))]), balancing)
    }

    #[test]
    fn a_ring_is_as_large_as_asked_for() {
        let build = |ring: RingHash, weights: &[u32]| {
            let hosts = hosts(weights, &balancing(ring));
            let TableSize::Ring { size, min_hashes_per_host, max_hashes_per_host } = ring.size(&hosts.priorities[0])
            else {
                unreachable!()
            };
            (size, min_hashes_per_host, max_hashes_per_host, ring.build(&hosts.priorities[0]).points.len())
        };
        assert_eq!(build(RingHash::default(), &[1, 1, 1]), (1026, 342, 342, 1026));
        let small = RingHash { minimum_ring_size: 1, maximum_ring_size: 6, ..RingHash::default() };
        assert_eq!(build(small, &[1, 1, 1, 1]), (4, 1, 1, 4));
        let weighted = RingHash { minimum_ring_size: 10, ..RingHash::default() };
        assert_eq!(build(weighted, &[1, 4]), (10, 2, 8, 10));
    }

    #[test]
    fn losing_a_host_moves_little_but_what_was_its() {
        // As many points for each host before and after.
        let before = balancing(RingHash { minimum_ring_size: 1000, ..RingHash::default() });
        let after = balancing(RingHash { minimum_ring_size: 800, ..RingHash::default() });
        let all = hosts(&[1; 5], &before);
        let mut fewer = endpoints(1, &[1; 5]);
        fewer.remove(2);
        let fewer = set(&assignment(vec![locality("", 0, 0, fewer)]), &after);
        let mut moved = 0;
        for hash in (0..4000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let (owner, heir) = (choose(&all, &before, hash), choose(&fewer, &after, hash));
            if owner == 3 {
                moved += 1;
            } else {
                assert_eq!(owner, heir);
            }
        }
        assert!((600..1000).contains(&moved), "{moved}");
    }

    #[test]
    fn keys_come_from_metadata_then_as_configured() {
        let mut endpoint = endpoints(1, &[1]).remove(0);
        endpoint.hostname = "name".into();
        let host = |endpoint| {
            let set = set(&assignment(vec![locality("", 0, 0, vec![endpoint])]), &Balancing::default());
            set.hosts().next().cloned().unwrap()
        };
        let named = HashOptions { key: HashKey::Hostname, ..HashOptions::default() };
        assert_eq!(HashOptions::default().key(&host(endpoint.clone())), "10.0.0.1:80");
        assert_eq!(named.key(&host(endpoint.clone())), "name");
        let mut metadata = tidegate_filters::metadata::Metadata::default();
        metadata.set("envoy.lb", serde_json::from_str(r#"{"hash_key": "own"}"#).unwrap());
        endpoint.metadata = metadata.into();
        assert_eq!(named.key(&host(endpoint)), "own");
    }

    #[test]
    fn a_host_over_its_share_passes_requests_on() {
        let bounded = RingHash {
            hash: HashOptions { balance_factor: Some(120), ..HashOptions::default() },
            ..RingHash::default()
        };
        let balancing = balancing(bounded);
        let hosts = hosts(&[1, 1, 1], &balancing);
        let own = choose(&hosts, &balancing, 42);
        let mut loads = FixedLoads(vec![1; 3]);
        loads.0[own - 1] = 10;
        let context = PickContext { hash: Some(42), ..PickContext::new(0, 0) };
        let again = || {
            let picked = pick(&hosts, &balancing, &loads, &context, &mut Scheduler::default(), None);
            number(&picked.unwrap().host)
        };
        let other = again();
        assert_ne!(other, own);
        assert_eq!(again(), other);
    }
}
