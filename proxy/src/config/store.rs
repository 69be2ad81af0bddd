//! Keeps the last good of every resource, compiles what comes, and publishes a snapshot once what is new is warm.
//! One path for all: the bootstrap's static resources, files, and whatever brings resources later. It must not know where
//! they come from.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;
use tidegate_filters::context::{ConfigSource, Needs, RouteSubscription};
use tidegate_xds::pb::envoy::config::bootstrap::v3::Admin;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::envoy::config::listener::v3::Listener as ListenerProto;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::{FieldError, FieldPath};

use super::admin::AdminOptions;
use super::registry::Registry;
use super::{Compiler, RouteOrigin, listener};
use crate::app::Shared;
use crate::cluster::Cluster;
use crate::cluster::options::Discovery;
use crate::listener::{ListenAddress, Listener};
use crate::process::{Accepteds, Kind};
use crate::snapshot::Snapshot;
use crate::stats::cluster_manager::ClusterManagerStats;
use crate::stats::subscription::Update;

/// Where a resource stands, for errors.
pub(crate) struct Placed<T> {
    pub resource: T,
    pub path: FieldPath,
}

/// What waits until what it needs is there.
struct Warming<T> {
    compiled: Arc<T>,
    needs: Needs,
}

/// The resources of a process.
pub(crate) struct Store {
    compiler: Compiler,
    shared: Arc<Shared>,
    /// Digests of what was accepted last, by kind and name: an equal resource is no change.
    clusters: HashMap<Arc<str>, u64>,
    listeners: HashMap<Arc<str>, u64>,
    /// Those of the bootstrap: no source changes them.
    static_clusters: HashSet<Arc<str>>,
    static_listeners: HashSet<Arc<str>>,
    /// Services whose clusters have begun to warm since they were last asked about.
    warming_again: BTreeSet<String>,
    /// The route configurations that each listener needs.
    listener_routes: HashMap<Arc<str>, Vec<String>>,
    /// Route configurations that were waited for long enough.
    given_up_routes: HashSet<String>,
    /// The last good assignment by name (EDS).
    assignments: HashMap<String, ClusterLoadAssignment>,
    warming_clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    warming_listeners: BTreeMap<Arc<str>, Warming<Listener>>,
    /// Clusters that serve already and have not been resolved yet (`wait_for_warm_on_init` is off).
    unwaited: Vec<Arc<Cluster>>,
    stats: ClusterManagerStats,
    /// What listeners and clusters asked for.
    pub(crate) wanted_routes: BTreeMap<String, RouteSubscription>,
    pub(crate) wanted_assignments: BTreeMap<String, ConfigSource>,
    /// What acts, as it came.
    accepted: Arc<Accepteds>,
    /// The bootstrap has been taken; what comes now is dynamic.
    pub(crate) started: bool,
    /// Of the listeners, which are counted from 1.
    last_position: u64,
}

impl Store {
    pub(crate) fn new(compiler: Compiler, shared: Arc<Shared>) -> Self {
        Self {
            stats: ClusterManagerStats::new(&compiler.stats.scope("cluster_manager.")),
            compiler,
            shared,
            clusters: HashMap::new(),
            listeners: HashMap::new(),
            static_clusters: HashSet::new(),
            static_listeners: HashSet::new(),
            warming_again: BTreeSet::new(),
            listener_routes: HashMap::new(),
            given_up_routes: HashSet::new(),
            assignments: HashMap::new(),
            warming_clusters: BTreeMap::new(),
            warming_listeners: BTreeMap::new(),
            unwaited: Vec::new(),
            wanted_routes: BTreeMap::new(),
            wanted_assignments: BTreeMap::new(),
            accepted: Arc::default(),
            started: false,
            last_position: 0,
        }
    }

    /// What the bootstrap says of the admin interface.
    pub(crate) fn admin(&self, admin: &Admin) -> Result<AdminOptions, FieldError> {
        let mut needs = Needs::default();
        let mut context = self.compiler.context("bootstrap", FieldPath::root().field("admin"), &mut needs);
        super::admin::compile(&self.compiler, admin, &mut context)
    }

    /// The resources that act, for whoever shows them.
    pub(crate) fn accepted(&self) -> Arc<Accepteds> {
        Arc::clone(&self.accepted)
    }

