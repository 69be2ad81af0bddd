//! A host: one upstream address of a cluster with what configuration says about it, and the counters that live as long as
//! the address stays in the cluster. It must not know how hosts are chosen nor how connections are made.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use tidegate_filters::metadata::Metadata;
use tidegate_filters::stream_info::{Address, Locality};
use tidegate_stats::{Block, Layout};

/// What discovery said about a host's health (`envoy.config.core.v3.HealthStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum HealthStatus {
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

impl HealthStatus {
    /// Envoy's spelling, as `/clusters?format=json` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Healthy => "HEALTHY",
            Self::Unhealthy => "UNHEALTHY",
            Self::Draining => "DRAINING",
            Self::Timeout => "TIMEOUT",
            Self::Degraded => "DEGRADED",
        }
    }
}

/// The three states that balancing tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    Healthy,
    Degraded,
    Unhealthy,
}

/// One upstream address. It is immutable: an update that changes a fact makes a new `Host` around the same [`HostState`].
#[derive(Debug)]
pub struct Host {
    pub address: Address,
    /// Further addresses of the same host, tried after `address` (happy eyeballs).
    pub more_addresses: Box<[SocketAddr]>,
    /// The name that discovery gave, or the one that was resolved; may be empty.
    pub hostname: Arc<str>,
    pub locality: Arc<Locality>,
    pub locality_metadata: Arc<Metadata>,
    pub priority: u32,
    /// At least 1.
    pub weight: u32,
    pub health_status: HealthStatus,
    /// `envoy.lb: {canary: true}` in its metadata.
    pub canary: bool,
    pub metadata: Arc<Metadata>,
    pub state: Arc<HostState>,
}

impl Host {
    /// The state that balancing goes by.
    pub fn health(&self) -> Health {
        match self.health_status {
            HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => Health::Unhealthy,
        }
    }

    /// Whether it does not count when the health of its priority and locality is reckoned, as in Envoy: a host that drains
    /// is no sign of trouble.
    pub fn is_excluded(&self) -> bool {
        self.health_status == HealthStatus::Draining
    }

    /// Whether both say the same about the same address, whatever their counters.
    pub(crate) fn same_facts(&self, other: &Self) -> bool {
        self.address == other.address
            && self.more_addresses == other.more_addresses
            && self.hostname == other.hostname
            && self.locality == other.locality
            && self.priority == other.priority
            && self.weight == other.weight
            && self.health_status == other.health_status
            && self.canary == other.canary
            && self.metadata == other.metadata
            && self.locality_metadata == other.locality_metadata
    }

    /// Counts a request (or a TCP connection's stream) on this host until the guard is dropped.
    pub fn begin_request(&self) -> InFlight {
        self.state.begin_request()
    }
}

/// Identity of a host within the process. An update of hosts keeps it with the address; an update of the cluster's own
/// configuration makes new ones, so that connections made under the old configuration drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(u64);

/// What lives as long as an address is in a cluster, whatever else changes about the host.
#[derive(Debug)]
pub struct HostState {
    pub id: HostId,
    removed: AtomicBool,
    /// Connections of an earlier one drain.
    epoch: AtomicU32,
    /// In a handshake that left the choice to it, it chose HTTP/1.
    speaks_http1: AtomicBool,
    counts: Arc<HostCounts>,
}

/// What is counted for an address of a cluster, kept even when the cluster's configuration changes.
#[derive(Default)]
struct HostCounts {
    requests: AtomicU32,
    pending: AtomicU32,
    connections: AtomicU32,
    counters: OnceLock<Box<Block>>,
}

static COUNTERS: Layout = Layout {
    counters: &["cx_connect_fail", "cx_total", "rq_error", "rq_success", "rq_timeout", "rq_total"],
    gauges: &[],
    histograms: &[],
    zeros: &[],
};

/// A counter of a host, as `/clusters` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostCounter {
    ConnectFail,
    Connections,
    RequestError,
    RequestSuccess,
    RequestTimeout,
    Requests,
}

