//! `MAGLEV` (`envoy.extensions.load_balancing_policies.maglev.v3.Maglev`): a fixed table in which hosts take turns at their
//! own permutations of its places (section 3.4 of the Maglev paper), as often as their weights say. The table is Envoy's.

use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use super::hash::Members;
use super::{HashOptions, Loads, TableSize};
use crate::cluster::host::Host;
use crate::cluster::host_set::PriorityHosts;

/// Options of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maglev {
    /// A prime.
    pub table_size: u32,
    pub hash: HashOptions,
}

impl Default for Maglev {
    fn default() -> Self {
        Self { table_size: 65_537, hash: HashOptions::default() }
    }
}

/// The table of one priority.
pub(super) struct Table {
    members: Members,
    /// A member for each place; empty without members.
    places: Box<[u32]>,
}

impl Maglev {
    pub(super) fn pick<'a>(
        &self,
        priority: &'a PriorityHosts,
        hash: u64,
        attempt: u32,
        loads: &dyn Loads,
    ) -> Option<&'a Arc<Host>> {
        let table = priority.tables.maglev(|| self.build(priority))?;
        if table.places.is_empty() {
            return None;
        }
        // A retry looks elsewhere: all high bits of the hash change.
        let place = if attempt == 0 { hash } else { hash ^ u64::from(attempt).wrapping_neg() };
        let member = table.places[(place % table.places.len() as u64) as usize];
        self.hash.bound(&table.members, member as usize, hash, loads)
    }

    pub(super) fn build(&self, priority: &PriorityHosts) -> Table {
        let mut members = Members::of(priority);
        let mut keyed: Vec<_> =
            members.0.drain(..).map(|member| (self.hash.key(&member.0).into_owned(), member)).collect();
        keyed.sort_by(|a, b| a.0.cmp(&b.0));
        let size = u64::from(self.table_size);
        let mut turns: Vec<Turn> = keyed.iter().map(|(key, (_, weight))| Turn::new(key, *weight, size)).collect();
        let members = Members(keyed.into_iter().map(|(_, member)| member).collect());
        let places = fill(&mut turns, size);
        Table { members, places }
    }

    /// The sizes of a table, built or not: who has a turn does not depend on where places are free.
    pub(super) fn size(&self, priority: &PriorityHosts) -> TableSize {
        let mut members = Members::of(priority).0;
        members.sort_by(|a, b| self.hash.key(&a.0).cmp(&self.hash.key(&b.0)));
        let mut turns: Vec<_> =
            members.iter().map(|(_, weight)| Share { weight: *weight, target: 0.0, entries: 0 }).collect();
        share(&mut turns, self.table_size.into(), |turn| turn, |_, _| {});
        let entries = || turns.iter().map(|turn| turn.entries);
        TableSize::Maglev {
            min_entries_per_host: entries().min().unwrap_or(0),
            max_entries_per_host: entries().max().unwrap_or(0),
        }
    }
}

/// One host while the table is filled.
struct Turn {
    offset: u64,
    skip: u64,
    next: u64,
    share: Share,
}

/// How often a host has a turn.
struct Share {
    weight: f64,
    target: f64,
    entries: u64,
}

impl Turn {
    fn new(key: &str, weight: f64, size: u64) -> Self {
        let key = key.as_bytes();
        let skip = xxh64(key, 1) % (size - 1) + 1;
        Self { offset: xxh64(key, 0) % size, skip, next: 0, share: Share { weight, target: 0.0, entries: 0 } }
    }
}

fn fill(turns: &mut [Turn], size: u64) -> Box<[u32]> {
    if turns.is_empty() {
        return Box::default();
    }
    let mut places = vec![u32::MAX; size as usize];
    share(
        turns,
        size,
        |turn| &mut turn.share,
        |index, turn| loop {
            let place = ((turn.offset + turn.skip * turn.next) % size) as usize;
            turn.next += 1;
            if places[place] == u32::MAX {
                places[place] = index as u32;
                break;
            }
        },
    );
    places.into()
}

/// Deals `size` turns out: the heaviest host has one in every round, one of a third of its weight in every third.
fn share<T>(
    turns: &mut [T],
    size: u64,
    mut share: impl FnMut(&mut T) -> &mut Share,
    mut take: impl FnMut(usize, &mut T),
) {
    let heaviest = turns.iter_mut().map(|turn| share(turn).weight).fold(0.0, f64::max);
    let mut left = if turns.is_empty() { 0 } else { size };
    let mut round = 0.0;
    while left > 0 {
        round += 1.0;
        for (index, turn) in turns.iter_mut().enumerate() {
            if left == 0 {
                break;
            }
            let own = share(turn);
            if round * own.weight < own.target {
                continue;
            }
            own.target += heaviest;
            own.entries += 1;
            take(index, turn);
            left -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::host_set::HostSet;
    use crate::cluster::lb::testing::{assignment, endpoints, flat, locality, number, set};
    use crate::cluster::lb::{Balancing, Policy};

    fn table(weights: &[u32]) -> Vec<usize> {
        owners(&flat(weights, &balancing()))
    }

    fn balancing() -> Balancing {
        Balancing { policy: Policy::Maglev(Maglev::default()), ..Balancing::default() }
    }

    fn owners(set: &HostSet) -> Vec<usize> {
        let table = Maglev::default().build(&set.priorities[0]);
        table.places.iter().map(|&member| number(table.members.host(member as usize).unwrap())).collect()
    }

    fn counts(table: &[usize], hosts: usize) -> Vec<usize> {
        (1..=hosts).map(|host| table.iter().filter(|&&owner| owner == host).count()).collect()
    }

    #[test]
    fn places_are_shared_evenly_or_by_weight() {
        let even = counts(&table(&[1; 7]), 7);
        assert!(even.iter().all(|&count| (9362..=9363).contains(&count)), "{even:?}");
        let weighted = counts(&table(&[1, 2, 5]), 3);
        for (count, share) in weighted.iter().zip([1.0, 2.0, 5.0]) {
            assert!((*count as f64 - 65_537.0 * share / 8.0).abs() < 4.0, "{weighted:?}");
        }
    }

    #[test]
    fn the_order_of_hosts_does_not_matter() {
        let mut reversed = endpoints(1, &[1; 5]);
        reversed.reverse();
        let reversed = set(&assignment(vec![locality("", 0, 0, reversed)]), &balancing());
        assert_eq!(owners(&reversed), table(&[1; 5]));
    }

    #[test]
    fn losing_a_host_moves_little_else() {
        let mut fewer = endpoints(1, &[1; 10]);
        fewer.remove(4);
        let after = owners(&set(&assignment(vec![locality("", 0, 0, fewer)]), &balancing()));
        let before = table(&[1; 10]);
        let moved = before.iter().zip(&after).filter(|(before, after)| **before != 5 && before != after).count();
        assert!(moved < 65_537 / 20, "{moved}");
    }
}