    /// Adds or changes clusters; the good ones are taken, the others reported.
    pub(crate) fn update_clusters(&mut self, clusters: Vec<Placed<ClusterProto>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut ready = Vec::new();
        let mut seen: HashSet<Arc<str>> = HashSet::new();
        for Placed { resource, path } in clusters {
            let name: Arc<str> = resource.name.as_str().into();
            if !seen.insert(Arc::clone(&name)) {
                let reason = format!("duplicate cluster '{name}': only the first of one name is taken");
                errors.push(FieldError::new(path.field("name"), reason).in_resource(&resource.name));
                continue;
            }
            let digest = listener::digest(&resource);
            if self.clusters.get(&name) == Some(&digest) {
                continue;
            }
            match self.compile_cluster(&resource, path) {
                Ok(cluster) => {
                    match self.clusters.insert(Arc::clone(&name), digest) {
                        None => self.stats.cluster_added().inc(),
                        Some(_) => self.stats.cluster_modified().inc(),
                    }
                    self.accepted.put(Kind::Cluster, &name, resource.encode_to_vec(), !self.started);
                    if !self.started {
                        self.static_clusters.insert(Arc::clone(&name));
                    }
                    // Whatever warmed under this name is of the past.
                    if let Some(superseded) = self.warming_clusters.remove(&name) {
                        superseded.retire();
                    }
                    if self.is_warm(&cluster) {
                        ready.push(cluster);
                    } else if !cluster.config().wait_for_warm_on_init {
                        self.unwaited.push(Arc::clone(&cluster));
                        ready.push(cluster);
                    } else {
                        if let Discovery::Eds(eds) = &cluster.config().discovery {
                            self.warming_again.insert(eds.service_name.to_string());
                        }
                        self.warming_clusters.insert(name, cluster);
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        self.publish_clusters(ready);
        self.show_clusters();
        errors
    }

    /// The filters that configurations may name.
    pub(crate) fn registry(&self) -> &'static Registry {
        self.compiler.registry
    }

    /// The gauges of the cluster manager.
    fn show_clusters(&self) {
        self.stats.active_clusters().set(self.shared.snapshot().clusters.len() as u64);
        self.stats.warming_clusters().set(self.warming_clusters.len() as u64);
    }

    fn compile_cluster(&mut self, resource: &ClusterProto, path: FieldPath) -> Result<Arc<Cluster>, FieldError> {
        let mut needs = Needs::default();
        let config = {
            let mut context = self.compiler.context(&resource.name, path, &mut needs);
            let mut compiled = super::cluster::compile(resource, &self.compiler.cluster_defaults, &mut context)?;
            compiled.config.added_via_api = self.started;
            let name = compiled.config.observability_name().replace(':', "_");
            context.stats = context.stats.scope(&format!("cluster.{name}."));
            compiled.config.upstream_filters = self.compiler.upstream_filters(
                "typed_extension_protocol_options.http_filters",
                &compiled.http_filters,
                &mut context,
            )?;
            if let (Discovery::Eds(eds), Some(source)) = (&compiled.config.discovery, &compiled.eds) {
                let source = context.within("eds_cluster_config", |context| {
                    context.within("eds_config", |context| {
                        super::sources::config_source(source, self.compiler.ads, context)
                    })
                })?;
                self.wanted_assignments.insert(eds.service_name.to_string(), source);
            }
            compiled.config
        };
        let previous = self.shared.snapshot().clusters.get(resource.name.as_str()).cloned();
        let runtime = self.shared.runtime();
        let cluster = Cluster::new(config, previous.as_deref(), &self.compiler.stats, runtime, rand::random());
        if let Discovery::Eds(eds) = &cluster.config().discovery
            && let Some(assignment) = self.assignments.get(&*eds.service_name)
        {
            self.assign(&cluster, assignment)?;
        }
        Ok(cluster)
    }

    fn is_warm(&self, cluster: &Cluster) -> bool {
        match &cluster.config().discovery {
            Discovery::Static(_) => true,
            Discovery::Eds(eds) => self.assignments.contains_key(&*eds.service_name),
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) => false,
        }
    }

    /// Removes clusters that a source no longer names.
    pub(crate) fn remove_clusters(&mut self, names: &[Arc<str>]) {
        if names.is_empty() {
            return;
        }
        for name in names {
            if self.clusters.remove(name).is_some() {
                self.stats.cluster_removed().inc();
            }
            self.accepted.remove(Kind::Cluster, name);
            if let Some(warming) = self.warming_clusters.remove(name) {
                warming.retire();
            }
        }
        self.publish(|snapshot| {
            for name in names {
                if let Some(removed) = snapshot.clusters.remove(name) {
                    removed.retire();
                }
            }
        });
        self.show_clusters();
    }

    /// Clusters whose first hosts are to come from DNS. Those that nothing waits for are named once.
    pub(crate) fn resolving(&mut self) -> Vec<Arc<Cluster>> {
        let dns = |cluster: &&Arc<Cluster>| {
            matches!(cluster.config().discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_))
        };
        self.warming_clusters.values().chain(&std::mem::take(&mut self.unwaited)).filter(dns).cloned().collect()
    }

    /// A cluster has its first hosts, or waited long enough.
    pub(crate) fn cluster_is_warm(&mut self, name: &str) {
        if let Some(cluster) = self.warming_clusters.remove(name) {
            self.publish_clusters(vec![cluster]);
            self.show_clusters();
        }
    }

    /// Everything that still warms goes on without what it waits for (`initial_fetch_timeout`).
    pub(crate) fn stop_waiting(&mut self) {
        let clusters = std::mem::take(&mut self.warming_clusters).into_values().collect();
        self.publish_clusters(clusters);
        self.show_clusters();
        let listeners = std::mem::take(&mut self.warming_listeners);
        self.publish_listeners(listeners.into_values().map(|warming| warming.compiled).collect());
    }

    pub(crate) fn is_warming(&self) -> bool {
        !self.warming_clusters.is_empty() || !self.warming_listeners.is_empty()
    }

    /// New endpoints of EDS clusters, by service name.
    pub(crate) fn update_assignments(&mut self, assignments: Vec<Placed<ClusterLoadAssignment>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut ready = Vec::new();
        for Placed { resource, .. } in assignments {
            let name = resource.cluster_name.clone();
            let snapshot = self.shared.snapshot();
            let serving = snapshot.clusters.values().cloned();
            let affected: Vec<_> = self
                .warming_clusters
                .values()
                .cloned()
                .chain(serving)
                .filter(
                    |cluster| matches!(&cluster.config().discovery, Discovery::Eds(eds) if *eds.service_name == *name),
                )
                .collect();
            let mut accepted = true;
            for cluster in affected {
                match self.assign(&cluster, &resource) {
                    Ok(()) => ready.push(Arc::clone(cluster.name())),
                    Err(error) => {
                        accepted = false;
                        errors.push(error);
                    }
                }
            }
            if accepted {
                self.accepted.put(Kind::Endpoints, &name, resource.encode_to_vec(), false);
                self.assignments.insert(name, resource);
            }
        }
        let warm = ready.iter().filter_map(|name| self.warming_clusters.remove(name)).collect();
        self.publish_clusters(warm);
        self.show_clusters();
        errors
    }

    pub(crate) fn is_static_cluster(&self, name: &str) -> bool {
        self.static_clusters.contains(name)
    }

    pub(crate) fn is_static_listener(&self, name: &str) -> bool {
        self.static_listeners.contains(name)
    }

    pub(crate) fn is_warming_clusters(&self) -> bool {
        !self.warming_clusters.is_empty()
    }

    /// The services whose clusters have begun to warm: their endpoints are asked for anew.
    pub(crate) fn take_warming_again(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.warming_again)
    }

