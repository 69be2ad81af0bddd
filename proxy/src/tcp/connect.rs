//! Connects a TCP proxy to a host, trying others as often as configured, with a growing wait in between.
//! It must not know what flows on the connection.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};

use super::proxy::{TcpCluster, TcpProxy};
use super::tunnel::{Client, Refused, Standing, Tunnel};
use crate::application_log::shown::Tags;
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::host::{Host, HostCounter};
use crate::cluster::lb::{MetadataMatch, PickContext};
use crate::cluster::pool::{PoolError, TcpLease, connect_tcp};
use crate::cluster::proxied::Proxied;
use crate::tls::Wanted;

/// `backoff_options`: how long is waited between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    pub base: Duration,
    pub most: Duration,
}

impl BackOff {
    /// Before the attempt after `failed` ones: a random part of a limit that doubles.
    fn wait(self, failed: u32, random: u64) -> Duration {
        let limit =
            self.base.saturating_mul(1u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX)).min(self.most);
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random % nanos.max(1))
    }
}

/// How a host is reached.
#[derive(Clone, Copy)]
pub(super) enum Dial<'a> {
    Plain,
    Tunnel(&'a Tunnel, &'a Client),
}

/// What reaches a host.
pub(super) enum Connected {
    Plain(TcpLease),
    Tunnel(Standing),
}

/// A way to a host; `None` when none could be had, which the stream's flags then say.
pub(super) async fn connect(
    proxy: &TcpProxy,
    dial: Dial<'_>,
    target: &TcpCluster,
    cluster: &Arc<Cluster>,
    stream: &mut StreamInfo,
) -> Option<Connected> {
    let began = Instant::now();
    let connected = try_hosts(proxy, dial, target, cluster, stream).await;
    stream.upstream.pool_wait = Some(began.elapsed());
    match connected {
        Ok(connected) => Some(connected),
        Err(failure) => {
            stream.local_close_reason = Some(failure.reason());
            None
        }
    }
}

/// Why a connection has no host, by Envoy's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Connect = 0,
    NoHost = 1,
    Overflow = 2,
    NoCluster = 3,
}

impl Failure {
    /// Why the downstream connection is closed, spelled as Envoy spells it.
    pub(super) fn reason(self) -> Cow<'static, str> {
        format!("tcp_initializion_failure:{}", self as u8).into()
    }
}

async fn try_hosts(
    proxy: &TcpProxy,
    dial: Dial<'_>,
    target: &TcpCluster,
    cluster: &Arc<Cluster>,
    stream: &mut StreamInfo,
) -> Result<Connected, Failure> {
    let hash = proxy
        .hash
        .as_ref()
        .and_then(|hash| hash.of(stream.downstream_remote.ip(), &stream.connection.filter_state_now()));
    let proxied = cluster.config().transport_sockets.name_clients().then(|| proxy.tlvs.proxied(stream));
    let attempts = proxy.max_connect_attempts.max(1);
    for attempt in 1..=attempts {
        let Some(host) = choose_host(target, cluster, hash) else {
            cluster.stats().traffic.upstream_cx_none_healthy().inc();
            stream.flags |= ResponseFlags::NO_HEALTHY_UPSTREAM;
            return Err(Failure::NoHost);
        };
        note_host(&host, attempt, stream);
        match reach(dial, cluster, &host, proxied.clone(), stream).await {
            Ok(connected) => {
                let tags = Tags::connection(stream.connection.id);
                tracing::debug!("{tags} connected to {} of cluster {}", host.address, cluster.name());
                host.state.count(HostCounter::Requests);
                return Ok(connected);
            }
            Err(Refused::Pool(refused @ (PoolError::Overflow | PoolError::NoPool))) => {
                let (flag, failure) = match refused {
                    PoolError::NoPool => (ResponseFlags::NO_HEALTHY_UPSTREAM, Failure::NoHost),
                    _ => (ResponseFlags::UPSTREAM_OVERFLOW, Failure::Overflow),
                };
                stream.flags |= flag;
                forget_host(stream);
                return Err(failure);
            }
            Err(refused) => stream.upstream.transport_failure_reason = reason(refused),
        }
        let why = stream.upstream.transport_failure_reason.as_deref().unwrap_or_default();
        tracing::debug!("{} connect attempt {attempt} failed: {why}", Tags::connection(stream.connection.id));
        stream.flags |= ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
        if let Some(back_off) = proxy.back_off.filter(|_| attempt < attempts) {
            tokio::time::sleep(back_off.wait(attempt, rand::random())).await;
        }
    }
    cluster.stats().traffic.upstream_cx_connect_attempts_exceeded().inc();
    stream.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
    Err(Failure::Connect)
}

