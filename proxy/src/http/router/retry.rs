//! Whether a try is repeated, and when (Envoy's `RetryStateImpl`). It must not know how tries are made, nor routes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};
use tidegate_filters::http::ResponseHead;
use tidegate_filters::runtime::Runtime;

use super::attempt::Failure;
use super::charge::Account;
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::{Permit, Resource, RoutingPriority};
use crate::cluster::pool::{PoolError, StreamReset};
use crate::http::headers::{GRPC_STATUS, X_ENVOY_RATELIMITED};
use crate::route::{RateLimitedBackOff, RequestRetries, ResetFormat};
use crate::route::{RetryOn, RetryPolicy};

/// Envoy's default base of the back-off.
const BASE: Duration = Duration::from_millis(25);

/// The retries that one request has left.
pub(super) struct Retries<'a> {
    policy: &'a RetryPolicy,
    request: RequestRetries,
    left: u32,
    account: &'a Account,
    /// Where retries are counted: the cluster that they go to.
    cluster: Arc<Cluster>,
    /// Where the next would go, if that is elsewhere.
    next: Option<Arc<Cluster>>,
    priority: RoutingPriority,
    /// Held while a retry is under way.
    permit: Option<Permit>,
    next_back_off: Duration,
    max_back_off: Duration,
    runtime: &'a dyn Runtime,
}

/// What becomes of a try that could be repeated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Take what there is.
    Final,
    /// It would be repeated, but all retries are used up (flag `URX`).
    Exhausted,
    /// It would be repeated, but too many are under way (flag `UO`).
    Overflow,
    /// Again, after this long.
    Again(Duration),
}

impl<'a> Retries<'a> {
    pub(super) fn new(
        policy: &'a RetryPolicy,
        request: RequestRetries,
        account: &'a Account,
        priority: RoutingPriority,
        runtime: &'a dyn Runtime,
    ) -> Self {
        let by_runtime = || runtime.integer("upstream.base_retry_backoff_ms").map(Duration::from_millis);
        let base = policy.back_off.base.or_else(by_runtime).unwrap_or(BASE);
        Self {
            left: request.retries,
            next_back_off: base,
            max_back_off: policy.back_off.max.unwrap_or(base * 10),
            policy,
            request,
            account,
            cluster: Arc::clone(&account.cluster),
            next: None,
            priority,
            permit: None,
            runtime,
        }
    }

    /// A response has come.
    pub(super) fn after_response(&mut self, head: &ResponseHead, random: u64) -> Decision {
        let wanted = self.wants_response(head);
        let wait =
            self.policy.rate_limited.as_ref().filter(|_| wanted).and_then(|rules| reset_after(rules, &head.headers));
        self.decide(wanted, wait, random)
    }

    /// A try has failed. `sent` says whether a byte of the request may have reached the host.
    pub(super) fn after_failure(&mut self, failure: &Failure, sent: bool, random: u64) -> Decision {
        let wanted = self.wants_failure(failure, sent);
        self.decide(wanted, None, random)
    }

    /// The next retry goes to this cluster, if there is one.
    pub(super) fn go_to(&mut self, cluster: &Arc<Cluster>) {
        self.next = Some(Arc::clone(cluster));
    }

    /// A try takes too long and goes on; another beside it is always wanted.
    pub(super) fn after_slowness(&mut self, random: u64) -> Decision {
        self.decide(true, None, random)
    }

    fn decide(&mut self, wanted: bool, wait: Option<Duration>, random: u64) -> Decision {
        let next = self.next.take();
        let tallies = &self.account.tallies;
        let stats = &self.cluster.stats().traffic;
        if !wanted {
            if self.permit.take().is_some() {
                stats.upstream_rq_retry_success().inc();
                tallies.each(|tally| tally.requests.upstream_rq_retry_success().inc());
            }
            return Decision::Final;
        }
        if self.left == 0 {
            stats.upstream_rq_retry_limit_exceeded().inc();
            tallies.each(|tally| tally.requests.upstream_rq_retry_limit_exceeded().inc());
            return Decision::Exhausted;
        }
        self.left -= 1;
        self.permit = None;
        if let Some(next) = next {
            self.cluster = next;
        }
        let cluster = &self.cluster;
        let stats = &cluster.stats().traffic;
        let Some(permit) = cluster.breakers(self.priority).acquire(Resource::Retries) else {
            stats.upstream_rq_retry_overflow().inc();
            tallies.each(|tally| tally.requests.upstream_rq_retry_overflow().inc());
            return Decision::Overflow;
        };
        if !self.enabled(random) {
            return Decision::Final;
        }
        self.permit = Some(permit);
        stats.upstream_rq_retry().inc();
        tallies.each(|tally| tally.requests.upstream_rq_retry().inc());
        if let Some(wait) = wait {
            stats.upstream_rq_retry_backoff_ratelimited().inc();
            return Decision::Again(jittered(wait, random));
        }
        stats.upstream_rq_retry_backoff_exponential().inc();
        Decision::Again(self.back_off(random))
    }

