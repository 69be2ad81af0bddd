//! A route configuration as one immutable table, and the pure function that finds a request's route in it.
//! It must not know protos, nor what is done with the route.

use std::sync::Arc;

use http::HeaderName;
use tidegate_filters::http::rate_limit::RateLimit;
use tidegate_filters::http::{HeaderKey, HeaderMutations, Headers};
use tidegate_filters::metadata::Metadata;

use super::entry::{Action, Route, RouteEntry};
use super::forward::{ClusterName, ClusterSelector, WeightedCluster};
use super::host_index::{DomainError, HostIndex, port_start};
use super::input::{Mismatch, Outcome, RouteInput, Trace, TriedRoute};
use super::matcher::{Criterion, PathMatch, PathView, first};
use super::path_index::PathIndex;

/// What all virtual hosts of a route configuration share.
#[derive(Default)]
pub struct RouteConfig {
    pub name: Arc<str>,
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
    pub metadata: Metadata,
    pub attempts: AttemptHeaders,
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
    pub name: Arc<str>,
    pub headers: Vec<Criterion>,
}

impl VirtualHost {
    /// The virtual cluster of a request: the first that matches, else `other`; none where none is configured.
    pub fn virtual_cluster(&self, input: &RouteInput<'_>) -> Option<&str> {
        let matches = |cluster: &&VirtualCluster| cluster.headers.iter().all(|criterion| criterion.holds(input));
        match self.virtual_clusters.iter().find(matches) {
            Some(cluster) => Some(&cluster.name),
            None if self.virtual_clusters.is_empty() => None,
            None => Some("other"),
        }
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
    hosts: HostIndex,
    virtual_hosts: Vec<HostRoutes>,
}

/// A virtual host and its routes.
struct HostRoutes {
    host: Arc<VirtualHost>,
    routes: RouteList,
}

/// Routes of which the first that matches wins.
struct RouteList {
    slots: Box<[Slot]>,
    index: PathIndex,
    /// Places of the routes that a request without a path may take.
    pathless: Box<[usize]>,
}

struct Slot {
    entry: Arc<RouteEntry>,
    choices: Choices,
}

/// The routes that one entry can become, made ahead where their cluster is known ahead.
enum Choices {
    One(Arc<Route>),
    /// The request names the cluster.
    ByHeader(HeaderKey),
    /// One for each weighted cluster; `None` where the request names it.
    Weighted(Box<[Option<Arc<Route>>]>),
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
pub(crate) struct TableBuilder(RouteTable);

impl TableBuilder {
    pub(crate) fn new(config: Arc<RouteConfig>) -> Self {
        Self(RouteTable { config, ..RouteTable::default() })
    }

    /// Adds a virtual host. It has no domains yet.
    pub(crate) fn begin_host(&mut self, host: Arc<VirtualHost>, routes: Vec<Arc<RouteEntry>>) {
        self.0.virtual_hosts.push(HostRoutes { host, routes: RouteList::new(routes) });
    }

    /// Adds a domain to the virtual host that was added last.
    pub(crate) fn add_domain(&mut self, domain: &str) -> Result<(), DomainError> {
        let last = self.0.virtual_hosts.len().saturating_sub(1);
        self.0.hosts.insert(domain, u32::try_from(last).unwrap_or(u32::MAX))
    }

    pub(crate) fn finish(self) -> RouteTable {
        self.0
    }
}

impl RouteTable {
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Headers that are taken off requests from outside.
    pub fn internal_only_headers(&self) -> &[HeaderName] {
        &self.config.internal_only_headers
    }

