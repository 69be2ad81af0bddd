//! Everything an access log line, a stat or a filter may ask about one stream (Envoy's `StreamInfo`).
//! It is written by whoever learns a fact and must not know how facts are printed.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;

use crate::connection::{ConnectionInfo, TlsInfo};
use crate::metadata::{FilterState, Metadata};

/// Envoy's response flags. They are printed in the order in which they were raised, as in Envoy.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResponseFlags {
    bits: u32,
    /// The places of the first flags in [`Self::ALL`], counted from 1, in the order they were raised.
    raised: [u8; Self::REMEMBERED],
}

macro_rules! response_flags {
    ($($index:literal $name:ident $short:literal $long:literal;)*) => {
        impl ResponseFlags {
            $(#[doc = concat!("`", $short, "`: ", $long)] pub const $name: Self = Self::one($index);)*
            /// Every flag with its short and long name.
            pub const ALL: &'static [(Self, &'static str, &'static str)] = &[$((Self::$name, $short, $long)),*];
        }
    };
}

response_flags! {
    0 FAILED_LOCAL_HEALTH_CHECK "LH" "FailedLocalHealthCheck";
    1 NO_HEALTHY_UPSTREAM "UH" "NoHealthyUpstream";
    2 UPSTREAM_REQUEST_TIMEOUT "UT" "UpstreamRequestTimeout";
    3 LOCAL_RESET "LR" "LocalReset";
    4 UPSTREAM_REMOTE_RESET "UR" "UpstreamRemoteReset";
    5 UPSTREAM_CONNECTION_FAILURE "UF" "UpstreamConnectionFailure";
    6 UPSTREAM_CONNECTION_TERMINATION "UC" "UpstreamConnectionTermination";
    7 UPSTREAM_OVERFLOW "UO" "UpstreamOverflow";
    8 NO_ROUTE_FOUND "NR" "NoRouteFound";
    9 DELAY_INJECTED "DI" "DelayInjected";
    10 FAULT_INJECTED "FI" "FaultInjected";
    11 RATE_LIMITED "RL" "RateLimited";
    12 UNAUTHORIZED_EXTERNAL_SERVICE "UAEX" "UnauthorizedExternalService";
    13 RATE_LIMIT_SERVICE_ERROR "RLSE" "RateLimitServiceError";
    14 DOWNSTREAM_CONNECTION_TERMINATION "DC" "DownstreamConnectionTermination";
    15 UPSTREAM_RETRY_LIMIT_EXCEEDED "URX" "UpstreamRetryLimitExceeded";
    16 STREAM_IDLE_TIMEOUT "SI" "StreamIdleTimeout";
    17 INVALID_ENVOY_REQUEST_HEADERS "IH" "InvalidEnvoyRequestHeaders";
    18 DOWNSTREAM_PROTOCOL_ERROR "DPE" "DownstreamProtocolError";
    19 UPSTREAM_MAX_STREAM_DURATION_REACHED "UMSDR" "UpstreamMaxStreamDurationReached";
    20 RESPONSE_FROM_CACHE_FILTER "RFCF" "ResponseFromCacheFilter";
    21 NO_FILTER_CONFIG_FOUND "NFCF" "NoFilterConfigFound";
    22 DURATION_TIMEOUT "DT" "DurationTimeout";
    23 UPSTREAM_PROTOCOL_ERROR "UPE" "UpstreamProtocolError";
    24 NO_CLUSTER_FOUND "NC" "NoClusterFound";
    25 OVERLOAD_MANAGER "OM" "OverloadManagerTerminated";
    26 DNS_RESOLUTION_FAILED "DF" "DnsResolutionFailed";
    27 DROP_OVERLOAD "DO" "DropOverLoad";
    28 DOWNSTREAM_REMOTE_RESET "DR" "DownstreamRemoteReset";
    29 UNCONDITIONAL_DROP_OVERLOAD "UDO" "UnconditionalDropOverload";
}

impl ResponseFlags {
    /// How many flags keep their order; a stream hardly has more than two.
    const REMEMBERED: usize = 8;

    const fn one(index: u8) -> Self {
        let mut raised = [0; Self::REMEMBERED];
        raised[0] = index + 1;
        Self { bits: 1 << index, raised }
    }

    pub const fn empty() -> Self {
        Self { bits: 0, raised: [0; Self::REMEMBERED] }
    }

    pub const fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// Envoy's number of them.
    pub const fn bits(self) -> u64 {
        self.bits as u64
    }

    pub const fn contains(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }

    /// Each flag with its short and long name, in the order they were raised.
    pub fn raised(self) -> impl Iterator<Item = &'static (Self, &'static str, &'static str)> {
        let places = self.raised.into_iter().take_while(|place| *place > 0);
        places.filter_map(|place| Self::ALL.get(usize::from(place) - 1))
    }

    /// `URX,UF`, or `-` when none is set.
    pub fn short(self) -> Cow<'static, str> {
        self.names(|flag| flag.1)
    }

    /// `UpstreamConnectionFailure,…`, or `-` when none is set.
    pub fn long(self) -> Cow<'static, str> {
        self.names(|flag| flag.2)
    }

    fn names(self, name: impl Fn(&(Self, &'static str, &'static str)) -> &'static str) -> Cow<'static, str> {
        if self.is_empty() {
            return Cow::Borrowed("-");
        }
        let names: Vec<_> = self.raised().map(name).collect();
        match names.as_slice() {
            [one] => Cow::Borrowed(one),
            many => Cow::Owned(many.join(",")),
        }
    }
}