async fn reach(
    dial: Dial<'_>,
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    proxied: Option<Arc<Proxied>>,
    stream: &mut StreamInfo,
) -> Result<Connected, Refused> {
    let Dial::Tunnel(tunnel, client) = dial else {
        let state = stream.connection.filter_state_now().into_owned();
        let wanted = Wanted { proxied, ..Wanted::default() };
        let lease = connect_tcp(cluster, host, RoutingPriority::Default, &state, &wanted).await;
        let lease = lease.map_err(Refused::Pool)?;
        stream.upstream.filter_state.clone_from(&lease.facts.shared);
        stream.upstream.local_address.clone_from(&lease.facts.local);
        stream.upstream.connection_id = Some(lease.facts.id);
        stream.upstream.tls.clone_from(&lease.facts.tls);
        stream.timings.upstream_connect_start = Some(lease.facts.connect_start);
        stream.timings.upstream_connect_complete = Some(Instant::now());
        return Ok(Connected::Plain(lease));
    };
    tunnel.open(cluster, host, client, proxied, stream).await.map(Connected::Tunnel)
}

/// Envoy's `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
fn reason(refused: Refused) -> Option<Arc<str>> {
    match refused {
        Refused::Pool(PoolError::Connect(reason) | PoolError::Local(reason) | PoolError::Unnameable(reason)) => {
            Some(reason)
        }
        Refused::Pool(PoolError::Timeout) => Some("connection timeout".into()),
        Refused::Status(status) => Some(format!("tunnel_response:{}", status.as_u16()).into()),
        Refused::Pool(PoolError::Overflow | PoolError::NoPool | PoolError::OtherProtocol) | Refused::Reset => None,
    }
}

fn choose_host(target: &TcpCluster, cluster: &Cluster, hash: Option<u64>) -> Option<Arc<Host>> {
    let mut context = PickContext::new(cluster.next_sequence(), rand::random());
    context.hash = hash;
    let divided = cluster.config().balancing.subsets.is_some();
    let wanted = target.metadata_match.as_ref().filter(|_| divided).map(|wanted| MetadataMatch::new(&wanted.0));
    context.metadata_match = wanted.as_ref();
    cluster.pick(&context, None).map(|picked| picked.host)
}

/// A breaker speaks for the cluster, not for the host.
fn forget_host(stream: &mut StreamInfo) {
    let upstream = &mut stream.upstream;
    (upstream.host, upstream.host_name, upstream.locality, upstream.host_metadata) = (None, None, None, None);
}

fn note_host(host: &Arc<Host>, attempt: u32, stream: &mut StreamInfo) {
    let upstream = &mut stream.upstream;
    upstream.remember_host();
    upstream.attempts = attempt;
    upstream.connection_id = None;
    upstream.host = Some(host.address.clone());
    upstream.host_name = Some(Arc::clone(&host.hostname));
    upstream.locality = Some(Arc::clone(&host.locality));
    upstream.host_metadata = Some(Arc::clone(&host.metadata));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most() {
        let back_off = BackOff { base: Duration::from_millis(100), most: Duration::from_millis(350) };
        let longest = |failed| (0..1000).map(|random| back_off.wait(failed, random * 1_000_003)).max().unwrap();
        for (failed, limit) in [(1, 100), (2, 200), (3, 350), (99, 350)] {
            let longest = longest(failed);
            let limit = Duration::from_millis(limit);
            assert!(longest <= limit && longest > limit * 9 / 10, "{failed}: {longest:?}");
        }
    }
}
