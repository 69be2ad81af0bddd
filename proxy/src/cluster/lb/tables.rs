//! The tables of consistent hashing, built at the first pick: a cluster without traffic has none. An update builds them
//! ahead if the hosts before it had them, so that no request waits.

use std::sync::OnceLock;

use super::maglev::Table;
use super::ring_hash::Ring;
use super::{Balancing, Policy};
use crate::cluster::host_set::PriorityHosts;

/// The table of a priority; at most one of the two, by policy.
#[derive(Default)]
pub struct Tables(OnceLock<Box<Kind>>);

enum Kind {
    Ring(Ring),
    Maglev(Table),
}

/// Sizes of a table, for `ring_hash_lb.*` and `maglev_lb.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableSize {
    Ring { size: u64, min_hashes_per_host: u64, max_hashes_per_host: u64 },
    Maglev { min_entries_per_host: u64, max_entries_per_host: u64 },
}

impl Tables {
    pub(super) fn ring(&self, build: impl FnOnce() -> Ring) -> Option<&Ring> {
        match &**self.0.get_or_init(|| Box::new(Kind::Ring(build()))) {
            Kind::Ring(ring) => Some(ring),
            Kind::Maglev(_) => None,
        }
    }

    pub(super) fn maglev(&self, build: impl FnOnce() -> Table) -> Option<&Table> {
        match &**self.0.get_or_init(|| Box::new(Kind::Maglev(build()))) {
            Kind::Maglev(table) => Some(table),
            Kind::Ring(_) => None,
        }
    }

    /// Whether a pick has asked for the table.
    pub(crate) fn built(&self) -> bool {
        self.0.get().is_some()
    }
}

impl PriorityHosts {
    /// Builds the policy's table ahead of the first pick.
    pub(crate) fn build_table(&self, balancing: &Balancing) {
        match &balancing.policy {
            Policy::RingHash(ring) => drop(self.tables.ring(|| ring.build(self))),
            Policy::Maglev(maglev) => drop(self.tables.maglev(|| maglev.build(self))),
            Policy::RoundRobin | Policy::LeastRequest(_) | Policy::Random => {}
        }
    }

    /// The sizes of the policy's table, whether it is built yet or not.
    pub(crate) fn table_size(&self, balancing: &Balancing) -> Option<TableSize> {
        match &balancing.policy {
            Policy::RingHash(ring) => Some(ring.size(self)),
            Policy::Maglev(maglev) => Some(maglev.size(self)),
            Policy::RoundRobin | Policy::LeastRequest(_) | Policy::Random => None,
        }
    }
}
