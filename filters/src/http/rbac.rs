//! `envoy.extensions.filters.http.rbac.v3.RBAC`: answers 403 to requests that the policies do not allow.
//! It must not know how policies match: that is `crate::rbac`.
//!
//! Acts: all fields. Counters stand below the listener's prefixes whosever rules act; a route says whether its rules have their own.

use std::any::Any;
use std::sync::Arc;

use http::StatusCode;
use serde_json::Map;
use tidegate_stats::{Scope, stats_block};
use tidegate_xds::pb::envoy::extensions::filters::http::rbac::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::named_counters::NamedCounters;
use super::{FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Step, StreamContext};
use crate::context::CompileContext;
use crate::matching::{Inputs, count, gather};
use crate::rbac::{self, Decision, Engine, Facts, told};
use crate::shown::Tags;

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

/// What a listener's or a route's configuration decides by, and how what it says in dynamic metadata begins.
struct Rules {
    enforced: Option<Engine>,
    enforced_prefix: String,
    shadow: Option<Engine>,
    shadow_prefix: String,
    /// Each policy has its own counters.
    tracked: bool,
}

struct Config {
    rules: Arc<Rules>,
    enforced: Enforced,
    enforced_policies: Policies,
    shadow: Shadow,
    shadow_policies: Policies,
}

/// Counters of each policy by itself: names come with their first use, as in Envoy.
struct Policies {
    allowed: NamedCounters,
    denied: NamedCounters,
}

impl Policies {
    fn new(scope: &Scope, allowed: &'static str, denied: &'static str) -> Self {
        let counters = |after| NamedCounters::of_configuration(scope, "policy.", after);
        Self { allowed: counters(allowed), denied: counters(denied) }
    }
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
        let tags = Tags::stream(stream);
        told::checking(tags, &facts(request, stream));
        if let Some(shadow) = &self.rules.shadow {
            let prefix = either(&self.rules.shadow_prefix, &self.config.rules.shadow_prefix);
            let decision = decide(shadow, prefix, "shadow", request, stream);
            told::decided(tags, "shadow", &decision);
            let stats = &self.config.shadow;
            match decision.allowed {
                true => stats.shadow_allowed().inc(),
                false => stats.shadow_denied().inc(),
            }
            self.count_policy(&self.config.shadow_policies, &decision);
        }
        let Some(enforced) = &self.rules.enforced else { return Step::Continue };
        let prefix = either(&self.rules.enforced_prefix, &self.config.rules.enforced_prefix);
        let decision = decide(enforced, prefix, "enforced", request, stream);
        told::decided(tags, "enforced", &decision);
        if let Some(hint) = decision.log {
            let hint = Map::from_iter([("access_log_hint".to_owned(), hint.into())]);
            stream.info.dynamic_metadata.merge("envoy.common", hint);
        }
        self.count_policy(&self.config.enforced_policies, &decision);
        if decision.allowed {
            self.config.enforced.allowed().inc();
            return Step::Continue;
        }
        self.config.enforced.denied().inc();
        Step::reply(LocalReply::new(StatusCode::FORBIDDEN, decision.details()).body("RBAC: access denied"))
    }
}

impl Filter {
    /// Counts for the policy alone, where that is asked for.
    fn count_policy(&self, policies: &Policies, decision: &Decision<'_>) {
        if let Some(policy) = decision.policy.filter(|_| self.rules.tracked) {
            let counters = if decision.allowed { &policies.allowed } else { &policies.denied };
            counters.inc(policy);
        }
    }
}

/// A route that names no prefix takes the listener's.
fn either<'p>(route: &'p str, listener: &'p str) -> &'p str {
    if route.is_empty() { listener } else { route }
}

/// What an engine is asked by.
fn facts<'f>(request: &'f Request, stream: &'f StreamContext) -> Facts<'f> {
    let info = &stream.info;
    Facts {
        connection: &info.connection,
        remote: &info.downstream_remote,
        request: Some(&request.head),
        metadata: &info.dynamic_metadata,
        filter_state: &info.filter_state,
        route: stream.route.as_deref(),
        stream: Some(info),
    }
}

