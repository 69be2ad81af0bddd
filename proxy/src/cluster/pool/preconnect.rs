//! How many connections a pool wants: enough for its requests, and as many more as `preconnect_policy` says.
//! It must not know how connections are made.

use crate::cluster::Cluster;
use crate::cluster::host::{Health, Host};

/// So many connections are begun for one request at most, as in Envoy.
pub(super) const MOST_AT_ONCE: usize = 3;

/// What a pool has to do, in requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub waiting: usize,
    pub active: usize,
    /// How many more its connections take, those under way among them.
    pub capacity: usize,
}

impl Load {
    /// Whether there should be one connection more. A host that is not healthy gets none ahead.
    pub(super) fn wants_connection(self, cluster: &Cluster, host: &Host) -> bool {
        let config = cluster.config();
        if !config.preconnects() || host.health() != Health::Healthy {
            return self.waiting > self.capacity;
        }
        (self.waiting + self.active) as f64 * config.preconnect_ratio > (self.capacity + self.active) as f64
    }
}
