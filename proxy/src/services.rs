//! What the proxy does for filters: its runtime, its health, calls to services through clusters.
//! It must not know which filter asks.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use tidegate_filters::http::body::whole;
use tidegate_filters::http::filter::{CallError, ServiceCall, Services};
use tidegate_filters::http::{Body, Request, Response, ResponseHead};
use tidegate_filters::metadata::FilterState;
use tidegate_filters::runtime::Runtime;

use crate::app::Shared;
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::codes::Sides;
use crate::cluster::host::Host;
use crate::cluster::lb::PickContext;
use crate::cluster::pool::{Begun, Informational, PoolError, Pump, Stream, StreamRequest};

/// The services of one process.
pub(crate) struct ProxyServices {
    pub(crate) shared: Weak<Shared>,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// `--service-cluster`.
    pub(crate) node_cluster: Box<str>,
}

impl ProxyServices {
    fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.shared.upgrade()?.snapshot().clusters.get(name).cloned()
    }
}

impl Services for ProxyServices {
    fn call(&self, call: ServiceCall) -> Pin<Box<dyn Future<Output = Result<Response, CallError>> + Send>> {
        let cluster = self.cluster(&call.cluster);
        Box::pin(async move {
            let cluster = cluster.ok_or(CallError::NoCluster)?;
            within(call.timeout, &cluster, send(&cluster, call.request, call.max_body_bytes)).await
        })
    }

    fn runtime(&self) -> &dyn Runtime {
        &*self.runtime
    }

    fn node_cluster(&self) -> &str {
        &self.node_cluster
    }

    fn health_check_failing(&self) -> bool {
        self.shared.upgrade().is_some_and(|shared| shared.is_health_check_failing())
    }

    fn cluster_stat_name(&self, cluster: &str) -> Option<String> {
        Some(self.cluster(cluster)?.config().observability_name().to_string())
    }

    fn cluster_members(&self, cluster: &str) -> Option<(u64, u64)> {
        let membership = self.cluster(cluster)?.hosts().membership();
        Some((membership.healthy + membership.degraded, membership.total))
    }
}

/// Waits so long for what a cluster answers.
pub(crate) async fn within<T>(
    timeout: Duration,
    cluster: &Cluster,
    answer: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| {
        cluster.stats().traffic.upstream_rq_timeout().inc();
        Err(CallError::TimedOut)
    })
}

/// Sends a request to one host of a cluster and reads all of its response, but for trailers.
pub(crate) async fn fetch(
    cluster: &Arc<Cluster>,
    request: Request,
    max_body_bytes: usize,
) -> Result<(ResponseHead, Bytes), CallError> {
    let begun = begin(cluster, request).await?;
    let (data, _) = read(begun.response.body, begun.pump, max_body_bytes).await?;
    Ok((begun.response.head, data))
}

/// Sends a request to one host of a cluster and reads all of its response.
async fn send(cluster: &Arc<Cluster>, request: Request, max_body_bytes: usize) -> Result<Response, CallError> {
    let begun = begin(cluster, request).await?;
    let (data, trailers) = read(begun.response.body, begun.pump, max_body_bytes).await?;
    Ok(Response { head: begun.response.head, body: whole(data, trailers) })
}

/// Sends a request to one host of a cluster, as an attempt of a route would, and waits for the response's head.
pub(crate) async fn begin(cluster: &Arc<Cluster>, request: Request) -> Result<Begun, CallError> {
    let Some(host) = choose(cluster) else {
        cluster.stats().traffic.upstream_cx_none_healthy().inc();
        return Err(CallError::NoHost);
    };
    let Request { mut head, body } = request;
    if let Some(length) = body.exact_len() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    let informational = Informational::default();
    let request = StreamRequest {
        cluster,
        host: &host,
        priority: RoutingPriority::Default,
        head: &head,
        proxied: None,
        downstream: head.version,
        state: &FilterState::default(),
        tunnel: false,
        terminate: None,
        informational: &informational,
        bytes: None,
        client: None,
    };
    let stream = Stream::open(&request).await.map_err(|error| match error {
        PoolError::Overflow | PoolError::NoPool => CallError::NoHost,
        PoolError::Connect(_)
        | PoolError::Local(_)
        | PoolError::Unnameable(_)
        | PoolError::Timeout
        | PoolError::OtherProtocol => CallError::Reset(error.to_string()),
    })?;
    let begun = stream.send(&request, body).await.map_err(|reset| CallError::Reset(format!("{reset:?}")))?;
    let traffic = &cluster.stats().traffic;
    traffic.upstream_rq_completed().inc();
    cluster
        .stats()
        .codes
        .count(begun.response.head.status, Sides { internal: true, zone: &host.locality.zone, ..Sides::default() });
    Ok(begun)
}

fn choose(cluster: &Cluster) -> Option<Arc<Host>> {
    let context = PickContext::new(cluster.next_sequence(), rand::random());
    cluster.pick(&context, None).map(|picked| picked.host)
}

/// All of a body, while what is left of the request goes up.
async fn read(
    mut body: Body,
    mut pump: Option<Pump>,
    max_bytes: usize,
) -> Result<(Bytes, Option<HeaderMap>), CallError> {
    let mut data = BytesMut::new();
    loop {
        let frame = std::future::poll_fn(|cx| {
            if let Some(running) = &mut pump
                && running.as_mut().poll(cx).is_ready()
            {
                pump = None;
            }
            body.poll_frame(cx)
        })
        .await;
        match frame {
            None => return Ok((data.freeze(), None)),
            Some(Err(error)) => return Err(CallError::Reset(error.to_string())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) if data.len() + piece.len() > max_bytes => return Err(CallError::TooLong(max_bytes)),
                Ok(piece) => data.extend_from_slice(&piece),
                Err(frame) => return Ok((data.freeze(), frame.into_trailers().ok())),
            },
        }
    }
}
