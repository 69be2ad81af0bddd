//! Counters, gauges and histograms under Envoy's names. A worker writes only its own shard, without locked instructions;
//! readers sum. What is never touched costs no storage, yet keeps its name. It must not know who counts what.

mod block;
mod cell;
mod histogram;
mod lookups;
mod named;
mod read;
mod rules;
mod scope;
mod store;
mod tags;

pub use block::{Block, Layout};
pub use cell::{Counter, Gauge, Histogram, enter_worker, reserve_workers};
pub use histogram::{Bin, Bins, DEFAULT_BUCKETS, HistogramCell, Merged, QUANTILES, Unit};
pub use lookups::Lookups;
pub use named::{OwnedCounter, OwnedGauge, OwnedHistogram, TextReadout};
pub use read::{HistogramReading, Reading, TextReading};
pub use rules::{Buckets, NameMatcher, Rules, Shown};
pub use scope::{BlockHandle, Scope, sanitize};
pub use store::Store;
pub use tags::{TagFinder, TagRules, Tagged};

/// Declares a group of stats that live under one scope. Each becomes a method that gives its handle:
/// `stats.upstream_rq_total().inc()`. Those that are named again as `zeros` read as used, with 0, from the start.
#[macro_export]
macro_rules! stats_block {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        counters { $($counter:ident),* $(,)? }
        gauges { $($gauge:ident),* $(,)? }
        histograms { $($histogram:ident : $unit:ident),* $(,)? }
        $(zeros { $($zero:ident),* $(,)? })?
    }) => {
        $(#[$meta])*
        #[derive(Clone)]
        $vis struct $name($crate::BlockHandle);

        #[allow(dead_code, reason = "a block declares every name that Envoy shows")]
        impl $name {
            const LAYOUT: &'static $crate::Layout = {
                static LAYOUT: $crate::Layout = $crate::Layout {
                    counters: &[$(stringify!($counter)),*],
                    gauges: &[$(stringify!($gauge)),*],
                    histograms: &[$((stringify!($histogram), $crate::Unit::$unit)),*],
                    zeros: &[$($(stringify!($zero)),*)?],
                };
                &LAYOUT
            };

            $vis fn new(scope: &$crate::Scope) -> Self {
                Self(scope.block(Self::LAYOUT))
            }

            /// The same; where stats are deferred they are not there before the first of them is written. Whether that
            /// is so is a hidden gauge, `<name>.initialized`.
            $vis fn deferrable(scope: &$crate::Scope, name: &'static &'static str) -> Self {
                Self(scope.deferrable_block(Self::LAYOUT, name))
            }

            /// Whether this worker (from 0) has counted anything here.
            $vis fn is_counted_by(&self, worker: usize) -> bool {
                self.0.is_counted_by(worker)
            }

            $crate::stats_block!(@methods $vis counter Counter 0usize; $($counter)*);
            $crate::stats_block!(@methods $vis gauge Gauge 0usize; $($gauge)*);
            $crate::stats_block!(@methods $vis histogram Histogram 0usize; $($histogram)*);
        }
    };
    (@methods $vis:vis $kind:ident $handle:ident $index:expr; ) => {};
    (@methods $vis:vis $kind:ident $handle:ident $index:expr; $first:ident $($rest:ident)*) => {
        #[inline]
        $vis fn $first(&self) -> $crate::$handle<'_> {
            self.0.$kind($index)
        }
        $crate::stats_block!(@methods $vis $kind $handle $index + 1usize; $($rest)*);
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    stats_block! {
        struct Sample {
            counters { rq_total, rq_error }
            gauges { cx_active }
            histograms { rq_time: Milliseconds }
        }
    }

    #[test]
    fn what_is_counted_is_read_under_its_name() {
        let store = Store::new();
        let sample = Sample::new(&store.root().scope("cluster.a."));
        sample.rq_error().add(2);
        sample.cx_active().inc();
        sample.cx_active().dec();
        sample.rq_time().record(7);
        let counters: Vec<_> = store.counters().into_iter().map(|c| (c.name, c.value)).collect();
        assert_eq!(counters, [("cluster.a.rq_error".into(), 2), ("cluster.a.rq_total".into(), 0)]);
    }
}
