//! `cluster_manager.*`, under Envoy's names. It must not know when they are counted.

use tidegate_stats::stats_block;

stats_block! {
    /// `cluster_manager.*`. Updates are never merged, so what counts merges stays 0.
    pub struct ClusterManagerStats {
        counters {
            cluster_added, cluster_modified, cluster_removed, cluster_updated, cluster_updated_via_merge,
            update_merge_cancelled, update_out_of_merge_window,
        }
        gauges { active_clusters, warming_clusters }
        histograms {}
    }
}
