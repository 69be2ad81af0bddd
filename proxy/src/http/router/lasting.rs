//! A try that may last only so long (`max_stream_duration` of a cluster's HTTP options), its response's body included.
//! It must not know whether there will be another.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tidegate_filters::http::{Body, BodyError, Frame, LocalReply};
use tidegate_filters::stream_info::ResponseFlags;
use tokio::time::Sleep;

use super::attempt::Failure;
use crate::cluster::Cluster;
use crate::cluster::pool::Begun;

/// What the client is told.
const DETAILS: &str = "upstream_max_stream_duration_reached";

/// Waits for the response within the limit, which goes on for its body.
pub(super) async fn within(
    limit: Option<Duration>,
    cluster: &Arc<Cluster>,
    sent: impl Future<Output = Result<Begun, Failure>>,
) -> Result<Begun, Failure> {
    let Some(limit) = limit else { return sent.await };
    let mut sleep = Box::pin(tokio::time::sleep(limit));
    let mut begun = tokio::select! {
        biased;
        sent = sent => sent?,
        () = &mut sleep => {
            count(cluster);
            return Err(Failure::MaxStreamDuration);
        }
    };
    let body = &mut begun.response.body;
    if !body.is_end() {
        *body = Body::stream(Lasting { body: body.take(), sleep, cluster: Arc::clone(cluster) });
    }
    Ok(begun)
}

/// The reply where no response has begun. `whole`: the request was with the proxy by then.
pub(super) fn reply(whole: bool) -> LocalReply {
    let status = if whole { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
    let reply = LocalReply::new(status, DETAILS).body("upstream max stream duration reached");
    reply.flag(ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED)
}

fn count(cluster: &Cluster) {
    cluster.stats().traffic.upstream_rq_max_duration_reached().inc();
}

/// A body, and the clock beside it.
struct Lasting {
    body: Body,
    sleep: Pin<Box<Sleep>>,
    cluster: Arc<Cluster>,
}

impl http_body::Body for Lasting {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        // First: a host that always has more to say has no more time than others.
        if self.sleep.as_mut().poll(cx).is_ready() {
            count(&self.cluster);
            return Poll::Ready(Some(Err(BodyError::Reply(Box::new(reply(true))))));
        }
        self.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}
