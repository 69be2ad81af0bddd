//! The files that resources come from (`path_config_source`), each a subscription with its stats: what changed is read,
//! checked and handed to the store. It must not know what the resources mean.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use prost::{Message, Name};
use tidegate_filters::context::ConfigSource;
use tidegate_stats::Store as StatsStore;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use tidegate_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::envoy::config::listener::v3::Listener as ListenerProto;
use tidegate_xds::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration};
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use tidegate_xds::pb::envoy::service::runtime::v3::Runtime as RuntimeProto;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, FieldPath};

use crate::config::bootstrap::{Bootstrap, file_of};
use crate::config::files::{self, UnknownDynamicFields, Watched};
use crate::config::origin::name_of;
use crate::config::store::{Kind, Placed, Resource, ScopeCame, Store};
use crate::config::unknown_fields::UnknownRule;
use crate::stats::subscription::{Subscription, Update};

/// All files of a process.
pub(crate) struct Sources {
    rule: UnknownRule,
    clusters: Option<Named>,
    listeners: Option<Named>,
    /// Of scopes, by their source.
    scopes: BTreeMap<String, Single>,
    singles: BTreeMap<(Kind, String), Single>,
}

/// A file of many resources: one that it no longer names is gone.
struct Named {
    watched: Watched,
    names: Vec<Arc<str>>,
    stats: Subscription,
}

/// A file of one resource.
struct Single {
    watched: Watched,
    /// None: clusters count their endpoints themselves.
    stats: Option<Subscription>,
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
            scopes: BTreeMap::new(),
            singles: BTreeMap::new(),
            rule: UnknownRule::new(unknown, &root),
        }
    }

    /// Whether every file was asked for at least once.
    pub(crate) fn is_settled(&self, store: &Store) -> bool {
        let is_followed = |kind: Kind, name: &String| match kind {
            Kind::Scope => self.scopes.contains_key(name),
            _ => self.singles.contains_key(&(kind, name.clone())),
        };
        Kind::ALL.iter().all(|kind| store.files(*kind).into_iter().flatten().all(|(name, _)| is_followed(*kind, name)))
    }

    /// Reads the files that changed, in the order that keeps references whole: the runtime, clusters, endpoints, listeners,
    /// routes. True when there was one.
    pub(crate) fn read(&mut self, store: &mut Store) -> bool {
        let mut any = self.read_singles::<RuntimeProto>(store);
        if let Some(clusters) = &mut self.clusters
            && clusters.watched.changed()
        {
            any = true;
            clusters.read_clusters(store, &self.rule);
        }
        any |= self.read_singles::<ClusterLoadAssignment>(store);
        any |= self.read_singles::<Secret>(store);
        if let Some(listeners) = &mut self.listeners
            && listeners.watched.changed()
        {
            any = true;
            listeners.read_listeners(store, &self.rule);
        }
        any |= self.read_singles::<Secret>(store);
        any |= self.read_singles::<TypedExtensionConfig>(store);
        any |= self.read_scopes(store);
        any | self.read_singles::<RouteConfiguration>(store)
    }

    /// Follows the files of scopes that are needed, and no others.
    fn read_scopes(&mut self, store: &mut Store) -> bool {
        let Some(needed) = store.files(Kind::Scope) else { return false };
        self.scopes.retain(|source, _| needed.contains_key(source));
        for (source, file) in needed {
            let new =
                || Single { watched: Watched::new(file.clone()), stats: store.subscription_stats(Kind::Scope, source) };
            self.scopes.entry(source.clone()).or_insert_with(new);
        }
        let changed =
            self.scopes.iter_mut().filter_map(|(source, single)| single.watched.changed().then_some((source, single)));
        changed.map(|(source, single)| single.read_scopes(source, store, &self.rule)).count() > 0
    }

    /// Follows the files of a kind that are needed, and no others.
    fn read_singles<R: Resource>(&mut self, store: &mut Store) -> bool {
        let Some(needed) = store.files(R::KIND) else { return false };
        self.singles.retain(|(kind, name), _| *kind != R::KIND || needed.contains_key(name));
        for (name, file) in needed {
            let new = || Single { watched: Watched::new(file.clone()), stats: store.subscription_stats(R::KIND, name) };
            self.singles.entry((R::KIND, name.clone())).or_insert_with(new);
        }
        let of_kind = self.singles.iter_mut().filter(|((kind, _), _)| *kind == R::KIND);
        let changed = of_kind.filter_map(|((_, name), single)| single.watched.changed().then_some((name, single)));
        changed.map(|(name, single)| single.read::<R>(name, store, &self.rule)).count() > 0
    }
}

