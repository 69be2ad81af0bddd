//! Make before break: first what others name, then, once clusters are accepted, what names it; what is gone from the newest set
//! is served on until all that is new was accepted, then it goes, in the opposite order. It must not know a dialect.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::resource_set::{Kind, ResourceSet, ResourceType};

/// How long an answer is waited for before the next step: Envoy answers for clusters once they are warm, for which it gives
/// their endpoints this long (`initial_fetch_timeout`).
const PATIENCE: Duration = Duration::from_secs(15);

/// More than this does not linger, whatever is rejected.
const MOST_LINGERING: usize = 10_000;

/// What a type, or a stream, has still to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// Something has to be sent.
    Sending,
    /// All is sent, not all is answered.
    Waiting,
    /// Something was rejected: what it was to replace may name what is gone.
    Rejected,
    Settled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Clusters and what belongs to them are the newest, the rest is as it was.
    Clusters,
    /// All is the newest, and what is gone lingers.
    Additions,
    /// What lingered goes.
    Removals,
    Done,
}

/// What one stream serves.
#[derive(Debug)]
pub(super) struct Rollout {
    newest: Arc<ResourceSet>,
    served: Arc<ResourceSet>,
    step: Step,
    /// What was gone at this step and is served on.
    lingering: usize,
    /// A stream of one type has no others to wait for.
    aggregated: bool,
    /// Since when this step waits for answers.
    since: Option<Instant>,
    /// It waits for nothing else now.
    waiting: bool,
}

impl Rollout {
    pub(super) fn new(set: Arc<ResourceSet>, aggregated: bool) -> Self {
        Self {
            served: set.clone(),
            newest: set,
            step: Step::Done,
            lingering: 0,
            aggregated,
            since: None,
            waiting: false,
        }
    }

    pub(super) fn served(&self, kind: ResourceType) -> &Kind {
        self.served.kind(kind)
    }

    pub(super) fn newest(&self, kind: ResourceType) -> &Kind {
        self.newest.kind(kind)
    }

    /// Whether removals are on their way: they go in the opposite order.
    pub(super) fn is_removing(&self) -> bool {
        self.step == Step::Removals
    }

    /// There is a newer set.
    pub(super) fn begin(&mut self, newest: &Arc<ResourceSet>) {
        self.newest = newest.clone();
        if !self.aggregated {
            self.served = newest.clone();
            return;
        }
        // Who has waited for clusters goes on waiting: updates that follow one another closely must not hold the rest for ever.
        if self.step != Step::Clusters {
            self.since = None;
        }
        self.step = Step::Clusters;
        self.lingering = 0;
        self.add(|kind| kind < ResourceType::LISTENER);
    }

    /// Serves the newest of some types, and what they had. Listeners do not linger, since nothing names them.
    fn add(&mut self, which: impl Fn(ResourceType) -> bool) {
        let mut served = ResourceSet::clone(&self.served);
        for kind in ResourceType::all().filter(|kind| which(*kind)) {
            let (before, newest) = (self.served.kind(kind), self.newest.kind(kind));
            let mut merged = newest.clone();
            if kind != ResourceType::LISTENER {
                let gone = before.changes(newest).filter(|(_, resource)| resource.is_none());
                for resource in gone.filter_map(|(name, _)| before.get(name)) {
                    merged.insert(resource.clone());
                    self.lingering += 1;
                }
            }
            *served.kind_mut(kind) = merged;
        }
        self.served = Arc::new(served);
    }

    /// Goes to the next step, if a stream has come so far with its clusters and with all. True: other things are served now.
    pub(super) fn advance(&mut self, clusters: Progress, all: Progress, now: Instant) -> bool {
        let waited = match self.step {
            Step::Clusters => self.has_waited(clusters, now),
            Step::Additions => self.lingering > 0 && self.has_waited(all, now),
            Step::Removals | Step::Done => {
                self.waiting = false;
                false
            }
        };
        match self.step {
            Step::Clusters if waited || clusters >= Progress::Rejected => {
                self.add(|kind| kind >= ResourceType::LISTENER);
                (self.step, self.since) = (Step::Additions, None);
                true
            }
            Step::Additions if self.lingering == 0 => {
                (self.step, self.since) = (Step::Done, None);
                false
            }
            Step::Additions
                if waited
                    || all == Progress::Settled
                    || (all == Progress::Rejected && self.lingering > MOST_LINGERING) =>
            {
                self.served = self.newest.clone();
                (self.step, self.since, self.lingering) = (Step::Removals, None, 0);
                true
            }
            Step::Removals if all != Progress::Sending => {
                self.step = Step::Done;
                false
            }
            _ => false,
        }
    }

