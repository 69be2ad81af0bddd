//! How stats are read: by name, sorted, as far as the rules show them. It must not know how what it reads is shown.

use std::collections::HashMap;
use std::sync::Arc;

use crate::block::Block;
use crate::histogram::{HistogramCell, Merged, Unit};
use crate::scope::{Members, Named};
use crate::store::Store;

/// A counter or gauge as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub name: String,
    pub value: u64,
    /// Whether it was ever written.
    pub used: bool,
}

/// A histogram as it was when it was last flushed.
#[derive(Debug, Clone)]
pub struct HistogramReading {
    pub name: String,
    pub unit: Unit,
    /// `None` if nothing was recorded by then.
    pub merged: Option<Merged>,
}

/// A text as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextReading {
    pub name: String,
    pub text: String,
    /// Whether it was ever set.
    pub used: bool,
}

impl Store {
    /// Every counter, sorted by name; what two places count under one name is one counter.
    pub fn counters(&self) -> Vec<Reading> {
        self.counters_if(|_, _| true)
    }

    /// The counters that `keep` takes, by name and by whether it was ever written.
    pub fn counters_if(&self, keep: impl Fn(&str, bool) -> bool) -> Vec<Reading> {
        self.readings(Kind::Counter, keep)
    }

    /// Every gauge, sorted by name.
    pub fn gauges(&self) -> Vec<Reading> {
        self.gauges_if(|_, _| true)
    }

    /// The gauges that `keep` takes, by name and by whether it was ever written.
    pub fn gauges_if(&self, keep: impl Fn(&str, bool) -> bool) -> Vec<Reading> {
        self.readings(Kind::Gauge, keep)
    }

    /// The hidden gauges that `keep` takes: of each group of stats that is deferred, whether something of it was written.
    pub fn hidden_gauges_if(&self, keep: impl Fn(&str, bool) -> bool) -> Vec<Reading> {
        let mut readings = Vec::new();
        let mut name = String::new();
        for members in self.scopes() {
            for block in &members.lists.lock().blocks {
                let Some(group) = block.deferred else { continue };
                let used = block.is_written();
                let name = members.name(&format!("{group}.initialized"), &mut name);
                if self.rules().shows(name) && keep(name, used) {
                    readings.push(Reading { name: name.to_owned(), value: used.into(), used });
                }
            }
        }
        readings.sort_by(|a, b| a.name.cmp(&b.name));
        readings
    }

    /// The histograms that `keep` takes, by name and by whether anything was flushed; sorted by name.
    pub fn histograms_if(&self, keep: impl Fn(&str, bool) -> bool) -> Vec<HistogramReading> {
        let mut readings: Vec<HistogramReading> = Vec::new();
        let mut take = |name: &str, unit, cell: Option<&HistogramCell>| {
            let merged = cell.and_then(HistogramCell::merged);
            if self.rules().shows(name) && keep(name, merged.is_some()) {
                readings.push(HistogramReading { name: name.to_owned(), unit, merged });
            }
        };
        let mut name = String::new();
        for members in self.scopes() {
            let lists = members.lists.lock();
            for block in lists.blocks.iter().filter(|block| block.is_shown()) {
                for (index, (own, unit)) in block.layout.histograms.iter().enumerate() {
                    take(members.name(own, &mut name), *unit, block.histogram_cell(index));
                }
            }
            for (own, block) in lists.named().into_iter().flat_map(|named| &named.histograms) {
                take(members.name(own, &mut name), block.layout.histograms[0].1, block.histogram_cell(0));
            }
        }
        readings.sort_by(|a, b| a.name.cmp(&b.name));
        readings.dedup_by(|next, kept| {
            let same = next.name == kept.name;
            if same {
                kept.merged = Merged::both(kept.merged.take(), next.merged.take());
            }
            same
        });
        readings
    }

