//! How long what was asked for is waited for (`initial_fetch_timeout`). It must not know what happens then.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tidegate_filters::context::Wait;

use super::Kind;

/// Everything that is asked for.
#[derive(Debug, Default)]
pub(super) struct Waits {
    states: HashMap<(Kind, Arc<str>), State>,
    /// What is waited for until then.
    due: BTreeSet<(Instant, Kind, Arc<str>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// None: for ever.
    Until(Option<Instant>),
    /// It came, or did not in time.
    Over,
}

impl Waits {
    /// It is asked for; false where it was before.
    pub(super) fn begin(&mut self, kind: Kind, name: &Arc<str>, wait: Wait, now: Instant) -> bool {
        let key = (kind, Arc::clone(name));
        if self.states.contains_key(&key) {
            return false;
        }
        let until = wait.0.and_then(|wait| now.checked_add(wait));
        self.due.extend(until.map(|at| (at, kind, Arc::clone(&key.1))));
        self.states.insert(key, State::Until(until));
        true
    }

    /// It came, or was rejected.
    pub(super) fn came(&mut self, kind: Kind, name: &str) {
        if let Some(state) = self.states.get_mut(&(kind, name.into()))
            && let State::Until(Some(at)) = std::mem::replace(state, State::Over)
        {
            self.due.remove(&(at, kind, name.into()));
        }
    }

    /// Nobody asks for it any more: asked for again, it is waited for again.
    pub(super) fn forget(&mut self, kind: Kind, name: &str) {
        self.came(kind, name);
        self.states.remove(&(kind, name.into()));
    }

    pub(super) fn is_over(&self, kind: Kind, name: &str) -> bool {
        self.states.get(&(kind, name.into())) == Some(&State::Over)
    }

    /// Takes out everything that is still waited for, however long it may be.
    pub(super) fn give_up(&mut self) -> Vec<(Kind, Arc<str>)> {
        self.due.clear();
        let waiting = self.states.iter_mut().filter(|(_, state)| **state != State::Over);
        waiting
            .map(|((kind, name), state)| {
                *state = State::Over;
                (*kind, Arc::clone(name))
            })
            .collect()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, ..)| *at)
    }

    /// Takes out what was waited for long enough.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(Kind, Arc<str>)> {
        let mut late = Vec::new();
        while self.next().is_some_and(|at| at <= now)
            && let Some((_, kind, name)) = self.due.pop_first()
        {
            self.states.insert((kind, Arc::clone(&name)), State::Over);
            late.push((kind, name));
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_given_up_is_waited_for_no_more() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        let second = Wait(Some(Duration::from_secs(1)));
        waits.begin(Kind::Route, &"a".into(), second, now);
        waits.begin(Kind::Route, &"b".into(), second, now);
        waits.begin(Kind::Cluster, &"".into(), Wait(None), now);
        waits.came(Kind::Route, "a");
        let mut given_up = waits.give_up();
        given_up.sort();
        assert_eq!(given_up, [(Kind::Cluster, Arc::from("")), (Kind::Route, Arc::from("b"))]);
        assert_eq!(waits.next(), None);
        assert!(waits.give_up().is_empty() && waits.is_over(Kind::Cluster, ""));
    }

    #[test]
    fn what_comes_is_not_overdue() {
        let (mut waits, now, second) = (Waits::default(), Instant::now(), Duration::from_secs(1));
        let wait = Wait(Some(second));
        assert!(waits.begin(Kind::Route, &"a".into(), wait, now) && waits.begin(Kind::Route, &"b".into(), wait, now));
        assert!(!waits.begin(Kind::Route, &"a".into(), wait, now));
        assert!(waits.begin(Kind::Cluster, &"".into(), Wait(None), now));
        waits.came(Kind::Route, "a");
        assert_eq!(waits.next(), Some(now + second));
        assert!(waits.overdue(now).is_empty());
        assert_eq!(waits.overdue(now + second), [(Kind::Route, Arc::from("b"))]);
        assert!(waits.is_over(Kind::Route, "b") && !waits.is_over(Kind::Cluster, ""));
        assert_eq!(waits.next(), None);
        waits.forget(Kind::Route, "b");
        assert!(!waits.begin(Kind::Route, &"a".into(), wait, now) && waits.begin(Kind::Route, &"b".into(), wait, now));
    }
}
