//! Make before break: what is gone from the newest set is served on until all that is new was accepted, then it goes, in the
//! opposite order. It must not know a dialect.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::resource_set::{Kind, ResourceSet, ResourceType};

/// How long the answer to an addition is waited for before removals follow: Envoy answers for clusters once they are warm, for
/// which it gives their endpoints this long (`initial_fetch_timeout`).
const PATIENCE: Duration = Duration::from_secs(15);

/// More than this does not linger, whatever is rejected.
const MOST_LINGERING: usize = 10_000;

/// What a stream has still to do before removals may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Something has to be sent.
    Sending,
    /// All is sent, not all is answered.
    Waiting,
    /// Something was rejected: what it was to replace may name what is gone.
    Rejected,
    Settled,
}

/// What one stream serves.
#[derive(Debug)]
pub(super) struct Rollout {
    newest: Arc<ResourceSet>,
    /// The newest set, and what lingers.
    served: Arc<ResourceSet>,
    lingering: usize,
    /// A stream of one type has no others to wait for.
    aggregated: bool,
    removing: bool,
    waiting_since: Option<Instant>,
}

impl Rollout {
    pub(super) fn new(set: Arc<ResourceSet>, aggregated: bool) -> Self {
        Self { served: set.clone(), newest: set, lingering: 0, aggregated, removing: false, waiting_since: None }
    }

    pub(super) fn served(&self, kind: ResourceType) -> &Kind {
        self.served.kind(kind)
    }

    /// Whether removals are on their way: they go in the opposite order.
    pub(super) fn is_removing(&self) -> bool {
        self.removing
    }

    /// There is a newer set. Listeners do not linger, since nothing names them.
    pub(super) fn begin(&mut self, newest: &Arc<ResourceSet>) {
        let mut served = ResourceSet::clone(newest);
        let mut lingering = 0;
        if self.aggregated {
            for kind in ResourceType::all().filter(|kind| *kind != ResourceType::LISTENER) {
                let before = self.served.kind(kind);
                let gone = before.changes(newest.kind(kind)).filter(|(_, resource)| resource.is_none());
                for resource in gone.filter_map(|(name, _)| before.get(name)) {
                    served.insert(resource.clone());
                    lingering += 1;
                }
            }
        }
        self.newest = newest.clone();
        self.served = if lingering == 0 { newest.clone() } else { Arc::new(served) };
        self.lingering = lingering;
        (self.removing, self.waiting_since) = (false, None);
    }

    /// Whether what lingers goes now, as far as the stream has come.
    pub(super) fn ends(&mut self, progress: Progress, now: Instant) -> bool {
        if self.removing && progress != Progress::Sending {
            self.removing = false;
        }
        if self.lingering == 0 || progress == Progress::Sending {
            return false;
        }
        let since = *self.waiting_since.get_or_insert(now);
        let ends = match progress {
            Progress::Sending => false,
            Progress::Waiting => now >= since + PATIENCE,
            Progress::Rejected => self.lingering > MOST_LINGERING,
            Progress::Settled => true,
        };
        if ends {
            self.served = self.newest.clone();
            (self.lingering, self.removing, self.waiting_since) = (0, true, None);
        }
        ends
    }

    /// When answers have been waited for long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting_since.filter(|_| self.lingering > 0).map(|since| since + PATIENCE)
    }
}

/// The types of a stream in the order in which they are served.
pub(super) fn order(count: usize, removing: bool) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| if removing { count - 1 - place } else { place })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::{cluster, listener, set};

    #[test]
    fn what_is_gone_lingers_until_all_is_accepted() {
        let now = Instant::now();
        let old = set([cluster("a", ""), listener("l", "")]);
        let new = set([cluster("b", "")]);
        let mut rollout = Rollout::new(old, true);
        rollout.begin(&new);
        assert_eq!(rollout.served(ResourceType::CLUSTER).len(), 2);
        assert_eq!(rollout.served(ResourceType::LISTENER).len(), 0);
        assert!(!rollout.ends(Progress::Sending, now) && rollout.deadline().is_none());
        assert!(!rollout.ends(Progress::Waiting, now));
        assert_eq!(rollout.deadline(), Some(now + PATIENCE));
        assert!(!rollout.ends(Progress::Rejected, now + PATIENCE));
        assert!(rollout.ends(Progress::Waiting, now + PATIENCE) && rollout.is_removing());
        assert_eq!((rollout.served(ResourceType::CLUSTER).len(), rollout.deadline()), (1, None));
        assert!(!rollout.ends(Progress::Settled, now) && !rollout.is_removing());
    }

    #[test]
    fn what_came_back_does_not_linger() {
        let (old, without) = (set([cluster("a", "")]), set([]));
        let mut rollout = Rollout::new(old.clone(), true);
        rollout.begin(&without);
        rollout.begin(&old);
        assert!(!rollout.ends(Progress::Settled, Instant::now()));
        rollout.begin(&without);
        rollout.begin(&set([cluster("b", "")]));
        assert_eq!(rollout.served(ResourceType::CLUSTER).len(), 2);
    }

    #[test]
    fn a_stream_of_one_type_waits_for_nothing() {
        let mut rollout = Rollout::new(set([cluster("a", "")]), false);
        rollout.begin(&set([]));
        assert!(rollout.served(ResourceType::CLUSTER).is_empty());
    }

    #[test]
    fn removals_go_in_the_opposite_order() {
        assert_eq!(order(3, false).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(order(3, true).collect::<Vec<_>>(), [2, 1, 0]);
    }
}
