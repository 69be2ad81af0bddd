//! What connections to a cluster's hosts are wrapped in, and which host gets which. It must not know how a connection is made.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::matching::{HostData, MatchData, Matcher, Outcome};
use tidegate_filters::metadata::{FilterState, Metadata};

use super::host::Host;
use super::proxied::ProxySocket;
use crate::tls::ClientTls;

/// What a connection is wrapped in.
#[derive(Debug, Clone, Default)]
pub enum TransportSocket {
    /// Plain bytes (`raw_buffer`).
    #[default]
    RawBuffer,
    Tls(Arc<ClientTls>),
    /// A header that names the client, and something else behind it.
    Proxy(Arc<ProxySocket>),
}

impl TransportSocket {
    /// Whether the two sides agree on a protocol in a handshake.
    pub fn can_agree(&self) -> bool {
        self.tls().is_some()
    }

    /// The handshake that is in it.
    pub fn tls(&self) -> Option<&Arc<ClientTls>> {
        match self {
            Self::RawBuffer => None,
            Self::Tls(tls) => Some(tls),
            Self::Proxy(proxy) => proxy.inner.tls(),
        }
    }
}

/// What connections to a cluster's hosts are wrapped in.
#[derive(Debug, Clone, Default)]
pub struct TransportSockets {
    pub default: TransportSocket,
    /// `transport_socket_matches`: without a matcher, the first whose criteria a host's metadata has goes before the default.
    pub matches: Arc<[SocketMatch]>,
    /// `transport_socket_matcher`.
    pub matcher: Option<Arc<SocketMatcher>>,
}

/// Chooses one of the matches by its place; none where no match has the name that was chosen.
pub struct SocketMatcher(pub Matcher<Option<usize>>);

impl std::fmt::Debug for SocketMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SocketMatcher")
    }
}

/// What was chosen for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Chosen {
    /// The cluster's own.
    #[default]
    Default,
    /// One of the matches.
    Match(usize),
}

/// One of `transport_socket_matches`.
#[derive(Debug)]
pub struct SocketMatch {
    /// What `envoy.transport_socket_match` of the host's metadata must have.
    pub criteria: Map<String, Value>,
    pub socket: TransportSocket,
}

/// Where a host's metadata says which socket it wants.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";

impl TransportSockets {
    /// Every one that there is.
    pub fn all(&self) -> impl Iterator<Item = &TransportSocket> {
        std::iter::once(&self.default).chain(self.matches.iter().map(|given| &given.socket))
    }

    /// Whether hosts are told whom a connection is for: it is then for nobody else.
    pub fn name_clients(&self) -> bool {
        self.all().any(|socket| matches!(socket, TransportSocket::Proxy(_)))
    }

    /// Chooses for a connection to a host that is made for a stream. What is known of a host may change while connections to it
    /// live: those that were made through another socket are not used any more.
    pub(crate) fn choose(&self, host: &Host, state: &FilterState) -> Chosen {
        let Some(matcher) = &self.matcher else { return self.by_metadata(&host.metadata) };
        let (metadata, locality) = (&host.metadata, &host.locality_metadata);
        let connection = ConnectionInfo::new(0, host.address.clone(), host.address.clone(), Instant::now());
        let data =
            MatchData { host: Some(HostData { metadata, locality, state }), ..MatchData::of_connection(&connection) };
        match matcher.0.matches(&data) {
            Outcome::Action(Some(place)) => Chosen::Match(*place),
            Outcome::Action(None) | Outcome::NoMatch | Outcome::NotYet => Chosen::Default,
        }
    }

    /// The socket that was chosen.
    pub(crate) fn of(&self, chosen: Chosen) -> &TransportSocket {
        match chosen {
            Chosen::Default => &self.default,
            Chosen::Match(place) => self.matches.get(place).map_or(&self.default, |given| &given.socket),
        }
    }

    fn by_metadata(&self, metadata: &Metadata) -> Chosen {
        let has = |given: &SocketMatch| {
            given.criteria.iter().all(|(key, wanted)| metadata.get(SOCKET_MATCH, [key.as_str()]) == Some(wanted))
        };
        self.matches.iter().position(has).map_or(Chosen::Default, Chosen::Match)
    }
}
