//! A group of stats under one scope: its names are static and shared, its storage appears at the first touch.
//! It must not know the prefix it stands under.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::cell::{self, Counter, Gauge, Histogram};
use crate::histogram::{HistogramCell, Unit};

/// The names of a block, without its scope's prefix.
#[derive(Debug)]
pub struct Layout {
    pub counters: &'static [&'static str],
    pub gauges: &'static [&'static str],
    pub histograms: &'static [(&'static str, Unit)],
    /// Those of them that Envoy writes a 0 to at once: they read as used from the start, and cost nothing for it.
    pub zeros: &'static [&'static str],
}

impl Layout {
    /// A row holds the counters, then two cells a gauge: what was added and what was taken away.
    fn row_len(&self) -> usize {
        self.counters.len() + 2 * self.gauges.len()
    }

    fn gauge_cell(&self, gauge: usize) -> usize {
        self.counters.len() + 2 * gauge
    }
}

/// One shard's numbers, allocated by the thread that first writes them, so that workers do not share cache lines.
type Row = Box<[AtomicU64]>;

/// Storage of a layout.
pub struct Block {
    pub(crate) layout: &'static Layout,
    /// Its names are not there before something is written; it is called so.
    pub(crate) deferred: Option<&'static &'static str>,
    storage: OnceLock<Box<Storage>>,
}

struct Storage {
    /// Of all who are no workers.
    shared: OnceLock<Row>,
    /// One a worker; most of what the control thread counts is counted by no worker.
    workers: OnceLock<Box<[OnceLock<Row>]>>,
    /// The counters' sums when they were last reset.
    base: OnceLock<Box<Row>>,
    histograms: Box<[HistogramCell]>,
}

impl Block {
    pub(crate) fn new(layout: &'static Layout) -> Self {
        Self { layout, deferred: None, storage: OnceLock::new() }
    }

    pub(crate) fn deferred(layout: &'static Layout, name: &'static &'static str) -> Self {
        Self { deferred: Some(name), ..Self::new(layout) }
    }

    /// Whether readers see its names.
    pub(crate) fn is_shown(&self) -> bool {
        self.deferred.is_none() || self.is_written()
    }

    pub(crate) fn is_written(&self) -> bool {
        self.storage.get().is_some()
    }

    /// Whether this worker (from 0) has counted anything here.
    pub fn is_counted_by(&self, worker: usize) -> bool {
        self.storage.get().and_then(|storage| storage.workers.get()?.get(worker)?.get()).is_some()
    }

    /// A block that no store lists: counts that are shown elsewhere.
    pub fn detached(layout: &'static Layout) -> Self {
        Self::new(layout)
    }

    #[inline]
    pub fn counter(&self, index: usize) -> Counter<'_> {
        Counter { block: self, index }
    }

    #[inline]
    pub fn gauge(&self, index: usize) -> Gauge<'_> {
        Gauge { block: self, index }
    }

    #[inline]
    pub fn histogram(&self, index: usize) -> Histogram<'_> {
        Histogram { cell: &self.storage().histograms[index] }
    }

    /// The histogram's cell, if anything was written to this block.
    pub(crate) fn histogram_cell(&self, index: usize) -> Option<&HistogramCell> {
        self.storage.get().map(|storage| &storage.histograms[index])
    }

    /// Brings together what was recorded in this block's histograms.
    pub(crate) fn flush_histograms(&self) {
        self.storage.get().into_iter().flat_map(|storage| &storage.histograms).for_each(HistogramCell::flush);
    }

    #[inline]
    pub(crate) fn add_to_counter(&self, counter: usize, amount: u64) {
        self.add(counter, amount);
    }

    /// Adds when `amount` is positive, else takes away.
    #[inline]
    pub(crate) fn add_to_gauge(&self, gauge: usize, amount: i64) {
        let cell = self.layout.gauge_cell(gauge) + usize::from(amount < 0);
        self.add(cell, amount.unsigned_abs());
    }

    /// Sets a gauge that is never counted. The cell of what was taken away says that it was written.
    pub(crate) fn set_gauge(&self, gauge: usize, value: u64) {
        let row = row(&self.storage().shared, self.layout);
        let cell = self.layout.gauge_cell(gauge);
        row[cell].store(value.wrapping_add(1), Relaxed);
        row[cell + 1].store(1, Relaxed);
    }

    /// A counter's value since the last reset, and whether it was ever written.
    pub(crate) fn read_counter(&self, counter: usize) -> (u64, bool) {
        let sum = self.sum(counter);
        (sum.wrapping_sub(self.base(counter)), sum != 0)
    }

    /// A gauge's value, and whether it was ever written.
    pub(crate) fn read_gauge(&self, gauge: usize) -> (u64, bool) {
        let cell = self.layout.gauge_cell(gauge);
        let (added, taken) = (self.sum(cell), self.sum(cell + 1));
        (added.wrapping_sub(taken), added | taken != 0)
    }

    /// Makes every counter read 0. What is counted meanwhile is not lost: the writers' cells stay as they are.
    pub(crate) fn reset_counters(&self) {
        let Some(storage) = self.storage.get() else { return };
        let base = storage.base.get_or_init(|| Box::new(new_row(self.layout)));
        for (counter, base) in base.iter().enumerate().take(self.layout.counters.len()) {
            base.store(self.sum(counter), Relaxed);
        }
    }

    #[inline]
    fn storage(&self) -> &Storage {
        self.storage.get_or_init(|| Box::new(Storage::new(self.layout)))
    }

    #[inline]
    fn add(&self, index: usize, amount: u64) {
        let storage = self.storage();
        match cell::shard().checked_sub(1).and_then(|worker| storage.workers().get(worker)) {
            Some(owned) => cell::add(&row(owned, self.layout)[index], true, amount),
            None => cell::add(&row(&storage.shared, self.layout)[index], false, amount),
        }
    }

    fn sum(&self, index: usize) -> u64 {
        let Some(storage) = self.storage.get() else { return 0 };
        let workers = storage.workers.get().into_iter().flatten();
        let rows = workers.chain([&storage.shared]).filter_map(OnceLock::get);
        rows.fold(0, |sum, row| sum.wrapping_add(row[index].load(Relaxed)))
    }

    fn base(&self, counter: usize) -> u64 {
        self.storage.get().and_then(|storage| storage.base.get()).map_or(0, |base| base[counter].load(Relaxed))
    }
}

impl Storage {
    #[cold]
    fn new(layout: &Layout) -> Self {
        Self {
            shared: OnceLock::new(),
            workers: OnceLock::new(),
            base: OnceLock::new(),
            histograms: layout.histograms.iter().map(|(_, unit)| HistogramCell::new(*unit)).collect(),
        }
    }

    #[inline]
    fn workers(&self) -> &[OnceLock<Row>] {
        self.workers.get_or_init(|| (1..cell::shards()).map(|_| OnceLock::new()).collect())
    }
}

fn new_row(layout: &Layout) -> Row {
    (0..layout.row_len()).map(|_| AtomicU64::new(0)).collect()
}

#[inline]
fn row<'a>(row: &'a OnceLock<Row>, layout: &Layout) -> &'a [AtomicU64] {
    row.get_or_init(|| new_row(layout))
}
