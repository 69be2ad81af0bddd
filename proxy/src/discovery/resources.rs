//! Takes what streams bring to the store and says what is wrong with it, in Envoy's words; counts it. A resource that cannot be
//! read rejects the whole response; one that cannot act is rejected alone, and the others act.
//! It must not know how the answer travels.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prost::{Message, Name};
use tidegate_control::client::rest::{Brought, Rejected};
use tidegate_control::client::{Handler, Resource, Rest, Update};
use tidegate_stats::Scope;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use tidegate_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::envoy::config::listener::v3::Listener as ListenerProto;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use tidegate_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use tidegate_xds::pb::envoy::service::runtime::v3::Runtime as RuntimeProto;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, FieldPath, Format, UnknownFields};

use super::carried::Carried;
use super::waits::Waits;
use crate::config::store::{Absent, Kind, Placed, Resource as Named, ScopeCame, Store, Text, routes_of, scope_entry};
use crate::config::unknown_fields::UnknownRule;
use crate::stats::subscription::{Subscription, Update as Outcome};

/// What is counted of each subscription, and the names that came without being asked for by name.
pub(super) struct Subscriptions {
    root: Scope,
    clusters: Option<Subscription>,
    listeners: Option<Subscription>,
    /// Of what is asked for by name, but endpoints: clusters count those.
    named: HashMap<(Kind, Arc<str>), Subscription>,
    cluster_names: BTreeSet<Arc<str>>,
    listener_names: BTreeSet<Arc<str>>,
    /// What is polled for: a poll is an attempt. On a stream, the answer to what came asks for more.
    polled: HashSet<(Kind, Arc<str>)>,
}

impl Subscriptions {
    pub(super) fn new(root: &Scope) -> Self {
        Self {
            root: root.clone(),
            clusters: None,
            listeners: None,
            named: HashMap::new(),
            cluster_names: BTreeSet::new(),
            listener_names: BTreeSet::new(),
            polled: HashSet::new(),
        }
    }

    /// A subscription begins.
    pub(super) fn begin(&mut self, kind: Kind, name: &Arc<str>, store: &Store) {
        match kind {
            Kind::Cluster => {
                self.clusters = Some(Subscription::with_reloads(&self.root.scope("cluster_manager.cds.")));
            }
            Kind::Listener => self.listeners = Some(Subscription::new(&self.root.scope("listener_manager.lds."))),
            Kind::Route | Kind::Runtime | Kind::Extension | Kind::Scope | Kind::VirtualHost | Kind::Secret => {
                let stats = store.subscription_stats(kind, name);
                self.named.extend(stats.map(|stats| ((kind, Arc::clone(name)), stats)));
            }
            Kind::Endpoints => {}
        }
        if !kind.is_whole() {
            store.ledger().asks(kind, name);
        }
        self.asked_on_stream(kind, name, store);
    }

    /// Whether it is polled for from now on.
    pub(super) fn set_polled(&mut self, kind: Kind, name: &str, polled: bool) {
        if polled {
            self.polled.insert((kind, name.into()));
        } else if !self.polled.is_empty() {
            self.polled.remove(&(kind, name.into()));
        }
    }

    /// It is asked for.
    pub(super) fn asked(&self, kind: Kind, name: &str, store: &Store) {
        match self.of(kind, name) {
            Some(stats) => stats.asked(),
            None if kind == Kind::Endpoints => store.asked_assignment(name),
            None => {}
        }
    }

    pub(super) fn asked_on_stream(&self, kind: Kind, name: &str, store: &Store) {
        if !self.is_polled(kind, name) {
            self.asked(kind, name, store);
        }
    }

    fn is_polled(&self, kind: Kind, name: &str) -> bool {
        !self.polled.is_empty() && self.polled.contains(&(kind, Arc::from(name)))
    }

    pub(super) fn of(&self, kind: Kind, name: &str) -> Option<&Subscription> {
        match kind {
            Kind::Cluster => self.clusters.as_ref(),
            Kind::Listener => self.listeners.as_ref(),
            Kind::Endpoints => None,
            Kind::Route | Kind::Runtime | Kind::Extension | Kind::Scope | Kind::VirtualHost | Kind::Secret => {
                self.named.get(&(kind, name.into()))
            }
        }
    }

