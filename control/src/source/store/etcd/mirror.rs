//! What etcd holds under our prefix, as far as it was told: `PREFIX/TYPE/NAME` is a resource in JSON or YAML, `PREFIX/changed`
//! what each change of a replica writes too. It must not know how it was told, nor what is served of it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::{Message, Name};
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::to_whole_json;

use super::messages::{Event, EventType, KeyValue, ResponseHeader};
use crate::server::{Resource, ResourceSet, ResourceType};
use crate::source::directory::file;

/// The most that is kept of one prefix, in bytes of values.
pub(super) const MOST_BYTES: usize = 512 << 20;

/// What each change of a replica writes beside its resources: so each sees the others'.
const CHANGED: &str = "changed";

#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// With `/` at its end.
    prefix: String,
    /// Which etcd it was, and up to when its history is in here.
    pub(super) head: ResponseHeader,
    keys: HashMap<Box<[u8]>, Key>,
    /// The sum over all keys.
    bytes: usize,
    /// What can be read.
    pub(super) set: ResourceSet,
    /// What cannot, by key.
    pub(super) faults: BTreeMap<Box<[u8]>, Vec<String>>,
}

#[derive(Debug, Clone, Copy)]
struct Key {
    /// The revision of its last change.
    revision: i64,
    bytes: usize,
}

impl Mirror {
    /// Nothing yet, at no revision.
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..Self::default() }
    }

    /// All that was there at one revision; it shares with what was there `before` what is in both.
    pub(super) fn read(prefix: &str, before: &ResourceSet, head: ResponseHeader, all: Vec<KeyValue>) -> Self {
        let mut read = Self { head, ..Self::new(prefix) };
        let resources: Vec<Arc<Resource>> = all.into_iter().filter_map(|pair| read.take(pair)).collect();
        read.set = before.turned_into(resources);
        read
    }

    /// Takes what changed, whole revisions of it.
    pub(super) fn apply(&mut self, head: ResponseHeader, events: Vec<Event>) {
        if events.is_empty() {
            // All up to there was told. Beside events that are old already it says where etcd is, not what was told.
            self.head.revision = self.head.revision.max(head.revision);
        }
        for event in events {
            let deleted = event.r#type() == EventType::Delete;
            let Some(pair) = event.kv else { continue };
            self.head.revision = self.head.revision.max(pair.mod_revision);
            if deleted {
                self.forget(&pair.key);
            } else if let Some(resource) = self.take(pair) {
                self.set.insert(resource);
            }
        }
    }

    /// The key of a resource.
    pub(super) fn key(&self, kind: ResourceType, name: &str) -> Vec<u8> {
        key(&self.prefix, kind, name)
    }

    /// The key that each change of a replica writes.
    pub(super) fn guard(&self) -> Vec<u8> {
        format!("{}{CHANGED}", self.prefix).into_bytes()
    }

    /// The first key, and the first after the last.
    pub(super) fn range(&self) -> (Vec<u8>, Vec<u8>) {
        let prefix = self.prefix.trim_end_matches('/');
        // What follows '/' in ASCII.
        (format!("{prefix}/").into_bytes(), format!("{prefix}0").into_bytes())
    }

    /// The revision of a key's last change; 0: there is none.
    pub(super) fn revision_of(&self, key: &[u8]) -> i64 {
        self.keys.get(key).map_or(0, |key| key.revision)
    }

    /// Whether it is more than is kept.
    pub(super) fn is_too_much(&self) -> bool {
        self.bytes > MOST_BYTES
    }

    pub(super) fn faults(&self) -> Vec<String> {
        self.faults.values().flatten().cloned().collect()
    }

    /// Reads a key; what it holds is put into the set by who calls.
    fn take(&mut self, pair: KeyValue) -> Option<Arc<Resource>> {
        let key: Box<[u8]> = pair.key.into();
        let bytes = pair.value.len();
        let before = self.keys.insert(key.clone(), Key { revision: pair.mod_revision, bytes });
        self.bytes = self.bytes - before.map_or(0, |key| key.bytes) + bytes;
        if *key == *self.guard() {
            return None;
        }
        match read(&self.prefix, &key, &pair.value) {
            Ok(resource) => {
                self.faults.remove(&key);
                Some(resource)
            }
            Err(faults) => {
                if let Ok((kind, name)) = parts(&self.prefix, &key) {
                    self.set.remove(kind, name);
                }
                self.faults.insert(key, faults);
                None
            }
        }
    }

    fn forget(&mut self, key: &[u8]) {
        self.bytes -= self.keys.remove(key).map_or(0, |key| key.bytes);
        self.faults.remove(key);
        if let Ok((kind, name)) = parts(&self.prefix, key) {
            self.set.remove(kind, name);
        }
    }
}

