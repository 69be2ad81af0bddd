//! Listeners as compiled values, and what serves them: sockets, accepting, choosing a filter chain, draining.
//! It must not know what a connection says once its chain is chosen.

pub mod accept;
pub(crate) mod acceptor;
pub mod drain;
mod exhaustion;
pub mod filter_chain;
pub(crate) mod load;
pub mod manager;
pub mod socket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_filters::access_log::AccessLog;
use tidegate_filters::listener::ListenerFilterConfig;
use tidegate_filters::metadata::Metadata;

pub use filter_chain::{ChainMatch, FilterChain, FilterChains, Terminal};

use crate::stats::listener::ListenerStats;

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    Ip {
        address: SocketAddr,
        /// `[::]` takes IPv4 as well.
        ipv4_compat: bool,
    },
    /// A unix socket with its file mode; an abstract one begins with `@`.
    Pipe { path: PathBuf, mode: u32 },
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip { address, .. } => write!(f, "{address}"),
            Self::Pipe { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// A `SocketOption`: level, name and value as `setsockopt` takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: Vec<u8>,
    pub state: SocketState,
    /// Only for IPv6 sockets, or only for those of IPv4.
    pub only_v6: Option<bool>,
}

/// When a socket option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    BeforeBind,
    Bound,
    Listening,
}

/// One address of a listener, and how its sockets are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenSocket {
    pub address: ListenAddress,
    pub settings: SocketSettings,
}

/// How sockets are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SocketSettings {
    pub options: Vec<SocketOption>,
    pub reuse_port: bool,
    pub transparent: bool,
    pub freebind: bool,
    pub backlog: i32,
    pub tcp_fast_open: Option<u32>,
    pub keepalive: Option<Keepalive>,
}

impl SocketSettings {
    /// Whether a socket made so can serve with the other settings: its backlog can still change.
    pub fn same_but_backlog(&self, other: &Self) -> bool {
        Self { backlog: other.backlog, ..self.clone() } == *other
    }
}

/// TCP keep-alive; `None` leaves the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

/// When a listener's connections are asked to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DrainType {
    /// On `/healthcheck/fail` too.
    #[default]
    Default,
    ModifyOnly,
}

/// A listener, compiled. An update with the same name and addresses swaps it in place.
pub struct Listener {
    pub name: Arc<str>,
    /// What logs may print; `None` where there is none.
    pub metadata: Option<Arc<Metadata>>,
    /// All addresses, the main one first; stats are named by it.
    pub sockets: Vec<ListenSocket>,
    pub bind_to_port: bool,
    pub filters: Vec<Arc<dyn ListenerFilterConfig>>,
    /// `None` waits for ever.
    pub filters_timeout: Option<Duration>,
    pub continue_on_filters_timeout: bool,
    pub use_original_dst: bool,
    pub chains: FilterChains,
    pub inbound: bool,
    pub access_logs: Vec<Arc<AccessLog>>,
    pub max_accepts_per_event: u32,
    pub exact_balance: bool,
    /// Serve beyond the process's limit of connections.
    pub ignore_global_limit: bool,
    /// The runtime key of its own limit of connections.
    pub limit_key: String,
    /// `listener.<address>.`
    pub scope: tidegate_stats::Scope,
    pub stats: ListenerStats,
    /// Digest of its configuration: an equal one is no change.
    pub digest: u64,
    /// Its place in the order in which listeners came; an update keeps it.
    pub position: u64,
}

impl Listener {
    /// Whether an update to the other keeps the sockets: then only its chains drain.
    pub fn shares_sockets_with(&self, other: &Self) -> bool {
        self.sockets == other.sockets && self.bind_to_port == other.bind_to_port
    }

    /// The address that stats and errors name it by.
    pub fn main_address(&self) -> String {
        self.sockets.first().map(|socket| socket.address.to_string()).unwrap_or_default()
    }
}
