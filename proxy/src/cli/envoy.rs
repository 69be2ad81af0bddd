//! Envoy's own flags, and its words for what is wrong with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tidegate_filters::context::Defaults;

use crate::config::files::UnknownDynamicFields;

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum Mode {
    #[default]
    Serve,
    Validate,
}

/// `--drain-strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum DrainStrategy {
    #[default]
    Gradual,
    Immediate,
}

/// `--local-address-ip-version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum IpVersion {
    #[default]
    V4,
    V6,
}

impl IpVersion {
    /// The address that stands for any of it.
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Envoy's own flags.
#[derive(Debug, Clone, Parser)]
#[command(name = "tidegate", version)]
pub struct EnvoyFlags {
    /// The bootstrap, YAML or JSON
    #[arg(short = 'c', long, value_name = "FILE", value_parser = path())]
    pub config_path: Option<PathBuf>,
    /// A bootstrap in YAML, merged over the file
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// serve, or only validate the configuration
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub mode: Mode,
    /// Worker threads; as many as the processors (or the cgroup's quota) allow by default, and at least 1
    #[arg(long, value_name = "COUNT")]
    pub concurrency: Option<u32>,
    /// trace, debug, info, warning, error, critical or off
    #[arg(short = 'l', long, default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    /// Levels of single components, as `http:debug,upstream:info`
    #[arg(long, value_name = "NAME:LEVEL,...")]
    pub component_log_level: Option<String>,
    /// Write the application log to this file instead of stderr
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub log_path: Option<PathBuf>,
    /// Pattern of the application log, in spdlog's syntax, such as `[%Y-%m-%d %T.%e][%l][%n] %v`
    #[arg(long, value_name = "PATTERN")]
    pub log_format: Option<String>,
    /// C-style escape sequences for what lines of the application log hold of line ends, quotes and control characters
    #[arg(long)]
    pub log_format_escaped: bool,
    /// Levels by source file instead of by component: `/logging` changes them
    #[arg(long)]
    pub enable_fine_grain_logging: bool,
    /// A tag of every stat; may be given again, with other names
    #[arg(long, value_name = "TAG:VALUE")]
    pub stats_tag: Vec<String>,
    /// Let the system write a memory dump if the process crashes
    #[arg(long)]
    pub enable_core_dump: bool,
    /// Tell which version of hot restart this is, and end: there is none
    #[arg(long)]
    pub hot_restart_version: bool,
    /// The node's cluster, over that of the bootstrap
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// The node's id, over that of the bootstrap
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,
    /// The node's zone, over that of the bootstrap
    #[arg(long, value_name = "NAME")]
    pub service_zone: Option<String>,
    /// How long connections are drained, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub drain_time_s: u32,
    /// Ask ever more connections to leave while a drain goes on, or all of them from its start
    #[arg(long, value_enum, default_value_t, value_name = "STRATEGY")]
    pub drain_strategy: DrainStrategy,
    /// How long after a hot restart the parent ends, in seconds
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub parent_shutdown_time_s: u32,
    /// Which of the node's addresses names it
    #[arg(long, value_enum, default_value_t, value_name = "VERSION")]
    pub local_address_ip_version: IpVersion,
    /// Write the admin interface's address to this file
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub admin_address_path: Option<PathBuf>,
    /// Leave out fields of the bootstrap that the schema does not know
    #[arg(long, alias = "allow-unknown-fields")]
    pub allow_unknown_static_fields: bool,
    /// Refuse resources with fields that the schema does not know, where they come from files or control planes
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,
    /// Leave such fields out without a warning
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    /// How often access logs are flushed, in milliseconds
    #[arg(long, default_value_t = 10_000, value_name = "MILLISECONDS")]
    pub file_flush_interval_msec: u32,
    /// How much is buffered before an access log is flushed, in KiB
    #[arg(long, default_value_t = 64, value_name = "KIB")]
    pub file_flush_min_size_kb: u32,
    /// There is no hot restart; an upgrade is a new process on the same ports and a drain of the old one
    #[arg(long)]
    pub disable_hot_restart: bool,
    /// Act with exactly Envoy's defaults, also where they are unsafe at the edge
    #[arg(long)]
    pub envoy_defaults: bool,
    /// Keep what control planes said last in this directory, and serve it when they are away at the start
    #[arg(long, value_name = "DIR")]
    pub snapshot_dir: Option<PathBuf>,
    /// Names nothing, since there is no shared memory; --base-id-path tells it
    #[arg(long, hide = true)]
    pub base_id: Option<u32>,
    /// Accepted without effect, as the rest
    #[arg(long, hide = true)]
    pub use_dynamic_base_id: bool,
    #[arg(long, hide = true)]
    pub restart_epoch: Option<u32>,
    #[arg(long, hide = true)]
    pub skip_deprecated_logs: bool,
    #[arg(long, hide = true)]
    pub skip_hot_restart_on_no_parent: bool,
    #[arg(long, hide = true)]
    pub skip_hot_restart_parent_stats: bool,
    /// Where workers may run decides how many there are, which is so anyway without --concurrency
    #[arg(long, hide = true)]
    pub cpuset_threads: bool,
    /// Write the base id to this file, which is 0 unless it is given
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub base_id_path: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub socket_path: Option<String>,
    #[arg(long, hide = true)]
    pub socket_mode: Option<String>,
    /// No stack traces are logged
    #[arg(long, hide = true)]
    pub log_stacktrace_single_entry: bool,
    /// Refused
    #[arg(long, hide = true)]
    pub enable_mutex_tracing: bool,
    /// Refused
    #[arg(long, hide = true)]
    pub disable_extensions: Option<String>,
}

/// A tag's name is of letters and digits, its value of anything but dots.
fn stats_tag(given: &str) -> Result<(String, String), String> {
    let Some((name, value)) = given.split_once(':') else { return Err(format!("misformatted stats-tag '{given}'")) };
    let wrong = |part: &str| format!("misformatted stats-tag '{given}' contains invalid char in '{part}'");
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(wrong(name));
    }
    if value.is_empty() || value.contains('.') {
        return Err(wrong(value));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// A path; an empty one is no path at all, as for Envoy.
fn path() -> impl clap::builder::TypedValueParser<Value = PathBuf> {
    clap::builder::TypedValueParser::map(clap::builder::StringValueParser::new(), PathBuf::from)
}

impl EnvoyFlags {
    pub(super) fn without_empty_paths(self) -> Self {
        let given = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        Self {
            config_path: given(self.config_path),
            config_yaml: self.config_yaml.filter(|yaml| !yaml.is_empty()),
            log_path: given(self.log_path),
            admin_address_path: given(self.admin_address_path),
            base_id_path: given(self.base_id_path),
            ..self
        }
    }

    /// The defaults that act; `called_as_envoy` implies Envoy's.
    pub fn defaults(&self, called_as_envoy: bool) -> Defaults {
        if self.envoy_defaults || called_as_envoy { Defaults::Envoy } else { Defaults::Safe }
    }

    /// Rejecting wins over ignoring, as in Envoy.
    pub fn unknown_dynamic_fields(&self) -> UnknownDynamicFields {
        match (self.reject_unknown_dynamic_fields, self.ignore_unknown_dynamic_fields) {
            (true, _) => UnknownDynamicFields::Reject,
            (false, true) => UnknownDynamicFields::Ignore,
            (false, false) => UnknownDynamicFields::Warn,
        }
    }

    /// What Envoy refuses of flags that fit each by itself.
    ///
    /// # Errors
    /// Why they do not go together.
    pub fn fit(&self) -> Result<(), String> {
        if self.enable_mutex_tracing {
            return Err("--enable-mutex-tracing is not supported: no contention is counted".to_owned());
        }
        if self.disable_extensions.as_ref().is_some_and(|names| !names.is_empty()) {
            return Err("--disable-extensions is not supported: leave them out of the configuration".to_owned());
        }
        self.stats_tags()?;
        match self.restart_epoch {
            Some(epoch) if epoch > 0 && self.use_dynamic_base_id => {
                Err(format!("cannot use --restart-epoch={epoch} with --use-dynamic-base-id"))
            }
            _ => Ok(()),
        }
    }

    /// `--stats-tag`, in the order given.
    ///
    /// # Errors
    /// What is wrong with one, in Envoy's words.
    pub fn stats_tags(&self) -> Result<Vec<(String, String)>, String> {
        self.stats_tag.iter().map(|given| stats_tag(given)).collect()
    }

    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.drain_time_s.into())
    }
}

/// What is wrong with a command line, in the words that Envoy has for it.
pub fn envoys_words(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg)?.split(' ').next().unwrap_or_default();
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let parse_error =
        |argument: &str, reason: &str| Some(format!("PARSE ERROR: Argument: {argument}\n             {reason}"));
    match (error.kind(), flag) {
        (ErrorKind::InvalidValue, _) if value.is_empty() => {
            parse_error(&format!("({flag})"), "Missing a value for this argument!")
        }
        (ErrorKind::InvalidValue, "--mode") => Some(format!("error: unknown mode '{value}'")),
        (ErrorKind::InvalidValue, "--drain-strategy") => Some(format!("error: unknown drain-strategy '{value}'")),
        (ErrorKind::InvalidValue, "--local-address-ip-version") => {
            Some(format!("error: unknown IP address version '{value}'"))
        }
        (ErrorKind::ValueValidation, _) => {
            parse_error(&format!("({flag})"), &format!("Couldn't read argument value from string '{value}'"))
        }
        (ErrorKind::UnknownArgument, _) => parse_error(flag, "Couldn't find match for argument"),
        (ErrorKind::ArgumentConflict, _) => parse_error(&format!("({flag})"), "Argument already set!"),
        _ => None,
    }
}
