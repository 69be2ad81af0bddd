//! Chooses the filter chain of a connection, in Envoy's fixed order of criteria and without backtracking
//! (`FilterChainMatch`). It must not know what a chain does.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::context::Needs;
use tidegate_filters::matching::cidr::Cidr;
use tidegate_filters::matching::{MatchData, Matcher, Outcome};
use tidegate_filters::metadata::Metadata;
use tidegate_filters::network::NetworkFilterConfig;
use tidegate_filters::stream_info::Address;

use super::drain::Drain;
use crate::http::HttpConnectionManager;
use crate::http::stats::ListenerHttpStats;
use crate::tcp::TcpProxy;
use crate::tls::ServerTls;

/// What a connection goes through once it is accepted.
pub struct FilterChain {
    pub name: Arc<str>,
    /// What logs may print; `None` where there is none.
    pub metadata: Option<Arc<Metadata>>,
    /// Network filters before the last one.
    pub filters: Vec<Arc<dyn NetworkFilterConfig>>,
    pub terminal: Terminal,
    /// The names that clients ask for to get here, lower case; a wildcard begins with `*.`. Empty: any.
    pub server_names: Box<[String]>,
    /// None: plain bytes.
    pub tls: Option<Arc<ServerTls>>,
    /// A connection that has not finished its transport handshake by then is closed.
    pub transport_connect_timeout: Option<std::time::Duration>,
    pub drain: Arc<Drain>,
    /// What is to be discovered for it; none where nothing is. It is needed for as long as a listener has the chain.
    pub needs: Option<Box<Needs>>,
    /// Digest of its configuration: an equal one goes on serving through an update.
    pub digest: u64,
}

impl FilterChain {
    /// Whether it is for this name, in lower case: one that it is chosen by or, where it is chosen by none, one that its
    /// certificates have. What speaks no TLS is for any.
    pub fn is_for(&self, name: &str) -> bool {
        let Some(tls) = &self.tls else { return true };
        if self.server_names.is_empty() {
            return tls.context().is_none_or(|context| context.is_for(name));
        }
        self.server_names.iter().any(|own| match own.strip_prefix('*') {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => own == name,
        })
    }
}

/// The last network filter.
#[derive(Clone)]
pub enum Terminal {
    Http(Arc<HttpConnectionManager>, ListenerHttpStats),
    Tcp(Arc<TcpProxy>),
    Echo,
    DirectResponse(Bytes),
    /// No filters at all: Envoy closes such a connection.
    Close,
}

/// `source_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}

/// A chain's `FilterChainMatch`. Empty lists match anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainMatch {
    pub destination_port: Option<u16>,
    pub destination: Vec<Cidr>,
    /// Lower case; `*.example.com` matches by suffix.
    pub server_names: Vec<String>,
    pub transport_protocol: String,
    pub application_protocols: Vec<String>,
    pub direct_source: Vec<Cidr>,
    pub source_type: SourceType,
    pub source: Vec<Cidr>,
    pub source_ports: Vec<u16>,
}

/// `filter_chain_matcher`: its actions are indexes of chains; a name that no chain has is none, as in Envoy.
pub type ChainMatcher = Matcher<Option<usize>>;

/// All chains of a listener, arranged by criterion or behind a matcher.
#[derive(Default)]
pub struct FilterChains {
    root: HashMap<Option<u16>, Ranges<Names>>,
    matcher: Option<ChainMatcher>,
    pub all: Vec<Arc<FilterChain>>,
    pub default: Option<Arc<FilterChain>>,
}

type Names = HashMap<String, HashMap<String, HashMap<String, Ranges<SourceTypes>>>>;
type SourceTypes = HashMap<SourceType, Ranges<HashMap<Option<u16>, usize>>>;

