//! How long what was asked for is waited for (`initial_fetch_timeout`). It must not know what happens then.

use std::collections::BTreeMap;
use std::time::Instant;

use tidegate_filters::context::Wait;

use super::Kind;

/// Everything that was ever asked for.
#[derive(Debug, Default)]
pub(super) struct Waits(BTreeMap<(Kind, String), State>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// None: for ever.
    Until(Option<Instant>),
    /// It came, or did not in time.
    Over,
}

impl Waits {
    /// It is asked for; false where it was before.
    pub(super) fn begin(&mut self, kind: Kind, name: &str, wait: Wait, now: Instant) -> bool {
        let key = (kind, name.to_owned());
        if self.0.contains_key(&key) {
            return false;
        }
        self.0.insert(key, State::Until(wait.0.and_then(|wait| now.checked_add(wait))));
        true
    }

    /// It came, or was rejected.
    pub(super) fn came(&mut self, kind: Kind, name: &str) {
        if let Some(state) = self.0.get_mut(&(kind, name.to_owned())) {
            *state = State::Over;
        }
    }

    /// What nobody asks for any more is forgotten: asked for again, it is waited for again.
    pub(super) fn forget(&mut self, kind: Kind, is_needed: impl Fn(&str) -> bool) {
        self.0.retain(|(one, name), _| *one != kind || is_needed(name));
    }

    pub(super) fn is_over(&self, kind: Kind, name: &str) -> bool {
        self.0.get(&(kind, name.to_owned())) == Some(&State::Over)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|state| if let State::Until(at) = state { *at } else { None }).min()
    }

    /// Takes out what was waited for long enough.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(Kind, String)> {
        let due = |state: &State| matches!(state, State::Until(Some(at)) if *at <= now);
        let late = self.0.iter_mut().filter(|(_, state)| due(state));
        late.map(|(key, state)| {
            *state = State::Over;
            key.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_comes_is_not_overdue() {
        let (mut waits, now, second) = (Waits::default(), Instant::now(), Duration::from_secs(1));
        let wait = Wait(Some(second));
        assert!(waits.begin(Kind::Route, "a", wait, now) && waits.begin(Kind::Route, "b", wait, now));
        assert!(!waits.begin(Kind::Route, "a", wait, now));
        assert!(waits.begin(Kind::Cluster, "", Wait(None), now));
        waits.came(Kind::Route, "a");
        assert_eq!(waits.next(), Some(now + second));
        assert!(waits.overdue(now).is_empty());
        assert_eq!(waits.overdue(now + second), [(Kind::Route, "b".to_owned())]);
        assert!(waits.is_over(Kind::Route, "b") && !waits.is_over(Kind::Cluster, ""));
        assert_eq!(waits.next(), None);
        waits.forget(Kind::Route, |name| name == "a");
        assert!(!waits.begin(Kind::Route, "a", wait, now) && waits.begin(Kind::Route, "b", wait, now));
    }
}
