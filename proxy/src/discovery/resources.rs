//! Takes what streams bring to the store and says what is wrong with it, in Envoy's words; counts it. A resource that cannot be
//! read rejects the whole response; one that cannot act is rejected alone, and the others act.
//! It must not know how the answer travels.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use prost::{Message, Name};
use tidegate_control::client::rest::{Brought, Rejected};
use tidegate_control::client::{Handler, Interest, Resource, Rest, Update};
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
use super::subscriptions::{Subscriptions, names_of};
use super::waits::Waits;
use crate::config::origin::{Origin, is_name, name_of};
use crate::config::store::{Absent, Kind, Placed, Resource as Named, ScopeCame, Store, Text, scope_entry};
use crate::config::unknown_fields::UnknownRule;
use crate::stats::subscription::Update as Outcome;

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
    /// What the stream asks for besides; a poll asks for nothing besides.
    pub(super) asked: &'a BTreeMap<Kind, Interest>,
    /// Where it comes from, which is part of what it is called.
    pub(super) origin: &'a Origin,
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
            Kind::Endpoints | Kind::Route | Kind::Runtime | Kind::Extension | Kind::Secret => {
                self.refuse_asked(kind, &BTreeSet::new());
            }
        }
    }

    fn apply(&mut self, mut update: Update) -> Result<(), String> {
        let Some(kind) = Kind::of(&update.type_url) else { return Ok(()) };
        self.call(kind, &mut update);
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

impl Apply<'_> {
    /// From here on everything is called as it is called here.
    fn call(&self, kind: Kind, update: &mut Update) {
        if kind == Kind::Secret {
            // Nobody asks for such a name: it would be that of another source.
            update.resources.retain(|resource| is_name(&resource.name));
            update.removed.retain(|name| is_name(name));
        }
        if *self.origin == Origin::default() {
            return;
        }
        let names = update.resources.iter_mut().map(|resource| &mut resource.name);
        names.chain(&mut update.removed).for_each(|name| *name = self.origin.call(name));
    }
}

