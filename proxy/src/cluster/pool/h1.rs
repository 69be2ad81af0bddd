//! HTTP/1 to hosts: one request at a time on a connection, kept alive between them.
//! It must not know retries; what a request needs of the connection ends with its response's body.

mod body;

use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::Mutex;
use tidegate_filters::http::{Body, ResponseHead};
use tidegate_filters::metadata::FilterState;
use tokio::io::{ReadHalf, WriteHalf};

use self::body::{ResponseBody, Tunnel};
use super::connect;
use super::h1_upload::{Backlog, Upload};
use super::place::{self, Content, Place};
use super::preconnect::{self, Load};
use super::{
    Active, Begun, ConnectionFacts, EITHER, Open, POOLS, Pending, PoolError, Pump, StreamRequest, StreamReset, Waiters,
    chose_http2, connection_permit, count_connect_failure, ensure_sweeper,
};
use crate::application_log::levels::CLIENT;
use crate::application_log::shown::Tags;
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::Permit;
use crate::cluster::options::HttpProtocol;
use crate::http::codec::CodecError;
use crate::http::codec::h1::Framing;
use crate::http::codec::h1::body::{BodyDecoder, Piece};
use crate::http::codec::h1::encode::{self, Delimit};
use crate::http::codec::h1::fields::HeadLimits;
use crate::http::codec::h1::io::{Reader, Writer};
use crate::http::codec::h1::outgoing::Outgoing;
use crate::http::codec::h1::response::{self, DecodedResponse};
use crate::http::protocol::{Http1Options, Underscores};
use crate::http::wire_bytes::WireBytes;
use crate::io::Transport;

/// Bytes of a response body that are looked at once more before the connection is given back early.
const BULK_BYTES: u64 = 16 << 10;

/// A response's head, where nothing is configured: what Envoy's HTTP/1 codec takes.
const MAX_HEADERS_BYTES: u32 = 80 << 10;

/// What is offered where nothing is configured.
const ALPN: &[&[u8]] = &[b"http/1.1"];

/// A connection of one request at a time.
pub(crate) struct Connection {
    reader: Reader<ReadHalf<Transport>>,
    writer: Writer<WriteHalf<Transport>>,
    facts: ConnectionFacts,
    open: Open,
    idle_since: Instant,
}

impl Connection {
    /// Whether it has stood for so long.
    fn is_older_than(&self, limit: Option<Duration>, now: Instant) -> bool {
        limit.is_some_and(|limit| now.duration_since(self.open.started) >= limit)
    }

    /// Whether it can carry a request: nothing came on it since the last one, and it is still open.
    fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        match self.reader.poll_fill(&mut cx) {
            Poll::Pending => true,
            Poll::Ready(Ok(n)) if n > 0 => {
                self.open.cluster.stats().traffic.upstream_cx_protocol_error().inc();
                false
            }
            Poll::Ready(_) => {
                self.open.remote = true;
                false
            }
        }
    }
}

/// The connections of one worker to one host at one priority.
pub(super) type Pool = place::Pool<State>;

#[derive(Default)]
pub(super) struct State {
    /// Boxed because they move between here, leases and bodies.
    #[expect(clippy::vec_box, reason = "a connection is moved far oftener than it is looked at here")]
    idle: Vec<Box<Connection>>,
    waiters: Waiters<Lease>,
    connecting: usize,
    active: usize,
    place: Place,
}

impl Content for State {
    fn is_empty(&mut self) -> bool {
        self.idle.is_empty() && self.active == 0 && self.connecting == 0 && self.waiters.len() == 0
    }

    fn place(&mut self) -> &mut Place {
        &mut self.place
    }
}

