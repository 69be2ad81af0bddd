//! What a client is told when no try gave a response, in Envoy's words: status, body, flags, details; and what the
//! cluster is charged for it. It must not know how tries are made.

use std::borrow::Cow;

use http::{HeaderValue, StatusCode};
use tidegate_filters::http::{LocalReply, StreamContext};
use tidegate_filters::stream_info::ResponseFlags;

use super::attempt::Failure;
use super::measure::record_budget;
use super::{Shared, lasting};
use crate::application_log::shown::Tags;
use crate::cluster::host::Host;
use crate::cluster::pool::{PoolError, StreamReset};
use crate::http::headers::{X_ENVOY_ATTEMPT_COUNT, X_ENVOY_OVERLOADED};

/// Envoy's names of a reset: reason, flag.
fn reason(failure: &Failure) -> (&'static str, ResponseFlags) {
    match failure {
        Failure::Pool(PoolError::Overflow) => ("overflow", ResponseFlags::UPSTREAM_OVERFLOW),
        Failure::Pool(PoolError::NoPool) => ("overflow", ResponseFlags::NO_HEALTHY_UPSTREAM),
        Failure::Pool(PoolError::Connect(_) | PoolError::OtherProtocol) => {
            ("remote connection failure", ResponseFlags::UPSTREAM_CONNECTION_FAILURE)
        }
        Failure::Pool(PoolError::Local(_) | PoolError::Unnameable(_)) => {
            ("local connection failure", ResponseFlags::UPSTREAM_CONNECTION_FAILURE)
        }
        Failure::Pool(PoolError::Timeout) => ("connection timeout", ResponseFlags::UPSTREAM_CONNECTION_FAILURE),
        Failure::Reset(StreamReset::Termination) => {
            ("connection termination", ResponseFlags::UPSTREAM_CONNECTION_TERMINATION)
        }
        Failure::Reset(StreamReset::Remote(_)) => ("remote reset", ResponseFlags::UPSTREAM_REMOTE_RESET),
        Failure::Reset(StreamReset::Refused) => ("remote refused stream reset", ResponseFlags::UPSTREAM_REMOTE_RESET),
        Failure::Replied(_) => ("local reply", ResponseFlags::empty()),
        Failure::PerTryTimeout | Failure::PerTryIdleTimeout => ("local reset", ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        Failure::Reset(StreamReset::Protocol) => ("protocol error", ResponseFlags::UPSTREAM_PROTOCOL_ERROR),
        Failure::MaxStreamDuration => ("local reset", ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED),
    }
}

/// Why a try failed, in Envoy's words.
pub(super) fn reason_of(failure: &Failure) -> &'static str {
    reason(failure).0
}

/// The flag of the try alone, for its log.
pub(super) fn try_flag(failure: &Failure) -> ResponseFlags {
    match failure {
        Failure::PerTryIdleTimeout => ResponseFlags::STREAM_IDLE_TIMEOUT,
        other => reason(other).1,
    }
}

