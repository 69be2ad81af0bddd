//! The application log: where it goes, and its levels, which may change while it is written.
//! It must not know who writes to it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::admin::state::LogLevel;

/// Parts of the process that have levels of their own.
const COMPONENTS: [&str; 9] = ["admin", "cluster", "config", "http", "listener", "route", "runtime", "server", "tcp"];

struct Control {
    levels: Mutex<BTreeMap<&'static str, LogLevel>>,
    handle: reload::Handle<EnvFilter, Registry>,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Starts the log: to stderr, or to a file. `components` is Envoy's `name:level,…`; names that are not ours are passed over.
pub fn init(level: LogLevel, components: Option<&str>, path: Option<&Path>) {
    let mut levels: BTreeMap<&'static str, LogLevel> = COMPONENTS.map(|name| (name, level)).into();
    for (name, level) in components.into_iter().flat_map(|list| list.split(',')).filter_map(|part| part.split_once(':'))
    {
        if let (Some(slot), Some(level)) = (levels.get_mut(name), parse(level)) {
            *slot = level;
        }
    }
    let (filter, handle) = reload::Layer::new(filter(&levels));
    let file = path.and_then(|path| std::fs::OpenOptions::new().create(true).append(true).open(path).ok());
    let started = match file {
        Some(file) => {
            let lines = fmt::layer().with_ansi(false).with_writer(std::sync::Mutex::new(file));
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
        None => {
            let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
    };
    if started.is_ok() {
        // The first log of a process stays its log.
        let _ = CONTROL.set(Control { levels: Mutex::new(levels), handle });
    }
}

/// A level by Envoy's name, or `warn`.
pub fn parse(name: &str) -> Option<LogLevel> {
    LogLevel::parse(if name == "warn" { "warning" } else { name })
}

/// The levels as they are, sorted by name.
pub(crate) fn levels() -> Vec<(String, LogLevel)> {
    let Some(control) = CONTROL.get() else { return Vec::new() };
    control.levels.lock().iter().map(|(name, level)| ((*name).to_owned(), *level)).collect()
}

/// Sets the level of one component, or of all.
pub(crate) fn set(component: Option<&str>, level: LogLevel) {
    let Some(control) = CONTROL.get() else { return };
    let mut levels = control.levels.lock();
    levels
        .iter_mut()
        .filter(|(name, _)| component.is_none_or(|wanted| wanted == **name))
        .for_each(|(_, slot)| *slot = level);
    if control.handle.reload(filter(&levels)).is_err() {
        tracing::error!("cannot change log levels");
    }
}

fn filter(levels: &BTreeMap<&'static str, LogLevel>) -> EnvFilter {
    let directives: Vec<_> =
        levels.iter().map(|(name, level)| format!("tidegate::{name}={}", directive(*level))).collect();
    let rest = levels.values().min().copied().unwrap_or(LogLevel::Info).max(LogLevel::Warning);
    EnvFilter::new(format!("{},{}", directive(rest), directives.join(",")))
}

fn directive(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warning => "warn",
        LogLevel::Error | LogLevel::Critical => "error",
        LogLevel::Off => "off",
    }
}
