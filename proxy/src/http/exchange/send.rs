//! The response's way to the client: its framing, its body beside what is left of the request, and how it ends.
//! It must not know where the response came from.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::Version;
use tidegate_filters::http::{Body, BodyError, RequestHead, ResponseHead};
use tidegate_filters::stream_info::ResponseFlags;

use super::{Connection, Exchange, Finished, Produced};
use crate::application_log::shown::ResponseHeaders;
use crate::http::connection_manager::{Ended, sleep_or_never};
use crate::http::downstream::{BodyLength, Downstream, Gone, ResetReason};
use crate::http::relay::{Cut, relay};
use crate::http::response_headers;
use crate::http::router::Served;
use crate::http::timers::{Limit, Timers};

/// How long a client may take for what is left of a response that was cut.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Exchange<'_> {
    /// Sends the response while the rest of the request goes up, then accounts for both.
    pub(super) async fn send<D: Downstream>(
        mut self,
        mut produced: Produced,
        mut timers: Timers<'_>,
        down: &mut D,
    ) -> Finished {
        let connection = Arc::clone(self.connection);
        let hcm = &connection.hcm;
        response_headers::finish(hcm, Some(&self.request.head), &self.stream.info, &mut produced.response.head);
        self.decide_keep_alive(&produced, down);
        let head = &produced.response.head;
        self.stream.info.response_code = Some(head.status);
        self.stream.info.timings.first_downstream_tx = Some(Instant::now());
        let length = body_length(&self.request.head, head, &produced);
        tracing::debug!(
            "{} encoding headers via codec (end_stream={}):\n{}",
            self.tags(),
            length == BodyLength::None,
            ResponseHeaders(head)
        );
        if let Some(said) = down.send_head(head, length) {
            // For the logs.
            produced.response.head.headers.insert(http::header::CONNECTION, http::HeaderValue::from_static(said));
        }
        self.log_response(&produced.response.head, produced.upgraded);
        timers.set_response_limit(produced.limit);
        let mut pump = produced.pump.take();
        let mut body = std::mem::take(&mut produced.response.body);
        let mut served = produced.served.take();
        let result = if length == BodyLength::None {
            body = Body::Empty;
            Ok(())
        } else {
            let wanted = !hcm.access_logs.is_empty() || served.as_ref().is_some_and(Served::wants_trailers);
            let kept = wanted.then_some(&mut self.trailers);
            let cluster = served.as_ref().map(|served| &**served.cluster());
            relay(&mut body, &mut pump, down, &mut timers, kept, cluster).await
        };
        if served.is_some() && result.is_ok() {
            self.stream.info.timings.last_upstream_rx = Some(Instant::now());
        }
        let result = match result {
            Ok(()) => flush(down, &connection, self.flush_timeout(down.version())).await.map_err(Cut::Gone),
            Err(cut) => Err(cut),
        };
        drop(body);
        if let Some(served) = &mut served {
            self.settle(served, &result);
        }
        self.count_sent(down);
        match result {
            Ok(()) => {
                self.stream.info.timings.last_downstream_tx = Some(Instant::now());
                if !self.is_received() {
                    hcm.stats.downstream_rq_rx_reset().inc();
                }
                tracing::debug!("{} Codec completed encoding stream.", self.tags());
                self.complete(Some(produced.response.head));
                Finished::Complete
            }
            Err(Cut::Gone(gone)) => self.abandon(gone, Some(produced.response.head)),
            Err(Cut::TimedOut(limit)) => {
                let reply = self.timed_out(limit);
                tracing::debug!("{} stream reset: {}", self.tags(), reply.details);
                self.stream.info.flags |= reply.flags;
                self.stream.info.details = Some(reply.details);
                down.reset(ResetReason::Internal);
                hcm.stats.downstream_rq_tx_reset().inc();
                hcm.stats.downstream_rq_rx_reset().inc();
                self.complete(Some(produced.response.head));
                Finished::Cut
            }
            Err(Cut::Body(error)) => {
                self.note_body_error(&error);
                let details = self.stream.info.details.as_deref().unwrap_or_default();
                tracing::debug!("{} stream reset: {details}", self.tags());
                hcm.stats.downstream_rq_tx_reset().inc();
                hcm.stats.downstream_rq_rx_reset().inc();
                // What came before the cut is the client's; one that does not take it in time goes without.
                let flush = std::future::poll_fn(|cx| down.poll_flush(cx));
                let _ = tokio::time::timeout(LAST_WORDS, flush).await;
                down.reset(ResetReason::UpstreamReset);
                self.complete(Some(produced.response.head));
                Finished::Cut
            }
        }
    }

    /// What is owed for an upstream's response, by how it ended.
    fn settle(&self, served: &mut Served, result: &Result<(), Cut>) {
        match result {
            Ok(()) => served.complete(self.trailers.as_ref()),
            Err(Cut::TimedOut(Limit::Response)) => served.time_out(),
            Err(Cut::Body(_)) if served.cut() => {
                self.connection.hcm.router_stats.rq_reset_after_downstream_response_started().inc();
            }
            Err(_) => {}
        }
    }

    /// Whether the connection is to close after this response.
    pub(super) fn decide_keep_alive<D: Downstream>(&self, produced: &Produced, down: &mut D) {
        let connection = self.connection;
        if connection.chain.drain.should_close(self.stream.random)
            || connection.chain.drain.heeds_health_check() && connection.shared.is_health_check_failing()
        {
            connection.hcm.stats.downstream_cx_drain_close().inc();
            down.close_after();
        }
        if !self.is_received() {
            connection.hcm.stats.downstream_rq_response_before_rq_complete().inc();
            if !produced.upgraded && down.version() < Version::HTTP_2 {
                down.close_after();
            }
        }
    }

    pub(super) fn note_body_error(&mut self, error: &BodyError) {
        let info = &mut self.stream.info;
        match error {
            BodyError::Reply(reply) => {
                info.flags |= reply.flags;
                info.details = Some(reply.details.clone());
            }
            BodyError::TimedOut => info.flags |= ResponseFlags::STREAM_IDLE_TIMEOUT,
            BodyError::Malformed(_) => {
                info.flags |= ResponseFlags::UPSTREAM_PROTOCOL_ERROR;
                info.details = Some("upstream_reset_after_response_started{protocol_error}".into());
            }
            BodyError::Closed => {
                info.flags |= ResponseFlags::UPSTREAM_CONNECTION_TERMINATION;
                info.details = Some("upstream_reset_after_response_started{connection_termination}".into());
            }
            BodyError::Reset(_) => {
                info.flags |= ResponseFlags::UPSTREAM_REMOTE_RESET;
                info.details = Some("upstream_reset_after_response_started{remote_reset}".into());
            }
        }
    }

    /// The client has gone.
    pub(super) fn abandon(mut self, gone: Gone, response: Option<ResponseHead>) -> Finished {
        let stats = &self.connection.hcm.stats;
        stats.downstream_rq_rx_reset().inc();
        let info = &mut self.stream.info;
        if response.is_none() {
            // Filters may have seen one; the client did not, or not more than that one is under way.
            info.response_code = self.informed;
        }
        if matches!(gone, Gone::Closed | Gone::Cut) {
            info.timings.downstream_end = Some(Instant::now());
        }
        match gone {
            Gone::Closed => {
                info.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                info.details = Some("downstream_remote_disconnect".into());
            }
            Gone::Reset => {
                info.flags |= ResponseFlags::DOWNSTREAM_REMOTE_RESET;
                info.details = Some("http2.remote_reset".into());
            }
            Gone::ProtocolError(details) => {
                stats.downstream_cx_protocol_error().inc();
                Ended::Local.count_cut(stats);
                info.flags |= ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
                info.details = Some(details.into());
            }
            Gone::Broken => {
                info.flags |= ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
                info.details = Some("codec_error:The_user_callback_function_failed".into());
            }
            Gone::Cut => {
                info.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                info.details = Some("downstream_local_disconnect(drained)".into());
            }
        }
        let details = self.stream.info.details.as_deref().unwrap_or_default();
        tracing::debug!("{} stream reset: {details}", self.tags());
        self.complete(response);
        if gone == Gone::Closed { Finished::Left } else { Finished::Cut }
    }
}

