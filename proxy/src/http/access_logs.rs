//! When a stream's access-log lines are written: at its end, and where `access_log_options` asks for it when it begins,
//! when a tunnel stands and at an interval. It must not know what a line says.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tidegate_filters::access_log::AccessLog;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::http::filter::RouteView;
use tidegate_filters::http::{RequestHead, ResponseHead, StreamContext};
use tidegate_filters::stream_info::StreamInfo;
use tokio::time::Sleep;

use super::exchange::Connection;
use super::progress::Progress;

/// `access_log_options`: which lines there are beside the one at the end.
#[derive(Debug, Clone, Copy, Default)]
pub struct AccessLogOptions {
    pub on_new_request: bool,
    pub on_tunnel_established: bool,
    pub interval: Option<Duration>,
}

/// What a line may ask about, beside the facts of the stream.
#[derive(Clone, Copy, Default)]
pub(super) struct Heads<'a> {
    pub request: Option<&'a RequestHead>,
    pub response: Option<&'a ResponseHead>,
    pub trailers: Option<&'a HeaderMap>,
    pub route: Option<&'a dyn RouteView>,
}

/// Writes a line to every log of the connection manager.
pub(super) fn write(connection: &Connection, kind: AccessLogType, info: &StreamInfo, heads: Heads<'_>) {
    write_to(&connection.hcm.access_logs, connection, kind, info, heads);
}

/// Writes a line to each of these logs.
pub(super) fn write_to(
    logs: &[Arc<AccessLog>],
    connection: &Connection,
    kind: AccessLogType,
    info: &StreamInfo,
    heads: Heads<'_>,
) {
    if logs.is_empty() {
        return;
    }
    let context = FormatContext {
        request: heads.request,
        response: heads.response,
        response_trailers: heads.trailers,
        access_log_type: kind,
        route: heads.route,
        runtime: connection.shared.runtime(),
        ..FormatContext::of(info)
    };
    for log in logs {
        log.log(&context);
    }
}

/// The lines that a stream has at an interval. Whoever works on the stream notes what has changed; the lines are written
/// from these notes, since nobody else may look at a stream that somebody works on.
pub(crate) struct Periodic {
    connection: Arc<Connection>,
    interval: Duration,
    progress: Option<Arc<Progress>>,
    noted: Mutex<Noted>,
}

struct Noted {
    info: StreamInfo,
    request: Option<RequestHead>,
    response: Option<ResponseHead>,
    route: Option<Arc<dyn RouteView>>,
}

impl Periodic {
    /// `None` unless the connection manager asks for such lines.
    pub(super) fn of(
        connection: &Arc<Connection>,
        stream: &StreamContext,
        progress: Option<&Arc<Progress>>,
    ) -> Option<Arc<Self>> {
        let interval = connection.hcm.access_log_options.interval?;
        let noted = Noted { info: stream.info.clone(), request: None, response: None, route: None };
        let progress = progress.cloned();
        Some(Arc::new(Self { connection: Arc::clone(connection), interval, progress, noted: Mutex::new(noted) }))
    }

    pub(crate) fn note(&self, stream: &StreamContext, request: &RequestHead, response: Option<&ResponseHead>) {
        let mut noted = self.noted.lock();
        noted.info = stream.info.clone();
        noted.request = Some(request.clone());
        noted.response = response.cloned();
        noted.route.clone_from(&stream.route);
    }

    /// The facts alone, from who does not hold the heads.
    pub(crate) fn note_info(&self, stream: &StreamContext) {
        self.noted.lock().info = stream.info.clone();
    }

    fn write(&self, sent_bytes: u64) {
        let mut noted = self.noted.lock();
        noted.info.bytes.body_sent = sent_bytes;
        if let Some(progress) = &self.progress {
            noted.info.bytes.body_received = progress.bytes();
        }
        let heads = Heads {
            request: noted.request.as_ref(),
            response: noted.response.as_ref(),
            trailers: None,
            route: noted.route.as_deref(),
        };
        write(&self.connection, AccessLogType::DownstreamPeriodic, &noted.info, heads);
    }
}

/// Writes a stream's periodic lines while it is polled.
pub(super) struct Ticker {
    periodic: Arc<Periodic>,
    sleep: Pin<Box<Sleep>>,
    /// Bytes of the response's body so far.
    pub(super) sent_bytes: u64,
}

impl Ticker {
    pub(super) fn new(periodic: Arc<Periodic>) -> Self {
        let sleep = Box::pin(tokio::time::sleep(periodic.interval));
        Self { periodic, sleep, sent_bytes: 0 }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(()) = self.sleep.as_mut().poll(cx) {
            self.periodic.write(self.sent_bytes);
            let next = self.sleep.deadline() + self.periodic.interval;
            self.sleep.as_mut().reset(next.max(tokio::time::Instant::now()));
        }
    }
}
