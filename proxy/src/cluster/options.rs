//! A cluster's configuration as compiled values (Envoy's `Cluster` message and its `HttpProtocolOptions`; fields by the same
//! names). It must not know protos; `config/cluster` fills it, everyone else reads it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tidegate_filters::metadata::Metadata;
use tokio::net::TcpSocket;

use super::circuit_breaker::{RoutingPriority, Thresholds};
use super::dns::DnsOptions;
use super::endpoint::{Assignment, Name};
use super::lb::Balancing;
use super::sockets::TransportSockets;
use crate::http::options::FilterChain;
use crate::http::protocol::{Http1Options, Http2Options};
use crate::listener::socket::set_option;
use crate::listener::{SocketOption, SocketState};
use crate::route::{HashPolicy, MirrorPolicy, RetryPolicy};

/// One cluster as configured. Immutable.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    pub name: Arc<str>,
    /// `alt_stat_name`: what stats and logs show instead of the name.
    pub alt_stat_name: Option<Arc<str>>,
    pub discovery: Discovery,
    pub connect_timeout: Duration,
    /// `per_connection_buffer_limit_bytes`: soft limit of what is buffered for a connection.
    pub buffer_limit_bytes: u32,
    /// `preconnect_policy.per_upstream_preconnect_ratio`: connections for each request that is under way or waits.
    pub preconnect_ratio: f64,
    /// By routing priority.
    pub thresholds: Arc<[Thresholds; 2]>,
    pub balancing: Balancing,
    /// Most clusters say the same: they share it.
    pub http: Arc<HttpOptions>,
    /// Most say nothing here: they share it.
    pub connection: Arc<ConnectionOptions>,
    pub transport_sockets: TransportSockets,
    pub metadata: Arc<Metadata>,
    /// `http_filters` of its `HttpProtocolOptions`, without the codec.
    pub upstream_filters: FilterChain,
    /// The zone of this process, where it is known: stats count by it.
    pub own_zone: Option<Arc<str>>,
    pub track_timeout_budgets: bool,
    pub track_request_response_sizes: bool,
    /// Whether those who start wait for its first hosts.
    pub wait_for_warm_on_init: bool,
    /// Whether it came through CDS; compiling leaves it false.
    pub added_via_api: bool,
}

impl ClusterConfig {
    /// The name that stats and logs show.
    pub fn observability_name(&self) -> &Arc<str> {
        self.alt_stat_name.as_ref().unwrap_or(&self.name)
    }

    /// What the names of its stats begin with; colons in its own become underscores, as in Envoy.
    pub fn stats_prefix(&self) -> String {
        format!("cluster.{}.", self.observability_name().replace(':', "_"))
    }

    /// How names are resolved, in a DNS cluster.
    pub fn dns_options(&self) -> Option<&DnsOptions> {
        match &self.discovery {
            Discovery::StrictDns(dns) | Discovery::LogicalDns(dns) => Some(&dns.options),
            Discovery::Static(_) | Discovery::Eds(_) => None,
        }
    }

    /// Whether there are to be more connections than requests need.
    pub fn preconnects(&self) -> bool {
        self.preconnect_ratio > 1.0
    }

    pub fn thresholds(&self, priority: RoutingPriority) -> &Thresholds {
        &self.thresholds[priority as usize]
    }
}

/// Where the hosts come from.
#[derive(Debug, Clone)]
pub enum Discovery {
    Static(Box<Assignment>),
    Eds(Eds),
    /// Every address of a name is a host.
    StrictDns(Box<Dns>),
    /// One host, whose addresses are what the name resolves to when a connection is made.
    LogicalDns(Box<Dns>),
}

/// Endpoints from EDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eds {
    /// `eds_cluster_config.service_name`, or the cluster's name.
    pub service_name: Arc<str>,
}

/// Endpoints from DNS.
#[derive(Debug, Clone)]
pub struct Dns {
    pub targets: Assignment<Name>,
    pub options: DnsOptions,
}

/// `HttpProtocolOptions` and the deprecated fields beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpOptions {
    pub protocol: HttpProtocol,
    /// How long a connection without requests stays open; `None` for ever.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// How long one try may last, its response's body included.
    pub max_stream_duration: Option<Duration>,
    /// Response headers.
    pub max_headers_count: u32,
    /// Unset, each protocol has a limit of its own.
    pub max_response_headers_bytes: Option<u32>,
    pub max_requests_per_connection: Option<u32>,
    pub policies: RequestPolicies,
    pub auto_sni: bool,
    pub auto_san_validation: bool,
    pub override_auto_sni_header: Option<http::HeaderName>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            protocol: HttpProtocol::Http1(Http1Options::default()),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_headers_count: 100,
            max_response_headers_bytes: None,
            max_requests_per_connection: None,
            policies: RequestPolicies::default(),
            auto_sni: false,
            auto_san_validation: false,
            override_auto_sni_header: None,
        }
    }
}

