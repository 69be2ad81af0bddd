//! The router's own access log: a line for each attempt that got as far as a host.
//! It must not know whether another attempt follows.

use std::time::Instant;

use tidegate_filters::format::AccessLogType;
use tidegate_filters::http::{RequestHead, ResponseHead, StreamContext};
use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};

use super::super::access_logs::{self, Heads};
use super::super::exchange::Connection;
use super::attempt::Failure;
use super::failure;

/// What came of an attempt.
pub(super) enum Outcome<'a> {
    Response(&'a ResponseHead),
    Failure(&'a Failure),
    /// The route's timeout has passed.
    TimedOut,
}

/// Writes the line of an attempt that is over.
pub(super) fn write(connection: &Connection, request: &RequestHead, outcome: &Outcome<'_>, stream: &StreamContext) {
    if connection.hcm.upstream_logs.is_empty() {
        return;
    }
    let mut info = stream.info.clone();
    info.flags = ResponseFlags::empty();
    info.response_code = None;
    info.details = None;
    match outcome {
        Outcome::Response(head) => {
            info.response_code = Some(head.status);
            info.details = Some("via_upstream".into());
        }
        Outcome::Failure(error) => {
            let reply = failure::reply(error, &mut info);
            info.flags |= reply.flags;
        }
        Outcome::TimedOut => info.flags |= ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
    }
    let response = match outcome {
        Outcome::Response(head) => Some(*head),
        _ => None,
    };
    end(connection, request, response, info, stream);
}

/// Writes the line of the attempt whose response went to the client, once that is over.
pub(crate) fn write_last(connection: &Connection, request: &RequestHead, head: &ResponseHead, stream: &StreamContext) {
    let mut info = stream.info.clone();
    info.response_code = Some(head.status);
    end(connection, request, Some(head), info, stream);
}

fn end(
    connection: &Connection,
    request: &RequestHead,
    response: Option<&ResponseHead>,
    mut info: StreamInfo,
    stream: &StreamContext,
) {
    info.end = Some(Instant::now());
    // An attempt does not know of others, as in Envoy.
    info.upstream.attempts = 0;
    let heads = Heads { request: Some(request), response, trailers: None, route: stream.route.as_deref() };
    access_logs::write_to(&connection.hcm.upstream_logs, connection, AccessLogType::UpstreamEnd, &info, heads);
}
