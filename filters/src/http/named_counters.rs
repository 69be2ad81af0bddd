//! Counters that are named after something a request shows: each comes with its first use, and its handle stays.
//! They must not know what they count.

use std::collections::HashMap;

use parking_lot::RwLock;
use tidegate_stats::{OwnedCounter, Scope};

/// Where clients choose the names: past so many, or with a longer one, nothing more is counted apart. Envoy has no bound.
pub(super) const MOST_NAMES: usize = 4096;
pub(super) const LONGEST_NAME_BYTES: usize = 256;

/// Counters `<before><name><after>` of a scope.
pub(super) struct NamedCounters {
    scope: Scope,
    before: &'static str,
    after: &'static str,
    most: usize,
    longest_bytes: usize,
    made: RwLock<HashMap<Box<str>, OwnedCounter, ahash::RandomState>>,
}

impl NamedCounters {
    /// Names that stand in the configuration.
    pub(super) fn of_configuration(scope: &Scope, before: &'static str, after: &'static str) -> Self {
        Self::new(scope, before, after, (usize::MAX, usize::MAX))
    }

    /// Names that clients choose.
    pub(super) fn of_clients(scope: &Scope, before: &'static str, after: &'static str) -> Self {
        Self::new(scope, before, after, (MOST_NAMES, LONGEST_NAME_BYTES))
    }

    fn new(scope: &Scope, before: &'static str, after: &'static str, (most, longest_bytes): (usize, usize)) -> Self {
        Self { scope: scope.clone(), before, after, most, longest_bytes, made: RwLock::default() }
    }

    pub(super) fn inc(&self, name: &str) {
        if let Some(counter) = self.made.read().get(name) {
            return counter.inc();
        }
        if name.len() > self.longest_bytes {
            return;
        }
        let mut made = self.made.write();
        if made.len() < self.most || made.contains_key(name) {
            let make = || self.scope.counter(&format!("{}{name}{}", self.before, self.after));
            made.entry(name.into()).or_insert_with(make).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_stats::Store;

    #[test]
    fn clients_cannot_make_names_without_end() {
        let store = Store::new();
        let counters = NamedCounters::of_clients(&store.root(), "by.", ".seen");
        for n in 0..MOST_NAMES + 5 {
            counters.inc(&n.to_string());
        }
        counters.inc("0");
        let counted = crate::http::testing::counted(&store);
        assert_eq!(counted.len(), MOST_NAMES);
        assert!(counted.contains(&"by.0.seen: 2".to_owned()));

        let store = Store::new();
        let counters = NamedCounters::of_clients(&store.root(), "", "");
        for length in [LONGEST_NAME_BYTES, LONGEST_NAME_BYTES + 1] {
            counters.inc(&"a".repeat(length));
        }
        assert_eq!(crate::http::testing::counted(&store).len(), 1);
    }
}
