//! One condition of a policy, and the facts it is asked about. It must not know the configuration it came from.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use http::HeaderMap;
use tidegate_tls::certificate::SanKind;

use super::mutual_tls::SanRule;
use crate::connection::ConnectionInfo;
use crate::http::RequestHead;
use crate::http::filter::RouteView;
use crate::matching::cel::{self, Expression};
use crate::matching::uri_template::UriTemplate;
use crate::matching::{AddressMatcher, Cidr, HeaderMatcher, MetadataMatcher, StringMatcher};
use crate::metadata::{FilterState, Metadata};
use crate::stream_info::{Address, StreamInfo};

/// What rules look at.
pub(crate) struct Facts<'a> {
    pub connection: &'a ConnectionInfo,
    /// The client, after `x-forwarded-for` and the like.
    pub remote: &'a Address,
    /// None of a connection: there are no headers then.
    pub request: Option<&'a RequestHead>,
    pub metadata: &'a Metadata,
    /// The stream's; the connection's stands behind it.
    pub filter_state: &'a FilterState,
    /// None of a connection, and of a request that goes nowhere.
    pub route: Option<&'a dyn RouteView>,
    /// What conditions look at; `None` where no policy has one.
    pub stream: Option<&'a StreamInfo>,
}

/// Whose address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    Source,
    DirectRemote,
    Remote,
    Destination,
}

/// What a filter state object must be.
#[derive(Debug)]
pub(super) enum State {
    Text(StringMatcher),
    Address(AddressMatcher),
}

/// Where the upstream must be; the dynamic forward proxy notes it before the request goes there.
#[derive(Debug)]
pub(super) struct UpstreamRange {
    pub ip: Option<Cidr>,
    pub ports: Option<Range<u32>>,
}

/// The filter state object that names the upstream's address.
const UPSTREAM_ADDRESS: &str = "envoy.stream.upstream_address";

/// A permission or a principal.
#[derive(Debug)]
pub(super) enum Rule {
    Any,
    And(Vec<Rule>),
    Or(Vec<Rule>),
    Not(Box<Rule>),
    Header(HeaderMatcher),
    Path(StringMatcher),
    Ip(Whose, Cidr),
    Ports(Range<u32>),
    Metadata(MetadataMatcher),
    RouteMetadata(MetadataMatcher),
    Template(UriTemplate),
    Upstream(UpstreamRange),
    ServerName(StringMatcher),
    FilterState(Box<str>, State),
    /// A connection with TLS; the name is one of the peer certificate's.
    Authenticated(Option<StringMatcher>),
    /// A client whose certificate was found good, and has such a name.
    MutualTls(Option<SanRule>),
}

impl Rule {
    pub(super) fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::And(rules) => rules.iter().all(|rule| rule.holds(facts)),
            Self::Or(rules) => rules.iter().any(|rule| rule.holds(facts)),
            Self::Not(rule) => !rule.holds(facts),
            Self::Header(matcher) => match facts.request {
                Some(request) => matcher.matches(request),
                None => matcher.matches(&HeaderMap::new()),
            },
            Self::Path(matcher) => {
                facts.request.is_some_and(|request| !request.path.is_empty() && matcher.matches(request.path_only()))
            }
            Self::Ip(whose, range) => facts.ip(*whose).is_some_and(|ip| range.contains(ip)),
            Self::Ports(range) => {
                facts.connection.local.ip().is_some_and(|address| range.contains(&u32::from(address.port())))
            }
            Self::Metadata(matcher) => matcher.matches(facts.metadata),
            Self::RouteMetadata(matcher) => {
                facts.route.is_some_and(|route| matcher.matches_namespace(route.metadata(matcher.namespace())))
            }
            Self::Template(template) => facts.request.is_some_and(|request| template.matches(request.path_only())),
            Self::Upstream(range) => facts.upstream_is_in(range),
            Self::ServerName(matcher) => {
                matcher.matches(facts.connection.requested_server_name.as_deref().unwrap_or_default().as_bytes())
            }
            Self::FilterState(key, state) => facts.state_holds(key, state),
            Self::Authenticated(name) => facts.authenticated(name.as_ref()),
            Self::MutualTls(name) => facts.is_validated(name.as_ref()),
        }
    }
}

impl Facts<'_> {
    fn ip(&self, whose: Whose) -> Option<IpAddr> {
        let address = match whose {
            Whose::Source => &self.connection.remote,
            Whose::DirectRemote => &self.connection.direct_remote,
            Whose::Remote => self.remote,
            Whose::Destination => &self.connection.local,
        };
        address.ip().map(|address| address.ip())
    }

    /// Whether an expression holds; a connection's has no request to look at.
    pub(super) fn satisfies(&self, condition: &Expression) -> bool {
        self.stream.is_some_and(|info| {
            condition.holds(&cel::Facts { request: self.request, route: self.route, ..cel::Facts::of(info) })
        })
    }

    fn upstream_is_in(&self, range: &UpstreamRange) -> bool {
        let object = self.filter_state.get(UPSTREAM_ADDRESS);
        let Some(address) = object.and_then(|object| object.text()?.parse::<SocketAddr>().ok()) else { return false };
        range.ip.as_ref().is_none_or(|ip| ip.contains(address.ip()))
            && range.ports.as_ref().is_none_or(|ports| ports.contains(&u32::from(address.port())))
    }

    fn state_holds(&self, key: &str, state: &State) -> bool {
        let object = self.filter_state.get(key).or_else(|| self.connection.filter_state.get(key));
        let Some(object) = object else { return false };
        match state {
            State::Text(matcher) => object.text().is_some_and(|text| matcher.matches(text.as_bytes())),
            State::Address(matcher) => object.ip().is_some_and(|ip| matcher.matches(ip)),
        }
    }

    /// Whether the peer's certificate was found good, and has such a name.
    fn is_validated(&self, name: Option<&SanRule>) -> bool {
        let tls = self.connection.tls.as_ref().filter(|tls| tls.peer_presented && tls.peer_validated);
        let Some(tls) = tls else { return false };
        let has = |name: &SanRule| tls.peer().is_some_and(|peer| peer.sans.iter().any(|san| name.matches(san)));
        name.is_none_or(has)
    }

    /// URI and DNS names first, then the subject, as in Envoy.
    fn authenticated(&self, name: Option<&StringMatcher>) -> bool {
        let Some(tls) = &self.connection.tls else { return false };
        let Some(name) = name else { return true };
        let Some(peer) = tls.peer() else { return name.matches(b"") };
        let mut names = peer.values_of(&SanKind::Uri).chain(peer.values_of(&SanKind::Dns));
        names.any(|san| name.matches(san)) || name.matches(peer.subject.as_bytes())
    }
}
