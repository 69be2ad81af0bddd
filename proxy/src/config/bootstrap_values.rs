//! Fields of a bootstrap of which only some values can act, and those that only must fit together. It must not know what the
//! others do.

use std::time::Duration;

use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use tidegate_xds::pb::envoy::config::bootstrap::v3::bootstrap::StatsEviction;

use super::values::duration;

/// The socket interface that every Envoy has.
const SOCKETS: &str = "envoy.extensions.network.socket_interface.default_socket_interface";

/// The prefix that headers have where none is set.
const PREFIX: &str = "x-envoy";

/// `flush` is how often stats are flushed, if they are by time.
pub(super) fn check(
    bootstrap: &Bootstrap,
    flush: Option<Duration>,
    context: &CompileContext<'_>,
) -> Result<(), FieldError> {
    let unsupported = |field: &str| Err(context.error_at(field, format!("not supported yet: {field}")));
    if !matches!(bootstrap.header_prefix.as_str(), "" | PREFIX) {
        return unsupported("header_prefix");
    }
    if !matches!(bootstrap.default_socket_interface.as_str(), "" | SOCKETS) {
        return unsupported("default_socket_interface");
    }
    #[expect(deprecated, reason = "Envoy takes it, though not with its successor")]
    if bootstrap.watchdog.is_some() && bootstrap.watchdogs.is_some() {
        return Err(context.error_at("watchdog", "Only one of watchdog or watchdogs should be set!"));
    }
    evictions(bootstrap, flush).map_err(|reason| context.error_at("stats_eviction_interval", reason))
}

/// What is evicted are stats of extensions that are refused; that the interval fits is still asked.
fn evictions(bootstrap: &Bootstrap, flush: Option<Duration>) -> Result<(), &'static str> {
    let Some(StatsEviction::StatsEvictionInterval(interval)) = &bootstrap.stats_eviction else { return Ok(()) };
    let interval = duration(interval);
    let Some(flush) = flush else { return Err("needs stats that are flushed by time") };
    if !interval.as_millis().is_multiple_of(flush.as_millis().max(1)) {
        return Err("must be a multiple of stats_flush_interval");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidegate_filters::context::Defaults;
    use tidegate_xds::Format;

    use crate::config::bootstrap::{Bootstrap, Overrides};

    fn refused(yaml: &str) -> Option<String> {
        let read = Bootstrap::read(yaml.as_bytes(), Format::Yaml, &Overrides::default(), Defaults::Envoy);
        read.err().map(|errors| errors[0].to_string())
    }

    #[test]
    fn an_eviction_interval_is_a_multiple_of_the_flush_interval() {
        for good in ["10s", "5s", "3s, stats_flush_interval: 1s"] {
            assert_eq!(refused(&format!("{{stats_eviction_interval: {good}}}")), None, "{good}");
        }
        for bad in ["7s", "0.5s, stats_flush_interval: 1s", "5s, stats_flush_on_admin: true"] {
            let reason = refused(&format!("{{stats_eviction_interval: {bad}}}")).unwrap_or_default();
            assert!(reason.contains("stats_eviction_interval"), "{bad}: {reason}");
        }
    }

    #[test]
    fn there_is_one_kind_of_watchdog_and_nothing_that_it_would_run() {
        assert_eq!(refused("{watchdogs: {main_thread_watchdog: {miss_timeout: 1s}}}"), None);
        assert_eq!(refused("{watchdog: {kill_timeout: 1s}}"), None);
        assert!(refused("{watchdog: {}, watchdogs: {}}").is_some_and(|reason| reason.contains("Only one of watchdog")));
        let action = "{actions: [{config: {name: a}, event: MISS}]}";
        let reason = refused(&format!("{{watchdogs: {{worker_watchdog: {action}}}}}")).unwrap_or_default();
        assert!(reason.contains("watchdogs.worker_watchdog.actions"), "{reason}");
    }

    #[test]
    fn only_what_is_so_anyway_is_taken() {
        assert_eq!(refused("{header_prefix: x-envoy}"), None);
        assert!(refused("{header_prefix: x-foo}").is_some_and(|reason| reason.contains("header_prefix")));
        let sockets = "envoy.extensions.network.socket_interface.default_socket_interface";
        assert_eq!(refused(&format!("{{default_socket_interface: {sockets}}}")), None);
        assert!(refused("{default_socket_interface: other}").is_some());
        let re2 = "'@type': type.googleapis.com/envoy.extensions.regex_engines.v3.GoogleRE2";
        assert_eq!(refused(&format!("{{default_regex_engine: {{name: a, typed_config: {{{re2}}}}}}}")), None);
    }
}
