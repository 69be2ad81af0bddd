//! How often a stream may ask (`rate_limit_settings`). It must not know what is asked.

use std::time::{Duration, Instant};

use tidegate_filters::context::RequestRate;
use tidegate_filters::token_bucket::TokenBucket;

use crate::stats::control_plane::ControlPlaneStats;

/// Lets requests pass, and counts those that wait.
pub(super) struct Gate {
    /// None: as often as it likes.
    bucket: Option<TokenBucket>,
    /// It is shut until then, with so many requests before it.
    shut: Option<(Instant, usize)>,
}

impl Gate {
    pub(super) fn new(rate: Option<RequestRate>, now: Instant) -> Self {
        Self { bucket: rate.map(|rate| TokenBucket::filling(rate.burst, rate.per_second, now)), shut: None }
    }

    /// Whether there is something to try: not while it is known to be shut, unless somebody else has come.
    pub(super) fn is_worth_trying(&mut self, waiting: usize, now: Instant) -> bool {
        if waiting == 0 {
            self.shut = None;
        }
        waiting > 0 && self.shut.is_none_or(|(until, before)| now >= until || waiting != before)
    }

    /// Whether one request may pass.
    pub(super) fn lets_pass(&mut self, waiting: usize, now: Instant, stats: &ControlPlaneStats) -> bool {
        let Some(bucket) = &self.bucket else { return true };
        if bucket.take(1, now) {
            return true;
        }
        stats.rate_limited();
        let next = bucket.to_next(now).max(Duration::from_millis(1));
        self.shut = now.checked_add(next).map(|until| (until, waiting));
        false
    }

    /// So many still wait after a try.
    pub(super) fn leaves(&mut self, waiting: usize, stats: &ControlPlaneStats) {
        if waiting == 0 {
            self.shut = None;
        }
        stats.pending(waiting);
    }

    /// When a request that waits may pass.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        self.shut.map(|(until, _)| until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_tried_when_there_is_a_token_or_when_more_waits() {
        let store = tidegate_stats::Store::new();
        let (stats, now) = (ControlPlaneStats::at(&store.root()), Instant::now());
        let mut gate = Gate::new(Some(RequestRate { burst: 1, per_second: 2.0 }), now);
        assert!(gate.is_worth_trying(2, now) && gate.lets_pass(2, now, &stats) && !gate.lets_pass(1, now, &stats));
        gate.leaves(1, &stats);
        assert_eq!((stats.enforced(), stats.waiting()), (1, 1));
        assert!(!gate.is_worth_trying(1, now) && gate.is_worth_trying(2, now));
        let then = gate.opens_at().unwrap();
        assert_eq!(then, now + Duration::from_millis(500));
        assert!(gate.is_worth_trying(1, then) && gate.lets_pass(1, then, &stats));
        gate.leaves(0, &stats);
        assert_eq!((stats.enforced(), stats.waiting(), gate.opens_at()), (1, 0, None));
        assert!(Gate::new(None, now).lets_pass(9, now, &stats));
    }
}
