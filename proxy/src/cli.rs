//! The command line: Tidegate's subcommands, and Envoy's flags where there is none.
//! It must not know what it starts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tidegate_filters::context::Defaults;

use crate::config::files::UnknownDynamicFields;

/// What a call asks for.
#[derive(Debug, Clone)]
pub enum Command {
    /// Serve a configuration.
    Run(Box<EnvoyFlags>),
    /// Say what is wrong with a configuration.
    Check(CheckFlags),
    /// Serve the embedded demonstration.
    Quickstart(QuickstartFlags),
    /// Ask a running process how it is.
    Status(StatusFlags),
    /// Serve configuration to proxies.
    Control(ControlFlags),
    /// Change resources of a control plane.
    Apply(ApplyFlags),
    /// Show resources of a control plane.
    Get(GetFlags),
    /// Take a resource of a control plane away.
    Delete(DeleteFlags),
    /// Say what a change would do.
    Diff(DiffFlags),
    /// Show what the short form stands for.
    Expand(ExpandFlags),
}

#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    about = "A service-mesh sidecar and edge gateway that takes Envoy's configuration"
)]
#[command(after_help = "Called with Envoy's flags and no subcommand, or as `envoy`, it behaves as envoy:\n  \
tidegate -c envoy.yaml --mode validate\n`tidegate run --help` lists those flags.")]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Serve a configuration
    #[command(name = "run", display_name = "tidegate")]
    Run(Box<EnvoyFlags>),
    /// Say what is wrong with a configuration, what is without effect, and which safe defaults change what it does
    Check(CheckFlags),
    /// Serve a demonstration: a gateway on 127.0.0.1:10000, admin on 127.0.0.1:9901, two upstreams; or files of the short form
    Quickstart(QuickstartFlags),
    /// Tell how a running process is: its control planes, which versions act, what was refused and why
    Status(StatusFlags),
    /// Serve configuration to proxies and gRPC clients: xDS from a directory of resources, or a store
    Control(ControlFlags),
    /// Change or create the resources of a file in a control plane's store, all or none
    Apply(ApplyFlags),
    /// Show what a control plane serves: all resources, those of a type, or one
    Get(GetFlags),
    /// Take a resource out of a control plane's store
    Delete(DeleteFlags),
    /// Show what `apply` would change; ends with 1 if there is something
    Diff(DiffFlags),
    /// Show the xDS resources that files of the short form stand for, or the JSON Schema of these files
    Expand(ExpandFlags),
}

/// `tidegate status`.
#[derive(Debug, Clone, Args)]
pub struct StatusFlags {
    /// Where its admin interface listens
    #[arg(long, default_value = "127.0.0.1:9901")]
    pub admin: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `tidegate control`.
#[derive(Debug, Clone, Args)]
pub struct ControlFlags {
    /// The directory: files in YAML or JSON, each of one resource, `resources: [...]` or the short form; a directory in it is a
    /// group of nodes. A file stands for a directory with nothing else in it
    #[arg(long, required_unless_present = "store", conflicts_with = "store")]
    pub source: Option<PathBuf>,
    /// A directory in which resources are kept that `tidegate apply` and the admin interface change
    #[arg(long, requires = "admin")]
    pub store: Option<PathBuf>,
    /// Where proxies come: xDS over gRPC (aggregated and by type, delta and state of the world), REST, CSDS, LRS
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where people ask: what is served, who is connected, what was refused
    #[arg(long)]
    pub admin: Option<SocketAddr>,
    /// A file of tokens, one a line: clients have to send one of them (`authorization: Bearer TOKEN`)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A service registry: `[NAME=]consul://HOST[:PORT]`, `[NAME=]nacos://HOST[:PORT]` or `[NAME=]dns://[SERVER]`; EDS clusters
    /// whose service is `NAME/SERVICE` get their endpoints from it; may be given again
    #[arg(long, value_name = "[NAME=]URL")]
    pub registry: Vec<String>,
    /// A file whose first line is the token of a registry; may be given again
    #[arg(long, value_name = "NAME=FILE")]
    pub registry_token_file: Vec<String>,
    /// A cluster that proxies have from their bootstrap, which resources may name; may be given again
    #[arg(long, value_name = "NAME")]
    pub bootstrap_cluster: Vec<String>,
    /// trace, debug, info, warning, error, critical or off
    #[arg(short = 'l', long, default_value = "info")]
    pub log_level: String,
}

/// Where a control plane with a store is.
#[derive(Debug, Clone, Args)]
pub struct StoreFlags {
    /// Where its admin interface listens
    #[arg(long, default_value = "127.0.0.1:18001")]
    pub admin: String,
    /// A file whose first line is a token that it knows
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// `tidegate apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyFlags {
    /// Resources in YAML or JSON: one, or `resources: [...]`
    #[arg(short, long)]
    pub file: PathBuf,
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Only if the version of all that is there is still this one (`tidegate get` shows it)
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<String>,
    #[command(flatten)]
    pub store: StoreFlags,
}

/// `tidegate get`.
#[derive(Debug, Clone, Args)]
pub struct GetFlags {
    /// Cluster, ClusterLoadAssignment, Listener, RouteConfiguration, ...
    #[arg(value_name = "TYPE")]
    pub kind: Option<String>,
    /// Its name; all of the type where it is left out
    pub name: Option<String>,
    #[command(flatten)]
    pub store: StoreFlags,
}

/// `tidegate delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteFlags {
    /// Cluster, ClusterLoadAssignment, Listener, RouteConfiguration, ...
    #[arg(value_name = "TYPE")]
    pub kind: String,
    /// Its name
    pub name: String,
    /// Only if this is its version
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<String>,
    #[command(flatten)]
    pub store: StoreFlags,
}

