//! Takes what streams bring to the store and says what is wrong with it, in Envoy's words; counts it. A resource that cannot be
//! read rejects the whole response; one that cannot act is rejected alone, and the others act.
//! It must not know how the answer travels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use prost::{Message, Name};
use tidegate_control::client::{Handler, Interest, Resource, Update};
use tidegate_stats::Scope;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::envoy::config::listener::v3::Listener as ListenerProto;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, FieldPath};

use super::Kind;
use super::waits::Waits;
use crate::config::store::{Placed, Store};
use crate::config::unknown_fields::UnknownRule;
use crate::stats::subscription::{Subscription, Update as Outcome};

/// What is counted of each subscription, and the names that came without being asked for by name.
pub(super) struct Subscriptions {
    root: Scope,
    clusters: Option<Subscription>,
    listeners: Option<Subscription>,
    routes: BTreeMap<String, Subscription>,
    cluster_names: BTreeSet<Arc<str>>,
    listener_names: BTreeSet<Arc<str>>,
}

impl Subscriptions {
    pub(super) fn new(root: &Scope) -> Self {
        Self {
            root: root.clone(),
            clusters: None,
            listeners: None,
            routes: BTreeMap::new(),
            cluster_names: BTreeSet::new(),
            listener_names: BTreeSet::new(),
        }
    }

    /// A subscription begins.
    pub(super) fn begin(&mut self, kind: Kind, name: &str, store: &Store) {
        match kind {
            Kind::Cluster => {
                self.clusters = Some(Subscription::with_reloads(&self.root.scope("cluster_manager.cds.")));
            }
            Kind::Listener => self.listeners = Some(Subscription::new(&self.root.scope("listener_manager.lds."))),
            Kind::Route => {
                if let Some(wanted) = store.wanted_routes.get(name) {
                    let scope = self.root.scope(&wanted.stats_prefix).scope(&format!("rds.{name}."));
                    self.routes.insert(name.to_owned(), Subscription::with_empties(&scope));
                }
            }
            Kind::Endpoints => store.asked_assignment(name),
        }
        if let Some(stats) = self.of(kind, name) {
            stats.asked();
        }
    }

    fn of(&self, kind: Kind, name: &str) -> Option<&Subscription> {
        match kind {
            Kind::Cluster => self.clusters.as_ref(),
            Kind::Listener => self.listeners.as_ref(),
            Kind::Route => self.routes.get(name),
            Kind::Endpoints => None,
        }
    }

    fn count(&self, kind: Kind, name: &str, outcome: &Outcome, store: &Store, now: SystemTime) {
        if kind == Kind::Endpoints {
            store.count_assignment(name, outcome, now);
        } else if let Some(stats) = self.of(kind, name) {
            stats.count(outcome, now);
            if matches!(outcome, Outcome::Success(_)) {
                stats.reloaded(now);
            }
        }
    }

    /// Counts what became of everything that a stream was asked for.
    pub(super) fn count_all(&self, asked: &[(Kind, Interest)], outcome: &Outcome, store: &Store, now: SystemTime) {
        for (kind, interest) in asked {
            let names = interest.names_asked();
            if names.is_empty() && !matches!(kind, Kind::Endpoints | Kind::Route) {
                self.count(*kind, "", outcome, store, now);
            }
            names.iter().for_each(|name| self.count(*kind, name, outcome, store, now));
        }
    }

    /// What was asked for did not come in time: what waits for it goes on without.
    pub(super) fn timed_out(&self, kind: Kind, name: &str, store: &mut Store) {
        tracing::warn!(?kind, name, "gave up waiting for the first answer");
        match self.of(kind, name) {
            Some(stats) => stats.fetch_timed_out(),
            None => store.assignment_timed_out(name),
        }
        match kind {
            Kind::Endpoints => store.go_on_without_assignment(name),
            Kind::Route => store.go_on_without_routes(name),
            Kind::Cluster | Kind::Listener => {}
        }
    }
}

/// Takes updates to the store.
pub(super) struct Apply<'a> {
    pub(super) store: &'a mut Store,
    pub(super) subscriptions: &'a mut Subscriptions,
    pub(super) waits: &'a mut Waits,
    pub(super) unknown: &'a UnknownRule,
}

impl Handler for Apply<'_> {
    fn name_of(&self, body: &Any) -> Option<String> {
        match Kind::of(&body.type_url)? {
            Kind::Cluster => ClusterProto::decode(&*body.value).ok().map(|cluster| cluster.name),
            Kind::Endpoints => ClusterLoadAssignment::decode(&*body.value).ok().map(|endpoints| endpoints.cluster_name),
            Kind::Listener => ListenerProto::decode(&*body.value).ok().map(|listener| listener.name),
            Kind::Route => RouteConfiguration::decode(&*body.value).ok().map(|routes| routes.name),
        }
    }

    fn apply(&mut self, update: Update) -> Result<(), String> {
        let Some(kind) = Kind::of(&update.type_url) else { return Ok(()) };
        let result = match kind {
            Kind::Cluster => self.clusters(&update),
            Kind::Listener => self.listeners(&update),
            Kind::Endpoints => self.endpoints(&update),
            Kind::Route => self.routes(&update),
        };
        if let Err(reason) = &result {
            tracing::warn!(?kind, version = update.version, reason, "rejected");
        }
        result
    }
}

/// What a response holds of one type: what can act, and what is wrong with the rest.
struct Read<M> {
    placed: Vec<Placed<M>>,
    wrong: Vec<FieldError>,
}

