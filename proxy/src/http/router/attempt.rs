//! One try of a request: a connection, the request upwards, the response's head. It must not know whether there will be
//! another.

use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::Method;
use tidegate_filters::format::Costly;
use tidegate_filters::http::{Body, LocalReply, Request, RequestHead, StreamContext};
use tidegate_filters::stream_info::CloseType;

use super::body_begin::BodyBegin;
use super::deadline::{expires, falls_silent};
use super::measure::Measure;
use super::read_ahead::ReadAhead;
use super::upstream_log::TryLog;
use super::{Shared, UpstreamFilters, failure, handshake, host, lasting};
use crate::application_log::shown::{ResponseHeaders, Tags};
use crate::cluster::host::{Host, HostCounter};
use crate::cluster::pool::{Begun, PoolError, Stream, StreamRequest, StreamReset, Terminate};
use crate::cluster::proxied::Proxied;
use crate::http::connect_udp;
use crate::http::progress::Watched;
use crate::proxy_header::{Ends, proxy_header};

/// Why a try gave no response.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Pool(PoolError),
    /// A filter of the attempt has answered.
    Replied(Box<LocalReply>),
    Reset(StreamReset),
    PerTryTimeout,
    PerTryIdleTimeout,
    /// The cluster's limit on one stream.
    MaxStreamDuration,
}

impl Failure {
    /// Whether a byte of the request may have reached the host.
    pub(super) fn was_sent(&self) -> bool {
        !matches!(self, Self::Pool(_) | Self::Replied(_))
    }

    /// Whether it was the route's limit on one try.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::PerTryTimeout | Self::PerTryIdleTimeout)
    }

    /// Whether it is the host's: a breaker speaks for the cluster.
    pub(super) fn names_host(&self) -> bool {
        !matches!(self, Self::Pool(PoolError::Overflow | PoolError::NoPool | PoolError::Unnameable(_)))
    }
}

/// One try.
pub(super) struct Attempt<'t> {
    pub host: &'t Arc<Host>,
    pub head: &'t mut RequestHead,
    pub body: Body,
    /// Told when the try has its connection. With it, its own time is somebody else's to watch.
    pub connected: Option<&'t OnceLock<Instant>>,
    pub filters: &'t UpstreamFilters,
}

/// Sends the request through the filters that run once an attempt, if there are any.
pub(super) async fn attempt(
    shared: &Shared<'_>,
    attempt: Attempt<'_>,
    stream: &mut StreamContext,
) -> Result<Begun, Failure> {
    host::note(attempt.host, &mut stream.info.upstream);
    let own = &shared.cluster.config().upstream_filters;
    let chain = if own.0.is_empty() { &shared.connection.hcm.upstream_filters } else { own };
    if chain.0.is_empty() {
        return send(shared, attempt, stream).await;
    }
    let Attempt { host, head, body, connected, filters } = attempt;
    let mut request = Request { head: head.clone(), body };
    let filtered = filters.on_request(chain, shared.route, &mut request, stream).await;
    // What they did to the head stays for the next attempt, as in Envoy.
    head.clone_from(&request.head);
    filtered.map_err(Failure::Replied)?;
    if let Some(progress) = &shared.progress
        && !request.body.is_end()
    {
        request.body = Body::stream(Watched::new(request.body, Arc::clone(progress)));
    }
    let attempt = Attempt { host, head, body: request.body, connected, filters };
    let mut begun = send(shared, attempt, stream).await?;
    let over = begun.over.clone();
    let filtered = async { filters.on_response(&mut begun, stream).await.map_err(Failure::Replied) };
    lasting::until(over.as_ref(), &shared.cluster, pin!(filtered)).await?;
    Ok(begun)
}

