//! `envoy.filters.network.tcp_proxy`: a connection to a host for each connection, bytes both ways, half closes kept.
//! It must not know protocols above TCP.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_filters::access_log::AccessLog;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::stream_info::{CloseType, ResponseFlags, StreamInfo};
use tidegate_stats::stats_block;

use super::connect::{self, BackOff, Connected, Dial, Failure};
use super::early;
use super::per_connection::{PerConnection, TcpHash};
use super::pipe::{Ended, Moved, Pipe, Side};
use super::tlvs::TcpTlvs;
use super::tunnel::{Client, Standing, Tunnel};
use crate::app::Shared;
use crate::application_log::shown::Tags;
use crate::cluster::Cluster;
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
    pub on_start: bool,
    pub on_connected: bool,
    pub interval: Option<Duration>,
}

/// A TCP proxy, compiled.
pub struct TcpProxy {
    pub stats: TcpStats,
    /// At least one; more share by weight.
    pub clusters: Vec<TcpCluster>,
    /// They came as `weighted_clusters`, be it one.
    pub weighted: bool,
    pub idle_timeout: Option<Duration>,
    pub max_downstream_connection_duration: Option<Duration>,
    /// By how many percent, at random, that duration is lengthened.
    pub duration_jitter_percent: f64,
    pub max_connect_attempts: u32,
    pub back_off: Option<BackOff>,
    /// So much is read at most before there is a host; `None` reads nothing.
    pub early_bytes: Option<usize>,
    /// Connect only once the client has said something.
    pub connects_on_data: bool,
    /// Close a connection after its next bytes while its listener drains.
    pub leaves_when_draining: bool,
    /// What hosts are told of it beside its addresses.
    pub tlvs: TcpTlvs,
    /// Carry the connection in a request to an HTTP host.
    pub tunnel: Option<Tunnel>,
    pub hash: Option<TcpHash>,
    pub access_logs: Vec<Arc<AccessLog>>,
    pub log_options: LogOptions,
}

impl TcpProxy {
    /// The cluster of a connection. Its own wish goes for the one cluster, not for weighted ones, as in Envoy.
    fn choose(&self, wished: Option<&str>, random: u64) -> Option<Cow<'_, TcpCluster>> {
        if let (Some(name), [only]) = (wished, &*self.clusters)
            && !self.weighted
        {
            return Some(Cow::Owned(TcpCluster { name: name.into(), ..only.clone() }));
        }
        let total: u64 = self.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        let mut left = random % total.max(1);
        for cluster in &self.clusters {
            let weight = u64::from(cluster.weight);
            if left < weight {
                return Some(Cow::Borrowed(cluster));
            }
            left -= weight;
        }
        self.clusters.first().map(Cow::Borrowed)
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

/// A filter before this one has closed a connection, and kept these bytes from it.
pub(crate) fn count_refused(proxy: &TcpProxy, received: u64, new: bool) {
    proxy.stats.downstream_cx_total().add(u64::from(new));
    proxy.stats.downstream_cx_rx_bytes_total().add(received);
}

/// Proxies one connection to its end, and returns what is known of it then.
pub(crate) async fn serve(chosen: Chosen, mut stream: StreamInfo, proxy: &TcpProxy) -> StreamInfo {
    let Chosen { shared, chain, mut transport, .. } = chosen;
    let tags = Tags::connection(stream.connection.id);
    tracing::debug!("{tags} new tcp proxy session");
    stream.upstream.close_type = Some(CloseType::Normal);
    proxy.stats.downstream_cx_total().inc();
    if proxy.log_options.on_start {
        proxy.log(&stream, AccessLogType::TcpConnectionStart, &shared);
    }
    let idle_timeout = |wishes: &PerConnection| wishes.idle_timeout.unwrap_or(proxy.idle_timeout);
    let mut wishes = wishes(&stream);
    let deadline = proxy.longest(rand::random()).map(|longest| stream.start + longest);
    let mut early = Vec::new();
    if proxy.connects_on_data {
        let reading = early::wait(proxy, idle_timeout(&wishes), &mut transport);
        let over = async {
            tokio::select! {
                () = chain.drain.until_cut() => Over::Cut,
                () = until(deadline) => Over::TooLong,
            }
        };
        tokio::select! {
            read = reading => match read {
                early::First::Bytes(read) => early = read,
                early::First::Gone => return stream,
                early::First::Idle => {
                    close(&mut stream, SESSION_IDLE);
                    return stream;
                }
            },
            over = over => {
                over.note(proxy, &mut stream);
                return stream;
            }
        }
        // What the first bytes made known counts too.
        wishes = self::wishes(&stream);
    }
    let snapshot = shared.snapshot();
    let target = proxy.choose(wishes.cluster.as_deref(), rand::random());
    let found = target.and_then(|target| {
        let cluster = Arc::clone(snapshot.clusters.get(&target.name)?);
        Some((target, cluster))
    });
    drop(snapshot);
    let Some((target, cluster)) = found else {
        tracing::debug!("{tags} no cluster");
        proxy.stats.downstream_cx_no_route().inc();
        stream.flags |= ResponseFlags::NO_CLUSTER_FOUND;
        stream.local_close_reason = Some(Failure::NoCluster.reason());
        return stream;
    };
    tracing::debug!("{tags} Creating connection to cluster {}", cluster.name());
    cluster.name_in(&mut stream.upstream);
    let session = Session {
        proxy,
        target: &target,
        cluster: &cluster,
        shared: &shared,
        drain: &chain.drain,
        deadline,
        idle_timeout: idle_timeout(&wishes),
    };
    match proxy.tunnel.as_ref().filter(|_| !wishes.disable_tunneling) {
        None => session.plain(transport, early, &mut stream).await,
        Some(tunnel) => Box::pin(session.tunnelled(tunnel, transport.rewind(early.into()), &mut stream)).await,
    }
    stream
}

/// What the connection's filter state wishes, as of now.
fn wishes(stream: &StreamInfo) -> PerConnection {
    PerConnection::of(&stream.connection.filter_state_now())
}

/// One connection, and where it goes.
struct Session<'a> {
    proxy: &'a TcpProxy,
    target: &'a TcpCluster,
    cluster: &'a Arc<Cluster>,
    shared: &'a Shared,
    drain: &'a Drain,
    deadline: Option<Instant>,
    idle_timeout: Option<Duration>,
}

