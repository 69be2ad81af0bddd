//! Connections to hosts, per worker: kept, waited for, limited, drained (Envoy's `ConnPoolImplBase`).
//! It must not know routes, retries or why a request goes to its host.

mod connect;
mod h1;
mod h1_upload;
mod h2;
mod h2_upload;
mod meter;
mod payload;
mod place;
mod preconnect;
mod tcp;
mod udp;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tidegate_filters::connection::TlsInfo;
use tidegate_filters::http::{Body, RequestHead, Response, ResponseHead};
use tidegate_filters::metadata::FilterState;
use tidegate_filters::stream_info::Address;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::Cluster;
use super::circuit_breaker::{Permit, Resource, RoutingPriority};
use super::host::{Host, HostCounter, InFlight, OpenConnection, Waiting};
use super::options::{HttpProtocol, NotPrepared};
use super::proxied::Proxied;
use crate::http::limits::TryLimit;
use crate::http::stats::HttpStats;
use crate::http::wire_bytes::WireBytes;
use crate::tls::Wanted;

pub(crate) use connect::ConnectError;
pub(crate) use tcp::{Held, TcpLease, connect_tcp};

/// What moves the rest of a request upwards; done when all of it is with the host, or cannot be.
pub(crate) type Pump = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why a request got no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("overflow")]
    Overflow,
    /// The cluster has as many pools as it may (`max_connection_pools`): to whoever asks, its host is not there.
    #[error("no room for another pool")]
    NoPool,
    #[error("{0}")]
    Connect(Arc<str>),
    /// It failed on this side: nothing was sent to the host.
    #[error("{0}")]
    Local(Arc<str>),
    /// TLS cannot ask for the host by the name that the request gives it.
    #[error("{0}")]
    Unnameable(Arc<str>),
    #[error("connection timeout")]
    Timeout,
    /// The host chose another protocol than this pool's in its handshake.
    #[error("the host chose another protocol")]
    OtherProtocol,
}

/// How often a host may choose another protocol than was hoped for before a request is told that it has no connection.
const MOST_CHANGES: u32 = 3;

/// What is offered where the choice is the host's, the better first.
const EITHER: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Whether the host chose HTTP/2 in its handshake.
fn chose_http2(facts: &ConnectionFacts) -> bool {
    facts.tls.as_ref().and_then(|tls| tls.alpn.as_deref()) == Some("h2")
}

/// How a stream to a host ended before its response had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamReset {
    /// The connection was closed or failed.
    Termination,
    /// The host reset the stream (HTTP/2 error code).
    Remote(u32),
    /// The host refused the stream: it did nothing with it.
    Refused,
    /// The host sent what is no response.
    Protocol,
}

/// Who asks, and for what.
pub(crate) struct StreamRequest<'a> {
    pub cluster: &'a Arc<Cluster>,
    pub host: &'a Arc<Host>,
    pub priority: RoutingPriority,
    pub head: &'a RequestHead,
    /// What the downstream connection speaks, for `use_downstream_protocol_config`.
    pub downstream: http::Version,
    /// What may be shared with the connection.
    pub state: &'a FilterState,
    /// Whom the connection must be for, where the cluster's hosts are told.
    pub proxied: Option<Arc<Proxied>>,
    /// The request asks to leave HTTP: what follows the head goes up once the host has agreed.
    pub tunnel: bool,
    /// The request's payload leaves HTTP here: it goes to the host as plain bytes.
    pub terminate: Option<Terminate>,
    pub informational: &'a dyn OnInformational,
    /// Where its bytes are counted, if anybody asks.
    pub bytes: Option<&'a Arc<WireBytes>>,
    /// Where it counts that a client is not read from while the host takes no more.
    pub client: Option<&'a HttpStats>,
}

/// Who is told of informational responses.
pub(crate) trait OnInformational: Sync {
    /// # Errors
    /// The host sends too many.
    fn informational(&self, head: ResponseHead) -> Result<(), StreamReset>;
}

/// How a CONNECT ends.
#[derive(Debug, Clone)]
pub(crate) enum Terminate {
    /// In a TCP connection; `first` goes up before the payload (PROXY protocol).
    Tcp { first: Option<Bytes> },
    /// In UDP packets.
    Udp,
}

/// More informational responses than this to one request are no answer but a flood.
const MAX_INFORMATIONAL: usize = 32;

/// Informational responses on their way from the host to the client: what has arrived, and what the filters let pass.
#[derive(Debug, Default, Clone)]
pub(crate) struct Informational(Arc<Mutex<InformationalQueue>>);

#[derive(Debug, Default)]
struct InformationalQueue {
    arrived: Vec<ResponseHead>,
    passed: Vec<ResponseHead>,
    total: usize,
}

