//! The router's own log: lines for each try (`upstream_log`), with the try's facts in place of the stream's.
//! It must not know what becomes of a try.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Context;
use std::time::{Instant, SystemTime};

use http::HeaderMap;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::http::filter::RouteView;
use tidegate_filters::http::{Body, Frame, RequestHead, ResponseHead, StreamContext};
use tidegate_filters::stream_info::{ByteCounts, ResponseFlags, StreamInfo, Timings};
use tokio::time::Sleep;

use super::Shared;
use super::observed::{self, Observe};
use crate::cluster::pool::Begun;
use crate::http::exchange::Connection;

/// The lines of one try: what they say is kept while it runs, and the last is written when it is over.
pub(super) struct TryLog {
    connection: Arc<Connection>,
    info: StreamInfo,
    route: Option<Arc<dyn RouteView>>,
    request: RequestHead,
    response: Option<ResponseHead>,
    trailers: Option<HeaderMap>,
    sent_bytes: Arc<AtomicU64>,
    /// The next line of those at an interval.
    tick: Option<Pin<Box<Sleep>>>,
}

impl TryLog {
    /// `None` where the router has no log.
    pub(super) fn begin(shared: &Shared<'_>, head: &RequestHead, stream: &StreamContext) -> Option<Box<Self>> {
        if shared.connection.hcm.router.upstream_logs.is_empty() {
            return None;
        }
        let mut info = stream.info.clone();
        (info.start, info.start_time, info.end) = (Instant::now(), SystemTime::now(), None);
        (info.bytes, info.timings) = (ByteCounts::default(), Timings::default());
        (info.protocol, info.response_code, info.details) = (None, None, None);
        info.flags = ResponseFlags::empty();
        info.upstream.attempts = 0;
        Some(Box::new(Self {
            connection: Arc::clone(shared.connection),
            info,
            route: stream.route.clone(),
            request: head.clone(),
            response: None,
            trailers: None,
            sent_bytes: Arc::default(),
            tick: None,
        }))
    }

    /// The request's body, counted.
    pub(super) fn count_sent(&self, body: Body) -> Body {
        observed::count(body, &self.sent_bytes)
    }

    /// The try has its connection.
    pub(super) fn connected(&mut self, head: &RequestHead, stream: &StreamContext) {
        self.note(stream);
        self.info.protocol = stream.info.upstream.protocol;
        self.request = head.clone();
        self.rearm();
        if self.connection.hcm.router.log_new_streams {
            self.write(AccessLogType::UpstreamPoolReady);
        }
    }

    /// The try has failed.
    pub(super) fn failed(&mut self, flag: ResponseFlags, stream: &StreamContext) {
        self.note(stream);
        self.info.flags |= flag;
    }

    /// The response has begun; from here on the log goes with its body.
    pub(super) fn begun(mut self: Box<Self>, begun: &mut Begun) {
        let response = &mut begun.response;
        self.info.response_code = Some(response.head.status);
        self.response = Some(response.head.clone());
        response.body = observed::observe(response.body.take(), self);
    }

    /// Waits, and writes the lines that fall due.
    pub(super) async fn while_waiting<T>(&mut self, mut wait: Pin<&mut impl Future<Output = T>>) -> T {
        std::future::poll_fn(|cx| {
            self.poll_tick(cx);
            wait.as_mut().poll(cx)
        })
        .await
    }

    fn note(&mut self, stream: &StreamContext) {
        self.info.upstream.clone_from(&stream.info.upstream);
        self.info.upstream.attempts = 0;
    }

    fn rearm(&mut self) {
        let interval = self.connection.hcm.router.log_interval;
        self.tick = interval.map(|interval| Box::pin(tokio::time::sleep(interval)));
    }

    fn poll_tick(&mut self, cx: &mut Context<'_>) {
        while self.tick.as_mut().is_some_and(|tick| tick.as_mut().poll(cx).is_ready()) {
            self.write(AccessLogType::UpstreamPeriodic);
            self.rearm();
        }
    }

    fn write(&mut self, kind: AccessLogType) {
        self.info.bytes.body_sent = self.sent_bytes.load(Relaxed);
        let context = FormatContext {
            request: Some(&self.request),
            response: self.response.as_ref(),
            response_trailers: self.trailers.as_ref(),
            access_log_type: kind,
            route: self.route.as_deref(),
            runtime: self.connection.shared.runtime(),
            ..FormatContext::of(&self.info)
        };
        for log in &self.connection.hcm.router.upstream_logs {
            log.log(&context);
        }
    }
}

impl Observe for TryLog {
    fn before(&mut self, cx: &mut Context<'_>) {
        self.poll_tick(cx);
    }

    fn frame(&mut self, frame: &Frame) {
        self.info.bytes.body_received += observed::data_bytes(frame);
        self.trailers = frame.trailers_ref().cloned();
    }
}

impl Drop for TryLog {
    fn drop(&mut self) {
        self.info.end = Some(Instant::now());
        self.write(AccessLogType::UpstreamEnd);
    }
}