/// What holds for all requests to a cluster, whatever their routes say.
#[derive(Debug, Clone, Default)]
pub struct RequestPolicies {
    pub retry: Option<Arc<RetryPolicy>>,
    pub hash: Arc<[HashPolicy]>,
    pub mirrors: Arc<[MirrorPolicy]>,
}

/// Which protocol is spoken to hosts.
#[derive(Debug, Clone, PartialEq)]
pub enum HttpProtocol {
    Http1(Http1Options),
    Http2(Http2Options),
    /// What the downstream connection speaks.
    Downstream(Http1Options, Http2Options),
    /// What the host agrees to (ALPN).
    Auto(Http1Options, Http2Options),
}

/// They are alike where they are the same, or say nothing.
impl PartialEq for RequestPolicies {
    fn eq(&self, other: &Self) -> bool {
        let same_retry = match (&self.retry, &other.retry) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        let same_hash = Arc::ptr_eq(&self.hash, &other.hash) || (self.hash.is_empty() && other.hash.is_empty());
        let same_mirrors =
            Arc::ptr_eq(&self.mirrors, &other.mirrors) || (self.mirrors.is_empty() && other.mirrors.is_empty());
        same_retry && same_hash && same_mirrors
    }
}

/// How sockets to hosts are made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConnectionOptions {
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub source: Option<Box<BindConfig>>,
    pub happy_eyeballs: HappyEyeballs,
    /// `close_connections_on_host_set_change`: connections drain whenever hosts come or go.
    pub close_on_host_set_change: bool,
}

impl ConnectionOptions {
    /// Prepares a socket that will connect to `upstream`: keep-alive, local address.
    ///
    /// # Errors
    /// An option or address that the system refuses; Envoy counts these in `bind_errors`.
    pub fn apply(&self, socket: &TcpSocket, upstream: SocketAddr) -> Result<(), NotPrepared> {
        let options = SockRef::from(socket);
        if let Some(keepalive) = &self.tcp_keepalive {
            options.set_tcp_keepalive(&keepalive.system())?;
        }
        self.apply_source(options, upstream)
    }

    /// The same without what is TCP's.
    ///
    /// # Errors
    /// As of `apply`.
    pub fn apply_source(&self, socket: SockRef<'_>, upstream: SocketAddr) -> Result<(), NotPrepared> {
        let Some(bind) = &self.source else {
            return Ok(());
        };
        let source = bind.source_for(upstream);
        let ipv6 = upstream.is_ipv6();
        if bind.freebind {
            if ipv6 {
                socket.set_freebind_v6(true)?;
            } else {
                socket.set_freebind_v4(true)?;
            }
        }
        source.set_options(&socket, SocketState::BeforeBind, ipv6)?;
        if let Some(address) = source.address {
            socket.bind(&address.into()).map_err(|error| NotPrepared::Bind(address, error))?;
        }
        Ok(source.set_options(&socket, SocketState::Bound, ipv6)?)
    }
}

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NotPrepared {
    #[error("cannot bind {0}: {1}")]
    Bind(SocketAddr, io::Error),
    #[error("cannot set an option: {0}")]
    Option(#[from] io::Error),
}

/// `upstream_connection_options.tcp_keepalive`; what is not set is the system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

impl TcpKeepalive {
    fn system(&self) -> socket2::TcpKeepalive {
        let mut keepalive = socket2::TcpKeepalive::new();
        if let Some(time) = self.time {
            keepalive = keepalive.with_time(time);
        }
        if let Some(interval) = self.interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(probes) = self.probes {
            keepalive = keepalive.with_retries(probes);
        }
        keepalive
    }
}

/// `upstream_bind_config`: the local end of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindConfig {
    pub first: Source,
    /// Where the first is of the other family.
    pub extra: Option<Source>,
    pub freebind: bool,
}

impl BindConfig {
    /// The local end of a connection to `upstream`: the one of its family, or else the first, as in Envoy: then the connection
    /// cannot be made.
    pub fn source_for(&self, upstream: SocketAddr) -> &Source {
        let fits = |source: &&Source| source.address.is_some_and(|address| address.is_ipv4() == upstream.is_ipv4());
        [Some(&self.first), self.extra.as_ref()].into_iter().flatten().find(fits).unwrap_or(&self.first)
    }
}

