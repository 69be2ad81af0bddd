//! Stats as lines. It must not know which are asked for.

use std::fmt::Write;

use tidegate_stats::{Bins, HistogramReading, Merged, Rules, Store};

use super::super::number::{display, general};
use super::histograms::{self, Bucket};
use super::{Asked, BucketsMode};

/// Texts, then counters and gauges, then histograms.
pub(super) fn write(asked: &Asked, store: &Store) -> String {
    let mut out = String::new();
    // Writing to text cannot fail.
    let _ = write_to(&mut out, asked, store);
    out
}

fn write_to(out: &mut String, asked: &Asked, store: &Store) -> std::fmt::Result {
    for text in asked.texts(store) {
        writeln!(out, "{}: \"{}\"", text.name, text.text)?;
    }
    for number in asked.numbers(store) {
        writeln!(out, "{}: {}", number.name, number.value)?;
    }
    asked
        .histograms(store)
        .iter()
        .try_for_each(|histogram| write_histogram(out, asked.buckets, histogram, store.rules()))
}

fn write_histogram(
    out: &mut String,
    mode: BucketsMode,
    histogram: &HistogramReading,
    rules: &Rules,
) -> std::fmt::Result {
    let name = &histogram.name;
    let Some(merged) = &histogram.merged else { return writeln!(out, "{name}: No recorded values") };
    match mode {
        BucketsMode::Cumulative => writeln!(out, "{name}: {}", buckets(&histograms::cumulative(name, merged, rules))),
        BucketsMode::Disjoint => writeln!(out, "{name}: {}", buckets(&histograms::disjoint(name, merged, rules))),
        BucketsMode::Detailed => {
            let (totals, intervals) = (bins(&merged.cumulative), bins(&merged.interval));
            writeln!(out, "{name}:\n  totals={totals}\n  intervals={intervals}\n  summary={}", summary(merged))
        }
        BucketsMode::Unset | BucketsMode::Summary | BucketsMode::PrometheusNative => {
            writeln!(out, "{name}: {}", summary(merged))
        }
    }
}

fn summary(merged: &Merged) -> String {
    let quantile = |(quantile, interval, cumulative): (f64, f64, f64)| {
        format!("P{}({},{})", general(quantile * 100.0, 6), display(interval), display(cumulative))
    };
    histograms::quantiles(merged).map(quantile).collect::<Vec<_>>().join(" ")
}

fn buckets(buckets: &[Bucket]) -> String {
    let bucket = |bucket: &Bucket| format!("B{}({},{})", general(bucket.bound, 6), bucket.interval, bucket.cumulative);
    buckets.iter().map(bucket).collect::<Vec<_>>().join(" ")
}

fn bins(bins: &Bins) -> String {
    let bin = |bin: tidegate_stats::Bin| format!("{},{}:{}", general(bin.lower, 15), general(bin.width, 15), bin.count);
    bins.iter().map(bin).collect::<Vec<_>>().join(", ")
}
