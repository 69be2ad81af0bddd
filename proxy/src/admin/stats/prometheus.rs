//! Stats in Prometheus' text format: tags become labels, and what is left of the name with `envoy_` before it is the
//! metric. It must not know which stats are asked for, nor the rules for tags.
//!
//! See <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::cmp::Ordering;
use std::fmt::Write;
use std::sync::Arc;

use tidegate_stats::{HistogramReading, Store, Tagged};

use super::super::number::general;
use super::{Asked, BucketsMode, histograms};

/// Enough digits for any double.
const ALL_DIGITS: usize = 32;

/// Counters, gauges, texts as gauges, histograms; each metric's lines in one group.
pub(super) fn write(asked: &Asked, store: &Store) -> String {
    let mut out = String::new();
    let tags = &store.rules().tags;
    let counters = store.counters_if(|name, used| asked.wants(name, used));
    let gauges = asked.gauges(store);
    for (kind, readings) in [("counter", counters), ("gauge", gauges)] {
        let samples =
            readings.into_iter().map(|reading| Sample::new(tags.extract(&reading.name), reading.name, reading.value));
        write_groups(&mut out, kind, samples.collect(), &mut |out, metric, sample| {
            writeln!(out, "{metric}{{{}}} {}", labels(&sample.tags), sample.value)
        });
    }
    if asked.text_readouts {
        let texts = store.text_readouts_if(|name, used| asked.wants(name, used)).into_iter();
        let samples = texts.map(|text| Sample::new(tags.extract(&text.name), text.name, text.text));
        write_groups(&mut out, "gauge", samples.collect(), &mut |out, metric, sample| {
            let value = label("text_value", &sample.value);
            writeln!(out, "{metric}{{{}}} 0", joined(&labels(&sample.tags), &value))
        });
    }
    let histograms = store.histograms_if(|name, used| asked.wants(name, used)).into_iter();
    let samples =
        histograms.map(|histogram| Sample::new(tags.extract(&histogram.name), histogram.name.clone(), histogram));
    if asked.buckets == BucketsMode::Summary {
        write_groups(&mut out, "summary", samples.collect(), &mut write_summary);
    } else {
        write_groups(&mut out, "histogram", samples.collect(), &mut |out, metric, sample| {
            write_histogram(out, metric, sample, store)
        });
    }
    out
}

/// A stat with its tags taken out of its name.
struct Sample<T> {
    whole_name: String,
    name: String,
    tags: Vec<(Arc<str>, String)>,
    value: T,
}

impl<T> Sample<T> {
    fn new(tagged: Tagged, whole_name: String, value: T) -> Self {
        Self { whole_name, name: tagged.name, tags: tagged.tags, value }
    }
}

type WriteSample<'a, T> = &'a mut dyn FnMut(&mut String, &str, &Sample<T>) -> std::fmt::Result;

fn write_groups<T>(out: &mut String, kind: &str, mut samples: Vec<Sample<T>>, write: WriteSample<'_, T>) {
    samples.sort_by(|a, b| by_parts(&a.name, &b.name).then_with(|| by_parts(&a.whole_name, &b.whole_name)));
    for group in samples.chunk_by(|a, b| a.name == b.name) {
        let metric = group.first().map(|sample| format!("envoy_{}", clean(&sample.name))).unwrap_or_default();
        out.push_str(&format!("# TYPE {metric} {kind}\n"));
        for sample in group {
            // Writing to text cannot fail.
            let _ = write(out, &metric, sample);
        }
    }
}

/// Envoy's order: part by part between dots, so that a dot comes before any other character.
fn by_parts(a: &str, b: &str) -> Ordering {
    let rank = |byte: u8| if byte == b'.' { 0 } else { byte };
    match a.bytes().zip(b.bytes()).find(|(a, b)| a != b) {
        Some((a, b)) => rank(a).cmp(&rank(b)),
        None => a.len().cmp(&b.len()),
    }
}

fn write_summary(out: &mut String, metric: &str, sample: &Sample<HistogramReading>) -> std::fmt::Result {
    let merged = histograms::merged(&sample.value);
    let labels = labels(&sample.tags);
    for (quantile, interval, _) in histograms::quantiles(&merged) {
        let quantile = label("quantile", &general(quantile, 6));
        writeln!(out, "{metric}{{{}}} {}", joined(&labels, &quantile), general(interval, ALL_DIGITS))?;
    }
    writeln!(out, "{metric}_sum{{{labels}}} {}", general(merged.interval.sum(), ALL_DIGITS))?;
    writeln!(out, "{metric}_count{{{labels}}} {}", merged.interval.count())
}