impl Pool {
    /// Makes room for another pool if nobody needs this one now.
    pub(super) fn clear_if_at_rest(&self) -> bool {
        let mut state = self.state.lock();
        let rests = state.place.is_taken() && state.active == 0 && state.connecting == 0 && state.waiters.len() == 0;
        if rests {
            state.idle.clear();
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
        state.idle.retain_mut(|connection| {
            if removed || connection.open.epoch != self.host.state.epoch() || !connection.is_quiet() {
                return false;
            }
            let idle = now.duration_since(connection.idle_since);
            if rest.is_some_and(|rest| idle >= rest) {
                return false;
            }
            if http.idle_timeout.is_some_and(|limit| idle >= limit) {
                traffic.upstream_cx_idle_timeout().inc();
                return false;
            }
            let old = connection.is_older_than(http.max_connection_duration, now);
            if old {
                traffic.upstream_cx_max_duration_reached().inc();
            }
            !old
        });
        state.leave_if_empty();
        !(state.is_empty() && (removed || self.is_for_few()))
    }

    fn take_idle(&self) -> Option<Box<Connection>> {
        let mut state = self.state.lock();
        while let Some(mut connection) = state.idle.pop() {
            if connection.open.epoch == self.host.state.epoch() && connection.is_quiet() {
                state.active += 1;
                return Some(connection);
            }
        }
        None
    }

    /// Takes a connection back after a request.
    fn give_back(self: &Arc<Self>, mut connection: Box<Connection>, reusable: bool) {
        let http = &self.cluster.config().http;
        let worn = http.max_requests_per_connection.is_some_and(|most| connection.open.requests >= most);
        let old = connection.is_older_than(http.max_connection_duration, Instant::now());
        if reusable && old && !worn {
            self.cluster.stats().traffic.upstream_cx_max_duration_reached().inc();
        }
        let leaving = self.host.state.is_removed() || connection.open.epoch != self.host.state.epoch();
        let keep = reusable && !worn && !old && !leaving;
        let mut state = self.state.lock();
        state.active -= 1;
        if !keep {
            state.leave_if_empty();
            drop(state);
            drop(connection);
            // Whoever waits for this connection's place gets a new one.
            return;
        }
        connection.idle_since = Instant::now();
        connection.reader.release();
        self.hand_out(&mut state, connection);
    }

    /// A connection was made.
    fn take_in(self: &Arc<Self>, state: &mut State, transport: Transport, mut facts: ConnectionFacts, open: Open) {
        facts.shared.clone_from(&state.place.shared);
        let (read, write) = tokio::io::split(transport);
        let limit = self.cluster.config().buffer_limit_bytes as usize;
        let connection = Box::new(Connection {
            reader: Reader::new(read),
            writer: Writer::new(write, limit),
            facts,
            open,
            idle_since: Instant::now(),
        });
        self.hand_out(state, connection);
    }

    /// Gives a free connection to whoever waits first, else keeps it.
    fn hand_out(self: &Arc<Self>, state: &mut State, connection: Box<Connection>) {
        let mut lease = Lease { connection: Some(connection), pool: Arc::clone(self), active: None };
        while let Some(waiter) = state.waiters.next() {
            match waiter.send(Ok(lease)) {
                Ok(()) => return state.active += 1,
                Err(Ok(back)) => lease = back,
                Err(Err(_)) => return,
            }
        }
        state.idle.extend(lease.connection.take());
    }
}

/// Starts connections if those that are free or under way do not suffice for those who wait, and for as many more as the
/// cluster wants ready.
fn grow(pool: &Arc<Pool>) {
    for _ in 0..preconnect::MOST_AT_ONCE {
        let permit = {
            let mut state = pool.state.lock();
            let load = Load {
                waiting: state.waiters.len(),
                active: state.active,
                capacity: state.idle.len() + state.connecting,
            };
            if !load.wants_connection(&pool.cluster, &pool.host) {
                return;
            }
            let first = state.connecting == 0 && state.active == 0 && state.idle.is_empty();
            let Some(permit) = connection_permit(&pool.cluster, &pool.host, pool.priority, first) else { return };
            state.connecting += 1;
            permit
        };
        dial(pool, permit);
    }
}

/// Makes a connection for the pool.
fn dial(pool: &Arc<Pool>, permit: Permit) {
    let pool = Arc::clone(pool);
    tracing::debug!("creating a new connection to {} of cluster '{}'", pool.host.address, pool.cluster.name());
    let open = Open::new(&pool.cluster, &pool.host, permit);
    if !pool.is_auto() {
        count_new(&pool);
    }
    tokio::spawn(async move {
        let wanted = pool.handshake(if pool.is_auto() { EITHER } else { ALPN });
        let connected = connect::connect(&pool.cluster, &pool.latest_host(), &wanted).await;
        if let Ok((_, facts)) = &connected
            && pool.is_auto()
        {
            pool.host.state.chose_http1(!chose_http2(facts));
        }
        let connected = match connected {
            Ok((transport, facts)) if pool.is_auto() && chose_http2(&facts) => {
                super::h2::adopt(&pool, transport, facts, open).await;
                let mut state = pool.state.lock();
                state.connecting -= 1;
                state.waiters.fail(&PoolError::OtherProtocol);
                return state.leave_if_empty();
            }
            connected => connected,
        };
        let mut state = pool.state.lock();
        state.connecting -= 1;
        match connected {
            Ok((transport, facts)) => {
                if pool.is_auto() {
                    count_new(&pool);
                }
                pool.take_in(&mut state, transport, facts, open);
            }
            Err(error) => {
                let error = count_connect_failure(&pool.cluster, &pool.host, &error, open);
                state.waiters.fail(&error);
                state.leave_if_empty();
            }
        }
    });
}

fn count_new(pool: &Pool) {
    pool.cluster.stats().traffic.upstream_cx_http1_total().inc();
    pool.cluster.stats().codec.http1();
}

/// Takes over a connection that was made for HTTP/2, and whose host chose HTTP/1.
pub(super) fn adopt<T: Content>(made_for: &place::Pool<T>, transport: Transport, facts: ConnectionFacts, open: Open) {
    let pool = POOLS.with_borrow_mut(|pools| made_for.beside(&mut pools.h1));
    // Where there is no place for another pool, whoever asks next is told.
    let Ok(()) = pool.enter(&FilterState::default()) else { return };
    count_new(&pool);
    let mut state = pool.state.lock();
    pool.take_in(&mut state, transport, facts, open);
}

/// A connection that is ours for one request.
pub(crate) struct Lease {
    connection: Option<Box<Connection>>,
    pool: Arc<Pool>,
    active: Option<Active>,
}

impl Lease {
    pub(super) fn facts(&self) -> &ConnectionFacts {
        match &self.connection {
            Some(connection) => &connection.facts,
            None => ConnectionFacts::of_none(),
        }
    }

