//! What all parts of a running process share, and nothing else: wiring is in `server`.
//! It must not know how any part does its work.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwap;
use tidegate_filters::http::filter::Services;
use tidegate_filters::runtime::Runtime;
use tidegate_filters::stream_info::Address;
use tidegate_stats::Scope;

use crate::demand::Demands;
use crate::http::stats::RouterStats;
use crate::listener::load::{GlobalLimit, GlobalLoad};
use crate::listener::{ListenAddress, Listener};
use crate::services::ProxyServices;
use crate::snapshot::Snapshot;

/// The process's shared state.
pub struct Shared {
    snapshot: ArcSwap<Snapshot>,
    runtime: Arc<dyn Runtime>,
    /// The node's address, which stands in for loopback peers in `x-forwarded-for`.
    node_address: Option<IpAddr>,
    health_check_failing: AtomicBool,
    global_load: GlobalLoad,
    /// The overload manager's limit of connections.
    global_limit: Option<GlobalLimit>,
    services: Arc<ProxyServices>,
    /// Routes that exchanges wait for.
    demands: Demands,
    /// `http.async-client.*`: of requests that the proxy makes by itself.
    own_requests: RouterStats,
    /// How often the configuration was loaded.
    #[cfg(test)]
    pub(crate) loads: std::sync::atomic::AtomicUsize,
}

impl Shared {
    pub(crate) fn new(
        runtime: Arc<dyn Runtime>,
        node_address: Option<IpAddr>,
        node_cluster: &str,
        limit: Option<u64>,
        stats: &Scope,
    ) -> Arc<Self> {
        Arc::new_cyclic(|shared| Self {
            snapshot: ArcSwap::default(),
            node_address,
            health_check_failing: AtomicBool::new(false),
            global_load: GlobalLoad::default(),
            global_limit: limit.map(|limit| GlobalLimit::new(limit, stats)),
            services: Arc::new(ProxyServices {
                shared: shared.clone(),
                runtime: Arc::clone(&runtime),
                node_cluster: node_cluster.into(),
            }),
            runtime,
            demands: Demands::default(),
            own_requests: RouterStats::new(&stats.scope("http.async-client.")),
            #[cfg(test)]
            loads: Default::default(),
        })
    }

    /// The configuration as of now: loaded once an exchange.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        #[cfg(test)]
        self.loads.fetch_add(1, Relaxed);
        self.snapshot.load_full()
    }

    /// Publishes a configuration and returns the one before.
    pub(crate) fn publish(&self, next: Arc<Snapshot>) -> Arc<Snapshot> {
        self.snapshot.swap(next)
    }

    pub fn runtime(&self) -> &dyn Runtime {
        &*self.runtime
    }

    pub(crate) fn runtime_shared(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.runtime)
    }

    pub(crate) fn services(&self) -> Arc<dyn Services> {
        Arc::clone(&self.services) as Arc<dyn Services>
    }

    pub(crate) fn demands(&self) -> &Demands {
        &self.demands
    }

    pub(crate) fn own_requests(&self) -> &RouterStats {
        &self.own_requests
    }

    pub(crate) fn node_address(&self) -> Option<IpAddr> {
        self.node_address
    }

    pub(crate) fn global_load(&self) -> &GlobalLoad {
        &self.global_load
    }

    pub(crate) fn global_limit(&self) -> Option<&GlobalLimit> {
        self.global_limit.as_ref()
    }

    pub(crate) fn set_health_check_failing(&self, failing: bool) {
        self.health_check_failing.store(failing, Relaxed);
    }

    pub(crate) fn is_health_check_failing(&self) -> bool {
        self.health_check_failing.load(Relaxed)
    }

    /// The listener that a redirected connection belongs to: the exact address, then the wildcard with the port.
    pub(crate) fn listener_for_original_destination(&self, local: &Address) -> Option<Arc<Listener>> {
        let target = local.ip()?;
        let snapshot = self.snapshot();
        let listens_on = |listener: &Listener, wanted: std::net::SocketAddr| {
            listener
                .sockets
                .iter()
                .any(|socket| matches!(socket.address, ListenAddress::Ip { address, .. } if address == wanted))
        };
        let find = |wanted| snapshot.listeners.values().find(|listener| listens_on(listener, wanted)).cloned();
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        find(target).or_else(|| find(std::net::SocketAddr::new(any, target.port())))
    }
}