    pub(super) fn count(&self, kind: Kind, name: &str, outcome: &Outcome, store: &Store, now: SystemTime) {
        self.asked_on_stream(kind, name, store);
        if kind == Kind::Endpoints {
            store.count_assignment(name, outcome, now);
        } else if let Some(stats) = self.of(kind, name) {
            stats.count(outcome, now);
        }
    }

    /// An update took so long to take in.
    fn took(&self, kind: Kind, update: &Update, scopes: Option<&str>, time: Duration, store: &Store) {
        // Polls do not measure it, as in Envoy.
        let names = update.resources.iter().map(|resource| resource.name.as_str());
        let names = names.filter(|name| !self.is_polled(kind, name));
        match kind {
            Kind::Cluster | Kind::Listener if self.is_polled(kind, "") => {}
            Kind::Cluster | Kind::Listener => {
                if let Some(stats) = self.of(kind, "") {
                    stats.took(time);
                }
            }
            Kind::Scope => {
                let stats =
                    scopes.filter(|source| !self.is_polled(kind, source)).and_then(|source| self.of(kind, source));
                stats.into_iter().for_each(|stats| stats.took(time));
            }
            Kind::VirtualHost => {
                let routes: BTreeSet<&str> = names.filter_map(routes_of).collect();
                routes.into_iter().filter_map(|name| self.of(kind, name)).for_each(|stats| stats.took(time));
            }
            Kind::Endpoints => names.for_each(|name| store.assignment_took(name, time)),
            Kind::Route | Kind::Runtime | Kind::Extension | Kind::Secret => {
                names.filter_map(|name| self.of(kind, name)).for_each(|stats| stats.took(time))
            }
        }
    }

    /// Counts what became of everything that a stream carries.
    pub(super) fn count_all(&self, all: &[(Kind, Arc<str>)], outcome: &Outcome, store: &Store, now: SystemTime) {
        all.iter().for_each(|(kind, name)| self.count(*kind, name, outcome, store, now));
    }

    /// What nobody asks for any more is not counted any more.
    pub(super) fn forget(&mut self, kind: Kind, name: &str) {
        self.set_polled(kind, name, false);
        self.named.remove(&(kind, name.into()));
    }

    /// What was asked for did not come in time: what waits for it goes on without.
    pub(super) fn timed_out(&self, kind: Kind, name: &str, store: &mut Store) {
        tracing::warn!(?kind, name, "gave up waiting for the first answer");
        self.asked_on_stream(kind, name, store);
        match self.of(kind, name) {
            Some(stats) => stats.fetch_timed_out(),
            None => store.assignment_timed_out(name),
        }
        store.ledger().lacks(kind, name, Absent::TimedOut);
        store.go_on_without(kind, name);
    }
}

/// What all types begin with: a name in field 1.
#[derive(Clone, PartialEq, Message)]
struct Nameable {
    #[prost(string, tag = "1")]
    name: String,
}

/// Takes updates to the store.
pub(super) struct Apply<'a> {
    pub(super) store: &'a mut Store,
    pub(super) subscriptions: &'a mut Subscriptions,
    pub(super) waits: &'a mut Waits,
    pub(super) unknown: &'a UnknownRule,
    pub(super) carried: &'a Carried,
}

