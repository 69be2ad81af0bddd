//! `envoy.extensions.filters.network.rbac.v3.RBAC`: closes connections that the policies do not allow.
//! It must not know how policies match: that is `crate::rbac`.
//!
//! Acts: all fields. What shadow rules decide is noted in the connection's dynamic metadata.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Map;
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::network::rbac::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{Arrival, Closing, NetworkFilter, NetworkFilterConfig, NetworkFilterFactory};
use crate::context::CompileContext;
use crate::matching::{Inputs, count, gather};
use crate::rbac::{self, Engine, Facts, told};
use crate::shown::Tags;
use crate::stream_info::StreamInfo;

const MESSAGE: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";
/// Envoy's `%DOWNSTREAM_LOCAL_CLOSE_REASON%`.
const REFUSED: &str = "rbac_deny_close";
/// Of the dynamic metadata.
const NAMESPACE: &str = "envoy.filters.network.rbac";

stats_block! {
    struct Enforced {
        counters { allowed, denied }
        gauges {}
        histograms {}
    }
}

stats_block! {
    struct Shadow {
        counters { shadow_allowed, shadow_denied }
        gauges {}
        histograms {}
    }
}

struct Config {
    rules: Option<Engine>,
    shadow_rules: Option<Engine>,
    enforced: Enforced,
    shadow: Shadow,
    shadow_prefix: String,
    /// Whether policies look at all that is known of the connection.
    conditional: bool,
    /// Asked for all data, not for the first only.
    continuous: bool,
    /// How long a denied connection stays, unread.
    delay: Duration,
}

impl NetworkFilterConfig for Config {
    fn new_connection(self: Arc<Self>) -> Option<Box<dyn NetworkFilter>> {
        let idle = self.rules.is_none() && self.shadow_rules.is_none();
        (!idle).then(|| Box::new(Filter { config: self, asked: false }) as _)
    }
}

struct Filter {
    config: Arc<Config>,
    asked: bool,
}

impl NetworkFilter for Filter {
    fn reads_data(&self) -> bool {
        true
    }

    fn on_data(&mut self, arrival: &mut Arrival<'_>) -> Option<Closing> {
        if self.asked && !self.config.continuous {
            return None;
        }
        self.asked = true;
        let Config { rules, shadow_rules, enforced, shadow, .. } = &*self.config;
        let connection = arrival.connection;
        let filter_state = connection.filter_state_now();
        let stream = self.config.conditional.then(|| stream_of(arrival));
        let facts = Facts {
            connection,
            remote: &connection.remote,
            request: None,
            metadata: &connection.metadata,
            filter_state: &filter_state,
            route: None,
            stream: stream.as_ref(),
        };
        let tags = Tags::connection(connection.id);
        told::checking(tags, &facts);
        if let Some(engine) = shadow_rules {
            let decision = engine.decide(&facts);
            told::decided(tags, "shadow", &decision);
            match decision.allowed {
                true => shadow.shadow_allowed().inc(),
                false => shadow.shadow_denied().inc(),
            }
            let mut told = Map::new();
            decision.describe(&self.config.shadow_prefix, "shadow", &mut told);
            arrival.metadata.merge(NAMESPACE, told);
        }
        let decision = rules.as_ref()?.decide(&facts);
        told::decided(tags, "enforced", &decision);
        if let Some(hint) = decision.log {
            let hint = Map::from_iter([("access_log_hint".to_owned(), hint.into())]);
            arrival.metadata.merge("envoy.common", hint);
        }
        if decision.allowed {
            enforced.allowed().inc();
            return None;
        }
        enforced.denied().inc();
        let details = Some(decision.details().into());
        Some(Closing { details, delay: self.config.delay, ..Closing::new(REFUSED) })
    }
}

/// What conditions see of a connection.
fn stream_of(arrival: &Arrival<'_>) -> StreamInfo {
    let connection = arrival.connection;
    let mut info = StreamInfo::new(Arc::new(connection.clone()), connection.start, SystemTime::now());
    info.dynamic_metadata = connection.metadata.clone();
    info.filter_state = connection.filter_state_now().into_owned();
    info.bytes.body_received = arrival.received;
    info
}

pub(super) struct Factory;

