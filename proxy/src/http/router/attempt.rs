//! One try of a request: a host, a connection, the response's head. It must not know whether there will be another.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use tidegate_filters::http::{Body, LocalReply, Request, RequestHead, StreamContext};

use super::{Deadline, Shared, Tried, expires};
use crate::cluster::host::{Host, HostCounter};
use crate::cluster::lb::{MetadataMatch, PickContext};
use crate::cluster::pool::{PoolError, Stream, StreamRequest, StreamReset, Terminate};
use crate::http::progress::Watched;
use crate::route::HostPredicate;

/// Why a try gave no response.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    NoHealthyHost,
    Pool(PoolError),
    Reset(StreamReset),
    PerTryTimeout,
    /// An upstream filter answers instead.
    Replied(Box<LocalReply>),
}

/// Sends the request to one host and waits for the response's head, within the limits of this try and of all.
pub(super) async fn attempt(
    shared: &Shared<'_>,
    head: &mut RequestHead,
    body: Body,
    tried: &[Arc<Host>],
    global: Pin<&mut (impl Deadline + ?Sized)>,
    stream: &mut StreamContext,
) -> Tried {
    let cluster = &shared.cluster;
    let Some(host) = choose_host(shared, tried) else {
        cluster.stats().traffic.upstream_cx_none_healthy().inc();
        return Tried::Failed(Failure::NoHealthyHost, None);
    };
    note_host(&host, stream);
    let keep_original = !shared.connection.hcm.router.suppress_envoy_headers;
    shared.route.finalize_host(head, &host.hostname, keep_original);
    let per_try = pin!(expires(shared.timeouts.per_try, shared.progress.as_deref()));
    let outcome = tokio::select! {
        biased;
        outcome = send_filtered(shared, &host, head, body, stream) => outcome,
        () = global => return Tried::TimedOut(Some(host)),
        () = per_try => {
            cluster.stats().traffic.upstream_rq_per_try_timeout().inc();
            host.state.count(HostCounter::RequestTimeout);
            Err(Failure::PerTryTimeout)
        }
    };
    match outcome {
        Ok(begun) => Tried::Response(Box::new(begun), host),
        Err(failure) => Tried::Failed(failure, Some(host)),
    }
}

/// Sends the request through the filters that run once an attempt, if there are any.
async fn send_filtered(
    shared: &Shared<'_>,
    host: &Arc<Host>,
    head: &mut RequestHead,
    body: Body,
    stream: &mut StreamContext,
) -> Result<crate::cluster::pool::Begun, Failure> {
    let own = &shared.cluster.config().upstream_filters;
    let chain = if own.0.is_empty() { &shared.connection.hcm.upstream_filters } else { own };
    if chain.0.is_empty() {
        return send(shared, host, head, body, stream).await;
    }
    let mut request = Request { head: head.clone(), body };
    let filters = shared.upstream_filters;
    let filtered = filters.on_request(chain, shared.route, &mut request, stream).await;
    // What they did to the head stays for the next attempt, as in Envoy.
    head.clone_from(&request.head);
    filtered.map_err(Failure::Replied)?;
    if let Some(progress) = &shared.progress
        && !request.body.is_end()
    {
        request.body = Body::stream(Watched::new(request.body, Arc::clone(progress)));
    }
    let mut begun = send(shared, host, head, request.body, stream).await?;
    filters.on_response(&mut begun, stream).await.map_err(Failure::Replied)?;
    Ok(begun)
}