/// Asks an engine and writes its answer down.
fn decide<'e>(
    engine: &'e Engine,
    prefix: &str,
    kind: &str,
    request: &Request,
    stream: &mut StreamContext,
) -> Decision<'e> {
    let decision = engine.decide(&facts(request, stream));
    let mut said = Map::new();
    decision.describe(prefix, kind, &mut said);
    stream.info.dynamic_metadata.merge(NAMESPACE, said);
    decision
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(PER_ROUTE)
    }

    fn works_upstream(&self) -> bool {
        true
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
        let enforced_scope = under(&scope, &config.rules_stat_prefix);
        let shadow_scope = under(&scope, &config.shadow_rules_stat_prefix);
        Ok(Arc::new(Config {
            enforced: Enforced::new(&enforced_scope),
            enforced_policies: Policies::new(&enforced_scope, ".allowed", ".denied"),
            shadow: Shadow::new(&shadow_scope),
            shadow_policies: Policies::new(&shadow_scope, ".shadow_allowed", ".shadow_denied"),
            rules: Arc::new(Rules::compile(&config, context)?),
        }))
    }

    /// Without an `rbac` nothing is checked on the route.
    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        let config: pb::RbacPerRoute = context.decode(config)?;
        let rules = match &config.rbac {
            Some(rbac) => context.within("rbac", |context| Rules::compile(rbac, context))?,
            None => Rules::none(),
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
        enforced: &[
            "rules",
            "rules_stat_prefix",
            "matcher",
            "shadow_rules",
            "shadow_rules_stat_prefix",
            "shadow_matcher",
            "track_per_rule_stats",
        ],
        listed: &[],
    },
    Coverage { message: PER_ROUTE, enforced: &["rbac"], listed: &[] },
];

impl Rules {
    fn none() -> Self {
        Self {
            enforced: None,
            enforced_prefix: String::new(),
            shadow: None,
            shadow_prefix: String::new(),
            tracked: false,
        }
    }

