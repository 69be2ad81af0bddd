//! A token bucket without locks: it remembers one moment, from which the tokens that have flowed in since are counted.
//! It must not know what a token is for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The slowest fill: a token a year, as in Envoy.
const LEAST_PER_SECOND: f64 = 1.0 / (365.0 * 24.0 * 60.0 * 60.0);

/// The fastest: faster than anybody can take them, and still a number to reckon with.
const MOST_PER_SECOND: f64 = 1e12;

/// A bucket that is full at first and fills continuously, as Envoy's.
#[derive(Debug)]
pub struct TokenBucket {
    max: f64,
    per_second: f64,
    epoch: Instant,
    /// Seconds since the epoch at which the bucket was, or would have been, empty: bits of an `f64`.
    empty_at: AtomicU64,
}

impl TokenBucket {
    /// `tokens` flow in every `interval`.
    pub fn new(max: u32, tokens: u32, interval: Duration, now: Instant) -> Self {
        Self::filling(max, f64::from(tokens) / interval.as_secs_f64(), now)
    }

    /// So many tokens flow in each second.
    pub fn filling(max: u32, per_second: f64, now: Instant) -> Self {
        // What is no number fills as slowly as can be.
        let per_second = if per_second.is_nan() { LEAST_PER_SECOND } else { per_second };
        let (max, per_second) = (f64::from(max), per_second.clamp(LEAST_PER_SECOND, MOST_PER_SECOND));
        Self { max, per_second, epoch: now, empty_at: AtomicU64::new((-max / per_second).to_bits()) }
    }

    pub fn max(&self) -> u64 {
        self.max as u64
    }

    pub fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Takes tokens if there are as many. None are never there to be taken, as in Envoy.
    pub fn take(&self, tokens: u64, now: Instant) -> bool {
        tokens > 0 && self.change(now, |there| (there >= tokens as f64).then_some(there - tokens as f64))
    }

    /// Puts tokens back, as many as fit.
    pub fn put(&self, tokens: u64, now: Instant) {
        self.change(now, |there| Some(there + (tokens as f64).min(self.max - there)));
    }

    /// Whole tokens that are there.
    pub fn remaining(&self, now: Instant) -> u64 {
        self.tokens(self.seconds(now), f64::from_bits(self.empty_at.load(Relaxed))) as u64
    }

    /// Seconds until a token can be taken, rounded up; 0 when one is there.
    pub fn seconds_to_next(&self, now: Instant) -> u64 {
        (self.to_next(now).as_millis() as u64).div_ceil(1000)
    }

    /// How long it takes until a token can be taken; nothing when one is there.
    pub fn to_next(&self, now: Instant) -> Duration {
        let there = self.tokens(self.seconds(now), f64::from_bits(self.empty_at.load(Relaxed)));
        if there >= 1.0 { Duration::ZERO } else { Duration::from_secs_f64((1.0 - there) / self.per_second) }
    }

    fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.epoch).as_secs_f64()
    }

    fn tokens(&self, now: f64, empty_at: f64) -> f64 {
        ((now - empty_at) * self.per_second).clamp(0.0, self.max)
    }

    fn change(&self, now: Instant, change: impl Fn(f64) -> Option<f64>) -> bool {
        let now = self.seconds(now);
        let update = |empty_at| {
            let there = change(self.tokens(now, f64::from_bits(empty_at)))?;
            Some((now - there / self.per_second).to_bits())
        };
        self.empty_at.fetch_update(Relaxed, Relaxed, update).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_flow_in_up_to_the_brim() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let bucket = TokenBucket::new(2, 2, Duration::from_secs(60), start);
        assert!(bucket.take(1, at(0.0)));
        assert_eq!((bucket.remaining(at(0.0)), bucket.seconds_to_next(at(0.0))), (1, 0));
        assert!(bucket.take(1, at(0.001)));
        assert_eq!((bucket.remaining(at(0.001)), bucket.seconds_to_next(at(0.001))), (0, 30));
        assert!(!bucket.take(1, at(12.0)));
        assert_eq!(bucket.seconds_to_next(at(12.0)), 18);
        assert!(bucket.take(1, at(30.1)) && !bucket.take(1, at(30.2)));
        assert_eq!(bucket.remaining(at(1000.0)), 2);
        assert!(bucket.take(2, at(1000.0)) && !bucket.take(1, at(1000.0)));
        bucket.put(9, at(1000.0));
        assert_eq!(bucket.remaining(at(1000.0)), 2);
        assert!(!bucket.take(0, at(1000.0)));
    }

    #[test]
    fn an_empty_bucket_gives_nothing() {
        let start = Instant::now();
        let bucket = TokenBucket::new(0, 1, Duration::from_secs(1), start);
        assert!(!bucket.take(1, start + Duration::from_secs(100)));
    }
}
