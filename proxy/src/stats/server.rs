//! The process' own stats, `server.*`, and the flush that brings all stats up to date. It must not know who reads them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_stats::{Store, stats_block};

use crate::admin::state::{Memory, ServerState};

/// Who this is, in Envoy's form: revision, version, tree, build, TLS library.
pub const VERSION: &str = if cfg!(debug_assertions) {
    concat!("tidegate/", env!("CARGO_PKG_VERSION"), "/Clean/DEBUG/AWS-LC")
} else {
    concat!("tidegate/", env!("CARGO_PKG_VERSION"), "/Clean/RELEASE/AWS-LC")
};

stats_block! {
    /// `server.*`. What has no meaning here stays 0: there is no parent to take over from.
    pub struct ServerStats {
        counters {
            debug_assertion_failures, dropped_stat_flushes, dynamic_unknown_fields, envoy_bug_failures,
            envoy_notifications, static_unknown_fields, wip_protos,
        }
        gauges {
            concurrency, days_until_first_cert_expiring, hot_restart_epoch, live, memory_allocated, memory_heap_size,
            memory_physical_size, parent_connections, seconds_until_first_ocsp_response_expiring, state,
            stats_recent_lookups, total_connections, uptime, version,
        }
        histograms { initialization_time_ms: Milliseconds }
        zeros { dynamic_unknown_fields, static_unknown_fields, wip_protos }
    }
}

stats_block! {
    /// `server.compilation_settings.*`.
    pub struct CompilationStats {
        counters {}
        gauges { fips_mode }
        histograms {}
    }
}

stats_block! {
    /// `main_thread.*` and `workers.*`, and the same below `server.` thread by thread: there is no watchdog, so nothing is
    /// ever missed.
    pub struct WatchdogStats {
        counters { watchdog_mega_miss, watchdog_miss }
        gauges {}
        histograms {}
    }
}

stats_block! {
    /// `thread_local_cluster_manager.<thread>.*`: every thread sees every cluster.
    pub struct ThreadClustersStats {
        counters {}
        gauges { clusters_inflated }
        histograms {}
    }
}

stats_block! {
    /// `overload.*`: connections are counted as they come, so nothing is refreshed.
    pub struct OverloadStats {
        counters {}
        gauges {}
        histograms { refresh_interval_delay: Milliseconds }
    }
}

stats_block! {
    /// `overload.<monitor of connections>.*`. Connections are counted as they come, which makes no pressure.
    pub struct ConnectionMonitorStats {
        counters { failed_updates }
        gauges { pressure }
        histograms {}
    }
}

stats_block! {
    /// `envoy.overload_actions.reset_high_memory_stream.*`: no such action is built.
    pub struct ResetStreamStats {
        counters { count }
        gauges {}
        histograms {}
    }
}

/// The process as its stats see it.
pub struct ServerGauges {
    stats: ServerStats,
    started: Instant,
    _compilation: CompilationStats,
    _watchdogs: Vec<WatchdogStats>,
    _overload: (OverloadStats, ResetStreamStats),
    clusters: Vec<ThreadClustersStats>,
    _files: Box<dyn Send + Sync>,
}

/// What changes about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub state: ServerState,
    /// Open downstream connections.
    pub connections: u64,
    pub clusters: Clusters,
    pub memory: Memory,
    /// Whole days until the first certificate expires; none where there is no certificate.
    pub days_of_certificates: Option<u64>,
    /// Whole seconds until the first OCSP response expires; none where there is none.
    pub seconds_of_responses: Option<u64>,
}

/// The clusters that a thread has taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clusters {
    pub all: u64,
    /// By worker, where each takes a cluster in when it first uses it; else every worker has all.
    pub of_workers: Option<Vec<u64>>,
}

impl ServerGauges {
    pub fn new(store: &Arc<Store>, concurrency: usize, now: Instant) -> Self {
        let scope = store.root().scope("server.");
        let stats = ServerStats::new(&scope);
        stats.concurrency().set(concurrency as u64);
        stats.version().set(version_number());
        let compilation = CompilationStats::new(&scope.scope("compilation_settings."));
        compilation.fips_mode().set(0);
        let workers = (0..concurrency).map(|worker| scope.scope(&format!("worker_{worker}.")));
        let all = [store.root().scope("main_thread."), store.root().scope("workers."), scope.scope("main_thread.")];
        let watchdogs = all.into_iter().chain(workers).map(|scope| WatchdogStats::new(&scope)).collect();
        let threads = (0..concurrency).map(|worker| format!("worker_{worker}"));
        let of_thread = |thread: String| {
            ThreadClustersStats::new(&store.root().scope(&format!("thread_local_cluster_manager.{thread}.")))
        };
        let clusters = std::iter::once("main_thread".to_owned()).chain(threads).map(of_thread).collect();
        let overload = (
            OverloadStats::new(&store.root().scope("overload.")),
            ResetStreamStats::new(&store.root().scope("envoy.overload_actions.reset_high_memory_stream.")),
        );
        let files = Box::new(tidegate_filters::access_log::register_stats(&store.root()));
        Self {
            stats,
            started: now,
            _compilation: compilation,
            _watchdogs: watchdogs,
            _overload: overload,
            clusters,
            _files: files,
        }
    }

    pub fn stats(&self) -> &ServerStats {
        &self.stats
    }