fn write_histogram(
    out: &mut String,
    metric: &str,
    sample: &Sample<HistogramReading>,
    store: &Store,
) -> std::fmt::Result {
    let merged = histograms::merged(&sample.value);
    let labels = labels(&sample.tags);
    for bucket in histograms::cumulative(&sample.whole_name, &merged, store.rules()) {
        let bound = label("le", &general(bucket.bound, ALL_DIGITS));
        writeln!(out, "{metric}_bucket{{{}}} {}", joined(&labels, &bound), bucket.cumulative)?;
    }
    let count = merged.cumulative.count();
    writeln!(out, "{metric}_bucket{{{}}} {count}", joined(&labels, "le=\"+Inf\""))?;
    writeln!(out, "{metric}_sum{{{labels}}} {}", general(merged.cumulative.sum(), ALL_DIGITS))?;
    writeln!(out, "{metric}_count{{{labels}}} {count}")
}

fn labels(tags: &[(Arc<str>, String)]) -> String {
    tags.iter().map(|(tag, value)| label(&clean(tag), value)).collect::<Vec<_>>().join(",")
}

fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
    format!("{name}=\"{value}\"")
}

fn joined(labels: &str, last: &str) -> String {
    if labels.is_empty() { last.to_owned() } else { format!("{labels},{last}") }
}

/// A name as Prometheus takes it.
fn clean(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "_")
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Fake, get};
    use tidegate_stats::{Buckets, Rules, Store, Unit};

    #[test]
    fn metrics_are_grouped_and_labelled() {
        let mut rules = Rules::default();
        rules.tags.add_fixed("fixed", "v");
        let store = Store::with_rules(rules);
        for cluster in ["b", "a|80"] {
            store.root().counter(&format!("cluster.{cluster}.upstream_rq_200")).inc();
        }
        store.root().gauge("server.live").set(1);
        assert_eq!(
            get(&Fake::with_stats(store), "/stats/prometheus").text(),
            "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",fixed=\"v\",envoy_cluster_name=\"a|80\"} 1\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",fixed=\"v\",envoy_cluster_name=\"b\"} 1\n\
             # TYPE envoy_server_live gauge\n\
             envoy_server_live{fixed=\"v\"} 1\n"
        );
    }

    #[test]
    fn histograms_are_buckets_or_quantiles() {
        let buckets = Buckets { matches: Box::new(|name| name == "server.time"), bounds: [1.0, 300_000.0].into() };
        let store = Store::with_rules(Rules { buckets: vec![buckets], ..Rules::default() });
        store.root().histogram("server.time", Unit::Milliseconds).record(26);
        store.flush_histograms();
        let state = Fake::with_stats(store);
        assert_eq!(
            get(&state, "/stats?format=prometheus").text(),
            "# TYPE envoy_server_time histogram\n\
             envoy_server_time_bucket{le=\"1\"} 0\n\
             envoy_server_time_bucket{le=\"300000\"} 1\n\
             envoy_server_time_bucket{le=\"+Inf\"} 1\n\
             envoy_server_time_sum{} 26.490566037735849391765441396274\n\
             envoy_server_time_count{} 1\n"
        );
        let summary = get(&state, "/stats/prometheus?histogram_buckets=summary").body;
        assert!(summary.starts_with("# TYPE envoy_server_time summary\nenvoy_server_time{quantile=\"0\"} 26.5\n"));
        assert!(summary.ends_with("envoy_server_time{quantile=\"1\"} 26.5\nenvoy_server_time_sum{} 26.490566037735849391765441396274\nenvoy_server_time_count{} 1\n"));
    }

    #[test]
    fn names_are_sorted_part_by_part() {
        let mut names = ["a-b.c", "a.z", "a", "a.b-c", "a.b.c"];
        names.sort_by(|a, b| super::by_parts(a, b));
        assert_eq!(names, ["a", "a.b.c", "a.b-c", "a.z", "a-b.c"]);
    }

    #[test]
    fn texts_are_shown_when_asked_for() {
        let store = Store::new();
        store.root().text_readout("control_plane.identifier").set("a\"b\\");
        let state = Fake::with_stats(store);
        assert_eq!(get(&state, "/stats/prometheus").text(), "");
        assert_eq!(
            get(&state, "/stats/prometheus?text_readouts").text(),
            "# TYPE envoy_control_plane_identifier gauge\nenvoy_control_plane_identifier{text_value=\"a\\\"b\\\\\"} 0\n"
        );
    }
}
