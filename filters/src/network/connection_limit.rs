//! `envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit`: closes connections beyond so many at a time.
//! It must not know how a connection is closed.
//!
//! The count lives as long as the configuration that holds it, as in Envoy: a changed listener begins with none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::network::connection_limit::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{Closing, NetworkFilter, NetworkFilterConfig, NetworkFilterFactory, NetworkStep, NetworkVerdict};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;
use crate::runtime::{Keyed, Runtime};
use crate::shown::Tags;

const MESSAGE: &str = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
/// Envoy's `%DOWNSTREAM_LOCAL_CLOSE_REASON%`.
const REFUSED: &str = "over_connection_limit";

stats_block! {
    struct Stats {
        counters { limited_connections }
        gauges { active_connections }
        histograms {}
    }
}

struct Config {
    stats: Stats,
    most: u64,
    /// Those that wait for their delayed rejection count too, as in Envoy.
    connections: AtomicU64,
    /// Before a rejection.
    delay: Duration,
    enabled: Option<Keyed<bool>>,
}

impl NetworkFilterConfig for Config {
    fn new_connection(self: Arc<Self>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter { config: self, place: None }))
    }
}

/// One connection in the count, until it is dropped.
struct Place(Arc<Config>);

impl Place {
    fn take(config: Arc<Config>) -> (Self, bool) {
        config.stats.active_connections().inc();
        let before = config.connections.fetch_add(1, Relaxed);
        let within = before < config.most;
        (Self(config), within)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
        self.0.stats.active_connections().dec();
    }
}

struct Filter {
    config: Arc<Config>,
    place: Option<Place>,
}

impl NetworkFilter for Filter {
    fn goes_first(&self) -> bool {
        true
    }

    fn on_connection<'a>(
        &'a mut self,
        connection: &'a mut ConnectionInfo,
        runtime: &'a dyn Runtime,
    ) -> NetworkStep<'a> {
        if self.config.enabled.as_ref().is_some_and(|enabled| !enabled.get(runtime)) {
            return NetworkStep::Continue;
        }
        let (place, within) = Place::take(Arc::clone(&self.config));
        self.place = Some(place);
        if within {
            return NetworkStep::Continue;
        }
        tracing::trace!("{} connection_limit: connection limiting connection", Tags::connection(connection.id));
        self.config.stats.limited_connections().inc();
        if self.config.delay.is_zero() {
            return NetworkStep::Close(Closing::new(REFUSED));
        }
        let delay = self.config.delay;
        NetworkStep::Wait(Box::pin(async move {
            tokio::time::sleep(delay).await;
            NetworkVerdict::Close(Closing::new(REFUSED))
        }))
    }
}

pub(super) struct Factory;

impl NetworkFilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        &[Coverage {
            message: MESSAGE,
            enforced: &["stat_prefix", "max_connections", "delay", "runtime_enabled"],
            listed: &[],
        }]
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn NetworkFilterConfig>, FieldError> {
        let config: pb::ConnectionLimit = context.decode(config)?;
        let Some(most) = config.max_connections else { return Err(context.error_at("max_connections", "must be set")) };
        let scope = context.stats.root().scope(&format!("connection_limit.{}.", config.stat_prefix));
        Ok(Arc::new(Config {
            stats: Stats::new(&scope),
            most: most.value,
            connections: AtomicU64::new(0),
            delay: super::milliseconds(config.delay.as_ref()),
            enabled: config.runtime_enabled.as_ref().map(Keyed::compile),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::*;

    #[test]
    fn a_place_is_free_again_when_its_filter_is_dropped() {
        let bench = Bench::new(&Factory);
        let config = bench.compile("{stat_prefix: p, max_connections: 1}").unwrap();
        let open = || {
            let mut filter = Arc::clone(&config).new_connection().unwrap();
            let details = closed(filter.on_connection(&mut connection(), &NoRuntime));
            (filter, details)
        };
        let (first, details) = open();
        assert_eq!(details, None);
        let (second, details) = open();
        assert_eq!(details.as_deref(), Some("over_connection_limit"));
        let names =
            ["limited_connections: 1", "active_connections: 2"].map(|name| format!("connection_limit.p.{name}"));
        assert_eq!(bench.counted(), names);
        drop(first);
        assert!(open().1.is_some(), "the one that is being rejected holds a place");
        drop(second);
        assert_eq!(open().1, None);
        assert_eq!(bench.counted(), ["connection_limit.p.limited_connections: 2"]);
    }

    #[tokio::test]
    async fn a_rejection_waits() {
        let bench = Bench::new(&Factory);
        let config = bench.compile("{stat_prefix: p, max_connections: 1, delay: 2s}").unwrap();
        let mut filters = [0, 1].map(|_| Arc::clone(&config).new_connection().unwrap());
        assert_eq!(closed(filters[0].on_connection(&mut connection(), &NoRuntime)), None);
        let mut info = connection();
        let NetworkStep::Wait(wait) = filters[1].on_connection(&mut info, &NoRuntime) else { panic!("no wait") };
        assert!(futures_util::FutureExt::now_or_never(wait).is_none());
    }

    #[test]
    fn it_may_be_off() {
        let bench = Bench::new(&Factory);
        let config = "{stat_prefix: p, max_connections: 1, runtime_enabled: {default_value: false, runtime_key: k}}";
        let config = bench.compile(config).unwrap();
        for _ in 0..3 {
            let mut filter = Arc::clone(&config).new_connection().unwrap();
            assert_eq!(closed(filter.on_connection(&mut connection(), &NoRuntime)), None);
            std::mem::forget(filter);
        }
        assert!(bench.counted().is_empty());
    }
}
