//! Stats whose names are known only at run time, e.g. `upstream_rq_503`: owned handles, cheap to clone.
//! Each is a block of one, so that its storage is sharded and lazy like any other.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::block::Layout;
use crate::histogram::Unit;
use crate::scope::BlockHandle;

pub(crate) static COUNTER: Layout = Layout { counters: &[""], gauges: &[], histograms: &[], zeros: &[] };
pub(crate) static GAUGE: Layout = Layout { counters: &[], gauges: &[""], histograms: &[], zeros: &[] };

pub(crate) fn histogram_layout(unit: Unit) -> &'static Layout {
    static UNSPECIFIED: Layout = of_unit(Unit::Unspecified);
    static BYTES: Layout = of_unit(Unit::Bytes);
    static MICROSECONDS: Layout = of_unit(Unit::Microseconds);
    static MILLISECONDS: Layout = of_unit(Unit::Milliseconds);
    static PERCENT: Layout = of_unit(Unit::Percent);
    match unit {
        Unit::Unspecified => &UNSPECIFIED,
        Unit::Bytes => &BYTES,
        Unit::Microseconds => &MICROSECONDS,
        Unit::Milliseconds => &MILLISECONDS,
        Unit::Percent => &PERCENT,
    }
}

const fn of_unit(unit: Unit) -> Layout {
    let histograms: &'static [(&'static str, Unit)] = match unit {
        Unit::Unspecified => &[("", Unit::Unspecified)],
        Unit::Bytes => &[("", Unit::Bytes)],
        Unit::Microseconds => &[("", Unit::Microseconds)],
        Unit::Milliseconds => &[("", Unit::Milliseconds)],
        Unit::Percent => &[("", Unit::Percent)],
    };
    Layout { counters: &[], gauges: &[], histograms, zeros: &[] }
}

/// A counter that owns its place: `scope.counter("upstream_rq_503")`.
#[derive(Clone)]
pub struct OwnedCounter(pub(crate) BlockHandle);

impl OwnedCounter {
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.counter(0).add(amount);
    }

    pub fn value(&self) -> u64 {
        self.0.counter(0).value()
    }
}

/// A gauge that owns its place. It is either set or counted up and down, never both.
#[derive(Clone)]
pub struct OwnedGauge(pub(crate) BlockHandle);

impl OwnedGauge {
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    #[inline]
    pub fn add(&self, amount: i64) {
        self.0.gauge(0).add(amount);
    }

    pub fn set(&self, value: u64) {
        self.0.gauge(0).set(value);
    }

    pub fn value(&self) -> u64 {
        self.0.gauge(0).value()
    }
}

/// A histogram that owns its place.
#[derive(Clone)]
pub struct OwnedHistogram(pub(crate) BlockHandle);

impl OwnedHistogram {
    /// Records a value in the histogram's unit.
    #[inline]
    pub fn record(&self, value: u64) {
        self.0.histogram(0).record(value);
    }
}

/// A text that stands among the stats, e.g. `control_plane.identifier`.
#[derive(Clone, Default)]
pub struct TextReadout(pub(crate) Arc<Mutex<Option<Box<str>>>>);

impl TextReadout {
    pub fn set(&self, text: &str) {
        *self.0.lock() = Some(text.into());
    }

    pub fn value(&self) -> String {
        self.0.lock().as_deref().unwrap_or_default().to_owned()
    }
}
