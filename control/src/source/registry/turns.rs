//! Who may ask a registry when. Of the queries that a registry may hold back there are only so many at once, since each takes a
//! connection (Consul lets a client have 200); services for which none is left are asked for in turn, and not held back. It must
//! not know what is asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many queries may be held back at once.
const WAITING: usize = 100;

/// How many others may be under way at once.
const SHORT: usize = 20;

/// How many services that no query waits for are asked for in one [`PAUSE`].
const IN_TURN: usize = 100;

/// How often such a service is asked for at most.
const PAUSE: Duration = Duration::from_secs(1);

/// The turns of one registry.
#[derive(Debug)]
pub(super) struct Turns {
    waiting: Semaphore,
    may_wait: usize,
    short: Semaphore,
    followed: AtomicUsize,
    pause: Duration,
}

/// Leave to ask once.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    /// Whether the registry may hold the query back.
    pub(super) waits: bool,
    /// Nobody closes a semaphore: there always is one.
    _permit: Option<SemaphorePermit<'a>>,
}

/// One service more that is followed, for as long as this is there.
#[derive(Debug)]
pub(super) struct Followed<'a>(&'a Turns);

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        self.0.followed.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(WAITING, SHORT, PAUSE)
    }
}

impl Turns {
    pub(super) fn new(waiting: usize, short: usize, pause: Duration) -> Self {
        let followed = AtomicUsize::new(0);
        Self { waiting: Semaphore::new(waiting), may_wait: waiting, short: Semaphore::new(short), followed, pause }
    }

    /// Counts a service in.
    pub(super) fn follow(&self) -> Followed<'_> {
        self.followed.fetch_add(1, Ordering::Relaxed);
        Followed(self)
    }

    /// A turn to ask without waiting for what is new; in the order in which they were asked for.
    pub(super) async fn short(&self) -> Turn<'_> {
        Turn { waits: false, _permit: self.short.acquire().await.ok() }
    }

    /// A turn to wait for what is new, or, while all are taken, a short one.
    pub(super) async fn any(&self) -> Turn<'_> {
        match self.waiting.try_acquire() {
            Ok(permit) => Turn { waits: true, _permit: Some(permit) },
            Err(_) => self.short().await,
        }
    }

    /// How long a service that no query waits for is left alone: the more there are, the longer.
    pub(super) fn rotation(&self) -> Duration {
        let in_turn = self.followed.load(Ordering::Relaxed).saturating_sub(self.may_wait);
        self.pause * u32::try_from(in_turn.div_ceil(IN_TURN)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_are_short_once_all_are_waited_in() {
        let turns = Turns::new(1, 1, PAUSE);
        let first = turns.any().await;
        assert!(first.waits && !turns.any().await.waits);
        drop(first);
        assert!(turns.any().await.waits);
    }

    #[test]
    fn the_rotation_takes_as_long_as_there_are_services() {
        let turns = Turns::default();
        let follow = |count: usize| (0..count).map(|_| turns.follow()).collect::<Vec<_>>();
        let first = follow(WAITING);
        assert_eq!(turns.rotation(), Duration::ZERO);
        let one = turns.follow();
        assert_eq!(turns.rotation(), PAUSE);
        let many = follow(9 * IN_TURN);
        assert_eq!(turns.rotation(), 10 * PAUSE);
        drop((first, one, many));
        assert_eq!(turns.rotation(), Duration::ZERO);
    }
}
