//! Which stats were looked up by name lately: each costs a hash and a lock, so handles are to be kept where it is counted
//! often. It must not know what is looked up.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// How many of the last lookups are kept while they are tracked, as in Envoy.
const KEPT: usize = 100;

/// Every lookup is counted; the last are kept while somebody asks for it.
#[derive(Default)]
pub struct Lookups {
    total: AtomicU64,
    /// Whether `recent` is something: spares everyone its lock.
    tracked: AtomicBool,
    recent: Mutex<Option<VecDeque<String>>>,
}

impl Lookups {
    pub(crate) fn note(&self, prefix: &str, name: &str) {
        self.total.fetch_add(1, Relaxed);
        if !self.tracked.load(Relaxed) {
            return;
        }
        let mut recent = self.recent.lock();
        let Some(recent) = recent.as_mut() else { return };
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(format!("{prefix}{name}"));
    }

    /// Since the start, or since they were cleared.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Begins or ends to keep them.
    pub fn track(&self, on: bool) {
        let mut recent = self.recent.lock();
        match (&*recent, on) {
            (None, true) => *recent = Some(VecDeque::new()),
            (Some(_), false) => *recent = None,
            _ => {}
        }
        self.tracked.store(on, Relaxed);
    }

    /// Forgets them, and counts from 0.
    pub fn clear(&self) {
        self.total.store(0, Relaxed);
        if let Some(recent) = self.recent.lock().as_mut() {
            recent.clear();
        }
    }

    /// The names that were looked up lately, the most frequent first; `None` while they are not tracked.
    pub fn recent(&self) -> Option<Vec<(String, u64)>> {
        let recent = self.recent.lock().clone()?;
        let mut counts: HashMap<String, u64> = HashMap::new();
        for name in recent {
            *counts.entry(name).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by(|(a, some), (b, more)| more.cmp(some).then_with(|| a.cmp(b)));
        Some(counts)
    }
}

#[cfg(test)]
mod tests {
    use crate::Store;

    #[test]
    fn lookups_are_counted_and_kept_while_tracked() {
        let store = Store::new();
        store.root().counter("a");
        assert_eq!((store.lookups().total(), store.lookups().recent()), (1, None));
        store.lookups().track(true);
        for name in ["b", "c", "c"] {
            store.root().scope("x").counter(name);
        }
        assert_eq!(store.lookups().recent(), Some(vec![("x.c".into(), 2), ("x.b".into(), 1)]));
        assert_eq!(store.lookups().total(), 4);
        store.lookups().clear();
        assert_eq!((store.lookups().total(), store.lookups().recent()), (0, Some(vec![])));
        store.lookups().track(false);
        assert_eq!(store.lookups().recent(), None);
    }
}
