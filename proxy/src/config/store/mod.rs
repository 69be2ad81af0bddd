//! Keeps the last good of every resource, compiles what comes, and publishes a snapshot once what is new is warm.
//! One path for all: the bootstrap's static resources, files, and whatever brings resources later. It must not know where
//! they come from.

mod assignments;
mod clusters;
mod extensions;
mod ledger;
mod lined;
mod listeners;
mod needs;
mod resource;
mod routes;
mod runtime;
mod scopes;
mod secrets;
#[cfg(test)]
mod testing;
mod virtual_hosts;
mod waiting;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use prost::Message;
use tidegate_filters::context::{ConfigSource, ExtensionSubscription, Needs, RouteSubscription, ScopesSubscription};
use tidegate_xds::pb::envoy::config::bootstrap::v3::Admin;
use tidegate_xds::{FieldError, FieldPath};

use super::Compiler;
use super::admin::AdminOptions;
use super::registry::Registry;
use crate::app::Shared;
use crate::cluster::Cluster;
use crate::listener::Listener;
use crate::runtime::Layers;
use crate::snapshot::Snapshot;
use crate::stats::cluster_manager::ClusterManagerStats;

pub(crate) use ledger::{Absent, Entry, InlineScopes, Kind, Ledger, Refused, ScopeSource, Text};
use lined::Lined;
pub(crate) use lined::SECOND_OF_NAME;
pub(crate) use needs::{Moved, Owner, Services, Wanted};
pub(crate) use resource::Resource;
use scopes::ScopeSet;
pub(crate) use scopes::{ScopeCame, scope_entry, scope_of};
use secrets::{InFiles, Unsecured};
use virtual_hosts::HostSet;
pub(crate) use virtual_hosts::{AskedHost, HostUpdate, routes_of};
use waiting::Waiting;

/// A resource, where it stands (for errors), and the text that it was read from.
pub(crate) struct Placed<T> {
    pub resource: T,
    pub path: FieldPath,
    pub text: Text,
}

impl<T: Message> Placed<T> {
    /// One that came in another format.
    pub(crate) fn encoded(resource: T, path: FieldPath, version: &Arc<str>) -> Self {
        let bytes = resource.encode_to_vec();
        Self::on_the_wire(resource, path, bytes.into(), version)
    }

    /// One that came as `bytes`.
    pub(crate) fn on_the_wire(resource: T, path: FieldPath, bytes: Arc<[u8]>, version: &Arc<str>) -> Self {
        Self { resource, path, text: Text { bytes, version: Arc::clone(version), at: SystemTime::now() } }
    }
}

/// The resources of a process.
pub(crate) struct Store {
    compiler: Compiler,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    /// What is compiled and waits until what it needs is there.
    warming_clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    warming_listeners: BTreeMap<Arc<str>, Warming<Listener>>,
    /// Clusters that serve already and have not been resolved yet (`wait_for_warm_on_init` is off).
    unwaited: Vec<Arc<Cluster>>,
    pub(crate) services: Services,
    pub(crate) route_needs: Wanted<RouteSubscription>,
    /// Layers of the runtime, by the name of their resource.
    pub(crate) runtime_needs: Wanted<ConfigSource>,
    /// Configurations of filters.
    pub(crate) extension_needs: Wanted<ExtensionSubscription>,
    /// Scopes of routes, by what tells their source from others.
    pub(crate) scope_needs: Wanted<ScopesSubscription>,
    /// Secrets of listeners and clusters.
    pub(crate) secret_needs: Wanted<ConfigSource>,
    /// Clusters that warm and wait for secrets.
    unsecured: BTreeMap<Arc<str>, Unsecured>,
    /// Secrets whose parts are in files.
    secret_files: BTreeMap<String, InFiles>,
    scopes: BTreeMap<Arc<str>, ScopeSet>,
    /// Exchanges that wait for route configurations.
    waiting: Waiting,
    /// Virtual hosts, by the route configuration that they belong to.
    pub(crate) host_needs: Wanted<RouteSubscription>,
    virtual_hosts: BTreeMap<Arc<str>, HostSet>,
    asked_hosts: Vec<AskedHost>,
    /// Route configurations in line that discover virtual hosts.
    lined: Lined,
    /// Exchanges that wait for virtual hosts.
    waiting_hosts: Waiting,
    layers: Arc<Layers>,
    stats: ClusterManagerStats,
    /// The bootstrap has been taken; what comes now is dynamic.
    pub(crate) started: bool,
    /// Of the listeners, which are counted from 1.
    last_position: u64,
    /// Resources that no listener names any more, and since when: chains that drain still use them.
    leaving: VecDeque<(Instant, Kind, Arc<str>)>,
    /// Snapshots that exchanges may still hold: the last to let go of one is the control runtime, never a worker.
    retired: Vec<Arc<Snapshot>>,
}

/// The layers that are discovered, which the bootstrap names for as long as the process lives.
fn runtime_needs(layers: &Layers) -> Wanted<ConfigSource> {
    let mut needs = Wanted::default();
    needs.set(&Owner::Bootstrap, &layers.discovered().collect());
    needs
}

/// What waits until what it needs is there.
struct Warming<T> {
    compiled: Arc<T>,
    needs: Needs,
}

