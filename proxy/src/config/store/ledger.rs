//! What became of every resource: which text acts, which one warms, which one was refused and why; for whoever shows it.
//! It must not know what a resource means.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use prost::Message as _;
use tidegate_xds::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration};

/// A type of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Route,
    Runtime,
    Extension,
    /// Scopes of routes; a ledger calls each by its source and its name.
    Scope,
    VirtualHost,
    Secret,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::Route,
        Self::Runtime,
        Self::Extension,
        Self::Scope,
        Self::VirtualHost,
        Self::Secret,
    ];

    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::Scope => "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    pub(crate) fn message(self) -> &'static str {
        let url = self.type_url();
        url.rsplit_once('/').map_or(url, |(_, name)| name)
    }

    /// What comes together with everything of its type, whatever its name.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::Scope | Self::VirtualHost)
    }

    pub(crate) fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// One text of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    /// On the wire.
    pub bytes: Arc<[u8]>,
    /// As its source names it; empty where it does not.
    pub version: Arc<str>,
    /// When it was taken.
    pub at: SystemTime,
}

/// Why a resource was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// What was refused.
    pub text: Text,
    /// Field and reason.
    pub reason: String,
    /// Since when nothing good has come.
    pub since: SystemTime,
}

/// Why there is nothing under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Absent {
    /// It has not come yet.
    #[default]
    Requested,
    /// Its source says that there is none.
    Missing,
    /// It was waited for long enough.
    TimedOut,
}

/// What is known of one resource.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    /// It is the bootstrap's.
    pub is_static: bool,
    pub absent: Absent,
    pub acting: Option<Text>,
    pub warming: Option<Box<Text>>,
    pub refused: Option<Box<Refused>>,
}

impl Entry {
    /// What came last of what was taken.
    pub(crate) fn latest(&self) -> Option<&Text> {
        self.warming.as_deref().or(self.acting.as_ref())
    }
}

/// A source of scopes, as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct ScopeSource {
    pub name: String,
    /// Of the update that changed something last.
    pub version: Arc<str>,
    pub at: SystemTime,
}

/// Scoped routes whose scopes stand in a listener.
#[derive(Debug, Clone)]
pub(crate) struct InlineScopes {
    pub name: String,
    /// On the wire.
    pub scopes: Arc<[Vec<u8>]>,
    pub at: SystemTime,
}

/// The update that changed a route configuration's virtual hosts last.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub version: Arc<str>,
    pub at: SystemTime,
}

/// At most so many refused resources are kept: names are the control plane's to choose.
const MOST_REFUSED: usize = 10_000;

/// Every resource of a process.
#[derive(Default)]
pub(crate) struct Ledger {
    entries: Mutex<Entries>,
    scope_sources: Mutex<BTreeMap<Arc<str>, ScopeSource>>,
    /// Listeners of control planes that are gone or were replaced, and since when: their connections drain.
    draining: Mutex<Vec<(Instant, Arc<str>, Text)>>,
    /// Scopes that stand in a listener, by its name.
    inline_scopes: Mutex<BTreeMap<Arc<str>, Vec<InlineScopes>>>,
    /// By the route configuration that they are of.
    host_updates: Mutex<BTreeMap<Arc<str>, Loaded>>,
    changes: AtomicU64,
    /// How many of a kind were taken or removed.
    moves: [AtomicU64; Kind::ALL.len()],
    /// Of a kind: the version of what changed something of it last.
    versions: Mutex<BTreeMap<Kind, Arc<str>>>,
}

/// By kind, then by name. Half of the places in a map that was filled in order are empty: entries stand beside it.
#[derive(Default)]
struct Entries([BTreeMap<Arc<str>, Box<Entry>>; Kind::ALL.len()]);

impl Entries {
    fn of(&self, kind: Kind) -> &BTreeMap<Arc<str>, Box<Entry>> {
        &self.0[kind as usize]
    }

    fn of_mut(&mut self, kind: Kind) -> &mut BTreeMap<Arc<str>, Box<Entry>> {
        &mut self.0[kind as usize]
    }
}