impl Handler for Apply<'_> {
    fn name_of(&self, body: &Any) -> Option<String> {
        Kind::of(&body.type_url)?;
        Nameable::decode(&*body.value).ok().map(|named| named.name)
    }

    fn rejected(&mut self, type_url: &str, reason: &str) {
        let Some(kind) = Kind::of(type_url) else { return };
        tracing::warn!(?kind, reason, "rejected");
        match kind {
            Kind::Cluster | Kind::Listener => {
                self.waits.came(kind, "");
                self.count(kind, &Outcome::Rejected, SystemTime::now());
            }
            Kind::Scope | Kind::VirtualHost => self.refuse_carried(kind),
            _ => {}
        }
    }

    fn apply(&mut self, update: Update) -> Result<(), String> {
        let Some(kind) = Kind::of(&update.type_url) else { return Ok(()) };
        let began = Instant::now();
        let (resources, removed) = (update.resources.len(), update.removed.len());
        tracing::debug!(
            "Received {}: version '{}', {resources} resources, {removed} removed",
            update.type_url,
            update.version
        );
        let result = match kind {
            Kind::Cluster => self.clusters(&update),
            Kind::Listener => self.listeners(&update),
            Kind::Endpoints => self.named::<ClusterLoadAssignment>(&update),
            Kind::Route => self.named::<RouteConfiguration>(&update),
            Kind::Runtime => self.named::<RuntimeProto>(&update),
            Kind::Extension => self.named::<TypedExtensionConfig>(&update),
            Kind::Secret => self.named::<Secret>(&update),
            Kind::Scope => self.scopes(&update),
            Kind::VirtualHost => self.virtual_hosts(&update),
        };
        match &result {
            Ok(()) => {
                tracing::debug!("accepted {}: version '{}'", update.type_url, update.version);
                let scopes = self.carried.scopes().map(|source| &**source);
                self.subscriptions.took(kind, &update, scopes, began.elapsed(), self.store);
            }
            Err(reason) => tracing::warn!(?kind, version = update.version, reason, "rejected"),
        }
        result
    }
}

impl Apply<'_> {
    /// Takes what a poll brought, in JSON.
    pub(super) fn polled(&mut self, kind: Kind, name: &str, body: &[u8], rest: &mut Rest) {
        match self.read_polled(kind, body) {
            Ok(response) => self.take_polled(kind, name, response, rest),
            Err(reason) => self.reject_polled(kind, name, &reason),
        }
    }

    /// The same, once it could be read.
    pub(super) fn take_polled(&mut self, kind: Kind, name: &str, response: DiscoveryResponse, rest: &mut Rest) {
        match rest.receive(response, self) {
            // What was taken, and what was refused after it could be read, has been counted.
            Ok(Brought::Resources) | Err(Rejected::Refused(_)) => {}
            // A layer and a filter's configuration are one, or rejected.
            Ok(Brought::Nothing(_)) if matches!(kind, Kind::Runtime | Kind::Extension) => {
                self.reject_polled(kind, name, "Unexpected resource length: 0");
            }
            Ok(Brought::Nothing(version)) => {
                rest.take(version.clone());
                if let Some(stats) = self.subscriptions.of(kind, name) {
                    stats.found_empty();
                }
                self.waits.came(kind, name);
                self.store.ledger().lacks(kind, name, Absent::Missing);
                self.store.missing(kind, name);
                self.store.go_on_without(kind, name);
                self.subscriptions.count(kind, name, &Outcome::Success(version), self.store, SystemTime::now());
            }
            Err(Rejected::Unreadable(reason)) => self.reject_polled(kind, name, &reason),
        }
    }

    fn reject_polled(&mut self, kind: Kind, name: &str, reason: &str) {
        tracing::warn!(?kind, name, reason, "rejected");
        self.waits.came(kind, name);
        self.subscriptions.count(kind, name, &Outcome::Rejected, self.store, SystemTime::now());
        self.store.go_on_without(kind, name);
    }

    fn read_polled(&self, kind: Kind, body: &[u8]) -> Result<DiscoveryResponse, String> {
        let response = DiscoveryResponse::full_name();
        let decoded = tidegate_xds::decode(&response, body, Format::Json, UnknownFields::Collect);
        let decoded = decoded.map_err(|errors| joined("", &errors))?;
        if self.unknown.rejects() && !decoded.unknown.is_empty() {
            return Err(joined("", &decoded.unknown));
        }
        self.unknown.note(kind.rest_path(), &decoded.unknown);
        DiscoveryResponse::decode(&*decoded.bytes).map_err(|error| error.to_string())
    }
}

