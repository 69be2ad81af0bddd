//! HTTP/2 to hosts: many streams on a connection, as many connections as their limits ask for.
//! It must not know retries; the `h2` crate speaks the protocol.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{Method, Uri};
use parking_lot::Mutex;
use tidegate_filters::http::{Body, BodyError, RequestHead, Response, ResponseHead};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connect;
use super::h2_upload::Upload;
use super::{
    Active, Begun, ConnectionFacts, Open, POOLS, Pending, PoolError, Pump, StreamRequest, StreamReset, Waiters,
    connection_permit, count_connect_failure, ensure_sweeper,
};
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::host::Host;
use crate::cluster::options::HttpProtocol;
use crate::http::codec::h2::{fields_bytes, list_limit};
use crate::http::codec::keepalive;
use crate::http::codec::metered::{CountBytes, Metered};
use crate::http::protocol::Http2Options;

/// A connection that carries many requests.
struct Connection {
    sender: SendRequest<Bytes>,
    facts: ConnectionFacts,
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// What a connection's streams and its task share.
struct Shared {
    active: AtomicUsize,
    opened: AtomicU64,
    /// No new streams: GOAWAY, an error, or its time is over.
    closing: AtomicBool,
    /// Told of a stream that is opened after long idleness.
    woken: Notify,
    idle_since: Mutex<Instant>,
    started: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Streams that run keep the connection's task alive; without any it ends now.
        if self.shared.active.load(Relaxed) == 0 {
            self.task.abort();
        }
    }
}

/// The bytes of a cluster's connections.
struct UpstreamBytes(Arc<Cluster>);

impl CountBytes for UpstreamBytes {
    fn received(&self, bytes: usize) {
        self.0.stats().traffic.upstream_cx_rx_bytes_total().add(bytes as u64);
    }

    fn sent(&self, bytes: usize) {
        self.0.stats().traffic.upstream_cx_tx_bytes_total().add(bytes as u64);
    }
}

/// The connections of one worker to one host at one priority.
pub(super) struct Pool {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    priority: RoutingPriority,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: Vec<Arc<Connection>>,
    waiters: Waiters<Arc<Connection>>,
    connecting: bool,
}

impl Pool {
    /// Closes what is idle too long, dead, or of a host that is gone; false when the pool itself is of no more use.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let http = &self.cluster.config().http;
        let removed = self.host.state.is_removed();
        let mut state = self.state.lock();
        let traffic = &self.cluster.stats().traffic;
        state.connections.retain(|connection| {
            let shared = &connection.shared;
            let idle = shared.active.load(Relaxed) == 0;
            if removed || shared.closing.load(Relaxed) {
                return !idle;
            }
            let expired =
                idle && http.idle_timeout.is_some_and(|limit| now.duration_since(*shared.idle_since.lock()) >= limit);
            if expired {
                traffic.upstream_cx_idle_timeout().inc();
            }
            if http.max_connection_duration.is_some_and(|most| shared.started.elapsed() >= most) {
                traffic.upstream_cx_max_duration_reached().inc();
                shared.closing.store(true, Relaxed);
            }
            !expired
        });
        !(removed && state.connections.is_empty() && !state.connecting && state.waiters.len() == 0)
    }

    /// A connection with room for one more stream.
    fn with_room(&self) -> Option<Arc<Connection>> {
        let http = &self.cluster.config().http;
        let state = self.state.lock();
        let usable = state.connections.iter().find(|connection| {
            let shared = &connection.shared;
            let worn =
                http.max_requests_per_connection.is_some_and(|most| shared.opened.load(Relaxed) >= u64::from(most));
            if worn && !shared.closing.swap(true, Relaxed) {
                self.cluster.stats().traffic.upstream_cx_max_requests().inc();
            }
            let most = connection
                .sender
                .current_max_send_streams()
                .min(options(&self.cluster).max_concurrent_streams as usize);
            !shared.closing.load(Relaxed) && shared.active.load(Relaxed) < most
        });
        usable.cloned()
    }
}