impl Store {
    pub(crate) fn new(compiler: Compiler, shared: Arc<Shared>, layers: Arc<Layers>) -> Self {
        Self {
            stats: ClusterManagerStats::new(&compiler.stats.scope("cluster_manager.")),
            compiler,
            shared,
            ledger: Arc::default(),
            warming_clusters: BTreeMap::new(),
            warming_listeners: BTreeMap::new(),
            unwaited: Vec::new(),
            services: Services::default(),
            runtime_needs: runtime_needs(&layers),
            layers,
            route_needs: Wanted::default(),
            extension_needs: Wanted::default(),
            scope_needs: Wanted::default(),
            secret_needs: Wanted::default(),
            unsecured: BTreeMap::new(),
            secret_files: BTreeMap::new(),
            scopes: BTreeMap::new(),
            waiting: Waiting::default(),
            host_needs: Wanted::default(),
            virtual_hosts: BTreeMap::new(),
            asked_hosts: Vec::new(),
            lined: Lined::default(),
            waiting_hosts: Waiting::default(),
            started: false,
            last_position: 0,
            leaving: VecDeque::new(),
            retired: Vec::new(),
        }
    }

    /// What the bootstrap says of the admin interface.
    pub(crate) fn admin(&self, admin: &Admin) -> Result<AdminOptions, FieldError> {
        let mut needs = Needs::default();
        let mut context = self.compiler.context("bootstrap", FieldPath::root().field("admin"), &mut needs);
        super::admin::compile(&self.compiler, admin, &mut context)
    }

    /// What became of every resource.
    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The filters that configurations may name.
    pub(crate) fn registry(&self) -> &'static Registry {
        self.compiler.registry
    }

    /// Everything that still warms goes on without what it waits for (`initial_fetch_timeout`).
    pub(crate) fn stop_waiting(&mut self) {
        let clusters = std::mem::take(&mut self.warming_clusters).into_values().collect();
        self.publish_clusters(clusters);
        let listeners = std::mem::take(&mut self.warming_listeners);
        let listeners = listeners.into_values().map(|warming| self.take_over(warming)).collect();
        self.publish_listeners(listeners);
    }

    pub(crate) fn is_warming(&self) -> bool {
        !self.warming_clusters.is_empty() || !self.warming_listeners.is_empty()
    }

    pub(crate) fn warming_listeners(&self) -> usize {
        self.warming_listeners.len()
    }

    /// The resources of a kind that come from files of their own, by name.
    pub(crate) fn files(&self, kind: Kind) -> Option<&BTreeMap<String, PathBuf>> {
        match kind {
            Kind::Endpoints => Some(self.services.files()),
            Kind::Route => Some(self.route_needs.files()),
            Kind::Runtime => Some(self.runtime_needs.files()),
            Kind::Extension => Some(self.extension_needs.files()),
            Kind::Scope => Some(self.scope_needs.files()),
            Kind::Secret => Some(self.secret_needs.files()),
            Kind::Cluster | Kind::Listener | Kind::VirtualHost => None,
        }
    }

    /// Whether somebody needs the resource of this name.
    pub(crate) fn is_needed(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Endpoints => self.services.is_needed(name),
            Kind::Route => self.route_needs.is_needed(name),
            Kind::Runtime => self.runtime_needs.is_needed(name),
            Kind::Extension => self.extension_needs.is_needed(name),
            Kind::Scope => self.scope_needs.is_needed(name),
            Kind::VirtualHost => self.host_needs.is_needed(name),
            Kind::Secret => self.secret_needs.is_needed(name),
            Kind::Cluster | Kind::Listener => true,
        }
    }

    /// The needs of a kind that have begun or ended since this was last asked.
    pub(crate) fn take_moved(&mut self, kind: Kind) -> Vec<Moved> {
        match kind {
            Kind::Endpoints => self.services.take_moved(),
            Kind::Route => self.route_needs.take_moved(),
            Kind::Runtime => self.runtime_needs.take_moved(),
            Kind::Extension => self.extension_needs.take_moved(),
            Kind::Scope => self.scope_needs.take_moved(),
            Kind::VirtualHost => self.host_needs.take_moved(),
            Kind::Secret => self.secret_needs.take_moved(),
            Kind::Cluster | Kind::Listener => Vec::new(),
        }
    }

    fn refuse<T>(&self, kind: Kind, name: &str, placed: Placed<T>, error: &FieldError) {
        tracing::debug!("refused {kind:?} '{name}': {error}");
        let plain = FieldError { resource: None, ..error.clone() };
        self.ledger.refuses(kind, name, placed.text, plain.to_string());
    }

    fn publish(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let next = self.shared.snapshot().build(change);
        self.retired.push(self.shared.publish(next));
        self.sweep();
    }

    /// Lets go of what nobody uses any more.
    pub(crate) fn sweep(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    /// To free one takes long where it was large.
    #[test]
    fn a_snapshot_that_a_worker_lets_go_of_last_is_freed_on_the_control_thread() {
        let mut store = super::testing::store();
        let held = store.shared.snapshot();
        let seen = Arc::downgrade(&held);
        store.publish(|_| {});
        store.publish(|_| {});
        std::thread::spawn(move || drop(held)).join().unwrap();
        assert!(seen.upgrade().is_some(), "the worker freed it");
        store.sweep();
        assert!(seen.upgrade().is_none());
    }
}
