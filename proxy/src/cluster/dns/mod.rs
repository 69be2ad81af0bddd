//! Hosts from DNS: which names are asked for, how often, and what becomes of the answers (STRICT_DNS, LOGICAL_DNS and
//! `envoy.cluster.dns`). It must not know the wire protocol of DNS.

mod discoveries;
mod discovery;
mod hosts_file;
mod lookup;
mod resolver;

use std::net::SocketAddr;
use std::time::Duration;

pub use discoveries::Discoveries;
pub use discovery::DnsDiscovery;
pub use lookup::{Answer, Family, Resolve};
pub use resolver::{Resolvers, SystemResolver};

/// How names are resolved and how often.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsOptions {
    pub family: LookupFamily,
    pub refresh_rate: Duration,
    /// Between failures: base and maximum of a jittered exponential back-off; `None` is the refresh rate.
    pub failure_refresh: Option<(Duration, Duration)>,
    pub respect_ttl: bool,
    /// The shortest wait that a TTL may ask for (`dns_min_refresh_rate`).
    pub min_refresh_rate: Duration,
    /// Waits are longer by up to this, at random.
    pub jitter: Duration,
    /// Whether the answer that a name has no addresses removes hosts, as it does in Envoy's STRICT_DNS. Ours keeps the last
    /// good ones: names come back, and a poisoned or broken answer must not take a service down.
    pub empty_on_no_records: bool,
    pub resolver: ResolverConfig,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            family: LookupFamily::Auto,
            refresh_rate: Duration::from_secs(5),
            failure_refresh: None,
            respect_ttl: false,
            min_refresh_rate: Duration::from_secs(1),
            jitter: Duration::ZERO,
            empty_on_no_records: false,
            resolver: ResolverConfig::default(),
        }
    }
}

/// `dns_lookup_family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LookupFamily {
    /// IPv6, and IPv4 if there is none.
    #[default]
    Auto,
    V4Only,
    V6Only,
    /// IPv4, and IPv6 if there is none.
    V4Preferred,
    All,
}

/// Which servers are asked, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResolverConfig {
    /// Empty: those of the system.
    pub servers: Vec<SocketAddr>,
    pub use_tcp: bool,
    pub no_search_domain: bool,
    /// How long one server has to answer.
    pub timeout: Duration,
    /// How often a query is sent before it fails.
    pub tries: u32,
    /// Servers take turns rather than being asked in order.
    pub rotate: bool,
    /// The servers count only where the system has none.
    pub servers_are_fallback: bool,
    /// What every answer's time to live is, whatever it says.
    pub ttl: Option<Duration>,
    /// Answers are kept below the cluster's own refreshing.
    pub cache: Option<Cache>,
}

/// Answers that a resolver keeps for their time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cache {
    /// How many.
    pub size: u64,
    /// No answer is kept for longer.
    pub longest: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        Self { size: 1024, longest: Duration::from_secs(86400) }
    }
}

impl Default for ResolverConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            use_tcp: false,
            no_search_domain: false,
            timeout: Duration::from_secs(5),
            tries: 4,
            rotate: false,
            servers_are_fallback: false,
            ttl: None,
            cache: None,
        }
    }
}
