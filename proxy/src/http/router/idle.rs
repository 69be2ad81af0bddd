//! A response's body that is given up when its host says nothing for too long (`per_try_idle_timeout`).
//! It must not know what the client is told.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tidegate_filters::http::{Body, BodyError, Frame, LocalReply};
use tidegate_filters::stream_info::ResponseFlags;
use tokio::time::Sleep;

use crate::cluster::Cluster;
use crate::cluster::host::{Host, HostCounter};
use crate::http::progress::Progress;

/// The body, and the clock beside it; it runs once the request is whole.
pub(super) struct Watched {
    body: Body,
    limit: Duration,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    progress: Option<Arc<Progress>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(
        body: Body,
        limit: Duration,
        cluster: Arc<Cluster>,
        host: Arc<Host>,
        progress: Option<Arc<Progress>>,
    ) -> Self {
        Self { body, limit, cluster, host, progress, sleep: None }
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        if self.progress.as_ref().is_some_and(|progress| !progress.is_done()) {
            return Poll::Pending;
        }
        let limit = self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(sleep.as_mut().poll(cx));
        self.cluster.stats().traffic.upstream_rq_per_try_idle_timeout().inc();
        self.host.state.count(HostCounter::RequestTimeout);
        let reply = LocalReply::new(StatusCode::GATEWAY_TIMEOUT, "upstream_per_try_idle_timeout");
        Poll::Ready(BodyError::Reply(Box::new(reply.flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT))))
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self.body.poll_frame(cx) {
            Poll::Ready(frame) => {
                self.sleep = None;
                Poll::Ready(frame)
            }
            Poll::Pending => self.poll_silence(cx).map(|error| Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}