    fn finish(mut self, reusable: bool) {
        self.active = None;
        if let Some(mut connection) = self.connection.take() {
            connection.open.busy = connection.open.unfinished;
            self.pool.give_back(connection, reusable);
            grow(&self.pool);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Whoever waited for it may have left before it came: then it is as good as it was.
        let unused = self.active.take().is_none();
        if let Some(connection) = self.connection.take() {
            self.pool.give_back(connection, unused);
            grow(&self.pool);
        }
    }
}

fn pool_of(request: &StreamRequest<'_>) -> Arc<Pool> {
    POOLS.with_borrow_mut(|pools| {
        ensure_sweeper(pools);
        Pool::of(request, &mut pools.h1)
    })
}

/// A connection for one request: an idle one, or the next that becomes free or is made.
pub(super) async fn open(request: &StreamRequest<'_>) -> Result<Lease, PoolError> {
    let pool = pool_of(request);
    if let Some(connection) = pool.take_idle() {
        tracing::debug!("{} using existing fully connected connection", Tags::connection(connection.facts.id));
        let mut lease = Lease { connection: Some(connection), pool, active: None };
        return match Active::begin(request.cluster, request.host, request.priority) {
            Some(active) => {
                lease.active = Some(active);
                if request.cluster.config().preconnects() {
                    grow(&lease.pool);
                }
                Ok(lease)
            }
            None => {
                lease.finish(true);
                Err(PoolError::Overflow)
            }
        };
    }
    pool.enter(request.state)?;
    let Some(pending) = Pending::begin(request.cluster, request.host, request.priority) else {
        pool.state.lock().leave_if_empty();
        return Err(PoolError::Overflow);
    };
    tracing::debug!("queueing stream to {}: no connection is free", request.host.address);
    let waiting = pool.state.lock().waiters.join();
    grow(&pool);
    let lease = waiting.await.unwrap_or_else(|_| Err(PoolError::Connect("connection pool is gone".into())));
    let mut lease = pending.settle(lease)?;
    match Active::begin(request.cluster, request.host, request.priority) {
        Some(active) => {
            lease.active = Some(active);
            Ok(lease)
        }
        None => {
            lease.finish(true);
            Err(PoolError::Overflow)
        }
    }
}

fn options(cluster: &Cluster) -> Http1Options {
    match cluster.config().http.protocol {
        HttpProtocol::Http1(options) | HttpProtocol::Downstream(options, _) | HttpProtocol::Auto(options, _) => options,
        HttpProtocol::Http2(_) => Http1Options::default(),
    }
}

/// Sends the request and reads the response's head.
pub(super) async fn send(mut lease: Lease, request: &StreamRequest<'_>, body: Body) -> Result<Begun, StreamReset> {
    let Some(connection) = &mut lease.connection else { return Err(StreamReset::Termination) };
    connection.open.requests += 1;
    connection.open.busy = true;
    if request.cluster.config().http.max_requests_per_connection == Some(connection.open.requests) {
        request.cluster.stats().traffic.upstream_cx_max_requests().inc();
    }
    let http1 = options(request.cluster);
    let delimit = if request.tunnel { Delimit::AsIs } else { encode::delimit_request(request.head, body.is_end()) };
    let mut fields = 0;
    let head =
        connection.writer.encode(|out| fields = encode::request(request.head, delimit, request.tunnel, &http1, out));
    if let Some(bytes) = request.bytes {
        bytes.add_sent(fields as u64, head as u64);
        bytes.add_sent_fields(fields as u64);
    }
    let limits = HeadLimits {
        max_bytes: request.cluster.config().http.max_response_headers_bytes.unwrap_or(MAX_HEADERS_BYTES) as usize,
        max_headers: request.cluster.config().http.max_headers_count as usize,
        underscores: Underscores::Allow,
        allow_chunked_length: http1.allow_chunked_length,
        keep_spelling: http1.header_case.preserved(),
    };
    let outgoing = Outgoing::of_request(&request.head.headers, delimit, request.tunnel);
    let bytes = request.bytes.cloned();
    let host = (!body.is_end()).then(|| Backlog::of(request));
    let (tunnel, held) = (request.tunnel, request.tunnel);
    let mut upload = Upload { body, outgoing, tunnel, held, done: false, http1, bytes, host };
    let decoded = read_head(connection, &mut upload, request, &limits).await?;
    Ok(begin(lease, decoded, upload, request.tunnel))
}

/// Reads heads until the final one, while the body goes up.
async fn read_head(
    connection: &mut Connection,
    upload: &mut Upload,
    request: &StreamRequest<'_>,
    limits: &HeadLimits,
) -> Result<DecodedResponse, StreamReset> {
    loop {
        let decoded = std::future::poll_fn(|cx| {
            if upload.poll(&mut connection.writer, cx).is_err() {
                // The host may have answered before it closed: what it said is worth more than that it stopped reading.
                upload.done = true;
            }
            poll_head(connection, request, limits, cx)
        })
        .await?;
        let status = decoded.head.status;
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(decoded);
        }
        request.informational.informational(decoded.head).inspect_err(|_| {
            let _ = protocol_error(request.cluster, &CodecError::MALFORMED);
        })?;
    }
}

fn poll_head(
    connection: &mut Connection,
    request: &StreamRequest<'_>,
    limits: &HeadLimits,
    cx: &mut Context<'_>,
) -> Poll<Result<DecodedResponse, StreamReset>> {
    loop {
        let reader = &mut connection.reader;
        let method = &request.head.method;
        let buffered = reader.buffer.len();
        match response::decode(&mut reader.buffer, &mut reader.scanned, method, request.tunnel, limits) {
            Ok(Some(decoded)) => {
                if let Some(bytes) = request.bytes {
                    bytes.add_received(decoded.field_bytes as u64, (buffered - reader.buffer.len()) as u64);
                    // Those of heads before are counted again, as in Envoy.
                    bytes.add_received_fields(bytes.received().0);
                }
                return Poll::Ready(Ok(decoded));
            }
            Ok(None) => {}
            Err(error) => return Poll::Ready(Err(protocol_error(request.cluster, &error))),
        }
        match ready!(reader.poll_fill(cx)) {
            Ok(n) if n > 0 => {}
            // It broke off within the head: that is no response (Envoy's UPE); nothing at all is a closed connection.
            Ok(_) if !reader.buffer.is_empty() => {
                connection.open.remote = true;
                return Poll::Ready(Err(protocol_error(request.cluster, &CodecError::MALFORMED)));
            }
            _ => {
                connection.open.remote = true;
                return Poll::Ready(Err(StreamReset::Termination));
            }
        }
    }
}

fn protocol_error(cluster: &Cluster, error: &CodecError) -> StreamReset {
    tracing::debug!(target: CLIENT, "bad response of cluster '{}': {}", cluster.name(), error.details);
    cluster.stats().traffic.upstream_cx_protocol_error().inc();
    StreamReset::Protocol
}

/// Hands on a response whose head is there.
fn begin(mut lease: Lease, decoded: DecodedResponse, mut upload: Upload, tunnel: bool) -> Begun {
    let DecodedResponse { head, framing, keep_alive, .. } = decoded;
    let accepted = tunnel && framing == Framing::UntilClose;
    upload.held &= !accepted;
    let sent = upload.done;
    let mut decoder = BodyDecoder::new(framing);
    if sent
        && !tunnel
        && !matches!(framing, Framing::UntilClose)
        && let Some(whole) = whole_body(&mut lease, &mut decoder, upload.bytes.as_ref())
    {
        let clean = lease.connection.as_ref().is_some_and(|connection| connection.reader.buffer.is_empty());
        lease.finish(keep_alive && clean);
        return Begun::new(head, whole, None);
    }
    if sent || tunnel && !accepted {
        let keep_alive = keep_alive && !tunnel;
        let body = ResponseBody {
            lease: Some(lease),
            decoder,
            keep_alive,
            tunnel: Tunnel::None,
            unsent: !sent,
            trailers: upload.http1.enable_trailers,
            writer: None,
            bytes: upload.bytes,
        };
        return Begun::new(head, Body::stream(body), None);
    }
    split(lease, head, decoder, keep_alive && !tunnel, upload)
}

/// A small body that has arrived with its head is read at once, and the connection is free before the client has it.
fn whole_body(lease: &mut Lease, decoder: &mut BodyDecoder, bytes: Option<&Arc<WireBytes>>) -> Option<Body> {
    if decoder.is_done() {
        return Some(Body::Empty);
    }
    let connection = lease.connection.as_mut()?;
    let buffered = connection.reader.buffer.len() as u64;
    match decoder {
        BodyDecoder::Length(length) if *length <= buffered && *length <= BULK_BYTES => {}
        _ => return None,
    }
    match decoder.decode(&mut connection.reader.buffer) {
        Ok(Some(Piece::Data(data))) if decoder.is_done() => {
            if let Some(bytes) = bytes {
                bytes.add_received(0, data.len() as u64);
            }
            Some(Body::full(data))
        }
        _ => None,
    }
}

type SharedWriter = Arc<Mutex<Option<Writer<WriteHalf<Transport>>>>>;

/// The response comes while the request still goes up: the pump has the writer until the request is whole.
fn split(lease: Lease, head: ResponseHead, decoder: BodyDecoder, keep_alive: bool, upload: Upload) -> Begun {
    let shared: SharedWriter = Arc::default();
    let (lease, writer) = lease.without_writer();
    let trailers = upload.http1.enable_trailers;
    let tunnel = match head.status {
        StatusCode::SWITCHING_PROTOCOLS => Tunnel::Upgrade,
        _ if upload.tunnel => Tunnel::Connect,
        _ => Tunnel::None,
    };
    let bytes = upload.bytes.clone();
    let pump = writer.map(|mut writer| {
        let shared = Arc::clone(&shared);
        let mut upload = upload;
        let pump: Pump = Box::pin(async move {
            let result = std::future::poll_fn(|cx| match upload.poll(&mut writer, cx) {
                Err(()) => Poll::Ready(false),
                Ok(()) if upload.done && writer.is_empty() => Poll::Ready(true),
                Ok(()) => Poll::Pending,
            })
            .await;
            if result {
                if upload.tunnel {
                    // A tunnel whose client has finished sending: half close.
                    let _ = std::future::poll_fn(|cx| writer.poll_shutdown(cx)).await;
                }
                *shared.lock() = Some(writer);
            }
        });
        pump
    });
    let (lease, writer) = (Some(lease), Some(shared));
    let body = ResponseBody { lease, decoder, keep_alive, tunnel, unsent: false, trailers, writer, bytes };
    Begun::new(head, Body::stream(body), pump)
}

impl Lease {
    /// Takes the writing half out, leaving one that writes nowhere.
    fn without_writer(mut self) -> (Self, Option<Writer<WriteHalf<Transport>>>) {
        let writer = self.connection.as_mut().map(|connection| {
            let (_, idle) = tokio::io::split(Transport::Other(Box::new(tokio::io::duplex(1).0)));
            std::mem::replace(&mut connection.writer, Writer::new(idle, 1))
        });
        (self, writer)
    }
}

#[cfg(test)]
mod tests;
