//! What is said of an exchange once it is over: stats, the filters' last word, access logs. Always, once, last.
//! It must not know how it ended but by what the stream's facts say.

use std::time::Instant;

use http::StatusCode;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::http::ResponseHead;

use super::{Connection, Exchange};
use crate::http::downstream::Downstream;

/// A 100 counts as a response too.
pub(crate) fn count_informational(connection: &Connection) {
    connection.hcm.stats.downstream_rq_completed().inc();
    connection.hcm.stats.count_response(StatusCode::CONTINUE);
    connection.listener_stats.count_response(StatusCode::CONTINUE);
}

impl Exchange<'_> {
    pub(super) fn count_sent<D: Downstream>(&mut self, down: &D) {
        let (body, header, wire) = down.sent_bytes();
        let bytes = &mut self.stream.info.bytes;
        (bytes.body_sent, bytes.header_sent, bytes.wire_sent) = (body, header, wire);
        self.stream.info.timings.last_downstream_tx = Some(Instant::now());
    }

    /// Stats, filters, logs: always, once, last.
    pub(super) fn complete(&mut self, response: Option<ResponseHead>) {
        let hcm = &self.connection.hcm;
        let now = Instant::now();
        let info = &mut self.stream.info;
        info.end = Some(now);
        if let Some(progress) = &self.progress {
            info.bytes.body_received = progress.bytes();
            info.bytes.wire_received += progress.bytes();
            info.timings.last_downstream_rx = Some(progress.last());
        }
        if self.upgrade {
            hcm.stats.downstream_cx_upgrades_active().dec();
        }
        hcm.stats.downstream_rq_active().dec();
        hcm.stats.downstream_rq_time().record(u64::try_from((now - info.start).as_millis()).unwrap_or(u64::MAX));
        if let Some(status) = info.response_code {
            hcm.stats.downstream_rq_completed().inc();
            hcm.stats.count_response(status);
            self.connection.listener_stats.count_response(status);
        }
        for (_, filter) in &mut self.filters {
            filter.on_complete(&mut self.stream);
        }
        if !hcm.access_logs.is_empty() {
            let context = FormatContext {
                request: if self.undecoded { None } else { Some(&self.request.head) },
                response: response.as_ref(),
                response_trailers: self.trailers.as_ref(),
                access_log_type: AccessLogType::DownstreamEnd,
                route: self.stream.route.as_deref(),
                runtime: self.connection.shared.runtime(),
                ..FormatContext::of(&self.stream.info)
            };
            for log in &hcm.access_logs {
                log.log(&context);
            }
        }
    }
}
