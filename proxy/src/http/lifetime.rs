//! How long an HTTP/1 connection may live (`max_connection_duration`), and how long it may still be used once its time is
//! over or it was idle for too long (`drain_timeout`). It must not know how it is closed.

use std::time::Instant;

use super::options::HttpConnectionManager;

/// The time of one connection.
pub(super) struct Lifetime<'a> {
    hcm: &'a HttpConnectionManager,
    end: Option<Instant>,
    over: bool,
    /// Until when it drains.
    drained: Option<Instant>,
}

/// What happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// Its time is over; told once.
    Over,
    /// It has drained.
    Drained,
}

impl<'a> Lifetime<'a> {
    pub(super) fn begin(hcm: &'a HttpConnectionManager) -> Self {
        let end = hcm.timeouts.of_connection().and_then(|most| Instant::now().checked_add(most));
        Self { hcm, end, over: false, drained: None }
    }

    /// When its time is over.
    pub(super) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// Waits until something happens to it.
    pub(super) async fn passes(&mut self) -> Passed {
        let over = self.end.filter(|_| !self.over).map(|end| (end, Passed::Over));
        let drained = self.drained.map(|drained| (drained, Passed::Drained));
        let Some((at, passed)) = over.into_iter().chain(drained).min_by_key(|(at, _)| *at) else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(at.into()).await;
        self.check();
        passed
    }

    /// Counts its end, once it has come.
    pub(super) fn check(&mut self) {
        if !self.over && self.end.is_some_and(|end| end <= Instant::now()) {
            self.over = true;
            self.hcm.stats.downstream_cx_max_duration_reached().inc();
            if self.hcm.timeouts.closes_http1_safely {
                self.hcm.stats.downstream_cx_http1_soft_drain().inc();
            } else {
                self.drain();
            }
        }
    }

    /// It ends soon, unless it does already.
    pub(super) fn drain(&mut self) {
        if self.drained.is_none() {
            self.drained = Instant::now().checked_add(self.hcm.timeouts.of_drain());
        }
    }

    /// Whether it may still be used for a while, and every response says that it closes.
    pub(super) fn drains(&self) -> bool {
        self.drained.is_some()
    }

    /// Whether it ends with the next response.
    pub(super) fn ends_safely(&self) -> bool {
        self.over && self.hcm.timeouts.closes_http1_safely
    }
}

impl Drop for Lifetime<'_> {
    fn drop(&mut self) {
        if self.over && self.hcm.timeouts.closes_http1_safely {
            self.hcm.stats.downstream_cx_http1_soft_drain().dec();
        }
    }
}