impl OnInformational for Informational {
    fn informational(&self, head: ResponseHead) -> Result<(), StreamReset> {
        let mut queue = self.0.lock();
        queue.total += 1;
        if queue.total > MAX_INFORMATIONAL {
            return Err(StreamReset::Protocol);
        }
        queue.arrived.push(head);
        Ok(())
    }
}

impl Informational {
    /// Hands on what has arrived, each head changed by whoever stands in the way.
    pub(crate) fn pass(&self, mut change: impl FnMut(&mut ResponseHead)) {
        let mut queue = self.0.lock();
        let queue = &mut *queue;
        queue.arrived.iter_mut().for_each(&mut change);
        queue.passed.append(&mut queue.arrived);
    }

    /// What may go to the client.
    pub(crate) fn take(&self) -> Vec<ResponseHead> {
        std::mem::take(&mut self.0.lock().passed)
    }
}

/// A connection as logs name it.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionFacts {
    pub id: u64,
    pub local: Option<Address>,
    pub protocol: http::Version,
    pub connect_start: Instant,
    pub connected: Instant,
    /// What whoever opened its pool has shared with it.
    pub shared: Option<Arc<FilterState>>,
    /// What its handshake agreed on.
    pub tls: Option<Arc<TlsInfo>>,
}

impl ConnectionFacts {
    /// A lease has its connection until it is finished, and then nobody can ask it any more.
    fn of_none() -> &'static Self {
        static NONE: std::sync::OnceLock<ConnectionFacts> = std::sync::OnceLock::new();
        NONE.get_or_init(|| Self {
            id: 0,
            local: None,
            protocol: http::Version::HTTP_11,
            connect_start: Instant::now(),
            connected: Instant::now(),
            shared: None,
            tls: None,
        })
    }
}

/// A stream that has its connection; nothing was sent on it yet.
pub(crate) enum Stream {
    H1(Box<h1::Lease>),
    H2(Box<h2::Lease>),
    /// Plain bytes.
    Tcp(Box<TcpLease>),
    /// Packets.
    Udp(UdpSocket),
}

/// A response that has begun, and what still goes up.
pub(crate) struct Begun {
    pub response: Response,
    pub pump: Option<Pump>,
    /// When it is over, whatever of the response is still to come.
    pub over: Option<TryLimit>,
}

impl Begun {
    /// One that may last.
    fn new(head: ResponseHead, body: Body, pump: Option<Pump>) -> Self {
        Self { response: Response { head, body }, pump, over: None }
    }
}

impl Stream {
    /// Waits for a connection to the host.
    pub(crate) async fn open(request: &StreamRequest<'_>) -> Result<Self, PoolError> {
        match request.terminate {
            Some(Terminate::Tcp { .. }) => {
                let wanted = Wanted { proxied: request.proxied.clone(), ..Wanted::default() };
                let lease = connect_tcp(request.cluster, request.host, request.priority, request.state, &wanted);
                let lease = Box::pin(lease).await?;
                return Ok(Self::Tcp(Box::new(lease)));
            }
            Some(Terminate::Udp) => return udp::open(request.cluster, request.host).map(Self::Udp),
            None => {}
        }
        let mut http2 = match request.cluster.config().http.protocol {
            HttpProtocol::Http1(_) => false,
            HttpProtocol::Http2(_) => true,
            HttpProtocol::Downstream(..) => request.downstream == http::Version::HTTP_2,
            // Until a handshake has said what the host speaks, the better is hoped for.
            HttpProtocol::Auto(..) => !request.host.state.speaks_http1(),
        };
        let mut opened = Self::open_http(request, http2).await;
        for _ in 0..MOST_CHANGES {
            if !matches!(opened, Err(PoolError::OtherProtocol)) {
                break;
            }
            // The connection is in the other pool, unless somebody was faster.
            http2 = !http2;
            opened = Self::open_http(request, http2).await;
        }
        opened
    }

    async fn open_http(request: &StreamRequest<'_>, http2: bool) -> Result<Self, PoolError> {
        if http2 {
            h2::open(request).await.map(|lease| Self::H2(Box::new(lease)))
        } else {
            h1::open(request).await.map(|lease| Self::H1(Box::new(lease)))
        }
    }

    /// Where there is a connection: UDP has none.
    pub(crate) fn facts(&self) -> Option<&ConnectionFacts> {
        match self {
            Self::H1(lease) => Some(lease.facts()),
            Self::H2(lease) => Some(lease.facts()),
            Self::Tcp(lease) => Some(&lease.facts),
            Self::Udp(_) => None,
        }
    }

