//! `/stats` and `/stats/prometheus`: which stats are asked for, and in which form. It must not know what is counted.

mod histograms;
mod html;
mod json;
mod prometheus;
mod text;

use http::StatusCode;
use regex::Regex;
use tidegate_stats::{HistogramReading, Reading, Store, TextReading};

use super::Call;
use super::query::Query;
use super::reply::Reply;

pub(super) fn show(call: &Call<'_>) -> Reply {
    match Asked::parse(&call.query) {
        Ok(asked) => asked.answer(call),
        Err(reply) => reply,
    }
}

pub(super) fn show_prometheus(call: &Call<'_>) -> Reply {
    match Asked::parse(&call.query) {
        Ok(asked) => Asked { format: Format::Prometheus, ..asked }.answer(call),
        Err(reply) => reply,
    }
}

/// What a request wants to see.
struct Asked {
    format: Format,
    buckets: BucketsMode,
    kinds: Kinds,
    used_only: bool,
    hidden: Hidden,
    filter: Option<Regex>,
    invert_filter: bool,
    text_readouts: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
    Prometheus,
    /// A page; an active one looks again by itself.
    Html {
        active: bool,
    },
}

/// `hidden`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hidden {
    Include,
    Only,
    Exclude,
}

/// `histogram_buckets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BucketsMode {
    Unset,
    Cumulative,
    Disjoint,
    Detailed,
    Summary,
    PrometheusNative,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kinds {
    All,
    Counters,
    Gauges,
    Histograms,
    TextReadouts,
}

impl Asked {
    fn parse(query: &Query) -> Result<Self, Reply> {
        let bad = |reason: &str| Err(Reply::bad_request(reason));
        let filter = match query.filled("filter").map(|text| (text, Regex::new(text))) {
            None => None,
            Some((_, Ok(regex))) => Some(regex),
            Some((text, Err(error))) => {
                return bad(&format!("Invalid re2 regex: {}", re2_error(&error, text)));
            }
        };
        let buckets = match query.filled("histogram_buckets") {
            None => BucketsMode::Unset,
            Some("cumulative") => BucketsMode::Cumulative,
            Some("disjoint") => BucketsMode::Disjoint,
            Some("detailed") => BucketsMode::Detailed,
            Some("none" | "summary") => BucketsMode::Summary,
            Some("prometheusnative") => BucketsMode::PrometheusNative,
            Some(_) => {
                let modes = "cumulative|disjoint|detailed|summary|prometheusnative";
                return bad(&format!("usage: /stats?histogram_buckets=({modes})\n"));
            }
        };
        let kinds = match query.filled("type") {
            None | Some("All") => Kinds::All,
            Some("Counters") => Kinds::Counters,
            Some("Gauges") => Kinds::Gauges,
            Some("Histograms") => Kinds::Histograms,
            Some("TextReadouts") => Kinds::TextReadouts,
            Some(_) => return bad("invalid &type= param"),
        };
        let hidden = match query.filled("hidden") {
            None | Some("exclude") => Hidden::Exclude,
            Some("include") => Hidden::Include,
            Some("only") => Hidden::Only,
            Some(_) => return bad("usage: /stats?hidden=(include|only|exclude)\n\n"),
        };
        let format = match query.filled("format") {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some("prometheus") => Format::Prometheus,
            Some("html") => Format::Html { active: false },
            Some("active-html") => Format::Html { active: true },
            Some(_) => return bad("usage: /stats?format=(html|active-html|json|prometheus|text)\n\n"),
        };
        Ok(Self {
            format,
            buckets,
            kinds,
            used_only: query.has("usedonly"),
            hidden,
            filter,
            invert_filter: query.has("invert_filter"),
            text_readouts: query.has("text_readouts"),
        })
    }

    fn answer(self, call: &Call<'_>) -> Reply {
        call.state.before_stats();
        let store = call.state.stats();
        let native = self.buckets == BucketsMode::PrometheusNative;
        match self.format {
            Format::Text | Format::Json | Format::Html { .. } if native => {
                Reply::bad_request("Invalid histogram_buckets type for non prometheus stats type")
            }
            Format::Text => Reply::ok(text::write(&self, store)),
            Format::Html { active } => Reply::html(html::write(&self, active, store)),
            Format::Json => Reply::json_text(json::write(&self, store)),
            Format::Prometheus if native => {
                let reason = "unsupported prometheusnative histogram type when not using protobuf exposition format";
                Reply::error(StatusCode::BAD_REQUEST, reason)
            }
            Format::Prometheus if matches!(self.buckets, BucketsMode::Disjoint | BucketsMode::Detailed) => {
                Reply::bad_request("unsupported prometheus histogram bucket mode")
            }
            Format::Prometheus => Reply::ok(prometheus::write(&self, store)),
        }
    }