/// Starts a connection for those who wait, unless one is being made.
fn grow(pool: &Arc<Pool>) {
    let permit = {
        let mut state = pool.state.lock();
        if state.connecting || state.waiters.len() == 0 {
            return;
        }
        let first = state.connections.is_empty();
        let Some(permit) = connection_permit(&pool.cluster, &pool.host, pool.priority, first) else { return };
        state.connecting = true;
        permit
    };
    let open = Open::new(&pool.cluster, &pool.host, permit);
    pool.cluster.stats().traffic.upstream_cx_http2_total().inc();
    let pool = Arc::clone(pool);
    tokio::spawn(async move {
        let made = make(&pool, open).await;
        let mut state = pool.state.lock();
        state.connecting = false;
        match made {
            Ok(connection) => {
                state.connections.push(Arc::clone(&connection));
                let most = connection.sender.current_max_send_streams();
                for _ in 0..most {
                    if state.waiters.serve(Arc::clone(&connection)).is_some() {
                        break;
                    }
                }
            }
            Err(error) => state.waiters.fail(&error),
        }
        drop(state);
        grow(&pool);
    });
}

async fn make(pool: &Arc<Pool>, mut open: Open) -> Result<Arc<Connection>, PoolError> {
    let (transport, mut facts) = match connect::connect(&pool.cluster, &pool.host).await {
        Ok(connected) => connected,
        Err(error) => {
            drop(open);
            return Err(count_connect_failure(&pool.cluster, &pool.host, &error));
        }
    };
    facts.protocol = http::Version::HTTP_2;
    let settings = options(&pool.cluster);
    let bytes = UpstreamBytes(Arc::clone(&pool.cluster));
    let (transport, meter) = Metered::new(transport, bytes, settings.floods, false);
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(settings.initial_stream_window_bytes)
        .initial_connection_window_size(settings.initial_connection_window_bytes)
        .header_table_size(settings.header_table_bytes)
        .max_concurrent_streams(0)
        .initial_max_send_streams(settings.max_concurrent_streams.min(100) as usize)
        .max_header_list_size(list_limit(max_headers_bytes(&pool.cluster)))
        .max_send_buffer_size(pool.cluster.config().buffer_limit_bytes as usize)
        .handshake::<_, Bytes>(transport);
    let (sender, mut connection) = match handshake.await {
        Ok(made) => made,
        Err(error) => return Err(PoolError::Connect(error.to_string().into())),
    };
    let shared = Arc::new(Shared {
        active: AtomicUsize::new(0),
        opened: AtomicU64::new(0),
        closing: AtomicBool::new(false),
        woken: Notify::new(),
        idle_since: Mutex::new(Instant::now()),
        started: Instant::now(),
    });
    let ping = connection.ping_pong();
    let watched = Arc::clone(&shared);
    let keepalive = settings.keepalive;
    let task = tokio::spawn(async move {
        let cluster = Arc::clone(&open.cluster);
        let stats = cluster.stats();
        tokio::select! {
            result = connection => {
                if let Err(error) = result {
                    tracing::debug!(%error, "HTTP/2 connection to a host failed");
                }
                open.remote = true;
            }
            flood = meter.flooded() => {
                stats.traffic.upstream_cx_protocol_error().inc();
                stats.codec.http2().count_flood(flood);
            }
            () = keepalive::watch(ping, keepalive, &watched.woken) => stats.codec.http2().keepalive_timeout().inc(),
        }
        open.requests = u32::try_from(watched.opened.load(Relaxed)).unwrap_or(u32::MAX);
        open.busy = watched.active.load(Relaxed) > 0;
        watched.closing.store(true, Relaxed);
        drop(open);
    });
    Ok(Arc::new(Connection { sender, facts, shared, task: task.abort_handle() }))
}

