//! A pool's place among those of its cluster (`max_connection_pools`): it has one from the first request that finds it empty
//! until its last connection is gone and nobody waits. It must not know what a pool holds.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_filters::metadata::FilterState;

use super::{POOLS, PoolError, StreamRequest};
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::{Permit, Resource, RoutingPriority};
use crate::cluster::host::{Host, HostId};

/// The pools of one worker for one protocol.
pub(super) type Map<S> = HashMap<(HostId, RoutingPriority), Arc<Pool<S>>, ahash::RandomState>;

/// The connections of one worker to one host at one priority; `S` is what their protocol keeps of them.
pub(super) struct Pool<S> {
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    pub(super) priority: RoutingPriority,
    pub(super) state: Mutex<S>,
}

/// What a pool holds.
pub(super) trait Content: Default {
    /// No connection is there or on its way, and nobody waits for one.
    fn is_empty(&mut self) -> bool;

    fn place(&mut self) -> &mut Place;

    /// Gives the place back once nothing is left.
    fn leave_if_empty(&mut self) {
        if self.is_empty() {
            self.place().permit = None;
        }
    }
}

/// A pool's place, while there is anything in it.
#[derive(Default)]
pub(super) struct Place {
    permit: Option<Permit>,
    /// What whoever took it shares with the pool's connections.
    pub(super) shared: Option<Arc<FilterState>>,
}

impl Place {
    pub(super) fn is_taken(&self) -> bool {
        self.permit.is_some()
    }
}

impl<S: Content> Pool<S> {
    /// The pool for a request.
    pub(super) fn of(request: &StreamRequest<'_>, pools: &mut Map<S>) -> Arc<Self> {
        let pool = pools.entry((request.host.state.id, request.priority)).or_insert_with(|| {
            Arc::new(Self {
                cluster: Arc::clone(request.cluster),
                host: Arc::clone(request.host),
                priority: request.priority,
                state: Mutex::default(),
            })
        });
        Arc::clone(pool)
    }

    /// Takes a place among the cluster's pools, unless it has one.
    pub(super) fn enter(&self, state: &FilterState) -> Result<(), PoolError> {
        // Not locked while another pool is asked to make room.
        if !self.state.lock().place().is_taken() {
            let permit = Some(take(&self.cluster, self.host.state.id, self.priority)?);
            *self.state.lock().place() = Place { permit, shared: state.shared().map(Arc::new) };
        }
        Ok(())
    }
}

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
