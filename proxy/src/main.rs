//! The `tidegate` binary: reads the command line and starts what it asks for.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tidegate::admin::state::{CommandLine, LogLevel};
use tidegate::application_log::{self, Setup, pattern::Pattern, streams};
use tidegate::cli::{self, CheckFlags, Command, ControlFlags, DrainStrategy, EnvoyFlags, Mode, QuickstartFlags};
use tidegate::config::bootstrap::{Bootstrap, Overrides};
use tidegate::config::files::UnknownDynamicFields;
use tidegate::server::{self, Options, StartError};
use tidegate::stats::server::VERSION;
use tidegate::{allocator, check, control_plane, core_dump, expand, process, quickstart, resources, status};
use tidegate_filters::context::Defaults;
use tidegate_xds::{FieldError, Format};

#[global_allocator]
static ALLOCATOR: allocator::Allocator = mimalloc::MiMalloc;

fn main() -> ExitCode {
    streams::append();
    let arguments: Vec<String> = std::env::args().collect();
    let as_envoy = arguments.first().is_some_and(|program| cli::called_as_envoy(program));
    let command = match cli::parse(arguments.clone()) {
        Ok(command) => command,
        Err(error) => return answer(&error, &arguments),
    };
    let result = match command {
        Command::Run(flags) => run(&flags, as_envoy),
        Command::Check(flags) => run_check(&flags),
        Command::Status(flags) => printed(status::ask(&flags.admin, if flags.json { "json" } else { "text" })),
        Command::Quickstart(flags) => run_quickstart(flags),
        Command::Control(flags) => run_control(*flags),
        Command::Expand(flags) => printed(expand::print(&flags)),
        Command::Apply(flags) => printed(resources::apply(&flags)),
        Command::Get(flags) => printed(resources::get(&flags)),
        Command::Delete(flags) => printed(resources::delete(&flags)),
        Command::Diff(flags) => resources::diff(&flags).map(|(text, differs)| {
            print!("{text}");
            if differs { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a command line gets that starts nothing: help, the version, or what is wrong with it. Exit codes are Envoy's.
fn answer(error: &clap::Error, arguments: &[String]) -> ExitCode {
    let words = if cli::speaks_envoy(arguments) { cli::envoys_words(error) } else { None };
    let program = arguments.first().map(String::as_str).unwrap_or_default();
    match words {
        Some(words) => eprintln!("{words}\n\nFor complete USAGE and HELP type: \n   {program} --help\n"),
        None if error.kind() == clap::error::ErrorKind::DisplayVersion && cli::called_as_envoy(program) => {
            println!("\n{program}  version: {VERSION}\n");
        }
        // Nobody reads it where it cannot be printed.
        None => drop(error.print()),
    }
    if error.exit_code() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(flags: &EnvoyFlags, as_envoy: bool) -> anyhow::Result<ExitCode> {
    if flags.hot_restart_version {
        println!("disabled");
        return Ok(ExitCode::SUCCESS);
    }
    flags.fit().map_err(anyhow::Error::msg)?;
    let Some(level) = application_log::parse(&flags.log_level) else {
        anyhow::bail!("invalid log level specified '{}'", flags.log_level);
    };
    let setup = Setup {
        level,
        components: flags.component_log_level.as_deref().unwrap_or_default(),
        by_file: flags.enable_fine_grain_logging,
        escaped: flags.log_format_escaped,
        // As in Envoy: who validates is told on stderr.
        path: flags.log_path.as_deref().filter(|_| flags.mode == Mode::Serve),
    };
    application_log::init(&setup).map_err(anyhow::Error::msg)?;
    if flags.cpuset_threads && flags.concurrency.is_some() {
        tracing::warn!("Both --concurrency and --cpuset-threads options are set; not applying --cpuset-threads.");
    }
    if flags.enable_core_dump {
        match core_dump::enable() {
            Ok(()) => tracing::info!("core dump enabled"),
            Err(error) => tracing::warn!(%error, "failed to enable core dump"),
        }
    }
    if let Some(pattern) = &flags.log_format {
        application_log::set_pattern(Pattern::text(pattern));
    }
    let defaults = flags.defaults(as_envoy);
    let overrides = Overrides {
        yaml: flags.config_yaml.clone(),
        service_node: flags.service_node.clone(),
        service_cluster: flags.service_cluster.clone(),
        service_zone: flags.service_zone.clone(),
        allow_unknown_fields: flags.allow_unknown_static_fields,
        stats_tags: flags.stats_tags().map_err(anyhow::Error::msg)?,
    };
    let bootstrap = match &flags.config_path {
        Some(path) => read(path, &overrides, defaults)?,
        None if flags.config_yaml.is_some() => {
            // All there is: what is wrong is found in its lines.
            let alone = Overrides { yaml: None, ..overrides.clone() };
            let yaml = flags.config_yaml.as_deref().unwrap_or_default();
            Bootstrap::read(yaml.as_bytes(), Format::Yaml, &alone, defaults)
        }
        None => anyhow::bail!("at least one of --config-path or --config-yaml should be non-empty"),
    };
    let clash = |bootstrap: &Bootstrap| bootstrap.log_pattern.is_some() && flags.log_format.is_some();
    if bootstrap.as_ref().is_ok_and(clash) {
        anyhow::bail!("Only one of ApplicationLogConfig.log_format or CLI option --log-format can be specified.");
    }
    if flags.mode == Mode::Validate {
        let checked = bootstrap.and_then(|bootstrap| server::validate(&bootstrap, defaults));
        return Ok(match checked {
            Ok(()) => {
                let name = flags.config_path.as_deref().map(Path::display).map(|name| name.to_string());
                println!("configuration '{}' OK", name.unwrap_or_default());
                ExitCode::SUCCESS
            }
            Err(errors) => {
                print_errors(&errors);
                ExitCode::FAILURE
            }
        });
    }
    write_base_id(flags);
    let concurrency = flags.concurrency.map_or_else(process::default_concurrency, |count| count.max(1) as usize);
    let mut options = options(concurrency, defaults, flags.drain_time());
    options.drain_immediately = flags.drain_strategy == DrainStrategy::Immediate;
    options.parent_shutdown_time = Duration::from_secs(flags.parent_shutdown_time_s.into());
    options.file_flush_interval = Duration::from_millis(flags.file_flush_interval_msec.into());
    options.node_address = process::node_address(flags.local_address_ip_version.any());
    options.admin_address_path.clone_from(&flags.admin_address_path);
    options.unknown_dynamic_fields = flags.unknown_dynamic_fields();
    options.snapshot_directory.clone_from(&flags.snapshot_dir);
    options.command_line = command_line(flags, &options, level);
    start(bootstrap, options)
}

/// For whoever starts processes by it. Like Envoy, a process serves although it could not be written.
fn write_base_id(flags: &EnvoyFlags) {
    let Some(path) = flags.base_id_path.as_deref().filter(|_| !flags.disable_hot_restart) else { return };
    if let Err(error) = std::fs::write(path, flags.base_id.unwrap_or(0).to_string()) {
        tracing::error!("cannot open base id output file {} for writing: {error}", path.display());
    }
}

fn options(concurrency: usize, defaults: Defaults, drain_time: Duration) -> Options {
    Options {
        concurrency,
        defaults,
        drain_time,
        drain_immediately: false,
        parent_shutdown_time: Duration::from_secs(900),
        file_flush_interval: Duration::from_secs(10),
        node_address: process::node_address(cli::IpVersion::V4.any()),
        admin_address_path: None,
        unknown_dynamic_fields: UnknownDynamicFields::default(),
        snapshot_directory: None,
        command_line: CommandLine::default(),
    }
}

/// The flags as `/server_info` shows them.
fn command_line(flags: &EnvoyFlags, options: &Options, level: LogLevel) -> CommandLine {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let path = |value: &Option<std::path::PathBuf>| {
        value.as_deref().map(Path::display).map(|path| path.to_string()).unwrap_or_default()
    };
    CommandLine {
        concurrency: u32::try_from(options.concurrency).unwrap_or(u32::MAX),
        config_path: path(&flags.config_path),
        config_yaml: text(&flags.config_yaml),
        allow_unknown_static_fields: flags.allow_unknown_static_fields,
        reject_unknown_dynamic_fields: flags.reject_unknown_dynamic_fields,
        ignore_unknown_dynamic_fields: flags.ignore_unknown_dynamic_fields,
        admin_address_path: path(&flags.admin_address_path),
        local_address_ip_version: match flags.local_address_ip_version {
            cli::IpVersion::V4 => "v4",
            cli::IpVersion::V6 => "v6",
        },
        log_level: level,
        component_log_level: text(&flags.component_log_level),
        log_format: text(&flags.log_format),
        log_path: path(&flags.log_path),
        service_cluster: text(&flags.service_cluster),
        service_node: text(&flags.service_node),
        service_zone: text(&flags.service_zone),
        file_flush_interval: options.file_flush_interval,
        file_flush_min_size_kb: flags.file_flush_min_size_kb,
        drain_time: options.drain_time,
        drain_immediately: options.drain_immediately,
        parent_shutdown_time: options.parent_shutdown_time,
        envoy_defaults: options.defaults == Defaults::Envoy,
        base_id: flags.base_id.unwrap_or(0),
        base_id_path: path(&flags.base_id_path),
        use_dynamic_base_id: flags.use_dynamic_base_id,
        restart_epoch: flags.restart_epoch.unwrap_or(0),
        cpuset_threads: flags.cpuset_threads,
        log_format_escaped: flags.log_format_escaped,
        enable_fine_grain_logging: flags.enable_fine_grain_logging,
        log_stacktrace_single_entry: flags.log_stacktrace_single_entry,
        skip_deprecated_logs: flags.skip_deprecated_logs,
        skip_hot_restart_on_no_parent: flags.skip_hot_restart_on_no_parent,
        skip_hot_restart_parent_stats: flags.skip_hot_restart_parent_stats,
        socket_path: flags.socket_path.clone().unwrap_or_else(|| CommandLine::default().socket_path),
        stats_tag: flags.stats_tag.clone(),
    }
}

fn read(path: &Path, overrides: &Overrides, defaults: Defaults) -> anyhow::Result<Result<Bootstrap, Vec<FieldError>>> {
    let text = std::fs::read(path).with_context(|| format!("unable to read file: {}", path.display()))?;
    Ok(Bootstrap::read(&text, Format::of_path(path), overrides, defaults))
}

fn start(bootstrap: Result<Bootstrap, Vec<FieldError>>, options: Options) -> anyhow::Result<ExitCode> {
    let bootstrap = match bootstrap {
        Ok(bootstrap) => bootstrap,
        Err(errors) => {
            print_errors(&errors);
            return Ok(ExitCode::FAILURE);
        }
    };
    if let Some(pattern) = &bootstrap.log_pattern {
        application_log::set_pattern(pattern.clone());
    }
    match control_runtime()?.block_on(server::run(bootstrap, options)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(StartError::Configuration(errors)) => {
            print_errors(&errors);
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

fn run_quickstart(flags: QuickstartFlags) -> anyhow::Result<ExitCode> {
    let _without_components = application_log::init(&Setup::at(LogLevel::Info));
    let served = quickstart::prepare(flags.path)?;
    served.announce(flags.admin);
    let concurrency = flags.concurrency.unwrap_or_else(process::default_concurrency);
    let options = options(concurrency, Defaults::Safe, Duration::from_secs(10));
    control_runtime()?.block_on(served.run(flags.admin, options))?;
    Ok(ExitCode::SUCCESS)
}

/// Where everything runs that is no request.
fn control_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build()
}

fn printed(answer: anyhow::Result<String>) -> anyhow::Result<ExitCode> {
    print!("{}", answer?);
    Ok(ExitCode::SUCCESS)
}

fn run_control(flags: ControlFlags) -> anyhow::Result<ExitCode> {
    let Some(level) = application_log::parse(&flags.log_level) else {
        anyhow::bail!("invalid log level specified '{}'", flags.log_level);
    };
    application_log::init(&Setup::at(level)).map_err(anyhow::Error::msg)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(control_plane::run(flags))?;
    Ok(ExitCode::SUCCESS)
}

fn run_check(flags: &CheckFlags) -> anyhow::Result<ExitCode> {
    let defaults = if flags.envoy_defaults { Defaults::Envoy } else { Defaults::Safe };
    let overrides = Overrides {
        service_node: flags.service_node.clone(),
        service_cluster: flags.service_cluster.clone(),
        allow_unknown_fields: flags.allow_unknown_static_fields,
        ..Overrides::default()
    };
    let report = if check::is_source(&flags.file) {
        check::report_source(&flags.file, defaults)
    } else {
        check::report(&flags.file, read(&flags.file, &overrides, defaults)?, defaults)
    };
    print!("{}", report.text);
    Ok(if report.refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_errors(errors: &[FieldError]) {
    for error in errors {
        eprintln!("error initializing configuration: {error}");
    }
}