impl NetworkFilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        ALL_COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn NetworkFilterConfig>, FieldError> {
        let config: pb::Rbac = context.decode(config)?;
        let scope = context.stats.root().scope(&joined(&config.stat_prefix)).scope("rbac.");
        let mut engine =
            |fields, rules, matcher| Engine::compile_either(fields, (rules, matcher), Inputs::Network, context);
        let rules = engine(("rules", "matcher"), config.rules.as_ref(), config.matcher.as_ref())?;
        let shadow = (config.shadow_rules.as_ref(), config.shadow_matcher.as_ref());
        let shadow_rules = engine(("shadow_rules", "shadow_matcher"), shadow.0, shadow.1)?;
        Ok(Arc::new(Config {
            conditional: rules.iter().chain(&shadow_rules).any(Engine::has_conditions),
            rules,
            shadow_rules,
            enforced: Enforced::new(&scope),
            shadow: Shadow::new(&scope.scope(&joined(&config.shadow_rules_stat_prefix))),
            shadow_prefix: config.shadow_rules_stat_prefix,
            delay: super::milliseconds(config.delay_deny.as_ref()),
            continuous: config.enforcement_type == i32::from(pb::rbac::EnforcementType::Continuous),
        }))
    }
}

/// A prefix that is not empty ends in a dot.
fn joined(prefix: &str) -> String {
    if prefix.is_empty() || prefix.ends_with('.') { prefix.to_owned() } else { format!("{prefix}.") }
}

const GROUPS: [&[Coverage]; 2] = [OWN_COVERAGE, rbac::COVERAGE];
const ALL_COVERAGE: &[Coverage] = &gather::<{ count(&GROUPS) }>(&GROUPS);
const OWN_COVERAGE: &[Coverage] = &[Coverage {
    message: MESSAGE,
    enforced: &[
        "rules",
        "matcher",
        "shadow_rules",
        "shadow_matcher",
        "shadow_rules_stat_prefix",
        "stat_prefix",
        "enforcement_type",
        "delay_deny",
    ],
    listed: &[],
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Metadata;
    use crate::network::testing::*;

    const RULES: &str = "stat_prefix: tt
shadow_rules_stat_prefix: sh_
shadow_rules: {action: LOG}";

    fn rules(port: u16) -> String {
        let policy = format!("{{permissions: [{{destination_port: {port}}}], principals: [{{any: true}}]}}");
        format!("{RULES}\nrules: {{action: DENY, policies: {{no t: {policy}}}}}")
    }

    #[test]
    fn a_denied_connection_is_closed() {
        let bench = Bench::new(&Factory);
        let mut filter = bench.compile(&format!("{}\ndelay_deny: 2s", rules(8080))).unwrap().new_connection().unwrap();
        let mut metadata = Metadata::default();
        let closing = filter.on_data(&mut arrival(b"x", &connection(), &mut metadata)).unwrap();
        assert_eq!(closing.reason, "rbac_deny_close");
        assert_eq!(closing.details.as_deref(), Some("rbac_access_denied_matched_policy[no_t]"));
        assert_eq!(closing.delay, Duration::from_secs(2));
        let told = |key| metadata.get(NAMESPACE, [key]).and_then(|value| value.as_str()).map(str::to_owned);
        assert_eq!(told("sh_shadow_engine_result").as_deref(), Some("allowed"));
        assert_eq!(bench.counted(), ["tt.rbac.denied: 1", "tt.rbac.sh_.shadow_allowed: 1"]);
    }

    #[test]
    fn it_is_asked_once_or_always() {
        for (kind, times) in [("ONE_TIME_ON_FIRST_BYTE", 1), ("CONTINUOUS", 2)] {
            let bench = Bench::new(&Factory);
            let config = format!("{}\nenforcement_type: {kind}", rules(1));
            let mut filter = bench.compile(&config).unwrap().new_connection().unwrap();
            for _ in 0..2 {
                assert_eq!(filter.on_data(&mut arrival(b"x", &connection(), &mut Metadata::default())), None);
            }
            let stats = ["allowed", "sh_.shadow_allowed"].map(|stat| format!("tt.rbac.{stat}: {times}"));
            assert_eq!(bench.counted(), stats);
        }
    }
}
