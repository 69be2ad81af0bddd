//! What a client is told when no try gave a response, in Envoy's words: status, body, flags, details.
//! It must not know how tries are made.

use std::borrow::Cow;

use http::{HeaderValue, StatusCode};
use tidegate_filters::http::LocalReply;
use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};

use super::attempt::Failure;
use crate::cluster::pool::{PoolError, StreamReset};
use crate::http::headers::X_ENVOY_OVERLOADED;

/// Envoy's names of a reset: reason, flag.
fn reason(failure: &Failure) -> (&'static str, ResponseFlags) {
    match failure {
        Failure::NoHealthyHost => ("no healthy upstream", ResponseFlags::NO_HEALTHY_UPSTREAM),
        Failure::Pool(PoolError::Overflow) => ("overflow", ResponseFlags::UPSTREAM_OVERFLOW),
        Failure::Pool(PoolError::Connect(_)) => {
            ("remote connection failure", ResponseFlags::UPSTREAM_CONNECTION_FAILURE)
        }
        Failure::Pool(PoolError::Timeout) => ("connection timeout", ResponseFlags::UPSTREAM_CONNECTION_FAILURE),
        Failure::Reset(StreamReset::Termination) => {
            ("connection termination", ResponseFlags::UPSTREAM_CONNECTION_TERMINATION)
        }
        Failure::Reset(StreamReset::Remote(_)) => ("remote reset", ResponseFlags::UPSTREAM_REMOTE_RESET),
        Failure::Reset(StreamReset::Refused) => ("remote refused stream reset", ResponseFlags::UPSTREAM_REMOTE_RESET),
        Failure::Replied(_) => ("local reply", ResponseFlags::empty()),
        Failure::PerTryTimeout => ("local reset", ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        Failure::Reset(StreamReset::Protocol) => ("protocol error", ResponseFlags::UPSTREAM_PROTOCOL_ERROR),
    }
}

/// The reply to a request whose last try failed.
pub(super) fn reply(failure: &Failure, info: &mut StreamInfo) -> LocalReply {
    let (reason, flag) = reason(failure);
    if matches!(failure, Failure::NoHealthyHost) {
        return LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no_healthy_upstream")
            .body("no healthy upstream")
            .flag(flag);
    }
    let transport = info.upstream.transport_failure_reason.as_deref().filter(|text| !text.is_empty());
    let body = format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}");
    let mut details = format!("upstream_reset_before_response_started{{{}", underscored(reason));
    if let Some(transport) = transport.filter(|_| matches!(failure, Failure::Pool(PoolError::Connect(_)))) {
        details.push('|');
        details.push_str(&underscored(transport));
    }
    details.push('}');
    let status = match failure {
        Failure::Reset(StreamReset::Protocol) => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let reply = LocalReply::new(status, details).body(body).flag(flag);
    match failure {
        Failure::Pool(PoolError::Overflow) => reply.header(X_ENVOY_OVERLOADED, HeaderValue::from_static("true")),
        _ => reply,
    }
}

/// Details carry no white space.
fn underscored(text: &str) -> Cow<'_, str> {
    if text.contains(' ') { Cow::Owned(text.replace(' ', "_")) } else { Cow::Borrowed(text) }
}
