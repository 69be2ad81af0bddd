//! HTTP/2 to hosts: many streams on a connection, as many connections as their limits ask for.
//! It must not know retries; the `h2` crate speaks the protocol.

mod body;
mod offer;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use parking_lot::Mutex;
use tidegate_filters::metadata::FilterState;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use self::offer::Offer;
pub(crate) use self::stream::{Lease, send};
use super::connect;
use super::place::{self, Content, Place};
use super::preconnect::Load;
use super::{
    Active, ConnectionFacts, EITHER, Open, POOLS, Pending, PoolError, StreamRequest, Waiters, chose_http2,
    connection_permit, count_connect_failure, ensure_sweeper,
};
use crate::application_log::levels::CLIENT;
use crate::application_log::shown::Tags;
use crate::cluster::Cluster;
use crate::cluster::options::HttpProtocol;
use crate::http::codec::h2::list_limit;
use crate::http::codec::keepalive;
use crate::http::codec::metered::{Meter, Metered};
use crate::http::protocol::Http2Options;
use crate::io::Transport;

/// What is offered where nothing is configured.
const ALPN: &[&[u8]] = &[b"h2"];

/// A connection that carries many requests.
struct Connection {
    sender: SendRequest<Bytes>,
    /// The host's when it was made.
    epoch: u32,
    facts: ConnectionFacts,
    shared: Arc<Shared>,
    meter: Arc<Meter>,
    task: AbortHandle,
}

/// What a connection's streams and its task share.
struct Shared {
    active: AtomicUsize,
    /// Places that are on their way to who waited for them.
    offered: AtomicUsize,
    opened: AtomicU64,
    /// No new streams: GOAWAY, an error, or its time is over.
    closing: AtomicBool,
    /// Told of a stream that is opened after long idleness.
    woken: Notify,
    idle_since: Mutex<Instant>,
    started: Instant,
}

impl Shared {
    fn new() -> Self {
        Self {
            active: AtomicUsize::new(0),
            offered: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            woken: Notify::new(),
            idle_since: Mutex::new(Instant::now()),
            started: Instant::now(),
        }
    }
}

impl Connection {
    /// Nothing runs on it, and nothing will.
    fn is_over(&self) -> bool {
        self.shared.closing.load(Relaxed) && self.shared.active.load(Relaxed) == 0
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Streams that run keep the connection's task alive; without any it ends now.
        if self.shared.active.load(Relaxed) == 0 {
            self.task.abort();
        }
    }
}

/// The connections of one worker to one host at one priority.
pub(super) type Pool = place::Pool<State>;

#[derive(Default)]
pub(super) struct State {
    connections: Vec<Arc<Connection>>,
    waiters: Waiters<Offer>,
    connecting: bool,
    place: Place,
}

impl Content for State {
    fn is_empty(&mut self) -> bool {
        self.connections.is_empty() && !self.connecting && self.waiters.len() == 0
    }

    fn place(&mut self) -> &mut Place {
        &mut self.place
    }
}

impl Pool {
    /// Makes room for another pool if nobody needs this one now.
    pub(super) fn clear_if_at_rest(&self) -> bool {
        let mut state = self.state.lock();
        let busy = state.connections.iter().any(|connection| connection.shared.active.load(Relaxed) > 0);
        let rests = state.place.is_taken() && !busy && !state.connecting && state.waiters.len() == 0;
        if rests {
            state.connections.clear();
            state.leave_if_empty();
        }
        rests
    }

    /// Closes what is idle too long (or for `rest`), dead, or of a host that is gone; false when the pool itself is of no more
    /// use.
    pub(super) fn sweep(&self, now: Instant, rest: Option<Duration>) -> bool {
        let http = &self.cluster.config().http;
        let removed = self.host.state.is_removed();
        let mut state = self.state.lock();
        let traffic = &self.cluster.stats().traffic;
        state.connections.retain(|connection| {
            let shared = &connection.shared;
            let idle = shared.active.load(Relaxed) == 0;
            if connection.epoch != self.host.state.epoch() {
                shared.closing.store(true, Relaxed);
            }
            if removed || shared.closing.load(Relaxed) {
                return !idle;
            }
            let rested = now.duration_since(*shared.idle_since.lock());
            if idle && rest.is_some_and(|rest| rested >= rest) {
                return false;
            }
            let expired = idle && http.idle_timeout.is_some_and(|limit| rested >= limit);
            if expired {
                traffic.upstream_cx_idle_timeout().inc();
            }
            let old = http.max_connection_duration.is_some_and(|most| now.duration_since(shared.started) >= most);
            if old {
                traffic.upstream_cx_max_duration_reached().inc();
                shared.closing.store(true, Relaxed);
            }
            !(expired || old && idle)
        });
        state.leave_if_empty();
        !(state.is_empty() && (removed || self.is_for_few()))
    }