impl HostState {
    /// State for a host that its cluster did not have before; the counts go on from those of `predecessor`, the host of the
    /// same address in the cluster that this one replaces.
    pub(crate) fn new(predecessor: Option<&Self>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let counts = predecessor.map_or_else(Arc::default, |predecessor| Arc::clone(&predecessor.counts));
        Arc::new(Self {
            id: HostId(NEXT.fetch_add(1, Relaxed)),
            removed: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
            speaks_http1: AtomicBool::new(predecessor.is_some_and(Self::speaks_http1)),
            counts,
        })
    }

    /// Whether it chose HTTP/1 in the last handshake that left the choice to it.
    pub fn speaks_http1(&self) -> bool {
        self.speaks_http1.load(Relaxed)
    }

    /// It chose in a handshake.
    pub fn chose_http1(&self, http1: bool) {
        self.speaks_http1.store(http1, Relaxed);
    }

    /// Requests under way; least request goes by this.
    pub fn requests_active(&self) -> u32 {
        self.counts.requests.load(Relaxed)
    }

    pub fn connections_active(&self) -> u32 {
        self.counts.connections.load(Relaxed)
    }

    pub fn requests_pending(&self) -> u32 {
        self.counts.pending.load(Relaxed)
    }

    /// Whether the host has left its cluster, or the cluster was replaced or removed: its pools drain.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    /// Connections that were made in another epoch drain.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Relaxed)
    }

    /// Lets the connections that there are go once they are free.
    pub(crate) fn drain(&self) {
        self.epoch.fetch_add(1, Relaxed);
    }

    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Relaxed);
    }

    /// Counts one.
    pub fn count(&self, counter: HostCounter) {
        self.counts.count(counter);
    }

    pub fn counted(&self, counter: HostCounter) -> u64 {
        self.counts.counters.get().map_or(0, |block| block.counter(counter as usize).value())
    }

    /// Counts an open connection until the guard is dropped.
    pub fn open_connection(&self) -> OpenConnection {
        self.counts.connections.fetch_add(1, Relaxed);
        self.count(HostCounter::Connections);
        OpenConnection(Arc::clone(&self.counts))
    }

    /// Counts a request (or a TCP connection's stream) until the guard is dropped.
    pub fn begin_request(&self) -> InFlight {
        self.counts.requests.fetch_add(1, Relaxed);
        self.count(HostCounter::Requests);
        InFlight(Arc::clone(&self.counts))
    }

    /// Counts a request that waits for a connection until the guard is dropped.
    pub fn wait(&self) -> Waiting {
        self.counts.pending.fetch_add(1, Relaxed);
        Waiting(Arc::clone(&self.counts))
    }
}

impl HostCounts {
    fn count(&self, counter: HostCounter) {
        self.counters.get_or_init(|| Box::new(Block::detached(&COUNTERS))).counter(counter as usize).inc();
    }
}

impl std::fmt::Debug for HostCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostCounts").field("requests", &self.requests).finish_non_exhaustive()
    }
}

/// A request under way on a host.
#[derive(Debug)]
pub struct InFlight(Arc<HostCounts>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

/// An open connection to a host.
#[derive(Debug)]
pub struct OpenConnection(Arc<HostCounts>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// A request that waits for a connection to a host.
#[derive(Debug)]
pub struct Waiting(Arc<HostCounts>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_count_up_and_down_and_totals_stay() {
        let state = HostState::new(None);
        let connection = state.open_connection();
        let request = state.begin_request();
        assert_eq!((state.connections_active(), state.requests_active()), (1, 1));
        drop(request);
        drop(connection);
        assert_eq!((state.connections_active(), state.requests_active()), (0, 0));
        assert_eq!((state.counted(HostCounter::Connections), state.counted(HostCounter::Requests)), (1, 1));
        assert_eq!(state.counted(HostCounter::RequestError), 0);
    }

    #[test]
    fn counts_go_on_in_the_cluster_that_replaces_another() {
        let old = HostState::new(None);
        let request = old.begin_request();
        let new = HostState::new(Some(&old));
        assert_ne!(old.id, new.id);
        assert_eq!(new.requests_active(), 1);
        drop((old, request));
        assert_eq!((new.requests_active(), new.counted(HostCounter::Requests)), (0, 1));
    }
}
