//! The streams that are open now, to be asked how far they have come. It must not know how a stream is served.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tidegate_xds::pb::envoy::config::core::v3::Node;

use super::status::shown;
use super::{Dialect, ResourceStatus, TypeStatus};

/// All streams of a server.
#[derive(Debug, Default)]
pub struct Clients {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: BTreeMap<u64, Arc<Client>>,
}

/// One stream, once its client has said who it is.
pub struct Client {
    pub node: Node,
    pub peer: Option<SocketAddr>,
    /// What it is called: the service and method.
    pub service: &'static str,
    pub since: Instant,
    state: Arc<dyn Look + Send + Sync>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("node", &self.node.id).field("service", &self.service).finish_non_exhaustive()
    }
}

/// A stream's state, to look at.
trait Look {
    fn types(&self) -> Vec<TypeStatus>;
    fn resources(&self) -> Vec<ResourceStatus>;
}

impl<D: Dialect> Look for Mutex<D> {
    fn types(&self) -> Vec<TypeStatus> {
        self.lock().types()
    }

    fn resources(&self) -> Vec<ResourceStatus> {
        self.lock().resources()
    }
}

impl Client {
    pub(super) fn new<D: Dialect>(
        node: Node,
        peer: Option<SocketAddr>,
        service: &'static str,
        state: Arc<Mutex<D>>,
    ) -> Self {
        Self { node, peer, service, since: Instant::now(), state }
    }

    pub fn types(&self) -> Vec<TypeStatus> {
        self.state.types()
    }

    pub fn resources(&self) -> Vec<ResourceStatus> {
        self.state.resources()
    }
}

impl Clients {
    /// In the order in which they came.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.open.lock().streams.values().cloned().collect()
    }

    /// Adds a stream until what is returned is dropped.
    pub(super) fn add(self: &Arc<Self>, client: Client) -> Entry {
        let mut open = self.open.lock();
        open.next += 1;
        let id = open.next;
        open.streams.insert(id, Arc::new(client));
        Entry { clients: self.clone(), id }
    }
}

/// A stream's place among the open ones.
pub(super) struct Entry {
    clients: Arc<Clients>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // What it holds is freed after the lock.
        let gone = self.clients.open.lock().streams.remove(&self.id);
        if let Some(client) = gone {
            tracing::info!(node = shown(&client.node.id), service = client.service, "a client went");
        }
    }
}
