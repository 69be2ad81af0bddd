//! A pool's place among those of its cluster (`max_connection_pools`): it has one from the first request that finds it empty
//! until its last connection is gone and nobody waits. It must not know what a pool holds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tidegate_filters::metadata::FilterState;

use super::{POOLS, PoolError, StreamRequest};
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::{Permit, Resource, RoutingPriority};
use crate::cluster::host::{Host, HostId};
use crate::cluster::options::HttpProtocol;
use crate::cluster::proxied::Proxied;
use crate::cluster::sockets::Chosen;
use crate::tls::Wanted;

/// The pools of one worker for one protocol.
pub(super) type Map<S> = HashMap<Key, Arc<Pool<S>>, ahash::RandomState>;

/// What tells pools apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    host: HostId,
    priority: RoutingPriority,
    whom: Whom,
}

/// For whom connections are, where requests say, and through which socket: each is for one such.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Whom {
    /// The host that is named in TLS handshakes (`auto_sni`).
    pub(super) server_name: Option<Arc<str>>,
    /// The name that its certificate must have (`auto_san_validation`).
    pub(super) expected: Option<Arc<str>>,
    /// The client, where hosts are told.
    pub(super) proxied: Option<Arc<Proxied>>,
    pub(super) socket: Chosen,
}

/// The connections of one worker to one host at one priority; `S` is what their protocol keeps of them.
pub(super) struct Pool<S> {
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    /// The same as who asked last knows it: its facts may change while its state stays.
    pub(super) latest: ArcSwap<Host>,
    pub(super) priority: RoutingPriority,
    pub(super) whom: Whom,
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
    /// The pool of the other protocol that is for the same as this one.
    pub(super) fn beside<T: Content>(&self, pools: &mut Map<T>) -> Arc<Pool<T>> {
        Pool::at(self.key(), &self.cluster, &self.host, pools)
    }

    /// Whether clients chose the name that its host is asked by, or it is for one of them: there may be any number of such
    /// pools, which nobody may ever ask for again.
    pub(super) fn is_for_few(&self) -> bool {
        self.whom.server_name.is_some() || self.whom.expected.is_some() || self.whom.proxied.is_some()
    }

    /// Whether the host chooses the protocol.
    pub(super) fn is_auto(&self) -> bool {
        matches!(self.cluster.config().http.protocol, HttpProtocol::Auto(..))
    }

    pub(super) fn key(&self) -> Key {
        Key { host: self.host.state.id, priority: self.priority, whom: self.whom.clone() }
    }

    /// What its connections say in a handshake; `protocols` where their context offers none of its own.
    pub(super) fn handshake(&self, protocols: &'static [&'static [u8]]) -> Wanted {
        let alpn = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let Whom { server_name, expected, proxied, socket } = self.whom.clone();
        Wanted { server_name, expected, alpn: Some(alpn), proxied, socket }
    }

    /// The pool for a request.
    pub(super) fn of(request: &StreamRequest<'_>, pools: &mut Map<S>) -> Arc<Self> {
        let key = Key { host: request.host.state.id, priority: request.priority, whom: Whom::of(request) };
        let pool = Self::at(key, request.cluster, request.host, pools);
        if !Arc::ptr_eq(&pool.latest.load(), request.host) {
            pool.latest.store(Arc::clone(request.host));
        }
        pool
    }

    /// The host as a connection that is made now needs it.
    pub(super) fn latest_host(&self) -> Arc<Host> {
        self.latest.load_full()
    }

    /// One that holds nothing yet.
    pub(super) fn new(cluster: Arc<Cluster>, host: Arc<Host>, priority: RoutingPriority, whom: Whom) -> Self {
        let latest = ArcSwap::new(Arc::clone(&host));
        Self { cluster, host, latest, priority, whom, state: Mutex::default() }
    }

    fn at(key: Key, cluster: &Arc<Cluster>, host: &Arc<Host>, pools: &mut Map<S>) -> Arc<Self> {
        let pool = pools.entry(key).or_insert_with_key(|key| {
            Arc::new(Self::new(Arc::clone(cluster), Arc::clone(host), key.priority, key.whom.clone()))
        });
        Arc::clone(pool)
    }

    /// Takes a place among the cluster's pools, unless it has one.
    pub(super) fn enter(&self, state: &FilterState) -> Result<(), PoolError> {
        // Not locked while another pool is asked to make room.
        if !self.state.lock().place().is_taken() {
            let permit = Some(take(&self.cluster, &self.key())?);
            *self.state.lock().place() = Place { permit, shared: state.shared().map(Arc::new) };
        }
        Ok(())
    }
}

impl Whom {
    /// A request's. Of its host `auto_sni` and `auto_san_validation` take the name without the port; an address is not named to
    /// a host.
    fn of(request: &StreamRequest<'_>) -> Self {
        let config = request.cluster.config();
        let socket = config.transport_sockets.choose(request.host, request.state);
        let whom = Self { proxied: request.proxied.clone(), socket, ..Self::default() };
        let http = &config.http;
        if !http.auto_sni && !http.auto_san_validation {
            return whom;
        }
        let header = http.override_auto_sni_header.as_ref().and_then(|name| request.head.headers.get(name));
        let given = header.filter(|value| !value.is_empty()).unwrap_or(&request.head.authority);
        let name: Arc<str> = crate::http::host::without_port(given).into();
        let is_address = name.parse::<IpAddr>().is_ok();
        Self {
            server_name: Some(Arc::clone(&name)).filter(|_| http.auto_sni && !is_address),
            expected: Some(name).filter(|_| http.auto_san_validation),
            ..whom
        }
    }
}

/// A place for a pool. Where there is none, one is made by a pool of the same host and priority that rests: of the other
/// protocol.
pub(super) fn take(cluster: &Arc<Cluster>, key: &Key) -> Result<Permit, PoolError> {
    let breakers = cluster.breakers(key.priority);
    if let Some(place) = breakers.acquire(Resource::Pools) {
        return Ok(place);
    }
    if let Some(place) = clear_one(key).then(|| breakers.acquire(Resource::Pools)).flatten() {
        return Ok(place);
    }
    cluster.stats().traffic.upstream_cx_pool_overflow().inc();
    Err(PoolError::NoPool)
}

/// Closes the connections of a pool that does nothing; false when there is none.
fn clear_one(key: &Key) -> bool {
    let (h1, h2) = POOLS.with_borrow(|pools| (pools.h1.get(key).cloned(), pools.h2.get(key).cloned()));
    h1.is_some_and(|pool| pool.clear_if_at_rest()) || h2.is_some_and(|pool| pool.clear_if_at_rest())
}