/// Waits until the client has the response. One that takes too long, or whose connection's time is over, goes without the
/// rest of it; to everyone else the response was whole.
async fn flush<D: Downstream>(down: &mut D, connection: &Connection, limit: Option<Duration>) -> Result<(), Gone> {
    let http2 = down.version() == Version::HTTP_2;
    let mut waiting = None;
    let over = std::future::poll_fn(|cx| {
        if let Poll::Ready(flushed) = down.poll_flush(cx) {
            return Poll::Ready(flushed.map(|()| false));
        }
        let waiting = waiting.get_or_insert_with(|| Box::pin(patience(limit, http2, connection)));
        waiting.as_mut().poll(cx).map(|()| Ok(true))
    })
    .await?;
    if over {
        down.reset(ResetReason::Internal);
    }
    Ok(())
}

/// Waits as long as a client may be waited for. Like Envoy, an HTTP/1 connection that was idle too long drains first.
async fn patience(limit: Option<Duration>, http2: bool, connection: &Connection) {
    let hcm = &connection.hcm;
    let late = async {
        sleep_or_never(limit.unwrap_or(Duration::MAX)).await;
        if http2 {
            hcm.codec_stats.http2().tx_flush_timeout().inc();
        } else {
            hcm.stats.downstream_cx_idle_timeout().inc();
            tokio::time::sleep(hcm.timeouts.of_drain()).await;
        }
    };
    tokio::select! {
        () = connection.chain.drain.until_cut() => {}
        () = late => {}
    }
}

/// How the body of a response is delimited for the client.
fn body_length(request: &RequestHead, head: &ResponseHead, produced: &Produced) -> BodyLength {
    if produced.upgraded {
        return BodyLength::Tunnel;
    }
    if response_headers::is_bodyless(&request.method, head.status) || produced.response.body.is_end() {
        return BodyLength::None;
    }
    let declared = head.headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    declared.or_else(|| produced.response.body.exact_len()).map_or(BodyLength::Unknown, BodyLength::Known)
}
