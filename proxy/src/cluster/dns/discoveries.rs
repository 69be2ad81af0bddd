//! The running discoveries of all DNS clusters, by name. It must not know how clusters come to be.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_filters::runtime::Runtime;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use super::{DnsDiscovery, Resolvers};
use crate::cluster::Cluster;

/// Owns every discovery; they end with it.
pub struct Discoveries {
    resolvers: Resolvers,
    runtime: Arc<dyn Runtime>,
    /// Is told the name of each cluster whose first resolution is done.
    resolved: UnboundedSender<Arc<str>>,
    running: HashMap<Arc<str>, Running>,
}

struct Running {
    cluster: Arc<Cluster>,
    /// Holds the discovery.
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Discoveries {
    pub fn new(runtime: Arc<dyn Runtime>, resolved: UnboundedSender<Arc<str>>) -> Self {
        Self { resolvers: Resolvers::default(), runtime, resolved, running: HashMap::new() }
    }

    /// Follows the names of a cluster instead of those of its predecessor; nothing happens when it is followed already.
    /// `seed` is random.
    pub fn follow(&mut self, cluster: &Arc<Cluster>, seed: u64) {
        let name = cluster.name();
        if self.running.get(name).is_some_and(|running| Arc::ptr_eq(&running.cluster, cluster)) {
            return;
        }
        self.running.retain(|_, running| !running.cluster.is_retired());
        let Some(options) = cluster.config().dns_options() else { return };
        let resolver = self.resolvers.get(&options.resolver);
        let Some(discovery) = DnsDiscovery::start(cluster, resolver, Arc::clone(&self.runtime), seed) else { return };
        let (resolved, cluster_name) = (self.resolved.clone(), Arc::clone(name));
        let task = tokio::spawn(async move {
            discovery.first_resolution().await;
            // Nobody listens any more when the process ends.
            let _ = resolved.send(cluster_name);
            discovery.ended().await;
        });
        self.running.insert(Arc::clone(name), Running { cluster: Arc::clone(cluster), task });
    }
}
