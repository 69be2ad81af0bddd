//! Who may say how much: a level for each of Envoy's loggers, or for each source file (`--enable-fine-grain-logging`). They may
//! change while lines are written. It must not know where lines go.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::admin::state::{LogChange, LogLevel};

/// Envoy's loggers, all of which may be given a level; those that nothing here logs under stay silent.
const LOGGERS: &str = "a2a admin ai_protocol_manager alternate_protocols_cache assert aws backtrace basic_auth \
    cache_filter client compression config conn_handler connection credential_injector decompression dns dubbo \
    dynamic_modules envoy_bug ext_authz ext_proc file filter forward_proxy geolocation golang grpc happy_eyeballs hc \
    health_checker http http2 hystrix init io ip_tagging json_rpc jwt kafka key_value_store local_rate_limit lua main \
    matcher mcp misc mongo multi_connection notification oauth2 pool quic quic_stream rate_limit_quota rbac rds redis \
    rocketmq router runtime secret sse stats stats_sinks tap testing thrift tracing udp upstream wasm websocket";

/// Which rooms of this crate log under which of them; a room within another stands before it.
const ROOMS: &[(&str, &str)] = &[
    ("admin", "admin"),
    ("client", "client"),
    ("cluster::dns", "dns"),
    ("cluster::pool", "pool"),
    ("cluster", "upstream"),
    ("config", "config"),
    ("connection", "connection"),
    ("control_plane", "main"),
    ("discovery", "config"),
    ("http::router", "router"),
    ("http", "http"),
    ("listener::manager", "config"),
    ("listener", "conn_handler"),
    ("load_reports", "upstream"),
    ("process", "main"),
    ("route", "router"),
    ("runtime", "runtime"),
    ("server", "main"),
    ("services", "grpc"),
    ("sources", "config"),
    ("tcp", "filter"),
    ("worker", "main"),
];

/// What the control plane logs under.
const CONTROL_PLANE: (&str, &str) = ("tidegate_control", "config");

/// What HTTP/2 connections log under: the frames that come and go, and what is wrong with them.
const HTTP2: (&str, &str) = ("h2", "http2");

/// Under what filters log; which of their rooms has a logger of its own.
const FILTERS: (&str, &str) = ("tidegate_filters::", "filter");
const OF_FILTERS: (&str, &str) = ("rbac", "rbac");

/// A connection's beginning and end, whoever looks at it.
pub(crate) const CONNECTION: &str = "tidegate::connection";

/// What is said on a connection to a host.
pub(crate) const CLIENT: &str = "tidegate::client";

/// What becomes of a request's route, whoever finds out.
pub(crate) const ROUTER: &str = "tidegate::http::router";

/// The logger that a room's lines are under.
pub(super) fn logger_of(target: &str) -> &'static str {
    if target.starts_with(CONTROL_PLANE.0) {
        return CONTROL_PLANE.1;
    }
    if is_of(target, HTTP2.0) {
        return HTTP2.1;
    }
    if let Some(path) = target.strip_prefix(FILTERS.0) {
        return if is_of(path, OF_FILTERS.0) { OF_FILTERS.1 } else { FILTERS.1 };
    }
    let Some(path) = target.strip_prefix("tidegate::") else { return "misc" };
    ROOMS.iter().find(|(room, _)| is_of(path, room)).map_or("misc", |(_, logger)| logger)
}

