//! Handles on single stats and the sharding behind them: who is a worker, and which shard is whose.
//! It must not know how a stat is named.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::{Block, HistogramCell};

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Shards that a block has: one shared, and one a worker.
static SHARDS: AtomicUsize = AtomicUsize::new(1);

/// Says how many data workers there will be. Called once, before any of them runs.
pub fn reserve_workers(workers: usize) {
    SHARDS.store(workers + 1, Relaxed);
}

/// Makes this thread the only owner of a worker's shard; `worker` counts from 0. A worker that was not reserved shares.
pub fn enter_worker(worker: usize) {
    SHARD.with(|shard| shard.set(worker + 1));
}

pub(crate) fn shards() -> usize {
    SHARDS.load(Relaxed)
}

#[inline]
pub(crate) fn shard() -> usize {
    SHARD.with(Cell::get)
}

/// Adds to a cell of the given shard. Only its owner writes a worker's shard, so no locked instruction is needed there.
#[inline]
pub(crate) fn add(cell: &AtomicU64, owned: bool, amount: u64) {
    if owned {
        cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
    } else {
        cell.fetch_add(amount, Relaxed);
    }
}

/// A counter of a block.
#[derive(Clone, Copy)]
pub struct Counter<'a> {
    pub(crate) block: &'a Block,
    pub(crate) index: usize,
}

impl Counter<'_> {
    #[inline]
    pub fn inc(self) {
        self.add(1);
    }

    #[inline]
    pub fn add(self, amount: u64) {
        self.block.add_to_counter(self.index, amount);
    }

    pub fn value(self) -> u64 {
        self.block.read_counter(self.index).0
    }
}

/// A gauge of a block. It is either set or counted up and down, never both.
#[derive(Clone, Copy)]
pub struct Gauge<'a> {
    pub(crate) block: &'a Block,
    pub(crate) index: usize,
}

impl Gauge<'_> {
    #[inline]
    pub fn inc(self) {
        self.add(1);
    }

    #[inline]
    pub fn dec(self) {
        self.add(-1);
    }

    #[inline]
    pub fn add(self, amount: i64) {
        self.block.add_to_gauge(self.index, amount);
    }

    /// Sets the value, from any thread.
    pub fn set(self, value: u64) {
        self.block.set_gauge(self.index, value);
    }

    pub fn value(self) -> u64 {
        self.block.read_gauge(self.index).0
    }
}

/// A histogram of a block.
#[derive(Clone, Copy)]
pub struct Histogram<'a> {
    pub(crate) cell: &'a HistogramCell,
}

impl Histogram<'_> {
    /// Records a value in the histogram's unit.
    #[inline]
    pub fn record(self, value: u64) {
        self.cell.record(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Store, stats_block};

    stats_block! {
        struct Sample {
            counters { rq_total }
            gauges { rq_active }
            histograms { rq_time: Milliseconds }
        }
    }

    /// Workers write plainly, other threads beside them, and a reader merges meanwhile: nothing may get lost.
    #[test]
    fn every_thread_is_counted() {
        const WORKERS: usize = 4;
        const ROUNDS: u64 = 20_000;
        reserve_workers(WORKERS - 1);
        let store = Store::new();
        let sample = Sample::new(&store.root());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2 * WORKERS)
                .map(|thread| {
                    let sample = sample.clone();
                    scope.spawn(move || {
                        // The last worker was not reserved: it shares.
                        if thread < WORKERS {
                            enter_worker(thread);
                        }
                        for round in 0..ROUNDS {
                            sample.rq_total().inc();
                            sample.rq_active().inc();
                            sample.rq_time().record(round);
                            sample.rq_active().dec();
                        }
                    })
                })
                .collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                store.flush_histograms();
                assert!(sample.rq_total().value() <= 2 * WORKERS as u64 * ROUNDS);
            }
        });
        let total = sample.rq_total().value();
        store.reset_counters();
        store.flush_histograms();
        assert_eq!(total, 2 * WORKERS as u64 * ROUNDS);
        assert_eq!((sample.rq_total().value(), sample.rq_active().value()), (0, 0));
        let times = store.histograms_if(|name, _| name == "rq_time").remove(0).merged.unwrap();
        assert_eq!(times.cumulative.count(), total);
    }
}
