//! The bounds of one stream that its route may change while it runs: shared by whoever routes and the stream's timer.
//! They must not know what happens when one is reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::options::HttpConnectionManager;

const NEVER: u64 = u64::MAX;

/// Idle time and whole duration of a stream, and when the try that answers it is over.
pub(crate) struct Limits {
    idle_nanos: AtomicU64,
    duration_nanos: AtomicU64,
    answer: Mutex<Option<TryLimit>>,
    version: AtomicU32,
}

/// When a try is over, unless all of its response has come by then.
#[derive(Debug, Clone)]
pub(crate) struct TryLimit {
    pub at: Instant,
    met: Arc<AtomicBool>,
}

impl TryLimit {
    pub(crate) fn new(at: Instant) -> Self {
        Self { at, met: Arc::default() }
    }

    /// All of the response has come.
    pub(crate) fn meet(&self) {
        self.met.store(true, Relaxed);
    }

    pub(crate) fn is_met(&self) -> bool {
        self.met.load(Relaxed)
    }
}

fn nanos(limit: Option<Duration>) -> u64 {
    limit.and_then(|limit| u64::try_from(limit.as_nanos()).ok()).unwrap_or(NEVER)
}

fn limit(nanos: &AtomicU64) -> Option<Duration> {
    Some(nanos.load(Relaxed)).filter(|nanos| *nanos != NEVER).map(Duration::from_nanos)
}

impl Limits {
    /// The connection manager's.
    pub(crate) fn of(hcm: &HttpConnectionManager) -> Self {
        Self::new(hcm.timeouts.stream_idle, hcm.timeouts.max_stream_duration)
    }

    fn new(idle: Option<Duration>, duration: Option<Duration>) -> Self {
        let [idle_nanos, duration_nanos] = [idle, duration].map(|limit| AtomicU64::new(nanos(limit)));
        Self { idle_nanos, duration_nanos, answer: Mutex::default(), version: AtomicU32::new(0) }
    }

    /// Sets them anew; a change counts as a new version.
    pub(crate) fn set(&self, idle: Option<Duration>, duration: Option<Duration>) {
        let changed = self.idle_nanos.swap(nanos(idle), Relaxed) != nanos(idle);
        if self.duration_nanos.swap(nanos(duration), Relaxed) != nanos(duration) || changed {
            self.version.fetch_add(1, Relaxed);
        }
    }

    /// Sets when the try that answers is over.
    pub(crate) fn set_answer(&self, limit: TryLimit) {
        *self.answer.lock() = Some(limit);
        self.version.fetch_add(1, Relaxed);
    }

    /// When the try that answers is over, unless all of its response has come.
    pub(crate) fn answer(&self) -> Option<Instant> {
        self.answer.lock().as_ref().filter(|limit| !limit.is_met()).map(|limit| limit.at)
    }

    pub(crate) fn idle(&self) -> Option<Duration> {
        limit(&self.idle_nanos)
    }

    pub(crate) fn duration(&self) -> Option<Duration> {
        limit(&self.duration_nanos)
    }

    pub(crate) fn version(&self) -> u32 {
        self.version.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_new_version() {
        let limits = Limits::new(Some(Duration::from_secs(1)), None);
        limits.set(Some(Duration::from_secs(1)), None);
        assert_eq!((limits.version(), limits.idle(), limits.duration()), (0, Some(Duration::from_secs(1)), None));
        limits.set(None, Some(Duration::ZERO));
        assert_eq!((limits.version(), limits.idle(), limits.duration()), (1, None, Some(Duration::ZERO)));
        let limit = TryLimit::new(Instant::now());
        limits.set_answer(limit.clone());
        assert_eq!((limits.version(), limits.answer()), (2, Some(limit.at)));
        limit.meet();
        assert_eq!(limits.answer(), None);
    }
}
