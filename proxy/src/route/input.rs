//! What a route decision reads, and what it says: the outcome, and on demand why.
//! It must not know how a table is laid out.

use std::sync::Arc;

use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::http::RequestHead;
use tidegate_filters::matching::MatchData;
use tidegate_filters::metadata::{FilterState, Metadata};
use tidegate_filters::runtime::Runtime;
use tidegate_filters::stream_info::{Address, StreamInfo};

use super::{Route, VirtualHost};

/// All that a route may depend on.
#[derive(Clone, Copy)]
pub struct RouteInput<'a> {
    pub head: &'a RequestHead,
    pub connection: &'a ConnectionInfo,
    /// The client's address after `x-forwarded-for` and the like.
    pub remote: &'a Address,
    /// Dynamic metadata of the stream.
    pub metadata: &'a Metadata,
    pub filter_state: &'a FilterState,
    /// All that is known of the stream, for expressions: of where it goes, nothing yet.
    pub stream: Option<&'a StreamInfo>,
    pub runtime: &'a dyn Runtime,
    /// The stream's random value: fractions and weights draw from it, so that asking again answers the same.
    pub random: u64,
}

impl<'a> RouteInput<'a> {
    /// The same as matcher trees look at it.
    pub(crate) fn match_data(&self) -> MatchData<'a> {
        MatchData {
            remote: self.remote,
            metadata: self.metadata,
            filter_state: self.filter_state,
            request: Some(self.head),
            stream: self.stream,
            runtime: self.runtime,
            ..MatchData::of_connection(self.connection)
        }
    }
}

/// Where a request goes.
#[derive(Clone)]
pub enum Outcome {
    Route(Arc<Route>),
    /// `require_tls`: 301 to the same URL with `https`.
    RequireTls(Arc<VirtualHost>),
    /// A virtual host has the request's host, none of its routes matches.
    NoRoute(Arc<VirtualHost>),
    NoVirtualHost,
}

impl Outcome {
    pub fn route(&self) -> Option<&Arc<Route>> {
        match self {
            Self::Route(route) => Some(route),
            _ => None,
        }
    }

    pub fn virtual_host(&self) -> Option<&Arc<VirtualHost>> {
        match self {
            Self::Route(route) => Some(&route.entry.virtual_host),
            Self::RequireTls(host) | Self::NoRoute(host) => Some(host),
            Self::NoVirtualHost => None,
        }
    }
}

/// Why a decision fell as it did: filled when one is handed in.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Trace {
    /// The host that was looked up, and the virtual host that has it.
    pub host: String,
    pub virtual_host: Option<(Arc<str>, HostMatch)>,
    /// Which action its matcher tree led to, by its place in the configuration; none where it has no tree, or the tree
    /// leads nowhere.
    pub branch: Option<String>,
    /// The routes that were tried, in order; the last one has no mismatch when it was taken.
    pub tried: Vec<TriedRoute>,
    /// The cluster that was chosen, when the route forwards to one.
    pub cluster: Option<String>,
}

/// By which of its domains a virtual host was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMatch {
    Exact,
    /// `*` and this suffix.
    Suffix(String),
    /// This prefix and `*`.
    Prefix(String),
    /// `*`.
    Any,
}

/// One route that was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct TriedRoute {
    /// Place in the virtual host's list (or in the list that its matcher tree named).
    pub index: usize,
    pub name: Arc<str>,
    /// The first criterion that failed; `None` when all hold.
    pub mismatch: Option<Mismatch>,
}

/// The criterion that a request failed: Envoy's field, and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// E.g. `prefix`, `headers[1]`, `runtime_fraction`.
    pub field: String,
    pub wants: String,
}

impl Mismatch {
    pub(crate) fn new(field: impl Into<String>, wants: impl Into<String>) -> Self {
        Self { field: field.into(), wants: wants.into() }
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} wants {}", self.field, self.wants)
    }
}
