//! A route configuration as one immutable table, and the pure function that finds a request's route in it.
//! It must not know protos, nor what is done with the route.

use std::sync::Arc;

use http::HeaderName;
use tidegate_filters::http::rate_limit::RateLimit;
use tidegate_filters::http::{HeaderKey, HeaderMutations, Headers};
use tidegate_filters::matching::{Matcher, Outcome as Matched};
use tidegate_filters::metadata::Metadata;

use super::entry::Route;
use super::host_index::{DomainError, Fixed, Found, HostIndex, Persistent, port_start};
use super::input::{Outcome, RouteInput, Trace};
use super::list::RouteList;
use super::matcher::{Criterion, first};
use super::tally::Tally;

/// What all virtual hosts of a route configuration share.
#[derive(Default)]
pub struct RouteConfig {
    pub name: Arc<str>,
    /// Virtual hosts come beside those that are here (VHDS).
    pub discovers_hosts: bool,
    pub ignore_port_in_host_matching: bool,
    pub ignore_path_parameters: bool,
    /// `vhost_header`: names the host in place of `:authority`.
    pub host_header: Option<HeaderKey>,
    /// Headers that external requests may not have.
    pub internal_only_headers: Vec<HeaderName>,
    pub request_headers: HeaderMutations,
    pub response_headers: HeaderMutations,
    pub most_specific_header_mutations_wins: bool,
    pub metadata: Metadata,
}

/// What all routes of a virtual host share.
#[derive(Default)]
pub struct VirtualHost {
    pub name: Arc<str>,
    pub config: Arc<RouteConfig>,
    pub require_tls: TlsRequirement,
    pub request_headers: HeaderMutations,
    pub response_headers: HeaderMutations,
    /// `None` where there is none.
    pub metadata: Option<Arc<Metadata>>,
    pub attempts: AttemptHeaders,
    /// Where there are any, the last one is `other`, which takes the rest.
    pub virtual_clusters: Vec<VirtualCluster>,
    pub rate_limits: Vec<RateLimit>,
}

/// Which headers tell of attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttemptHeaders {
    /// `include_request_attempt_count`: `x-envoy-attempt-count` upstream.
    pub count_upstream: bool,
    /// `include_attempt_count_in_response`: the same to the client.
    pub count_downstream: bool,
    /// `include_is_timeout_retry_header`: `x-envoy-is-timeout-retry` upstream.
    pub timeout_retry: bool,
}

/// `VirtualCluster`: requests that are counted together, under `vhost.<virtual host>.vcluster.<name>`.
pub struct VirtualCluster {
    /// As logs name it; `other` has no name there.
    pub name: Option<Arc<str>>,
    pub headers: Vec<Criterion>,
    pub tally: Arc<Tally>,
}

impl VirtualHost {
    /// The virtual cluster of a request: the first that matches; none where none is configured.
    pub fn virtual_cluster(&self, input: &RouteInput<'_>) -> Option<&VirtualCluster> {
        self.virtual_clusters.iter().find(|cluster| cluster.headers.iter().all(|criterion| criterion.holds(input)))
    }
}

/// `require_tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsRequirement {
    #[default]
    None,
    /// For requests that are not internal.
    External,
    All,
}

/// A compiled `RouteConfiguration`.
#[derive(Default)]
pub struct RouteTable {
    pub config: Arc<RouteConfig>,
    own: Arc<OwnHosts>,
    /// Virtual hosts that were discovered; none where nothing was.
    discovered: Option<Box<DiscoveredHosts>>,
}

type DiscoveredHosts = HostIndex<Arc<HostRoutes>, Persistent<Arc<HostRoutes>>>;

/// The virtual hosts that the route configuration has itself.
#[derive(Default)]
struct OwnHosts {
    domains: HostIndex<u32, Fixed<u32>>,
    hosts: Vec<HostRoutes>,
}

/// A virtual host and its routes.
struct HostRoutes {
    host: Arc<VirtualHost>,
    routes: Routes,
}

/// A virtual host that was discovered, and the domains that it is found by.
pub(crate) struct DiscoveredHost {
    domains: Box<[Box<str>]>,
    routes: Arc<HostRoutes>,
}

impl DiscoveredHost {
    pub(crate) fn new(domains: &[String], host: Arc<VirtualHost>, routes: Routes) -> Self {
        let domains = domains.iter().map(|domain| domain.as_str().into()).collect();
        Self { domains, routes: Arc::new(HostRoutes { host, routes }) }
    }
}