/// Whether a path is this one, or below it.
fn is_of(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The most that whoever logs under this target may say. Libraries speak of what only their makers understand; one tells of
/// frames, and at its finest of what is in them.
fn most_of(target: &str) -> LogLevel {
    if target.starts_with("tidegate") {
        LogLevel::Trace
    } else if is_of(target, HTTP2.0) {
        LogLevel::Debug
    } else {
        LogLevel::Warning
    }
}

/// A level by Envoy's name, or `warn`.
pub fn parse(name: &str) -> Option<LogLevel> {
    LogLevel::parse(if name == "warn" { "warning" } else { name })
}

/// What decides.
pub(super) enum Levels {
    Loggers(BTreeMap<&'static str, LogLevel>),
    Files(Files),
}

/// The levels of source files. Rules hold for files that have not spoken yet, too.
pub(super) struct Files {
    default: LogLevel,
    rules: Vec<(Which, LogLevel)>,
    /// Those that had something to say, and their loggers.
    seen: BTreeMap<&'static str, &'static str>,
}

/// So many rules hold at once: each line of the source is held against all of them.
const MOST_RULES: usize = 256;

const TOO_MANY_RULES: &str = "too many rules: at most 256 hold at once";

enum Which {
    /// By path where there is a slash in it, else by the name without its ending; `*` and `?` stand for any characters.
    Files(String),
    Group(String),
}

impl Levels {
    /// Every logger's level: `level`, or what `components` (Envoy's `name:level,…`) says.
    ///
    /// # Errors
    /// What is wrong with `components`, in Envoy's words.
    pub(super) fn of_loggers(level: LogLevel, components: &str) -> Result<Self, String> {
        let mut levels: BTreeMap<&'static str, LogLevel> =
            LOGGERS.split_whitespace().map(|name| (name, level)).collect();
        for part in components.split(',').filter(|_| !components.is_empty()) {
            let Some((name, level)) = part.split_once(':').filter(|(_, level)| !level.contains(':')) else {
                return Err(format!("component log level not correctly specified '{part}'"));
            };
            let level = parse(level).ok_or_else(|| format!("invalid log level specified '{level}'"))?;
            *levels.get_mut(name).ok_or_else(|| format!("invalid component specified '{name}'"))? = level;
        }
        Ok(Self::Loggers(levels))
    }

    pub(super) fn of_files(level: LogLevel) -> Self {
        Self::Files(Files { default: level, rules: Vec::new(), seen: BTreeMap::new() })
    }

    /// The level of everything that was named so far, sorted by name.
    pub(super) fn list(&self) -> Vec<(String, LogLevel)> {
        match self {
            Self::Loggers(levels) => levels.iter().map(|(name, level)| ((*name).to_owned(), *level)).collect(),
            Self::Files(files) => {
                files.seen.iter().map(|(file, group)| ((*file).to_owned(), files.level(Some(file), group))).collect()
            }
        }
    }

    /// Changes levels, or none.
    ///
    /// # Errors
    /// Why not, in Envoy's words.
    pub(super) fn change(&mut self, change: &LogChange) -> Result<(), &'static str> {
        match self {
            Self::Loggers(levels) => change_loggers(levels, change),
            Self::Files(files) => files.change(change),
        }
    }

    /// The level of a line; only lines of our own are known by their file.
    fn level(&self, logger: &str, file: Option<&str>) -> LogLevel {
        match self {
            Self::Loggers(levels) => levels.get(logger).copied().unwrap_or(LogLevel::Info),
            Self::Files(files) => files.level(file, logger),
        }
    }

    /// The most that anybody may say.
    fn most(&self) -> LogLevel {
        match self {
            Self::Loggers(levels) => levels.values().copied().min().unwrap_or(LogLevel::Info),
            Self::Files(files) => files.rules.iter().map(|(_, level)| *level).fold(files.default, LogLevel::min),
        }
    }

    /// A file has something to say.
    fn note(&mut self, line: &'static Metadata<'static>) {
        if let Self::Files(files) = self
            && let Some(file) = line.file().filter(|_| is_own(line))
        {
            files.seen.insert(file, logger_of(line.target()));
        }
    }

    /// Whether a line of this kind is written.
    fn lets(&self, line: &Metadata<'_>) -> bool {
        let level = self.level(logger_of(line.target()), line.file().filter(|_| is_own(line)));
        // What HTTP/2 finds wrong with a peer is the peer's to bring about, as often as it likes: that is for who looks for it.
        let severity = match *line.level() {
            Level::WARN if is_of(line.target(), HTTP2.0) => Level::DEBUG,
            level => level,
        };
        severity <= filter(level.max(most_of(line.target())))
    }
}

fn is_own(line: &Metadata<'_>) -> bool {
    line.target().starts_with("tidegate")
}

fn change_loggers(levels: &mut BTreeMap<&'static str, LogLevel>, change: &LogChange) -> Result<(), &'static str> {
    match change {
        LogChange::All(level) => levels.values_mut().for_each(|slot| *slot = *level),
        LogChange::Named(named) => {
            if named.iter().any(|(name, _)| !levels.contains_key(name.as_str())) {
                return Err("unknown logger name");
            }
            for (name, level) in named {
                if let Some(slot) = levels.get_mut(name.as_str()) {
                    *slot = *level;
                }
            }
        }
        LogChange::Group(..) => return Err("group parameter requires fine-grain logging to be enabled"),
    }
    Ok(())
}

impl Files {
    fn level(&self, file: Option<&str>, group: &str) -> LogLevel {
        let rule = self.rules.iter().find(|(which, _)| which.is(file, group));
        rule.map_or(self.default, |(_, level)| *level)
    }

    /// Rules take the place of those before, as in Envoy; so does a level for all.
    fn change(&mut self, change: &LogChange) -> Result<(), &'static str> {
        match change {
            LogChange::All(level) => {
                self.default = *level;
                self.rules.clear();
            }
            LogChange::Named(named) if named.len() > MOST_RULES => return Err(TOO_MANY_RULES),
            LogChange::Named(named) => {
                self.rules = named.iter().map(|(name, level)| (Which::Files(name.clone()), *level)).collect();
            }
            LogChange::Group(group, level) => {
                // One of the same group has no say after this one.
                self.rules.retain(|(which, _)| !matches!(which, Which::Group(other) if other == group));
                if self.rules.len() == MOST_RULES {
                    return Err(TOO_MANY_RULES);
                }
                self.rules.insert(0, (Which::Group(group.clone()), *level));
            }
        }
        Ok(())
    }
}

impl Which {
    fn is(&self, file: Option<&str>, group: &str) -> bool {
        match self {
            Self::Group(name) => name == group,
            Self::Files(pattern) => {
                let Some(file) = file else { return false };
                let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
                let stem = if pattern.contains('/') { stem } else { stem.rsplit('/').next().unwrap_or(stem) };
                pattern == file || fits(pattern.as_bytes(), stem.as_bytes())
            }
        }
    }
}

/// Whether `pattern`, in which `*` is any text and `?` any character, is the whole of `text`. Only the last `*` may have to
/// take more than it did at first: what came before it fits in any case.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // What follows the last `*`, and where in the text that was tried.
    let mut again = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                again = Some((at, seen));
            }
            Some(wanted) if *wanted == b'?' || *wanted == text[seen] => (at, seen) = (at + 1, seen + 1),
            _ => {
                let Some((rest, tried)) = again else { return false };
                again = Some((rest, tried + 1));
                (at, seen) = (rest, tried + 1);
            }
        }
    }
    pattern[at..].iter().all(|wanted| *wanted == b'*')
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => Level::TRACE.into(),
        LogLevel::Debug => Level::DEBUG.into(),
        LogLevel::Info => Level::INFO.into(),
        LogLevel::Warning => Level::WARN.into(),
        LogLevel::Error | LogLevel::Critical => Level::ERROR.into(),
        LogLevel::Off => LevelFilter::OFF,
    }
}