impl Ledger {
    /// Whether this is what was taken last under the name.
    pub(crate) fn is_latest(&self, kind: Kind, name: &str, bytes: &[u8]) -> bool {
        self.look(kind, name, |entry| entry.latest().is_some_and(|text| *text.bytes == *bytes)).unwrap_or(false)
    }

    /// Whether anything was taken under the name.
    pub(crate) fn has(&self, kind: Kind, name: &str) -> bool {
        self.look(kind, name, |entry| entry.latest().is_some()).unwrap_or(false)
    }

    /// Whether what came last under the name was refused.
    pub(crate) fn has_refused(&self, kind: Kind, name: &str) -> bool {
        self.look(kind, name, |entry| entry.refused.is_some()).unwrap_or(false)
    }

    pub(crate) fn is_static(&self, kind: Kind, name: &str) -> bool {
        self.look(kind, name, |entry| entry.is_static).unwrap_or(false)
    }

    /// What acts under the name, on the wire.
    pub(crate) fn acting(&self, kind: Kind, name: &str) -> Option<Arc<[u8]>> {
        self.look(kind, name, |entry| entry.acting.as_ref().map(|text| Arc::clone(&text.bytes))).flatten()
    }

    /// The name as it is kept here, to be shared.
    pub(crate) fn name(&self, kind: Kind, name: &str) -> Arc<str> {
        let known = self.entries.lock().of(kind).get_key_value(name).map(|(known, _)| Arc::clone(known));
        known.unwrap_or_else(|| name.into())
    }

    fn look<T>(&self, kind: Kind, name: &str, look: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.entries.lock().of(kind).get(name).map(|entry| look(entry))
    }

    /// It was taken, and acts once it is warm.
    pub(crate) fn takes(&self, kind: Kind, name: &Arc<str>, text: Text, is_static: bool) {
        let mut entries = self.entries.lock();
        let entry = entries.of_mut(kind).entry(Arc::clone(name)).or_default();
        entry.is_static = is_static;
        entry.refused = None;
        entry.warming = Some(Box::new(text));
        self.moves[kind as usize].fetch_add(1, Relaxed);
    }

    /// How many of a kind were taken or removed.
    pub(crate) fn moves(&self, kind: Kind) -> u64 {
        self.moves[kind as usize].load(Relaxed)
    }

    /// What came of a kind has this version: it counts where something was taken or removed since there were so many `moves`,
    /// whatever was refused beside it.
    pub(crate) fn loads(&self, kind: Kind, version: &str, moves: u64) {
        if self.moves(kind) != moves {
            self.versions.lock().insert(kind, version.into());
        }
    }

    /// The version of what changed something of a kind last.
    pub(crate) fn version(&self, kind: Kind) -> Option<Arc<str>> {
        self.versions.lock().get(&kind).cloned()
    }

    /// What was taken last acts from now on.
    pub(crate) fn acts(&self, kind: Kind, name: &str) {
        if let Some(entry) = self.entries.lock().of_mut(kind).get_mut(name)
            && let Some(text) = entry.warming.take()
        {
            entry.acting = Some(*text);
            self.changes.fetch_add(1, Relaxed);
        }
    }

    /// It is asked for.
    pub(crate) fn asks(&self, kind: Kind, name: &Arc<str>) {
        self.entries.lock().of_mut(kind).entry(Arc::clone(name)).or_default().absent = Absent::Requested;
    }

    /// It did not come; what acts acts on.
    pub(crate) fn lacks(&self, kind: Kind, name: &str, absent: Absent) {
        if let Some(entry) = self.entries.lock().of_mut(kind).get_mut(name) {
            entry.absent = absent;
        }
    }

    /// The same came again, and nothing is wrong with it.
    pub(crate) fn is_good(&self, kind: Kind, name: &str) {
        if let Some(entry) = self.entries.lock().of_mut(kind).get_mut(name) {
            entry.refused = None;
        }
    }