    /// The texts that `keep` takes, by name and by whether it was ever set; sorted by name.
    pub fn text_readouts_if(&self, keep: impl Fn(&str, bool) -> bool) -> Vec<TextReading> {
        let mut texts = Vec::new();
        let mut name = String::new();
        for members in self.scopes() {
            let lists = members.lists.lock();
            for (own, readout) in &lists.texts {
                let name = members.name(own, &mut name);
                let text = readout.0.lock().clone();
                if self.rules().shows(name) && keep(name, text.is_some()) {
                    texts.push(TextReading {
                        name: name.to_owned(),
                        used: text.is_some(),
                        text: text.map(String::from).unwrap_or_default(),
                    });
                }
            }
        }
        texts.sort_by(|a, b| a.name.cmp(&b.name));
        texts
    }

    fn readings(&self, kind: Kind, keep: impl Fn(&str, bool) -> bool) -> Vec<Reading> {
        let mut readings: Vec<Reading> = Vec::new();
        let mut name = String::new();
        let mut take = |name: &str, (value, used): (u64, bool)| {
            if self.rules().shows(name) && keep(name, used) {
                readings.push(Reading { name: name.to_owned(), value, used });
            }
        };
        for members in self.scopes() {
            let lists = members.lists.lock();
            for block in lists.blocks.iter().filter(|block| block.is_shown()) {
                for (index, own) in kind.names(block).iter().enumerate() {
                    let (value, used) = kind.read(block, index);
                    let used = used || block.layout.zeros.contains(own);
                    take(members.name(own, &mut name), (value, used));
                }
            }
            for (own, block) in lists.named().into_iter().flat_map(|named| kind.named(named)) {
                take(members.name(own, &mut name), kind.read(block, 0));
            }
        }
        readings.sort_by(|a, b| a.name.cmp(&b.name));
        readings.dedup_by(|next, kept| {
            let same = next.name == kept.name;
            if same {
                kept.value = kept.value.wrapping_add(next.value);
                kept.used |= next.used;
            }
            same
        });
        readings
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    fn names(self, block: &Block) -> &'static [&'static str] {
        match self {
            Self::Counter => block.layout.counters,
            Self::Gauge => block.layout.gauges,
        }
    }

    fn named(self, named: &Named) -> &HashMap<Box<str>, Arc<Block>> {
        match self {
            Self::Counter => &named.counters,
            Self::Gauge => &named.gauges,
        }
    }

    fn read(self, block: &Block, index: usize) -> (u64, bool) {
        match self {
            Self::Counter => block.read_counter(index),
            Self::Gauge => block.read_gauge(index),
        }
    }
}