/// The levels of the process.
static LEVELS: OnceLock<Mutex<Levels>> = OnceLock::new();

/// The levels from now on; the first to say so decides.
pub(super) fn start(levels: Levels) {
    let _ = LEVELS.set(Mutex::new(levels));
}

/// The levels, once they are known.
pub(super) fn with<T>(act: impl FnOnce(&mut Levels) -> T) -> Option<T> {
    LEVELS.get().map(|levels| act(&mut levels.lock()))
}

/// Lets through what its logger's level allows. The answer is kept with each line of the source, so that one that says nothing
/// costs a look at one number.
pub(super) struct Filter;

impl<S: Subscriber> Layer<S> for Filter {
    fn register_callsite(&self, line: &'static Metadata<'static>) -> Interest {
        let lets = with(|levels| {
            levels.note(line);
            levels.lets(line)
        });
        if lets.unwrap_or(true) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, line: &Metadata<'_>, _: Context<'_, S>) -> bool {
        with(|levels| levels.lets(line)).unwrap_or(true)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        with(|levels| filter(levels.most()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_loggers(levels: &Levels) -> BTreeMap<String, LogLevel> {
        levels.list().into_iter().collect()
    }

    #[test]
    fn components_are_envoys() {
        let levels = of_loggers(&Levels::of_loggers(LogLevel::Info, "http:debug,misc:error,upstream:warn").unwrap());
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
            assert_eq!(Levels::of_loggers(LogLevel::Info, components).err().unwrap(), reason);
        }
        assert!(ROOMS.iter().all(|(_, logger)| levels.contains_key(*logger)));
    }

    #[test]
    fn rooms_log_under_envoys_names() {
        for (target, logger) in [
            ("tidegate::server", "main"),
            ("tidegate::http::router::tries", "router"),
            ("tidegate::http::exchange", "http"),
            ("tidegate::cluster::pool::h1", "pool"),
            ("tidegate::cluster::pooled", "upstream"),
            ("tidegate_control::run", "config"),
            ("tidegate_filters::rbac::told", "rbac"),
            ("tidegate_filters::http::fault", "filter"),
            (CONNECTION, "connection"),
            (CLIENT, "client"),
            ("h2::codec", "http2"),
            ("h2x", "misc"),
        ] {
            assert_eq!(logger_of(target), logger, "{target}");
        }
    }

    #[test]
    fn a_room_within_another_stands_before_it() {
        for (index, (room, _)) in ROOMS.iter().enumerate() {
            let hides = |before: &&(&str, &str)| room.strip_prefix(before.0).is_some_and(|rest| rest.starts_with("::"));
            assert_eq!(ROOMS[..index].iter().find(hides), None, "{room}");
        }
    }

    #[test]
    fn loggers_change_together_or_not_at_all() {
        let mut levels = Levels::of_loggers(LogLevel::Info, "").unwrap();
        let named =
            |names: &[&str]| LogChange::Named(names.iter().map(|name| ((*name).to_owned(), LogLevel::Trace)).collect());
        assert_eq!(levels.change(&named(&["http", "nope"])), Err("unknown logger name"));
        assert_eq!(of_loggers(&levels)["http"], LogLevel::Info);
        assert_eq!(levels.change(&named(&["http", "main"])), Ok(()));
        assert_eq!((of_loggers(&levels)["http"], of_loggers(&levels)["pool"]), (LogLevel::Trace, LogLevel::Info));
        assert!(levels.change(&LogChange::Group("http".into(), LogLevel::Info)).is_err());
        assert_eq!(levels.most(), LogLevel::Trace);
    }

    #[test]
    fn files_are_named_by_path_or_by_name() {
        let mut levels = Levels::of_files(LogLevel::Info);
        let named = |name: &str| LogChange::Named(vec![(name.to_owned(), LogLevel::Trace)]);
        let level = |levels: &Levels| levels.level("http", Some("proxy/src/http/relay.rs"));
        for (pattern, level_then) in [
            ("relay", LogLevel::Trace),
            ("rel*", LogLevel::Trace),
            ("r?lay", LogLevel::Trace),
            ("proxy/*/relay", LogLevel::Trace),
            ("proxy/src/http/relay.rs", LogLevel::Trace),
            ("http", LogLevel::Info),
            ("proxy/*", LogLevel::Trace),
            ("other/*", LogLevel::Info),
        ] {
            levels.change(&named(pattern)).unwrap();
            assert_eq!(level(&levels), level_then, "{pattern}");
        }
        levels.change(&named("*")).unwrap();
        assert_eq!(levels.level("http2", None), LogLevel::Info);
        levels.change(&LogChange::Group("http".into(), LogLevel::Debug)).unwrap();
        assert_eq!(level(&levels), LogLevel::Debug);
        levels.change(&LogChange::All(LogLevel::Off)).unwrap();
        assert_eq!(level(&levels), LogLevel::Off);
    }
    #[test]
    fn any_text_is_matched_without_trying_all_its_parts() {
        for (pattern, text, fit) in [
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("*ab", "aab", true),
            ("a*?", "a", false),
            ("*a?c*", "abcaxcb", true),
            ("a", "ab", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), fit, "{pattern} {text}");
        }
        // Would not end in this world's time.
        assert!(!fits("*?".repeat(60).as_bytes(), &[b'x'; 59]));
        assert!(!fits(format!("{}y", "*x".repeat(60)).as_bytes(), &[b'x'; 200]));
    }

    #[test]
    fn only_so_many_rules_hold_at_once() {
        let mut levels = Levels::of_files(LogLevel::Info);
        let rules = |count: usize| LogChange::Named(vec![("relay".to_owned(), LogLevel::Trace); count]);
        assert_eq!(levels.change(&rules(MOST_RULES)), Ok(()));
        assert_eq!(levels.change(&rules(MOST_RULES + 1)), Err(TOO_MANY_RULES));
        assert_eq!(levels.level("http", Some("relay.rs")), LogLevel::Trace);
    }
    #[test]
    fn a_group_has_one_rule() {
        let mut levels = Levels::of_files(LogLevel::Info);
        let group = |name: &str, level| LogChange::Group(name.to_owned(), level);
        for level in [LogLevel::Trace, LogLevel::Error, LogLevel::Debug].repeat(MOST_RULES) {
            levels.change(&group("http", level)).unwrap();
        }
        assert_eq!(levels.level("http", None), LogLevel::Debug);
        for number in 1..MOST_RULES {
            levels.change(&group(&number.to_string(), LogLevel::Trace)).unwrap();
        }
        assert_eq!(levels.change(&group("one more", LogLevel::Trace)), Err(TOO_MANY_RULES));
        assert_eq!(levels.change(&group("http", LogLevel::Error)), Ok(()));
        assert_eq!(levels.level("http", None), LogLevel::Error);
    }
}