    /// It was refused; what acted before acts on.
    pub(crate) fn refuses(&self, kind: Kind, name: &str, text: Text, reason: String) {
        let mut entries = self.entries.lock();
        let refused =
            |kinds: &Entries| kinds.0.iter().flat_map(BTreeMap::values).filter(|entry| entry.refused.is_some()).count();
        if !entries.of(kind).contains_key(name) && refused(&entries) >= MOST_REFUSED {
            return;
        }
        let entry = entries.of_mut(kind).entry(name.into()).or_default();
        let since = entry.refused.as_ref().map_or(text.at, |before| before.since);
        entry.refused = Some(Box::new(Refused { text, reason, since }));
    }

    /// What acts under a listener's name begins to drain.
    pub(crate) fn drains(&self, listener: &Arc<str>, now: Instant) {
        let acting = self.look(Kind::Listener, listener, |entry| entry.acting.clone().filter(|_| !entry.is_static));
        if let Some(text) = acting.flatten() {
            self.draining.lock().push((now, Arc::clone(listener), text));
        }
    }

    /// Forgets those that have had so long.
    pub(crate) fn forget_drained(&self, after: Duration, now: Instant) {
        self.draining.lock().retain(|(since, ..)| now.saturating_duration_since(*since) <= after);
    }

    pub(crate) fn draining_listeners(&self) -> Vec<(Arc<str>, Text)> {
        self.draining.lock().iter().map(|(_, name, text)| (Arc::clone(name), text.clone())).collect()
    }

    /// It is gone.
    pub(crate) fn remove(&self, kind: Kind, name: &str) {
        let gone = self.entries.lock().of_mut(kind).remove(name);
        if gone.is_some_and(|entry| entry.latest().is_some()) {
            self.moves[kind as usize].fetch_add(1, Relaxed);
        }
        self.changes.fetch_add(1, Relaxed);
    }

    /// Forgets refused resources that never acted and that their source no longer names.
    pub(crate) fn forget_refused(&self, kind: Kind, is_named: impl Fn(&str) -> bool) {
        let is_over =
            |name: &str, entry: &Entry| entry.refused.is_some() && entry.latest().is_none() && !is_named(name);
        self.entries.lock().of_mut(kind).retain(|name, entry| !is_over(name, entry));
    }

    /// Scopes of this source have changed.
    pub(crate) fn loads_scopes(&self, source: &str, shown: ScopeSource) {
        self.scope_sources.lock().insert(source.into(), shown);
    }

    /// Nobody asks for scopes of this source any more.
    pub(crate) fn forget_scopes(&self, source: &str) {
        self.scope_sources.lock().remove(source);
        let prefix = format!("{source}/");
        self.entries.lock().of_mut(Kind::Scope).retain(|name, _| !name.starts_with(&prefix));
    }

    /// The sources of scopes, each with what it is called in the names of its scopes.
    pub(crate) fn scope_sources(&self) -> Vec<(Arc<str>, ScopeSource)> {
        self.scope_sources.lock().iter().map(|(source, shown)| (Arc::clone(source), shown.clone())).collect()
    }

    /// The scopes that stand in a listener, in place of those that stood there before.
    pub(crate) fn inline_scopes(&self, listener: &Arc<str>, scopes: Vec<(String, Vec<ScopedRouteConfiguration>)>) {
        let at = SystemTime::now();
        let encoded = scopes.into_iter().map(|(name, scopes)| {
            let scopes = scopes.iter().map(ScopedRouteConfiguration::encode_to_vec).collect();
            InlineScopes { name, scopes, at }
        });
        let encoded: Vec<_> = encoded.collect();
        if encoded.is_empty() {
            self.inline_scopes.lock().remove(listener);
        } else {
            self.inline_scopes.lock().insert(Arc::clone(listener), encoded);
        }
    }

    /// All scopes that stand in listeners.
    pub(crate) fn all_inline_scopes(&self) -> Vec<InlineScopes> {
        self.inline_scopes.lock().values().flatten().cloned().collect()
    }

    /// Virtual hosts of a route configuration have changed.
    pub(crate) fn loads_hosts(&self, routes: &Arc<str>, version: &Arc<str>, at: SystemTime) {
        let version = Arc::clone(version);
        self.host_updates.lock().insert(Arc::clone(routes), Loaded { version, at });
    }

