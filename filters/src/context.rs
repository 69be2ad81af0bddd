//! What a compile step is handed: where it stands in the resource, whose defaults act, where its stats go, and a place to
//! say what it needs. It is pure: compiling twice gives the same, and touches nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use prost::{Message, Name};
use tidegate_stats::Scope;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::{FieldError, FieldPath, any};

/// Whose value acts where the configuration is silent and Envoy's default is unsafe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defaults {
    /// Tidegate's safe ones.
    Safe,
    /// `--envoy-defaults`: exactly Envoy's.
    Envoy,
}

/// What a compiled thing needs before it may serve.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needs {
    /// Each with the field that names it.
    pub clusters: BTreeMap<String, FieldPath>,
    pub route_configurations: BTreeMap<String, RouteSubscription>,
    /// Those that stand in line and discover virtual hosts, by name, each with its place.
    pub routes_in_line: BTreeMap<String, (RouteConfiguration, FieldPath)>,
    pub extensions: BTreeMap<String, ExtensionSubscription>,
    /// By what tells their source from others.
    pub scopes: BTreeMap<String, ScopesSubscription>,
    pub endpoints: BTreeMap<String, ConfigSource>,
    pub secrets: BTreeMap<String, ConfigSource>,
}

impl Needs {
    /// Needs what another one is to discover, too.
    pub fn discover(&mut self, other: &Self) {
        let Self { route_configurations, routes_in_line, extensions, scopes, endpoints, secrets, .. } = other.clone();
        self.route_configurations.extend(route_configurations);
        self.routes_in_line.extend(routes_in_line);
        self.extensions.extend(extensions);
        self.scopes.extend(scopes);
        self.endpoints.extend(endpoints);
        self.secrets.extend(secrets);
    }
}

/// A route configuration that is to be discovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSubscription {
    pub source: ConfigSource,
    /// What its stats are named below, a dot at the end.
    pub stats_prefix: String,
}

/// A filter's configuration that is to be discovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionSubscription {
    pub source: ConfigSource,
    /// Whether the listener waits for it; else its default acts at once.
    pub waits: bool,
    /// As its stats name it.
    pub kind: &'static str,
}

/// Scopes of routes that are to be discovered, all of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopesSubscription {
    /// Of the scoped routes, for stats and dumps.
    pub name: String,
    pub source: ConfigSource,
    /// Where the route configurations come from that scopes name.
    pub routes: Option<ConfigSource>,
    /// What its stats, and those of its route configurations, are named below, a dot at the end.
    pub stats_prefix: String,
}

/// Where a resource comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// `path_config_source`: a file that is read again when it is moved into place, or when the watched directory changes.
    File { path: PathBuf, watched_directory: Option<PathBuf> },
    /// `ads`: the stream of the bootstrap's `ads_config`.
    Ads(Wait),
    /// `api_config_source`: a stream of its own.
    Stream(Arc<ControlPlane>, Wait),
    /// `api_config_source` with `REST`: polls of its own.
    Rest(Arc<RestControlPlane>, Wait),
}

impl ConfigSource {
    /// How long what comes from a control plane is waited for; none for a file.
    pub fn wait(&self) -> Option<Wait> {
        match self {
            Self::File { .. } => None,
            Self::Ads(wait) | Self::Stream(_, wait) | Self::Rest(_, wait) => Some(*wait),
        }
    }

    /// The same source, whoever waits for it and how long.
    #[must_use]
    pub fn without_wait(mut self) -> Self {
        match &mut self {
            Self::File { .. } => {}
            Self::Ads(wait) | Self::Stream(_, wait) | Self::Rest(_, wait) => *wait = Wait(None),
        }
        self
    }
}

/// How long the first answer is waited for (`initial_fetch_timeout`); none: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(pub Option<Duration>);

/// A control plane that speaks gRPC, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    pub service: GrpcService,
    /// Incremental xDS; else state of the world.
    pub delta: bool,
    /// The node goes into a stream's first request only.
    pub node_once: bool,
    /// How often requests may be sent (`rate_limit_settings`).
    pub rate_limit: Option<RequestRate>,
    /// Before a stream that ended is opened again (`retry_policy`).
    pub waits: Waits,
}

/// The bounds of waits between tries: of the first one, and of every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Waits {
    /// Envoy's for xDS.
    fn default() -> Self {
        Self { first: Duration::from_millis(500), longest: Duration::from_secs(30) }
    }
}

/// How often something may be asked: as many as `burst` at once, and so many more each second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestRate {
    pub burst: u32,
    pub per_second: f64,
}

/// A rate that is no number is refused.
impl Eq for RequestRate {}

/// A control plane that is polled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestControlPlane {
    pub cluster: String,
    /// From one response to the next request, at least; at most twice as long.
    pub refresh_delay: Duration,
    pub request_timeout: Duration,
}

/// A gRPC service behind a cluster (`envoy_grpc`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcService {
    pub cluster: String,
    /// The cluster's name where it is not given.
    pub authority: HeaderValue,
    /// Goes with every call.
    pub metadata: HeaderMap,
    pub max_message_bytes: usize,
    /// Whether calls carry `x-envoy-internal` and `x-forwarded-for`.
    pub envoy_headers: bool,
}

/// The surroundings of one compile step.
pub struct CompileContext<'a> {
    /// The resource's name, for errors.
    pub resource: &'a str,
    /// The field that is being compiled.
    pub path: FieldPath,
    pub defaults: Defaults,
    /// The scope that the surrounding listener, connection manager or cluster counts under.
    pub stats: Scope,
    pub needs: &'a mut Needs,
}

impl CompileContext<'_> {
    /// The typed message of an extension's configuration.
    pub fn decode<M: Message + Name + Default>(&self, config: &[u8]) -> Result<M, FieldError> {
        any::decode(config, &self.path).map_err(|error| error.in_resource(self.resource))
    }

    /// An error at the field that is being compiled.
    pub fn error(&self, reason: impl Into<String>) -> FieldError {
        FieldError::new(self.path.clone(), reason).in_resource(self.resource)
    }

    /// An error at a field below it.
    pub fn error_at(&self, field: &str, reason: impl Into<String>) -> FieldError {
        FieldError::new(self.path.clone().field(field), reason).in_resource(self.resource)
    }

    /// Runs `compile` one field down.
    pub fn within<T>(&mut self, field: &str, compile: impl FnOnce(&mut Self) -> T) -> T {
        let here = self.path.clone();
        self.path = here.clone().field(field);
        let result = compile(self);
        self.path = here;
        result
    }

    /// Runs `compile` for one item of a repeated field.
    pub fn within_item<T>(&mut self, field: &str, index: usize, compile: impl FnOnce(&mut Self) -> T) -> T {
        let here = self.path.clone();
        self.path = here.clone().field(field).index(index);
        let result = compile(self);
        self.path = here;
        result
    }
}