fn options(cluster: &Cluster) -> Http2Options {
    match cluster.config().http.protocol {
        HttpProtocol::Http2(options) | HttpProtocol::Downstream(_, options) => options,
        HttpProtocol::Http1(_) => Http2Options::default(),
    }
}

/// A place for one stream on a connection.
pub(crate) struct Lease {
    sender: SendRequest<Bytes>,
    facts: ConnectionFacts,
    stream: StreamGuard,
}

/// Counts a stream until it is over, and how it ended.
struct StreamGuard {
    connection: Arc<Connection>,
    pool: Arc<Pool>,
    _active: Active,
    /// Whether all of the request is with the host; absent before anything is.
    uploaded: Option<Arc<AtomicBool>>,
    /// All of the response came, or the host has reset the stream.
    over: bool,
}

impl StreamGuard {
    /// The stream failed; what is left of it needs no reset any more (Envoy's `onStreamReset`).
    fn failed(&mut self, error: &h2::Error) {
        let traffic = &self.pool.cluster.stats().traffic;
        let remote_reset = error.is_reset() && error.is_remote();
        match error.reason() {
            _ if error.is_go_away() && error.is_remote() => {}
            Some(Reason::REFUSED_STREAM) if remote_reset => {}
            Some(_) if remote_reset => traffic.upstream_rq_rx_reset().inc(),
            // Ours, counted when it is dropped.
            Some(_) if !error.is_remote() => return,
            _ => traffic.upstream_rq_pending_failure_eject().inc(),
        }
        self.settled();
    }

    /// How it ended is counted.
    fn settled(&mut self) {
        self.uploaded = None;
        self.over = true;
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let unfinished = self.uploaded.as_ref().is_some_and(|uploaded| !self.over || !uploaded.load(Relaxed));
        if unfinished {
            self.pool.cluster.stats().traffic.upstream_rq_tx_reset().inc();
        }
        let shared = &self.connection.shared;
        *shared.idle_since.lock() = Instant::now();
        let last = shared.active.fetch_sub(1, Relaxed) == 1;
        if last && shared.closing.load(Relaxed) {
            self.pool.state.lock().connections.retain(|connection| !Arc::ptr_eq(connection, &self.connection));
        }
        let mut state = self.pool.state.lock();
        if !shared.closing.load(Relaxed) && state.waiters.len() > 0 {
            // Nobody waits any more if it comes back; the connection stays in the pool either way.
            let _ = state.waiters.serve(Arc::clone(&self.connection));
        }
    }
}

impl Lease {
    pub(super) fn facts(&self) -> &ConnectionFacts {
        &self.facts
    }

    fn new(connection: Arc<Connection>, pool: Arc<Pool>, active: Active) -> Self {
        let shared = &connection.shared;
        let rested = options(&pool.cluster).keepalive.and_then(|rules| rules.idle_interval);
        if shared.active.fetch_add(1, Relaxed) == 0
            && rested
                .is_some_and(|rested| shared.opened.load(Relaxed) > 0 && shared.idle_since.lock().elapsed() >= rested)
        {
            shared.woken.notify_one();
        }
        connection.shared.opened.fetch_add(1, Relaxed);
        let (sender, facts) = (connection.sender.clone(), connection.facts.clone());
        Self { sender, facts, stream: StreamGuard { connection, pool, _active: active, uploaded: None, over: false } }
    }
}

fn pool_of(request: &StreamRequest<'_>) -> Arc<Pool> {
    POOLS.with_borrow_mut(|pools| {
        ensure_sweeper(pools);
        let key = (request.host.state.id, request.priority);
        let pool = pools.h2.entry(key).or_insert_with(|| {
            Arc::new(Pool {
                cluster: Arc::clone(request.cluster),
                host: Arc::clone(request.host),
                priority: request.priority,
                state: Mutex::default(),
            })
        });
        Arc::clone(pool)
    })
}

