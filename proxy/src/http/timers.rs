//! The limits on one stream, the connection manager's, the route's and the cluster's, watched while it runs.
//! It must not know what becomes of a stream whose time is over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::access_logs::{Periodic, Ticker};
use super::limits::Limits;
use super::options::HttpConnectionManager;
use super::progress::Progress;

/// Which limit ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    StreamIdle,
    Request,
    Duration,
    /// The route's timeout, once the response has begun.
    Response,
    /// The cluster's limit on the try that answers (`max_stream_duration`).
    Answer,
}

/// The limits on one stream, behind one timer that is armed when somebody first waits.
pub(super) struct Timers<'a> {
    start: Instant,
    limits: &'a Limits,
    last_activity: Instant,
    request: Option<Duration>,
    /// How long the response may take from the end of the request on, which is not before this moment.
    response: Option<(Instant, Duration)>,
    pub(super) progress: Option<Arc<Progress>>,
    /// The version of the limits that `sleep` was armed for.
    armed_for: u32,
    armed_received: bool,
    sleep: Option<Pin<Box<Sleep>>>,
    /// No limit, but what else happens to a stream as time passes.
    ticker: Option<Ticker>,
}

impl<'a> Timers<'a> {
    /// `start` is when the request's head was whole; `progress` how far its body has come.
    pub(super) fn new(
        hcm: &HttpConnectionManager,
        limits: &'a Limits,
        start: Instant,
        progress: Option<Arc<Progress>>,
        periodic: Option<Arc<Periodic>>,
    ) -> Self {
        Self {
            start,
            limits,
            last_activity: start,
            request: hcm.timeouts.request.filter(|_| progress.is_some()),
            armed_for: 0,
            armed_received: false,
            response: None,
            progress,
            sleep: None,
            ticker: periodic.map(Ticker::new),
        }
    }

    pub(super) fn touch(&mut self) {
        if self.limits.idle().is_some() {
            self.last_activity = Instant::now();
        }
    }

    /// So many bytes of the response's body went to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        if let Some(ticker) = &mut self.ticker {
            ticker.sent_bytes += bytes as u64;
        }
    }

    pub(super) fn set_response_limit(&mut self, limit: Option<(Instant, Duration)>) {
        self.response = limit;
        self.sleep = None;
    }

    fn is_received(&self) -> bool {
        self.progress.as_ref().is_none_or(|progress| progress.is_done())
    }

    fn response_deadline(&self) -> Option<Instant> {
        let (since, limit) = self.response.filter(|_| self.is_received())?;
        Some(self.progress.as_ref().map_or(since, |progress| progress.last().max(since)) + limit)
    }

    /// The next limit and when it runs out.
    fn next(&self) -> Option<(Instant, Limit)> {
        let active =
            self.progress.as_ref().map_or(self.last_activity, |progress| self.last_activity.max(progress.last()));
        [
            self.limits.idle().map(|idle| (active + idle, Limit::StreamIdle)),
            self.request.filter(|_| !self.is_received()).map(|limit| (self.start + limit, Limit::Request)),
            self.limits.duration().map(|limit| (self.start + limit, Limit::Duration)),
            self.response_deadline().map(|deadline| (deadline, Limit::Response)),
            self.limits.answer().map(|over| (over, Limit::Answer)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Limit> {
        if let Some(ticker) = &mut self.ticker {
            ticker.poll(cx);
        }
        let version = self.limits.version();
        let received = self.is_received();
        if version != self.armed_for || received != self.armed_received {
            (self.armed_for, self.armed_received, self.sleep) = (version, received, None);
        }
        loop {
            if self.sleep.is_none() {
                let Some((at, _)) = self.next() else { return Poll::Pending };
                self.sleep = Some(Box::pin(tokio::time::sleep_until(at.into())));
            }
            let Some(sleep) = &mut self.sleep else { return Poll::Pending };
            std::task::ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
            // What was awaited may have moved on: only a limit that has really passed counts.
            if let Some((at, limit)) = self.next()
                && at <= Instant::now()
            {
                return Poll::Ready(limit);
            }
        }
    }
}
