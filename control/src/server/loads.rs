//! The last load report of each client, by cluster. It must not know how reports travel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prost::Message;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterStats;

/// Of more clusters than this a client's reports are not kept.
const MOST_CLUSTERS: usize = 10_000;

/// Nor are more bytes than this of them.
const MOST_BYTES: usize = 16 << 20;

/// All reports, as long as those who sent them are there.
#[derive(Debug, Default)]
pub struct Loads {
    reporters: Mutex<Reporters>,
}

#[derive(Debug, Default)]
struct Reporters {
    next: u64,
    all: BTreeMap<u64, Reporter>,
}

#[derive(Debug)]
struct Reporter {
    node: String,
    clusters: BTreeMap<String, (ClusterStats, Instant)>,
    /// How long the reports are that are kept.
    bytes: usize,
}

/// A cluster as one client last reported it.
#[derive(Debug, Clone)]
pub struct Load {
    pub node: String,
    pub cluster: String,
    pub stats: ClusterStats,
    pub at: Instant,
}

impl Loads {
    pub fn all(&self) -> Vec<Load> {
        let reporters = self.reporters.lock();
        let of = |reporter: &Reporter| {
            let node = reporter.node.clone();
            let load = move |(cluster, (stats, at)): (&String, &(ClusterStats, Instant))| Load {
                node: node.clone(),
                cluster: cluster.clone(),
                stats: stats.clone(),
                at: *at,
            };
            reporter.clusters.iter().map(load).collect::<Vec<_>>()
        };
        reporters.all.values().flat_map(of).collect()
    }

    /// A client that reports until what is returned is dropped.
    pub(super) fn reporter(self: &Arc<Self>, node: &str) -> Reporting {
        let mut reporters = self.reporters.lock();
        reporters.next += 1;
        let id = reporters.next;
        reporters.all.insert(id, Reporter { node: node.to_owned(), clusters: BTreeMap::new(), bytes: 0 });
        Reporting { loads: self.clone(), id }
    }
}

/// One client's reports.
pub(super) struct Reporting {
    loads: Arc<Loads>,
    id: u64,
}

impl Reporting {
    pub(super) fn report(&self, stats: Vec<ClusterStats>, now: Instant) {
        let mut reporters = self.loads.reporters.lock();
        let Some(reporter) = reporters.all.get_mut(&self.id) else { return };
        for stats in stats {
            let before = reporter.clusters.get(&stats.cluster_name).map(|(stats, _)| stats.encoded_len());
            let bytes = reporter.bytes - before.unwrap_or_default() + stats.encoded_len();
            if bytes <= MOST_BYTES && (reporter.clusters.len() < MOST_CLUSTERS || before.is_some()) {
                reporter.clusters.insert(stats.cluster_name.clone(), (stats, now));
                reporter.bytes = bytes;
            }
        }
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        self.loads.reporters.lock().all.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_stands_as_long_as_its_client() {
        let loads = Arc::new(Loads::default());
        let reporting = loads.reporter("n");
        let stats = |cluster: &str, dropped: u64| ClusterStats {
            cluster_name: cluster.to_owned(),
            total_dropped_requests: dropped,
            ..ClusterStats::default()
        };
        reporting.report(vec![stats("a", 1), stats("b", 2)], Instant::now());
        reporting.report(vec![stats("a", 3)], Instant::now());
        let all: Vec<_> =
            loads.all().into_iter().map(|load| (load.cluster, load.stats.total_dropped_requests)).collect();
        assert_eq!(all, [("a".to_owned(), 3), ("b".to_owned(), 2)]);
        let many = (0..2 * MOST_CLUSTERS).map(|number| stats(&number.to_string(), 0)).collect();
        reporting.report(many, Instant::now());
        assert_eq!(loads.all().len(), MOST_CLUSTERS);
        let large =
            |cluster: &str| ClusterStats { cluster_service_name: "x".repeat(MOST_BYTES / 2), ..stats(cluster, 0) };
        reporting.report((0..4).map(|number| large(&number.to_string())).collect(), Instant::now());
        reporting.report(vec![stats("0", 7)], Instant::now());
        let kept: usize = loads.all().iter().map(|load| load.stats.encoded_len()).sum();
        assert!(kept < MOST_BYTES && loads.all().iter().any(|load| load.stats.total_dropped_requests == 7), "{kept}");
        drop(reporting);
        assert!(loads.all().is_empty());
    }
}