/// A place on a connection with room, or on the next that is made.
pub(super) async fn open(request: &StreamRequest<'_>) -> Result<Lease, PoolError> {
    let pool = pool_of(request);
    let connection = match pool.with_room() {
        Some(connection) => connection,
        None => {
            let pending = Pending::begin(request.cluster, request.host, request.priority).ok_or(PoolError::Overflow)?;
            let waiting = pool.state.lock().waiters.join();
            grow(&pool);
            let connection =
                waiting.await.unwrap_or_else(|_| Err(PoolError::Connect("connection pool is gone".into())));
            pending.settle(connection)?
        }
    };
    let active = Active::begin(request.cluster, request.host, request.priority).ok_or(PoolError::Overflow)?;
    Ok(Lease::new(connection, pool, active))
}

/// Sends the request and waits for the response's head.
pub(super) async fn send(lease: Lease, request: &StreamRequest<'_>, body: Body) -> Result<Begun, StreamReset> {
    let Lease { sender, mut stream, .. } = lease;
    let mut sender = match sender.ready().await {
        Ok(sender) => sender,
        Err(error) => {
            stream.connection.shared.closing.store(true, Relaxed);
            return Err(reset_of(&error));
        }
    };
    let Some(head) = encode(request.head, request.tunnel) else { return Err(StreamReset::Protocol) };
    let end = body.is_end();
    let (response, sending) = match sender.send_request(head, end) {
        Ok(sent) => sent,
        Err(error) => {
            stream.connection.shared.closing.store(true, Relaxed);
            return Err(reset_of(&error));
        }
    };
    let uploaded = Arc::new(AtomicBool::new(end));
    stream.uploaded = Some(Arc::clone(&uploaded));
    let mut upload =
        (!end).then(|| Upload { body, sending, chunk: Bytes::new(), last: false, broken: false, uploaded });
    let (mut head, receiving) = wait(response, &mut upload, request, &mut stream).await?;
    accept_upgrade(request, &mut head);
    let pump =
        upload.map(|mut upload| -> Pump { Box::pin(async move { std::future::poll_fn(|cx| upload.poll(cx)).await }) });
    let body = if receiving.is_end_stream() {
        stream.over = true;
        Body::Empty
    } else {
        Body::stream(ResponseBody { receiving, stream, data_done: false })
    };
    Ok(Begun { response: Response { head, body }, pump })
}

async fn wait(
    mut response: ResponseFuture,
    upload: &mut Option<Upload>,
    request: &StreamRequest<'_>,
    stream: &mut StreamGuard,
) -> Result<(ResponseHead, RecvStream), StreamReset> {
    let response = std::future::poll_fn(|cx| {
        if let Some(running) = upload
            && running.poll(cx).is_ready()
        {
            *upload = None;
        }
        while let Poll::Ready(Some(Ok(informational))) = response.poll_informational(cx) {
            let mut head = ResponseHead::new(informational.status());
            head.headers = informational.into_parts().0.headers;
            if let Err(reset) = request.informational.informational(head) {
                return Poll::Ready(Err(reset));
            }
        }
        Pin::new(&mut response).poll(cx).map_err(|error| {
            stream.failed(&error);
            reset_of(&error)
        })
    })
    .await?;
    let (parts, receiving) = response.into_parts();
    let most = request.cluster.config().http.max_headers_count as usize;
    // Envoy takes either for a reset by the host.
    if fields_bytes(&parts.headers) > max_headers_bytes(request.cluster) || parts.headers.len() >= most {
        stream.pool.cluster.stats().traffic.upstream_rq_rx_reset().inc();
        stream.settled();
        return Err(StreamReset::Remote(Reason::INTERNAL_ERROR.into()));
    }
    let mut head = ResponseHead::new(parts.status);
    head.version = http::Version::HTTP_2;
    head.headers = parts.headers;
    Ok((head, receiving))
}