/// Where a virtual host looks for a route.
pub(crate) enum Routes {
    /// `routes`: the first that matches.
    List(RouteList),
    /// `matcher`: the list that the tree leads to, and then the first of it that matches.
    Tree(Matcher<Branch>),
}

/// An action of a virtual host's matcher tree (`Route` or `RouteList`).
pub(crate) struct Branch {
    /// Where in the configuration it stands.
    pub(crate) place: Box<str>,
    pub(crate) routes: RouteList,
}

impl Routes {
    fn find(
        &self,
        input: &RouteInput<'_>,
        ignore_parameters: bool,
        mut trace: Option<&mut Trace>,
    ) -> Option<Arc<Route>> {
        let list = match self {
            Self::List(list) => list,
            Self::Tree(tree) => {
                let Matched::Action(branch) = tree.matches(&input.match_data()) else { return None };
                if let Some(trace) = trace.as_deref_mut() {
                    trace.branch = Some(branch.place.to_string());
                }
                &branch.routes
            }
        };
        list.find(input, ignore_parameters, trace)
    }
}

/// Finds the route of a request. With a trace, says every route that was tried and what it failed on.
///
/// Envoy: `RouteMatcher::route`. Without a trace nothing is allocated, unless a header names the cluster.
pub fn route(table: &RouteTable, input: &RouteInput<'_>, mut trace: Option<&mut Trace>) -> Outcome {
    let Some(virtual_host) = table.virtual_host(input, trace.as_deref_mut()) else { return Outcome::NoVirtualHost };
    if requires_tls(virtual_host.host.require_tls, input) {
        return Outcome::RequireTls(Arc::clone(&virtual_host.host));
    }
    let ignore_parameters = table.config.ignore_path_parameters;
    match virtual_host.routes.find(input, ignore_parameters, trace.as_deref_mut()) {
        Some(route) => {
            if let Some(trace) = trace {
                trace.cluster = route.cluster.as_deref().map(str::to_owned);
            }
            Outcome::Route(route)
        }
        None => Outcome::NoRoute(Arc::clone(&virtual_host.host)),
    }
}

/// Makes a table, virtual host by virtual host.
pub(crate) struct TableBuilder {
    config: Arc<RouteConfig>,
    own: OwnHosts,
}

impl TableBuilder {
    pub(crate) fn new(config: Arc<RouteConfig>) -> Self {
        Self { config, own: OwnHosts::default() }
    }

    /// Adds a virtual host. It has no domains yet.
    pub(crate) fn begin_host(&mut self, host: Arc<VirtualHost>, routes: Routes) {
        self.own.hosts.push(HostRoutes { host, routes });
    }

    /// Adds a domain to the virtual host that was added last.
    pub(crate) fn add_domain(&mut self, domain: &str) -> Result<(), DomainError> {
        let last = self.own.hosts.len().saturating_sub(1);
        self.own.domains.insert(domain, u32::try_from(last).unwrap_or(u32::MAX))
    }

    pub(crate) fn finish(mut self) -> RouteTable {
        self.own.hosts.shrink_to_fit();
        RouteTable { config: self.config, own: Arc::new(self.own), discovered: None }
    }
}

/// A discovered host has a domain that another has.
pub(crate) struct DomainTaken {
    /// Its place among those that came.
    pub(crate) host: usize,
    /// The domain's place in it.
    pub(crate) domain: usize,
    pub(crate) error: DomainError,
}

impl RouteTable {
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Headers that are taken off requests from outside.
    pub fn internal_only_headers(&self) -> &[HeaderName] {
        &self.config.internal_only_headers
    }