    pub fn uptime(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Notes that the process begins to serve.
    pub fn initialized(&self, now: Instant) {
        self.stats.initialization_time_ms().record(self.uptime(now).as_millis() as u64);
    }

    /// Brings the process' stats up to date.
    pub fn update(&self, facts: &Facts, now: Instant) {
        self.stats.uptime().set(self.uptime(now).as_secs());
        // Whoever starts lives already.
        self.stats.live().set(u64::from(facts.state != ServerState::Draining));
        self.stats.state().set(match facts.state {
            ServerState::Live => 0,
            ServerState::Draining => 1,
            ServerState::PreInitializing => 2,
            ServerState::Initializing => 3,
        });
        self.stats.total_connections().set(facts.connections);
        self.stats.days_until_first_cert_expiring().set(facts.days_of_certificates.unwrap_or(u32::MAX.into()));
        self.stats.seconds_until_first_ocsp_response_expiring().set(facts.seconds_of_responses.unwrap_or(0));
        self.show_clusters(&facts.clusters);
        self.stats.memory_allocated().set(facts.memory.allocated);
        self.stats.memory_heap_size().set(facts.memory.heap_size);
        self.stats.memory_physical_size().set(facts.memory.physical);
    }

    /// Shows which threads know of how many clusters.
    pub fn show_clusters(&self, clusters: &Clusters) {
        for (thread, stats) in self.clusters.iter().enumerate() {
            // The main thread stands first.
            let worker = thread.checked_sub(1);
            let own = worker.and_then(|worker| clusters.of_workers.as_ref()?.get(worker).copied());
            stats.clusters_inflated().set(own.unwrap_or(clusters.all));
        }
    }
}

/// Brings the process' own stats up to date.
pub fn refresh(store: &Store, gauges: &ServerGauges, facts: &Facts, now: Instant) {
    gauges.update(facts, now);
    gauges.stats.stats_recent_lookups().set(store.lookups().total());
}

/// Brings all stats up to date: the process' own, then the histograms. Called for the first time after, then every `stats_flush_interval`.
pub fn flush(store: &Store, gauges: &ServerGauges, facts: &Facts, now: Instant) {
    refresh(store, gauges, facts, now);
    store.flush_histograms();
}

impl Memory {
    /// This process' memory, as the kernel accounts it. What the allocator holds and what is in use are one number to it;
    /// the address space that mimalloc reserves ahead says nothing.
    pub fn read() -> Self {
        // Without /proc nothing is known.
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
            kibibytes.map_or(0, |kibibytes| kibibytes * 1024)
        };
        let anonymous = bytes("RssAnon");
        Self { allocated: anonymous, heap_size: anonymous, physical: bytes("VmRSS") }
    }
}

/// The version as one number that grows with it.
fn version_number() -> u64 {
    let part = |text: &str| text.parse::<u64>().unwrap_or(0);
    let (major, minor) = (part(env!("CARGO_PKG_VERSION_MAJOR")), part(env!("CARGO_PKG_VERSION_MINOR")));
    (major << 16) + (minor << 8) + part(env!("CARGO_PKG_VERSION_PATCH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_brings_everything_up_to_date() {
        let store = Store::new();
        let start = Instant::now();
        let gauges = ServerGauges::new(&store, 2, start);
        gauges.initialized(start + Duration::from_millis(20));
        let memory = Memory { allocated: 1, heap_size: 2, physical: 3 };
        let clusters = Clusters { all: 3, of_workers: None };
        let (days_of_certificates, seconds_of_responses) = (None, Some(9));
        let mut facts = Facts {
            state: ServerState::Draining,
            connections: 7,
            clusters,
            memory,
            days_of_certificates,
            seconds_of_responses,
        };
        flush(&store, &gauges, &facts, start + Duration::from_secs(61));
        let value = |name: &str| store.gauges().into_iter().find(|gauge| gauge.name == name).map(|gauge| gauge.value);
        for (name, expected) in [
            ("server.uptime", 61),
            ("server.live", 0),
            ("server.state", 1),
            ("server.concurrency", 2),
            ("server.total_connections", 7),
            ("thread_local_cluster_manager.main_thread.clusters_inflated", 3),
            ("thread_local_cluster_manager.worker_1.clusters_inflated", 3),
            ("server.memory_heap_size", 2),
            ("server.days_until_first_cert_expiring", 4_294_967_295),
            ("server.seconds_until_first_ocsp_response_expiring", 9),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
        facts.clusters.of_workers = Some(vec![0, 2]);
        gauges.update(&facts, start);
        for (thread, expected) in [("main_thread", 3), ("worker_0", 0), ("worker_1", 2)] {
            let name = format!("thread_local_cluster_manager.{thread}.clusters_inflated");
            let gauge = store.gauges().into_iter().find(|gauge| gauge.name == name);
            assert_eq!(gauge.map(|gauge| gauge.value), Some(expected), "{name}");
        }
        // Nobody writes it where there is no hot restart.
        let parent = store.gauges().into_iter().find(|gauge| gauge.name == "server.parent_connections");
        assert_eq!(parent.map(|gauge| gauge.used), Some(false));
        let counters: Vec<_> = store.counters_if(|name, _| name.ends_with("watchdog_miss"));
        assert_eq!(counters.len(), 5);
        let histograms = store.histograms_if(|_, used| used);
        assert_eq!(histograms[0].name, "server.initialization_time_ms");
    }

    #[test]
    fn memory_is_read_from_the_kernels_text() {
        let status = "Name:\ta\nVmRSS:\t  12 kB\nRssAnon:\t 10 kB\n";
        assert_eq!(Memory::parse(status), Memory { allocated: 10_240, heap_size: 10_240, physical: 12_288 });
        assert!(Memory::read().physical > 0);
    }
}
