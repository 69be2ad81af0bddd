//! The compiled data-plane configuration: immutable, shared, built from its predecessor so that an update costs what
//! changed. It must not know where resources come from; mutable state lives with clusters, hosts and listeners.

use std::sync::Arc;

use crate::cluster::Cluster;
use crate::listener::Listener;
use crate::route::{RouteTable, ScopeTable};

/// Names to compiled resources. Clones share structure.
pub type Names<T> = imbl::GenericHashMap<Arc<str>, Arc<T>, ahash::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// Everything that a request or a connection may look up.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Grows by one a build.
    pub version: u64,
    pub clusters: Names<Cluster>,
    /// Route configurations by name (RDS); those of draining filter chains are kept.
    pub routes: Names<RouteTable>,
    /// Scopes of routes by their source (SRDS); those of draining filter chains are kept.
    pub scopes: Names<ScopeTable>,
    pub listeners: Names<Listener>,
}

impl Snapshot {
    /// The next snapshot: `change` is handed a structural copy of this one.
    pub fn build(&self, change: impl FnOnce(&mut Self)) -> Arc<Self> {
        let mut next = self.clone();
        next.version += 1;
        change(&mut next);
        Arc::new(next)
    }
}
