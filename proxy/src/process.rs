//! The running process as the admin interface sees it: state, facts, configuration, and what may be asked of it.
//! It must not know how answers are written, nor how anything is done that it hands on.

mod certificates;
mod dump;
mod endpoints;
mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use machine::{default_concurrency, node_address};
use parking_lot::Mutex;
use serde_json::Value;
use tidegate_filters::access_log::AccessLog;
use tidegate_filters::stream_info::Address;
use tidegate_stats::Store;
use tokio::sync::mpsc;

use crate::admin::AdminState;
use crate::admin::state::{
    ClusterStatus, CommandLine, ContextCertificates, DrainListeners, HostHealth, HostStatus, ListenerStatus, LogChange,
    LogLevel, Memory, Rejected, ServerInfo, ServerState,
};
use crate::app::Shared;
use crate::application_log;
use crate::cluster;
use crate::config::admin::AdminOptions;
use crate::config::origin::name_of;
use crate::config::store::{Entry, Kind, Ledger};
use crate::listener::ListenAddress;
use crate::runtime::Layers;
use crate::snapshot::Snapshot;
use crate::stats::server::{Clusters, Facts, ServerGauges};

/// What the admin interface asks of the server.
#[derive(Debug)]
pub(crate) enum Asked {
    Quit,
    Drain(DrainListeners),
}

/// The process.
pub(crate) struct Process {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stats: Arc<Store>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) gauges: ServerGauges,
    pub(crate) options: CommandLine,
    /// The bootstrap on the wire.
    pub(crate) bootstrap: Vec<u8>,
    pub(crate) node: Value,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) bound: Mutex<Vec<(Arc<str>, Vec<ListenAddress>)>>,
    /// When what is served was kept on disk, while no control plane has answered.
    pub(crate) serves_kept: Mutex<Option<SystemTime>>,
    /// Clusters are there; listeners are asked for.
    pub(crate) initializing: AtomicBool,
    pub(crate) serving: AtomicBool,
    pub(crate) started: SystemTime,
    pub(crate) asked: mpsc::UnboundedSender<Asked>,
    pub(crate) admin: AdminOptions,
    /// `stats_flush_on_admin`
    pub(crate) flush_on_admin: bool,
    /// `enable_deferred_cluster_creation`
    pub(crate) defers_clusters: bool,
}

impl Process {
    /// Everything that changes by itself, for the stats.
    pub(crate) fn facts(&self) -> Facts {
        let snapshot = self.shared.snapshot();
        let now = SystemTime::now();
        let expiring = certificates::expiring(&snapshot, now);
        let until = |at: Option<u64>| Some(at?.saturating_sub(now.duration_since(UNIX_EPOCH).ok()?.as_secs()));
        let connections = snapshot.listeners.values().map(|listener| listener.stats.downstream_cx_active().value());
        Facts {
            state: self.server_state(),
            connections: connections.sum(),
            clusters: self.clusters_taken_in(&snapshot),
            memory: Memory::read(),
            days_of_certificates: until(expiring.certificate).map(|seconds| seconds / 86_400),
            seconds_of_responses: until(expiring.response),
        }
    }

    fn clusters_taken_in(&self, snapshot: &Snapshot) -> Clusters {
        let all = snapshot.clusters.len() as u64;
        let used_by = |worker| {
            let used = snapshot.clusters.values().filter(|cluster| cluster.stats().traffic.is_counted_by(worker));
            used.count() as u64
        };
        let workers = 0..self.options.concurrency as usize;
        Clusters { all, of_workers: self.defers_clusters.then(|| workers.map(used_by).collect()) }
    }

    /// Brings the process' own stats up to date.
    pub(crate) fn refresh_stats(&self) {
        crate::stats::server::refresh(&self.stats, &self.gauges, &self.facts(), Instant::now());
    }

    /// Brings all stats up to date.
    pub(crate) fn flush_stats(&self) {
        crate::stats::server::flush(&self.stats, &self.gauges, &self.facts(), Instant::now());
    }

    /// The node with the extensions of this build, which are not kept: a list for whoever asks.
    fn told_node(&self) -> Value {
        let mut node = self.node.clone();
        node["extensions"] = crate::config::extensions::list().into();
        node
    }

    /// Every cluster, by name.
    fn statuses(&self) -> Vec<cluster::status::ClusterStatus> {
        let snapshot = self.shared.snapshot();
        let mut statuses: Vec<_> = snapshot.clusters.values().map(|cluster| cluster.status()).collect();
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        statuses
    }
}

impl AdminState for Process {
    fn stats(&self) -> &Store {
        &self.stats
    }

    fn before_stats(&self) {
        if self.flush_on_admin {
            self.flush_stats();
        } else {
            self.gauges.show_clusters(&self.clusters_taken_in(&self.shared.snapshot()));
        }
    }

