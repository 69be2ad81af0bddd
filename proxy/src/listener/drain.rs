//! Asking connections to leave: one signal a filter chain (or listener), which its connections look at.
//! It must not know how a protocol says goodbye.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::DrainType;

/// Shared by everyone who serves under one filter chain.
#[derive(Debug, Default)]
pub struct Drain {
    draining: AtomicBool,
    /// Milliseconds since `epoch` when draining began, and how long it lasts.
    began_millis: AtomicU64,
    lasts_millis: AtomicU64,
    immediate: AtomicBool,
    /// Not asked to leave while the health check fails (`MODIFY_ONLY`).
    modify_only: bool,
    cut: AtomicBool,
    active: AtomicUsize,
    changed: Notify,
    idle: Notify,
}

/// Counts a connection as active until dropped.
#[derive(Debug)]
pub struct ActiveGuard(Arc<Drain>);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Relaxed) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

fn millis_since_start() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Drain {
    pub fn new(kind: DrainType) -> Self {
        Self { modify_only: kind == DrainType::ModifyOnly, ..Self::default() }
    }

    /// Whether connections are asked to leave while the health check fails.
    pub fn heeds_health_check(&self) -> bool {
        !self.modify_only
    }

    /// Begins: over `lasts` connections are told to leave, ever more likely (`gradual`) or at once.
    pub fn begin(&self, lasts: Duration, immediate: bool) {
        self.began_millis.store(millis_since_start(), Relaxed);
        self.lasts_millis.store(u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.immediate.store(immediate, Relaxed);
        self.draining.store(true, Relaxed);
        self.changed.notify_waiters();
    }

    /// The time is over: connections close now, whatever they do.
    pub fn cut(&self) {
        self.cut.store(true, Relaxed);
        self.changed.notify_waiters();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub fn is_cut(&self) -> bool {
        self.cut.load(Relaxed)
    }

    /// Whether a connection that finishes a response now should close: Envoy's probability, growing with the time
    /// that passed, unless draining is immediate.
    pub fn should_close(&self, random: u64) -> bool {
        if !self.is_draining() {
            return false;
        }
        if self.immediate.load(Relaxed) {
            return true;
        }
        let lasts = self.lasts_millis.load(Relaxed);
        let passed = millis_since_start().saturating_sub(self.began_millis.load(Relaxed));
        passed >= lasts || random % lasts.max(1) < passed
    }

    pub fn enter(self: &Arc<Self>) -> ActiveGuard {
        self.active.fetch_add(1, Relaxed);
        ActiveGuard(Arc::clone(self))
    }

    pub fn active(&self) -> usize {
        self.active.load(Relaxed)
    }

    /// Waits until draining begins, goes on, or cuts.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until draining has begun.
    pub async fn begun(&self) {
        loop {
            let notified = self.changed.notified();
            if self.is_draining() {
                return;
            }
            notified.await;
        }
    }

    /// Waits until the connections' time is over.
    pub async fn until_cut(&self) {
        loop {
            let notified = self.changed.notified();
            if self.is_cut() {
                return;
            }
            notified.await;
        }
    }

    /// The same as something to keep.
    pub async fn when_cut(self: Arc<Self>) {
        self.until_cut().await;
    }

    /// Waits until no connection is active.
    pub async fn until_idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.active() == 0 {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediate_draining_closes_at_once_and_gradual_at_the_end() {
        let drain = Drain::default();
        assert!(!drain.should_close(0));
        drain.begin(Duration::from_secs(3600), true);
        assert!(drain.should_close(u64::MAX));
        drain.begin(Duration::from_secs(3600), false);
        assert!(!drain.should_close(3_599_999));
        drain.begin(Duration::ZERO, false);
        assert!(drain.should_close(7));
    }

    #[tokio::test]
    async fn the_last_connection_wakes_who_waits_for_idle() {
        let drain = Arc::new(Drain::default());
        let guard = drain.enter();
        let waiting = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.until_idle().await }
        });
        tokio::task::yield_now().await;
        drop(guard);
        waiting.await.unwrap();
    }
}
