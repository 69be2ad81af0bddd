//! `envoy.extensions.filters.http.rbac.v3.RBAC`: answers 403 to requests that the policies do not allow.
//! It must not know how policies match: that is `crate::rbac`.
//!
//! Acts: rules, shadow rules and their stat prefixes. Refused: matcher trees.

use std::any::Any;
use std::sync::Arc;

use http::StatusCode;
use serde_json::Map;
use tidegate_stats::{Scope, stats_block};
use tidegate_xds::pb::envoy::extensions::filters::http::rbac::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::{FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Step, StreamContext};
use crate::context::CompileContext;
use crate::matching::{count, gather};
use crate::rbac::{self, Decision, Engine, Facts};

const MESSAGE: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const PER_ROUTE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
/// Where the dynamic metadata goes, whatever the filter's name, as in Envoy.
const NAMESPACE: &str = "envoy.filters.http.rbac";

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

/// Rules, and the prefix of what they say in dynamic metadata.
struct Ruled {
    engine: Engine,
    prefix: String,
}

/// What a listener's or a route's configuration decides by.
struct Rules {
    enforced: Option<Ruled>,
    shadow: Option<Ruled>,
}

struct Config {
    rules: Arc<Rules>,
    enforced: Enforced,
    shadow: Shadow,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let rules = overrides.shared().unwrap_or_else(|| Arc::clone(&self.rules));
        let idle = rules.enforced.is_none() && rules.shadow.is_none();
        (!idle).then(|| Box::new(Filter { config: self, rules }) as _)
    }
}

/// Counts under the listener's names whosever rules act, as Envoy does.
struct Filter {
    config: Arc<Config>,
    rules: Arc<Rules>,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        if let Some(shadow) = &self.rules.shadow {
            let decision = shadow.decide("shadow", request, stream);
            let stats = &self.config.shadow;
            if decision.allowed {
                stats.shadow_allowed().inc()
            } else {
                stats.shadow_denied().inc()
            };
        }
        let Some(enforced) = &self.rules.enforced else { return Step::Continue };
        let decision = enforced.decide("enforced", request, stream);
        if let Some(hint) = decision.log {
            let hint = Map::from_iter([("access_log_hint".to_owned(), hint.into())]);
            stream.info.dynamic_metadata.merge("envoy.common", hint);
        }
        if decision.allowed {
            self.config.enforced.allowed().inc();
            return Step::Continue;
        }
        self.config.enforced.denied().inc();
        Step::reply(LocalReply::new(StatusCode::FORBIDDEN, decision.details()).body("RBAC: access denied"))
    }
}

impl Ruled {
    fn decide(&self, kind: &str, request: &Request, stream: &mut StreamContext) -> Decision<'_> {
        let info = &stream.info;
        let decision = self.engine.decide(&Facts {
            connection: &info.connection,
            remote: &info.downstream_remote,
            request: Some(&request.head),
            metadata: &info.dynamic_metadata,
            filter_state: &info.filter_state,
        });
        let mut said = Map::new();
        decision.describe(&self.prefix, kind, &mut said);
        stream.info.dynamic_metadata.merge(NAMESPACE, said);
        decision
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(PER_ROUTE)
    }

    fn coverage(&self) -> &'static [Coverage] {
        ALL_COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let config: pb::Rbac = context.decode(config)?;
        let scope = context.stats.scope("rbac.");
        Ok(Arc::new(Config {
            enforced: Enforced::new(&under(&scope, &config.rules_stat_prefix)),
            shadow: Shadow::new(&under(&scope, &config.shadow_rules_stat_prefix)),
            rules: Arc::new(Rules::compile(&config, context)?),
        }))
    }

    /// Without an `rbac` nothing is checked on the route.
    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        let config: pb::RbacPerRoute = context.decode(config)?;
        let rules = match &config.rbac {
            Some(rbac) => context.within("rbac", |context| Rules::compile(rbac, context))?,
            None => Rules { enforced: None, shadow: None },
        };
        let rules: Arc<dyn Any + Send + Sync> = Arc::new(rules);
        Ok(rules)
    }
}

/// A prefix that is not empty stands between dots, whether it ends in one or not.
fn under(scope: &Scope, prefix: &str) -> Scope {
    match prefix {
        "" => scope.clone(),
        prefix if prefix.ends_with('.') => scope.scope(prefix),
        prefix => scope.scope(&format!("{prefix}.")),
    }
}

const GROUPS: [&[Coverage]; 2] = [OWN_COVERAGE, rbac::COVERAGE];
const ALL_COVERAGE: &[Coverage] = &gather::<{ count(&GROUPS) }>(&GROUPS);
const OWN_COVERAGE: &[Coverage] = &[
    Coverage {
        message: MESSAGE,
        enforced: &["rules", "rules_stat_prefix", "shadow_rules", "shadow_rules_stat_prefix"],
        listed: &[],
    },
    Coverage { message: PER_ROUTE, enforced: &["rbac"], listed: &[] },
];