fn status(shared: &Shared<'_>, failure: &Failure) -> StatusCode {
    match failure {
        Failure::PerTryTimeout | Failure::PerTryIdleTimeout => shared.timeout_status,
        Failure::Reset(StreamReset::Protocol) => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The try counts as failed.
pub(super) fn charge(shared: &Shared<'_>, failure: &Failure, host: &Host) {
    if matches!(failure, Failure::Replied(_) | Failure::Pool(PoolError::NoPool) | Failure::MaxStreamDuration) {
        return;
    }
    if shared.last_informational().is_none() {
        shared.account.abort(status(shared, failure), Some(host).filter(|_| failure.names_host()));
    }
}

/// The route's timeout struck while this try ran.
pub(super) fn charge_timeout(shared: &Shared<'_>, host: &Host) {
    shared.account.time_out(host);
    if shared.last_informational().is_none() {
        shared.account.abort(shared.timeout_status, Some(host));
    }
}

/// The reply to a request whose last try failed.
pub(super) fn reply(shared: &Shared<'_>, failure: &Failure, stream: &StreamContext) -> Box<LocalReply> {
    match failure {
        Failure::PerTryTimeout => return timeout(shared, "upstream_per_try_timeout", stream),
        Failure::PerTryIdleTimeout => return timeout(shared, "upstream_per_try_idle_timeout", stream),
        Failure::Replied(reply) => return reply.clone(),
        Failure::MaxStreamDuration => {
            let reply = lasting::max_stream_duration_reply(shared.request_complete().is_some());
            return with_attempts(shared, reply, stream);
        }
        Failure::Pool(PoolError::NoPool) => return no_healthy_host(shared, stream),
        Failure::Pool(_) | Failure::Reset(_) => {}
    }
    let (reason, flag) = reason(failure);
    if matches!(failure, Failure::Pool(PoolError::Overflow)) {
        shared.cluster.count_drop(false);
    }
    let upstream = &stream.info.upstream;
    let retried = if upstream.attempts > 1 { "retried and the latest " } else { "" };
    let body = format!("upstream connect error or disconnect/reset before headers. {retried}reset reason: {reason}");
    let begun = if shared.last_informational().is_some() { "after" } else { "before" };
    let mut details = format!("upstream_reset_{begun}_response_started{{{}", underscored(reason));
    let transport = upstream.transport_failure_reason.as_deref().filter(|text| !text.is_empty());
    let connecting =
        matches!(failure, Failure::Pool(PoolError::Connect(_) | PoolError::Local(_) | PoolError::Unnameable(_)));
    if let Some(transport) = transport.filter(|_| connecting) {
        details.push('|');
        details.push_str(&underscored(transport));
    }
    details.push('}');
    let reply = LocalReply::new(status(shared, failure), details).body(body).flag(flag);
    let shows = !shared.connection.hcm.router.suppress_envoy_headers;
    let reply = match failure {
        Failure::Pool(PoolError::Overflow) if shows => {
            reply.header(X_ENVOY_OVERLOADED, HeaderValue::from_static("true"))
        }
        _ => reply,
    };
    with_attempts(shared, reply, stream)
}

/// The reply when the route's timeout has passed.
pub(super) fn timed_out(shared: &Shared<'_>, stream: &StreamContext) -> Box<LocalReply> {
    tracing::debug!("{} upstream timeout", Tags::stream(stream));
    timeout(shared, "response_timeout", stream)
}

fn timeout(shared: &Shared<'_>, details: &'static str, stream: &StreamContext) -> Box<LocalReply> {
    let since = shared.request_complete().unwrap_or(shared.started);
    record_budget(&shared.cluster, since, shared.timeouts.global);
    let reply = LocalReply::new(shared.timeout_status, details).flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT);
    let plain = shared.timeout_status == StatusCode::GATEWAY_TIMEOUT;
    with_attempts(shared, if plain { reply.body("upstream request timeout") } else { reply }, stream)
}

/// The reply when no host may be tried.
pub(super) fn no_healthy_host(shared: &Shared<'_>, stream: &StreamContext) -> Box<LocalReply> {
    tracing::debug!("{} no healthy host in cluster '{}'", Tags::stream(stream), shared.cluster.name());
    shared.account.code(StatusCode::SERVICE_UNAVAILABLE, false, None);
    let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no_healthy_upstream")
        .body("no healthy upstream")
        .flag(ResponseFlags::NO_HEALTHY_UPSTREAM);
    with_attempts(shared, reply, stream)
}

fn with_attempts(shared: &Shared<'_>, reply: LocalReply, stream: &StreamContext) -> Box<LocalReply> {
    let shown = shared.route.entry.virtual_host.attempts.count_downstream;
    let attempts = HeaderValue::from(stream.info.upstream.attempts);
    Box::new(if shown { reply.header(X_ENVOY_ATTEMPT_COUNT, attempts) } else { reply })
}

/// Details carry no white space.
fn underscored(text: &str) -> Cow<'_, str> {
    if text.contains(' ') { Cow::Owned(text.replace(' ', "_")) } else { Cow::Borrowed(text) }
}