impl Single {
    fn read_scopes(&self, source: &str, store: &mut Store, rule: &UnknownRule) {
        let loaded = load::<ScopedRouteConfiguration>(&self.watched, store, rule);
        let update = loaded.map(|(version, resources)| {
            let gone = store.scopes_beside(source, resources.iter().map(|placed| placed.resource.name.as_str()));
            let scopes = resources.into_iter().map(|placed| ScopeCame::New(Box::new(placed))).collect();
            let errors = store.update_scopes(source, &version.as_str().into(), scopes, &gone).err();
            judge(&self.watched, version, errors.into_iter().collect())
        });
        let update = update.unwrap_or_else(|failed| failed);
        if !matches!(update, Update::Success(_)) {
            store.go_on_without(Kind::Scope, source);
        }
        if let Some(stats) = &self.stats {
            stats.asked();
            stats.count(&update, SystemTime::now());
        }
    }

    fn read<R: Resource>(&self, name: &str, store: &mut Store, rule: &UnknownRule) {
        let now = SystemTime::now();
        let update = self.take::<R>(name, store, rule, now).unwrap_or_else(|failed| failed);
        if !matches!(update, Update::Success(_)) {
            store.go_on_without(R::KIND, name);
        }
        match &self.stats {
            Some(stats) => {
                stats.asked();
                stats.count(&update, now);
            }
            None => {
                store.asked_assignment(name);
                store.count_assignment(name, &update, now);
            }
        }
    }

    fn take<R: Resource>(
        &self,
        name: &str,
        store: &mut Store,
        rule: &UnknownRule,
        now: SystemTime,
    ) -> Result<Update, Update> {
        let (version, mut resources) = load::<R>(&self.watched, store, rule)?;
        match (resources.pop(), resources.is_empty()) {
            // A filter's configuration is one, or none at all.
            (None, _) if R::KIND == Kind::Extension => Ok(unexpected(&self.watched, R::KIND, name)),
            (None, _) => {
                if let Some(stats) = &self.stats {
                    stats.found_empty();
                }
                store.missing(R::KIND, name);
                Ok(Update::Success(version))
            }
            (Some(mut one), true) if one.resource.name() == name_of(name) => {
                one.resource.call(name.to_owned());
                if store.keeps(R::KIND, name, &one.text.bytes) {
                    return Ok(Update::Success(version));
                }
                let update = judge(&self.watched, version, R::update(store, vec![one]));
                if let (Update::Success(_), Some(stats)) = (&update, &self.stats) {
                    stats.reloaded(now);
                }
                Ok(update)
            }
            _ => Ok(unexpected(&self.watched, R::KIND, name)),
        }
    }
}

impl Named {
    fn read_clusters(&mut self, store: &mut Store, rule: &UnknownRule) {
        let update = load::<ClusterProto>(&self.watched, store, rule).map(|(version, resources)| {
            let now: Vec<Arc<str>> = resources.iter().map(|placed| placed.resource.name.as_str().into()).collect();
            let (moves, named) = (store.ledger().moves(Kind::Cluster), version.clone());
            let update = judge(&self.watched, version, store.update_clusters(resources));
            let gone = self.gone(&now);
            if !gone.is_empty() {
                store.remove_clusters(&gone);
            }
            store.ledger().loads(Kind::Cluster, &named, moves);
            self.names = now;
            update
        });
        self.count(update);
    }

    /// What is gone goes first: its address may be another's now.
    fn read_listeners(&mut self, store: &mut Store, rule: &UnknownRule) {
        let update = load::<ListenerProto>(&self.watched, store, rule).map(|(version, resources)| {
            let now: Vec<Arc<str>> = resources.iter().map(|placed| placed.resource.name.as_str().into()).collect();
            let (gone, moves) = (self.gone(&now), store.ledger().moves(Kind::Listener));
            if !gone.is_empty() {
                store.remove_listeners(&gone);
            }
            self.names = now;
            let errors = store.update_listeners(resources);
            store.ledger().loads(Kind::Listener, &version, moves);
            judge(&self.watched, version, errors)
        });
        self.count(update);
    }

    fn gone(&self, now: &[Arc<str>]) -> Vec<Arc<str>> {
        self.names.iter().filter(|name| !now.contains(name)).cloned().collect()
    }

    fn count(&self, update: Result<Update, Update>) {
        let (update, now) = (update.unwrap_or_else(|failed| failed), SystemTime::now());
        self.stats.asked();
        self.stats.count(&update, now);
        if matches!(update, Update::Success(_)) {
            self.stats.reloaded(now);
        }
    }
}

/// A file of one resource holds others, or too many.
fn unexpected(watched: &Watched, kind: Kind, name: &str) -> Update {
    let reason = format!("the file must hold one {}, '{}'", kind.message(), name_of(name));
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
                let bytes = resource.value.as_slice().into();
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
