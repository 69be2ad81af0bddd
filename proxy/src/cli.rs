//! The command line: Tidegate's subcommands, and Envoy's flags where there is none.
//! It must not know what it starts.

mod control;
mod envoy;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use control::{ApplyFlags, ControlFlags, DeleteFlags, DiffFlags, GetFlags, StoreFlags};
pub use envoy::{DrainStrategy, EnvoyFlags, IpVersion, Mode, envoys_words};

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
    Control(Box<ControlFlags>),
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
    Control(Box<ControlFlags>),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_filters::context::Defaults;

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
        for line in [
            "--listen 127.0.0.1:1",
            "--source a --store b --listen 127.0.0.1:1",
            "--store b --listen 127.0.0.1:1",
            "--source a --store-password-file b --listen 127.0.0.1:1",
        ] {
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