/// What a response holds of one type: what can act, and what is wrong with the rest.
struct Read<M> {
    placed: Vec<Placed<M>>,
    /// By what names they came.
    names: Vec<String>,
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
        let mut read = Read { placed: Vec::new(), names: Vec::new(), wrong: Vec::new() };
        let version: Arc<str> = update.version.as_str().into();
        let mut unreadable = None;
        for resource in &update.resources {
            let name = &resource.name;
            let Some(body) = resource.body.as_ref().filter(|body| is_new(name, &body.value)) else { continue };
            match self.read_placed(kind, name, resource, body, &version) {
                Ok(placed) => {
                    read.placed.push(placed);
                    read.names.push(name.clone());
                }
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
        let moves = self.store.ledger().moves(Kind::Cluster);
        let Read { placed, mut wrong, .. } = self.read_own::<ClusterProto>(Kind::Cluster, update)?;
        let changed = !placed.is_empty();
        wrong.extend(self.store.update_clusters(placed));
        let names = self.names(Kind::Cluster, update);
        let gone = replace(&mut self.subscriptions.cluster_names, names, update);
        self.store.remove_clusters(&gone);
        self.store.ledger().loads(Kind::Cluster, &update.version, moves);
        self.finish(Kind::Cluster, "cluster", update, &wrong)?;
        if changed || !gone.is_empty() {
            self.subscriptions.clusters.iter().for_each(|stats| stats.reloaded(SystemTime::now()));
        }
        Ok(())
    }

    fn listeners(&mut self, update: &Update) -> Result<(), String> {
        self.waits.came(Kind::Listener, "");
        let moves = self.store.ledger().moves(Kind::Listener);
        let Read { placed, mut wrong, .. } = self.read_own::<ListenerProto>(Kind::Listener, update)?;
        let names = self.names(Kind::Listener, update);
        // What is gone goes first: its address may be another's now.
        let gone = replace(&mut self.subscriptions.listener_names, names, update);
        self.store.remove_listeners(&gone);
        wrong.extend(self.store.update_listeners(placed));
        self.store.ledger().loads(Kind::Listener, &update.version, moves);
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

    /// A response is rejected for everybody who asks for something of its type, as in Envoy; but for those that are told
    /// already.
    fn refuse_asked(&mut self, kind: Kind, told: &BTreeSet<&str>) {
        let Some(asked) = self.asked.get(&kind) else { return };
        let called = asked.names_asked().iter().map(|name| self.origin.call(name));
        called.filter(|name| !told.contains(&**name)).for_each(|name| self.refuse_one(kind, &name));
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
            if matches!(R::KIND, Kind::Runtime | Kind::Secret) {
                self.store.go_on_without(R::KIND, name);
                let outcome = Outcome::Success(update.version.clone());
                self.subscriptions.count(R::KIND, name, &outcome, self.store, SystemTime::now());
            }
        }
        // What nobody asked for is not kept.
        let is_new =
            |name: &str, bytes: &[u8]| self.store.is_needed(R::KIND, name) && !self.store.keeps(R::KIND, name, bytes);
        let outcome = self.read::<R>(R::KIND, update, is_new).and_then(|Read { placed: came, names, mut wrong }| {
            let mut placed = Vec::with_capacity(came.len());
            for (mut one, called) in came.into_iter().zip(names) {
                // What calls itself otherwise than it came is not what was asked for.
                let (own, expected) = (one.resource.name(), name_of(&called));
                if own != expected {
                    let reason = format!("Unexpected {} (expecting {expected}): {own}", R::KIND.message());
                    wrong.push(FieldError::new(FieldPath::root().field("name"), reason).in_resource(&called));
                    continue;
                }
                one.resource.call(called);
                placed.push(one);
            }
            keep_firsts(&mut placed, update);
            placed.retain(|one| self.store.is_needed(R::KIND, one.resource.name()));
            let changed: Vec<String> = placed.iter().map(|one| one.resource.name().to_owned()).collect();
            wrong.extend(R::update(self.store, placed));
            if wrong.is_empty() {
                return Ok(changed);
            }
            names_of(update).iter().for_each(|name| self.count_again(R::KIND, name, update));
            Err(joined("", &wrong))
        });
        let (now, told) = (SystemTime::now(), names_of(update));
        for name in outcome.iter().flatten() {
            if let Some(stats) = self.subscriptions.of(R::KIND, name) {
                stats.reloaded(now);
            }
        }
        let outcome = outcome.map(drop);
        let counted = counted(&outcome, update);
        for name in &told {
            self.subscriptions.count(R::KIND, name, &counted, self.store, now);
            self.waits.came(R::KIND, name);
            if outcome.is_err() {
                self.store.go_on_without(R::KIND, name);
            }
        }
        if outcome.is_err() {
            self.refuse_asked(R::KIND, &told);
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
    for name in &gone {
        known.remove(name);
    }
    gone
}

/// Of two resources of one name the first is taken, as in Envoy. (Where only changes are sent they are refused before.)
fn keep_firsts<R: Named>(placed: &mut Vec<Placed<R>>, update: &Update) {
    let mut firsts = HashMap::with_capacity(update.resources.len());
    for resource in &update.resources {
        firsts.entry(&*resource.name).or_insert(resource.body.as_ref().map(|body| &*body.value));
    }
    let is_first = |one: &Placed<R>| {
        let Some(first) = firsts.get_mut(one.resource.name()) else { return true };
        first.take().is_some_and(|bytes| *bytes == *one.text.bytes)
    };
    placed.retain(is_first);
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
        let name = name_of(error.resource.as_deref().unwrap_or(name));
        let plain = FieldError { resource: None, ..error.clone() };
        if name.is_empty() { plain.to_string() } else { format!("{name}: {plain}") }
    };
    errors.iter().map(one).collect::<Vec<_>>().join(", ")
}