    fn has_waited(&mut self, progress: Progress, now: Instant) -> bool {
        self.waiting = progress == Progress::Waiting;
        self.waiting && now >= *self.since.get_or_insert(now) + PATIENCE
    }

    /// When answers have been waited for long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since.filter(|_| self.waiting).map(|since| since + PATIENCE)
    }
}

/// The types of a stream in the order in which they are served.
pub(super) fn order(count: usize, removing: bool) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| if removing { count - 1 - place } else { place })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::{cluster, listener, routes, set};

    fn counts(rollout: &Rollout) -> [usize; 3] {
        [ResourceType::CLUSTER, ResourceType::LISTENER, ResourceType::ROUTES].map(|kind| rollout.served(kind).len())
    }

    #[test]
    fn clusters_go_first_and_removals_last() {
        let now = Instant::now();
        let old = set([cluster("a", ""), listener("l", ""), routes("r", "")]);
        let new = set([cluster("b", ""), routes("s", "")]);
        let mut rollout = Rollout::new(old, true);
        rollout.begin(&new);
        assert_eq!(counts(&rollout), [2, 1, 1]);
        assert!(!rollout.advance(Progress::Sending, Progress::Sending, now) && rollout.deadline().is_none());
        assert!(!rollout.advance(Progress::Waiting, Progress::Waiting, now));
        assert_eq!(rollout.deadline(), Some(now + PATIENCE));
        assert!(rollout.advance(Progress::Settled, Progress::Settled, now) && rollout.deadline().is_none());
        assert_eq!(counts(&rollout), [2, 0, 2]);
        assert!(!rollout.advance(Progress::Settled, Progress::Waiting, now));
        assert!(rollout.deadline().is_some());
        assert!(!rollout.advance(Progress::Settled, Progress::Rejected, now + PATIENCE));
        assert_eq!(rollout.deadline(), None, "there is nothing to wake up for");
        assert!(rollout.advance(Progress::Settled, Progress::Waiting, now + PATIENCE) && rollout.is_removing());
        assert_eq!((counts(&rollout), rollout.deadline()), ([1, 0, 1], None));
        assert!(!rollout.advance(Progress::Settled, Progress::Settled, now) && !rollout.is_removing());
    }

    #[test]
    fn clusters_that_are_refused_or_never_answered_hold_nothing_for_ever() {
        let now = Instant::now();
        let mut rollout = Rollout::new(set([]), true);
        rollout.begin(&set([routes("r", "")]));
        assert!(rollout.advance(Progress::Rejected, Progress::Rejected, now));
        rollout.begin(&set([routes("r", ""), routes("s", "")]));
        assert!(!rollout.advance(Progress::Waiting, Progress::Waiting, now));
        // Another update does not begin the wait anew.
        rollout.begin(&set([routes("r", ""), routes("s", ""), routes("t", "")]));
        assert!(rollout.advance(Progress::Waiting, Progress::Waiting, now + PATIENCE));
        assert_eq!(counts(&rollout), [0, 0, 3]);
    }

    #[test]
    fn what_came_back_does_not_linger() {
        let (now, settled) = (Instant::now(), Progress::Settled);
        let (old, without) = (set([cluster("a", "")]), set([]));
        let mut rollout = Rollout::new(old.clone(), true);
        rollout.begin(&without);
        rollout.begin(&old);
        assert!(rollout.advance(settled, settled, now) && !rollout.advance(settled, settled, now));
        assert!(!rollout.is_removing());
        rollout.begin(&without);
        rollout.begin(&set([cluster("b", "")]));
        assert_eq!(counts(&rollout), [2, 0, 0]);
    }

    #[test]
    fn a_stream_of_one_type_waits_for_nothing() {
        let mut rollout = Rollout::new(set([cluster("a", "")]), false);
        rollout.begin(&set([]));
        assert_eq!(counts(&rollout), [0, 0, 0]);
    }

    #[test]
    fn removals_go_in_the_opposite_order() {
        assert_eq!(order(3, false).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(order(3, true).collect::<Vec<_>>(), [2, 1, 0]);
    }
}