    /// A place on a connection with room for one more stream.
    fn with_room(self: &Arc<Self>) -> Option<Offer> {
        let state = self.state.lock();
        let roomy = state.connections.iter().find(|connection| self.room(connection) > 0);
        roomy.map(|connection| Offer::new(self, connection))
    }

    /// How many more streams a connection takes now: within what both sides allow at once, and what is left of its requests.
    fn room(&self, connection: &Connection) -> usize {
        let shared = &connection.shared;
        let at_once =
            connection.sender.current_max_send_streams().min(options(&self.cluster).max_concurrent_streams as usize);
        let most = self.cluster.config().http.max_requests_per_connection;
        let left = most.map_or(u64::MAX, |most| u64::from(most).saturating_sub(shared.opened.load(Relaxed)));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let leaving = shared.closing.load(Relaxed) || connection.epoch != self.host.state.epoch();
        let free = at_once.saturating_sub(shared.active.load(Relaxed)).min(left);
        if leaving { 0 } else { free.saturating_sub(shared.offered.load(Relaxed)) }
    }

    fn load(&self, state: &mut State) -> Load {
        let mut load = Load { waiting: state.waiters.len(), active: 0, capacity: 0 };
        for connection in &state.connections {
            load.active += connection.shared.active.load(Relaxed);
            load.capacity += self.room(connection);
        }
        load
    }
}

/// Starts a connection for those who wait, or ahead of others where the cluster wants that, unless one is being made.
fn grow(pool: &Arc<Pool>) {
    grow_for(pool, pool.cluster.config().preconnects());
}

/// The same; `ahead` of others only where that is said. A connection that failed or ended is no reason for one ahead: a host
/// that takes none would be asked without pause.
fn grow_for(pool: &Arc<Pool>, ahead: bool) {
    let permit = {
        let mut state = pool.state.lock();
        let wanted =
            state.waiters.len() > 0 || ahead && pool.load(&mut state).wants_connection(&pool.cluster, &pool.host);
        if state.connecting || !wanted {
            return;
        }
        let first = state.connections.is_empty();
        let Some(permit) = connection_permit(&pool.cluster, &pool.host, pool.priority, first) else { return };
        state.connecting = true;
        permit
    };
    tracing::debug!("creating a new connection to {} of cluster '{}'", pool.host.address, pool.cluster.name());
    let open = Open::new(&pool.cluster, &pool.host, permit);
    if !pool.is_auto() {
        count_new(pool);
    }
    let pool = Arc::clone(pool);
    tokio::spawn(async move {
        let made = make(&pool, open).await;
        let mut state = pool.state.lock();
        state.connecting = false;
        let failed = made.is_err();
        match made {
            Ok(connection) => {
                state.connections.push(Arc::clone(&connection));
                pool.offer(&mut state, &connection);
            }
            Err(error) => {
                state.waiters.fail(&error);
                state.leave_if_empty();
            }
        }
        drop(state);
        grow_for(&pool, !failed && pool.cluster.config().preconnects());
    });
}

fn count_new(pool: &Pool) {
    pool.cluster.stats().traffic.upstream_cx_http2_total().inc();
    pool.cluster.stats().codec.http2().nghttp2_upstream_connections().inc();
}

async fn make(pool: &Arc<Pool>, open: Open) -> Result<Arc<Connection>, PoolError> {
    let (transport, facts) = match connect::connect(
        &pool.cluster,
        &pool.latest_host(),
        &pool.handshake(if pool.is_auto() { EITHER } else { ALPN }),
    )
    .await
    {
        Ok(connected) => connected,
        Err(error) => {
            return Err(count_connect_failure(&pool.cluster, &pool.host, &error, open));
        }
    };
    if pool.is_auto() {
        let http1 = !chose_http2(&facts);
        pool.host.state.chose_http1(http1);
        if http1 {
            super::h1::adopt(pool, transport, facts, open);
            return Err(PoolError::OtherProtocol);
        }
        count_new(pool);
    }
    begin(pool, transport, facts, open).await
}

/// Takes over a connection that was made for HTTP/1, and whose host chose HTTP/2.
pub(super) async fn adopt<T: Content>(
    made_for: &place::Pool<T>,
    transport: Transport,
    facts: ConnectionFacts,
    open: Open,
) {
    let pool = POOLS.with_borrow_mut(|pools| made_for.beside(&mut pools.h2));
    // Where there is no place for another pool, whoever asks next is told.
    let Ok(()) = pool.enter(&FilterState::default()) else { return };
    count_new(&pool);
    let begun = begin(&pool, transport, facts, open).await;
    let mut state = pool.state.lock();
    match begun {
        Ok(connection) => {
            state.connections.push(Arc::clone(&connection));
            pool.offer(&mut state, &connection);
        }
        Err(_) => state.leave_if_empty(),
    }
}