/// `tidegate diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffFlags {
    /// Resources in YAML or JSON: one, or `resources: [...]`
    #[arg(short, long)]
    pub file: PathBuf,
    #[command(flatten)]
    pub store: StoreFlags,
}

/// `tidegate expand`.
#[derive(Debug, Clone, Args)]
pub struct ExpandFlags {
    /// A file of the short form, or a directory as `tidegate control --source` takes it
    #[arg(value_name = "FILE|DIR", required_unless_present = "schema", conflicts_with = "schema")]
    pub path: Option<PathBuf>,
    /// How they are written
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: OutputFormat,
    /// Those of the nodes of this group: a directory within the directory
    #[arg(long, value_name = "NAME", conflicts_with = "schema")]
    pub group: Option<String>,
    /// Print the JSON Schema of the short form, for editors
    #[arg(long)]
    pub schema: bool,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum OutputFormat {
    #[default]
    Yaml,
    Json,
}

/// `tidegate check`.
#[derive(Debug, Clone, Args)]
pub struct CheckFlags {
    /// The bootstrap, YAML or JSON; or a file of the short form, or a directory as `tidegate control --source` takes it
    #[arg(value_name = "FILE|DIR")]
    pub file: PathBuf,
    /// Act with exactly Envoy's defaults
    #[arg(long)]
    pub envoy_defaults: bool,
    /// The node's id, over that of the file
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,
    /// The node's cluster, over that of the file
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// Leave out fields that the schema does not know
    #[arg(long, alias = "allow-unknown-fields")]
    pub allow_unknown_static_fields: bool,
}

/// `tidegate quickstart`.
#[derive(Debug, Clone, Args)]
pub struct QuickstartFlags {
    /// Files of the short form to serve, a directory or one file; where nothing is there, the demonstration is written there
    #[arg(value_name = "DIR|FILE")]
    pub path: Option<PathBuf>,
    /// Where the admin interface listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9901")]
    pub admin: SocketAddr,
    /// Worker threads; one for each processor by default
    #[arg(long, value_name = "COUNT")]
    pub concurrency: Option<usize>,
}

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
    /// Accepted without effect: there is no shared memory
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
    /// Nothing is shared with a parent
    #[arg(long, hide = true)]
    pub base_id_path: Option<String>,
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
    fn without_empty_paths(self) -> Self {
        let given = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        Self {
            config_path: given(self.config_path),
            config_yaml: self.config_yaml.filter(|yaml| !yaml.is_empty()),
            log_path: given(self.log_path),
            admin_address_path: given(self.admin_address_path),
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

/// Whether the binary was called by Envoy's name.
pub fn called_as_envoy(program: &str) -> bool {
    std::path::Path::new(program).file_stem().is_some_and(|name| name == "envoy")
}

const SUBCOMMANDS: [&str; 11] =
    ["run", "check", "quickstart", "status", "control", "apply", "get", "delete", "diff", "expand", "help"];

/// Reads a command line, program name first.
///
/// # Errors
/// Clap's, which print themselves.
pub fn parse(arguments: Vec<String>) -> Result<Command, clap::Error> {
    if speaks_envoy(&arguments) {
        return EnvoyFlags::try_parse_from(arguments).map(|flags| Command::Run(Box::new(flags.without_empty_paths())));
    }
    Cli::try_parse_from(arguments).map(|cli| match cli.command {
        Sub::Run(flags) => Command::Run(Box::new(flags.without_empty_paths())),
        Sub::Check(flags) => Command::Check(flags),
        Sub::Quickstart(flags) => Command::Quickstart(flags),
        Sub::Status(flags) => Command::Status(flags),
        Sub::Control(flags) => Command::Control(flags),
        Sub::Apply(flags) => Command::Apply(flags),
        Sub::Get(flags) => Command::Get(flags),
        Sub::Delete(flags) => Command::Delete(flags),
        Sub::Diff(flags) => Command::Diff(flags),
        Sub::Expand(flags) => Command::Expand(flags),
    })
}

/// Whether a command line is Envoy's: called by its name, or with its flags and no subcommand.
pub fn speaks_envoy(arguments: &[String]) -> bool {
    let first = arguments.get(1).map(String::as_str);
    let as_envoy = arguments.first().is_some_and(|program| called_as_envoy(program));
    let own = |first: &str| SUBCOMMANDS.contains(&first) || matches!(first, "-h" | "--help");
    as_envoy || first.is_some_and(|first| !own(first))
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

/// As many workers as processors, or as the cgroup's quota gives (`std` knows both).
pub fn default_concurrency() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The node's first address that is not loopback, as Envoy's `--local-address-ip-version` finds it.
pub fn node_address(version: IpVersion) -> Option<IpAddr> {
    let (any, probe): (&str, &str) = match version {
        IpVersion::V4 => ("0.0.0.0:0", "192.0.2.1:9"),
        IpVersion::V6 => ("[::]:0", "[2001:db8::1]:9"),
    };
    // Connecting a datagram socket sends nothing; it asks the routing table which address would be used.
    let socket = std::net::UdpSocket::bind(any).ok()?;
    socket.connect(probe).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Command {
        parse(line.split(' ').map(str::to_owned).collect()).unwrap()
    }

    #[test]
    fn envoys_flags_need_no_subcommand() {
        let Command::Run(flags) = parsed("tidegate -c a.yaml --concurrency 2 -l debug --drain-time-s 5 --base-id 7")
        else {
            panic!("not a run");
        };
        assert_eq!(flags.concurrency, Some(2));
        assert_eq!(flags.drain_time(), Duration::from_secs(5));
        assert_eq!(flags.defaults(false), Defaults::Safe);
        assert_eq!(flags.defaults(true), Defaults::Envoy);
    }

    #[test]
    fn subcommands_are_ours() {
        assert!(matches!(parsed("tidegate check a.yaml"), Command::Check(_)));
        assert!(matches!(parsed("tidegate quickstart"), Command::Quickstart(_)));
        assert!(matches!(parsed("tidegate run -c a.yaml"), Command::Run(_)));
        let control =
            parsed("tidegate control --source d --listen 127.0.0.1:1 --bootstrap-cluster a --bootstrap-cluster b");
        assert!(matches!(control, Command::Control(flags) if flags.bootstrap_cluster == ["a", "b"]));
        for line in
            ["--listen 127.0.0.1:1", "--source a --store b --listen 127.0.0.1:1", "--store b --listen 127.0.0.1:1"]
        {
            let line = format!("tidegate control {line}");
            assert!(parse(line.split(' ').map(str::to_owned).collect()).is_err(), "{line}");
        }
        assert!(matches!(parsed("tidegate expand --schema"), Command::Expand(flags) if flags.schema));
        for line in ["expand", "expand --schema a", "expand a --format toml"] {
            assert!(parse(format!("tidegate {line}").split(' ').map(str::to_owned).collect()).is_err(), "{line}");
        }
        assert!(matches!(parsed("tidegate get Cluster"), Command::Get(flags) if flags.name.is_none()));
        assert!(matches!(parsed("/usr/bin/envoy --mode validate -c a.yaml"), Command::Run(_)));
    }

    #[test]
    fn an_empty_path_or_text_is_none() {
        let line = ["tidegate", "-c", "a", "--log-path", "", "--config-yaml", "", "--admin-address-path="];
        let Ok(Command::Run(flags)) = parse(line.map(str::to_owned).into()) else { panic!("not a run") };
        assert_eq!(flags.config_path.as_deref(), Some(std::path::Path::new("a")));
        assert_eq!((flags.log_path, flags.config_yaml, flags.admin_address_path), (None, None, None));
    }

    #[test]
    fn every_flag_is_explained() {
        use clap::CommandFactory;
        fn unexplained(command: &clap::Command) -> Vec<String> {
            let shown = command.get_arguments().filter(|flag| !flag.is_hide_set() && flag.get_help().is_none());
            let own = shown.map(|flag| format!("{} {}", command.get_name(), flag.get_id()));
            own.chain(command.get_subcommands().flat_map(unexplained)).collect()
        }
        assert_eq!(unexplained(&Cli::command()), Vec::<String>::new());
        assert_eq!(unexplained(&EnvoyFlags::command()), Vec::<String>::new());
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert!(parse(vec!["tidegate".into(), "--no-such-flag".into()]).is_err());
    }
}
