//! `envoy.filters.network.tcp_proxy`: a connection to a host for each connection, bytes both ways, half closes kept.
//! It must not know protocols above TCP.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use tidegate_filters::access_log::AccessLog;
use tidegate_filters::format::FormatContext;
use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};
use tidegate_stats::stats_block;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::host::{Host, HostCounter};
use crate::cluster::lb::PickContext;
use crate::cluster::pool::{PoolError, TcpLease, connect_tcp};
use crate::io::Transport;
use crate::listener::accept::Chosen;
use crate::listener::drain::Drain;

stats_block! {
    /// `tcp.<stat_prefix>.*`.
    pub struct TcpStats {
        counters {
            downstream_cx_no_route, downstream_cx_rx_bytes_total, downstream_cx_total, downstream_cx_tx_bytes_total,
            downstream_flow_control_paused_reading_total, downstream_flow_control_resumed_reading_total,
            early_data_received_count_total, idle_timeout, max_downstream_connection_duration, upstream_flush_total,
        }
        gauges { downstream_cx_rx_bytes_buffered, downstream_cx_tx_bytes_buffered, upstream_flush_active }
        histograms {}
    }
}

/// One cluster that connections may go to.
#[derive(Debug, Clone)]
pub struct TcpCluster {
    pub name: Arc<str>,
    pub weight: u32,
}

/// A TCP proxy, compiled.
pub struct TcpProxy {
    pub stats: TcpStats,
    /// At least one; more share by weight.
    pub clusters: Vec<TcpCluster>,
    pub idle_timeout: Option<Duration>,
    pub max_downstream_connection_duration: Option<Duration>,
    pub max_connect_attempts: u32,
    /// Hash the client's address for hashing balancers.
    pub hash_source_ip: bool,
    pub access_logs: Vec<Arc<AccessLog>>,
}

impl TcpProxy {
    fn choose(&self, random: u64) -> Option<&Arc<str>> {
        let total: u64 = self.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        let mut left = random % total.max(1);
        for cluster in &self.clusters {
            let weight = u64::from(cluster.weight);
            if left < weight {
                return Some(&cluster.name);
            }
            left -= weight;
        }
        self.clusters.first().map(|cluster| &cluster.name)
    }
}

/// Proxies one connection to its end.
pub(crate) async fn serve(chosen: Chosen, proxy: Arc<TcpProxy>) {
    let Chosen { shared, chain, info, transport, .. } = chosen;
    proxy.stats.downstream_cx_total().inc();
    let mut info = StreamInfo::new(Arc::new(info), Instant::now(), SystemTime::now());
    let snapshot = shared.snapshot();
    let name = proxy.choose(rand::random());
    let cluster = name.and_then(|name| snapshot.clusters.get(name)).map(Arc::clone);
    drop(snapshot);
    match cluster {
        Some(cluster) => {
            info.upstream.cluster = Some(Arc::clone(cluster.name()));
            match connect(&proxy, &cluster, &mut info).await {
                Ok(lease) => relay(&proxy, &chain.drain, transport, lease, &mut info).await,
                Err(details) => {
                    info.details = Some(details);
                    transport.abort();
                }
            }
        }
        None => {
            proxy.stats.downstream_cx_no_route().inc();
            info.flags |= ResponseFlags::NO_CLUSTER_FOUND;
        }
    }
    info.end = Some(Instant::now());
    for log in &proxy.access_logs {
        log.log(&FormatContext::of(&info));
    }
}

/// Connects to a host, trying others as often as configured.
async fn connect(
    proxy: &TcpProxy,
    cluster: &Arc<Cluster>,
    info: &mut StreamInfo,
) -> Result<TcpLease, Cow<'static, str>> {
    let hash = proxy.hash_source_ip.then(|| {
        let ip = info.downstream_remote.ip().map(|address| address.ip().to_string()).unwrap_or_default();
        xxhash_rust::xxh64::xxh64(ip.as_bytes(), 0)
    });
    for attempt in 1..=proxy.max_connect_attempts.max(1) {
        let Some(host) = choose_host(cluster, hash) else {
            cluster.stats().traffic.upstream_cx_none_healthy().inc();
            info.flags |= ResponseFlags::NO_HEALTHY_UPSTREAM;
            return Err("no_healthy_upstream".into());
        };
        info.upstream.attempts = attempt;
        info.upstream.host = Some(host.address.clone());
        match connect_tcp(cluster, &host, RoutingPriority::Default).await {
            Ok(lease) => {
                info.upstream.local_address.clone_from(&lease.facts.local);
                info.upstream.connection_id = Some(lease.facts.id);
                host.state.count(HostCounter::Requests);
                return Ok(lease);
            }
            Err(PoolError::Overflow) => {
                info.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
                return Err("upstream_overflow".into());
            }
            Err(PoolError::Connect(reason)) => info.upstream.transport_failure_reason = Some(reason),
            Err(PoolError::Timeout) => info.upstream.transport_failure_reason = Some("connection timeout".into()),
        }
    }
    cluster.stats().traffic.upstream_cx_connect_attempts_exceeded().inc();
    info.flags |= ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
    Err("upstream_connection_failure".into())
}