    /// The runtime's `upstream.use_retry`, a percentage.
    fn enabled(&self, random: u64) -> bool {
        self.runtime.integer("upstream.use_retry").is_none_or(|percent| random % 100 < percent)
    }

    /// Full jitter below an interval that doubles up to its limit.
    fn back_off(&mut self, random: u64) -> Duration {
        let interval = self.next_back_off;
        self.next_back_off = (interval * 2).min(self.max_back_off);
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(random % millis)
    }

    pub(super) fn wants_response(&self, head: &ResponseHead) -> bool {
        let on = self.request.on;
        if head.headers.contains_key(&X_ENVOY_RATELIMITED) {
            return on.has(RetryOn::ENVOY_RATELIMITED);
        }
        let status = head.status;
        let codes = self.policy.status_codes.iter().chain(&self.request.status_codes);
        on.has(RetryOn::ERROR_5XX) && status.is_server_error()
            || on.has(RetryOn::GATEWAY_ERROR) && matches!(status.as_u16(), 502..=504)
            || on.has(RetryOn::RETRIABLE_4XX) && status.as_u16() == 409
            || on.has(RetryOn::RETRIABLE_STATUS_CODES) && codes.into_iter().any(|code| *code == status)
            || on.has(RetryOn::RETRIABLE_HEADERS) && self.has_retriable_header(head)
            || self.wants_grpc(&head.headers)
    }

    fn has_retriable_header(&self, head: &ResponseHead) -> bool {
        self.request.header_names.iter().any(|name| head.headers.contains_key(name))
            || self.policy.headers.iter().any(|matcher| matcher.matches(head))
    }

    fn wants_grpc(&self, headers: &HeaderMap) -> bool {
        let on = self.request.on;
        let status = headers.get(&GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
        match status {
            Some(1) => on.has(RetryOn::GRPC_CANCELLED),
            Some(4) => on.has(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some(8) => on.has(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some(13) => on.has(RetryOn::GRPC_INTERNAL),
            Some(14) => on.has(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    fn wants_failure(&self, failure: &Failure, sent: bool) -> bool {
        let on = self.request.on;
        match failure {
            Failure::Replied(_) | Failure::Pool(PoolError::Overflow | PoolError::NoPool | PoolError::Unnameable(_)) => {
                return false;
            }
            Failure::Pool(
                PoolError::Connect(_) | PoolError::Local(_) | PoolError::Timeout | PoolError::OtherProtocol,
            ) if on.has(RetryOn::CONNECT_FAILURE) => {
                return true;
            }
            Failure::Reset(StreamReset::Refused) if on.has(RetryOn::REFUSED_STREAM) => return true,
            _ => {}
        }
        on.has(RetryOn::RESET)
            || on.has(RetryOn::ERROR_5XX)
            || on.has(RetryOn::GATEWAY_ERROR)
            || on.has(RetryOn::RESET_BEFORE_REQUEST) && !sent
    }
}

/// Up to half as long again, so that clients who were told the same do not come at the same moment.
fn jittered(wait: Duration, random: u64) -> Duration {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    wait + Duration::from_millis(random % (millis / 2).max(1))
}

/// How long the response asks to wait, by the first reset header that says so within bounds.
fn reset_after(rules: &RateLimitedBackOff, headers: &HeaderMap) -> Option<Duration> {
    rules.headers.iter().find_map(|(name, format)| {
        let seconds: u64 =
            headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()?.trim().parse().ok())?;
        let wait = match format {
            ResetFormat::Seconds => Duration::from_secs(seconds),
            ResetFormat::UnixTimestamp => {
                (UNIX_EPOCH + Duration::from_secs(seconds)).duration_since(SystemTime::now()).ok()?
            }
        };
        (wait <= rules.max).then_some(wait)
    })
}