    /// Sends the request and waits for the response's head. Dropping the future resets the stream.
    pub(crate) async fn send(self, request: &StreamRequest<'_>, body: Body) -> Result<Begun, StreamReset> {
        match self {
            Self::H1(lease) => h1::send(*lease, request, body).await,
            Self::H2(lease) => h2::send(*lease, request, body).await,
            Self::Tcp(lease) => {
                let first = match &request.terminate {
                    Some(Terminate::Tcp { first }) => first.clone(),
                    Some(Terminate::Udp) | None => None,
                };
                Ok(payload::send(*lease, first, request.bytes, body))
            }
            Self::Udp(socket) => Ok(udp::send(socket, request.bytes, body)),
        }
    }
}

/// The pools of one worker.
#[derive(Default)]
struct Pools {
    h1: place::Map<h1::State>,
    h2: place::Map<h2::State>,
    sweeping: bool,
    /// The process leaves: no connection is kept that nobody uses.
    leaving: bool,
}

thread_local! {
    static POOLS: RefCell<Pools> = RefCell::default();
}

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Starts this worker's sweeper, once: it closes what is idle too long, what hosts have closed, and what belongs to hosts
/// that are gone.
fn ensure_sweeper(pools: &mut Pools) {
    if std::mem::replace(&mut pools.sweeping, true) {
        return;
    }
    tokio::spawn(async {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let now = Instant::now();
            POOLS.with_borrow_mut(|pools| {
                let rest = pools.leaving.then_some(SWEEP_INTERVAL);
                pools.h1.retain(|_, pool| pool.sweep(now, rest));
                pools.h2.retain(|_, pool| pool.sweep(now, rest));
            });
        }
    });
}

/// From now on this worker closes connections to hosts soon after their last request: the process leaves, and it may be one of
/// its own listeners that waits for their end.
pub(crate) fn leave() {
    POOLS.with_borrow_mut(|pools| pools.leaving = true);
}

/// What every open connection holds while it lives: its place in the breakers, the gauges, the host's count.
struct Open {
    cluster: Arc<Cluster>,
    started: Instant,
    /// The host's when it was made.
    epoch: u32,
    /// Requests that it carried.
    requests: u32,
    /// Whether the host closed it.
    remote: bool,
    busy: bool,
    /// The last request was answered before all of it had gone up.
    unfinished: bool,
    _permit: Permit,
    _host: OpenConnection,
}