fn choose_host(cluster: &Cluster, hash: Option<u64>) -> Option<Arc<Host>> {
    let mut context = PickContext::new(cluster.next_sequence(), rand::random());
    context.hash = hash;
    cluster.pick(&context, None).map(|picked| picked.host)
}

async fn relay(proxy: &TcpProxy, drain: &Drain, down: Transport, lease: TcpLease, info: &mut StreamInfo) {
    let (up, _held) = lease.split();
    let mut pipe = Pipe { down, up, upward: Copy::new(), downward: Copy::new(), last: Instant::now() };
    let started = Instant::now();
    let ended = tokio::select! {
        ended = run(&mut pipe, proxy.idle_timeout) => ended,
        () = drain.until_cut() => Ended::Cut,
        () = lasts(proxy.max_downstream_connection_duration, started) => Ended::TooLong,
    };
    match ended {
        Ended::Idle => proxy.stats.idle_timeout().inc(),
        Ended::TooLong => {
            proxy.stats.max_downstream_connection_duration().inc();
            info.flags |= ResponseFlags::DURATION_TIMEOUT;
        }
        Ended::Done | Ended::Cut | Ended::Failed(_) => {}
    }
    info.bytes.body_received = pipe.upward.moved;
    info.bytes.body_sent = pipe.downward.moved;
    info.upstream.bytes.wire_sent = pipe.upward.moved;
    info.upstream.bytes.wire_received = pipe.downward.moved;
    proxy.stats.downstream_cx_rx_bytes_total().add(pipe.upward.moved);
    proxy.stats.downstream_cx_tx_bytes_total().add(pipe.downward.moved);
    if matches!(ended, Ended::Failed(io::ErrorKind::ConnectionReset)) {
        pipe.down.abort();
        pipe.up.abort();
    }
}

async fn lasts(limit: Option<Duration>, started: Instant) {
    match limit {
        Some(limit) => tokio::time::sleep_until((started + limit).into()).await,
        None => std::future::pending().await,
    }
}

enum Ended {
    Done,
    Idle,
    TooLong,
    Cut,
    Failed(io::ErrorKind),
}

async fn run(pipe: &mut Pipe, idle: Option<Duration>) -> Ended {
    loop {
        let last = pipe.last;
        let moving = std::future::poll_fn(|cx| pipe.poll(cx));
        let Some(idle) = idle else {
            return moving.await.map_or_else(|error| Ended::Failed(error.kind()), |()| Ended::Done);
        };
        tokio::select! {
            biased;
            result = moving => return result.map_or_else(|error| Ended::Failed(error.kind()), |()| Ended::Done),
            () = tokio::time::sleep_until((last + idle).into()) => {}
        }
        if pipe.last == last {
            return Ended::Idle;
        }
    }
}

/// Both directions of one connection.
struct Pipe {
    down: Transport,
    up: Transport,
    upward: Copy,
    downward: Copy,
    last: Instant,
}

impl Pipe {
    /// Ready when both directions have ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = (self.upward.moved, self.downward.moved);
        let upward = self.upward.poll(&mut self.down, &mut self.up, cx);
        let downward = self.downward.poll(&mut self.up, &mut self.down, cx);
        if before != (self.upward.moved, self.downward.moved) {
            self.last = Instant::now();
        }
        if let Poll::Ready(Err(error)) = upward {
            return Poll::Ready(Err(error));
        }
        ready!(downward)?;
        upward
    }
}

const BUFFER_BYTES: usize = 16 << 10;

/// One direction: what was read is written before more is read, which is all the backpressure there needs to be.
struct Copy {
    /// Only there while bytes are on their way.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    moved: u64,
    ended: bool,
    closed: bool,
}

impl Copy {
    fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, moved: 0, ended: false, closed: false }
    }

    fn poll(&mut self, from: &mut Transport, to: &mut Transport, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.start < self.end {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..self.end]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += n;
                self.moved += n as u64;
            }
            if self.ended {
                if !self.closed {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            if self.buffer.is_empty() {
                self.buffer = vec![0; BUFFER_BYTES];
            }
            let mut read = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                Poll::Ready(result) => {
                    let n = read.filled().len();
                    result?;
                    (self.start, self.end) = (0, n);
                    self.ended = n == 0;
                }
                Poll::Pending => {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.buffer = Vec::new();
                    return Poll::Pending;
                }
            }
        }
    }
}