impl Apply<'_> {
    /// # Errors
    /// A resource that cannot be read, or breaks the schema's rules: nothing of the response acts.
    fn read<M: Message + Name + Default>(&self, update: &Update) -> Result<Read<M>, String> {
        let mut read = Read { placed: Vec::with_capacity(update.resources.len()), wrong: Vec::new() };
        for Resource { name, body, .. } in &update.resources {
            let Some(body) = body else { continue };
            let message = tidegate_xds::load_any::<M>(body).map_err(|errors| joined(name, &errors))?;
            let audit = tidegate_xds::audit(&M::full_name(), &body.value, self.store.registry().coverage());
            if self.unknown.rejects() && !audit.unknown.is_empty() {
                return Err(joined(name, &audit.unknown));
            }
            self.unknown.note(name, &audit.unknown);
            if audit.unsupported.is_empty() {
                read.placed.push(Placed { resource: message, path: FieldPath::root() });
            } else {
                read.wrong.extend(audit.unsupported.into_iter().map(|error| error.in_resource(name)));
            }
        }
        Ok(read)
    }

    fn clusters(&mut self, update: &Update) -> Result<(), String> {
        let now = SystemTime::now();
        let read =
            self.read::<ClusterProto>(update).inspect_err(|_| self.count(Kind::Cluster, &Outcome::Rejected, now))?;
        let Read { mut placed, mut wrong } = read;
        placed.retain(|cluster| !self.store.is_static_cluster(&cluster.resource.name));
        let names: Vec<Arc<str>> = update.resources.iter().map(|resource| resource.name.as_str().into()).collect();
        wrong.extend(self.store.update_clusters(placed));
        let known = &mut self.subscriptions.cluster_names;
        let gone = gone(known, &names, update);
        known.extend(names);
        known.retain(|name| !gone.contains(name));
        self.store.remove_clusters(&gone);
        self.waits.came(Kind::Cluster, "");
        self.finish(Kind::Cluster, "cluster", update, &wrong, now)
    }

    fn listeners(&mut self, update: &Update) -> Result<(), String> {
        let now = SystemTime::now();
        let read =
            self.read::<ListenerProto>(update).inspect_err(|_| self.count(Kind::Listener, &Outcome::Rejected, now))?;
        let Read { placed, mut wrong } = read;
        let names: Vec<Arc<str>> = update.resources.iter().map(|resource| resource.name.as_str().into()).collect();
        let known = &mut self.subscriptions.listener_names;
        // What is gone goes first: its address may be another's now.
        let gone = gone(known, &names, update);
        known.extend(names);
        known.retain(|name| !gone.contains(name));
        self.store.remove_listeners(&gone);
        wrong.extend(self.store.update_listeners(placed));
        self.waits.came(Kind::Listener, "");
        self.finish(Kind::Listener, "listener", update, &wrong, now)
    }

    fn endpoints(&mut self, update: &Update) -> Result<(), String> {
        let now = SystemTime::now();
        let names: Vec<String> = update.resources.iter().map(|resource| resource.name.clone()).collect();
        let outcome = self.read::<ClusterLoadAssignment>(update).and_then(|Read { placed, mut wrong }| {
            wrong.extend(self.store.update_assignments(placed));
            if wrong.is_empty() { Ok(()) } else { Err(joined("", &wrong)) }
        });
        let counted = counted(&outcome, update);
        for name in names {
            self.store.count_assignment(&name, &counted, now);
            if outcome.is_ok() {
                self.waits.came(Kind::Endpoints, &name);
            }
        }
        outcome
    }

    fn routes(&mut self, update: &Update) -> Result<(), String> {
        let now = SystemTime::now();
        let names: Vec<String> = update.resources.iter().map(|resource| resource.name.clone()).collect();
        let outcome = self.read::<RouteConfiguration>(update).and_then(|Read { placed, mut wrong }| {
            wrong.extend(self.store.update_routes(placed));
            if wrong.is_empty() { Ok(()) } else { Err(joined("", &wrong)) }
        });
        let counted = counted(&outcome, update);
        for name in names {
            self.subscriptions.count(Kind::Route, &name, &counted, self.store, now);
            if outcome.is_ok() {
                self.waits.came(Kind::Route, &name);
            }
        }
        outcome
    }

    fn count(&self, kind: Kind, outcome: &Outcome, now: SystemTime) {
        self.subscriptions.count(kind, "", outcome, self.store, now);
    }

    fn finish(
        &self,
        kind: Kind,
        word: &str,
        update: &Update,
        wrong: &[FieldError],
        now: SystemTime,
    ) -> Result<(), String> {
        if wrong.is_empty() {
            self.count(kind, &Outcome::Success(update.version.clone()), now);
            return Ok(());
        }
        self.count(kind, &Outcome::Rejected, now);
        Err(format!("Error adding/updating {word}(s) {}", joined("", wrong)))
    }
}

fn counted(outcome: &Result<(), String>, update: &Update) -> Outcome {
    match outcome {
        Ok(()) => Outcome::Success(update.version.clone()),
        Err(_) => Outcome::Rejected,
    }
}

/// What an update takes away.
fn gone(known: &BTreeSet<Arc<str>>, now: &[Arc<str>], update: &Update) -> Vec<Arc<str>> {
    if update.whole {
        let now: BTreeSet<_> = now.iter().collect();
        known.iter().filter(|name| !now.contains(name)).cloned().collect()
    } else {
        update.removed.iter().map(|name| name.as_str().into()).collect()
    }
}

/// `name: path: reason`, one after the other.
fn joined(name: &str, errors: &[FieldError]) -> String {
    let one = |error: &FieldError| {
        let name = error.resource.as_deref().unwrap_or(name);
        let plain = FieldError { resource: None, ..error.clone() };
        if name.is_empty() { plain.to_string() } else { format!("{name}: {plain}") }
    };
    errors.iter().map(one).collect::<Vec<_>>().join(", ")
}
