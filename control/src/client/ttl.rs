//! When resources outlive their time to live. It must not know the clock: it is handed in.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// The ends of the resources that have one.
#[derive(Debug, Default)]
pub(super) struct Ttl {
    ends: HashMap<String, Instant>,
    queue: BTreeSet<(Instant, String)>,
}

impl Ttl {
    /// A resource came: it lives so long from now, or for ever.
    pub(super) fn refresh(&mut self, name: &str, lifetime: Option<Duration>, now: Instant) {
        self.forget(name);
        if let Some(end) = lifetime.and_then(|lifetime| now.checked_add(lifetime)) {
            self.ends.insert(name.to_owned(), end);
            self.queue.insert((end, name.to_owned()));
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        if let Some(end) = self.ends.remove(name) {
            self.queue.remove(&(end, name.to_owned()));
        }
    }

    /// When the next one ends.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(end, _)| *end)
    }

    /// Takes out what has ended.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<String> {
        let mut expired = Vec::new();
        while self.next().is_some_and(|end| end <= now)
            && let Some((_, name)) = self.queue.pop_first()
        {
            self.ends.remove(&name);
            expired.push(name);
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_prolongs_and_silence_ends() {
        let (mut ttl, start) = (Ttl::default(), Instant::now());
        let second = Duration::from_secs(1);
        ttl.refresh("a", Some(second), start);
        ttl.refresh("b", Some(second), start);
        ttl.refresh("c", None, start);
        assert_eq!(ttl.next(), Some(start + second));
        ttl.refresh("a", Some(second), start + second / 2);
        assert_eq!(ttl.expired(start + second), ["b"]);
        ttl.forget("a");
        assert_eq!(ttl.next(), None);
        assert!(ttl.expired(start + 9 * second).is_empty());
    }
}