/// The order in which they were raised makes no difference.
impl PartialEq for ResponseFlags {
    fn eq(&self, other: &Self) -> bool {
        self.bits == other.bits
    }
}

impl Eq for ResponseFlags {}

impl std::ops::BitOr for ResponseFlags {
    type Output = Self;
    fn bitor(mut self, other: Self) -> Self {
        self |= other;
        self
    }
}

impl std::ops::BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: Self) {
        for place in other.raised.into_iter().filter(|place| *place > 0) {
            let bit = 1 << (place - 1);
            if self.bits & bit == 0
                && let Some(free) = self.raised.iter_mut().find(|raised| **raised == 0)
            {
                *free = place;
            }
            self.bits |= bit;
        }
        self.bits |= other.bits;
    }
}

/// Bytes seen on one side of a stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByteCounts {
    /// `%BYTES_RECEIVED%`/`%BYTES_SENT%`: body bytes.
    pub body_received: u64,
    pub body_sent: u64,
    pub header_received: u64,
    pub header_sent: u64,
    /// Header fields before any compression.
    pub fields_received: u64,
    pub fields_sent: u64,
    /// On the wire, framing included.
    pub wire_received: u64,
    pub wire_sent: u64,
}

/// When things happened; a point that was not reached is `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    pub last_downstream_rx: Option<Instant>,
    pub first_upstream_tx: Option<Instant>,
    pub last_upstream_tx: Option<Instant>,
    pub first_upstream_rx: Option<Instant>,
    pub last_upstream_rx: Option<Instant>,
    pub first_downstream_tx: Option<Instant>,
    pub last_downstream_tx: Option<Instant>,
    pub upstream_connect_start: Option<Instant>,
    pub upstream_connect_complete: Option<Instant>,
    /// When the downstream connection ended, if it did before its stream.
    pub downstream_end: Option<Instant>,
}

/// How the proxy saw a connection end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CloseType {
    #[default]
    Normal,
    /// The proxy reset it.
    LocalReset,
    /// The peer reset it.
    RemoteReset,
}

impl CloseType {
    /// Envoy's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::LocalReset => "LocalReset",
            Self::RemoteReset => "RemoteReset",
        }
    }
}

/// The upstream of the last attempt.
#[derive(Debug, Clone, Default)]
pub struct UpstreamInfo {
    pub cluster: Option<Arc<str>>,
    /// `alt_stat_name`, when set: what `%UPSTREAM_CLUSTER%` prints.
    pub observability_name: Option<Arc<str>>,
    pub host: Option<Address>,
    pub host_name: Option<Arc<str>>,
    pub local_address: Option<Address>,
    /// The payload goes to the host in UDP packets, without a connection.
    pub datagrams: bool,
    pub connection_id: Option<u64>,
    /// The hosts of the attempts before this one.
    pub tried: Vec<Tried>,
    pub protocol: Option<http::Version>,
    pub transport_failure_reason: Option<Arc<str>>,
    /// Attempts made, 1 for the first.
    pub attempts: u32,
    pub locality: Option<Arc<Locality>>,
    pub tls: Option<Arc<TlsInfo>>,
    pub bytes: ByteCounts,
    /// `None` where nobody was asked.
    pub close_type: Option<CloseType>,
    /// Why the proxy closed the connection to it.
    pub local_close_reason: Option<&'static str>,
    /// How long the attempt waited for a connection, be it in vain.
    pub pool_wait: Option<Duration>,
    /// What was shared with the connection.
    pub filter_state: Option<Arc<FilterState>>,
    /// When the first piece of the response's body came; `None` where nobody asks.
    pub body_began: Option<Arc<OnceLock<Instant>>>,
    pub host_metadata: Option<Arc<Metadata>>,
    pub cluster_metadata: Option<Arc<Metadata>>,
}

