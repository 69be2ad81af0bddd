//! What a stream to a control plane counts, under Envoy's names. It must not know what goes through it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_stats::{Scope, TextReadout, stats_block};

stats_block! {
    /// `control_plane.*`, below the subscription's scope where the stream is its own.
    pub struct StreamStats {
        counters { rate_limit_enforced }
        gauges { connected_state, pending_requests }
        histograms {}
    }
}

/// The stats of one stream: in a place of its own, or with each subscription that it carries, which has a stream of its own
/// in Envoy.
pub struct ControlPlaneStats {
    /// By subscription; one without a name stands for all.
    places: BTreeMap<Arc<str>, Vec<Place>>,
    connected: bool,
    identifier: String,
}

struct Place {
    stats: StreamStats,
    identifier: TextReadout,
}

impl Place {
    /// Below `scope`, which ends in a dot or is the root.
    fn at(scope: &Scope, connected: bool, identifier: &str) -> Self {
        let scope = scope.scope("control_plane.");
        let place = Self { stats: StreamStats::new(&scope), identifier: scope.text_readout("identifier") };
        place.stats.connected_state().set(u64::from(connected));
        place.identifier.set(identifier);
        place
    }
}

impl ControlPlaneStats {
    /// Counts below `scope` alone, which ends in a dot or is the root.
    pub fn at(scope: &Scope) -> Self {
        let mut stats = Self::of_subscriptions();
        stats.follow(&"".into(), std::slice::from_ref(scope));
        stats
    }

    /// Counts with the subscriptions that are named later.
    pub fn of_subscriptions() -> Self {
        Self { places: BTreeMap::new(), connected: false, identifier: String::new() }
    }

    /// A subscription is carried, which counts below these scopes.
    pub fn follow(&mut self, subscription: &Arc<str>, scopes: &[Scope]) {
        let places = scopes.iter().map(|scope| Place::at(scope, self.connected, &self.identifier)).collect();
        self.places.insert(Arc::clone(subscription), places);
    }

    /// A subscription is not carried any more.
    pub fn leave(&mut self, subscription: &str) {
        self.places.remove(subscription);
    }

    fn all(&self) -> impl Iterator<Item = &Place> {
        self.places.values().flatten()
    }

    pub fn connected(&mut self) {
        self.connected = true;
        self.all().for_each(|place| place.stats.connected_state().set(1));
    }

    pub fn disconnected(&mut self) {
        self.connected = false;
        for place in self.all() {
            place.stats.connected_state().set(0);
            place.stats.pending_requests().set(0);
        }
    }

    /// A request has to wait.
    pub fn rate_limited(&self) {
        self.all().for_each(|place| place.stats.rate_limit_enforced().inc());
    }

    /// So many requests wait.
    pub fn pending(&self, requests: usize) {
        self.all().for_each(|place| place.stats.pending_requests().set(requests as u64));
    }

    #[cfg(test)]
    pub(crate) fn enforced(&self) -> u64 {
        self.all().map(|place| place.stats.rate_limit_enforced().value()).sum()
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u64 {
        self.all().map(|place| place.stats.pending_requests().value()).sum()
    }

    /// The control plane said who it is.
    pub fn identified(&mut self, identifier: &str) {
        if self.identifier != identifier {
            identifier.clone_into(&mut self.identifier);
            self.all().for_each(|place| place.identifier.set(identifier));
        }
    }
}
