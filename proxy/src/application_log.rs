//! The application log: where it goes, and its levels, which may change while it is written.
//! It must not know who writes to it.

pub mod pattern;
pub mod streams;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use self::pattern::Pattern;
use crate::admin::state::LogLevel;

/// Envoy's loggers, all of which may be given a level; those that nothing here logs under stay silent.
const LOGGERS: &str = "a2a admin ai_protocol_manager alternate_protocols_cache assert aws backtrace basic_auth \
    cache_filter client compression config conn_handler connection credential_injector decompression dns dubbo \
    dynamic_modules envoy_bug ext_authz ext_proc file filter forward_proxy geolocation golang grpc happy_eyeballs hc \
    health_checker http http2 hystrix init io ip_tagging json_rpc jwt kafka key_value_store local_rate_limit lua main \
    matcher mcp misc mongo multi_connection notification oauth2 pool quic quic_stream rate_limit_quota rbac rds redis \
    rocketmq router runtime secret sse stats stats_sinks tap testing thrift tracing udp upstream wasm websocket";

/// Which rooms of this crate log under which of them.
const ROOMS: [(&str, &str); 10] = [
    ("admin", "admin"),
    ("cluster", "upstream"),
    ("config", "config"),
    ("control_plane", "main"),
    ("http", "http"),
    ("listener", "conn_handler"),
    ("route", "router"),
    ("runtime", "runtime"),
    ("server", "main"),
    ("tcp", "filter"),
];

/// What the control plane logs under.
const CONTROL_PLANE: (&str, &str) = ("tidegate_control", "config");

/// The logger that a room's lines are under.
fn logger_of(target: &str) -> &'static str {
    if target.starts_with(CONTROL_PLANE.0) {
        return CONTROL_PLANE.1;
    }
    let room = target.strip_prefix("tidegate::").and_then(|rest| rest.split("::").next());
    ROOMS.iter().find(|(name, _)| Some(*name) == room).map_or("misc", |(_, logger)| logger)
}

struct Control {
    levels: Mutex<BTreeMap<&'static str, LogLevel>>,
    handle: reload::Handle<EnvFilter, Registry>,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// What lines look like, once somebody said so.
static PATTERN: OnceLock<Pattern> = OnceLock::new();

/// Lines are written so from now on; the first who says so decides.
pub fn set_pattern(pattern: Pattern) {
    // A second one is refused by whoever reads both.
    let _ = PATTERN.set(pattern);
}

/// The pattern, or lines of our own.
struct Lines(fmt::format::Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, out: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        match PATTERN.get() {
            Some(pattern) => pattern.format_event(context, out, event),
            None => self.0.format_event(context, out, event),
        }
    }
}

/// Every logger's level: `level`, or what `components` (Envoy's `name:level,…`) says.
fn levels_of(level: LogLevel, components: &str) -> Result<BTreeMap<&'static str, LogLevel>, String> {
    let mut levels: BTreeMap<&'static str, LogLevel> = LOGGERS.split_whitespace().map(|name| (name, level)).collect();
    for part in components.split(',').filter(|_| !components.is_empty()) {
        let Some((name, level)) = part.split_once(':').filter(|(_, level)| !level.contains(':')) else {
            return Err(format!("component log level not correctly specified '{part}'"));
        };
        let level = parse(level).ok_or_else(|| format!("invalid log level specified '{level}'"))?;
        *levels.get_mut(name).ok_or_else(|| format!("invalid component specified '{name}'"))? = level;
    }
    Ok(levels)
}

/// Starts the log: to stderr, or to a file.
///
/// # Errors
/// What is wrong with `components`, in Envoy's words.
pub fn init(level: LogLevel, components: Option<&str>, path: Option<&Path>) -> Result<(), String> {
    let levels = levels_of(level, components.unwrap_or_default())?;
    let (filter, handle) = reload::Layer::new(filter(&levels));
    let file = path.and_then(|path| std::fs::OpenOptions::new().create(true).append(true).open(path).ok());
    let started = match file {
        Some(file) => {
            let lines = fmt::layer()
                .event_format(Lines(fmt::format()))
                .with_ansi(false)
                .with_writer(std::sync::Mutex::new(file));
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
        None => {
            let lines = fmt::layer()
                .event_format(Lines(fmt::format()))
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr);
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
    };
    if started.is_ok() {
        // The first log of a process stays its log.
        let _ = CONTROL.set(Control { levels: Mutex::new(levels), handle });
    }
    Ok(())
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
    let level = |logger: &str| levels.get(logger).copied().unwrap_or(LogLevel::Info);
    let mut directives: Vec<_> =
        ROOMS.iter().map(|(room, logger)| format!("tidegate::{room}={}", directive(level(logger)))).collect();
    directives.push(format!("{}={}", CONTROL_PLANE.0, directive(level(CONTROL_PLANE.1))));
    // Libraries speak of what only their makers understand.
    let rest = level("misc").max(LogLevel::Warning);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_envoys() {
        let levels = levels_of(LogLevel::Info, "http:debug,misc:error,upstream:warn").unwrap();
        assert_eq!(
            (levels["http"], levels["misc"], levels["main"]),
            (LogLevel::Debug, LogLevel::Error, LogLevel::Info)
        );
        for (components, reason) in [
            ("nope:debug", "invalid component specified 'nope'"),
            ("http", "component log level not correctly specified 'http'"),
            ("http:info,", "component log level not correctly specified ''"),
            ("http:info:x", "component log level not correctly specified 'http:info:x'"),
            ("http:nope", "invalid log level specified 'nope'"),
        ] {
            assert_eq!(levels_of(LogLevel::Info, components).unwrap_err(), reason);
        }
        assert!(ROOMS.iter().all(|(_, logger)| levels.contains_key(logger)));
        assert_eq!((logger_of("tidegate::server"), logger_of("h2::codec")), ("main", "misc"));
        assert_eq!(logger_of("tidegate_control::run"), "config");
    }
}