/// Why the proxy closes a connection on which nothing happens any more.
const SESSION_IDLE: &str = "tcp_session_idle_timeout";
/// And why one that is to leave.
const DRAIN_CLOSE: &str = "tcp_proxy_drain_close";

/// The proxy closes the connection, and the host's where there is one.
fn close(stream: &mut StreamInfo, reason: &'static str) {
    stream.local_close_reason = Some(reason.into());
    stream.upstream.local_close_reason = stream.upstream.local_address.is_some().then_some(reason);
}

/// What ends a connection whatever it does.
enum Over {
    /// The filter chain's time is over.
    Cut,
    /// `max_downstream_connection_duration`.
    TooLong,
}

impl Over {
    fn note(&self, proxy: &TcpProxy, stream: &mut StreamInfo) {
        if matches!(self, Self::TooLong) {
            proxy.stats.max_downstream_connection_duration().inc();
            stream.flags |= ResponseFlags::DURATION_TIMEOUT;
            close(stream, "max_connection_duration_reached");
        }
    }
}

impl Session<'_> {
    async fn over(&self) -> Over {
        tokio::select! {
            () = self.drain.until_cut() => Over::Cut,
            () = until(self.deadline) => Over::TooLong,
        }
    }

    /// Whether the next bytes are the last.
    fn leaves(&self) -> bool {
        self.proxy.leaves_when_draining
            && (self.drain.should_close(rand::random())
                || self.drain.heeds_health_check() && self.shared.is_health_check_failing())
    }

    fn note_connected(&self, stream: &StreamInfo) {
        if self.proxy.log_options.on_connected {
            self.proxy.log(stream, AccessLogType::TcpUpstreamConnected, self.shared);
        }
    }

    /// Bytes to a host as they are.
    async fn plain(&self, mut transport: Transport, mut early: Vec<u8>, stream: &mut StreamInfo) {
        let connecting = async {
            // What it takes to connect is gone once the bytes flow.
            let connecting = Box::pin(connect::connect(self.proxy, Dial::Plain, self.target, self.cluster, stream));
            match self.proxy.early_bytes {
                Some(most) => early::beside(self.proxy, connecting, &mut transport, &mut early, most).await,
                None => connecting.await,
            }
        };
        let connected = tokio::select! {
            connected = connecting => Ok(connected),
            over = self.over() => Err(over),
        };
        match connected {
            Ok(Some(Connected::Plain(lease))) => {
                self.note_connected(stream);
                let (up, mut held) = lease.split();
                self.relay(Pipe::new(transport, up, early), &mut held, stream).await;
            }
            // Closed in order, as Envoy's; what was not read makes it a reset.
            Ok(_) => drop(transport),
            Err(over) => over.note(self.proxy, stream),
        }
    }

    async fn relay(&self, mut pipe: Pipe, held: &mut Held, stream: &mut StreamInfo) {
        let proxy = self.proxy;
        let mut counted = (Moved::default(), Moved::default());
        let mut lines = Lines::new(proxy.log_options.interval);
        let leaves = || self.leaves();
        let ended = loop {
            tokio::select! {
                ended = pipe.run(self.idle_timeout, &leaves) => break Some(ended),
                over = self.over() => {
                    over.note(proxy, stream);
                    break None;
                }
                () = lines.next() => {
                    count(proxy, pipe.moved(), &mut counted, stream);
                    proxy.log(stream, AccessLogType::TcpPeriodic, self.shared);
                }
            }
        };
        count(proxy, pipe.moved(), &mut counted, stream);
        match ended {
            None | Some(Ended::Done(Side::Down)) => {}
            Some(Ended::Done(Side::Up)) => held.closed_by_host(),
            Some(Ended::Idle) => {
                proxy.stats.idle_timeout().inc();
                close(stream, SESSION_IDLE);
            }
            Some(Ended::Leaving) => {
                proxy.stats.downstream_cx_drain_close().inc();
                close(stream, DRAIN_CLOSE);
            }
            Some(Ended::Failed(side, kind)) => {
                let reset = kind == io::ErrorKind::ConnectionReset;
                if side == Side::Up {
                    held.closed_by_host();
                    stream.flags |= ResponseFlags::UPSTREAM_REMOTE_RESET;
                }
                if reset {
                    match side {
                        Side::Down => stream.close_type = CloseType::RemoteReset,
                        Side::Up => {
                            stream.upstream.close_type = Some(CloseType::RemoteReset);
                            stream.close_type = CloseType::LocalReset;
                        }
                    }
                    pipe.abort();
                }
            }
        }
    }

    /// Bytes in a request to an HTTP host.
    async fn tunnelled(&self, tunnel: &Tunnel, transport: Transport, stream: &mut StreamInfo) {
        let client = Client::new(transport);
        let dial = Dial::Tunnel(tunnel, &client);
        let connected = tokio::select! {
            connected = connect::connect(self.proxy, dial, self.target, self.cluster, stream) => Ok(connected),
            over = self.over() => Err(over),
        };
        match connected {
            Ok(Some(Connected::Tunnel(standing))) => {
                self.note_connected(stream);
                self.relay_tunnel(standing, client, stream).await;
            }
            Ok(_) => drop(client),
            Err(over) => over.note(self.proxy, stream),
        }
    }

    async fn relay_tunnel(&self, standing: Standing, client: Client, stream: &mut StreamInfo) {
        let proxy = self.proxy;
        let passed = client.passed();
        let moved = || {
            let (received, sent) = passed.read();
            (Moved { read: received, written: received }, Moved { read: sent, written: sent })
        };
        let mut counted = (Moved::default(), Moved::default());
        let mut lines = Lines::new(proxy.log_options.interval);
        let mut running = std::pin::pin!(standing.run(client));
        passed.touch();
        loop {
            let last = passed.last();
            let idle = self.idle_timeout.map(|limit| last + limit);
            tokio::select! {
                () = &mut running => break,
                () = passed.more(), if proxy.leaves_when_draining => {
                    if self.leaves() {
                        proxy.stats.downstream_cx_drain_close().inc();
                        close(stream, DRAIN_CLOSE);
                        break;
                    }
                }
                over = self.over() => {
                    over.note(proxy, stream);
                    break;
                }
                () = lines.next() => {
                    count(proxy, moved(), &mut counted, stream);
                    proxy.log(stream, AccessLogType::TcpPeriodic, self.shared);
                }
                () = until(idle) => {
                    if passed.last() == last {
                        proxy.stats.idle_timeout().inc();
                        close(stream, SESSION_IDLE);
                        break;
                    }
                }
            }
        }
        count(proxy, moved(), &mut counted, stream);
        passed.tell_trailers(stream);
    }
}

pub(super) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// When the next periodic line is due.
struct Lines {
    interval: Option<Duration>,
    due: Option<Instant>,
}

impl Lines {
    fn new(interval: Option<Duration>) -> Self {
        Self { interval, due: interval.map(|interval| Instant::now() + interval) }
    }

    async fn next(&mut self) {
        until(self.due).await;
        self.due = self.due.zip(self.interval).map(|(due, interval)| due + interval);
    }
}

/// Brings the stream's facts and the stats up to what was moved up and down.
fn count(proxy: &TcpProxy, moved: (Moved, Moved), counted: &mut (Moved, Moved), stream: &mut StreamInfo) {
    let (upward, downward) = moved;
    stream.bytes.body_received = upward.read;
    stream.bytes.body_sent = downward.written;
    stream.upstream.bytes.wire_sent = upward.written;
    stream.upstream.bytes.wire_received = downward.read;
    proxy.stats.downstream_cx_rx_bytes_total().add(upward.read - counted.0.read);
    proxy.stats.downstream_cx_tx_bytes_total().add(downward.written - counted.1.written);
    *counted = moved;
}