/// What a response holds of one type: what can act, and what is wrong with the rest.
struct Read<M> {
    placed: Vec<Placed<M>>,
    wrong: Vec<FieldError>,
}

/// What is wrong with a resource that does not act.
pub(super) struct Unread {
    pub(super) errors: Vec<FieldError>,
    /// It could be read.
    unsupported: bool,
}

impl Apply<'_> {
    /// Reads what is `new`; the rest acts already.
    ///
    /// # Errors
    /// A resource that cannot be read, or breaks the schema's rules: nothing of the response acts.
    fn read<M: Message + Name + Default>(
        &self,
        kind: Kind,
        update: &Update,
        is_new: impl Fn(&str, &[u8]) -> bool,
    ) -> Result<Read<M>, String> {
        let mut read = Read { placed: Vec::new(), wrong: Vec::new() };
        let version: Arc<str> = update.version.as_str().into();
        let mut unreadable = None;
        for resource in &update.resources {
            let name = &resource.name;
            let Some(body) = resource.body.as_ref().filter(|body| is_new(name, &body.value)) else { continue };
            match self.read_placed(kind, name, resource, body, &version) {
                Ok(placed) => read.placed.push(placed),
                Err(Unread { errors, unsupported: true }) => {
                    read.wrong.extend(errors.into_iter().map(|error| error.in_resource(name)));
                }
                Err(Unread { errors, .. }) => unreadable = unreadable.or(Some(joined(name, &errors))),
            }
        }
        match unreadable {
            None => Ok(read),
            Some(reason) => Err(reason),
        }
    }

    /// One resource of a response of this version. What is wrong with it stands in the ledger, where it is called `shown`.
    pub(super) fn read_placed<M: Message + Name + Default>(
        &self,
        kind: Kind,
        shown: &str,
        resource: &Resource,
        body: &Any,
        version: &Arc<str>,
    ) -> Result<Placed<M>, Unread> {
        let version = if resource.version.is_empty() { version } else { &resource.version };
        let bytes: Arc<[u8]> = body.value.as_slice().into();
        let unread = match self.read_one::<M>(&resource.name, body) {
            Ok(Ok(message)) => return Ok(Placed::on_the_wire(message, FieldPath::root(), bytes, version)),
            Ok(Err(errors)) => Unread { errors, unsupported: true },
            Err(errors) => Unread { errors, unsupported: false },
        };
        let text = Text { bytes, version: Arc::clone(version), at: SystemTime::now() };
        self.store.ledger().refuses(kind, shown, text, joined("", &unread.errors));
        Err(unread)
    }

    /// The message, or what of it is not supported.
    ///
    /// # Errors
    /// What cannot be read.
    fn read_one<M: Message + Name + Default>(
        &self,
        name: &str,
        body: &Any,
    ) -> Result<Result<M, Vec<FieldError>>, Vec<FieldError>> {
        let (message, packed) = tidegate_xds::load_resource::<M>(body)?;
        let audit = tidegate_xds::audit(&M::full_name(), &body.value, self.store.registry().coverage());
        if self.unknown.rejects() && !audit.unknown.is_empty() {
            return Err(audit.unknown);
        }
        self.unknown.note(name, &audit.unknown);
        let wrong = if packed.is_empty() { audit.unsupported } else { packed };
        Ok(if wrong.is_empty() { Ok(message) } else { Err(wrong) })
    }

    fn clusters(&mut self, update: &Update) -> Result<(), String> {
        // A rejected answer is an answer: what waited for it goes on, as in Envoy.
        self.waits.came(Kind::Cluster, "");
        let Read { placed, mut wrong } = self.read_own::<ClusterProto>(Kind::Cluster, update)?;
        let changed = !placed.is_empty();
        wrong.extend(self.store.update_clusters(placed));
        let names = self.names(Kind::Cluster, update);
        let gone = replace(&mut self.subscriptions.cluster_names, names, update);
        self.store.remove_clusters(&gone);
        self.finish(Kind::Cluster, "cluster", update, &wrong)?;
        if changed || !gone.is_empty() {
            self.subscriptions.clusters.iter().for_each(|stats| stats.reloaded(SystemTime::now()));
        }
        Ok(())
    }

    fn listeners(&mut self, update: &Update) -> Result<(), String> {
        self.waits.came(Kind::Listener, "");
        let Read { placed, mut wrong } = self.read_own::<ListenerProto>(Kind::Listener, update)?;
        let names = self.names(Kind::Listener, update);
        // What is gone goes first: its address may be another's now.
        let gone = replace(&mut self.subscriptions.listener_names, names, update);
        self.store.remove_listeners(&gone);
        wrong.extend(self.store.update_listeners(placed));
        self.finish(Kind::Listener, "listener", update, &wrong)
    }

    /// All of it is taken, or the first that is wrong ends it.
    fn scopes(&mut self, update: &Update) -> Result<(), String> {
        let Some(source) = self.carried.scopes().cloned() else { return Ok(()) };
        self.waits.came(Kind::Scope, &source);
        let taken = self.take_scopes(&source, update);
        match &taken {
            Ok(()) => {
                let outcome = Outcome::Success(update.version.clone());
                self.subscriptions.count(Kind::Scope, &source, &outcome, self.store, SystemTime::now());
            }
            Err(_) => self.refuse_one(Kind::Scope, &source),
        }
        taken
    }

    fn take_scopes(&mut self, source: &Arc<str>, update: &Update) -> Result<(), String> {
        let gone = if update.whole {
            self.store.scopes_beside(source, update.resources.iter().map(|resource| resource.name.as_str()))
        } else {
            update.removed.iter().map(|name| name.as_str().into()).collect()
        };
        let version: Arc<str> = update.version.as_str().into();
        let mut scopes = Vec::with_capacity(update.resources.len());
        for resource in &update.resources {
            let Some(body) = &resource.body else { continue };
            let name = &resource.name;
            if self.store.has_scope(source, name, &body.value) {
                scopes.push(ScopeCame::Same(name.as_str().into()));
                continue;
            }
            let read = self.read_placed(Kind::Scope, &scope_entry(source, name), resource, body, &version);
            scopes.push(ScopeCame::New(Box::new(read.map_err(|unread| joined(name, &unread.errors))?)));
        }
        self.store.update_scopes(source, &version, scopes, &gone).map_err(|error| {
            self.count_again(Kind::Scope, source, update);
            joined("", &[error])
        })
    }

    /// Whoever waits for a first answer goes on: this was one.
    pub(super) fn refuse_one(&mut self, kind: Kind, subscription: &str) {
        self.waits.came(kind, subscription);
        self.subscriptions.count(kind, subscription, &Outcome::Rejected, self.store, SystemTime::now());
        self.store.go_on_without(kind, subscription);
    }

    pub(super) fn refuse_carried(&mut self, kind: Kind) {
        let all: Vec<Arc<str>> = self.carried.of(kind).cloned().collect();
        all.iter().for_each(|subscription| self.refuse_one(kind, subscription));
    }

    /// Reads what is the control plane's to say and not as it was.
    fn read_own<M: Message + Name + Default>(&self, kind: Kind, update: &Update) -> Result<Read<M>, String> {
        let ledger = self.store.ledger();
        if update.whole {
            let names: HashSet<&str> = update.resources.iter().map(|resource| resource.name.as_str()).collect();
            ledger.forget_refused(kind, |name| names.contains(name));
        }
        let is_new = |name: &str, bytes: &[u8]| {
            if ledger.is_static(kind, name) {
                return false;
            }
            let same = ledger.is_latest(kind, name, bytes);
            if same {
                ledger.is_good(kind, name);
            }
            !same
        };
        self.read(kind, update, is_new).inspect_err(|_| self.count(kind, &Outcome::Rejected, SystemTime::now()))
    }

    /// The names in an update that are the control plane's to say.
    fn names(&self, kind: Kind, update: &Update) -> BTreeSet<Arc<str>> {
        let names = update.resources.iter().map(|resource| resource.name.as_str());
        let ledger = self.store.ledger();
        names.filter(|name| !ledger.is_static(kind, name)).map(|name| ledger.name(kind, name)).collect()
    }

    /// What is asked for by name.
    fn named<R: Named>(&mut self, update: &Update) -> Result<(), String> {
        for name in &update.removed {
            // There is none: whoever waits for it goes on; but for routes, whose removal Envoy does not listen to.
            if R::KIND != Kind::Route {
                self.waits.came(R::KIND, name);
            }
            self.store.ledger().lacks(R::KIND, name, Absent::Missing);
            self.store.missing(R::KIND, name);
        }
        // What nobody asked for is not kept.
        let is_new =
            |name: &str, bytes: &[u8]| self.store.is_needed(R::KIND, name) && !self.store.keeps(R::KIND, name, bytes);
        let outcome = self.read::<R>(R::KIND, update, is_new).and_then(|Read { mut placed, mut wrong }| {
            placed.retain(|one| self.store.is_needed(R::KIND, one.resource.name()));
            let changed: Vec<String> = placed.iter().map(|one| one.resource.name().to_owned()).collect();
            wrong.extend(R::update(self.store, placed));
            if wrong.is_empty() {
                return Ok(changed);
            }
            update.resources.iter().for_each(|one| self.count_again(R::KIND, &one.name, update));
            Err(joined("", &wrong))
        });
        let now = SystemTime::now();
        for name in outcome.iter().flatten() {
            if let Some(stats) = self.subscriptions.of(R::KIND, name) {
                stats.reloaded(now);
            }
        }
        let outcome = outcome.map(drop);
        let counted = counted(&outcome, update);
        for Resource { name, .. } in &update.resources {
            self.subscriptions.count(R::KIND, name, &counted, self.store, now);
            self.waits.came(R::KIND, name);
            if outcome.is_err() {
                self.store.go_on_without(R::KIND, name);
            }
        }
        outcome
    }

    /// Envoy counts twice what it could read and refuses, where only changes are sent.
    pub(super) fn count_again(&self, kind: Kind, name: &str, update: &Update) {
        if update.delta {
            self.subscriptions.asked_on_stream(kind, name, self.store);
        }
    }

    fn count(&self, kind: Kind, outcome: &Outcome, now: SystemTime) {
        self.subscriptions.count(kind, "", outcome, self.store, now);
    }

    fn finish(&self, kind: Kind, word: &str, update: &Update, wrong: &[FieldError]) -> Result<(), String> {
        let now = SystemTime::now();
        if wrong.is_empty() {
            self.count(kind, &Outcome::Success(update.version.clone()), now);
            return Ok(());
        }
        self.count_again(kind, "", update);
        self.count(kind, &Outcome::Rejected, now);
        Err(format!("Error adding/updating {word}(s) {}", joined("", wrong)))
    }
}

