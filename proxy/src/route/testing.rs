//! Small tables for the tests of this room.
//! It must not be used outside tests.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderValue, Method};
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::http::{HeaderMutations, RequestHead};
use tidegate_filters::metadata::{FilterState, Metadata};
use tidegate_filters::runtime::NoRuntime;
use tidegate_filters::stream_info::{Address, StreamInfo};

use super::entry::{Action, BufferLimit, Overrides, RouteEntry};
use super::forward::{ClusterSelector, ForwardAction};
use super::list::RouteList;
use super::matcher::{Criterion, PathMatch, PathRegex, RouteMatch, Text};
use super::table::{RouteConfig, RouteTable, Routes, TableBuilder, TlsRequirement, VirtualHost};
use super::{Outcome, RouteInput, Trace, route};

pub(crate) fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(Text { bytes: text.as_bytes().into(), ignore_case: false })
}

pub(crate) fn exact(text: &str) -> PathMatch {
    PathMatch::Exact(Text { bytes: text.as_bytes().into(), ignore_case: false })
}

pub(crate) fn regex(text: &str) -> PathMatch {
    PathMatch::Regex(PathRegex::new(text).unwrap())
}

/// A route as a test says it: its name is its cluster's.
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) path: PathMatch,
    pub(crate) criteria: Vec<Criterion>,
    pub(crate) cluster: ClusterSelector,
}

impl Spec {
    pub(crate) fn new(name: &str, path: PathMatch) -> Self {
        let cluster = ClusterSelector::Named(Arc::from(name));
        Self { name: name.to_owned(), path, criteria: Vec::new(), cluster }
    }
}

/// A table of one `*` virtual host per list of routes; the first list's domains are `domains`.
pub(crate) fn table(config: RouteConfig, hosts: Vec<(&[&str], TlsRequirement, Vec<Spec>)>) -> RouteTable {
    let config = Arc::new(config);
    let mut builder = TableBuilder::new(Arc::clone(&config));
    for (domains, require_tls, routes) in hosts {
        let (name, config) = (Arc::from(domains[0]), Arc::clone(&config));
        let host = Arc::new(VirtualHost { name, config, require_tls, ..VirtualHost::default() });
        let entries = routes.into_iter().map(|spec| Arc::new(entry(&host, spec))).collect();
        builder.begin_host(host, Routes::List(RouteList::new(entries)));
        domains.iter().for_each(|domain| builder.add_domain(domain).unwrap());
    }
    builder.finish()
}

pub(crate) fn entry(host: &Arc<VirtualHost>, spec: Spec) -> RouteEntry {
    RouteEntry {
        name: Arc::from(spec.name),
        virtual_host: Arc::clone(host),
        matching: RouteMatch { path: spec.path, criteria: spec.criteria },
        action: Action::Forward(Box::new(ForwardAction::to(spec.cluster))),
        metadata: Metadata::default(),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        buffer_limit: BufferLimit::default(),
        tally: None,
        rate_limits: Box::default(),
        include_virtual_host_rate_limits: false,
        overrides: Arc::new(Overrides::default()),
    }
}

pub(crate) fn one_host(routes: Vec<Spec>) -> RouteTable {
    table(RouteConfig::default(), vec![(&["*"], TlsRequirement::None, routes)])
}

/// The surroundings of a request.
pub(crate) struct World {
    pub(crate) connection: ConnectionInfo,
    pub(crate) metadata: Metadata,
    pub(crate) filter_state: FilterState,
    pub(crate) random: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let address = |text: &str| Address::Ip(text.parse().unwrap());
        Self {
            connection: ConnectionInfo::new(1, address("10.0.0.1:1234"), address("10.0.0.2:80"), Instant::now()),
            metadata: Metadata::default(),
            filter_state: FilterState::default(),
            random: 0,
        }
    }

    pub(crate) fn input<'a>(&'a self, head: &'a RequestHead) -> RouteInput<'a> {
        RouteInput {
            head,
            connection: &self.connection,
            remote: &self.connection.remote,
            metadata: &self.metadata,
            filter_state: &self.filter_state,
            stream: None,
            runtime: &NoRuntime,
            random: self.random,
        }
    }
}

/// A stream that nothing is known of yet.
pub(crate) fn info() -> StreamInfo {
    StreamInfo::new(Arc::new(World::new().connection), Instant::now(), SystemTime::now())
}

pub(crate) fn get(host: &str, path: &str) -> RequestHead {
    RequestHead::new(Method::GET, HeaderValue::from_str(host).unwrap(), HeaderValue::from_str(path).unwrap())
}

/// What a request gets: the route's name or why there is none. With and without a trace must say the same.
pub(crate) fn decide(table: &RouteTable, world: &World, head: &RequestHead) -> String {
    let print = |outcome: Outcome| match outcome {
        Outcome::Route(route) => route.entry.name.to_string(),
        Outcome::RequireTls(host) => format!("tls {}", host.name),
        Outcome::NoRoute(host) => format!("no route {}", host.name),
        Outcome::NoVirtualHost => "no host".to_owned(),
    };
    let plain = print(route(table, &world.input(head), None));
    assert_eq!(
        plain,
        print(route(table, &world.input(head), Some(&mut Trace::default()))),
        "the trace decides otherwise"
    );
    plain
}