    fn virtual_host(&self, input: &RouteInput<'_>, trace: Option<&mut Trace>) -> Option<&HostRoutes> {
        if let (Some(any), None) = (self.hosts.only_any(), &trace) {
            return self.virtual_hosts.get(any as usize);
        }
        let name = self.host_of(input);
        let found = match trace {
            None => self.hosts.find(name?)?,
            Some(trace) => {
                let name = name.unwrap_or_default();
                trace.host = String::from_utf8_lossy(name).into_owned();
                let (found, by) = self.hosts.explain(name)?;
                trace.virtual_host =
                    self.virtual_hosts.get(found as usize).map(|host| (Arc::clone(&host.host.name), by));
                found
            }
        };
        self.virtual_hosts.get(found as usize)
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

impl RouteList {
    fn new(entries: Vec<Arc<RouteEntry>>) -> Self {
        let index = PathIndex::new(entries.iter().map(|entry| entry.matching.path.key()));
        let pathless =
            (0..entries.len()).filter(|at| matches!(entries[*at].matching.path, PathMatch::Connect)).collect();
        let slots = entries.into_iter().map(|entry| Slot { choices: Choices::new(&entry), entry }).collect();
        Self { slots, index, pathless }
    }

    fn find(&self, input: &RouteInput<'_>, ignore_parameters: bool, trace: Option<&mut Trace>) -> Option<Arc<Route>> {
        let view = PathView::new(input.head, ignore_parameters);
        let take = |at: usize| {
            let slot = &self.slots[at];
            slot.entry.matching.matches(view, input).then(|| slot.choose(input)).flatten()
        };
        match trace {
            Some(trace) => self.scan(view, input, trace),
            None if input.head.path.is_empty() => self.pathless.iter().copied().find_map(take),
            None => self.index.candidates(view.path).find_map(take),
        }
    }

    /// Tries every route in turn, and notes what each fails on.
    fn scan(&self, view: PathView<'_>, input: &RouteInput<'_>, trace: &mut Trace) -> Option<Arc<Route>> {
        let pathless = input.head.path.is_empty();
        let mut tried = self.slots.iter().enumerate().filter(|(at, _)| !pathless || self.pathless.contains(at));
        tried.find_map(|(index, slot)| {
            let mismatch = slot.entry.matching.mismatch(view, input);
            let route = if mismatch.is_none() { slot.choose(input) } else { None };
            let nothing_drawn = || Mismatch::new("weighted_clusters", "a sum of runtime weights over 0");
            let mismatch = mismatch.or_else(|| route.is_none().then(nothing_drawn));
            trace.tried.push(TriedRoute { index, name: Arc::clone(&slot.entry.name), mismatch });
            route
        })
    }
}

impl Choices {
    fn new(entry: &Arc<RouteEntry>) -> Self {
        let with = |cluster: Option<Arc<str>>, weighted: Option<Arc<WeightedCluster>>| {
            Arc::new(Route { entry: Arc::clone(entry), cluster, weighted })
        };
        let Action::Forward(action) = &entry.action else { return Self::One(with(None, None)) };
        match &action.cluster {
            ClusterSelector::Named(name) => Self::One(with(Some(Arc::clone(name)), None)),
            ClusterSelector::Header(header) => Self::ByHeader(header.clone()),
            ClusterSelector::Weighted(weighted) => Self::Weighted(
                weighted
                    .clusters
                    .iter()
                    .map(|cluster| match &cluster.cluster {
                        ClusterName::Fixed(name) => Some(with(Some(Arc::clone(name)), Some(Arc::clone(cluster)))),
                        ClusterName::Header(_) => None,
                    })
                    .collect(),
            ),
        }
    }
}

impl Slot {
    /// Draws the cluster. `None` when the runtime left nothing to draw from: then the next route is tried, as in Envoy.
    fn choose(&self, input: &RouteInput<'_>) -> Option<Arc<Route>> {
        match &self.choices {
            Choices::One(route) => Some(Arc::clone(route)),
            Choices::ByHeader(header) => Some(self.named_by(header, None, input)),
            Choices::Weighted(routes) => {
                let Action::Forward(action) = &self.entry.action else { return None };
                let ClusterSelector::Weighted(weighted) = &action.cluster else { return None };
                let drawn = weighted.draw(input, &action.hash)?;
                match (routes.get(drawn)?, weighted.clusters.get(drawn)?) {
                    (Some(route), _) => Some(Arc::clone(route)),
                    (None, cluster) => match &cluster.cluster {
                        ClusterName::Header(header) => Some(self.named_by(header, Some(Arc::clone(cluster)), input)),
                        ClusterName::Fixed(_) => None,
                    },
                }
            }
        }
    }

    fn named_by(
        &self,
        header: &HeaderKey,
        weighted: Option<Arc<WeightedCluster>>,
        input: &RouteInput<'_>,
    ) -> Arc<Route> {
        let name = input.head.first(header).unwrap_or_default();
        let cluster = Some(Arc::from(String::from_utf8_lossy(name)));
        Arc::new(Route { entry: Arc::clone(&self.entry), cluster, weighted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::allocations::allocations;
    use crate::route::forward::WeightedClusters;
    use crate::route::testing::{Spec, World, decide, exact, get, one_host, prefix, regex, table};
    use http::{HeaderValue, Method};
    use tidegate_filters::runtime::{Fraction, Keyed};

    #[test]
    fn the_first_route_that_matches_wins() {
        let table = one_host(vec![
            Spec::new("re", regex("/re/[0-9]+")),
            Spec::new("short", prefix("/re")),
            Spec::new("exact", exact("/re/1x")),
            Spec::new("rest", prefix("/")),
        ]);
        let world = World::new();
        for (path, expected) in [("/re/12?x", "re"), ("/re/1x", "short"), ("/x", "rest"), ("*", "no route *")] {
            assert_eq!(decide(&table, &world, &get("h", path)), expected, "{path}");
        }
    }

    #[test]
    fn a_trace_says_what_each_route_failed_on() {
        let mut never = Spec::new("never", prefix("/a"));
        never.criteria = vec![Criterion::Runtime(Fraction::NEVER)];
        let table = one_host(vec![Spec::new("b", prefix("/b")), never, Spec::new("a", exact("/a"))]);
        let (world, head) = (World::new(), get("h", "/a"));
        let mut trace = Trace::default();
        let found = route(&table, &world.input(&head), Some(&mut trace));
        assert_eq!(found.route().unwrap().cluster.as_deref(), Some("a"));
        let mismatches: Vec<_> =
            trace.tried.iter().map(|tried| tried.mismatch.as_ref().map(Mismatch::to_string)).collect();
        assert_eq!(
            mismatches,
            [Some("prefix wants /b".to_owned()), Some("runtime_fraction wants 0 of 100".to_owned()), None]
        );
        assert_eq!(trace.cluster.as_deref(), Some("a"));
    }

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
    fn a_request_without_path_takes_a_connect_route_only() {
        let table = one_host(vec![Spec::new("all", prefix("")), Spec::new("connect", PathMatch::Connect)]);
        let world = World::new();
        let mut head = get("h:1", "");
        head.method = Method::CONNECT;
        assert_eq!(decide(&table, &world, &head), "connect");
        head.path = HeaderValue::from_static("/x");
        assert_eq!(decide(&table, &world, &head), "all");
    }

    fn weighted(weights: &[(&str, u64)]) -> Spec {
        let clusters = weights.iter().map(|(name, weight)| {
            let cluster = match name.strip_prefix('@') {
                Some(header) => ClusterName::Header(HeaderKey::new(header)),
                None => ClusterName::Fixed(Arc::from(*name)),
            };
            Arc::new(WeightedCluster {
                cluster,
                weight: Keyed { key: None, default: *weight },
                metadata_match: None,
                request_headers: HeaderMutations::default(),
                response_headers: HeaderMutations::default(),
                host_rewrite: None,
                overrides: Arc::default(),
            })
        });
        let random_header = Some(HeaderKey::new("x-random"));
        let weighted = WeightedClusters { clusters: clusters.collect(), random_header, use_hash_policy: false };
        Spec { cluster: ClusterSelector::Weighted(weighted), ..Spec::new("w", prefix("/")) }
    }

    #[test]
    fn weights_divide_the_random_value() {
        let table = one_host(vec![weighted(&[("a", 3), ("zero", 0), ("@x-c", 1)])]);
        let mut world = World::new();
        let mut head = get("h", "/");
        head.headers.insert("x-c", HeaderValue::from_static("c"));
        let mut drawn = |random: u64, head: &http::HeaderMap| {
            world.random = random;
            let head = tidegate_filters::http::RequestHead { headers: head.clone(), ..get("h", "/") };
            let outcome = route(&table, &world.input(&head), None);
            outcome.route().unwrap().cluster.as_deref().unwrap().to_owned()
        };
        let names: Vec<String> = (0..5).map(|random| drawn(random, &head.headers)).collect();
        assert_eq!(names, ["a", "a", "a", "c", "a"]);
        head.headers.insert("x-random", HeaderValue::from_static("3"));
        assert_eq!(drawn(0, &head.headers), "c");
        head.headers.append("x-random", HeaderValue::from_static("3"));
        assert_eq!(drawn(0, &head.headers), "a");
    }

    #[test]
    fn an_absent_cluster_header_names_the_empty_cluster() {
        let by_header = ClusterSelector::Header(HeaderKey::new("x-c"));
        let table = one_host(vec![Spec { cluster: by_header, ..Spec::new("h", prefix("/")) }]);
        let (world, head) = (World::new(), get("h", "/"));
        assert_eq!(route(&table, &world.input(&head), None).route().unwrap().cluster.as_deref(), Some(""));
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

    mod against_a_scan {
        use super::*;
        use proptest::prelude::*;

        fn any_path() -> impl Strategy<Value = PathMatch> {
            let text = || "[/ab]{0,4}";
            let cased =
                |ignore_case, bytes: String| crate::route::Text { bytes: bytes.into_bytes().into(), ignore_case };
            prop_oneof![
                (any::<bool>(), text()).prop_map(move |(case, text)| PathMatch::Prefix(cased(case, text))),
                (any::<bool>(), text()).prop_map(move |(case, text)| PathMatch::Exact(cased(case, text))),
                (any::<bool>(), text()).prop_map(move |(case, text)| PathMatch::SeparatedPrefix(cased(case, text))),
                "(/|a|b|a\\*|b\\?|\\.|\\(a\\|b\\)|\\[ab\\]\\+){0,4}".prop_map(|text| regex(&text)),
                Just(PathMatch::Connect),
            ]
        }

        proptest! {
            /// `decide` compares the index's answer with the linear scan's.
            #[test]
            fn the_index_decides_as_a_scan_does(
                paths in prop::collection::vec(any_path(), 0..12), path in "(/|a|b|A|;|\\?){0,6}", connect: bool, parameters: bool,
            ) {
                let specs = paths.into_iter().enumerate().map(|(at, path)| Spec::new(&at.to_string(), path)).collect();
                let config = RouteConfig { ignore_path_parameters: parameters, ..RouteConfig::default() };
                let table = table(config, vec![(&["*"], TlsRequirement::None, specs)]);
                let mut head = get("h", &path);
                if connect {
                    head.method = Method::CONNECT;
                }
                decide(&table, &World::new(), &head);
            }
        }
    }
}