/// The key of a resource. The name is all that follows the type, whatever is in it.
pub(super) fn key(prefix: &str, kind: ResourceType, name: &str) -> Vec<u8> {
    format!("{prefix}{}/{name}", kind.short()).into_bytes()
}

/// A resource as it is written.
pub(super) fn written(resource: &Resource) -> Bytes {
    to_whole_json(&Any::full_name(), &resource.body.encode_to_vec()).to_string().into()
}

/// Reads a resource: every replica makes the same of the same value.
pub(super) fn read(prefix: &str, key: &[u8], value: &[u8]) -> Result<Arc<Resource>, Vec<String>> {
    let place: Arc<str> = shown(key).into();
    let (kind, name) = parts(prefix, key).map_err(|reason| vec![format!("{place}: {reason}")])?;
    // YAML reads JSON too, but slower.
    let path = if value.starts_with(b"{") { "value.json" } else { "value.yaml" };
    let resource = file::one(&place, Path::new(path), value)?;
    if resource.kind != kind || *resource.name != *name {
        let (found, called) = (resource.kind.short(), &resource.name);
        return Err(vec![format!("{place}: expected {} '{name}', found {found} '{called}'", kind.short())]);
    }
    Ok(resource)
}

/// Type and name by the key.
fn parts<'a>(prefix: &str, key: &'a [u8]) -> Result<(ResourceType, &'a str), String> {
    let key = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8")?;
    let (kind, name) = key.strip_prefix(prefix).and_then(|rest| rest.split_once('/')).unwrap_or_default();
    let found = ResourceType::all().find(|known| known.short() == kind).filter(|_| !name.is_empty());
    found.map(|kind| (kind, name)).ok_or_else(|| {
        let known: Vec<&str> = ResourceType::all().map(ResourceType::short).collect();
        format!("no resource has this key: expected {prefix}TYPE/NAME, with TYPE one of {}", known.join(", "))
    })
}