async fn send(
    shared: &Shared<'_>,
    host: &Arc<Host>,
    head: &RequestHead,
    body: Body,
    stream: &mut StreamContext,
) -> Result<crate::cluster::pool::Begun, Failure> {
    let request = StreamRequest {
        cluster: &shared.cluster,
        host,
        priority: shared.action.priority,
        head,
        downstream: stream.info.protocol.unwrap_or(http::Version::HTTP_11),
        tunnel: shared.tunnel,
        terminate: terminate(shared, head, stream),
        informational: &shared.informational,
    };
    let opened = match Stream::open(&request).await {
        Ok(opened) => opened,
        Err(error) => {
            if let PoolError::Connect(reason) = &error {
                stream.info.upstream.transport_failure_reason = Some(Arc::clone(reason));
            }
            return Err(Failure::Pool(error));
        }
    };
    note_connection(&opened, stream);
    if let Some(periodic) = &shared.periodic {
        periodic.note_info(stream);
    }
    let _in_flight = host.begin_request();
    stream.info.timings.first_upstream_tx = Some(Instant::now());
    let outcome = opened.send(&request, body).await;
    count_informational(shared, stream);
    match outcome {
        Ok(begun) => {
            stream.info.timings.first_upstream_rx = Some(Instant::now());
            let error = begun.response.head.status.is_server_error();
            host.state.count(if error { HostCounter::RequestError } else { HostCounter::RequestSuccess });
            Ok(begun)
        }
        Err(reset) => {
            host.state.count(HostCounter::RequestError);
            shared.cluster.stats().traffic.upstream_rq_rx_reset().inc();
            Err(Failure::Reset(reset))
        }
    }
}

/// An informational response is a response too.
fn count_informational(shared: &Shared<'_>, stream: &StreamContext) {
    let stats = shared.cluster.stats();
    if let Some(status) = shared.informational.take_status() {
        stats.traffic.upstream_rq_completed().inc();
        stats.codes.count(status, stream.info.internal_request);
    }
}

/// Whether the request's payload leaves HTTP here (`connect_config`), and what goes before it.
fn terminate(shared: &Shared<'_>, head: &RequestHead, stream: &StreamContext) -> Option<Terminate> {
    let config = shared.action.terminates(&head.method)?;
    let connection = &stream.info.connection;
    let header = |version| crate::tcp::proxy_header(version, &connection.remote, &connection.local);
    Some(Terminate { first: config.proxy_protocol.map(header) })
}

fn choose_host(shared: &Shared<'_>, tried: &[Arc<Host>]) -> Option<Arc<Host>> {
    let policy = &shared.action.retry;
    let unwanted = |host: &Host| {
        policy.host_predicates.iter().any(|predicate| match predicate {
            HostPredicate::Previous => tried.iter().any(|before| before.state.id == host.state.id),
            HostPredicate::Canary => host.canary,
            HostPredicate::Metadata(wanted) => host
                .metadata
                .namespace("envoy.lb")
                .is_some_and(|metadata| wanted.iter().all(|(key, value)| metadata.get(key) == Some(value))),
        })
    };
    let mut context = PickContext::new(shared.cluster.next_sequence(), rand::random());
    context.hash = shared.hash;
    if !tried.is_empty() && !policy.host_predicates.is_empty() {
        context.excluded = Some(&unwanted);
        context.retries = policy.host_attempts;
    }
    let cluster = &shared.cluster;
    let divided = cluster.config().balancing.subsets.is_some();
    let wanted = shared.route.metadata_match().filter(|_| divided).map(|wanted| MetadataMatch::new(&wanted.0));
    context.metadata_match = wanted.as_ref();
    let priorities = tried.iter().map(|host| host.priority);
    let loads = policy.priority.and_then(|previous| cluster.hosts().loads_after(priorities, previous.update_frequency));
    context.priority_loads = loads.as_ref();
    cluster.pick(&context, None).map(|picked| picked.host)
}

fn note_host(host: &Arc<Host>, stream: &mut StreamContext) {
    let upstream = &mut stream.info.upstream;
    upstream.host = Some(host.address.clone());
    upstream.host_name = Some(Arc::clone(&host.hostname));
    upstream.locality = Some(Arc::clone(&host.locality));
    upstream.host_metadata = Some(Arc::clone(&host.metadata));
    upstream.attempts += 1;
}

fn note_connection(opened: &Stream, stream: &mut StreamContext) {
    let facts = opened.facts();
    let upstream = &mut stream.info.upstream;
    upstream.local_address.clone_from(&facts.local);
    upstream.connection_id = Some(facts.id);
    upstream.protocol = (!matches!(opened, Stream::Tcp(_))).then_some(facts.protocol);
    stream.info.timings.upstream_connect_start = Some(facts.connect_start);
    stream.info.timings.upstream_connect_complete = Some(facts.connected);
}