/// Sends the request to one host and waits for the response's head, within the limits of this try.
async fn send(shared: &Shared<'_>, attempt: Attempt<'_>, stream: &mut StreamContext) -> Result<Begun, Failure> {
    let Attempt { host, head, body, connected, .. } = attempt;
    let mut log = TryLog::begin(shared, head, stream);
    let mut measure = Measure::begin(shared, head);
    let mut body = ReadAhead::new(body, shared.buffer_limit());
    let began = Costly::PoolWait.is_asked_for().then(Instant::now);
    let opened = {
        let request = request(shared, host, head, stream);
        body.while_waiting(pin!(Stream::open(&request))).await
    };
    let waited = began.map(|began| began.elapsed());
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            match &error {
                // A breaker speaks for the cluster, not for the host.
                PoolError::Overflow | PoolError::NoPool => host::forget(&mut stream.info.upstream),
                PoolError::Connect(reason) | PoolError::Local(reason) | PoolError::Unnameable(reason) => {
                    stream.info.upstream.transport_failure_reason =
                        Some(Arc::clone(reason)).filter(|text| !text.is_empty());
                }
                PoolError::Timeout | PoolError::OtherProtocol => {}
            }
            stream.info.upstream.close_type = Some(CloseType::Normal);
            stream.info.upstream.pool_wait = waited;
            let failure = Failure::Pool(error);
            if let Some(log) = &mut log {
                log.failed(failure::try_flag(&failure), stream);
            }
            if let Some(measure) = &mut measure {
                measure.failed();
            }
            return Err(failure);
        }
    };
    shared.account.tallies.each(|tally| tally.requests.upstream_rq_total().inc());
    host::note_connection(&opened, stream);
    let connection = || stream.info.upstream.connection_id.unwrap_or_default();
    tracing::debug!("{} pool ready: host {}, connection [C{}]", Tags::stream(stream), host.address, connection());
    stream.info.upstream.pool_wait = waited;
    if let Some(periodic) = &shared.periodic {
        periodic.note_info(stream);
    }
    let keep_original = !shared.connection.hcm.router.suppress_envoy_headers;
    shared.route.finalize_host(head, &host.hostname, keep_original);
    if shared.connection.hcm.scheme_matches_upstream {
        // Every transport to hosts is plain so far.
        head.scheme = http::HeaderValue::from_static("http");
    }
    stream.info.timings.first_upstream_tx = Some(Instant::now());
    let body_began = Costly::BodyBegin.is_asked_for().then(Arc::default);
    stream.info.upstream.body_began.clone_from(&body_began);
    let request = request(shared, host, head, stream);
    let mut body = body.into_body();
    if let Some(log) = &mut log {
        body = log.count_sent(body);
        log.connected(request.head, stream);
    }
    if let Some(measure) = &mut measure {
        body = measure.connected(request.head, body);
    }
    // Each is pinned where it is: what takes another future by value has room for it twice.
    let mut sent = {
        let sent = pin!(opened.send(&request, body));
        let within = pin!(async {
            match connected {
                Some(connected) => {
                    // Nobody else sets it.
                    let _ = connected.set(Instant::now());
                    sent.await.map_err(Failure::Reset)
                }
                None => within_limits(shared, host, sent).await,
            }
        });
        let limit = shared.cluster.config().http.max_stream_duration;
        let sent = pin!(lasting::within(limit, &shared.cluster, within));
        match log {
            Some(log) => logged(log, sent, stream).await,
            None => sent.await,
        }
    };
    match (measure, &mut sent) {
        (Some(measure), Ok(begun)) => measure.begun(begun),
        (Some(mut measure), Err(_)) => measure.failed(),
        (None, _) => {}
    }
    if let Ok(begun) = &mut sent {
        stream.info.timings.first_upstream_rx = Some(Instant::now());
        let (head, end) = (&begun.response.head, begun.response.body.is_end());
        tracing::debug!(
            "{} upstream headers complete: end_stream={end}\n{}",
            Tags::stream(stream),
            ResponseHeaders(head)
        );
        if let Some(began) = body_began {
            note_begin(begun, began);
        }
    }
    sent.and_then(|begun| handshake::check(shared.tunnel, head, begun))
}

/// What the try comes to goes into its log.
async fn logged(
    mut log: Box<TryLog>,
    sent: Pin<&mut impl Future<Output = Result<Begun, Failure>>>,
    stream: &StreamContext,
) -> Result<Begun, Failure> {
    let mut sent = log.while_waiting(sent).await;
    match &mut sent {
        Ok(begun) => log.begun(begun),
        Err(failure) => log.failed(failure::try_flag(failure), stream),
    }
    sent
}

fn request<'r>(
    shared: &'r Shared<'_>,
    host: &'r Arc<Host>,
    head: &'r RequestHead,
    stream: &'r StreamContext,
) -> StreamRequest<'r> {
    let names_clients = shared.cluster.config().transport_sockets.name_clients();
    StreamRequest {
        cluster: &shared.cluster,
        host,
        priority: shared.action.priority,
        head,
        downstream: stream.info.protocol.unwrap_or(http::Version::HTTP_11),
        state: &stream.info.filter_state,
        proxied: names_clients.then(|| Proxied::of(&stream.info.connection, None)),
        tunnel: shared.tunnel,
        terminate: terminate(shared, head, stream),
        informational: shared,
        bytes: shared.bytes.as_ref(),
        client: Some(&shared.connection.hcm.stats),
    }
}

/// Notes when the first piece of the response's body comes.
fn note_begin(begun: &mut Begun, began: Arc<OnceLock<Instant>>) {
    let body = &mut begun.response.body;
    if !body.is_end() {
        *body = Body::stream(BodyBegin { body: body.take(), began });
    }
}

/// Both limits begin once there is a connection and the request is whole.
async fn within_limits(
    shared: &Shared<'_>,
    host: &Host,
    sent: Pin<&mut impl Future<Output = Result<Begun, StreamReset>>>,
) -> Result<Begun, Failure> {
    let limits = &shared.timeouts;
    if limits.per_try.is_none() && limits.per_try_idle.is_none() {
        return sent.await.map_err(Failure::Reset);
    }
    let per_try = pin!(expires(limits.per_try, shared.progress.as_deref()));
    let idle = pin!(falls_silent(limits.per_try_idle, shared));
    let traffic = &shared.cluster.stats().traffic;
    let failure = tokio::select! {
        biased;
        sent = sent => return sent.map_err(Failure::Reset),
        () = per_try => {
            traffic.upstream_rq_per_try_timeout().inc();
            Failure::PerTryTimeout
        }
        () = idle => {
            traffic.upstream_rq_per_try_idle_timeout().inc();
            Failure::PerTryIdleTimeout
        }
    };
    host.state.count(HostCounter::RequestTimeout);
    Err(failure)
}

/// Whether the request's payload leaves HTTP here (`connect_config`), and what goes before it.
fn terminate(shared: &Shared<'_>, head: &RequestHead, stream: &StreamContext) -> Option<Terminate> {
    let config = shared.action.connect?;
    if connect_udp::is_asked(head) {
        return Some(Terminate::Udp);
    }
    let asked = head.method == Method::CONNECT || config.allow_post && head.method == Method::POST;
    let connection = &stream.info.connection;
    let header = |version| proxy_header(version, Ends::of(&connection.remote, &connection.local), &[]);
    asked.then(|| Terminate::Tcp { first: config.proxy_protocol.map(header) })
}