/// A key as people read it: it is anybody's text.
fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::{cluster, endpoints};

    fn pair(key: &str, value: impl Into<Bytes>, mod_revision: i64) -> KeyValue {
        KeyValue { key: key.into(), mod_revision, value: value.into() }
    }

    fn put(key: &str, value: impl Into<Bytes>, revision: i64) -> Event {
        Event { r#type: EventType::Put.into(), kv: Some(pair(key, value, revision)) }
    }

    fn deleted(key: &str, revision: i64) -> Event {
        Event { r#type: EventType::Delete.into(), kv: Some(pair(key, "", revision)) }
    }

    fn at(revision: i64) -> ResponseHeader {
        ResponseHeader { cluster_id: 1, revision }
    }

    #[test]
    fn what_is_read_and_told_is_there() {
        let a = cluster("a|b/c", "x");
        let all = vec![pair("/t/Cluster/a|b/c", written(&a), 3), pair("/t/changed", "", 3)];
        let mut mirror = Mirror::read("/t/", &ResourceSet::default(), at(7), all);
        assert_eq!((mirror.head.revision, mirror.set.len(), mirror.faults()), (7, 1, Vec::<String>::new()));
        let key = mirror.key(ResourceType::CLUSTER, "a|b/c");
        assert_eq!((mirror.revision_of(&key), mirror.revision_of(b"/t/Cluster/b")), (3, 0));
        // The same content has the same version, whoever wrote it, and in which words.
        let yaml = "'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a|b/c\nalt_stat_name: x\n";
        let before = mirror.set.version();
        assert_eq!(mirror.set.kind(ResourceType::CLUSTER).get("a|b/c").unwrap().version, a.version);
        // Told late: the history had gone on already.
        mirror.apply(at(12), vec![put("/t/Cluster/a|b/c", yaml, 8)]);
        assert_eq!(mirror.head.revision, 8);
        assert_eq!((mirror.set.version(), mirror.revision_of(&key)), (before, 8));
        let more = put("/t/ClusterLoadAssignment/e", written(&endpoints("e", "")), 9);
        mirror.apply(at(9), vec![more, deleted("/t/Cluster/a|b/c", 9)]);
        assert_eq!((mirror.set.len(), mirror.head.revision, mirror.revision_of(&key)), (1, 9, 0));
        mirror.apply(at(20), Vec::new());
        assert_eq!(mirror.head.revision, 20);
        mirror.apply(at(21), vec![deleted("/t/ClusterLoadAssignment/e", 21)]);
        assert!(mirror.set.is_empty() && mirror.bytes == 0 && mirror.keys.len() == 1);
    }

    #[test]
    fn what_cannot_be_read_has_its_key_and_reason() {
        let good = written(&cluster("a", ""));
        let text = |text: &'static str| Bytes::from_static(text.as_bytes());
        let negative = "'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\nconnect_timeout: -1s\n";
        for (key, value, reason) in [
            ("/t/Cluster/b", good.clone(), "/t/Cluster/b: expected Cluster 'b', found Cluster 'a'"),
            ("/t/Listener/a", good.clone(), "/t/Listener/a: expected Listener 'a', found Cluster 'a'"),
            ("/t/Nothing/a", good.clone(), "/t/Nothing/a: no resource has this key: expected /t/TYPE/NAME"),
            ("/t/Cluster/", good.clone(), "/t/Cluster/: no resource has this key"),
            ("/t/a", good.clone(), "/t/a: no resource has this key"),
            ("/t/\n", good, "/t/\\n: no resource has this key"),
            ("/t/Cluster/a", text(""), "/t/Cluster/a: expected one resource with its `@type`"),
            ("/t/Cluster/a", text("{"), "/t/Cluster/a:1: not valid JSON"),
            ("/t/Cluster/a", text("resources: []"), "/t/Cluster/a: expected one resource with its `@type`"),
            ("/t/Cluster/a", text("tidegate: v1"), "/t/Cluster/a: expected one resource with its `@type`"),
            ("/t/Cluster/a", text(negative), "/t/Cluster/a:3: resource 'a': connect_timeout"),
        ] {
            let first = vec![pair("/t/Cluster/a", written(&cluster("a", "")), 1)];
            let mut mirror = Mirror::read("/t/", &ResourceSet::default(), at(1), first);
            mirror.apply(at(2), vec![put(key, value, 2)]);
            let faults = mirror.faults();
            assert!(faults.len() == 1 && faults[0].starts_with(reason), "{key}: {faults:?}");
            mirror.apply(at(3), vec![deleted(key, 3)]);
            assert!(mirror.faults().is_empty());
        }
    }

    #[test]
    fn ranges_hold_the_prefix_and_nothing_beside() {
        let (from, to) = Mirror::new("/t/").range();
        let holds = |key: &str| *from <= *key.as_bytes() && *key.as_bytes() < *to;
        assert!(holds("/t/") && holds("/t/Cluster/a") && holds("/t/\u{10ffff}"));
        assert!(!holds("/t") && !holds("/tide/a") && !holds("/t0") && !holds("/s/a"));
    }
}
