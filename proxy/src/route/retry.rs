//! When a route wants a failed try repeated, how often, how soon, and where (`RetryPolicy`, `HedgePolicy`).
//! It must not know attempts: it says what the policy is once a request's headers have had their say.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use serde_json::{Map, Value};
use tidegate_filters::http::RequestHead;
use tidegate_filters::matching::HeaderMatcher;

use super::timeout::Limit;

/// `RetryPolicy`, compiled.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    pub on: RetryOn,
    pub retries: u32,
    pub per_try_timeout: Limit,
    pub per_try_idle_timeout: Limit,
    pub status_codes: Vec<StatusCode>,
    /// Conditions on a response, any of which makes it retriable.
    pub headers: Vec<HeaderMatcher>,
    /// Conditions on a request, one of which must hold for it to be retried; none asks nothing.
    pub request_headers: Vec<HeaderMatcher>,
    pub host_predicates: Vec<HostPredicate>,
    /// How often a host that a predicate refuses is replaced; at least 1.
    pub host_attempts: u32,
    pub priority: Option<PreviousPriorities>,
    pub back_off: BackOff,
    pub rate_limited: Option<RateLimitedBackOff>,
    /// `refresh_cluster_on_retry`: a matcher that names the cluster is asked again.
    pub refresh_cluster: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            on: RetryOn::NEVER,
            retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            status_codes: Vec::new(),
            headers: Vec::new(),
            request_headers: Vec::new(),
            host_predicates: Vec::new(),
            host_attempts: 1,
            priority: None,
            back_off: BackOff::default(),
            rate_limited: None,
            refresh_cluster: false,
        }
    }
}

/// `retry_back_off`: jittered exponential. Where `base` is not set it is the runtime's `upstream.base_retry_backoff_ms`,
/// else 25 ms; where `max` is not set it is ten times the base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackOff {
    pub base: Option<Duration>,
    pub max: Option<Duration>,
}

/// `rate_limited_retry_back_off`: the response says how long to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitedBackOff {
    /// The first that is present and not over `max` counts.
    pub headers: Vec<(HeaderName, ResetFormat)>,
    pub max: Duration,
}

/// How a reset header says when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetFormat {
    Seconds,
    UnixTimestamp,
}

/// `retry_host_predicate`: hosts that a retry does not go to.
#[derive(Debug, Clone, PartialEq)]
pub enum HostPredicate {
    /// `previous_hosts`: those that were tried.
    Previous,
    /// `omit_canary_hosts`
    Canary,
    /// `omit_host_metadata`: those whose `envoy.lb` metadata has all of this.
    Metadata(Map<String, Value>),
}

/// `retry_priority`: priorities whose hosts were tried are left out; after each `update_frequency` tries anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviousPriorities {
    pub update_frequency: u32,
}

/// `HedgePolicy`. What else it can say has no effect in Envoy either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HedgePolicy {
    pub on_per_try_timeout: bool,
}

/// A set of retry conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u32);

