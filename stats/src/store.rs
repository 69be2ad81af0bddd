//! Every stat of the process, for as long as somebody counts in it. It must not know who does.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::block::Block;
use crate::lookups::Lookups;
use crate::rules::Rules;
use crate::scope::{Members, Scope};

/// Every stat of the process.
pub struct Store {
    root: Arc<Members>,
    scopes: Mutex<Scopes>,
    rules: Rules,
    lookups: Lookups,
}

#[derive(Default)]
struct Scopes {
    by_prefix: HashMap<Arc<str>, Weak<Members>>,
    /// The dead are swept out when the map has grown to this.
    sweep_at: usize,
}

impl Store {
    pub fn new() -> Arc<Self> {
        Self::with_rules(Rules::default())
    }

    /// A store whose names are shown as `stats_config` says.
    pub fn with_rules(rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            root: Arc::new(Members::new("".into())),
            scopes: Mutex::default(),
            rules,
            lookups: Lookups::default(),
        })
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Of stats by name.
    pub fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// The scope without a prefix; it lives as long as the store.
    pub fn root(self: &Arc<Self>) -> Scope {
        Scope { store: Arc::clone(self), members: Arc::clone(&self.root) }
    }

    pub(crate) fn members(&self, prefix: &str) -> Arc<Members> {
        if prefix.is_empty() {
            return Arc::clone(&self.root);
        }
        let mut scopes = self.scopes.lock();
        if let Some(members) = scopes.by_prefix.get(prefix).and_then(Weak::upgrade) {
            return members;
        }
        scopes.sweep();
        let members = Arc::new(Members::new(prefix.into()));
        scopes.by_prefix.insert(Arc::clone(&members.prefix), Arc::downgrade(&members));
        members
    }

    /// Makes every counter read 0. Nothing that is counted meanwhile is lost.
    pub fn reset_counters(&self) {
        self.each_block(Block::reset_counters);
    }

    /// Brings together what the workers have recorded in histograms; until then it is not read. Called every
    /// `stats_flush_interval`.
    pub fn flush_histograms(&self) {
        self.each_block(Block::flush_histograms);
    }

    fn each_block(&self, act: impl Fn(&Block)) {
        for members in self.scopes() {
            let lists = members.lists.lock();
            lists.blocks.iter().for_each(|block| act(block));
            let named = lists.named().into_iter();
            named
                .flat_map(|named| named.counters.values().chain(named.histograms.values()))
                .for_each(|block| act(block));
        }
    }

    /// The scopes that somebody still holds.
    pub(crate) fn scopes(&self) -> Vec<Arc<Members>> {
        let scopes = self.scopes.lock();
        let held = scopes.by_prefix.values().filter_map(Weak::upgrade);
        std::iter::once(Arc::clone(&self.root)).chain(held).collect()
    }
}

impl Scopes {
    /// Costs as much as the insertions since the last time.
    fn sweep(&mut self) {
        if self.by_prefix.len() < self.sweep_at {
            return;
        }
        self.by_prefix.retain(|_, members| members.strong_count() > 0);
        self.sweep_at = (2 * self.by_prefix.len()).max(64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats_block;

    stats_block! {
        struct Sample {
            counters { rq_total, rq_error }
            gauges { cx_active }
            histograms {}
        }
    }

    fn counters(store: &Store) -> Vec<(String, u64)> {
        store.counters().into_iter().map(|c| (c.name, c.value)).collect()
    }

    #[test]
    fn stats_vanish_with_the_last_who_holds_them() {
        let store = Store::new();
        let sample = Sample::new(&store.root().scope("x."));
        sample.rq_total().inc();
        let again = sample.clone();
        drop(sample);
        assert_eq!(store.counters().len(), 2);
        drop(again);
        assert_eq!(store.counters(), []);
        for name in 0..1000 {
            store.root().scope(&format!("{name}."));
        }
        assert!(store.scopes.lock().by_prefix.len() <= 64);
    }

    #[test]
    fn a_counter_of_the_root_needs_no_holder() {
        let store = Store::new();
        store.root().counter("seen").inc();
        assert_eq!(counters(&store), [("seen".into(), 1)]);
    }

    #[test]
    fn a_reset_counter_starts_again_and_stays_used() {
        let store = Store::new();
        let sample = Sample::new(&store.root());
        sample.rq_total().add(5);
        store.reset_counters();
        assert_eq!(sample.rq_total().value(), 0);
        sample.rq_total().inc();
        let readings = store.counters();
        assert_eq!((readings[1].value, readings[1].used), (1, true));
        assert_eq!((readings[0].value, readings[0].used), (0, false));
    }
}
