//! What the admin interface asks of the process: a trait that the process implements, and plain data.
//! It must not know how answers are written.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tidegate_filters::access_log::AccessLog;
use tidegate_filters::stream_info::{Address, Locality};
use tidegate_stats::Store;
use tidegate_tls::certificate::Certificate;
use tidegate_tls::ocsp::OcspResponse;

use crate::cluster::host::HealthStatus;
use crate::cluster::status::{HostCounts, Limits};
use crate::runtime::Layers;

/// The process behind the admin interface. Methods are called off the runtime's threads and may take their time.
pub trait AdminState: Send + Sync + 'static {
    fn stats(&self) -> &Store;

    /// Called before stats are shown: where `stats_flush_on_admin` is set, flushes them.
    fn before_stats(&self) {}

    fn runtime(&self) -> &Layers;

    fn server_state(&self) -> ServerState;

    fn server_info(&self) -> ServerInfo;

    fn memory(&self) -> Memory;

    /// The clusters that serve, sorted by name.
    fn clusters(&self) -> Vec<ClusterStatus>;

    /// The listeners that serve, in the order in which they came.
    fn listeners(&self) -> Vec<ListenerStatus>;

    /// The parts of a configuration dump in Envoy's order, each an object with its `@type` (`envoy.admin.v3.*ConfigDump`)
    /// as `tidegate_xds::to_json` makes it; with endpoints an `EndpointsConfigDump` among them.
    fn config_dump(&self, include_endpoints: bool) -> Vec<Value>;

    /// When what is served was kept on disk, while no control plane has answered since the start.
    fn serves_kept(&self) -> Option<SystemTime> {
        None
    }

    /// The certificates of every TLS context that serves.
    fn certificates(&self) -> Vec<ContextCertificates> {
        Vec::new()
    }

    /// The resources that were refused and that nothing good has followed.
    fn rejected(&self) -> Vec<Rejected>;

    fn drain_listeners(&self, drain: DrainListeners);

    fn set_health_check_failing(&self, failing: bool);

    /// Ends the process as SIGTERM does.
    fn quit(&self);

    /// Where requests to the admin interface are logged.
    fn access_logs(&self) -> &[Arc<AccessLog>] {
        &[]
    }

    /// Whether `allow_paths` lets a request through; `path` is with its query.
    fn allows(&self, path: &str) -> bool {
        let _ = path;
        true
    }

    fn reopen_logs(&self);

    /// Every logger with its level, sorted by name.
    fn loggers(&self) -> Vec<(String, LogLevel)>;

    /// Changes levels, or none.
    ///
    /// # Errors
    /// Why not, in Envoy's words.
    fn change_log_levels(&self, change: &LogChange) -> Result<(), &'static str>;
}

/// The certificates of one TLS context.
#[derive(Debug, Clone)]
pub struct ContextCertificates {
    /// Of the roots that it trusts, the first.
    pub roots: Vec<PlacedCertificate>,
    /// What it presents.
    pub chain: Vec<PlacedCertificate>,
}

/// A certificate and where it came from.
#[derive(Debug, Clone)]
pub struct PlacedCertificate {
    pub path: String,
    pub certificate: Certificate,
    /// What is stapled to it.
    pub ocsp: Option<OcspResponse>,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// It takes traffic.
    Live,
    /// Health checks fail: by `/healthcheck/fail` or by draining.
    Draining,
    /// Waits for clusters.
    PreInitializing,
    /// Waits for listeners and routes.
    Initializing,
}

impl ServerState {
    /// Envoy's spelling.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// What `/server_info` tells beside the state.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerInfo {
    pub uptime: Duration,
    pub options: CommandLine,
    /// The node with all its fields, as JSON of `envoy.config.core.v3.Node`.
    pub node: Value,
}

/// The command line as the process understood it.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandLine {
    pub concurrency: u32,
    pub config_path: String,
    pub config_yaml: String,
    pub allow_unknown_static_fields: bool,
    pub reject_unknown_dynamic_fields: bool,
    pub ignore_unknown_dynamic_fields: bool,
    pub admin_address_path: String,
    /// `v4` or `v6`.
    pub local_address_ip_version: &'static str,
    pub log_level: LogLevel,
    pub component_log_level: String,
    pub log_format: String,
    pub log_path: String,
    pub service_cluster: String,
    pub service_node: String,
    pub service_zone: String,
    pub file_flush_interval: Duration,
    pub file_flush_min_size_kb: u32,
    pub drain_time: Duration,
    pub drain_immediately: bool,
    pub parent_shutdown_time: Duration,
    /// Not told: Envoy's message has no field for it, and its readers may refuse one that they do not know.
    pub envoy_defaults: bool,
    pub base_id: u32,
    pub base_id_path: String,
    pub use_dynamic_base_id: bool,
    pub restart_epoch: u32,
    pub cpuset_threads: bool,
    pub log_format_escaped: bool,
    pub enable_fine_grain_logging: bool,
    pub log_stacktrace_single_entry: bool,
    pub skip_deprecated_logs: bool,
    pub skip_hot_restart_on_no_parent: bool,
    pub skip_hot_restart_parent_stats: bool,
    pub socket_path: String,
    pub stats_tag: Vec<String>,
}

