//! Copies of a request that go elsewhere too; nobody waits for their answers (`request_mirror_policies`).
//! It must not know the request's own way.

use std::sync::Arc;
use std::time::Duration;

use tidegate_filters::http::{Body, RequestHead, StreamContext};

use super::Shared;
use super::replay::Replay;
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::lb::PickContext;
use crate::cluster::pool::{Informational, Stream, StreamRequest};
use crate::snapshot::Snapshot;

/// A copy whose answer has not ended by then is given up, where the route bounds nothing.
const UNBOUNDED: Duration = Duration::from_secs(15);

/// Starts a copy for each policy that holds for this request.
pub(super) fn send_all(
    snapshot: &Snapshot,
    shared: &Shared<'_>,
    head: &RequestHead,
    body: Option<&Replay>,
    stream: &StreamContext,
) {
    for policy in &*shared.action.mirrors {
        let runtime = shared.connection.shared.runtime();
        let Some(name) = policy.cluster(head, runtime, stream.random) else { continue };
        let Some(cluster) = snapshot.clusters.get(&*name).map(Arc::clone) else { continue };
        let mut copy = head.clone();
        policy.finalize(&mut copy, &stream.info);
        let body = match body {
            Some(body) => match body.reader() {
                Some(body) => body,
                None => continue,
            },
            None => Body::Empty,
        };
        let limit = shared.timeouts.global.unwrap_or(UNBOUNDED);
        // It ends by itself: with its answer, or with its time.
        tokio::spawn(async move {
            let _ = tokio::time::timeout(limit, send(cluster, copy, body)).await;
        });
    }
}

async fn send(cluster: Arc<Cluster>, head: RequestHead, body: Body) {
    let Some(host) = choose(&cluster) else { return };
    let informational = Informational::default();
    let request = StreamRequest {
        cluster: &cluster,
        host: &host,
        priority: RoutingPriority::Default,
        head: &head,
        downstream: head.version,
        tunnel: false,
        terminate: None,
        informational: &informational,
    };
    let Ok(stream) = Stream::open(&request).await else { return };
    let _in_flight = host.begin_request();
    let Ok(begun) = stream.send(&request, body).await else { return };
    cluster.stats().codes.count(begun.response.head.status, false);
    let mut response = begun.response.body;
    let read = async { while let Some(Ok(_)) = response.frame().await {} };
    match begun.pump {
        Some(pump) => {
            tokio::join!(read, pump);
        }
        None => read.await,
    }
}

fn choose(cluster: &Cluster) -> Option<Arc<crate::cluster::host::Host>> {
    let context = PickContext::new(cluster.next_sequence(), rand::random());
    cluster.pick(&context, None).map(|picked| picked.host)
}
