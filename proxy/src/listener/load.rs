//! How many connections a listener has on each worker, and whether one more may come: its own limit, and the process's.
//! It must not know sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Listener;
use super::exhaustion::Exhaustion;
use crate::app::Shared;
use crate::stats::listener::WorkerListenerStats;
use crate::stats::server::ConnectionMonitorStats;
use crate::worker::{Command, Commands};

/// The runtime key of the process's limit, which acts without an overload manager.
const GLOBAL_LIMIT: &str = "overload.global_downstream_max_connections";

/// What the stats of the overload manager's monitor are named below.
const MONITOR: &str = "overload.envoy.resource_monitors.global_downstream_max_connections.";

/// All connections of the process.
#[derive(Debug, Default)]
pub(crate) struct GlobalLoad {
    /// Also those of listeners that ignore the limit.
    accepted: AtomicU64,
    /// Without those.
    limited: AtomicU64,
    /// Those that could not be accepted.
    pub(super) exhaustion: Exhaustion,
}

/// The overload manager's limit of all connections.
pub(crate) struct GlobalLimit {
    connections: u64,
    stats: ConnectionMonitorStats,
}

impl GlobalLimit {
    pub(crate) fn new(connections: u64, stats: &tidegate_stats::Scope) -> Self {
        let stats = ConnectionMonitorStats::new(&stats.verbatim(MONITOR));
        stats.pressure().set(0);
        Self { connections, stats }
    }

    /// Takes a place, or counts that there was none.
    fn enter(&self, load: &GlobalLoad) -> Result<(), Refused> {
        if take_below(&load.limited, self.connections) {
            return Ok(());
        }
        self.stats.failed_updates().inc();
        Err(Refused::Everywhere)
    }
}

/// A listener's connections; it outlives changes of the listener.
pub(crate) struct Load {
    total: AtomicU64,
    workers: Vec<OfWorker>,
}

struct OfWorker {
    connections: AtomicU64,
    stats: WorkerListenerStats,
    commands: Commands,
}

/// Why a connection is closed at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// `downstream_cx_overflow`.
    Listener,
    /// `downstream_global_cx_overflow`.
    Everywhere,
}

/// One connection in all counts, until dropped.
pub(crate) struct Place {
    load: Arc<Load>,
    worker: usize,
    shared: Arc<Shared>,
    limited: bool,
}

impl Load {
    pub(crate) fn new(scope: &tidegate_stats::Scope, workers: impl Iterator<Item = Commands>) -> Self {
        let of_worker = |(index, commands): (usize, Commands)| OfWorker {
            connections: AtomicU64::new(0),
            stats: WorkerListenerStats::new(&scope.scope(&format!("worker_{index}."))),
            commands,
        };
        Self { total: AtomicU64::new(0), workers: workers.enumerate().map(of_worker).collect() }
    }

    /// The worker with the fewest connections; `own` when none has fewer.
    pub(crate) fn least_loaded(&self, own: usize) -> usize {
        let connections = |index: &usize| self.workers.get(*index).map(|worker| worker.connections.load(Relaxed));
        let least = (0..self.workers.len()).min_by_key(connections).unwrap_or(own);
        if connections(&least) < connections(&own) { least } else { own }
    }

    pub(crate) fn tell(&self, worker: usize, command: Command) {
        if let Some(worker) = self.workers.get(worker) {
            // A worker that has ended takes nothing more; the connection closes.
            let _ = worker.commands.send(command);
        }
    }

    /// Takes a place for a connection that will be served by `worker`.
    pub(crate) fn enter(
        self: &Arc<Self>,
        listener: &Listener,
        worker: usize,
        shared: &Arc<Shared>,
    ) -> Result<Place, Refused> {
        let global = shared.global_load();
        let limited = !listener.ignore_global_limit;
        if limited && let Some(limit) = shared.global_limit() {
            limit.enter(global)?;
        } else {
            let limit = shared.runtime().integer(GLOBAL_LIMIT).filter(|_| limited);
            if limit.is_some_and(|limit| global.accepted.load(Relaxed) >= limit) {
                return Err(Refused::Everywhere);
            }
            if limited {
                global.limited.fetch_add(1, Relaxed);
            }
        }
        global.accepted.fetch_add(1, Relaxed);
        let before = self.total.fetch_add(1, Relaxed);
        if let Some(worker) = self.workers.get(worker) {
            worker.connections.fetch_add(1, Relaxed);
        }
        let place = Place { load: Arc::clone(self), worker, shared: Arc::clone(shared), limited };
        let limit = shared.runtime().integer(&listener.limit_key);
        if limit.is_some_and(|limit| before >= limit) { Err(Refused::Listener) } else { Ok(place) }
    }
}

/// Adds one unless that is more than `limit`.
fn take_below(counter: &AtomicU64, limit: u64) -> bool {
    let more = |count: u64| (count < limit).then_some(count + 1);
    counter.fetch_update(Relaxed, Relaxed, more).is_ok()
}

impl Place {
    /// The stats of the worker that serves it.
    pub(crate) fn stats(&self) -> Option<&WorkerListenerStats> {
        self.load.workers.get(self.worker).map(|worker| &worker.stats)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let global = self.shared.global_load();
        global.accepted.fetch_sub(1, Relaxed);
        if self.limited {
            global.limited.fetch_sub(1, Relaxed);
        }
        self.load.total.fetch_sub(1, Relaxed);
        if let Some(worker) = self.load.workers.get(self.worker) {
            worker.connections.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_with_the_fewest_takes_the_next_and_an_equal_one_keeps_its_own() {
        let store = tidegate_stats::Store::new();
        let commands = (0..3).map(|_| tokio::sync::mpsc::unbounded_channel().0);
        let load = Load::new(&store.root().scope("listener.l."), commands);
        let set = |counts: [u64; 3]| {
            for (worker, count) in load.workers.iter().zip(counts) {
                worker.connections.store(count, Relaxed);
            }
        };
        for (counts, own, expected) in [([1, 1, 1], 2, 2), ([2, 1, 2], 0, 1), ([2, 1, 1], 2, 2), ([0, 3, 3], 1, 0)] {
            set(counts);
            assert_eq!(load.least_loaded(own), expected, "{counts:?} {own}");
        }
    }

    #[test]
    fn what_the_limit_refuses_is_counted() {
        let store = tidegate_stats::Store::new();
        let (limit, load) = (GlobalLimit::new(1, &store.root()), GlobalLoad::default());
        assert_eq!([limit.enter(&load), limit.enter(&load)], [Ok(()), Err(Refused::Everywhere)]);
        let failed = store.counters().remove(0);
        assert_eq!((failed.name, failed.value), (format!("{MONITOR}failed_updates"), 1));
    }

    #[test]
    fn a_counter_stops_at_its_limit() {
        let counter = AtomicU64::new(0);
        assert_eq!([0, 1, 2].map(|_| take_below(&counter, 2)), [true, true, false]);
        assert_eq!(counter.load(Relaxed), 2);
    }
}