/// A 2xx to an extended CONNECT is what 101 is in HTTP/1; past the pool it is one.
fn accept_upgrade(request: &StreamRequest<'_>, head: &mut ResponseHead) {
    let Some(protocol) = request.head.headers.get(http::header::UPGRADE).filter(|_| request.tunnel) else { return };
    if head.status.is_success() {
        head.status = http::StatusCode::SWITCHING_PROTOCOLS;
        head.headers.insert(http::header::UPGRADE, protocol.clone());
        head.headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    }
}

/// The fields of a response's head, where nothing is configured.
const MAX_HEADERS_BYTES: usize = 60 << 10;

fn max_headers_bytes(cluster: &Cluster) -> usize {
    cluster.config().http.max_response_headers_bytes.map_or(MAX_HEADERS_BYTES, |bytes| bytes as usize)
}

fn reset_of(error: &h2::Error) -> StreamReset {
    match error.reason() {
        // The host will not look at this stream any more.
        Some(_) if error.is_remote() && error.is_go_away() => StreamReset::Refused,
        Some(Reason::REFUSED_STREAM) => StreamReset::Refused,
        Some(reason) if error.is_remote() && error.is_reset() => StreamReset::Remote(reason.into()),
        Some(Reason::PROTOCOL_ERROR) if !error.is_remote() => StreamReset::Protocol,
        _ => StreamReset::Termination,
    }
}

/// The head as the `h2` crate wants it; `None` when it cannot be one.
fn encode(head: &RequestHead, tunnel: bool) -> Option<http::Request<()>> {
    let mut request = http::Request::new(());
    let upgrade = head.headers.get(http::header::UPGRADE).filter(|_| tunnel);
    *request.method_mut() = if upgrade.is_some() { Method::CONNECT } else { head.method.clone() };
    *request.version_mut() = http::Version::HTTP_2;
    let authority = http::uri::Authority::from_maybe_shared(Bytes::copy_from_slice(head.authority.as_bytes())).ok();
    *request.uri_mut() = if head.method == Method::CONNECT {
        Uri::from(authority?)
    } else {
        let path = http::uri::PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(head.path.as_bytes())).ok()?;
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if head.scheme == "https" { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
        parts.authority = authority;
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).ok()?
    };
    if let Some(protocol) = upgrade {
        // An upgrade is an extended CONNECT in HTTP/2 (RFC 8441).
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol.to_str().ok()?));
    }
    request.headers_mut().clone_from(&head.headers);
    for name in [http::header::CONNECTION, http::header::TRANSFER_ENCODING, http::header::UPGRADE, http::header::HOST] {
        request.headers_mut().remove(name);
    }
    Some(request)
}

/// A response's body: dropped before its end, the stream is reset.
struct ResponseBody {
    receiving: RecvStream,
    stream: StreamGuard,
    data_done: bool,
}

impl ResponseBody {
    fn failed(&mut self, error: &h2::Error) -> BodyError {
        self.stream.failed(error);
        body_error(error)
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        if !self.data_done {
            match ready!(self.receiving.poll_data(cx)) {
                Some(Ok(data)) => {
                    // What was handed on is no more the connection's: let the host send as much again.
                    let _ = self.receiving.flow_control().release_capacity(data.len());
                    self.stream.over = self.receiving.is_end_stream();
                    return Poll::Ready(Some(Ok(http_body::Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.failed(&error)))),
                None => self.data_done = true,
            }
        }
        match ready!(self.receiving.poll_trailers(cx)) {
            Ok(trailers) => {
                self.stream.over = true;
                Poll::Ready(trailers.map(|trailers| Ok(http_body::Frame::trailers(trailers))))
            }
            Err(error) => Poll::Ready(Some(Err(self.failed(&error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.receiving.is_end_stream()
    }
}

fn body_error(error: &h2::Error) -> BodyError {
    match error.reason() {
        Some(reason) if error.is_reset() => BodyError::Reset(reason.into()),
        _ => BodyError::Closed,
    }
}