impl Open {
    fn new(cluster: &Arc<Cluster>, host: &Host, permit: Permit) -> Self {
        let traffic = &cluster.stats().traffic;
        traffic.upstream_cx_total().inc();
        traffic.upstream_cx_active().inc();
        Self {
            cluster: Arc::clone(cluster),
            started: Instant::now(),
            epoch: host.state.epoch(),
            requests: 0,
            remote: false,
            busy: false,
            unfinished: false,
            _permit: permit,
            _host: host.state.open_connection(),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let traffic = &self.cluster.stats().traffic;
        let (name, who) = (self.cluster.name(), if self.remote { "host" } else { "proxy" });
        tracing::debug!("connection of cluster '{name}' closed by the {who} after {} requests", self.requests);
        traffic.upstream_cx_active().dec();
        traffic.upstream_cx_destroy().inc();
        if self.remote {
            traffic.upstream_cx_destroy_remote().inc();
        } else {
            traffic.upstream_cx_destroy_local().inc();
        }
        if self.busy {
            traffic.upstream_cx_destroy_with_active_rq().inc();
            if self.remote {
                traffic.upstream_cx_destroy_remote_with_active_rq().inc();
            } else {
                traffic.upstream_cx_destroy_local_with_active_rq().inc();
            }
        }
        traffic.upstream_cx_length_ms().record(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        traffic.upstream_rq_per_cx().record(u64::from(self.requests));
    }
}

/// A request that is under way on a connection: until its response is whole, or it was reset.
struct Active {
    cluster: Arc<Cluster>,
    _permit: Permit,
    _host: InFlight,
}

impl Active {
    /// Takes a place among the cluster's requests; `None` when there is none left.
    fn begin(cluster: &Arc<Cluster>, host: &Host, priority: RoutingPriority) -> Option<Self> {
        let traffic = &cluster.stats().traffic;
        let Some(permit) = cluster.breakers(priority).acquire(Resource::Requests) else {
            tracing::debug!("max streams overflow: cluster '{}'", cluster.name());
            traffic.upstream_rq_pending_overflow().inc();
            // It had its connection: the host failed it, as in Envoy.
            host.state.count(HostCounter::RequestError);
            return None;
        };
        traffic.upstream_rq_total().inc();
        traffic.upstream_rq_active().inc();
        Some(Self { cluster: Arc::clone(cluster), _permit: permit, _host: host.begin_request() })
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.cluster.stats().traffic.upstream_rq_active().dec();
    }
}

/// A request that waits for a connection.
struct Pending {
    cluster: Arc<Cluster>,
    _permit: Permit,
    _host: Waiting,
    /// Its connection came, or cannot be made.
    settled: bool,
}

impl Pending {
    fn begin(cluster: &Arc<Cluster>, host: &Host, priority: RoutingPriority) -> Option<Self> {
        let traffic = &cluster.stats().traffic;
        let Some(permit) = cluster.breakers(priority).acquire(Resource::PendingRequests) else {
            tracing::debug!("max pending streams overflow: cluster '{}'", cluster.name());
            traffic.upstream_rq_pending_overflow().inc();
            return None;
        };
        traffic.upstream_rq_pending_total().inc();
        traffic.upstream_rq_pending_active().inc();
        Some(Self { cluster: Arc::clone(cluster), _permit: permit, _host: host.state.wait(), settled: false })
    }

    /// Takes what the pool had to say; whoever stops waiting before that has cancelled.
    fn settle<T>(mut self, result: Result<T, PoolError>) -> Result<T, PoolError> {
        self.settled = true;
        if result.as_ref().is_err_and(|error| !matches!(error, PoolError::OtherProtocol)) {
            self.cluster.stats().traffic.upstream_rq_pending_failure_eject().inc();
        }
        result
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let traffic = &self.cluster.stats().traffic;
        traffic.upstream_rq_pending_active().dec();
        if !self.settled {
            traffic.upstream_rq_cancelled().inc();
        }
    }
}

/// Who waits for a connection, first come first served. Those that gave up are skipped.
struct Waiters<T>(VecDeque<oneshot::Sender<Result<T, PoolError>>>);

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Waiters<T> {
    fn join(&mut self) -> oneshot::Receiver<Result<T, PoolError>> {
        let (sender, receiver) = oneshot::channel();
        self.0.push_back(sender);
        receiver
    }

    fn len(&mut self) -> usize {
        self.0.retain(|waiter| !waiter.is_closed());
        self.0.len()
    }

    /// Who has waited longest, even if he has given up since.
    fn next(&mut self) -> Option<oneshot::Sender<Result<T, PoolError>>> {
        self.0.pop_front()
    }

    /// Gives a connection to the first that still waits; back when nobody does.
    fn serve(&mut self, mut connection: T) -> Option<T> {
        while let Some(waiter) = self.next() {
            match waiter.send(Ok(connection)) {
                Ok(()) => return None,
                Err(Ok(back)) => connection = back,
                Err(Err(_)) => return None,
            }
        }
        Some(connection)
    }

    fn fail(&mut self, error: &PoolError) {
        for waiter in self.0.drain(..) {
            // One that gave up needs no answer.
            let _ = waiter.send(Err(error.clone()));
        }
    }
}

/// A place for one more connection: within the breaker and the host's own limit, or because the pool has none at all.
fn connection_permit(cluster: &Arc<Cluster>, host: &Host, priority: RoutingPriority, first: bool) -> Option<Permit> {
    let breakers = cluster.breakers(priority);
    if breakers.allows_connection_to(host)
        && let Some(permit) = breakers.acquire(Resource::Connections)
    {
        return Some(permit);
    }
    tracing::debug!("max connections overflow: cluster '{}'", cluster.name());
    cluster.stats().traffic.upstream_cx_overflow().inc();
    first.then(|| breakers.take(Resource::Connections))
}

/// Accounts for a failed connect, and for the end of what was to become a connection.
fn count_connect_failure(cluster: &Cluster, host: &Host, error: &ConnectError, mut open: Open) -> PoolError {
    // A host that refuses has ended it, as in Envoy.
    open.remote = matches!(error, ConnectError::Immediate(_) | ConnectError::Io(_) | ConnectError::Tls(_));
    drop(open);
    if let ConnectError::Unnameable(reason) = error {
        return PoolError::Unnameable(Arc::clone(reason));
    }
    let traffic = &cluster.stats().traffic;
    host.state.count(HostCounter::ConnectFail);
    traffic.upstream_cx_connect_fail().inc();
    match error {
        ConnectError::Timeout => {
            traffic.upstream_cx_connect_timeout().inc();
            PoolError::Timeout
        }
        ConnectError::Prepare(error) => {
            if matches!(error, NotPrepared::Bind(..)) {
                traffic.bind_errors().inc();
            }
            PoolError::Local(connect::local_reason(error))
        }
        ConnectError::Immediate(error) => PoolError::Connect(connect::immediate_reason(error, &host.address)),
        ConnectError::Io(error) => PoolError::Connect(connect::reason(error)),
        ConnectError::Tls(reason) | ConnectError::Unnameable(reason) => PoolError::Connect(Arc::clone(reason)),
    }
}
