//! What a subscription counts of its updates, under Envoy's names. It must not know where updates come from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidegate_stats::{Scope, TextReadout, stats_block};
use xxhash_rust::xxh64::xxh64;

stats_block! {
    /// `cluster_manager.cds.*`, `listener_manager.lds.*`, `http.<stat_prefix>.rds.<name>.*`.
    pub struct SubscriptionStats {
        counters { init_fetch_timeout, update_attempt, update_failure, update_rejected, update_success }
        gauges { update_time, version }
        histograms { update_duration: Milliseconds }
    }
}

stats_block! {
    /// What clusters and routes have besides.
    pub struct ReloadStats {
        counters { config_reload }
        gauges { config_reload_time_ms }
        histograms {}
    }
}

stats_block! {
    /// What routes have besides.
    pub struct EmptyStats {
        counters { update_empty }
        gauges {}
        histograms {}
    }
}

stats_block! {
    /// What filters' configurations have besides.
    pub struct ExtensionStats {
        counters { config_conflict, config_fail, config_reload }
        gauges {}
        histograms {}
    }
}

stats_block! {
    /// What virtual hosts have besides.
    pub struct HostsStats {
        counters { config_reload, update_empty }
        gauges {}
        histograms {}
    }
}

/// What became of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// It acts; this is its version.
    Success(String),
    /// It could be read, and says what cannot act.
    Rejected,
    /// It could not be read.
    Failure,
}

/// The stats of one subscription.
pub struct Subscription {
    stats: SubscriptionStats,
    version_text: TextReadout,
    reload: Option<ReloadStats>,
    empty: Option<EmptyStats>,
    extension: Option<ExtensionStats>,
    hosts: Option<HostsStats>,
}

impl Subscription {
    /// Counts below `scope`, which ends in a dot.
    pub fn new(scope: &Scope) -> Self {
        let version_text = scope.text_readout("version_text");
        version_text.set("");
        let stats = SubscriptionStats::new(scope);
        Self { stats, version_text, reload: None, empty: None, extension: None, hosts: None }
    }

    /// The same of a subscription that counts reloads.
    pub fn with_reloads(scope: &Scope) -> Self {
        Self { reload: Some(ReloadStats::new(scope)), ..Self::new(scope) }
    }

    /// The same of one that counts updates without its resource, too.
    pub fn with_empties(scope: &Scope) -> Self {
        Self { empty: Some(EmptyStats::new(scope)), ..Self::with_reloads(scope) }
    }

    /// The same of a filter's configuration.
    pub fn of_extension(scope: &Scope) -> Self {
        Self { extension: Some(ExtensionStats::new(scope)), ..Self::new(scope) }
    }

    /// The same of virtual hosts.
    pub fn of_hosts(scope: &Scope) -> Self {
        Self { hosts: Some(HostsStats::new(scope)), ..Self::new(scope) }
    }

    /// The resource was not among those that came.
    pub fn found_empty(&self) {
        if let Some(empty) = &self.empty {
            empty.update_empty().inc();
        }
    }

    /// It begins.
    pub fn asked(&self) {
        self.stats.update_attempt().inc();
    }

    /// Nothing came in time.
    pub fn fetch_timed_out(&self) {
        self.stats.init_fetch_timeout().inc();
    }

    /// What was asked for came.
    pub fn count(&self, update: &Update, now: SystemTime) {
        match update {
            Update::Success(version) => {
                self.stats.update_success().inc();
                self.stats.update_time().set(millis(now));
                self.stats.version().set(version_hash(version));
                self.version_text.set(version);
            }
            Update::Rejected => {
                self.stats.update_rejected().inc();
                if let Some(extension) = &self.extension {
                    extension.config_fail().inc();
                }
            }
            Update::Failure => self.stats.update_failure().inc(),
        }
    }

    /// An update that acts took so long to take in.
    pub fn took(&self, time: Duration) {
        self.stats.update_duration().record(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// What acts has changed.
    pub fn reloaded(&self, now: SystemTime) {
        if let Some(extension) = &self.extension {
            extension.config_reload().inc();
        }
        if let Some(hosts) = &self.hosts {
            hosts.config_reload().inc();
        }
        if let Some(reload) = &self.reload {
            reload.config_reload().inc();
            reload.config_reload_time_ms().set(millis(now));
        }
    }
}

/// As `update_time` shows it.
pub fn millis(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// As `version` shows it.
pub fn version_hash(version: &str) -> u64 {
    xxh64(version.as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of Envoy 1.40.
    #[test]
    fn a_version_is_shown_by_its_hash() {
        assert_eq!((version_hash(""), version_hash("1")), (17_241_709_254_077_376_921, 13_237_225_503_670_494_420));
    }

    #[test]
    fn only_a_success_changes_the_version() {
        let scope = tidegate_stats::Store::new().root().scope("cluster_manager.cds.");
        let subscription = Subscription::with_reloads(&scope);
        let now = UNIX_EPOCH + std::time::Duration::from_millis(7);
        for update in [Update::Success("1".to_owned()), Update::Rejected, Update::Failure] {
            subscription.count(&update, now);
        }
        let stats = &subscription.stats;
        assert_eq!(
            [stats.update_attempt(), stats.update_success(), stats.update_rejected(), stats.update_failure()]
                .map(|counter| counter.value()),
            [0, 1, 1, 1]
        );
        assert_eq!((stats.version().value(), stats.update_time().value()), (version_hash("1"), 7));
    }
}
