//! The files that resources come from (`path_config_source`), each a subscription with its stats: what changed is read,
//! checked and handed to the store. It must not know what the resources mean.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use prost::{Message, Name};
use tidegate_filters::context::ConfigSource;
use tidegate_stats::{Scope, Store as StatsStore};
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::envoy::config::listener::v3::Listener as ListenerProto;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, FieldPath};

use crate::config::bootstrap::{Bootstrap, file_of};
use crate::config::files::{self, UnknownDynamicFields, Watched};
use crate::config::store::{Placed, Store};
use crate::config::unknown_fields::UnknownRule;
use crate::stats::subscription::{Subscription, Update};

/// All files of a process.
pub(crate) struct Sources {
    root: Scope,
    rule: UnknownRule,
    clusters: Option<Named>,
    listeners: Option<Named>,
    /// By the name of the route configuration.
    routes: BTreeMap<String, Routes>,
    /// By the name of the assignment.
    assignments: BTreeMap<String, Watched>,
}

/// A file of many resources: one that it no longer names is gone.
struct Named {
    watched: Watched,
    names: Vec<Arc<str>>,
    stats: Subscription,
}

/// A file of one route configuration.
struct Routes {
    watched: Watched,
    stats: Subscription,
}

impl Sources {
    pub(crate) fn new(bootstrap: &Bootstrap, stats: &Arc<StatsStore>, unknown: UnknownDynamicFields) -> Self {
        let root = stats.root();
        let named = |source: &Option<ConfigSource>, stats: &dyn Fn() -> Subscription| {
            let file = source.as_ref().and_then(file_of)?;
            Some(Named { watched: Watched::new(file), names: Vec::new(), stats: stats() })
        };
        let (cds, lds) = (root.scope("cluster_manager.cds."), root.scope("listener_manager.lds."));
        Self {
            clusters: named(&bootstrap.cds, &|| Subscription::with_reloads(&cds)),
            listeners: named(&bootstrap.lds, &|| Subscription::new(&lds)),
            routes: BTreeMap::new(),
            assignments: BTreeMap::new(),
            rule: UnknownRule::new(unknown, &root),
            root,
        }
    }

    /// Whether every file was asked for at least once.
    pub(crate) fn is_settled(&self, store: &Store) -> bool {
        store.route_needs.files().keys().all(|name| self.routes.contains_key(name))
            && store.services.files().keys().all(|name| self.assignments.contains_key(name))
    }

    /// Reads the files that changed, in the order that keeps references whole: clusters, endpoints, listeners, routes.
    /// True when there was one.
    pub(crate) fn read(&mut self, store: &mut Store) -> bool {
        let mut any = false;
        if let Some(clusters) = &mut self.clusters
            && clusters.watched.changed()
        {
            any = true;
            clusters.read_clusters(store, &self.rule);
        }
        follow(&mut self.assignments, store.services.files(), |_, file| Watched::new(file.clone()));
        for (name, watched) in &mut self.assignments {
            if watched.changed() {
                any = true;
                read_assignment(name, watched, store, &self.rule);
            }
        }
        if let Some(listeners) = &mut self.listeners
            && listeners.watched.changed()
        {
            any = true;
            listeners.read_listeners(store, &self.rule);
        }
        follow(&mut self.routes, store.route_needs.files(), |name, file| {
            let prefix = store.route_needs.subscription(name).map_or("", |wanted| &wanted.stats_prefix);
            Routes::new(&self.root, name, prefix, file.clone())
        });
        for (name, routes) in &mut self.routes {
            if routes.watched.changed() {
                any = true;
                routes.read(name, store, &self.rule);
            }
        }
        any
    }
}

/// Follows the files that are needed, and no others.
fn follow<T>(
    followed: &mut BTreeMap<String, T>,
    needed: &BTreeMap<String, PathBuf>,
    new: impl Fn(&str, &PathBuf) -> T,
) {
    followed.retain(|name, _| needed.contains_key(name));
    for (name, file) in needed {
        if !followed.contains_key(name) {
            followed.insert(name.clone(), new(name, file));
        }
    }
}

impl Named {
    fn read_clusters(&mut self, store: &mut Store, rule: &UnknownRule) {
        let update = load::<ClusterProto>(&self.watched, store, rule).map(|(version, resources)| {
            let now: Vec<Arc<str>> = resources.iter().map(|placed| placed.resource.name.as_str().into()).collect();
            let update = judge(&self.watched, version, store.update_clusters(resources));
            let gone = self.gone(&now);
            if !gone.is_empty() {
                store.remove_clusters(&gone);
            }
            self.names = now;
            update
        });
        self.count(update);
    }

    /// What is gone goes first: its address may be another's now.
    fn read_listeners(&mut self, store: &mut Store, rule: &UnknownRule) {
        let update = load::<ListenerProto>(&self.watched, store, rule).map(|(version, resources)| {
            let now: Vec<Arc<str>> = resources.iter().map(|placed| placed.resource.name.as_str().into()).collect();
            let gone = self.gone(&now);
            if !gone.is_empty() {
                store.remove_listeners(&gone);
            }
            self.names = now;
            judge(&self.watched, version, store.update_listeners(resources))
        });
        self.count(update);
    }

