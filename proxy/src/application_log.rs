//! The application log: where it goes, and its levels, which may change while it is written.
//! It must not know who writes to it.

pub(crate) mod levels;
pub mod pattern;
pub mod streams;

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::OnceLock;

pub(crate) use tidegate_filters::shown;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{fmt, layer::SubscriberExt, util::SubscriberInitExt};

use self::levels::Levels;
pub use self::levels::parse;
use self::pattern::Pattern;
use crate::admin::state::{LogChange, LogLevel};

/// What lines look like, once somebody said so.
static PATTERN: OnceLock<Pattern> = OnceLock::new();

/// Lines are written so from now on; the first who says so decides.
pub fn set_pattern(pattern: Pattern) {
    // A second one is refused by whoever reads both.
    let _ = PATTERN.set(pattern);
}

/// The pattern, or lines of our own.
struct Lines {
    own: fmt::format::Format,
    escaped: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let format = |out: Writer<'_>| match PATTERN.get() {
            Some(pattern) => pattern.format_event(context, out, event),
            None => self.own.format_event(context, out, event),
        };
        if !self.escaped {
            return format(out);
        }
        let mut line = String::new();
        format(Writer::new(&mut line))?;
        escape(&line, &mut out)
    }
}

/// How the log of a process is.
pub struct Setup<'a> {
    pub level: LogLevel,
    /// Envoy's `name:level,…`.
    pub components: &'a str,
    /// Levels by source file (`--enable-fine-grain-logging`).
    pub by_file: bool,
    /// C-style escape sequences in place of what lines hold of control characters (`--log-format-escaped`).
    pub escaped: bool,
    /// A file instead of stderr.
    pub path: Option<&'a Path>,
}

impl Setup<'_> {
    /// To stderr, at one level.
    pub fn at(level: LogLevel) -> Self {
        Self { level, components: "", by_file: false, escaped: false, path: None }
    }
}

/// Starts the log.
///
/// # Errors
/// What is wrong with the components or the file, in Envoy's words.
pub fn init(setup: &Setup<'_>) -> Result<(), String> {
    let levels = match setup.by_file {
        true if !setup.components.is_empty() => {
            return Err("--component-log-level will not work with --enable-fine-grain-logging".to_owned());
        }
        true => Levels::of_files(setup.level),
        false => Levels::of_loggers(setup.level, setup.components)?,
    };
    let file = setup.path.map(open).transpose()?;
    levels::start(levels);
    let lines = || Lines { own: fmt::format(), escaped: setup.escaped };
    // The first log of a process stays its log.
    let _ = match file {
        Some(file) => {
            let lines = fmt::layer().event_format(lines()).with_ansi(false).with_writer(std::sync::Mutex::new(file));
            tracing_subscriber::registry().with(levels::Filter).with(lines).try_init()
        }
        None => {
            let lines = fmt::layer()
                .event_format(lines())
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr);
            tracing_subscriber::registry().with(levels::Filter).with(lines).try_init()
        }
    };
    Ok(())
}

fn open(path: &Path) -> Result<File, String> {
    let opened = File::options().create(true).append(true).open(path);
    opened.map_err(|error| format!("Failed to open log-file '{}': {error}", path.display()))
}

/// The levels as they are, sorted by name.
pub(crate) fn levels() -> Vec<(String, LogLevel)> {
    levels::with(|levels| levels.list()).unwrap_or_default()
}

/// Changes levels.
///
/// # Errors
/// Why none was changed, in Envoy's words.
pub(crate) fn change(change: &LogChange) -> Result<(), &'static str> {
    levels::with(|levels| levels.change(change)).unwrap_or(Ok(()))?;
    tracing_core::callsite::rebuild_interest_cache();
    Ok(())
}

/// A line with C-style escape sequences, but for the white space at its end (absl's `CEscape`).
fn escape(line: &str, out: &mut Writer<'_>) -> std::fmt::Result {
    let text = line.trim_ascii_end();
    for byte in text.bytes() {
        match byte {
            b'\n' => out.write_str("\\n")?,
            b'\r' => out.write_str("\\r")?,
            b'\t' => out.write_str("\\t")?,
            b'"' | b'\'' | b'\\' => write!(out, "\\{}", char::from(byte))?,
            b' '..=b'~' => out.write_char(char::from(byte))?,
            other => write!(out, "\\{other:03o}")?,
        }
    }
    out.write_str(&line[text.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_line_holds_is_escaped_and_its_end_is_not() {
        let mut text = String::new();
        escape("a \"b\"\nc\u{e9}\t'\\\n", &mut Writer::new(&mut text)).unwrap();
        assert_eq!(text, "a \\\"b\\\"\\nc\\303\\251\\t\\'\\\\\n");
    }
}
