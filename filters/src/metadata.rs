//! Dynamic metadata and filter state: what filters of one stream or connection tell each other, and the logs.
//! Nothing is allocated until something is said.

use std::any::Any;
use std::sync::Arc;

use serde_json::{Map, Value};
use xxhash_rust::xxh64::xxh64;

/// `google.protobuf.Struct` per namespace (`envoy.filters.http.rbac`, `envoy.lb`, …).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(Option<Box<Map<String, Value>>>);

impl Metadata {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn namespace(&self, name: &str) -> Option<&Map<String, Value>> {
        self.0.as_ref()?.get(name)?.as_object()
    }

    /// Follows `path` below a namespace.
    pub fn get<'a>(&self, namespace: &str, path: impl IntoIterator<Item = &'a str>) -> Option<&Value> {
        let mut value = self.0.as_ref()?.get(namespace)?;
        for key in path {
            value = value.as_object()?.get(key)?;
        }
        Some(value)
    }

    /// Merges a struct into a namespace, as Envoy's `setDynamicMetadata` (protobuf merge: maps join, the rest replaces).
    pub fn merge(&mut self, namespace: &str, values: Map<String, Value>) {
        let root = self.0.get_or_insert_default();
        match root.get_mut(namespace).and_then(Value::as_object_mut) {
            Some(present) => merge_objects(present, values),
            None => {
                root.insert(namespace.to_owned(), Value::Object(values));
            }
        }
    }

    /// Replaces a namespace.
    pub fn set(&mut self, namespace: &str, values: Map<String, Value>) {
        self.0.get_or_insert_default().insert(namespace.to_owned(), Value::Object(values));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter().flat_map(|root| root.iter())
    }
}

fn merge_objects(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(present)), Value::Object(more)) => merge_objects(present, more),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// A filter state object. Objects that logs or matchers may read print themselves.
pub trait StateObject: Any + Send + Sync {
    /// Envoy's `serializeAsString`.
    fn text(&self) -> Option<String>;
    /// Envoy's `serializeAsProto`, as JSON.
    fn json(&self) -> Option<Value> {
        self.text().map(Value::String)
    }
    /// Envoy's `Hashable`: what a `hash_policy` by filter state takes. Most objects have none.
    fn hash(&self) -> Option<u64> {
        None
    }
    /// Envoy's `getField`, as text.
    fn field(&self, name: &str) -> Option<String> {
        let _ = name;
        None
    }
    fn as_any(&self) -> &dyn Any;
}

/// A plain string as filter state (`envoy.string`, and what `set_filter_state` makes of most keys).
#[derive(Debug, Clone)]
pub struct Text(pub String);

impl StateObject for Text {
    fn text(&self) -> Option<String> {
        Some(self.0.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A string that hash policies may take (`envoy.hashable_string`).
#[derive(Debug, Clone)]
pub struct HashableText(pub String);

impl StateObject for HashableText {
    fn text(&self) -> Option<String> {
        Some(self.0.clone())
    }
    fn hash(&self) -> Option<u64> {
        Some(xxh64(self.0.as_bytes(), 0))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Whether an object goes with the upstream connection (`shared_with_upstream`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    #[default]
    None,
    Once,
    Transitive,
}

#[derive(Clone)]
struct Entry {
    key: Arc<str>,
    object: Arc<dyn StateObject>,
    read_only: bool,
    sharing: Sharing,
}

/// Typed objects by key.
#[derive(Clone, Default)]
pub struct FilterState(Vec<Entry>);

impl FilterState {
    pub fn get(&self, key: &str) -> Option<&Arc<dyn StateObject>> {
        self.0.iter().find(|entry| &*entry.key == key).map(|entry| &entry.object)
    }

    /// Sets an object; `false` when a read-only one stands there already.
    pub fn set(&mut self, key: &str, object: Arc<dyn StateObject>, read_only: bool, sharing: Sharing) -> bool {
        match self.0.iter_mut().find(|entry| &*entry.key == key) {
            Some(entry) if entry.read_only => false,
            Some(entry) => {
                *entry = Entry { key: Arc::clone(&entry.key), object, read_only, sharing };
                true
            }
            None => {
                self.0.push(Entry { key: Arc::from(key), object, read_only, sharing });
                true
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn StateObject>)> {
        self.0.iter().map(|entry| (&*entry.key, &entry.object))
    }

    /// Objects that go upstream.
    pub fn shared(&self) -> impl Iterator<Item = (&str, &Arc<dyn StateObject>, Sharing)> {
        let shared = self.0.iter().filter(|entry| entry.sharing != Sharing::None);
        shared.map(|entry| (&*entry.key, &entry.object, entry.sharing))
    }
}

impl std::fmt::Debug for FilterState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.iter().map(|entry| &entry.key)).finish()
    }
}
