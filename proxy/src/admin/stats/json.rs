//! Stats as JSON, written as it goes: a tree of a million stats would be many times its text.
//! It must not know which are asked for.

use tidegate_stats::{Bins, HistogramReading, Merged, QUANTILES, Rules, Store};

use super::super::json::push_string;
use super::super::number::json as number;
use super::histograms::{self, Bucket};
use super::{Asked, BucketsMode};

/// `{"stats": [...]}`: texts, then counters and gauges, then one object with all histograms.
pub(super) fn write(asked: &Asked, store: &Store) -> String {
    let mut out = String::from("{\"stats\":[");
    let mut list = List::default();
    for text in asked.texts(store) {
        list.next(&mut out);
        out.push_str("{\"name\":");
        push_string(&mut out, &text.name);
        out.push_str(",\"value\":");
        push_string(&mut out, &text.text);
        out.push('}');
    }
    for reading in asked.numbers(store) {
        list.next(&mut out);
        out.push_str("{\"name\":");
        push_string(&mut out, &reading.name);
        out.push_str(&format!(",\"value\":{}}}", reading.value));
    }
    let histograms = asked.histograms(store);
    if !histograms.is_empty() {
        list.next(&mut out);
        out.push_str("{\"histograms\":");
        push_histograms(&mut out, asked.buckets, &histograms, store.rules());
        out.push('}');
    }
    out.push_str("]}");
    out
}

/// Puts commas between what is listed.
#[derive(Default)]
struct List {
    begun: bool,
}

impl List {
    fn next(&mut self, out: &mut String) {
        if self.begun {
            out.push(',');
        }
        self.begun = true;
    }
}

fn push_histograms(out: &mut String, mode: BucketsMode, histograms: &[HistogramReading], rules: &Rules) {
    let supported: Vec<String> = QUANTILES.iter().map(|quantile| number(quantile * 100.0)).collect();
    let (supported, list_name) = match mode {
        BucketsMode::Cumulative | BucketsMode::Disjoint => (None, None),
        BucketsMode::Detailed => {
            (Some(format!("\"supported_percentiles\":[{}]", supported.join(","))), Some("details"))
        }
        BucketsMode::Unset | BucketsMode::Summary | BucketsMode::PrometheusNative => {
            (Some(format!("\"supported_quantiles\":[{}]", supported.join(","))), Some("computed_quantiles"))
        }
    };
    if let (Some(supported), Some(name)) = (&supported, list_name) {
        out.push_str(&format!("{{{supported},\"{name}\":"));
    }
    out.push('[');
    let mut list = List::default();
    for histogram in histograms {
        list.next(out);
        out.push_str("{\"name\":");
        push_string(out, &histogram.name);
        push_values(out, mode, histogram, rules);
        out.push('}');
    }
    out.push(']');
    if supported.is_some() {
        out.push('}');
    }
}

fn push_values(out: &mut String, mode: BucketsMode, histogram: &HistogramReading, rules: &Rules) {
    let merged = histograms::merged(histogram);
    let name = &histogram.name;
    let text = match mode {
        BucketsMode::Cumulative => format!(",\"buckets\":{}", buckets(&histograms::cumulative(name, &merged, rules))),
        BucketsMode::Disjoint => format!(",\"buckets\":{}", buckets(&histograms::disjoint(name, &merged, rules))),
        BucketsMode::Detailed => format!(
            ",\"totals\":{},\"intervals\":{},\"percentiles\":{}",
            bins(&merged.cumulative),
            bins(&merged.interval),
            quantiles(&merged)
        ),
        BucketsMode::Unset | BucketsMode::Summary | BucketsMode::PrometheusNative => {
            format!(",\"values\":{}", quantiles(&merged))
        }
    };
    out.push_str(&text);
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn quantiles(merged: &Merged) -> String {
    array(histograms::quantiles(merged).map(|(_, interval, cumulative)| {
        format!("{{\"cumulative\":{},\"interval\":{}}}", number(cumulative), number(interval))
    }))
}

fn buckets(buckets: &[Bucket]) -> String {
    array(buckets.iter().map(|Bucket { bound, interval, cumulative }| {
        format!("{{\"upper_bound\":{},\"interval\":{interval},\"cumulative\":{cumulative}}}", number(*bound))
    }))
}

fn bins(bins: &Bins) -> String {
    array(bins.iter().map(|bin| {
        let (lower, width) = (number(bin.lower), number(bin.width));
        format!("{{\"lower_bound\":{lower},\"width\":{width},\"count\":{}}}", bin.count)
    }))
}
