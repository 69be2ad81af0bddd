//! `envoy.extensions.filters.http.set_metadata.v3.Config`: sets dynamic metadata of each request.
//!
//! Acts: all fields. A route's entries act after the filter's own.

use std::sync::Arc;

use serde_json::{Map, Value};
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::http::set_metadata::v3 as pb;
use tidegate_xds::pb::google::protobuf as wkt;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::{FilterFactory, HttpFilter, HttpFilterConfig, Overrides, Request, Step, StreamContext};
use crate::context::CompileContext;
use crate::metadata::{Metadata, object};

const MESSAGE: &str = "envoy.extensions.filters.http.set_metadata.v3.Config";

stats_block! {
    struct Stats {
        counters { overwrite_denied }
        gauges {}
        histograms {}
    }
}

struct Config {
    stats: Stats,
    entries: Entries,
}

type Entries = Vec<Entry>;

struct Entry {
    namespace: String,
    value: What,
    overwrite: bool,
}

enum What {
    Struct(Map<String, Value>),
    Typed(wkt::Any),
}

struct Filter {
    config: Arc<Config>,
    of_route: Option<Arc<Entries>>,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let of_route = overrides.shared();
        let idle = self.entries.is_empty() && of_route.is_none();
        (!idle).then(|| Box::new(Filter { config: self, of_route }) as _)
    }
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, _: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let metadata = &mut stream.info.dynamic_metadata;
        for entry in self.config.entries.iter().chain(self.of_route.iter().flat_map(|entries| entries.iter())) {
            if !entry.apply(metadata) {
                self.config.stats.overwrite_denied().inc();
            }
        }
        Step::Continue
    }
}

impl Entry {
    /// Whether it might be set.
    fn apply(&self, metadata: &mut Metadata) -> bool {
        match &self.value {
            What::Typed(_) if metadata.typed(&self.namespace).is_some() && !self.overwrite => return false,
            What::Typed(value) => metadata.set_typed(&self.namespace, value.clone()),
            What::Struct(value) => match metadata.namespace(&self.namespace) {
                None => metadata.set(&self.namespace, value.clone()),
                Some(present) if self.overwrite => {
                    let mut updated = present.clone();
                    update(&mut updated, value);
                    metadata.set(&self.namespace, updated);
                }
                Some(_) => return false,
            },
        }
        true
    }
}

/// Objects are joined, lists appended to, the rest replaced (Envoy's `StructUtil::update`).
fn update(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Object(present)), Value::Object(more)) => update(present, more),
            (Some(Value::Array(present)), Value::Array(more)) => present.extend(more.iter().cloned()),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(MESSAGE)
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let entries = entries(&context.decode(config)?);
        Ok(Arc::new(Config { stats: Stats::new(&context.stats.scope("set_metadata.")), entries }))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        Ok(Arc::new(entries(&context.decode(config)?)))
    }
}

/// The deprecated single one first.
#[expect(deprecated, reason = "Envoy takes the single namespace too")]
fn entries(config: &pb::Config) -> Entries {
    let mut entries = Vec::new();
    if let Some(value) = config.value.as_ref().filter(|_| !config.metadata_namespace.is_empty()) {
        let value = What::Struct(object(value));
        entries.push(Entry { namespace: config.metadata_namespace.clone(), value, overwrite: true });
    }
    for metadata in &config.metadata {
        let entry = |value| Entry {
            namespace: metadata.metadata_namespace.clone(),
            value,
            overwrite: metadata.allow_overwrite,
        };
        entries.extend(metadata.value.as_ref().map(|value| entry(What::Struct(object(value)))));
        entries.extend(metadata.typed_value.clone().map(|value| entry(What::Typed(value))));
    }
    entries
}

const COVERAGE: &[Coverage] = &[
    Coverage { message: MESSAGE, enforced: &["metadata_namespace", "value", "metadata"], listed: &[] },
    Coverage {
        message: "envoy.extensions.filters.http.set_metadata.v3.Metadata",
        enforced: &["metadata_namespace", "allow_overwrite", "value", "typed_value"],
        listed: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::*;

    #[test]
    fn metadata_is_set_joined_or_kept() {
        let bench = Bench::new(&Factory);
        let mut filter = bench
            .filter(
                "metadata:
- {metadata_namespace: a, value: {n: 1, l: [x], o: {p: true}}}
- {metadata_namespace: a, value: {n: 2}}
- {metadata_namespace: a, allow_overwrite: true, value: {n: s, l: [z], o: {q: null}}}",
            )
            .unwrap();
        let mut stream = stream();
        now(on_request(&mut *filter, &mut get("/", &[]), &mut stream));
        let expected = serde_json::json!({"n": "s", "l": ["x", "z"], "o": {"p": true, "q": null}});
        assert_eq!(stream.info.dynamic_metadata.namespace("a"), expected.as_object());
        assert_eq!(bench.counted(), ["http.test.set_metadata.overwrite_denied: 1"]);
    }
}
