//! Copies of a request that go elsewhere too; nobody waits for their answers (`request_mirror_policies`).
//! It must not know the request's own way.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tidegate_filters::http::{Body, RequestHead, ResponseHead, StreamContext};
use tidegate_filters::metadata::FilterState;

use super::Shared;
use super::charge::{Account, is_canary};
use super::replay::Replay;
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::host::{Host, HostCounter};
use crate::cluster::lb::PickContext;
use crate::cluster::pool::{OnInformational, Stream, StreamRequest, StreamReset};
use crate::http::headers::{X_ENVOY_INTERNAL, X_FORWARDED_FOR};
use crate::http::request_headers::{append_to_list, ip_value};
use crate::route::Tallies;
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
    for policy in shared.mirrors() {
        let runtime = shared.connection.shared.runtime();
        let Some(name) = policy.cluster(head, runtime, stream.random) else { continue };
        let Some(cluster) = snapshot.clusters.get(&*name).map(Arc::clone) else { continue };
        let mut copy = head.clone();
        policy.finalize(&mut copy, &stream.info);
        come_from_us(&mut copy, shared.connection.shared.node_address());
        let body = match body {
            Some(body) => match body.reader() {
                Some(body) => body,
                None => continue,
            },
            None => Body::Empty,
        };
        shared.connection.shared.own_requests().rq_total().inc();
        let limit = shared.timeouts.global.unwrap_or(UNBOUNDED);
        // Who mirrors is one of us, whoever the client is.
        let account = Account {
            cluster,
            internal: true,
            alternative: None,
            tallies: Tallies::default(),
            ..shared.account.clone()
        };
        // It ends by itself: with its answer, or with its time.
        tokio::spawn(async move {
            if tokio::time::timeout(limit, send(&account, copy, body)).await.is_err() {
                account.cluster.stats().traffic.upstream_rq_timeout().inc();
                account.abort(StatusCode::GATEWAY_TIMEOUT, None);
            }
        });
    }
}

/// The proxy itself sends the copy, and says so.
fn come_from_us(head: &mut RequestHead, node: Option<IpAddr>) {
    head.headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    if let Some(node) = node {
        append_to_list(&mut head.headers, X_FORWARDED_FOR, &ip_value(node));
    }
}

/// Nobody is told of a copy's informational responses.
struct Nobody;

impl OnInformational for Nobody {
    fn informational(&self, _: ResponseHead) -> Result<(), StreamReset> {
        Ok(())
    }
}

async fn send(account: &Account, head: RequestHead, body: Body) {
    let cluster = &account.cluster;
    let Some(host) = choose(cluster) else {
        cluster.stats().traffic.upstream_cx_none_healthy().inc();
        return account.code(StatusCode::SERVICE_UNAVAILABLE, false, None);
    };
    let request = StreamRequest {
        cluster,
        host: &host,
        priority: RoutingPriority::Default,
        head: &head,
        downstream: head.version,
        state: &FilterState::default(),
        proxied: None,
        tunnel: false,
        terminate: None,
        informational: &Nobody,
        bytes: None,
        client: None,
    };
    let begun = match Stream::open(&request).await {
        Ok(stream) => stream.send(&request, body).await.ok(),
        Err(_) => None,
    };
    let Some(begun) = begun else { return account.abort(StatusCode::SERVICE_UNAVAILABLE, Some(&host)) };
    let status = begun.response.head.status;
    account.code(status, is_canary(&begun.response.head.headers, &host), Some(&host));
    if !status.is_server_error() {
        host.state.count(HostCounter::RequestSuccess);
    }
    let mut response = begun.response.body;
    let read = async { while let Some(Ok(_)) = response.frame().await {} };
    match begun.pump {
        Some(pump) => {
            tokio::join!(read, pump);
        }
        None => read.await,
    }
}

fn choose(cluster: &Cluster) -> Option<Arc<Host>> {
    let context = PickContext::new(cluster.next_sequence(), rand::random());
    cluster.pick(&context, None).map(|picked| picked.host)
}
