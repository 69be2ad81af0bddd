//! What a stream to a control plane counts, under Envoy's names. It must not know what goes through it.

use tidegate_stats::{Scope, TextReadout, stats_block};

stats_block! {
    /// `control_plane.*`, below the subscription's scope where the stream is its own.
    pub struct StreamStats {
        counters { rate_limit_enforced }
        gauges { connected_state, pending_requests }
        histograms {}
    }
}

/// The stats of one stream.
pub struct ControlPlaneStats {
    stats: StreamStats,
    identifier: TextReadout,
}

impl ControlPlaneStats {
    /// Counts below `scope`, which ends in a dot or is the root.
    pub fn at(scope: &Scope) -> Self {
        let scope = scope.scope("control_plane.");
        let identifier = scope.text_readout("identifier");
        identifier.set("");
        Self { stats: StreamStats::new(&scope), identifier }
    }

    pub fn connected(&self) {
        self.stats.connected_state().set(1);
    }

    pub fn disconnected(&self) {
        self.stats.connected_state().set(0);
        self.stats.pending_requests().set(0);
    }

    /// A request has to wait.
    pub fn rate_limited(&self) {
        self.stats.rate_limit_enforced().inc();
    }

    /// So many requests wait.
    pub fn pending(&self, requests: usize) {
        self.stats.pending_requests().set(requests as u64);
    }

    #[cfg(test)]
    pub(crate) fn enforced(&self) -> u64 {
        self.stats.rate_limit_enforced().value()
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u64 {
        self.stats.pending_requests().value()
    }

    /// The control plane said who it is.
    pub fn identified(&self, identifier: &str) {
        self.identifier.set(identifier);
    }
}
