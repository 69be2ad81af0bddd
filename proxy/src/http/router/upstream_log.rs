//! The router's own log: lines for each try (`upstream_log`), with the try's facts in place of the stream's.
//! It must not know what becomes of a try.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::HeaderMap;
use http_body::SizeHint;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::http::filter::RouteView;
use tidegate_filters::http::{Body, BodyError, Frame, RequestHead, ResponseHead, StreamContext};
use tidegate_filters::stream_info::{ByteCounts, ResponseFlags, StreamInfo, Timings};
use tokio::time::Sleep;

use super::Shared;
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
        if body.is_end() { body } else { Body::stream(Sent { body, bytes: Arc::clone(&self.sent_bytes) }) }
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
        if !response.body.is_end() {
            response.body = Body::stream(Received { body: response.body.take(), log: self });
        }
    }

    /// Waits, and writes the lines that fall due.
    pub(super) async fn while_waiting<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let mut wait = pin!(wait);
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

impl Drop for TryLog {
    fn drop(&mut self) {
        self.info.end = Some(Instant::now());
        self.write(AccessLogType::UpstreamEnd);
    }
}

/// The request's body on its way to the try's host.
struct Sent {
    body: Body,
    bytes: Arc<AtomicU64>,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.bytes.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}

/// The response's body on its way from the try's host.
struct Received {
    body: Body,
    log: Box<TryLog>,
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let this = &mut *self;
        this.log.poll_tick(cx);
        let polled = this.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.log.info.bytes.body_received += frame.data_ref().map_or(0, Bytes::len) as u64;
            this.log.trailers = frame.trailers_ref().cloned();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}
