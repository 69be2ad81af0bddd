//! A try that may last only so long (`max_stream_duration` of a cluster's HTTP options). From the response's head on the
//! stream's own timers watch it. It must not know whether there will be another.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body::SizeHint;
use tidegate_filters::http::{Body, BodyError, Frame, LocalReply};
use tidegate_filters::stream_info::ResponseFlags;

use super::attempt::Failure;
use crate::cluster::Cluster;
use crate::cluster::pool::Begun;
use crate::http::limits::TryLimit;

/// Waits for the response within the limit, which goes on for its body.
pub(super) async fn within(
    limit: Option<Duration>,
    cluster: &Cluster,
    sent: Pin<&mut impl Future<Output = Result<Begun, Failure>>>,
) -> Result<Begun, Failure> {
    let over = limit.and_then(|limit| Instant::now().checked_add(limit)).map(TryLimit::new);
    let mut begun = until(over.as_ref(), cluster, sent).await?;
    // A body that is whole needs no more time of the host.
    if let Some(over) = over.filter(|_| matches!(begun.response.body, Body::Stream(_))) {
        begun.response.body = Lasting::wrap(begun.response.body.take(), over.clone());
        begun.over = Some(over);
    }
    Ok(begun)
}

/// Waits for what belongs to a try until that is over.
pub(super) async fn until<T>(
    over: Option<&TryLimit>,
    cluster: &Cluster,
    mut wait: Pin<&mut impl Future<Output = Result<T, Failure>>>,
) -> Result<T, Failure> {
    let Some(over) = over else { return wait.await };
    tokio::select! {
        biased;
        done = &mut wait => return done,
        () = tokio::time::sleep_until(over.at.into()) => {}
    }
    if over.is_met() {
        return wait.await;
    }
    count_max_stream_duration(cluster);
    Err(Failure::MaxStreamDuration)
}

/// A body that tells when all of it has come: who holds it back from there on has the time that he needs.
struct Lasting {
    body: Body,
    over: TryLimit,
}

impl Lasting {
    fn wrap(body: Body, over: TryLimit) -> Body {
        let this = Self { body, over };
        this.look();
        Body::stream(this)
    }

    fn look(&self) {
        if self.body.is_end() {
            self.over.meet();
        }
    }
}

impl http_body::Body for Lasting {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let frame = ready!(self.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) if frame.is_data() => self.look(),
            // Trailers, the end, or a failure.
            _ => self.over.meet(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}

/// What the client is told. `whole`: the request was with the proxy by then.
pub(crate) fn max_stream_duration_reply(whole: bool) -> LocalReply {
    let status = if whole { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
    let reply = LocalReply::new(status, "upstream_max_stream_duration_reached");
    reply.body("upstream max stream duration reached").flag(ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED)
}

pub(crate) fn count_max_stream_duration(cluster: &Cluster) {
    cluster.stats().traffic.upstream_rq_max_duration_reached().inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_came_in_time_may_be_taken_later() {
        let over = TryLimit::new(Instant::now());
        let mut body = Lasting::wrap(Body::full("abc"), over.clone());
        assert!(!over.is_met());
        body.frame().await.unwrap().unwrap();
        assert!(over.is_met() && body.is_end());
        let over = TryLimit::new(Instant::now());
        assert!(Lasting::wrap(Body::Empty, over.clone()).is_end() && over.is_met());
    }
}