impl Members {
    /// Writes a stat's whole name.
    fn name<'a>(&self, own: &str, into: &'a mut String) -> &'a str {
        into.clear();
        into.push_str(&self.prefix);
        into.push_str(own);
        into
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rules, stats_block};

    stats_block! {
        struct Sample {
            counters { rq_total, rq_error }
            gauges { cx_active }
            histograms { rq_time: Milliseconds }
        }
    }

    stats_block! {
        struct Zeros {
            counters { seen }
            gauges { state, version }
            histograms {}
            zeros { seen, state }
        }
    }

    fn counters(store: &Store) -> Vec<(String, u64)> {
        store.counters().into_iter().map(|c| (c.name, c.value)).collect()
    }

    #[test]
    fn a_name_is_one_counter_wherever_it_is_asked_for() {
        let store = Store::new();
        let scope = store.root().scope("cluster.a:80.");
        scope.counter("upstream_rq_503").inc();
        store.root().scope("cluster.a:80").counter("upstream_rq_503").add(2);
        assert_eq!(counters(&store), [("cluster.a_80.upstream_rq_503".into(), 3)]);
    }

    #[test]
    fn a_block_and_a_named_counter_of_the_same_name_read_as_one() {
        let store = Store::new();
        let scope = store.root().scope("x.");
        let sample = Sample::new(&scope);
        sample.rq_total().inc();
        scope.counter("rq_total").inc();
        assert_eq!(counters(&store), [("x.rq_error".into(), 0), ("x.rq_total".into(), 2)]);
    }

    #[test]
    fn a_gauge_is_used_once_written_whatever_its_value() {
        let store = Store::new();
        let scope = store.root();
        let sample = Sample::new(&scope);
        assert!(!store.gauges()[0].used);
        sample.cx_active().inc();
        sample.cx_active().dec();
        scope.gauge("live").set(0);
        scope.gauge("set").set(7);
        scope.gauge("set").set(9);
        let gauges: Vec<_> = store.gauges().into_iter().map(|g| (g.name, g.value, g.used)).collect();
        assert_eq!(gauges, [("cx_active".into(), 0, true), ("live".into(), 0, true), ("set".into(), 9, true)]);
    }

    #[test]
    fn what_is_0_from_the_start_is_used() {
        let store = Store::new();
        let zeros = Zeros::new(&store.root());
        let used = |store: &Store| -> Vec<_> {
            let all = [store.counters(), store.gauges()].concat();
            all.into_iter().filter(|reading| reading.used).map(|reading| (reading.name, reading.value)).collect()
        };
        assert_eq!(used(&store), [("seen".into(), 0), ("state".into(), 0)]);
        zeros.state().set(2);
        assert_eq!(used(&store), [("seen".into(), 0), ("state".into(), 2)]);
    }

    #[test]
    fn a_text_is_read_as_it_was_set() {
        let store = Store::new();
        let scope = store.root().scope("control_plane.");
        let identifier = scope.text_readout("identifier");
        assert_eq!(
            store.text_readouts_if(|_, _| true),
            [TextReading { name: "control_plane.identifier".into(), text: String::new(), used: false }]
        );
        identifier.set("istiod-1");
        assert_eq!(store.text_readouts_if(|_, _| true)[0].text, "istiod-1");
    }

    #[test]
    fn deferred_stats_come_with_the_first_that_is_written() {
        let store = Store::with_rules(Rules { defers: true, ..Rules::default() });
        let scope = store.root().scope("x.");
        let (sample, _other) = (Sample::deferrable(&scope, &"Sample"), Sample::new(&store.root().scope("y.")));
        assert_eq!(counters(&store), [("y.rq_error".into(), 0), ("y.rq_total".into(), 0)]);
        assert_eq!((store.gauges().len(), store.histograms_if(|_, _| true).len()), (1, 1));
        let hidden = |store: &Store| store.hidden_gauges_if(|_, _| true);
        assert_eq!(hidden(&store), [Reading { name: "x.Sample.initialized".into(), value: 0, used: false }]);
        sample.cx_active().inc();
        assert_eq!(hidden(&store), [Reading { name: "x.Sample.initialized".into(), value: 1, used: true }]);
        assert_eq!(counters(&store)[0], ("x.rq_error".into(), 0));
        assert_eq!((store.gauges().len(), store.histograms_if(|_, _| true).len()), (2, 2));
        let at_once = Store::new();
        let _sample = Sample::deferrable(&at_once.root(), &"Sample");
        assert_eq!(hidden(&at_once), []);
        assert_eq!(at_once.counters().len(), 2);
    }

    #[test]
    fn histograms_of_one_name_read_as_one() {
        let store = Store::new();
        let scope = store.root().scope("x.");
        let sample = Sample::new(&scope);
        let read = |store: &Store| -> Vec<_> {
            let readings = store.histograms_if(|_, _| true).into_iter();
            readings.map(|h| (h.name, h.merged.map(|merged| merged.cumulative.count()))).collect()
        };
        sample.rq_time().record(1);
        scope.histogram("rq_time", Unit::Milliseconds).record(2);
        assert_eq!(read(&store), [("x.rq_time".into(), None)]);
        store.flush_histograms();
        assert_eq!(read(&store), [("x.rq_time".into(), Some(2))]);
    }
}
