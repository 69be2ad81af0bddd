//! What `/clusters` shows of a cluster, as values (`envoy.admin.v3.ClusterStatus`). It must not know how they are printed.

use std::sync::Arc;

use super::Cluster;
use super::circuit_breaker::{Resource, RoutingPriority};
use super::host::{Host, HostCounter};
use super::options::Discovery;

/// A cluster as of now.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    pub name: Arc<str>,
    pub observability_name: Arc<str>,
    /// Of EDS clusters.
    pub eds_service_name: Option<Arc<str>>,
    pub added_via_api: bool,
    /// By routing priority, after runtime had its say.
    pub limits: [Limits; 2],
    pub hosts: Vec<HostStatus>,
}

/// The circuit breakers of one routing priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: u64,
    pub max_pending_requests: u64,
    pub max_requests: u64,
    pub max_retries: u64,
}

/// A host as of now.
#[derive(Debug, Clone)]
pub struct HostStatus {
    pub host: Arc<Host>,
    pub counts: HostCounts,
}

/// A host's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostCounts {
    pub connections_active: u64,
    pub connect_failures: u64,
    pub connections: u64,
    pub requests_active: u64,
    pub request_errors: u64,
    pub requests_pending: u64,
    pub request_successes: u64,
    pub request_timeouts: u64,
    pub requests: u64,
}

impl Cluster {
    /// What the admin interface shows.
    pub fn status(&self) -> ClusterStatus {
        let config = self.config();
        ClusterStatus {
            name: Arc::clone(&config.name),
            observability_name: Arc::clone(config.observability_name()),
            eds_service_name: match &config.discovery {
                Discovery::Eds(eds) if eds.service_name != config.name => Some(Arc::clone(&eds.service_name)),
                _ => None,
            },
            added_via_api: config.added_via_api,
            limits: RoutingPriority::ALL.map(|priority| self.limits(priority)),
            hosts: self.hosts().hosts().map(HostStatus::of).collect(),
        }
    }

    fn limits(&self, priority: RoutingPriority) -> Limits {
        let breakers = self.breakers(priority);
        Limits {
            max_connections: breakers.limit(Resource::Connections),
            max_pending_requests: breakers.limit(Resource::PendingRequests),
            max_requests: breakers.limit(Resource::Requests),
            max_retries: breakers.limit(Resource::Retries),
        }
    }
}

impl HostStatus {
    fn of(host: &Arc<Host>) -> Self {
        let state = &host.state;
        Self {
            host: Arc::clone(host),
            counts: HostCounts {
                connections_active: state.connections_active().into(),
                connect_failures: state.counted(HostCounter::ConnectFail),
                connections: state.counted(HostCounter::Connections),
                requests_active: state.requests_active().into(),
                request_errors: state.counted(HostCounter::RequestError),
                requests_pending: state.requests_pending().into(),
                request_successes: state.counted(HostCounter::RequestSuccess),
                request_timeouts: state.counted(HostCounter::RequestTimeout),
                requests: state.counted(HostCounter::Requests),
            },
        }
    }
}
