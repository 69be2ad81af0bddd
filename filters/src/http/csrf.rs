//! `envoy.extensions.filters.http.csrf.v3.CsrfPolicy`: refuses POST, PUT, DELETE and PATCH whose Origin (or Referer) is neither
//! the host that they go to nor one that the policy names.
//!
//! Acts: all fields. A route's policy replaces the filter's.

use std::sync::Arc;

use http::header::{ORIGIN, REFERER};
use http::{HeaderName, Method, StatusCode};
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::http::csrf::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::{
    FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, RequestHead, Step, StreamContext,
};
use crate::context::CompileContext;
use crate::matching::StringMatcher;
use crate::runtime::Fraction;

const MESSAGE: &str = "envoy.extensions.filters.http.csrf.v3.CsrfPolicy";

stats_block! {
    struct Stats {
        counters { missing_source_origin, request_invalid, request_valid }
        gauges {}
        histograms {}
    }
}

struct Config {
    stats: Stats,
    policy: Arc<Policy>,
}

struct Policy {
    enabled: Fraction,
    /// Counts, but refuses nothing.
    shadow: Fraction,
    additional_origins: Vec<StringMatcher>,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let policy = overrides.shared().unwrap_or_else(|| Arc::clone(&self.policy));
        Some(Box::new(Filter { config: self, policy }))
    }
}

struct Filter {
    config: Arc<Config>,
    policy: Arc<Policy>,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        if !modifies(&request.head.method) {
            return Step::Continue;
        }
        let enabled = stream.is_in(&self.policy.enabled);
        if !enabled && !stream.is_in(&self.policy.shadow) {
            return Step::Continue;
        }
        let stats = &self.config.stats;
        let source = source(&request.head);
        if source.is_empty() {
            stats.missing_source_origin().inc();
        } else if self.policy.matches(source, host_and_port(request.head.authority.as_bytes())) {
            stats.request_valid().inc();
            return Step::Continue;
        } else {
            stats.request_invalid().inc();
        }
        if !enabled {
            return Step::Continue;
        }
        Step::reply(LocalReply::new(StatusCode::FORBIDDEN, "csrf_origin_mismatch").body("Invalid origin"))
    }
}

impl Policy {
    fn matches(&self, source: &[u8], target: &[u8]) -> bool {
        source == target || self.additional_origins.iter().any(|origin| origin.matches(source))
    }
}

fn modifies(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::DELETE, Method::PATCH].contains(method)
}

/// Where the request says that it comes from; empty when it does not.
fn source(head: &RequestHead) -> &[u8] {
    let of = |name: HeaderName| head.headers.get(name).map_or(&b""[..], |value| host_and_port(value.as_bytes()));
    match head.headers.get(ORIGIN) {
        // An opaque origin: the Referer does not speak for it.
        Some(origin) if origin == "null" => b"",
        _ => Some(of(ORIGIN)).filter(|origin| !origin.is_empty()).unwrap_or_else(|| of(REFERER)),
    }
}

/// The authority of a URL, without user information; of what is no URL, all of it.
fn host_and_port(url: &[u8]) -> &[u8] {
    let scheme = url.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(url.len());
    let Some(rest) = url[scheme..].strip_prefix(b"://").filter(|_| scheme > 0) else { return url };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let start = rest[..end].iter().position(|byte| *byte == b'@').map_or(0, |at| at + 1);
    if start == end { url } else { &rest[start..end] }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(MESSAGE)
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let policy = Arc::new(Policy::compile(&context.decode(config)?, context)?);
        Ok(Arc::new(Config { stats: Stats::new(&context.stats.scope("csrf.")), policy }))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        Ok(Arc::new(Policy::compile(&context.decode(config)?, context)?))
    }
}

const COVERAGE: &[Coverage] = &[Coverage {
    message: MESSAGE,
    enforced: &["filter_enabled", "shadow_enabled", "additional_origins"],
    listed: &[],
}];

impl Policy {
    fn compile(policy: &pb::CsrfPolicy, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let origins = policy.additional_origins.iter().enumerate().map(|(index, matcher)| {
            context.within_item("additional_origins", index, |c| StringMatcher::compile(matcher, c))
        });
        Ok(Self {
            additional_origins: origins.collect::<Result<_, _>>()?,
            enabled: policy.filter_enabled.as_ref().map_or(Fraction::ALWAYS, Fraction::compile),
            shadow: policy.shadow_enabled.as_ref().map_or(Fraction::NEVER, Fraction::compile),
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::http::Body;
    use crate::http::testing::*;

    const ON: &str = "filter_enabled: {default_value: {numerator: 100}}";

    fn refused(
        bench: &Bench,
        levels: &[&str],
        method: Method,
        host: &'static str,
        header: Option<(&'static str, &'static str)>,
    ) -> bool {
        let mut filter = bench.filter_with(ON, levels).unwrap();
        let mut request = request(method, "/", header.as_slice(), Body::Empty);
        request.head.authority = HeaderValue::from_static(host);
        let reply = now(on_request(&mut *filter, &mut request, &mut stream()));
        if let Some(reply) = &reply {
            let told = (reply.status.as_u16(), &*reply.details, &reply.body[..]);
            assert_eq!(told, (403, "csrf_origin_mismatch", &b"Invalid origin"[..]));
        }
        reply.is_some()
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn the_origin_must_be_the_host_or_a_named_one() {
        let bench = Bench::new(&Factory);
        let more = "{filter_enabled: {default_value: {numerator: 100}}, additional_origins: [{exact: more.com}]}";
        for (origin, expected) in [
            ("http://h.com", false),
            ("https://h.com:80", true),
            ("h.com", false),
            ("http://more.com", false),
            ("http://more.com/x", false),
            ("null", true),
            ("http://H.com", true),
            ("http://", true),
            ("http://u@h.com/", false),
            ("http://h.com?x", false),
            ("//h.com", true),
            ("http://h.com#f", true),
            ("foo://more.com", false),
        ] {
            let header = Some(("origin", origin));
            assert_eq!(refused(&bench, &[more], Method::POST, "h.com", header), expected, "{origin}");
        }
        assert!(!refused(&bench, &[], Method::POST, "h.com", Some(("referer", "http://h.com/abc?x"))));
        assert!(refused(&bench, &[], Method::POST, "h.com:80", Some(("origin", "http://h.com"))));
        assert!(!refused(&bench, &[], Method::POST, "h.com:80", Some(("origin", "http://h.com:80"))));
        assert!(refused(&bench, &[], Method::PATCH, "h.com", None));
        assert!(!refused(&bench, &[], Method::GET, "h.com", None));
    }

    #[test]
    fn the_shadow_counts_and_refuses_nothing() {
        let bench = Bench::new(&Factory);
        let shadow = "{filter_enabled: {default_value: {}}, shadow_enabled: {default_value: {numerator: 100}}}";
        let config = bench.compile(ON).unwrap();
        assert!(!refused(&bench, &[shadow], Method::PUT, "h.com", None));
        assert!(!refused(&bench, &[shadow], Method::PUT, "h.com", Some(("origin", "http://h.com"))));
        let prefix = "http.test.csrf";
        let expected = ["missing_source_origin: 1", "request_valid: 1"];
        assert_eq!(bench.counted(), expected.map(|stat| format!("{prefix}.{stat}")));
        drop(config);
    }
}
