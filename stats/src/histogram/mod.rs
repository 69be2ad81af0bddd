//! One histogram: values fall into log-linear buckets of two significant digits, 90 a decade, as libcircllhist's do.
//! A worker writes its own shard without locked instructions; all others, who record seldom, share a list of the bins that hold
//! something. Both are merged at a flush. It must not know its name.

mod bins;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub use bins::{Bin, Bins, DEFAULT_BUCKETS, QUANTILES};

use crate::cell;
use bins::{BINS_A_DECADE, DECADES, bin_index};

/// What a histogram's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Unspecified,
    Bytes,
    Microseconds,
    Milliseconds,
    /// Values are recorded in millionths: 1,000,000 reads as 1.
    Percent,
}

impl Unit {
    pub(crate) const ALL: [Self; 5] =
        [Self::Unspecified, Self::Bytes, Self::Microseconds, Self::Milliseconds, Self::Percent];

    /// What one recorded unit reads as.
    pub(crate) fn scale(self) -> f64 {
        if self == Self::Percent { 1e-6 } else { 1.0 }
    }
}

/// A histogram's storage.
pub struct HistogramCell {
    unit: Unit,
    /// What threads that are no workers have recorded, by bin.
    shared: Mutex<Vec<(u16, u64)>>,
    /// One a worker.
    shards: OnceLock<Box<[OnceLock<Box<Shard>>]>>,
    merged: Mutex<Option<Box<Merged>>>,
}

/// What was recorded when it was last flushed.
#[derive(Debug, Clone, Default)]
pub struct Merged {
    /// Since the flush before.
    pub interval: Arc<Bins>,
    /// Since the beginning.
    pub cumulative: Arc<Bins>,
}

impl Merged {
    /// Two histograms of one name read as one.
    pub(crate) fn both(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(Self {
                interval: Arc::new(one.interval.merge(&other.interval)),
                cumulative: Arc::new(one.cumulative.merge(&other.cumulative)),
            }),
            (one, other) => one.or(other),
        }
    }
}

type Decade = [AtomicU64; BINS_A_DECADE];

struct Shard {
    zeros: AtomicU64,
    decades: [OnceLock<Box<Decade>>; DECADES],
}

impl HistogramCell {
    pub(crate) fn new(unit: Unit) -> Self {
        Self { unit, shared: Mutex::default(), shards: OnceLock::new(), merged: Mutex::new(None) }
    }

    /// Records a value in the histogram's unit.
    #[inline]
    pub fn record(&self, value: u64) {
        let own = cell::shard().checked_sub(1).and_then(|worker| self.shards().get(worker));
        match own {
            Some(own) => own.get_or_init(Box::default).record(value),
            None => self.record_shared(value),
        }
    }

    #[inline]
    fn shards(&self) -> &[OnceLock<Box<Shard>>] {
        self.shards.get_or_init(|| (1..cell::shards()).map(|_| OnceLock::new()).collect())
    }

    #[cold]
    fn record_shared(&self, value: u64) {
        let bin = place(value);
        let mut counts = self.shared.lock();
        match counts.binary_search_by_key(&bin, |(bin, _)| *bin) {
            Ok(known) => counts[known].1 += 1,
            Err(at) => {
                counts.reserve_exact(1);
                counts.insert(at, (bin, 1));
            }
        }
    }

    /// Brings together what was recorded. What is never recorded to costs nothing, what is idle next to nothing.
    pub(crate) fn flush(&self) {
        let mut merged = self.merged.lock();
        let count = self.count();
        if count == merged.as_ref().map_or(0, |merged| merged.cumulative.count()) {
            if let Some(merged) = merged.as_mut().filter(|merged| !merged.interval.is_empty()) {
                merged.interval = Bins::none(self.unit);
            }
            return;
        }
        let shared = Bins::from_counts(self.unit, self.shared.lock().clone());
        let cumulative = match self.shards.get() {
            Some(shards) => shared.merge(&Bins::from_counts(self.unit, sums(shards))),
            None => shared,
        };
        let before = merged.get_or_insert_default();
        let interval = cumulative.since(&before.cumulative);
        **before = Merged { interval: Arc::new(interval), cumulative: Arc::new(cumulative) };
    }