    fn wants(&self, name: &str, used: bool) -> bool {
        self.hidden != Hidden::Only && self.picks(name, used)
    }

    /// Whether a stat is asked for, hidden or not.
    fn picks(&self, name: &str, used: bool) -> bool {
        (used || !self.used_only)
            && self.filter.as_ref().is_none_or(|filter| filter.is_match(name) != self.invert_filter)
    }

    fn has(&self, kind: Kinds) -> bool {
        self.kinds == Kinds::All || self.kinds == kind
    }

    /// Counters and gauges together, by name.
    fn numbers(&self, store: &Store) -> Vec<Reading> {
        let mut numbers = Vec::new();
        if self.has(Kinds::Counters) {
            numbers = store.counters_if(|name, used| self.wants(name, used));
        }
        if self.has(Kinds::Gauges) {
            numbers.extend(self.gauges(store));
            numbers.sort_by(|a, b| a.name.cmp(&b.name));
        }
        numbers
    }

    fn gauges(&self, store: &Store) -> Vec<Reading> {
        let mut gauges = store.gauges_if(|name, used| self.wants(name, used));
        if self.hidden != Hidden::Exclude {
            gauges.extend(store.hidden_gauges_if(|name, used| self.picks(name, used)));
            gauges.sort_by(|a, b| a.name.cmp(&b.name));
        }
        gauges
    }

    fn texts(&self, store: &Store) -> Vec<TextReading> {
        if !self.has(Kinds::TextReadouts) {
            return Vec::new();
        }
        store.text_readouts_if(|name, used| self.wants(name, used))
    }

    fn histograms(&self, store: &Store) -> Vec<HistogramReading> {
        if !self.has(Kinds::Histograms) {
            return Vec::new();
        }
        store.histograms_if(|name, used| self.wants(name, used))
    }
}

