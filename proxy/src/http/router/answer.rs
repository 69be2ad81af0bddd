//! What forwarding came to, and how an upstream's response becomes the client's (Envoy's `onUpstreamHeaders`).
//! It must not know tries that were thrown away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use tidegate_filters::http::{RequestHead, Response, ResponseHead, StreamContext};

use super::charge;
use super::tries::Won;
use super::{Pump, Redirected, Served, Shared};
use crate::cluster::pool::Begun;
use crate::http::headers::{X_ENVOY_ATTEMPT_COUNT, X_ENVOY_UPSTREAM_SERVICE_TIME};
use crate::http::limits::TryLimit;
use crate::route::Route;

/// What forwarding came to.
#[expect(clippy::large_enum_variant, reason = "it is moved once, and a box would cost every request an allocation")]
pub(crate) enum Answer {
    Response(Forwarded),
    /// The proxy may follow it itself, if the target's route agrees.
    Redirect(Box<Redirected>),
}

/// A response that has begun.
pub(crate) struct Forwarded {
    pub response: Response,
    pub pump: Option<Pump>,
    /// How long the whole may take from the end of the request on, which is not before this moment.
    pub limit: Option<(Instant, Duration)>,
    /// When the cluster's own limit ends it.
    pub over: Option<TryLimit>,
    /// The host agreed to leave HTTP.
    pub upgraded: bool,
    pub served: Served,
}

/// A response of which it is not yet certain that it goes to the client. Nobody was charged for it.
pub(crate) struct Unfinished {
    begun: Begun,
    served: Served,
    route: Arc<Route>,
    cookies: Vec<HeaderValue>,
    upgraded: bool,
    /// From the end of the request on, where that has come.
    service_time: Option<Duration>,
    limit: Option<(Instant, Duration)>,
    suppress_envoy_headers: bool,
    /// How long the host may say nothing.
    idle: Option<Duration>,
}

impl Unfinished {
    pub(super) fn new(shared: &Shared<'_>, won: Won, cookies: Vec<HeaderValue>) -> Self {
        let Won { begun, host, account, upgraded } = won;
        let canary = charge::is_canary(&begun.response.head.headers, &host);
        Self {
            begun,
            served: Served::new(shared, account, host, canary),
            route: Arc::clone(shared.route),
            cookies,
            upgraded,
            service_time: shared.request_complete().map(|complete| complete.elapsed()),
            limit: shared.timeouts.global.filter(|_| !upgraded).map(|limit| (shared.started, limit)),
            suppress_envoy_headers: shared.connection.hcm.router.suppress_envoy_headers,
            idle: shared.timeouts.per_try_idle.filter(|_| !shared.options.hedge_on_per_try_timeout),
        }
    }

    pub(crate) fn head(&self) -> &ResponseHead {
        &self.begun.response.head
    }

    /// It redirects: whether that is followed.
    pub(crate) fn count_redirect(&self, followed: bool) {
        let traffic = &self.served.cluster().stats().traffic;
        if followed {
            traffic.upstream_internal_redirect_succeeded_total().inc();
        } else {
            traffic.upstream_internal_redirect_failed_total().inc();
        }
    }

    /// Makes it the client's response. `request` is the head that went up.
    pub(crate) fn finish(self, request: &RequestHead, stream: &mut StreamContext) -> Forwarded {
        let Self { begun, mut served, route, cookies, upgraded, service_time, limit, suppress_envoy_headers, idle } =
            self;
        let Begun { mut response, pump, over } = begun;
        stream.info.details = Some("via_upstream".into());
        let head = &mut response.head;
        if let Some(time) = service_time.filter(|_| !suppress_envoy_headers) {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, HeaderValue::from(millis));
        }
        served.begin(head, response.body.is_end());
        if route.entry.virtual_host.attempts.count_downstream {
            head.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(stream.info.upstream.attempts));
        }
        for cookie in cookies {
            head.headers.append(http::header::SET_COOKIE, cookie);
        }
        stream.info.response_code = Some(head.status);
        route.finalize_response(head, Some(request), &stream.info);
        if let Some(idle) = idle.filter(|_| !response.body.is_end()) {
            response.body = served.watch(response.body.take(), idle);
        }
        Forwarded { response, pump, limit, over, upgraded, served }
    }
}
