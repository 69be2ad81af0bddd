//! Dynamic metadata and filter state: what filters of one stream or connection tell each other, and the logs.
//! Nothing is allocated until something is said.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Map, Value};
use tidegate_xds::pb::google::protobuf as wkt;
use xxhash_rust::xxh64::xxh64;

/// `google.protobuf.Struct` per namespace (`envoy.filters.http.rbac`, `envoy.lb`, …), and beside it any message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(Option<Box<Spaces>>);

#[derive(Debug, Clone, Default, PartialEq)]
struct Spaces {
    structs: Map<String, Value>,
    typed: BTreeMap<String, wkt::Any>,
}

impl Metadata {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn namespace(&self, name: &str) -> Option<&Map<String, Value>> {
        self.0.as_ref()?.structs.get(name)?.as_object()
    }

    /// Follows `path` below a namespace.
    pub fn get<'a>(&self, namespace: &str, path: impl IntoIterator<Item = &'a str>) -> Option<&Value> {
        let mut value = self.0.as_ref()?.structs.get(namespace)?;
        for key in path {
            value = value.as_object()?.get(key)?;
        }
        Some(value)
    }

    /// Merges a struct into a namespace, as Envoy's `setDynamicMetadata` (protobuf merge: maps join, the rest replaces).
    pub fn merge(&mut self, namespace: &str, values: Map<String, Value>) {
        let root = &mut self.0.get_or_insert_default().structs;
        match root.get_mut(namespace).and_then(Value::as_object_mut) {
            Some(present) => merge_objects(present, values),
            None => {
                root.insert(namespace.to_owned(), Value::Object(values));
            }
        }
    }

    /// Replaces a namespace.
    pub fn set(&mut self, namespace: &str, values: Map<String, Value>) {
        self.0.get_or_insert_default().structs.insert(namespace.to_owned(), Value::Object(values));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter().flat_map(|root| root.structs.iter())
    }

    /// The message of a namespace (`typed_filter_metadata`).
    pub fn typed(&self, namespace: &str) -> Option<&wkt::Any> {
        self.0.as_ref()?.typed.get(namespace)
    }

    /// Replaces the message of a namespace.
    pub fn set_typed(&mut self, namespace: &str, value: wkt::Any) {
        self.0.get_or_insert_default().typed.insert(namespace.to_owned(), value);
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

/// A struct as JSON, its keys in order.
pub fn object(structure: &wkt::Struct) -> Map<String, Value> {
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
    /// The address that it is, for matchers of addresses: text that reads as one is none.
    fn ip(&self) -> Option<IpAddr> {
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

/// An address without a port (`envoy.network.ip`).
#[derive(Debug, Clone)]
pub struct Ip(pub IpAddr);

impl StateObject for Ip {
    fn text(&self) -> Option<String> {
        Some(SocketAddr::new(self.0, 0).to_string())
    }
    fn json(&self) -> Option<Value> {
        None
    }
    fn ip(&self) -> Option<IpAddr> {
        Some(self.0)
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

    /// An object that goes upstream.
    pub fn get_shared(&self, key: &str) -> Option<&Arc<dyn StateObject>> {
        let entry = self.0.iter().find(|entry| &*entry.key == key)?;
        (entry.sharing != Sharing::None).then_some(&entry.object)
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

    /// Sets all of another's objects.
    pub fn add(&mut self, other: &Self) {
        for entry in &other.0 {
            self.set(&entry.key, Arc::clone(&entry.object), entry.read_only, entry.sharing);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn StateObject>)> {
        self.0.iter().map(|entry| (&*entry.key, &entry.object))
    }

    /// The objects that go upstream; `None` where there are none.
    pub fn shared(&self) -> Option<Self> {
        let shared: Vec<_> = self.0.iter().filter(|entry| entry.sharing != Sharing::None).cloned().collect();
        (!shared.is_empty()).then_some(Self(shared))
    }
}

impl std::fmt::Debug for FilterState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.iter().map(|entry| &entry.key)).finish()
    }
}