/// One local end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// `None` leaves it to the system.
    pub address: Option<SocketAddr>,
    pub options: Vec<SocketOption>,
}

impl Source {
    fn set_options(&self, socket: &SockRef<'_>, state: SocketState, ipv6: bool) -> io::Result<()> {
        let wanted = |option: &&SocketOption| option.state == state && option.only_v6.is_none_or(|only| only == ipv6);
        self.options.iter().filter(wanted).try_for_each(|option| set_option(&**socket, option))
    }
}

/// `happy_eyeballs_config`: the order in which a host's addresses are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HappyEyeballs {
    /// The family to begin with; `None` takes that of the first address.
    pub first: Option<AddressFamily>,
    /// How many of the first family are tried before one of the other; at least 1.
    pub first_count: u32,
}

impl Default for HappyEyeballs {
    fn default() -> Self {
        Self { first: None, first_count: 1 }
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressFamily {
    V4,
    V6,
}

impl HappyEyeballs {
    /// Interleaves the families of `addresses` (RFC 8305 section 4).
    pub fn order(self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let Some(head) = addresses.first() else {
            return Vec::new();
        };
        let v4_first = self.first.map_or(head.is_ipv4(), |family| family == AddressFamily::V4);
        let (mut first, mut second): (Vec<SocketAddr>, Vec<SocketAddr>) =
            addresses.iter().partition(|address| address.is_ipv4() == v4_first);
        if first.is_empty() {
            std::mem::swap(&mut first, &mut second);
        }
        let mut ordered = Vec::with_capacity(addresses.len());
        let (mut first, mut second) = (first.into_iter().peekable(), second.into_iter().peekable());
        while first.peek().is_some() || second.peek().is_some() {
            ordered.extend(first.by_ref().take(self.first_count.max(1) as usize));
            ordered.extend(second.next());
        }
        ordered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_interleave_from_the_first() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let all = [parse("[::1]:1"), parse("[::2]:1"), parse("[::3]:1"), parse("1.1.1.1:1"), parse("2.2.2.2:1")];
        let order = |options: HappyEyeballs| -> Vec<String> {
            options.order(&all).iter().map(|address| address.ip().to_string()).collect()
        };
        assert_eq!(order(HappyEyeballs::default()), ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"]);
        let v4 = HappyEyeballs { first: Some(AddressFamily::V4), first_count: 2 };
        assert_eq!(order(v4), ["1.1.1.1", "2.2.2.2", "::1", "::2", "::3"]);
    }

    fn source(address: &str) -> Source {
        Source { address: Some(address.parse().unwrap()), options: Vec::new() }
    }

    #[test]
    fn the_source_address_is_of_the_upstreams_family() {
        let bind = BindConfig { first: source("127.0.0.6:0"), extra: Some(source("[::1]:0")), freebind: false };
        assert_eq!(bind.source_for("10.0.0.1:80".parse().unwrap()), &bind.first);
        assert_eq!(Some(bind.source_for("[::1]:80".parse().unwrap())), bind.extra.as_ref());
        let alone = BindConfig { extra: None, ..bind };
        assert_eq!(alone.source_for("[::1]:80".parse().unwrap()), &alone.first);
    }

    #[tokio::test]
    async fn sockets_are_as_configured() {
        let time = Duration::from_secs(33);
        let priority = SocketOption {
            level: libc::SOL_SOCKET,
            name: libc::SO_PRIORITY,
            value: 3i32.to_ne_bytes().to_vec(),
            state: SocketState::BeforeBind,
            only_v6: None,
        };
        let first = Source { options: vec![priority], ..source("127.0.0.6:0") };
        let options = ConnectionOptions {
            tcp_keepalive: Some(TcpKeepalive { probes: Some(4), time: Some(time), interval: Some(time) }),
            source: Some(Box::new(BindConfig { first, extra: None, freebind: true })),
            ..ConnectionOptions::default()
        };
        let socket = TcpSocket::new_v4().unwrap();
        options.apply(&socket, "127.0.0.1:80".parse().unwrap()).unwrap();
        let set = SockRef::from(&socket);
        assert!(set.keepalive().unwrap() && set.freebind_v4().unwrap());
        assert_eq!((set.tcp_keepalive_time().unwrap(), set.tcp_keepalive_interval().unwrap()), (time, time));
        assert_eq!(set.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(socket.local_addr().unwrap().ip().to_string(), "127.0.0.6");
        let other = TcpSocket::new_v6().unwrap();
        assert!(options.apply(&other, "[::1]:80".parse().unwrap()).is_err());
    }
}