    fn gone(&self, now: &[Arc<str>]) -> Vec<Arc<str>> {
        self.names.iter().filter(|name| !now.contains(name)).cloned().collect()
    }

    fn count(&self, update: Result<Update, Update>) {
        let (update, now) = (update.unwrap_or_else(|failed| failed), SystemTime::now());
        self.stats.count(&update, now);
        if matches!(update, Update::Success(_)) {
            self.stats.reloaded(now);
        }
    }
}

impl Routes {
    fn new(root: &Scope, name: &str, stats_prefix: &str, file: PathBuf) -> Self {
        let scope = root.scope(stats_prefix).scope(&format!("rds.{name}."));
        let stats = Subscription::with_empties(&scope);
        Self { watched: Watched::new(file), stats }
    }

    fn read(&mut self, name: &str, store: &mut Store, rule: &UnknownRule) {
        let now = SystemTime::now();
        let update = load::<RouteConfiguration>(&self.watched, store, rule).map(|(version, mut resources)| {
            match (resources.pop(), resources.is_empty()) {
                (None, _) => {
                    self.stats.found_empty();
                    Update::Success(version)
                }
                (Some(routes), true) if routes.resource.name == name => {
                    if store.keeps_routes(name, &routes.text.bytes) {
                        return Update::Success(version);
                    }
                    let update = judge(&self.watched, version, store.update_routes(vec![routes]));
                    if matches!(update, Update::Success(_)) {
                        self.stats.reloaded(now);
                    }
                    update
                }
                _ => unexpected(&self.watched, "route configuration", name),
            }
        });
        let update = update.unwrap_or_else(|failed| failed);
        if !matches!(update, Update::Success(_)) {
            // Whoever waits for their first goes on, as in Envoy.
            store.go_on_without_routes(name);
        }
        self.stats.count(&update, now);
    }
}

fn read_assignment(name: &str, watched: &Watched, store: &mut Store, rule: &UnknownRule) {
    let update = load::<ClusterLoadAssignment>(watched, store, rule).map(|(version, mut resources)| {
        match (resources.pop(), resources.is_empty()) {
            (None, _) => {
                store.missing_assignment(name);
                Update::Success(version)
            }
            (Some(assignment), true) if assignment.resource.cluster_name == name => {
                judge(watched, version, store.update_assignments(vec![assignment]))
            }
            _ => unexpected(watched, "assignment", name),
        }
    });
    let update = update.unwrap_or_else(|failed| failed);
    if !matches!(update, Update::Success(_)) {
        // Clusters that have had endpoints keep them; those that wait for their first go on, as in Envoy.
        store.go_on_without_assignment(name);
    }
    store.count_assignment(name, &update, SystemTime::now());
}

/// A file of one resource holds others, or too many.
fn unexpected(watched: &Watched, kind: &str, name: &str) -> Update {
    let reason = format!("the file must hold one {kind}, '{name}'");
    report(watched, vec![FieldError::new(FieldPath::root().field("resources"), reason)]);
    Update::Rejected
}

fn judge(watched: &Watched, version: String, errors: Vec<FieldError>) -> Update {
    if errors.is_empty() {
        return Update::Success(version);
    }
    report(watched, errors);
    Update::Rejected
}

/// The version and resources of a file, checked and audited; a file that is not whole changes nothing.
fn load<M: Message + Name + Default>(
    watched: &Watched,
    store: &Store,
    rule: &UnknownRule,
) -> Result<(String, Vec<Placed<M>>), Update> {
    let read = files::read(&watched.path, &M::full_name(), rule.fields).map_err(|errors| {
        report(watched, errors);
        Update::Failure
    })?;
    rule.note(&watched.path.display().to_string(), &read.unknown);
    let mut placed = Vec::with_capacity(read.resources.len());
    let mut errors = Vec::new();
    let version = read.version.as_str().into();
    for (index, resource) in read.resources.iter().enumerate() {
        let path = FieldPath::root().field("resources").index(index);
        match check::<M>(resource, store) {
            Ok(message) => {
                let bytes = Bytes::copy_from_slice(&resource.value);
                placed.push(Placed::on_the_wire(message, path, bytes, &version));
            }
            Err(found) => errors.extend(found.into_iter().map(|error| error.under(&path))),
        }
    }
    if errors.is_empty() {
        tracing::info!(file = %watched.path.display(), version = read.version, "read resources");
        Ok((read.version, placed))
    } else {
        report(watched, errors);
        Err(Update::Rejected)
    }
}

fn check<M: Message + Name + Default>(resource: &Any, store: &Store) -> Result<M, Vec<FieldError>> {
    let message = tidegate_xds::load_any::<M>(resource)?;
    let audit = tidegate_xds::audit(&M::full_name(), &resource.value, store.registry().coverage());
    if audit.unsupported.is_empty() { Ok(message) } else { Err(audit.unsupported) }
}

fn report(watched: &Watched, errors: Vec<FieldError>) {
    for error in errors {
        tracing::warn!(file = %watched.path.display(), %error, "rejected");
    }
}
