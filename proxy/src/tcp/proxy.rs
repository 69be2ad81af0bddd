//! `envoy.filters.network.tcp_proxy`: a connection to a host for each connection, bytes both ways, half closes kept.
//! It must not know protocols above TCP.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_filters::access_log::AccessLog;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};
use tidegate_stats::stats_block;
use tokio::io::AsyncReadExt;

use super::connect::{self, BackOff};
use super::pipe::{Ended, Moved, Pipe, Side};
use crate::app::Shared;
use crate::cluster::pool::Held;
use crate::io::Transport;
use crate::listener::accept::Chosen;
use crate::listener::drain::Drain;
use crate::route::MetadataMatch;

stats_block! {
    /// `tcp.<stat_prefix>.*`.
    pub struct TcpStats {
        counters {
            downstream_cx_drain_close, downstream_cx_no_route, downstream_cx_overload_close,
            downstream_cx_rx_bytes_total, downstream_cx_total, downstream_cx_tx_bytes_total,
            downstream_flow_control_paused_reading_total, downstream_flow_control_resumed_reading_total,
            early_data_received_count_total, idle_timeout, max_downstream_connection_duration, route_delayed_total,
            upstream_flush_total,
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
    /// What hosts must say of themselves where the cluster is divided into subsets.
    pub metadata_match: Option<Arc<MetadataMatch>>,
}

/// When lines are written beside the one at the end (`access_log_options`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogOptions {
    pub on_connected: bool,
    pub interval: Option<Duration>,
}

/// A TCP proxy, compiled.
pub struct TcpProxy {
    pub stats: TcpStats,
    /// At least one; more share by weight.
    pub clusters: Vec<TcpCluster>,
    pub idle_timeout: Option<Duration>,
    pub max_downstream_connection_duration: Option<Duration>,
    /// By how many percent, at random, that duration is lengthened.
    pub duration_jitter_percent: f64,
    pub max_connect_attempts: u32,
    pub back_off: Option<BackOff>,
    /// Connect only once the client has said something, of which at most so much is read before.
    pub early_bytes: Option<usize>,
    /// Hash the client's address for hashing balancers.
    pub hash_source_ip: bool,
    pub access_logs: Vec<Arc<AccessLog>>,
    pub log_options: LogOptions,
}

impl TcpProxy {
    fn choose(&self, random: u64) -> Option<&TcpCluster> {
        let total: u64 = self.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        let mut left = random % total.max(1);
        for cluster in &self.clusters {
            let weight = u64::from(cluster.weight);
            if left < weight {
                return Some(cluster);
            }
            left -= weight;
        }
        self.clusters.first()
    }

    /// Writes a line to each access log.
    pub(crate) fn log(&self, stream: &StreamInfo, access_log_type: AccessLogType, shared: &Shared) {
        let context = FormatContext { access_log_type, runtime: shared.runtime(), ..FormatContext::of(stream) };
        for log in &self.access_logs {
            log.log(&context);
        }
    }

    /// How long a connection may last, with its jitter.
    fn longest(&self, random: f64) -> Option<Duration> {
        let jitter = 1.0 + self.duration_jitter_percent / 100.0 * random;
        self.max_downstream_connection_duration.map(|limit| limit.mul_f64(jitter))
    }
}

/// Proxies one connection to its end, and returns what is known of it then.
pub(crate) async fn serve(chosen: Chosen, proxy: &TcpProxy) -> StreamInfo {
    let Chosen { shared, chain, mut stream, mut transport } = chosen;
    proxy.stats.downstream_cx_total().inc();
    let snapshot = shared.snapshot();
    let target = proxy.choose(rand::random());
    let found = target.and_then(|target| Some((target, Arc::clone(snapshot.clusters.get(&target.name)?))));
    drop(snapshot);
    let Some((target, cluster)) = found else {
        proxy.stats.downstream_cx_no_route().inc();
        stream.flags |= ResponseFlags::NO_CLUSTER_FOUND;
        return stream;
    };
    stream.upstream.cluster = Some(Arc::clone(cluster.name()));
    stream.upstream.observability_name = Some(Arc::clone(cluster.config().observability_name()));
    stream.upstream.cluster_metadata = Some(Arc::clone(&cluster.config().metadata));
    let deadline = proxy.longest(rand::random()).map(|longest| stream.start + longest);
    let limits = Limits { proxy, drain: &chain.drain, deadline };
    let connecting = async {
        let early = read_early(proxy, &mut transport).await;
        connect::connect(proxy, target, &cluster, &mut stream).await.map(|lease| (lease, early))
    };
    let connected = tokio::select! {
        connected = connecting => connected,
        over = limits.over() => {
            limits.note(over, &mut stream);
            return stream;
        }
    };
    let Some((lease, early)) = connected else {
        transport.abort();
        return stream;
    };
    if proxy.log_options.on_connected {
        proxy.log(&stream, AccessLogType::TcpUpstreamConnected, &shared);
    }
    let (up, mut held) = lease.split();
    let pipe = Pipe::new(transport, up, early);
    relay(&limits, pipe, &mut held, &shared, &mut stream).await;
    stream
}

/// The client's first bytes (`ON_DOWNSTREAM_DATA`); none where the host is connected to at once.
async fn read_early(proxy: &TcpProxy, transport: &mut Transport) -> Vec<u8> {
    let Some(most) = proxy.early_bytes else { return Vec::new() };
    let mut early = vec![0; most.clamp(1, EARLY_READ)];
    // A failure shows again when the connection is read on.
    let n = transport.read(&mut early).await.unwrap_or(0);
    if n > 0 {
        proxy.stats.early_data_received_count_total().inc();
    }
    early.truncate(n);
    early
}

/// One read's worth: the rest is read when there is a host.
const EARLY_READ: usize = 16 << 10;

/// What ends a connection whatever it does.
struct Limits<'a> {
    proxy: &'a TcpProxy,
    drain: &'a Drain,
    deadline: Option<Instant>,
}

