//! What is computed from a histogram for every form in which it is shown. It must not know these forms.

use tidegate_stats::{Bins, HistogramReading, Merged, Rules};

/// A bucket: how many values lie up to its bound, or between the bound before and its own.
pub(super) struct Bucket {
    pub(super) bound: f64,
    pub(super) interval: u64,
    pub(super) cumulative: u64,
}

/// What was flushed last, empty if nothing ever was.
pub(super) fn merged(histogram: &HistogramReading) -> Merged {
    histogram.merged.clone().unwrap_or_default()
}

/// The buckets of a histogram, each with all values up to its bound.
pub(super) fn cumulative(name: &str, merged: &Merged, rules: &Rules) -> Vec<Bucket> {
    let bucket = |bound: &f64| Bucket {
        bound: *bound,
        interval: merged.interval.count_to(*bound),
        cumulative: merged.cumulative.count_to(*bound),
    };
    rules.buckets(name).iter().map(bucket).collect()
}

/// The buckets of a histogram, each with the values since the bound before.
pub(super) fn disjoint(name: &str, merged: &Merged, rules: &Rules) -> Vec<Bucket> {
    let mut buckets = cumulative(name, merged, rules);
    for at in (1..buckets.len()).rev() {
        buckets[at].interval -= buckets[at - 1].interval;
        buckets[at].cumulative -= buckets[at - 1].cumulative;
    }
    buckets
}

/// Every quantile with its value in the last interval and since the beginning.
pub(super) fn quantiles(merged: &Merged) -> impl Iterator<Item = (f64, f64, f64)> {
    let (interval, cumulative) = (values(&merged.interval), values(&merged.cumulative));
    tidegate_stats::QUANTILES.into_iter().zip(interval.into_iter().zip(cumulative)).map(|(q, (i, c))| (q, i, c))
}

fn values(bins: &Bins) -> [f64; tidegate_stats::QUANTILES.len()] {
    bins.quantiles()
}
