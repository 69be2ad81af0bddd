//! How long to wait before the next try: exponential, with full jitter, as Envoy's `JitteredExponentialBackOffStrategy`.
//! It must not know what is tried; randomness is handed in.

use std::time::Duration;

/// The waits between tries.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// `base` bounds the first wait, `max` every one.
    pub fn new(base: Duration, max: Duration) -> Self {
        let base = base.max(Duration::from_millis(1));
        Self { base, max: max.max(base), next: base }
    }

    /// The next wait: a random part of a bound that doubles. `random` is any number.
    pub fn next(&mut self, random: u64) -> Duration {
        let bound = u64::try_from(self.next.as_millis()).unwrap_or(u64::MAX).max(1);
        self.next = self.next.saturating_mul(2).min(self.max);
        Duration::from_millis(random % bound)
    }

    /// It worked: the next wait is a first one.
    pub fn reset(&mut self) {
        self.next = self.base;
    }
}

impl Default for Backoff {
    /// 500 ms to 30 s, Envoy's for xDS.
    fn default() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_greatest() {
        let mut backoff = Backoff::default();
        let bounds: Vec<u128> = (0..8).map(|_| backoff.next(u64::MAX - 1).as_millis()).collect();
        for (wait, bound) in bounds.iter().zip([500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]) {
            assert!(*wait < bound, "{wait} {bound}");
        }
        backoff.reset();
        assert_eq!(backoff.next(499), Duration::from_millis(499));
        assert_eq!(backoff.next(500), Duration::from_millis(500));
    }

    #[test]
    fn no_setting_makes_it_spin() {
        let mut backoff = Backoff::new(Duration::ZERO, Duration::ZERO);
        assert_eq!(backoff.next(7), Duration::ZERO);
        assert_eq!(backoff.next(7), Duration::ZERO);
    }
}