/// A host that an attempt went to.
#[derive(Debug, Clone)]
pub struct Tried {
    pub address: Address,
    pub host_name: Option<Arc<str>>,
    /// Of the connection, if the attempt got one.
    pub connection_id: Option<u64>,
}

impl UpstreamInfo {
    /// The host of the last attempt, if it had one.
    pub fn last_tried(&self) -> Option<Tried> {
        let address = self.host.clone()?;
        Some(Tried { address, host_name: self.host_name.clone(), connection_id: self.connection_id })
    }

    /// An attempt begins: the host before is one that was tried.
    pub fn remember_host(&mut self) {
        let last = self.last_tried();
        self.tried.extend(last);
    }
}

/// Where a host is (`envoy.config.core.v3.Locality`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

/// An address as Envoy prints it: `ip:port`, `[ip6]:port` or a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(SocketAddr),
    /// A unix socket; an abstract one begins with `@`.
    Pipe(Arc<str>),
    /// `envoy://name/endpoint`.
    Internal(Arc<str>),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Pipe(path) | Self::Internal(path) => f.write_str(path),
        }
    }
}

impl Address {
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            _ => None,
        }
    }
}

/// One stream's facts.
#[derive(Debug, Clone)]
pub struct StreamInfo {
    pub start: Instant,
    pub start_time: SystemTime,
    pub connection: Arc<ConnectionInfo>,
    /// The client's address after XFF and the like; the connection's until then.
    pub downstream_remote: Address,
    pub protocol: Option<http::Version>,
    pub response_code: Option<StatusCode>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Option<Cow<'static, str>>,
    pub connection_termination_details: Option<Cow<'static, str>>,
    pub flags: ResponseFlags,
    pub bytes: ByteCounts,
    pub timings: Timings,
    pub upstream: UpstreamInfo,
    pub route_name: Option<Arc<str>>,
    pub virtual_host: Option<Arc<str>>,
    /// Where it has some.
    pub virtual_host_metadata: Option<Arc<Metadata>>,
    pub virtual_cluster: Option<Arc<str>>,
    /// How often a route was looked for: again where a filter cleared it.
    pub route_resolutions: u32,
    /// How long that took; `None` where nobody asks.
    pub route_resolution_time: Option<Duration>,
    /// How the downstream connection ended, and why the proxy closed it.
    pub close_type: CloseType,
    pub local_close_reason: Option<Cow<'static, str>>,
    pub request_id: Option<http::HeaderValue>,
    /// `%TRACE_ID%` and `%SPAN_ID%` of the stream's span.
    pub trace_id: Option<Arc<str>>,
    pub span_id: Option<Arc<str>>,
    /// Whether tracing chose to trace it: what `traceable_filter` asks.
    pub traceable: bool,
    pub dynamic_metadata: Metadata,
    pub filter_state: FilterState,
    /// When the stream ended; set just before logs are written.
    pub end: Option<Instant>,
    pub health_check_request: bool,
    pub internal_request: bool,
    /// `%STREAM_ID%`-like identity within the process.
    pub stream_id: u64,
}

impl StreamInfo {
    pub fn new(connection: Arc<ConnectionInfo>, start: Instant, start_time: SystemTime) -> Self {
        Self {
            start,
            start_time,
            downstream_remote: connection.remote.clone(),
            connection,
            protocol: None,
            response_code: None,
            details: None,
            connection_termination_details: None,
            flags: ResponseFlags::empty(),
            bytes: ByteCounts::default(),
            timings: Timings::default(),
            upstream: UpstreamInfo::default(),
            route_name: None,
            virtual_host: None,
            virtual_host_metadata: None,
            virtual_cluster: None,
            route_resolutions: 0,
            route_resolution_time: None,
            close_type: CloseType::Normal,
            local_close_reason: None,
            request_id: None,
            trace_id: None,
            span_id: None,
            traceable: false,
            dynamic_metadata: Metadata::default(),
            filter_state: FilterState::default(),
            end: None,
            health_check_request: false,
            internal_request: false,
            stream_id: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_in_the_order_they_were_raised() {
        let flags = ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED | ResponseFlags::UPSTREAM_REQUEST_TIMEOUT;
        assert_eq!(flags.short(), "URX,UT");
        assert_eq!((flags | ResponseFlags::UPSTREAM_OVERFLOW | flags).short(), "URX,UT,UO");
        assert_eq!(ResponseFlags::empty().short(), "-");
    }
}