enum Over {
    /// The filter chain's time is over.
    Cut,
    /// `max_downstream_connection_duration`.
    TooLong,
}

impl Limits<'_> {
    async fn over(&self) -> Over {
        tokio::select! {
            () = self.drain.until_cut() => Over::Cut,
            () = until(self.deadline) => Over::TooLong,
        }
    }

    fn note(&self, over: Over, stream: &mut StreamInfo) {
        if matches!(over, Over::TooLong) {
            self.proxy.stats.max_downstream_connection_duration().inc();
            stream.flags |= ResponseFlags::DURATION_TIMEOUT;
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn relay(limits: &Limits<'_>, mut pipe: Pipe, held: &mut Held, shared: &Shared, stream: &mut StreamInfo) {
    let proxy = limits.proxy;
    let mut counted = (Moved::default(), Moved::default());
    let interval = proxy.log_options.interval;
    let mut next_line = interval.map(|interval| Instant::now() + interval);
    let ended = loop {
        tokio::select! {
            ended = pipe.run(proxy.idle_timeout) => break Some(ended),
            over = limits.over() => {
                limits.note(over, stream);
                break None;
            }
            () = until(next_line) => {
                count(proxy, &pipe, &mut counted, stream);
                proxy.log(stream, AccessLogType::TcpPeriodic, shared);
                next_line = next_line.zip(interval).map(|(moment, interval)| moment + interval);
            }
        }
    };
    count(proxy, &pipe, &mut counted, stream);
    match ended {
        None | Some(Ended::Done(Side::Down)) => {}
        Some(Ended::Done(Side::Up)) => held.closed_by_host(),
        Some(Ended::Idle) => proxy.stats.idle_timeout().inc(),
        Some(Ended::Failed(side, kind)) => {
            if side == Side::Up {
                held.closed_by_host();
                stream.flags |= ResponseFlags::UPSTREAM_REMOTE_RESET;
            }
            if kind == io::ErrorKind::ConnectionReset {
                pipe.abort();
            }
        }
    }
}

/// Brings the stream's facts and the stats up to what was moved.
fn count(proxy: &TcpProxy, pipe: &Pipe, counted: &mut (Moved, Moved), stream: &mut StreamInfo) {
    let (upward, downward) = pipe.moved();
    stream.bytes.body_received = upward.read;
    stream.bytes.body_sent = downward.written;
    stream.upstream.bytes.wire_sent = upward.written;
    stream.upstream.bytes.wire_received = downward.read;
    proxy.stats.downstream_cx_rx_bytes_total().add(upward.read - counted.0.read);
    proxy.stats.downstream_cx_tx_bytes_total().add(downward.written - counted.1.written);
    *counted = (upward, downward);
}