    /// The same with other discovered hosts: what is `gone` goes first. It costs what changes.
    ///
    /// # Errors
    /// The first of `come` that cannot stand beside the others, and the place of the domain that it cannot have.
    pub(crate) fn with_discovered<'a>(
        &self,
        gone: impl IntoIterator<Item = &'a DiscoveredHost>,
        come: impl IntoIterator<Item = &'a DiscoveredHost>,
    ) -> Result<Self, DomainTaken> {
        let mut discovered = self.discovered.clone().unwrap_or_default();
        gone.into_iter().flat_map(|host| &host.domains).for_each(|domain| discovered.remove(domain));
        for (host, come) in come.into_iter().enumerate() {
            for (domain, name) in come.domains.iter().enumerate() {
                let add = |index: &mut HostIndex<_, _>| index.insert(name, Arc::clone(&come.routes));
                let added = if self.own.domains.has(name) { Err(DomainError::of(name)) } else { add(&mut discovered) };
                added.map_err(|error| DomainTaken { host, domain, error })?;
            }
        }
        let discovered = Some(discovered).filter(|discovered| !discovered.is_empty());
        Ok(Self { config: Arc::clone(&self.config), own: Arc::clone(&self.own), discovered })
    }

    fn virtual_host(&self, input: &RouteInput<'_>, trace: Option<&mut Trace>) -> Option<&HostRoutes> {
        if let (Some(any), None, None) = (self.own.domains.only_any(), &self.discovered, &trace) {
            return self.own.hosts.get(*any as usize);
        }
        let name = self.host_of(input);
        let Some(trace) = trace else { return self.find(name?).map(|(host, _)| host) };
        let name = name.unwrap_or_default();
        trace.host = String::from_utf8_lossy(name).into_owned();
        let (host, by) = self.find(name)?;
        trace.virtual_host = Some((Arc::clone(&host.host.name), by.domain(name)));
        Some(host)
    }

    /// No domain stands on both sides: the stronger one decides.
    fn find(&self, name: &[u8]) -> Option<(&HostRoutes, Found)> {
        let own = self.own.domains.find(name);
        let own = own.and_then(|(host, by)| Some((self.own.hosts.get(*host as usize)?, by)));
        let Some(discovered) = &self.discovered else { return own };
        match (own, discovered.find(name)) {
            (Some((_, own)), Some((host, by))) if by > own => Some((host, by)),
            (None, Some((host, by))) => Some((host, by)),
            (own, _) => own,
        }
    }

    /// The host that virtual hosts are looked up by; none when `vhost_header` is absent.
    fn host_of<'a>(&self, input: &RouteInput<'a>) -> Option<&'a [u8]> {
        let host = match &self.config.host_header {
            Some(header) => input.head.first(header)?,
            None => input.head.authority.as_bytes(),
        };
        let end = if self.config.ignore_port_in_host_matching { port_start(host) } else { None };
        Some(&host[..end.unwrap_or(host.len())])
    }
}