/// Speaks HTTP/2 on a connection.
async fn begin(
    pool: &Arc<Pool>,
    transport: Transport,
    mut facts: ConnectionFacts,
    open: Open,
) -> Result<Arc<Connection>, PoolError> {
    facts.protocol = http::Version::HTTP_2;
    facts.shared.clone_from(&pool.state.lock().place.shared);
    let settings = options(&pool.cluster);
    let (transport, meter) = Metered::new(transport, settings.floods, false, None);
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
    let shared = Arc::new(Shared::new());
    let epoch = open.epoch;
    let ping = connection.ping_pong();
    let mut running = Running { open: Some(open), shared: Arc::clone(&shared), pool: Arc::clone(pool), broken: false };
    let tags = Tags::connection(facts.id);
    let counting = Arc::clone(&meter);
    let keepalive = settings.keepalive;
    let task = tokio::spawn(async move {
        let cluster = Arc::clone(&running.pool.cluster);
        let stats = cluster.stats();
        tokio::select! {
            result = connection => match result {
                // The codec has ended it for what the host sent.
                Err(error) if error.is_library() => {
                    tracing::debug!(target: CLIENT, "{tags} protocol error: {error}");
                    stats.traffic.upstream_cx_protocol_error().inc();
                    running.broken_by_host();
                }
                Err(error) => {
                    tracing::debug!(target: CLIENT, "{tags} connection error: {error}");
                    running.closed_by_host();
                }
                Ok(()) => running.closed_by_host(),
            },
            flood = meter.flooded() => {
                stats.traffic.upstream_cx_protocol_error().inc();
                stats.codec.http2().count_flood(flood);
                running.broken_by_host();
            }
            () = keepalive::watch(ping, keepalive, &running.shared.woken) => {
                stats.codec.http2().keepalive_timeout().inc();
            }
        }
    });
    Ok(Arc::new(Connection { sender, epoch, facts, shared, meter: counting, task: task.abort_handle() }))
}

/// The accounts of a connection, settled when its task ends, however it does.
struct Running {
    open: Option<Open>,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    /// The host broke the protocol: its streams were reset before the connection was closed, as Envoy counts it.
    broken: bool,
}

impl Running {
    fn broken_by_host(&mut self) {
        self.broken = true;
    }

    fn closed_by_host(&mut self) {
        if let Some(open) = &mut self.open {
            open.remote = true;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Self { open, shared, pool, broken } = self;
        shared.closing.store(true, Relaxed);
        if let Some(open) = open {
            open.requests = u32::try_from(shared.opened.load(Relaxed)).unwrap_or(u32::MAX);
            open.busy = !*broken && shared.active.load(Relaxed) > 0;
        }
        *open = None;
        {
            let mut state = pool.state.lock();
            state.connections.retain(|connection| !connection.is_over());
            state.leave_if_empty();
        }
        // Its place is free for whoever waits; when the process ends, nobody does.
        if tokio::runtime::Handle::try_current().is_ok() {
            grow_for(pool, false);
        }
    }
}

fn options(cluster: &Cluster) -> Http2Options {
    match cluster.config().http.protocol {
        HttpProtocol::Http2(options) | HttpProtocol::Downstream(_, options) | HttpProtocol::Auto(_, options) => options,
        HttpProtocol::Http1(_) => Http2Options::default(),
    }
}

fn pool_of(request: &StreamRequest<'_>) -> Arc<Pool> {
    POOLS.with_borrow_mut(|pools| {
        ensure_sweeper(pools);
        Pool::of(request, &mut pools.h2)
    })
}

/// A place on a connection with room, or on the next that is made.
pub(super) async fn open(request: &StreamRequest<'_>) -> Result<Lease, PoolError> {
    let pool = pool_of(request);
    let offer = match pool.with_room() {
        Some(offer) => {
            tracing::debug!("using existing connection to {}", request.host.address);
            offer
        }
        None => {
            tracing::debug!("queueing stream to {}: no connection has room", request.host.address);
            pool.enter(request.state)?;
            let Some(pending) = Pending::begin(request.cluster, request.host, request.priority) else {
                pool.state.lock().leave_if_empty();
                return Err(PoolError::Overflow);
            };
            let waiting = pool.state.lock().waiters.join();
            grow(&pool);
            let offer = waiting.await.unwrap_or_else(|_| Err(PoolError::Connect("connection pool is gone".into())));
            pending.settle(offer)?
        }
    };
    let active = Active::begin(request.cluster, request.host, request.priority).ok_or(PoolError::Overflow)?;
    let lease = Lease::new(offer.take(), Arc::clone(&pool), active);
    if request.cluster.config().preconnects() {
        grow(&pool);
    }
    Ok(lease)
}

/// The fields of a response's head, where nothing is configured.
const MAX_HEADERS_BYTES: usize = 60 << 10;

fn max_headers_bytes(cluster: &Cluster) -> usize {
    cluster.config().http.max_response_headers_bytes.map_or(MAX_HEADERS_BYTES, |bytes| bytes as usize)
}

#[cfg(test)]
mod tests;