/// Values by address range, the longest prefix first; `None` is the empty criterion.
struct Ranges<T>(Vec<(Option<Cidr>, T)>);

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Default> Ranges<T> {
    fn entry(&mut self, range: Option<Cidr>) -> &mut T {
        let length = |range: &Option<Cidr>| range.as_ref().map_or(-1, |cidr| i32::from(cidr.prefix_len()));
        let index = match self.0.iter().position(|(present, _)| *present == range) {
            Some(index) => index,
            None => {
                let index = self.0.iter().position(|(present, _)| length(present) < length(&range));
                let index = index.unwrap_or(self.0.len());
                self.0.insert(index, (range, T::default()));
                index
            }
        };
        &mut self.0[index].1
    }

    fn find(&self, address: Option<IpAddr>) -> Option<&T> {
        let matches = |range: &Option<Cidr>| match (range, address) {
            (None, _) => true,
            (Some(cidr), Some(address)) => cidr.contains(address),
            (Some(_), None) => false,
        };
        self.0.iter().find(|(range, _)| matches(range)).map(|(_, value)| value)
    }
}

/// Two chains say the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Duplicate {
    pub first: usize,
    pub second: usize,
}

impl FilterChains {
    /// Arranges chains; the error names two that match the same.
    pub fn build(
        chains: Vec<(ChainMatch, Arc<FilterChain>)>,
        default: Option<Arc<FilterChain>>,
    ) -> Result<Self, Duplicate> {
        let mut built = Self { default, ..Self::default() };
        for (index, (rule, chain)) in chains.into_iter().enumerate() {
            built.insert(&rule, index)?;
            built.all.push(chain);
        }
        Ok(built)
    }

    /// Chains that a matcher names; what they say themselves does not count.
    pub fn behind(matcher: ChainMatcher, all: Vec<Arc<FilterChain>>, default: Option<Arc<FilterChain>>) -> Self {
        Self { root: HashMap::new(), matcher: Some(matcher), all, default }
    }

