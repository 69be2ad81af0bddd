//! How often the process could accept nothing for want of descriptors or memory, and when to say so: once a second, whatever
//! number of sockets and workers meet it. It must not know sockets.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const PAUSE: Duration = Duration::from_secs(1);

/// What was not told yet.
#[derive(Debug, Default)]
pub(crate) struct Exhaustion(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    failures: u64,
    /// When something was told last.
    told: Option<Instant>,
}

impl Exhaustion {
    /// One more failure: how many to tell of, if it is time.
    pub(super) fn note(&self, now: Instant) -> Option<u64> {
        let mut untold = self.0.lock();
        untold.failures += 1;
        if untold.told.is_some_and(|told| now.saturating_duration_since(told) < PAUSE) {
            return None;
        }
        untold.told = Some(now);
        Some(std::mem::take(&mut untold.failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_of_once_a_second_with_their_number() {
        let (exhaustion, start) = (Exhaustion::default(), Instant::now());
        let after = |millis: u64| exhaustion.note(start + Duration::from_millis(millis));
        assert_eq!(after(0), Some(1));
        assert_eq!([after(50), after(50), after(999)], [None; 3]);
        assert_eq!(after(1000), Some(4));
        assert_eq!(after(1999), None);
        assert_eq!(after(9000), Some(2));
    }
}