    /// The assignments that clusters need, and where they come from.
    pub(crate) fn needed_assignments(&mut self) -> Vec<(String, ConfigSource)> {
        let snapshot = self.shared.snapshot();
        let clusters = self.warming_clusters.values().chain(snapshot.clusters.values());
        let needed: HashSet<&str> = clusters
            .filter_map(|cluster| match &cluster.config().discovery {
                Discovery::Eds(eds) => Some(&*eds.service_name),
                _ => None,
            })
            .collect();
        self.wanted_assignments.retain(|name, _| {
            let needed = needed.contains(name.as_str());
            if !needed {
                self.accepted.remove(Kind::Endpoints, name);
            }
            needed
        });
        self.assignments.retain(|name, _| needed.contains(name.as_str()));
        self.wanted_assignments.iter().map(|(name, source)| (name.clone(), source.clone())).collect()
    }

    /// The route configurations that listeners need, and where they come from.
    pub(crate) fn needed_routes(&mut self) -> Vec<(String, ConfigSource)> {
        let needed: HashSet<&String> = self.listener_routes.values().flatten().collect();
        self.wanted_routes.retain(|name, _| needed.contains(name));
        self.given_up_routes.retain(|name| needed.contains(name));
        self.wanted_routes.iter().map(|(name, wanted)| (name.clone(), wanted.source.clone())).collect()
    }

    /// Clusters that wait for the endpoints of this service go on without.
    pub(crate) fn go_on_without_assignment(&mut self, service: &str) {
        let waits = |cluster: &Cluster| matches!(&cluster.config().discovery, Discovery::Eds(eds) if *eds.service_name == *service);
        let waiting = self.warming_clusters.values().filter(|cluster| waits(cluster));
        let waiting: Vec<_> = waiting.map(|cluster| Arc::clone(cluster.name())).collect();
        let warm = waiting.iter().filter_map(|name| self.warming_clusters.remove(name)).collect();
        self.publish_clusters(warm);
        self.show_clusters();
    }