/// What is wrong with an expression, in RE2's words where there are such.
pub(super) fn re2_error(error: &regex::Error, expression: &str) -> String {
    // The last line of the explanation says what it is; those before it draw a picture.
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    let reason = match reason {
        "unclosed group" => "missing )",
        "unopened group" => "unexpected )",
        "unclosed character class" => "missing ]",
        "repetition operator missing expression" => "no argument for repetition operator",
        "unrecognized escape sequence" => "invalid escape sequence",
        "incomplete escape sequence, reached end of pattern prematurely" => return "trailing \\".to_owned(),
        other => other,
    };
    format!("{reason}: {expression}")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get};
    use tidegate_stats::{Store, Unit};

    fn state() -> Fake {
        let store = Store::new();
        let root = store.root();
        root.counter("cluster.web.upstream_rq_total").add(3);
        root.counter("cluster.web.upstream_rq_error");
        root.gauge("cluster.web.upstream_cx_active").inc();
        let times = root.histogram("cluster.web.upstream_rq_time", Unit::Milliseconds);
        root.histogram("cluster.web.upstream_cx_length_ms", Unit::Milliseconds);
        root.text_readout("cluster.web.version_text").set("v \"1\"");
        [0, 2, 2].iter().for_each(|time| times.record(*time));
        store.flush_histograms();
        Fake::with_stats(store)
    }

    #[test]
    fn stats_are_listed_as_text() {
        assert_eq!(
            get(&state(), "/stats").text(),
            "cluster.web.version_text: \"v \"1\"\"\n\
             cluster.web.upstream_cx_active: 1\n\
             cluster.web.upstream_rq_error: 0\n\
             cluster.web.upstream_rq_total: 3\n\
             cluster.web.upstream_cx_length_ms: No recorded values\n\
             cluster.web.upstream_rq_time: P0(0,0) P25(0,0) P50(2.033333333333333,2.033333333333333) \
             P75(2.066666666666667,2.066666666666667) P90(2.066666666666667,2.066666666666667) \
             P95(2.066666666666667,2.066666666666667) P99(2.066666666666667,2.066666666666667) \
             P99.5(2.066666666666667,2.066666666666667) P99.9(2.066666666666667,2.066666666666667) \
             P100(2.066666666666667,2.066666666666667)\n"
        );
    }

    #[test]
    fn only_what_is_asked_for_is_listed() {
        let state = state();
        let lines = |query: &str| get(&state, &format!("/stats?{query}")).body.lines().count();
        assert_eq!(lines("usedonly"), 4);
        assert_eq!(lines("filter=upstream_rq"), 3);
        assert_eq!(lines("filter=upstream_rq&invert_filter"), 3);
        assert_eq!(lines("type=Counters"), 2);
        assert_eq!(lines("type=Gauges&filter=nothing"), 0);
        assert_eq!(lines("type=TextReadouts"), 1);
        assert_eq!(get(&state, "/stats?type=Gauges").text(), "cluster.web.upstream_cx_active: 1\n");
    }

    #[test]
    fn histograms_have_several_forms() {
        let state = state();
        let text = |mode: &str| get(&state, &format!("/stats?filter=rq_time&histogram_buckets={mode}")).body;
        assert!(text("cumulative").starts_with("cluster.web.upstream_rq_time: B0.5(1,1) B1(1,1) B5(3,3) B10(3,3)"));
        assert!(text("cumulative").ends_with(" B1.8e+06(3,3) B3.6e+06(3,3)\n"));
        assert!(text("disjoint").starts_with("cluster.web.upstream_rq_time: B0.5(1,1) B1(0,0) B5(2,2) B10(0,0)"));
        let detailed =
            "cluster.web.upstream_rq_time:\n  totals=0,0:1, 2,0.1:2\n  intervals=0,0:1, 2,0.1:2\n  summary=P0(0,0)";
        assert!(text("detailed").starts_with(detailed));
        assert_eq!(text("summary"), get(&state, "/stats?filter=rq_time").body);
    }

    #[test]
    fn stats_are_listed_as_json() {
        let reply = get(&state(), "/stats?format=json");
        assert_eq!(reply.content_type, "application/json");
        let stats = &reply.parsed()["stats"];
        assert_eq!(stats[0], serde_json::json!({"name": "cluster.web.version_text", "value": "v \"1\""}));
        assert_eq!(stats[3], serde_json::json!({"name": "cluster.web.upstream_rq_total", "value": 3}));
        let histograms = &stats[4]["histograms"];
        assert_eq!(histograms["supported_quantiles"], serde_json::json!([0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100]));
        let computed = &histograms["computed_quantiles"];
        assert_eq!(computed[0]["values"][0], serde_json::json!({"cumulative": null, "interval": null}));
        assert_eq!(computed[1]["name"], "cluster.web.upstream_rq_time");
        assert_eq!(computed[1]["values"][0], serde_json::json!({"cumulative": 0, "interval": 0}));
        assert_eq!(get(&state(), "/stats?format=json&filter=nothing").text(), "{\"stats\":[]}");
    }

    #[test]
    fn json_histograms_have_several_forms() {
        let state = state();
        let histograms = |mode: &str| {
            let path = format!("/stats?format=json&filter=rq_time&histogram_buckets={mode}");
            get(&state, &path).parsed()["stats"][0]["histograms"].take()
        };
        let third = serde_json::json!({"upper_bound": 5, "interval": 3, "cumulative": 3});
        assert_eq!(histograms("cumulative")[0]["buckets"][2], third);
        assert_eq!(histograms("disjoint")[0]["buckets"][2]["interval"], 2);
        let detailed = histograms("detailed");
        assert_eq!(detailed["supported_percentiles"][9], 100);
        let total = serde_json::json!({"lower_bound": 2, "width": 0.1, "count": 2});
        assert_eq!(detailed["details"][0]["totals"][1], total);
        assert_eq!(detailed["details"][0]["percentiles"][0]["interval"], 0);
        let raw = get(&state, "/stats?format=json&filter=rq_time&histogram_buckets=cumulative");
        assert!(raw.text().contains("{\"upper_bound\":3e+05,\"interval\":3,\"cumulative\":3}"));
    }

    #[test]
    fn mistakes_are_told() {
        for (query, text) in [
            ("format=foo", "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n"),
            ("type=counters", "invalid &type= param"),
            ("filter=(", "Invalid re2 regex: missing ): ("),
            ("filter=[", "Invalid re2 regex: missing ]: ["),
            ("hidden=nope", "usage: /stats?hidden=(include|only|exclude)\n\n"),
            (
                "histogram_buckets=foo",
                "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary|prometheusnative)\n",
            ),
            ("histogram_buckets=prometheusnative", "Invalid histogram_buckets type for non prometheus stats type"),
            ("format=prometheus&histogram_buckets=detailed", "unsupported prometheus histogram bucket mode"),
        ] {
            let reply = get(&state(), &format!("/stats?{query}"));
            assert_eq!((reply.status.as_u16(), reply.text()), (400, text));
        }
    }
}