/// Takes the names of an update among those that are known, and returns those that it takes away: never one that did not
/// come from there.
fn replace(known: &mut BTreeSet<Arc<str>>, now: BTreeSet<Arc<str>>, update: &Update) -> Vec<Arc<str>> {
    let removed: BTreeSet<&str> = update.removed.iter().map(String::as_str).collect();
    let is_gone = |name: &&Arc<str>| if update.whole { !now.contains(*name) } else { removed.contains(&***name) };
    let gone: Vec<Arc<str>> = known.iter().filter(is_gone).cloned().collect();
    known.extend(now);
    known.retain(|name| !gone.contains(name));
    gone
}

fn counted(outcome: &Result<(), String>, update: &Update) -> Outcome {
    match outcome {
        Ok(()) => Outcome::Success(update.version.clone()),
        Err(_) => Outcome::Rejected,
    }
}

/// `name: path: reason`, one after the other.
pub(super) fn joined(name: &str, errors: &[FieldError]) -> String {
    let one = |error: &FieldError| {
        let name = error.resource.as_deref().unwrap_or(name);
        let plain = FieldError { resource: None, ..error.clone() };
        if name.is_empty() { plain.to_string() } else { format!("{name}: {plain}") }
    };
    errors.iter().map(one).collect::<Vec<_>>().join(", ")
}
