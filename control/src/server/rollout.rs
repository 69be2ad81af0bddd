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

/// A client that comes back asks for all its types at once: how long after one of them the next is waited for.
const SETTLING: Duration = Duration::from_millis(500);

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

/// How far a stream has come with all that it is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// None: it has not asked for clusters.
    clusters: Option<Progress>,
    all: Progress,
    /// How much it came back with that there is no more.
    held: usize,
}

impl Standing {
    /// Of each type how far it has come, and how much of it is held.
    pub(super) fn of(watches: impl Iterator<Item = (ResourceType, Progress, usize)>) -> Self {
        let mut standing = Self { clusters: None, all: Progress::Settled, held: 0 };
        for (kind, progress, held) in watches {
            standing.all = standing.all.min(progress);
            standing.held += held;
            if kind == ResourceType::CLUSTER {
                standing.clusters = Some(progress);
            }
        }
        standing
    }
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
    /// A client came back: what names clusters waits, also what this stream did not tell it before.
    holding: bool,
    /// Until when it may ask for other types that it has something of.
    settles: Option<Instant>,
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
            holding: false,
            settles: None,
        }
    }

    /// A client asks for a type of which it has something from an older stream. What it has is not known here, but that new
    /// clusters go first and removals last holds for it, too.
    pub(super) fn resume(&mut self, now: Instant) {
        if !self.aggregated {
            return;
        }
        self.settles = Some(now + SETTLING);
        if matches!(self.step, Step::Removals | Step::Done) {
            (self.step, self.since, self.holding) = (Step::Clusters, None, true);
        }
    }

    /// A client that came back has these clusters: those that are gone are served on, too.
    pub(super) fn keep(&mut self, had: &Kind) {
        if !self.aggregated {
            return;
        }
        let served = Arc::make_mut(&mut self.served).kind_mut(ResourceType::CLUSTER);
        let gone: Vec<_> = had.iter().filter(|cluster| served.get(&cluster.name).is_none()).cloned().collect();
        self.lingering += gone.len();
        gone.into_iter().for_each(|cluster| served.insert(cluster));
    }

    /// Whether nothing of a type is to be sent yet.
    pub(super) fn holds(&self, kind: ResourceType) -> bool {
        self.holding && kind >= ResourceType::LISTENER
    }

    /// Whether what is gone of a type is served on for a while. Listeners do not linger, since nothing names them.
    pub(super) fn lingers(&self, kind: ResourceType) -> bool {
        self.aggregated && kind != ResourceType::LISTENER
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

    /// Serves the newest of some types, and what they had.
    fn add(&mut self, which: impl Fn(ResourceType) -> bool) {
        let mut served = ResourceSet::clone(&self.served);
        for kind in ResourceType::all().filter(|kind| which(*kind)) {
            let (before, newest) = (self.served.kind(kind), self.newest.kind(kind));
            let mut merged = newest.clone();
            if self.lingers(kind) {
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

    /// Goes to the next step, if a stream has come so far. True: other things are served now.
    pub(super) fn advance(&mut self, standing: Standing, now: Instant) -> bool {
        self.settles = self.settles.filter(|settles| now < *settles);
        let asks = if self.settles.is_some() { Progress::Waiting } else { Progress::Settled };
        let (clusters, all) = (standing.clusters.unwrap_or(asks), standing.all.min(asks));
        let lingering = self.lingering + standing.held;
        let waited = match self.step {
            Step::Clusters => self.has_waited(clusters, now),
            Step::Additions => lingering > 0 && self.has_waited(all, now),
            Step::Removals | Step::Done => {
                self.waiting = false;
                false
            }
        };
        match self.step {
            Step::Clusters if waited || clusters >= Progress::Rejected => {
                self.add(|kind| kind >= ResourceType::LISTENER);
                (self.step, self.since, self.holding) = (Step::Additions, None, false);
                true
            }
            Step::Additions if lingering == 0 => {
                (self.step, self.since) = (Step::Done, None);
                false
            }
            Step::Additions
                if waited || all == Progress::Settled || (all == Progress::Rejected && lingering > MOST_LINGERING) =>
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

    /// When answers, or questions, have been waited for long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let patience = self.since.filter(|_| self.waiting).map(|since| since + PATIENCE);
        patience.into_iter().chain(self.settles).min()
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

    fn at(clusters: Progress, all: Progress) -> Standing {
        Standing { clusters: Some(clusters), all, held: 0 }
    }

    #[test]
    fn clusters_go_first_and_removals_last() {
        let now = Instant::now();
        let old = set([cluster("a", ""), listener("l", ""), routes("r", "")]);
        let new = set([cluster("b", ""), routes("s", "")]);
        let mut rollout = Rollout::new(old, true);
        rollout.begin(&new);
        assert_eq!(counts(&rollout), [2, 1, 1]);
        assert!(!rollout.advance(at(Progress::Sending, Progress::Sending), now) && rollout.deadline().is_none());
        assert!(!rollout.advance(at(Progress::Waiting, Progress::Waiting), now));
        assert_eq!(rollout.deadline(), Some(now + PATIENCE));
        assert!(rollout.advance(at(Progress::Settled, Progress::Settled), now) && rollout.deadline().is_none());
        assert_eq!(counts(&rollout), [2, 0, 2]);
        assert!(!rollout.advance(at(Progress::Settled, Progress::Waiting), now));
        assert!(rollout.deadline().is_some());
        assert!(!rollout.advance(at(Progress::Settled, Progress::Rejected), now + PATIENCE));
        assert_eq!(rollout.deadline(), None, "there is nothing to wake up for");
        assert!(rollout.advance(at(Progress::Settled, Progress::Waiting), now + PATIENCE) && rollout.is_removing());
        assert_eq!((counts(&rollout), rollout.deadline()), ([1, 0, 1], None));
        assert!(!rollout.advance(at(Progress::Settled, Progress::Settled), now) && !rollout.is_removing());
    }

    #[test]
    fn clusters_that_are_refused_or_never_answered_hold_nothing_for_ever() {
        let now = Instant::now();
        let mut rollout = Rollout::new(set([]), true);
        rollout.begin(&set([routes("r", "")]));
        assert!(rollout.advance(at(Progress::Rejected, Progress::Rejected), now));
        rollout.begin(&set([routes("r", ""), routes("s", "")]));
        assert!(!rollout.advance(at(Progress::Waiting, Progress::Waiting), now));
        // Another update does not begin the wait anew.
        rollout.begin(&set([routes("r", ""), routes("s", ""), routes("t", "")]));
        assert!(rollout.advance(at(Progress::Waiting, Progress::Waiting), now + PATIENCE));
        assert_eq!(counts(&rollout), [0, 0, 3]);
    }

    #[test]
    fn what_came_back_does_not_linger() {
        let (now, settled) = (Instant::now(), Progress::Settled);
        let (old, without) = (set([cluster("a", "")]), set([]));
        let mut rollout = Rollout::new(old.clone(), true);
        rollout.begin(&without);
        rollout.begin(&old);
        assert!(rollout.advance(at(settled, settled), now) && !rollout.advance(at(settled, settled), now));
        assert!(!rollout.is_removing());
        rollout.begin(&without);
        rollout.begin(&set([cluster("b", "")]));
        assert_eq!(counts(&rollout), [2, 0, 0]);
    }

    #[test]
    fn who_comes_back_is_told_of_clusters_first_and_of_removals_last() {
        let now = Instant::now();
        let mut rollout = Rollout::new(set([cluster("a", ""), listener("l", "")]), true);
        rollout.resume(now);
        let held = |clusters, all| Standing { clusters, all, held: 1 };
        assert!(rollout.holds(ResourceType::ROUTES) && !rollout.holds(ResourceType::ENDPOINTS));
        // It has not asked for clusters yet, or never will.
        assert!(!rollout.advance(held(None, Progress::Sending), now));
        assert_eq!(rollout.deadline(), Some(now + SETTLING));
        assert!(!rollout.advance(held(Some(Progress::Waiting), Progress::Sending), now));
        assert!(rollout.advance(held(Some(Progress::Settled), Progress::Sending), now));
        assert!(!rollout.holds(ResourceType::ROUTES));
        // What it asks for next may name what is gone.
        assert!(!rollout.advance(held(Some(Progress::Settled), Progress::Settled), now));
        rollout.resume(now + SETTLING / 2);
        assert!(!rollout.advance(held(Some(Progress::Settled), Progress::Settled), now + SETTLING));
        assert_eq!(rollout.deadline(), Some(now + SETTLING / 2 + SETTLING));
        let later = now + 2 * SETTLING;
        assert!(rollout.advance(held(Some(Progress::Settled), Progress::Settled), later) && rollout.is_removing());
        assert_eq!(rollout.deadline(), None);
        let mut alone = Rollout::new(set([]), false);
        alone.resume(now);
        assert!(!alone.holds(ResourceType::ROUTES) && alone.deadline().is_none());
    }

    #[test]
    fn who_comes_back_and_asks_for_no_clusters_is_held_for_a_moment_only() {
        let now = Instant::now();
        let mut rollout = Rollout::new(set([listener("l", "")]), true);
        rollout.resume(now);
        let none = Standing { clusters: None, all: Progress::Sending, held: 0 };
        assert!(!rollout.advance(none, now) && rollout.holds(ResourceType::LISTENER));
        assert!(rollout.advance(none, now + SETTLING) && !rollout.holds(ResourceType::LISTENER));
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