impl Default for CommandLine {
    fn default() -> Self {
        Self {
            concurrency: 1,
            config_path: String::new(),
            config_yaml: String::new(),
            allow_unknown_static_fields: false,
            reject_unknown_dynamic_fields: false,
            ignore_unknown_dynamic_fields: false,
            admin_address_path: String::new(),
            local_address_ip_version: "v4",
            log_level: LogLevel::Info,
            component_log_level: String::new(),
            log_format: String::new(),
            log_path: String::new(),
            service_cluster: String::new(),
            service_node: String::new(),
            service_zone: String::new(),
            file_flush_interval: Duration::from_secs(10),
            file_flush_min_size_kb: 64,
            drain_time: Duration::from_secs(600),
            drain_immediately: false,
            parent_shutdown_time: Duration::from_secs(900),
            envoy_defaults: false,
            base_id: 0,
            base_id_path: String::new(),
            use_dynamic_base_id: false,
            restart_epoch: 0,
            cpuset_threads: false,
            log_format_escaped: false,
            enable_fine_grain_logging: false,
            log_stacktrace_single_entry: false,
            skip_deprecated_logs: false,
            skip_hot_restart_on_no_parent: false,
            skip_hot_restart_parent_stats: false,
            socket_path: "@envoy_domain_socket".to_owned(),
            stats_tag: Vec::new(),
        }
    }
}

/// Envoy's log levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warning,
    Error,
    Critical,
    Off,
}

impl LogLevel {
    pub const ALL: [Self; 7] =
        [Self::Trace, Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical, Self::Off];

    /// Envoy's spelling.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }

    /// The level of this exact name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// A change of log levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogChange {
    All(LogLevel),
    /// Of these loggers; where levels are those of source files, of the files that fit these patterns.
    Named(Vec<(String, LogLevel)>),
    /// Of the files of one logger.
    Group(String, LogLevel),
}

/// A resource that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub type_url: &'static str,
    pub name: Arc<str>,
    /// Of what was refused; empty where its source names none.
    pub version: Arc<str>,
    /// Field and reason.
    pub reason: String,
    pub since: SystemTime,
    pub last_attempt: SystemTime,
    /// Of what serves on under the name.
    pub acting_version: Option<Arc<str>>,
}

impl Rejected {
    /// The last word of its type.
    pub fn kind(&self) -> &'static str {
        self.type_url.rsplit('.').next().unwrap_or_default()
    }
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Held by the process itself.
    pub allocated: u64,
    /// Reserved for it.
    pub heap_size: u64,
    /// Resident, files included.
    pub physical: u64,
}

/// Which listeners `/drain_listeners` drains, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainListeners {
    /// Connections are asked to leave for the drain time before the listeners close.
    pub graceful: bool,
    /// Connections are asked to leave; the listeners never close.
    pub skip_exit: bool,
    pub inbound_only: bool,
}

/// A listener that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerStatus {
    pub name: Arc<str>,
    pub address: Address,
    pub more_addresses: Vec<Address>,
}

/// A cluster that serves.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterStatus {
    pub name: Arc<str>,
    /// The name in its stats.
    pub observability_name: Arc<str>,
    /// Whether a control plane gave it.
    pub added_via_api: bool,
    pub eds_service_name: Option<Arc<str>>,
    /// Of the default and of high priority, as they act now.
    pub limits: [Limits; 2],
    /// With outlier detection.
    pub outlier: Option<OutlierStatus>,
    pub hosts: Vec<HostStatus>,
}

/// What outlier detection computed last; `None` where there were too few hosts or requests.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OutlierStatus {
    pub success_rate_average: Option<f64>,
    pub success_rate_ejection_threshold: Option<f64>,
    pub local_origin_success_rate_average: Option<f64>,
    pub local_origin_success_rate_ejection_threshold: Option<f64>,
}

/// A host of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct HostStatus {
    pub address: Address,
    pub hostname: Arc<str>,
    pub locality: Arc<Locality>,
    pub weight: u32,
    pub priority: u32,
    pub canary: bool,
    pub health: HostHealth,
    pub counts: HostCounts,
    pub success_rate: Option<f64>,
    pub local_origin_success_rate: Option<f64>,
}

/// Why a host is not healthy, if it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostHealth {
    pub failed_active_health_check: bool,
    pub failed_outlier_check: bool,
    pub failed_active_degraded_check: bool,
    pub pending_dynamic_removal: bool,
    pub pending_active_health_check: bool,
    pub excluded_via_immediate_failure: bool,
    pub active_health_check_timeout: bool,
    /// What discovery said.
    pub discovered: HealthStatus,
}