macro_rules! retry_conditions {
    ($($bit:literal $name:ident $text:literal)*; $($grpc_bit:literal $grpc_name:ident $grpc_text:literal)*) => {
        impl RetryOn {
            $(#[doc = concat!("`", $text, "`")] pub const $name: Self = Self(1 << $bit);)*
            $(#[doc = concat!("`", $grpc_text, "`, a gRPC status")] pub const $grpc_name: Self = Self(1 << $grpc_bit);)*
            const HTTP: &[(&str, Self)] = &[$(($text, Self::$name)),*];
            const GRPC: &[(&str, Self)] = &[$(($grpc_text, Self::$grpc_name)),*];
        }
    };
}

retry_conditions! {
    0 ERROR_5XX "5xx"
    1 GATEWAY_ERROR "gateway-error"
    2 CONNECT_FAILURE "connect-failure"
    3 RETRIABLE_4XX "retriable-4xx"
    4 REFUSED_STREAM "refused-stream"
    5 RETRIABLE_STATUS_CODES "retriable-status-codes"
    6 RETRIABLE_HEADERS "retriable-headers"
    7 RESET "reset"
    8 ENVOY_RATELIMITED "envoy-ratelimited"
    9 RESET_BEFORE_REQUEST "reset-before-request"
    10 HTTP3_POST_CONNECT_FAILURE "http3-post-connect-failure"
    ;
    16 GRPC_CANCELLED "cancelled"
    17 GRPC_DEADLINE_EXCEEDED "deadline-exceeded"
    18 GRPC_RESOURCE_EXHAUSTED "resource-exhausted"
    19 GRPC_UNAVAILABLE "unavailable"
    20 GRPC_INTERNAL "internal"
}

impl RetryOn {
    pub const NEVER: Self = Self(0);

    pub fn is_never(self) -> bool {
        self.0 == 0
    }

    pub fn has(self, condition: Self) -> bool {
        self.0 & condition.0 != 0
    }

    /// A policy's `retry_on`, and whether every condition was known. HTTP's and gRPC's stand in one list; an unknown one
    /// is passed over, as in Envoy.
    pub fn parse(text: &str) -> (Self, bool) {
        let known = |name: &str| Self::named(Self::HTTP, name).or_else(|| Self::named(Self::GRPC, name));
        Self::collect(text, known)
    }

    /// `x-envoy-retry-on`
    pub fn parse_http(text: &str) -> (Self, bool) {
        Self::collect(text, |name| Self::named(Self::HTTP, name))
    }

    /// `x-envoy-retry-grpc-on`
    pub fn parse_grpc(text: &str) -> (Self, bool) {
        Self::collect(text, |name| Self::named(Self::GRPC, name))
    }

    fn named(conditions: &[(&str, Self)], name: &str) -> Option<Self> {
        conditions.iter().find(|(known, _)| *known == name).map(|(_, condition)| *condition)
    }

    fn collect(text: &str, known: impl Fn(&str) -> Option<Self>) -> (Self, bool) {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.fold((Self::NEVER, true), |(all, valid), name| match known(name) {
            Some(condition) => (all | condition, valid),
            None => (all, false),
        })
    }
}

impl std::ops::BitOr for RetryOn {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

const X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-hedge-on-per-try-timeout");
const X_ENVOY_MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const X_ENVOY_RETRIABLE_HEADER_NAMES: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");
const X_ENVOY_RETRIABLE_STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const X_ENVOY_RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const X_ENVOY_RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");

/// The retry policy of one request: the route's, and what the request's headers added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRetries {
    pub on: RetryOn,
    pub retries: u32,
    /// Besides the policy's.
    pub status_codes: Vec<StatusCode>,
    /// Headers whose presence in a response makes it retriable, besides the policy's.
    pub header_names: Vec<HeaderName>,
}

impl RetryPolicy {
    /// The policy of every route that has none: one for all of them.
    pub fn never() -> Arc<Self> {
        static NEVER: OnceLock<Arc<RetryPolicy>> = OnceLock::new();
        Arc::clone(NEVER.get_or_init(Arc::default))
    }

    /// What applies to a request, taking the headers that ask for retries. `None` when nothing is ever retried.
    ///
    /// Envoy: `RetryStateImpl`; it runs after the route has mutated the headers.
    pub fn of_request(&self, head: &mut RequestHead) -> Option<RequestRetries> {
        let found = self.read(head);
        for name in [
            X_ENVOY_RETRY_ON,
            X_ENVOY_RETRY_GRPC_ON,
            X_ENVOY_MAX_RETRIES,
            X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
            X_ENVOY_RETRIABLE_HEADER_NAMES,
            X_ENVOY_RETRIABLE_STATUS_CODES,
        ] {
            head.headers.remove(name);
        }
        found
    }

    fn read(&self, head: &RequestHead) -> Option<RequestRetries> {
        let text = |name: &HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
        let http = text(&X_ENVOY_RETRY_ON).map(|text| RetryOn::parse_http(text).0).unwrap_or_default();
        let grpc = text(&X_ENVOY_RETRY_GRPC_ON).map(|text| RetryOn::parse_grpc(text).0).unwrap_or_default();
        let on = self.on | http | grpc;
        let allowed =
            self.request_headers.is_empty() || self.request_headers.iter().any(|matcher| matcher.matches(head));
        if on.is_never() || !allowed {
            return None;
        }
        let asked = text(&X_ENVOY_MAX_RETRIES).and_then(|text| text.trim().parse::<u64>().ok());
        let retries = asked.map_or(self.retries, |asked| u32::try_from(asked).unwrap_or(u32::MAX));
        let list = |name: &HeaderName| text(name).into_iter().flat_map(|text| text.split(',')).map(str::trim);
        let codes = list(&X_ENVOY_RETRIABLE_STATUS_CODES);
        let names = list(&X_ENVOY_RETRIABLE_HEADER_NAMES);
        Some(RequestRetries {
            on,
            retries,
            status_codes: codes.filter_map(|code| StatusCode::from_bytes(code.as_bytes()).ok()).collect(),
            header_names: names.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect(),
        })
    }
}

impl HedgePolicy {
    /// Whether this request hedges; takes the header that says otherwise.
    pub fn of_request(self, headers: &mut HeaderMap) -> bool {
        match headers.remove(&X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT).as_ref().map(|value| value.as_bytes()) {
            Some(b"true") => true,
            Some(b"false") => false,
            _ => self.on_per_try_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::testing::get;
    use http::HeaderValue;

    #[test]
    fn conditions_of_both_kinds_stand_in_one_list() {
        let (on, known) = RetryOn::parse("5xx, reset-before-request,unavailable,,foo");
        assert_eq!(on, RetryOn::ERROR_5XX | RetryOn::RESET_BEFORE_REQUEST | RetryOn::GRPC_UNAVAILABLE);
        assert!(!known);
        assert_eq!(RetryOn::parse_http("unavailable"), (RetryOn::NEVER, false));
        assert_eq!(RetryOn::parse_grpc("unavailable"), (RetryOn::GRPC_UNAVAILABLE, true));
    }

    #[test]
    fn headers_add_to_the_policy_and_go() {
        let mut head = get("h", "/");
        for (name, value) in [
            ("x-envoy-retry-on", "gateway-error"),
            ("x-envoy-max-retries", "7"),
            ("x-envoy-retriable-status-codes", "404, 1000,409"),
            ("x-envoy-retriable-header-names", "X-A, x-b"),
        ] {
            head.headers.insert(name, HeaderValue::from_static(value));
        }
        let policy = RetryPolicy { on: RetryOn::RESET, ..RetryPolicy::default() };
        let found = policy.of_request(&mut head).unwrap();
        assert_eq!((found.on, found.retries), (RetryOn::RESET | RetryOn::GATEWAY_ERROR, 7));
        assert_eq!(found.status_codes, [StatusCode::NOT_FOUND, StatusCode::CONFLICT]);
        assert_eq!(found.header_names, ["x-a", "x-b"].map(HeaderName::from_static));
        assert!(head.headers.is_empty());
        assert_eq!(RetryPolicy::default().of_request(&mut head), None);
    }

    #[test]
    fn a_header_decides_about_hedging() {
        let mut headers = HeaderMap::new();
        let hedging = HedgePolicy { on_per_try_timeout: true };
        assert!(hedging.of_request(&mut headers));
        headers.insert(X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT, HeaderValue::from_static("false"));
        assert!(!hedging.of_request(&mut headers));
        assert!(headers.is_empty());
    }
}
