//! `envoy.extensions.filters.http.cors.v3.Cors`: answers preflight requests and marks responses for the origins that a route's
//! `CorsPolicy` allows.
//!
//! Acts: all fields of the policy. Every level has its say: a value comes from the most specific level that has one, the
//! shares from the most specific level alone, as in Envoy. The filter does nothing without a policy, nor on routes that
//! do not forward.

use std::any::Any;
use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use http::{Method, StatusCode};
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::http::cors::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::{
    FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Response, Step, StreamContext,
};
use crate::context::CompileContext;
use crate::matching::StringMatcher;
use crate::runtime::Fraction;

const MESSAGE: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

stats_block! {
    struct Stats {
        counters { origin_invalid, origin_valid }
        gauges {}
        histograms {}
    }
}

struct Config {
    stats: Stats,
}

/// A `CorsPolicy`, or many of one route. What is not set says nothing.
#[derive(Clone)]
struct Policy {
    origins: Vec<StringMatcher>,
    methods: Option<Allowed>,
    headers: Option<Allowed>,
    expose_headers: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: Option<bool>,
    private_network: Option<bool>,
    forward_unmatched_preflights: Option<bool>,
    enabled: Fraction,
    /// Counts, but does not act.
    shadow: Fraction,
}

/// What may be asked for.
#[derive(Clone)]
enum Allowed {
    /// `*`: whatever is asked for.
    Asked,
    These(HeaderValue),
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let policy = overrides.shared()?;
        Some(Box::new(Filter { config: self, policy, origin: None }))
    }
}

struct Filter {
    config: Arc<Config>,
    policy: Arc<Policy>,
    /// The origin that the response is marked for.
    origin: Option<HeaderValue>,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let policy = &self.policy;
        let headers = &request.head.headers;
        if stream.route.as_ref().and_then(|route| route.cluster()).is_none() {
            return Step::Continue;
        }
        let enabled = stream.is_in(&policy.enabled);
        if !enabled && !stream.is_in(&policy.shadow) {
            return Step::Continue;
        }
        let Some(origin) = headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else { return Step::Continue };
        let allowed = policy.allows(origin);
        match allowed {
            true => self.config.stats.origin_valid().inc(),
            false => self.config.stats.origin_invalid().inc(),
        }
        if !enabled {
            return Step::Continue;
        }
        self.origin = allowed.then(|| origin.clone());
        let method = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|method| !method.is_empty());
        let preflight = request.head.method == Method::OPTIONS && method.is_some();
        if !preflight || !allowed && policy.forward_unmatched_preflights.unwrap_or(true) {
            return Step::Continue;
        }
        let mut reply = LocalReply::new(StatusCode::OK, "cors_response").as_is();
        reply.headers = policy.preflight(headers, allowed.then_some(origin));
        Step::reply(reply)
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        if let Some(origin) = &self.origin {
            let headers = &mut response.head.headers;
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            if self.policy.credentials == Some(true) {
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
            if let Some(expose) = &self.policy.expose_headers {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
            }
        }
        Step::Continue
    }
}

