//! Why the way to a response is left early, and what the client is told then, if it is still there.
//! It must not know who notices.

use http::StatusCode;
use tidegate_filters::http::{BodyError, LocalReply};
use tidegate_filters::stream_info::ResponseFlags;

use super::Exchange;
use crate::http::downstream::Gone;
use crate::http::router;
use crate::http::timers::Limit;

/// gRPC's DEADLINE_EXCEEDED.
const GRPC_DEADLINE_EXCEEDED: u32 = 4;

/// Why the way to a response was left early.
pub(super) enum Interrupt {
    Gone(Gone),
    /// The request's body will never be whole.
    Body(BodyError),
    TimedOut(Limit),
}

/// What a request is told whose body will never be whole; `Err` when nobody is there to be told.
pub(super) fn bad_body(error: BodyError) -> Result<LocalReply, Gone> {
    match error {
        BodyError::Reply(reply) => Ok(*reply),
        BodyError::Malformed(details) => {
            let reply = LocalReply::new(StatusCode::BAD_REQUEST, details).body("Bad Request").close();
            Ok(reply.flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR))
        }
        BodyError::Reset(_) => Err(Gone::Reset),
        BodyError::Closed | BodyError::TimedOut => Err(Gone::Closed),
    }
}

impl Exchange<'_> {
    pub(super) fn timed_out(&mut self, limit: Limit) -> LocalReply {
        let stats = &self.connection.hcm.stats;
        // Who did not say all that he wanted is at fault himself.
        let status = if self.is_received() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
        match limit {
            Limit::StreamIdle => {
                stats.downstream_rq_idle_timeout().inc();
                LocalReply::new(status, "stream_idle_timeout")
                    .body("stream timeout")
                    .flag(ResponseFlags::STREAM_IDLE_TIMEOUT)
            }
            Limit::Request => {
                stats.downstream_rq_timeout().inc();
                LocalReply::new(StatusCode::REQUEST_TIMEOUT, "request_overall_timeout").body("request timeout")
            }
            Limit::Duration => {
                stats.downstream_rq_max_duration_reached().inc();
                LocalReply::new(status, "max_duration_timeout")
                    .body("downstream duration timeout")
                    .grpc(GRPC_DEADLINE_EXCEEDED)
            }
            Limit::Response => LocalReply::new(StatusCode::GATEWAY_TIMEOUT, "response_timeout")
                .body("upstream request timeout")
                .flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
            Limit::Answer => {
                if let Some(cluster) = &self.cluster {
                    router::count_max_stream_duration(cluster);
                }
                router::max_stream_duration_reply(self.is_received())
            }
        }
    }
}
