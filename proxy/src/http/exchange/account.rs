//! What is said of an exchange once it is over: stats, the filters' last word, access logs. Always, once, last.
//! It must not know how it ended but by what the stream's facts say.

use std::time::Instant;

use http::{StatusCode, Version};
use tidegate_filters::format::AccessLogType;
use tidegate_filters::http::ResponseHead;

use super::{Connection, Exchange};
use crate::http::access_logs::{self, Heads};
use crate::http::downstream::Downstream;

/// A 1xx counts as a response too.
pub(super) fn count_informational(connection: &Connection) {
    connection.hcm.stats.downstream_rq_completed().inc();
    connection.hcm.stats.count_response(StatusCode::CONTINUE);
    connection.listener_stats.count_response(StatusCode::CONTINUE);
}

impl Exchange<'_> {
    /// The client is told something before the response.
    pub(super) fn note_informational(&mut self, status: StatusCode) {
        count_informational(self.connection);
        (self.informed, self.stream.info.response_code) = (Some(status), Some(status));
    }

    pub(super) fn count_received<D: Downstream>(&mut self, down: &D) {
        let bytes = &mut self.stream.info.bytes;
        (bytes.header_received, bytes.wire_received) = down.received_bytes();
        (bytes.fields_received, bytes.fields_sent) = down.field_bytes();
    }

    pub(super) fn count_sent<D: Downstream>(&mut self, down: &D) {
        self.count_received(down);
        let (body, header, wire) = down.sent_bytes();
        let bytes = &mut self.stream.info.bytes;
        (bytes.body_sent, bytes.header_sent, bytes.wire_sent) = (body, header, wire);
    }

    /// Stats, filters, logs: always, once, last.
    pub(super) fn complete(&mut self, response: Option<ResponseHead>) {
        let hcm = &self.connection.hcm;
        let now = Instant::now();
        let info = &mut self.stream.info;
        info.end = Some(now);
        if let Some(progress) = &self.progress {
            info.bytes.body_received = progress.bytes() + self.resent_bytes;
            if info.protocol != Some(Version::HTTP_2) {
                // Who reads the body still may have the only count of it.
                info.bytes.wire_received = info.bytes.wire_received.max(self.head_bytes + progress.bytes());
            }
            info.timings.last_downstream_rx = Some(progress.last());
        }
        if !self.undecoded && self.progress.as_ref().is_none_or(|progress| progress.is_done()) {
            // Whatever came went up at once, or with the head when there was a connection.
            info.timings.last_upstream_tx =
                info.timings.first_upstream_tx.max(info.timings.first_upstream_tx.and(info.timings.last_downstream_rx));
        }
        if let Some(upstream) = &self.upstream_bytes {
            upstream.note(&mut info.upstream.bytes);
        }
        if self.upgrade {
            hcm.stats.downstream_cx_upgrades_active().dec();
        }
        hcm.stats.downstream_rq_active().dec();
        hcm.stats.downstream_rq_time().record(u64::try_from((now - info.start).as_millis()).unwrap_or(u64::MAX));
        if info.health_check_request {
            hcm.tracing_stats.health_check().inc();
        } else if let Some(status) = info.response_code.filter(|_| response.is_some()) {
            hcm.stats.downstream_rq_completed().inc();
            hcm.stats.count_response(status);
            self.connection.listener_stats.count_response(status);
        }
        self.complete_filters();
        self.log(AccessLogType::DownstreamEnd, response.as_ref());
    }

    /// The line of a request that has a route, before any filter has seen it.
    pub(super) fn log_beginning(&self) {
        if let Some(periodic) = &self.periodic {
            periodic.note(&self.stream, &self.request.head, None);
        }
        if self.connection.hcm.access_log_options.on_new_request {
            self.log(AccessLogType::DownstreamStart, None);
        }
    }

    /// The line of a tunnel that stands.
    pub(super) fn log_response(&self, head: &ResponseHead, upgraded: bool) {
        if let Some(periodic) = &self.periodic {
            periodic.note(&self.stream, &self.request.head, Some(head));
        }
        if upgraded && self.connection.hcm.access_log_options.on_tunnel_established {
            self.log(AccessLogType::DownstreamTunnelSuccessfullyEstablished, Some(head));
        }
    }

    fn log(&self, kind: AccessLogType, response: Option<&ResponseHead>) {
        let heads = Heads {
            request: if self.undecoded { None } else { Some(&self.request.head) },
            response,
            trailers: self.trailers.as_ref(),
            route: self.stream.route.as_deref(),
        };
        access_logs::write(self.connection, kind, &self.stream.info, heads);
    }
}