impl Policy {
    fn allows(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|matcher| matcher.matches(b"*") || matcher.matches(origin.as_bytes()))
    }

    /// The headers of the answer to a preflight request.
    fn preflight(&self, request: &HeaderMap, origin: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        };
        let yes = |holds: bool| holds.then(|| HeaderValue::from_static("true"));
        let allow = |allowed: &Option<Allowed>, asked: HeaderName| match allowed.as_ref()? {
            Allowed::Asked => Some(request.get(asked).cloned().unwrap_or(HeaderValue::from_static(""))),
            Allowed::These(value) => Some(value.clone()),
        };
        set(ACCESS_CONTROL_ALLOW_ORIGIN, origin.cloned());
        set(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes(self.credentials == Some(true)));
        set(ACCESS_CONTROL_ALLOW_METHODS, allow(&self.methods, ACCESS_CONTROL_REQUEST_METHOD));
        set(ACCESS_CONTROL_ALLOW_HEADERS, allow(&self.headers, ACCESS_CONTROL_REQUEST_HEADERS));
        set(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        let asked = request.get(REQUEST_PRIVATE_NETWORK).is_some_and(|value| value == "true");
        set(ALLOW_PRIVATE_NETWORK, yes(asked && self.private_network == Some(true)));
        headers
    }

    /// This policy, and where it says nothing, a less specific one.
    fn or(&self, other: &Self) -> Self {
        Self {
            origins: if self.origins.is_empty() { other.origins.clone() } else { self.origins.clone() },
            methods: self.methods.clone().or_else(|| other.methods.clone()),
            headers: self.headers.clone().or_else(|| other.headers.clone()),
            expose_headers: self.expose_headers.clone().or_else(|| other.expose_headers.clone()),
            max_age: self.max_age.clone().or_else(|| other.max_age.clone()),
            credentials: self.credentials.or(other.credentials),
            private_network: self.private_network.or(other.private_network),
            forward_unmatched_preflights: self.forward_unmatched_preflights.or(other.forward_unmatched_preflights),
            enabled: self.enabled.clone(),
            shadow: self.shadow.clone(),
        }
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(POLICY)
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let pb::Cors {} = context.decode(config)?;
        Ok(Arc::new(Config { stats: Stats::new(&context.stats.scope("cors.")) }))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        Ok(Arc::new(Policy::compile(&context.decode(config)?, context)?))
    }

    fn merge(&self, levels: &[OverrideConfig]) -> Option<OverrideConfig> {
        let policies = levels.iter().rev().filter_map(|level| level.downcast_ref::<Policy>());
        let merged = policies.cloned().reduce(|specific, general| specific.or(&general))?;
        let merged: Arc<dyn Any + Send + Sync> = Arc::new(merged);
        Some(merged)
    }
}

const COVERAGE: &[Coverage] = &[
    Coverage { message: MESSAGE, enforced: &[], listed: &[] },
    Coverage {
        message: POLICY,
        enforced: &[
            "allow_origin_string_match",
            "allow_methods",
            "allow_headers",
            "expose_headers",
            "max_age",
            "allow_credentials",
            "filter_enabled",
            "shadow_enabled",
            "allow_private_network_access",
            "forward_not_matching_preflights",
        ],
        listed: &[],
    },
];