    /// The endpoints of this service are not there: clusters that wait for them go on without.
    pub(crate) fn missing_assignment(&mut self, service: &str) {
        self.go_on_without_assignment(service);
        let subscribed = |cluster: &Arc<Cluster>| matches!(&cluster.config().discovery, Discovery::Eds(eds) if *eds.service_name == *service);
        for cluster in self.shared.snapshot().clusters.values().filter(|cluster| subscribed(cluster)) {
            cluster.stats().updates.update_empty().inc();
            cluster.stats().updates.update_success().inc();
        }
    }

    /// Counts what became of an update of this service's endpoints.
    pub(crate) fn count_assignment(&self, service: &str, update: &Update, now: SystemTime) {
        self.count_endpoints(service, |cluster| cluster.stats().count_update(update, now));
    }

    /// The endpoints of this service are asked for.
    pub(crate) fn asked_assignment(&self, service: &str) {
        self.count_endpoints(service, |cluster| cluster.stats().updates.update_attempt().inc());
    }

    /// The endpoints of this service did not come in time.
    pub(crate) fn assignment_timed_out(&self, service: &str) {
        self.count_endpoints(service, |cluster| cluster.stats().fetch_timed_out());
    }

    fn count_endpoints(&self, service: &str, count: impl Fn(&Cluster)) {
        let snapshot = self.shared.snapshot();
        let clusters = self.warming_clusters.values().chain(snapshot.clusters.values());
        let subscribed = |cluster: &&Arc<Cluster>| matches!(&cluster.config().discovery, Discovery::Eds(eds) if *eds.service_name == *service);
        clusters.filter(subscribed).for_each(|cluster| count(cluster));
    }

    fn assign(&self, cluster: &Cluster, assignment: &ClusterLoadAssignment) -> Result<(), FieldError> {
        let mut needs = Needs::default();
        let mut context = self.compiler.context(&assignment.cluster_name, FieldPath::root(), &mut needs);
        let assignment = super::cluster::compile_assignment(assignment, &mut context)?;
        cluster.update_hosts(&assignment, self.shared.runtime());
        cluster.stats().updates.update_success().inc();
        Ok(())
    }