    fn insert(&mut self, rule: &ChainMatch, index: usize) -> Result<(), Duplicate> {
        let by_port = self.root.entry(rule.destination_port).or_default();
        for destination in ranges(&rule.destination) {
            let by_name = by_port.entry(destination);
            for name in texts(&rule.server_names) {
                let by_transport = by_name.entry(name).or_default();
                let by_alpn = by_transport.entry(rule.transport_protocol.clone()).or_default();
                for alpn in texts(&rule.application_protocols) {
                    let by_direct = by_alpn.entry(alpn).or_default();
                    for direct in ranges(&rule.direct_source) {
                        let by_source = by_direct.entry(direct).entry(rule.source_type).or_default();
                        insert_sources(by_source, rule, index)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The chain for a connection; the default one when none matches.
    pub fn find(&self, connection: &ConnectionInfo) -> Option<&Arc<FilterChain>> {
        if let Some(matcher) = &self.matcher {
            return match matcher.matches(&MatchData::of_connection(connection)) {
                // Not the default one: the matcher has spoken.
                Outcome::Action(index) => index.and_then(|index| self.all.get(index)),
                Outcome::NoMatch | Outcome::NotYet => self.default.as_ref(),
            };
        }
        self.matched(connection).or(self.default.as_ref())
    }

    fn matched(&self, connection: &ConnectionInfo) -> Option<&Arc<FilterChain>> {
        let local = connection.local.ip();
        let port = local.map(|address| address.port());
        let by_port = port.and_then(|port| self.root.get(&Some(port))).or_else(|| self.root.get(&None))?;
        let by_name = by_port.find(ip(&connection.local))?;
        let by_transport = find_name(by_name, connection.requested_server_name.as_deref().unwrap_or_default())?;
        let by_alpn = by_transport.get(&*connection.transport_protocol).or_else(|| by_transport.get(""))?;
        let offered = connection.application_protocols.iter();
        let by_direct = offered.filter_map(|alpn| by_alpn.get(&**alpn)).next().or_else(|| by_alpn.get(""))?;
        let by_type = by_direct.find(ip(&connection.direct_remote))?;
        let source_type = if connection.is_local() { SourceType::SameIpOrLoopback } else { SourceType::External };
        let by_source = by_type.get(&source_type).or_else(|| by_type.get(&SourceType::Any))?;
        let by_source_port = by_source.find(ip(&connection.remote))?;
        let source_port = connection.remote.ip().map(|address| address.port());
        let index = by_source_port.get(&source_port).or_else(|| by_source_port.get(&None))?;
        self.all.get(*index)
    }
}

fn insert_sources(
    by_source: &mut Ranges<HashMap<Option<u16>, usize>>,
    rule: &ChainMatch,
    index: usize,
) -> Result<(), Duplicate> {
    for source in ranges(&rule.source) {
        let by_port = by_source.entry(source);
        let ports: Vec<_> = if rule.source_ports.is_empty() {
            vec![None]
        } else {
            rule.source_ports.iter().copied().map(Some).collect()
        };
        for port in ports {
            if let Some(first) = by_port.insert(port, index) {
                return Err(Duplicate { first, second: index });
            }
        }
    }
    Ok(())
}

fn ranges(list: &[Cidr]) -> Vec<Option<Cidr>> {
    if list.is_empty() { vec![None] } else { list.iter().cloned().map(Some).collect() }
}

fn texts(list: &[String]) -> Vec<String> {
    if list.is_empty() { vec![String::new()] } else { list.to_vec() }
}

fn ip(address: &Address) -> Option<IpAddr> {
    address.ip().map(|address| address.ip())
}

/// Exact, then the longest wildcard, then any: never back from one to the next.
fn find_name<'a, T>(names: &'a HashMap<String, T>, name: &str) -> Option<&'a T> {
    if !name.is_empty() {
        if let Some(found) = names.get(name) {
            return Some(found);
        }
        let mut rest = name;
        while let Some(dot) = rest.find('.') {
            rest = &rest[dot + 1..];
            if let Some(found) = names.get(&format!("*.{rest}")) {
                return Some(found);
            }
        }
    }
    names.get("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn chain(name: &str) -> Arc<FilterChain> {
        Arc::new(FilterChain {
            server_names: Box::default(),
            metadata: None,
            name: name.into(),
            filters: Vec::new(),
            terminal: Terminal::Close,
            tls: None,
            transport_connect_timeout: None,
            drain: Arc::default(),
            needs: None,
            digest: 0,
        })
    }

    fn connection(remote: &str, local: &str) -> ConnectionInfo {
        let address = |text: &str| Address::Ip(text.parse().unwrap());
        ConnectionInfo::new(1, address(remote), address(local), Instant::now())
    }

    fn found(chains: &FilterChains, connection: &ConnectionInfo) -> Option<String> {
        chains.find(connection).map(|chain| chain.name.to_string())
    }

    #[test]
    fn what_speaks_no_tls_is_for_any_name() {
        assert!(chain("a").is_for("a.test"));
    }

    #[test]
    fn a_more_specific_port_does_not_fall_back() {
        let by_port = ChainMatch { destination_port: Some(80), source_ports: vec![1], ..ChainMatch::default() };
        let chains =
            FilterChains::build(vec![(by_port, chain("port")), (ChainMatch::default(), chain("any"))], None).unwrap();
        assert_eq!(found(&chains, &connection("9.9.9.9:1", "1.1.1.1:80")).as_deref(), Some("port"));
        assert_eq!(found(&chains, &connection("9.9.9.9:2", "1.1.1.1:80")), None);
        assert_eq!(found(&chains, &connection("9.9.9.9:2", "1.1.1.1:81")).as_deref(), Some("any"));
    }

    #[test]
    fn names_match_exactly_then_by_longest_suffix() {
        let names = |list: &[&str]| ChainMatch {
            server_names: list.iter().map(ToString::to_string).collect(),
            ..ChainMatch::default()
        };
        let chains = FilterChains::build(
            vec![
                (names(&["a.example.com"]), chain("exact")),
                (names(&["*.example.com"]), chain("suffix")),
                (names(&["*.com"]), chain("short")),
            ],
            Some(chain("default")),
        )
        .unwrap();
        for (name, expected) in [
            ("a.example.com", "exact"),
            ("b.example.com", "suffix"),
            ("x.y.example.com", "suffix"),
            ("example.com", "short"),
            ("example.org", "default"),
        ] {
            let mut connection = connection("9.9.9.9:1", "1.1.1.1:80");
            connection.requested_server_name = Some(name.into());
            assert_eq!(found(&chains, &connection).as_deref(), Some(expected), "{name}");
        }
    }

    #[test]
    fn two_chains_that_match_the_same_are_refused() {
        let twice = vec![(ChainMatch::default(), chain("a")), (ChainMatch::default(), chain("b"))];
        assert_eq!(FilterChains::build(twice, None).err(), Some(Duplicate { first: 0, second: 1 }));
    }
}