    fn compile(config: &pb::Rbac, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let rules = (config.rules.as_ref(), config.matcher.as_ref());
        let shadow = (config.shadow_rules.as_ref(), config.shadow_matcher.as_ref());
        Ok(Self {
            enforced: Engine::compile_either(("rules", "matcher"), rules, Inputs::HttpRequest, context)?,
            enforced_prefix: config.rules_stat_prefix.clone(),
            shadow: Engine::compile_either(("shadow_rules", "shadow_matcher"), shadow, Inputs::HttpRequest, context)?,
            shadow_prefix: config.shadow_rules_stat_prefix.clone(),
            tracked: config.track_per_rule_stats,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::connection::TlsInfo;
    use crate::connection::tls::testing::{dns, peer, session, uri};
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

    /// Measured on Envoy 1.40.
    #[test]
    fn a_matcher_has_actions_at_its_leaves() {
        let leaf = |prefix: &str, name: &str, action: &str| {
            format!(
                "{{predicate: {{single_predicate: {{input: {{name: p, typed_config: {{'@type': \
                 type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: ':path'}}}}, \
                 value_match: {{prefix: {prefix}}}}}}}, on_match: {{action: {{name: a, typed_config: {{'@type': \
                 type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}, action: {action}}}}}}}}}"
            )
        };
        let leaves = [leaf("/ok", "fine", "ALLOW"), leaf("/deny", "bad", "DENY"), leaf("/log", "l", "LOG")].join(", ");
        let tree = format!("{{matcher_list: {{matchers: [{leaves}]}}}}");
        let bench = Bench::new(&Factory);
        let mut filter = bench.filter(&format!("{{matcher: {tree}, shadow_matcher: {tree}}}")).unwrap();
        assert_eq!(ask(&mut *filter, "/ok").0, None);
        assert_eq!(ask(&mut *filter, "/log").0, None);
        let (details, told) = ask(&mut *filter, "/deny");
        assert_eq!(details.as_deref(), Some("rbac_access_denied_matched_policy[bad]"));
        let denied = json!({"enforced_effective_policy_id": "bad", "enforced_engine_result": "denied",
            "shadow_effective_policy_id": "bad", "shadow_engine_result": "denied"});
        assert_eq!(told, denied);
        assert_eq!(ask(&mut *filter, "/x").0.as_deref(), Some("rbac_access_denied_matched_policy[none]"));
        let route = format!("rbac: {{matcher: {tree}}}");
        let mut filter = bench.filter_with("rules_stat_prefix: pre_", &[&route]).unwrap();
        assert_eq!(ask(&mut *filter, "/ok").1["pre_enforced_effective_policy_id"], "fine");
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

    /// Measured on Envoy 1.40: a client with names, one without, one that nobody vouches for, and one without a certificate.
    #[test]
    fn clients_are_known_by_their_certificates() {
        let named = peer(|params| {
            params.distinguished_name.push(rcgen::DnType::CommonName, "client");
            params.subject_alt_names = vec![uri("spiffe://a.test/x"), dns("client.a.test"), dns("*.b.test")];
        });
        let plain = || peer(|params| params.distinguished_name.push(rcgen::DnType::CommonName, "plain"));
        let mut doubted = plain();
        doubted.peer_validated = false;
        let clients = [Some(named), Some(plain()), Some(doubted), Some(TlsInfo::new(session(), Instant::now()))];
        let clients = clients.map(|tls| tls.map(Arc::new));
        let mutual = |config: &str| {
            let message = "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config";
            format!("custom: {{name: m, typed_config: {{'@type': type.googleapis.com/{message}, {config}}}}}")
        };
        let san =
            |kind: &str, matcher: &str| mutual(&format!("san_matcher: {{san_type: {kind}, matcher: {{{matcher}}}}}"));
        let authenticated = |matcher: &str| format!("authenticated: {{principal_name: {{{matcher}}}}}");
        for (principal, allowed) in [
            ("authenticated: {}".to_owned(), [true; 4]),
            (authenticated("exact: spiffe://a.test/x"), [true, false, false, false]),
            (authenticated("exact: client.a.test"), [true, false, false, false]),
            (authenticated("exact: CN=client"), [true, false, false, false]),
            (authenticated("exact: CN=plain"), [false, true, true, false]),
            (authenticated("safe_regex: {google_re2: {}, regex: '.*'}"), [true; 4]),
            (mutual("any_validated_client_certificate: true"), [true, true, false, false]),
            (san("DNS", "exact: x.b.test"), [true, false, false, false]),
            (san("DNS", "exact: '*.b.test'"), [true, false, false, false]),
            (san("DNS", "prefix: x.b"), [false; 4]),
            (san("URI", "prefix: 'spiffe://a.test/'"), [true, false, false, false]),
            (san("EMAIL", "prefix: x"), [false; 4]),
        ] {
            let bench = Bench::new(&Factory);
            let rules =
                format!("rules: {{policies: {{p: {{permissions: [{{any: true}}], principals: [{{{principal}}}]}}}}}}");
            for (client, allowed) in clients.iter().zip(allowed) {
                let mut stream = stream();
                let mut connection = (*stream.info.connection).clone();
                connection.tls.clone_from(client);
                stream.info.connection = Arc::new(connection);
                let mut filter = bench.filter(&rules).unwrap();
                let denied = now(on_request(&mut *filter, &mut get("/", &[]), &mut stream)).is_some();
                assert_eq!(!denied, allowed, "{principal} {client:?}");
            }
        }
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn matchers_see_all_names_at_once() {
        let named = peer(|params| {
            params.distinguished_name.push(rcgen::DnType::CommonName, "client");
            params.subject_alt_names = vec![uri("spiffe://a"), uri("spiffe://b"), dns("a.test"), dns("b.test")];
        });
        let clients = [Some(Arc::new(named)), Some(Arc::new(TlsInfo::new(session(), Instant::now()))), None];
        for (input, text, allowed) in [
            ("UriSanInput", "exact: 'spiffe://a,spiffe://b'", [true, false, false]),
            ("UriSanInput", "exact: 'spiffe://a'", [false; 3]),
            ("DnsSanInput", "exact: 'a.test,b.test'", [true, false, false]),
            ("SubjectInput", "exact: 'CN=client'", [true, false, false]),
            ("SubjectInput", "safe_regex: {google_re2: {}, regex: '.*'}", [true, false, false]),
        ] {
            let rules = format!(
                "matcher: {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {{name: i, typed_config: \
                 {{'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.ssl.v3.{input}}}}}, value_match: \
                 {{{text}}}}}}}, on_match: {{action: {{name: a, typed_config: {{'@type': \
                 type.googleapis.com/envoy.config.rbac.v3.Action, name: a}}}}}}}}]}}}}"
            );
            let bench = Bench::new(&Factory);
            for (client, allowed) in clients.iter().zip(allowed) {
                let mut stream = stream();
                let mut connection = (*stream.info.connection).clone();
                connection.tls.clone_from(client);
                stream.info.connection = Arc::new(connection);
                let mut filter = bench.filter(&rules).unwrap();
                let denied = now(on_request(&mut *filter, &mut get("/", &[]), &mut stream)).is_some();
                assert_eq!(!denied, allowed, "{input} {text} {client:?}");
            }
        }
    }

    #[test]
    fn what_does_not_act_is_refused() {
        let bench = Bench::new(&Factory);
        for bad in [
            "rules: {policies: {p: {permissions: [{any: true}], principals: [{custom: {name: a, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config}}}]}}}",
            "rules: {policies: {p: {permissions: [{destination_port_range: {start: 8, end: 8}}], principals: [{any: true}]}}}",
            "rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}], condition: {id: 1}}}}",
            "rules: {policies: {p: {permissions: [{matcher: {name: a, typed_config: {'@type': type.googleapis.com/envoy.type.v3.Percent}}}], principals: [{any: true}]}}}",
        ] {
            assert!(bench.compile(bad).is_err(), "{bad}");
        }
    }
}