    /// Adds or changes listeners.
    pub(crate) fn update_listeners(&mut self, listeners: Vec<Placed<ListenerProto>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut ready = Vec::new();
        for Placed { resource, path } in listeners {
            let digest = listener::digest(&resource);
            let name: Arc<str> = resource.name.as_str().into();
            if !name.is_empty() && self.listeners.get(&name) == Some(&digest) {
                continue;
            }
            let mut needs = Needs::default();
            let previous = self.shared.snapshot().listeners.get(&name).map(Arc::clone);
            let at = path.clone();
            let compiled = {
                let shown = if resource.name.is_empty() { "(unnamed)" } else { &resource.name };
                let mut context = self.compiler.context(shown, path, &mut needs);
                listener::compile(&self.compiler, &resource, previous.as_deref(), &mut context)
            };
            let known = |name: &String| self.clusters.contains_key(name.as_str());
            let unknown = needs.clusters.iter().find(|name| !known(name));
            let compiled = compiled.and_then(|listener| match unknown {
                Some(cluster) => {
                    let reason = format!("route: unknown cluster '{cluster}'");
                    Err(FieldError::new(at.clone(), reason).in_resource(&resource.name))
                }
                None => Ok(listener),
            });
            let compiled = compiled.and_then(|listener| match self.duplicate_address(&listener, &ready) {
                Some(address) => {
                    let name = &listener.name;
                    let reason = format!("listener '{name}' has duplicate address '{address}' as existing listener");
                    Err(FieldError::new(at.clone().field("address"), reason).in_resource(&resource.name))
                }
                None => Ok(listener),
            });
            match compiled {
                Ok(mut listener) => {
                    let name = Arc::clone(&listener.name);
                    if listener.position == 0 {
                        self.last_position += 1;
                        listener.position = self.last_position;
                    }
                    self.listeners.insert(Arc::clone(&name), digest);
                    self.accepted.put(Kind::Listener, &name, resource.encode_to_vec(), !self.started);
                    if !self.started {
                        self.static_listeners.insert(Arc::clone(&name));
                    }
                    self.accepted.put_inline_routes(&name, &super::inline_routes::of(&resource));
                    self.wanted_routes.extend(needs.route_configurations.clone());
                    self.listener_routes
                        .insert(Arc::clone(&name), needs.route_configurations.keys().cloned().collect());
                    self.warming_listeners.remove(&name);
                    let warming = Warming { compiled: Arc::new(listener), needs };
                    if self.has_routes(&warming.needs) {
                        ready.push(warming.compiled);
                    } else {
                        self.warming_listeners.insert(name, warming);
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        self.publish_listeners(ready);
        errors
    }

    /// An address of the listener that one of another name has, whether or not either is bound.
    fn duplicate_address(&self, listener: &Listener, ready: &[Arc<Listener>]) -> Option<ListenAddress> {
        let snapshot = self.shared.snapshot();
        let warming = self.warming_listeners.values().map(|warming| &warming.compiled);
        let others = snapshot.listeners.values().chain(warming).chain(ready);
        let mut taken = others.filter(|other| other.name != listener.name).flat_map(|other| &other.sockets);
        let given =
            |address: &ListenAddress| !matches!(address, ListenAddress::Ip { address, .. } if address.port() == 0);
        let own = |address: &ListenAddress| listener.sockets.iter().any(|socket| socket.address == *address);
        taken.find(|socket| given(&socket.address) && own(&socket.address)).map(|socket| socket.address.clone())
    }

    fn has_routes(&self, needs: &Needs) -> bool {
        let snapshot = self.shared.snapshot();
        let there = |name: &String| snapshot.routes.contains_key(name.as_str()) || self.given_up_routes.contains(name);
        needs.route_configurations.keys().all(there)
    }

    pub(crate) fn remove_listeners(&mut self, names: &[Arc<str>]) {
        for name in names {
            self.listeners.remove(name);
            self.accepted.remove(Kind::Listener, name);
            self.accepted.put_inline_routes(name, &[]);
            self.warming_listeners.remove(name);
            self.listener_routes.remove(name);
        }
        if names.is_empty() {
            return;
        }
        self.publish(|snapshot| {
            for name in names {
                snapshot.listeners.remove(name);
            }
        });
    }

    /// New route configurations, by name.
    pub(crate) fn update_routes(&mut self, routes: Vec<Placed<RouteConfiguration>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut good = Vec::new();
        for Placed { resource, path } in routes {
            let mut needs = Needs::default();
            let mut context = self.compiler.context(&resource.name, path, &mut needs);
            match self.compiler.route_table(&resource, RouteOrigin::Discovered, &mut context) {
                Ok(table) => {
                    self.accepted.put(Kind::Route, &resource.name, resource.encode_to_vec(), false);
                    good.push((Arc::<str>::from(resource.name.as_str()), Arc::new(table)));
                }
                Err(error) => errors.push(error),
            }
        }
        self.publish(|snapshot| {
            for (name, table) in good {
                snapshot.routes.insert(name, table);
            }
        });
        self.publish_warm_listeners();
        errors
    }

    /// Listeners that have what they need serve.
    fn publish_warm_listeners(&mut self) {
        let has_routes = |(_, warming): &(&Arc<str>, &Warming<Listener>)| self.has_routes(&warming.needs);
        let warm: Vec<_> = self.warming_listeners.iter().filter(has_routes).map(|(name, _)| Arc::clone(name)).collect();
        let ready = warm.iter().filter_map(|name| self.warming_listeners.remove(name)).map(|warming| warming.compiled);
        let ready = ready.collect();
        self.publish_listeners(ready);
    }

    /// A route configuration does not come: listeners that wait for it serve without.
    pub(crate) fn go_on_without_routes(&mut self, name: &str) {
        self.given_up_routes.insert(name.to_owned());
        self.publish_warm_listeners();
    }

    fn publish_clusters(&self, clusters: Vec<Arc<Cluster>>) {
        if clusters.is_empty() {
            return;
        }
        self.publish(|snapshot| {
            for cluster in clusters {
                if let Some(replaced) = snapshot.clusters.insert(Arc::clone(cluster.name()), cluster) {
                    replaced.retire();
                }
            }
        });
    }

    fn publish_listeners(&self, listeners: Vec<Arc<Listener>>) {
        if listeners.is_empty() {
            return;
        }
        self.publish(|snapshot| {
            for listener in listeners {
                snapshot.listeners.insert(Arc::clone(&listener.name), listener);
            }
        });
    }

    fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let next = self.shared.snapshot().build(change);
        // The one before is dropped here, on the control runtime, or by the last exchange that holds it.
        drop(self.shared.publish(next));
        self.show_clusters();
    }
}
