//! `http.<stat_prefix>.scoped_rds.<name>.*`: what scoped routes count besides their subscription, under Envoy's names.
//! It must not know what a scope is.

use std::time::SystemTime;

use tidegate_stats::{Scope, stats_block};

use super::subscription::millis;

stats_block! {
    /// The stats of one source of scopes.
    pub struct ScopedRoutesStats {
        counters { config_reload, update_empty }
        gauges { active_scopes, all_scopes, config_reload_time_ms, on_demand_scopes }
        histograms {}
    }
}

impl ScopedRoutesStats {
    /// Counts below `scope`, which ends in a dot.
    pub fn at(scope: &Scope) -> Self {
        Self::new(scope)
    }

    /// An update was taken whole; so many scopes are there.
    pub fn loaded(&self, scopes: usize, now: SystemTime) {
        self.all_scopes().set(scopes as u64);
        self.config_reload().inc();
        self.config_reload_time_ms().set(millis(now));
    }

    /// A scope is there: one that waits to be asked for, one whose route configuration is asked for, both, or neither.
    pub fn appears(&self, on_demand: bool, active: bool) {
        self.on_demand_scopes().add(i64::from(on_demand));
        self.active_scopes().add(i64::from(active));
    }

    /// The route configuration of a scope is asked for from now on.
    pub fn wakes(&self) {
        self.active_scopes().inc();
    }

    /// The same scope is not there any more.
    pub fn vanishes(&self, on_demand: bool, active: bool) {
        self.on_demand_scopes().add(-i64::from(on_demand));
        self.active_scopes().add(-i64::from(active));
    }

    /// None is there any more.
    pub fn ends(&self) {
        self.all_scopes().set(0);
    }
}
