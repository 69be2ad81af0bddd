//! `envoy.extensions.filters.http.set_metadata.v3.Config`: sets dynamic metadata of each request.
//!
//! Acts: all fields but `typed_value`, which is refused.

use std::sync::Arc;

use serde_json::{Map, Value};
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::http::set_metadata::v3 as pb;
use tidegate_xds::pb::google::protobuf as wkt;
use tidegate_xds::{Coverage, FieldError};

use super::{FilterFactory, HttpFilter, HttpFilterConfig, Overrides, Request, Step, StreamContext};
use crate::context::CompileContext;

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
    entries: Vec<Entry>,
}

struct Entry {
    namespace: String,
    value: Map<String, Value>,
    overwrite: bool,
}

struct Filter(Arc<Config>);

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, _: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        (!self.entries.is_empty()).then(|| Box::new(Filter(self)) as _)
    }
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, _: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let metadata = &mut stream.info.dynamic_metadata;
        for entry in &self.0.entries {
            match metadata.namespace(&entry.namespace) {
                None => metadata.set(&entry.namespace, entry.value.clone()),
                Some(present) if entry.overwrite => {
                    let mut updated = present.clone();
                    update(&mut updated, &entry.value);
                    metadata.set(&entry.namespace, updated);
                }
                Some(_) => self.0.stats.overwrite_denied().inc(),
            }
        }
        Step::Continue
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

    #[expect(deprecated, reason = "Envoy takes the single namespace too")]
    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let config: pb::Config = context.decode(config)?;
        let single = config.value.as_ref().filter(|_| !config.metadata_namespace.is_empty());
        let single = single.map(|value| Entry {
            namespace: config.metadata_namespace.clone(),
            value: object(value),
            overwrite: true,
        });
        let entries = config.metadata.iter().map(|metadata| Entry {
            namespace: metadata.metadata_namespace.clone(),
            value: metadata.value.as_ref().map(object).unwrap_or_default(),
            overwrite: metadata.allow_overwrite,
        });
        let entries = single.into_iter().chain(entries).collect();
        Ok(Arc::new(Config { stats: Stats::new(&context.stats.scope("set_metadata.")), entries }))
    }
}

const COVERAGE: &[Coverage] = &[
    Coverage { message: MESSAGE, enforced: &["metadata_namespace", "value", "metadata"], listed: &[] },
    Coverage {
        message: "envoy.extensions.filters.http.set_metadata.v3.Metadata",
        enforced: &["metadata_namespace", "allow_overwrite", "value"],
        listed: &[],
    },
];

fn object(structure: &wkt::Struct) -> Map<String, Value> {
    let mut fields: Vec<_> = structure.fields.iter().map(|(key, value)| (key.clone(), json(value))).collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields.into_iter().collect()
}

fn json(value: &wkt::Value) -> Value {
    use wkt::value::Kind;
    match &value.kind {
        Some(Kind::NumberValue(number)) => Value::from(*number),
        Some(Kind::StringValue(text)) => Value::from(text.as_str()),
        Some(Kind::BoolValue(value)) => Value::from(*value),
        Some(Kind::StructValue(structure)) => Value::Object(object(structure)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(json).collect()),
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}

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