impl Rules {
    fn compile(config: &pb::Rbac, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let mut ruled = |field, rules: Option<&_>, prefix: &str| {
            let compile = |rules| context.within(field, |context| Engine::compile(rules, context));
            let engine = rules.map(compile).transpose()?;
            Ok(engine.map(|engine| Ruled { engine, prefix: prefix.to_owned() }))
        };
        Ok(Self {
            enforced: ruled("rules", config.rules.as_ref(), &config.rules_stat_prefix)?,
            shadow: ruled("shadow_rules", config.shadow_rules.as_ref(), &config.shadow_rules_stat_prefix)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::testing::*;

    const RULES: &str = "rules_stat_prefix: rp_
shadow_rules_stat_prefix: sp_
rules: {action: DENY, policies: {my pol: {permissions: [{url_path: {path: {exact: /deny}}}], principals: [{any: true}]}}}
shadow_rules: {policies: {shp: {permissions: [{url_path: {path: {prefix: /s}}}], principals: [{any: true}]}}}";

    /// The details of a denial, and what the stream was told.
    fn ask(filter: &mut dyn HttpFilter, path: &'static str) -> (Option<String>, serde_json::Value) {
        let mut stream = stream();
        let reply = now(on_request(filter, &mut get(path, &[]), &mut stream));
        let details = reply.map(|reply| {
            assert_eq!((reply.status.as_u16(), &reply.body[..]), (403, &b"RBAC: access denied"[..]));
            reply.details.into_owned()
        });
        (details, json!(stream.info.dynamic_metadata.namespace(NAMESPACE)))
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn rules_deny_and_shadow_rules_only_tell() {
        let bench = Bench::new(&Factory);
        let mut filter = bench.filter(RULES).unwrap();
        let (details, told) = ask(&mut *filter, "/deny?q");
        assert_eq!(details.as_deref(), Some("rbac_access_denied_matched_policy[my_pol]"));
        let denied = json!({"rp_enforced_effective_policy_id": "my pol", "rp_enforced_engine_result": "denied",
            "sp_shadow_engine_result": "denied"});
        assert_eq!(told, denied);
        let (details, told) = ask(&mut *filter, "/s1");
        assert_eq!(details, None);
        let allowed = json!({"rp_enforced_engine_result": "allowed", "sp_shadow_effective_policy_id": "shp",
            "sp_shadow_engine_result": "allowed"});
        assert_eq!(told, allowed);
        let stats = ["rp_.allowed: 1", "rp_.denied: 1", "sp_.shadow_allowed: 1", "sp_.shadow_denied: 1"];
        assert_eq!(bench.counted(), stats.map(|stat| format!("http.test.rbac.{stat}")));
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn a_route_has_its_own_rules_or_none() {
        let bench = Bench::new(&Factory);
        assert!(bench.filter_with(RULES, &["{}"]).is_none());
        let mut filter = bench.filter_with(RULES, &["rbac: {rules_stat_prefix: zz, rules: {action: ALLOW}}"]).unwrap();
        let (details, told) = ask(&mut *filter, "/");
        assert_eq!(details.as_deref(), Some("rbac_access_denied_matched_policy[none]"), "no policy allows nobody");
        assert_eq!(told, json!({"zzenforced_engine_result": "denied"}));
        assert_eq!(bench.counted(), ["http.test.rbac.rp_.denied: 1"]);
    }

    #[test]
    fn every_kind_of_rule_is_asked() {
        let bench = Bench::new(&Factory);
        let local = "{address_prefix: 10.0.0.2, prefix_len: 32}";
        let peer = "{address_prefix: 10.0.0.1, prefix_len: 32}";
        let permission = |rule: &str| format!("{{permissions: [{{{rule}}}], principals: [{{any: true}}]}}");
        let principal = |id: &str| format!("{{permissions: [{{any: true}}], principals: [{{{id}}}]}}");
        for (policy, allowed) in [
            (permission(&format!("destination_ip: {local}")), true),
            (permission(&format!("destination_ip: {peer}")), false),
            (permission("destination_port: 80"), true),
            (permission("destination_port_range: {start: 70, end: 80}"), false),
            (permission("not_rule: {destination_port: 80}"), false),
            (permission("and_rules: {rules: [{any: true}, {destination_port: 81}]}"), false),
            (permission("or_rules: {rules: [{destination_port: 81}, {any: true}]}"), true),
            (permission("header: {name: ':method', string_match: {exact: GET}}"), true),
            (permission("requested_server_name: {exact: ''}"), true),
            (permission("metadata: {filter: f, path: [{key: k}], value: {present_match: true}}"), false),
            (principal(&format!("source_ip: {peer}")), true),
            (principal(&format!("direct_remote_ip: {local}")), false),
            (principal(&format!("remote_ip: {peer}")), true),
            (principal("authenticated: {}"), false),
            (principal("not_id: {authenticated: {principal_name: {exact: a}}}"), true),
            (principal("and_ids: {ids: [{any: true}, {any: true}]}"), true),
            (principal("or_ids: {ids: [{authenticated: {}}]}"), false),
            (principal("url_path: {path: {prefix: /x}}"), true),
            (principal("filter_state: {key: k, string_match: {exact: v}}"), false),
        ] {
            let mut filter = bench.filter(&format!("rules: {{policies: {{p: {policy}}}}}")).unwrap();
            assert_eq!(ask(&mut *filter, "/x").0.is_none(), allowed, "{policy}");
        }
    }

    #[test]
    fn what_does_not_act_is_refused() {
        let bench = Bench::new(&Factory);
        for bad in [
            "rules: {policies: {p: {permissions: [{destination_port_range: {start: 8, end: 8}}], principals: [{any: true}]}}}",
            "rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}], condition: {id: 1}}}}",
            "track_per_rule_stats: true",
        ] {
            assert!(bench.compile(bad).is_err(), "{bad}");
        }
    }
}