    fn runtime(&self) -> &Layers {
        &self.layers
    }

    fn server_state(&self) -> ServerState {
        if self.shared.is_health_check_failing() {
            ServerState::Draining
        } else if self.serving.load(Relaxed) {
            ServerState::Live
        } else if self.initializing.load(Relaxed) {
            ServerState::Initializing
        } else {
            ServerState::PreInitializing
        }
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo { uptime: self.gauges.uptime(Instant::now()), options: self.options.clone(), node: self.told_node() }
    }

    fn memory(&self) -> Memory {
        Memory::read()
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        self.statuses().iter().map(cluster_status).collect()
    }

    fn certificates(&self) -> Vec<ContextCertificates> {
        certificates::of(&self.shared.snapshot())
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let of = |address: &ListenAddress| match address {
            ListenAddress::Ip { address, .. } => Address::Ip(*address),
            ListenAddress::Pipe { path, .. } => Address::Pipe(path.to_string_lossy().into()),
        };
        let bound = self.bound.lock();
        let statuses = bound.iter().filter_map(|(name, addresses)| {
            let (first, more) = addresses.split_first()?;
            Some(ListenerStatus {
                name: Arc::clone(name),
                address: of(first),
                more_addresses: more.iter().map(of).collect(),
            })
        });
        statuses.collect()
    }

    fn config_dump(&self, include_endpoints: bool) -> Vec<Value> {
        let endpoints = include_endpoints.then(|| endpoints::static_endpoints(self.statuses().iter()));
        let bootstrap = dump::Bootstrap { bytes: &self.bootstrap, at: self.started, node: &self.node };
        dump::sections(bootstrap, endpoints, &self.ledger)
    }

    fn serves_kept(&self) -> Option<SystemTime> {
        *self.serves_kept.lock()
    }

    fn rejected(&self) -> Vec<Rejected> {
        let of = |kind: Kind| {
            let rejected = move |(name, entry): (Arc<str>, Entry)| {
                let Entry { acting, refused, .. } = entry;
                // Whose scope it is has no name that says something to people.
                let own = match kind {
                    Kind::Scope => name.split_once('/').map_or(&*name, |(_, name)| name).into(),
                    _ => name_of(&name).into(),
                };
                let name: Arc<str> = own;
                refused.map(|refused| Rejected {
                    type_url: kind.type_url(),
                    name,
                    version: refused.text.version,
                    reason: refused.reason,
                    since: refused.since,
                    last_attempt: refused.text.at,
                    acting_version: acting.map(|text| text.version),
                })
            };
            self.ledger.of_kind(kind).into_iter().filter_map(rejected)
        };
        Kind::ALL.into_iter().flat_map(of).collect()
    }

    fn drain_listeners(&self, drain: DrainListeners) {
        // The server is gone only when nothing is left to drain.
        let _ = self.asked.send(Asked::Drain(drain));
    }

    fn set_health_check_failing(&self, failing: bool) {
        self.shared.set_health_check_failing(failing);
    }

    fn quit(&self) {
        // The server is gone only when it has quit.
        let _ = self.asked.send(Asked::Quit);
    }

    fn access_logs(&self) -> &[Arc<AccessLog>] {
        &self.admin.access_logs
    }

    fn allows(&self, path: &str) -> bool {
        let allowed = &self.admin.allow_paths;
        allowed.is_empty() || allowed.iter().any(|matcher| matcher.matches(path.as_bytes()))
    }

    fn reopen_logs(&self) {
        tidegate_filters::access_log::reopen_all();
    }

    fn loggers(&self) -> Vec<(String, LogLevel)> {
        application_log::levels()
    }

    fn change_log_levels(&self, change: &LogChange) -> Result<(), &'static str> {
        application_log::change(change)
    }
}

fn cluster_status(status: &cluster::status::ClusterStatus) -> ClusterStatus {
    ClusterStatus {
        name: Arc::clone(&status.name),
        observability_name: Arc::clone(&status.observability_name),
        added_via_api: status.added_via_api,
        eds_service_name: status.eds_service_name.clone(),
        limits: status.limits,
        outlier: None,
        hosts: status.hosts.iter().map(host_status).collect(),
    }
}

fn host_status(status: &cluster::status::HostStatus) -> HostStatus {
    let host = &status.host;
    HostStatus {
        address: host.address.clone(),
        hostname: Arc::clone(&host.hostname),
        locality: Arc::clone(&host.locality),
        weight: host.weight,
        priority: host.priority,
        canary: host.canary,
        health: HostHealth { discovered: host.health_status, ..HostHealth::default() },
        counts: status.counts,
        success_rate: None,
        local_origin_success_rate: None,
    }
}
