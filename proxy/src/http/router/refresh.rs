//! A retry whose cluster is chosen anew (`refresh_cluster_on_retry`), where a matcher names it.
//! It must not know why there is another try.

use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_filters::http::{RequestHead, StreamContext};
use tidegate_filters::matching::Outcome;

use super::Shared;
use super::charge::Account;
use crate::cluster::Cluster;
use crate::route::ClusterSelector;

/// The cluster that a next try would go to, where it is another.
pub(super) enum Elsewhere {
    There(Arc<Cluster>),
    /// What the matcher names is not there.
    Nowhere,
}

/// Asks the matcher by the head of the last try, as Envoy does. `None` when a next try goes where the last one went.
pub(super) fn elsewhere(shared: &Shared<'_>, head: &RequestHead, stream: &StreamContext) -> Option<Elsewhere> {
    let ClusterSelector::Tree(tree) = &shared.action.cluster else { return None };
    if !shared.retry().refresh_cluster {
        return None;
    }
    let input = shared.connection.route_input(head, stream);
    let named = match tree.matches(&input.match_data()) {
        Outcome::Action(name) => shared.connection.shared.snapshot().clusters.get(&**name).cloned(),
        Outcome::NoMatch | Outcome::NotYet => None,
    };
    match named {
        None => Some(Elsewhere::Nowhere),
        Some(cluster) if cluster.name() == shared.cluster.name() => None,
        Some(cluster) => Some(Elsewhere::There(cluster)),
    }
}

impl<'a> Shared<'a> {
    /// The same request on its way to another cluster.
    pub(super) fn towards(&self, cluster: Arc<Cluster>, stream: &mut StreamContext) -> Shared<'a> {
        cluster.name_in(&mut stream.info.upstream);
        Shared {
            connection: self.connection,
            route: self.route,
            action: self.action,
            cluster: Arc::clone(&cluster),
            account: Account { cluster, ..self.account.clone() },
            informational: self.informational.clone(),
            upstream_filters: self.upstream_filters,
            informed: Mutex::new(self.last_informational()),
            tunnel: self.tunnel,
            hash: self.hash,
            timeouts: self.timeouts,
            timeout_status: self.timeout_status,
            options: self.options,
            progress: self.progress.clone(),
            periodic: self.periodic.clone(),
            bytes: self.bytes.clone(),
            started: self.started,
        }
    }
}
