//! A try that may last only so long (`max_stream_duration` of a cluster's HTTP options). From the response's head on the
//! stream's own timers watch it. It must not know whether there will be another.

use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use http::StatusCode;
use tidegate_filters::http::LocalReply;
use tidegate_filters::stream_info::ResponseFlags;

use super::attempt::Failure;
use crate::cluster::Cluster;
use crate::cluster::pool::Begun;

/// Waits for the response within the limit, which goes on for its body.
pub(super) async fn within(
    limit: Option<Duration>,
    cluster: &Cluster,
    sent: impl Future<Output = Result<Begun, Failure>>,
) -> Result<Begun, Failure> {
    let over = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut begun = until(over, cluster, pin!(sent)).await?;
    begun.over = over.filter(|_| !begun.response.body.is_end());
    Ok(begun)
}

/// Waits for what belongs to a try until that is over.
pub(super) async fn until<T>(
    over: Option<Instant>,
    cluster: &Cluster,
    wait: Pin<&mut impl Future<Output = Result<T, Failure>>>,
) -> Result<T, Failure> {
    let Some(over) = over else { return wait.await };
    tokio::select! {
        biased;
        done = wait => done,
        () = tokio::time::sleep_until(over.into()) => {
            count_max_stream_duration(cluster);
            Err(Failure::MaxStreamDuration)
        }
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