impl Policy {
    fn compile(policy: &pb::CorsPolicy, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let origins = policy.allow_origin_string_match.iter().enumerate().map(|(index, matcher)| {
            context.within_item("allow_origin_string_match", index, |c| StringMatcher::compile(matcher, c))
        });
        let origins = origins.collect::<Result<_, _>>()?;
        let value = |field: &str, value: &str| match value {
            "" => Ok(None),
            value => {
                HeaderValue::from_str(value).map(Some).map_err(|_| context.error_at(field, "not a header's value"))
            }
        };
        let allowed = |field: &str, text: &str| match text {
            "*" => Ok(Some(Allowed::Asked)),
            text => value(field, text).map(|value| value.map(Allowed::These)),
        };
        Ok(Self {
            origins,
            methods: allowed("allow_methods", &policy.allow_methods)?,
            headers: allowed("allow_headers", &policy.allow_headers)?,
            expose_headers: value("expose_headers", &policy.expose_headers)?,
            max_age: value("max_age", &policy.max_age)?,
            credentials: policy.allow_credentials.map(|value| value.value),
            private_network: policy.allow_private_network_access.map(|value| value.value),
            forward_unmatched_preflights: policy.forward_not_matching_preflights.map(|value| value.value),
            enabled: policy.filter_enabled.as_ref().map_or(Fraction::ALWAYS, Fraction::compile),
            shadow: policy.shadow_enabled.as_ref().map_or(Fraction::NEVER, Fraction::compile),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;
    use crate::http::testing::*;

    const HOST: &str = "allow_origin_string_match: [{exact: 'http://a.com'}]
allow_methods: GET
expose_headers: ex
max_age: '10'
allow_credentials: true";
    const ANY: &str = "allow_origin_string_match: [{exact: '*'}]
allow_methods: '*'
allow_headers: '*'
allow_private_network_access: true
forward_not_matching_preflights: false";
    const OTHER: &str = "{allow_origin_string_match: [{exact: x}], forward_not_matching_preflights: false}";
    const PREFLIGHT: (&str, &str) = ("access-control-request-method", "PUT");

    /// Whether the filter answers itself, and the response's headers.
    fn pass(levels: &[&str], method: Method, headers: &[(&'static str, &'static str)]) -> (bool, Vec<String>) {
        let bench = Bench::new(&Factory);
        let mut filter = bench.filter_with("{}", levels).unwrap();
        let mut stream = stream();
        let reply = now(on_request(&mut *filter, &mut request(method, "/", headers, Body::Empty), &mut stream));
        let replied = reply.is_some();
        let mut out = response(200, &[("access-control-allow-origin", "upstream")], Body::Empty);
        if let Some(reply) = reply {
            assert_eq!((reply.status, &*reply.details, reply.as_is), (StatusCode::OK, "cors_response", true));
            out.head.headers = reply.headers;
        }
        now(on_response(&mut *filter, &mut out, &mut stream));
        (replied, lines(&out.head.headers))
    }

    /// Reference §4, row 36, and measured on Envoy 1.40.
    #[test]
    fn preflights_are_answered_and_responses_marked() {
        let line = |name: &str, value: &str| format!("access-control-{name}: {value}");
        let (origin, stranger) = (("origin", "http://a.com"), ("origin", "http://b.com"));
        let marked =
            vec![line("allow-credentials", "true"), line("allow-origin", "http://a.com"), line("expose-headers", "ex")];
        let unmarked = vec![line("allow-origin", "upstream")];
        assert_eq!(pass(&[HOST], Method::GET, &[origin]), (false, marked.clone()));
        assert_eq!(pass(&[HOST], Method::GET, &[stranger]), (false, unmarked.clone()));
        assert_eq!(pass(&[HOST], Method::GET, &[]), (false, unmarked.clone()));
        assert_eq!(pass(&[HOST], Method::OPTIONS, &[origin]), (false, marked));
        assert_eq!(pass(&[HOST], Method::OPTIONS, &[stranger, PREFLIGHT]), (false, unmarked));
        assert_eq!(
            pass(&[HOST], Method::OPTIONS, &[origin, PREFLIGHT]),
            (
                true,
                vec![
                    line("allow-credentials", "true"),
                    line("allow-methods", "GET"),
                    line("allow-origin", "http://a.com"),
                    line("expose-headers", "ex"),
                    line("max-age", "10"),
                ]
            )
        );
        let private = ("access-control-request-private-network", "true");
        assert_eq!(
            pass(&[HOST, ANY], Method::OPTIONS, &[stranger, PREFLIGHT, private]),
            (
                true,
                vec![
                    line("allow-credentials", "true"),
                    line("allow-headers", ""),
                    line("allow-methods", "PUT"),
                    line("allow-origin", "http://b.com"),
                    line("allow-private-network", "true"),
                    line("expose-headers", "ex"),
                    line("max-age", "10"),
                ]
            )
        );
        assert_eq!(
            pass(&[HOST, OTHER], Method::OPTIONS, &[stranger, PREFLIGHT]),
            (true, vec![line("allow-credentials", "true"), line("allow-methods", "GET"), line("max-age", "10")])
        );
    }

    #[test]
    fn in_the_shadow_it_only_counts() {
        let bench = Bench::new(&Factory);
        assert!(bench.filter("{}").is_none(), "no policy, nothing to do");
        let policy = format!(
            "{HOST}\nfilter_enabled: {{default_value: {{}}}}\nshadow_enabled: {{default_value: {{numerator: 100}}}}"
        );
        let mut filter = bench.filter_with("{}", &[&policy]).unwrap();
        let mut stream = stream();
        now(on_request(&mut *filter, &mut get("/", &[("origin", "http://a.com")]), &mut stream));
        let mut out = response(200, &[], Body::Empty);
        now(on_response(&mut *filter, &mut out, &mut stream));
        assert!(out.head.headers.is_empty());
        assert_eq!(bench.counted(), ["http.test.cors.origin_valid: 1"]);
        stream.route = Some(Arc::new(FakeRoute::default()));
        let mut filter = bench.filter_with("{}", &[HOST]).unwrap();
        now(on_request(&mut *filter, &mut get("/", &[("origin", "http://a.com")]), &mut stream));
        now(on_response(&mut *filter, &mut out, &mut stream));
        assert!(out.head.headers.is_empty(), "a direct response is not marked");
    }
}