    /// How many values were recorded.
    fn count(&self) -> u64 {
        let shared: u64 = self.shared.lock().iter().map(|(_, count)| count).sum();
        let shards = self.shards.get().into_iter().flatten().filter_map(OnceLock::get);
        shared + shards.map(|shard| shard.count()).sum::<u64>()
    }

    /// What the last flush saw; `None` if nothing was recorded by then.
    pub(crate) fn merged(&self) -> Option<Merged> {
        self.merged.lock().as_deref().cloned().filter(|merged| !merged.cumulative.is_empty())
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self { zeros: AtomicU64::new(0), decades: [const { OnceLock::new() }; DECADES] }
    }
}

impl Shard {
    fn count(&self) -> u64 {
        let rows = self.decades.iter().filter_map(OnceLock::get);
        let counts = rows.flat_map(|row| row.iter()).map(|count| count.load(Relaxed));
        self.zeros.load(Relaxed) + counts.sum::<u64>()
    }

    #[inline]
    fn record(&self, value: u64) {
        let Some(index) = bin_index(value) else { return cell::add(&self.zeros, true, 1) };
        let (decade, bin) = (index / BINS_A_DECADE, index % BINS_A_DECADE);
        let counts = self.decades[decade].get_or_init(|| Box::new([const { AtomicU64::new(0) }; BINS_A_DECADE]));
        cell::add(&counts[bin], true, 1);
    }
}

/// The bin of a value: 0 for zeros, else 1 + [`bin_index`].
fn place(value: u64) -> u16 {
    bin_index(value).map_or(0, |index| 1 + index as u16)
}

/// What all shards have in each bin that holds something: zeros first, then decade by decade.
fn sums(shards: &[OnceLock<Box<Shard>>]) -> Vec<(u16, u64)> {
    let recorded = || shards.iter().filter_map(OnceLock::get);
    let mut sums = vec![(0, recorded().map(|shard| shard.zeros.load(Relaxed)).sum())];
    for decade in 0..DECADES {
        let rows = || recorded().filter_map(|shard| shard.decades[decade].get());
        if rows().next().is_some() {
            let sum = |bin: usize| rows().map(|row| row[bin].load(Relaxed)).sum();
            sums.extend((0..BINS_A_DECADE).map(|bin| ((1 + decade * BINS_A_DECADE + bin) as u16, sum(bin))));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(values: &[u64]) -> HistogramCell {
        let cell = HistogramCell::new(Unit::Milliseconds);
        values.iter().for_each(|value| cell.record(*value));
        cell
    }

    #[test]
    fn nothing_is_seen_before_a_flush() {
        let cell = recorded(&[7]);
        assert!(cell.merged().is_none());
        cell.flush();
        assert_eq!(cell.merged().map(|merged| merged.cumulative.count()), Some(1));
    }

    #[test]
    fn an_interval_holds_what_came_since_the_flush_before() {
        let cell = recorded(&[5, 0]);
        cell.flush();
        cell.record(5);
        cell.record(123_456);
        cell.flush();
        let merged = cell.merged().unwrap();
        assert_eq!((merged.interval.count(), merged.cumulative.count()), (2, 4));
        cell.flush();
        let merged = cell.merged().unwrap();
        assert_eq!((merged.interval.count(), merged.cumulative.count()), (0, 4));
        assert!(merged.interval.quantiles()[0].is_nan());
    }

    #[test]
    fn an_idle_histogram_is_not_merged_anew() {
        let cell = recorded(&[5, 7]);
        cell.flush();
        let before = cell.merged().unwrap();
        cell.flush();
        let after = cell.merged().unwrap();
        assert!(Arc::ptr_eq(&before.cumulative, &after.cumulative));
        assert!(!before.interval.is_empty() && after.interval.is_empty());
    }

    #[test]
    fn every_value_has_its_bin() {
        let cell = recorded(&[0, 1, 9, 10, 99, 100, u64::MAX]);
        cell.flush();
        let bins: Vec<_> = cell.merged().unwrap().cumulative.iter().map(|bin| (bin.lower, bin.width)).collect();
        let largest = (1.8e19, 1e18);
        assert_eq!(bins, [(0.0, 0.0), (1.0, 0.1), (9.0, 0.1), (10.0, 1.0), (99.0, 1.0), (100.0, 10.0), largest]);
    }
}