/// Whether the request must be sent to `https`. The scheme is what the client used (`x-forwarded-proto`); where nobody
/// set that, the request's own. (Envoy finds no route at all then; the connection manager always sets it.)
fn requires_tls(requirement: TlsRequirement, input: &RouteInput<'_>) -> bool {
    const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
    let plain = || first(input.head, &X_FORWARDED_PROTO).unwrap_or(input.head.scheme.as_bytes()) != b"https";
    match requirement {
        TlsRequirement::None => false,
        TlsRequirement::External => plain() && first(input.head, &X_ENVOY_INTERNAL) != Some(b"true"),
        TlsRequirement::All => plain(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::route::allocations::allocations;
    use crate::route::testing::{Spec, World, decide, exact, get, prefix, regex, table};

    #[test]
    fn the_host_is_looked_up_as_the_table_says() {
        let hosts = || {
            vec![
                (&["a.com"] as &[&str], TlsRequirement::None, vec![Spec::new("a", prefix("/"))]),
                (&["b.com:81"], TlsRequirement::None, vec![Spec::new("b81", prefix("/"))]),
            ]
        };
        let world = World::new();
        let plain = table(RouteConfig::default(), hosts());
        let portless = table(RouteConfig { ignore_port_in_host_matching: true, ..RouteConfig::default() }, hosts());
        let header = HeaderName::from_static("x-host");
        let by_header =
            table(RouteConfig { host_header: Some(HeaderKey::new("x-host")), ..RouteConfig::default() }, hosts());
        assert_eq!(decide(&plain, &world, &get("A.com", "/")), "a");
        assert_eq!(decide(&plain, &world, &get("a.com:80", "/")), "no host");
        assert_eq!(decide(&portless, &world, &get("a.com:80", "/")), "a");
        // The configured domain keeps its port.
        assert_eq!(decide(&portless, &world, &get("b.com:81", "/")), "no host");
        let mut head = get("zzz", "/");
        assert_eq!(decide(&by_header, &world, &head), "no host");
        head.headers.insert(header, HeaderValue::from_static("a.com"));
        assert_eq!(decide(&by_header, &world, &head), "a");
    }

    #[test]
    fn tls_is_required_of_whom_the_host_says() {
        let table = table(
            RouteConfig::default(),
            vec![
                (&["all"] as &[&str], TlsRequirement::All, vec![Spec::new("a", prefix("/"))]),
                (&["ext"], TlsRequirement::External, vec![Spec::new("e", prefix("/"))]),
            ],
        );
        let world = World::new();
        let mut head = get("ext", "/");
        assert_eq!(decide(&table, &world, &get("all", "/")), "tls all");
        assert_eq!(decide(&table, &world, &head), "tls ext");
        head.headers.insert("x-envoy-internal", HeaderValue::from_static("true"));
        assert_eq!(decide(&table, &world, &head), "e");
        head.authority = HeaderValue::from_static("all");
        assert_eq!(decide(&table, &world, &head), "tls all");
        head.headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        assert_eq!(decide(&table, &world, &head), "a");
    }

    #[test]
    fn discovered_hosts_stand_beside_those_of_the_table() {
        let host = |domains: &[&str], name: &str| {
            let host = Arc::new(VirtualHost { name: name.into(), ..VirtualHost::default() });
            let entries = vec![Arc::new(crate::route::testing::entry(&host, Spec::new(name, prefix("/"))))];
            let domains: Vec<String> = domains.iter().map(|domain| (*domain).to_owned()).collect();
            DiscoveredHost::new(&domains, host, Routes::List(RouteList::new(entries)))
        };
        let own = table(
            RouteConfig::default(),
            vec![
                (&["*"] as &[&str], TlsRequirement::None, vec![Spec::new("any", prefix("/"))]),
                (&["*.a.com"], TlsRequirement::None, vec![Spec::new("own", prefix("/"))]),
            ],
        );
        let world = World::new();
        let (first, second) = (host(&["x.a.com", "*.b.a.com"], "first"), host(&["*.com", "x.*"], "second"));
        let both = own.with_discovered([], [&first, &second]).ok().unwrap();
        let one = both.with_discovered([&first], []).ok().unwrap();
        let none = one.with_discovered([&second], []).ok().unwrap();
        for (name, with_both, with_one) in [
            ("x.a.com", "first", "own"),
            ("y.a.com", "own", "own"),
            ("y.b.a.com", "first", "own"),
            ("y.com", "second", "second"),
            ("x.y", "second", "second"),
            ("y", "any", "any"),
        ] {
            assert_eq!(decide(&both, &world, &get(name, "/")), with_both, "{name}");
            assert_eq!(decide(&one, &world, &get(name, "/")), with_one, "{name}");
            assert_eq!(decide(&none, &world, &get(name, "/")), decide(&own, &world, &get(name, "/")), "{name}");
        }
        let taken = |came: &DiscoveredHost| {
            both.with_discovered([&second], [came]).err().map(|taken| (taken.domain, taken.error))
        };
        assert_eq!(taken(&host(&["new", "*.A.com"], "bad")), Some((1, DomainError::Duplicate)));
        assert_eq!(taken(&host(&["X.a.com"], "bad")), Some((0, DomainError::Duplicate)));
        assert_eq!(taken(&host(&["*"], "bad")), Some((0, DomainError::SecondAny)));
        assert_eq!(taken(&host(&["*.com"], "good")), None);
    }

    /// 10,000 virtual hosts, 1,000 routes in one of them: a decision allocates nothing.
    #[test]
    fn a_decision_in_a_large_table_allocates_nothing() {
        let names: Vec<String> = (0..10_000).map(|at| format!("host-{at}.example.com")).collect();
        let domains: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
        let routes = |count: usize| {
            let path = |at: usize| match at % 3 {
                0 => prefix(&format!("/svc-{at}/")),
                1 => exact(&format!("/svc-{at}")),
                _ => regex(&format!("/svc-{at}/[a-z]+")),
            };
            (0..count).map(|at| Spec::new(&format!("r{at}"), path(at))).collect::<Vec<_>>()
        };
        let hosts = domains
            .iter()
            .enumerate()
            .map(|(at, domain)| (domain as &[&str], TlsRequirement::None, routes(if at == 7 { 1_000 } else { 1 })));
        let table = table(RouteConfig::default(), hosts.collect());
        let world = World::new();
        for (path, expected) in [("/svc-999/x", "r999"), ("/svc-997?q", "r997"), ("/svc-998/abc", "r998")] {
            let head = get("Host-7.Example.com", path);
            assert_eq!(decide(&table, &world, &head), expected);
            // Regexes warm their caches on the first use.
            let used = allocations(|| assert!(route(&table, &world.input(&head), None).route().is_some()));
            assert_eq!(used, 0, "{path}");
        }
    }
}
