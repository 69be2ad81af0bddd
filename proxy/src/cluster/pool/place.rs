//! A pool's place among those of its cluster (`max_connection_pools`): it has one from the first request that finds it empty
//! until its last connection is gone and nobody waits. It must not know what a pool holds.

use std::sync::Arc;

use super::{POOLS, PoolError};
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::{Permit, Resource, RoutingPriority};
use crate::cluster::host::HostId;

/// A place for a pool. Where there is none, one is made by a pool of the same host and priority that rests: of the other
/// protocol.
pub(super) fn take(cluster: &Arc<Cluster>, host: HostId, priority: RoutingPriority) -> Result<Permit, PoolError> {
    let breakers = cluster.breakers(priority);
    if let Some(place) = breakers.acquire(Resource::Pools) {
        return Ok(place);
    }
    if let Some(place) = clear_one(host, priority).then(|| breakers.acquire(Resource::Pools)).flatten() {
        return Ok(place);
    }
    cluster.stats().traffic.upstream_cx_pool_overflow().inc();
    Err(PoolError::NoPool)
}

/// Closes the connections of a pool that does nothing; false when there is none.
fn clear_one(host: HostId, priority: RoutingPriority) -> bool {
    let key = (host, priority);
    let (h1, h2) = POOLS.with_borrow(|pools| (pools.h1.get(&key).cloned(), pools.h2.get(&key).cloned()));
    h1.is_some_and(|pool| pool.clear_if_at_rest()) || h2.is_some_and(|pool| pool.clear_if_at_rest())
}