    /// A route configuration's virtual hosts are not discovered any more.
    pub(crate) fn forget_hosts(&self, routes: &str) {
        self.host_updates.lock().remove(routes);
    }

    /// The update that changed a route configuration's virtual hosts last.
    pub(crate) fn host_update(&self, routes: &str) -> Option<Loaded> {
        self.host_updates.lock().get(routes).cloned()
    }

    /// The route configurations that stand in a listener, in place of those that stood there before.
    pub(crate) fn inline_routes(&self, listener: &str, routes: &[RouteConfiguration]) {
        let mut entries = self.entries.lock();
        let entries = entries.of_mut(Kind::Route);
        let name = |index: usize| Arc::<str>::from(format!("{listener}/{index}"));
        let at = SystemTime::now();
        for (index, routes) in routes.iter().enumerate() {
            let text = Text { bytes: routes.encode_to_vec().into(), version: "".into(), at };
            entries.insert(name(index), Box::new(Entry { is_static: true, acting: Some(text), ..Entry::default() }));
        }
        for index in routes.len().. {
            if entries.remove(&name(index)).is_none() {
                break;
            }
        }
    }

    /// Maps that were filled in order are half empty: once nothing comes for a while they are filled anew.
    pub(crate) fn compact(&self) {
        for entries in &mut self.entries.lock().0 {
            *entries = std::mem::take(entries).into_iter().collect();
        }
    }

    /// How often something else has begun to act.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// All of a kind, by name.
    pub(crate) fn of_kind(&self, kind: Kind) -> Vec<(Arc<str>, Entry)> {
        let entries = self.entries.lock();
        entries.of(kind).iter().map(|(name, entry)| (Arc::clone(name), (**entry).clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn text(bytes: &'static str, second: u64) -> Text {
        Text {
            bytes: bytes.as_bytes().into(),
            version: second.to_string().into(),
            at: UNIX_EPOCH + Duration::from_secs(second),
        }
    }

    #[test]
    fn what_is_refused_leaves_what_acts_until_something_good_comes() {
        let ledger = Ledger::default();
        ledger.takes(Kind::Cluster, &"a".into(), text("one", 1), false);
        assert!(ledger.is_latest(Kind::Cluster, "a", b"one") && ledger.acting(Kind::Cluster, "a").is_none());
        ledger.acts(Kind::Cluster, "a");
        ledger.refuses(Kind::Cluster, "a", text("two", 2), "bad".to_owned());
        ledger.refuses(Kind::Cluster, "a", text("three", 3), "worse".to_owned());
        let entry = ledger.of_kind(Kind::Cluster).remove(0).1;
        assert_eq!(*entry.acting.unwrap().bytes, *b"one");
        let refused = entry.refused.unwrap();
        assert_eq!((&*refused.reason, &*refused.text.version), ("worse", "3"));
        assert_eq!(refused.since, UNIX_EPOCH + Duration::from_secs(2));
        ledger.is_good(Kind::Cluster, "a");
        assert!(ledger.of_kind(Kind::Cluster)[0].1.refused.is_none());
        assert!(ledger.of_kind(Kind::Listener).is_empty());
    }

    #[test]
    fn refused_ones_that_nobody_names_are_forgotten() {
        let ledger = Ledger::default();
        for name in ["a", "b"] {
            ledger.refuses(Kind::Route, name, text("x", 1), "bad".to_owned());
        }
        assert!(!ledger.has(Kind::Route, "a"));
        ledger.forget_refused(Kind::Route, |name| name == "b");
        let left: Vec<_> = ledger.of_kind(Kind::Route).into_iter().map(|(name, _)| name).collect();
        assert_eq!(left, [Arc::from("b")]);
    }

    #[test]
    fn inline_routes_replace_those_before() {
        let ledger = Ledger::default();
        let routes = |count| vec![RouteConfiguration::default(); count];
        ledger.inline_routes("a", &routes(2));
        ledger.inline_routes("b", &routes(1));
        ledger.inline_routes("a", &routes(1));
        let names: Vec<_> = ledger.of_kind(Kind::Route).into_iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["a/0", "b/0"]);
    }
}
