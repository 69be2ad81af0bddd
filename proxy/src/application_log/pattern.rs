//! Envoy's patterns of application log lines (spdlog's flags, `%_` and `%j` included): parsed once, written for each line.
//! They must not know where lines go. Times are UTC.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::registry::LookupSpan;

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Flag(char),
}

/// What one line is made of.
struct Line<'a> {
    time: SystemTime,
    level: Level,
    logger: &'a str,
    file: &'a str,
    line: u32,
    message: &'a str,
}

impl Pattern {
    /// A flag that does not exist stands for itself, as in spdlog.
    pub fn text(pattern: &str) -> Self {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = pattern.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                literal.push(char);
                continue;
            }
            match chars.next() {
                Some('%') => literal.push('%'),
                // Colours: files have none.
                Some('^' | '$') => {}
                Some(flag) => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Flag(flag));
                }
                None => literal.push('%'),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Self(parts)
    }

    /// An object whose values are patterns.
    ///
    /// # Errors
    /// Flags that would break the JSON, in Envoy's words.
    pub fn json(template: &serde_json::Value) -> Result<Self, String> {
        let text = template.to_string();
        for flag in ["%v", "%_"] {
            if text.contains(flag) {
                return Err(format!(
                    "setJsonLogFormat error: INVALID_ARGUMENT: Usage of {flag} is unavailable for JSON log formats"
                ));
            }
        }
        Ok(Self::text(&text))
    }

    fn write(&self, line: &Line<'_>, out: &mut impl Write) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Literal(text) => out.write_str(text),
            Part::Flag(flag) => line.write(*flag, out),
        })
    }
}

/// The pattern of `chrono` that writes a flag of time; spdlog's letters are partly others than those of `strftime`.
fn of_time(flag: char) -> Option<&'static str> {
    Some(match flag {
        'a' => "%a",
        'A' => "%A",
        'b' | 'h' => "%b",
        'B' => "%B",
        'c' => "%a %b %-d %T %Y",
        'C' => "%y",
        'd' => "%d",
        'D' | 'x' => "%m/%d/%y",
        'e' => "%3f",
        'E' => "%s",
        'f' => "%6f",
        'F' => "%9f",
        'H' => "%H",
        'I' => "%I",
        'm' => "%m",
        'M' => "%M",
        'p' => "%p",
        'r' => "%I:%M:%S %p",
        'R' => "%R",
        'S' => "%S",
        'T' | 'X' => "%T",
        'Y' => "%Y",
        'z' => "%:z",
        _ => return None,
    })
}

impl Line<'_> {
    fn write(&self, flag: char, out: &mut impl Write) -> fmt::Result {
        if let Some(format) = of_time(flag) {
            return write!(out, "{}", DateTime::<Utc>::from(self.time).format(format));
        }
        match flag {
            'v' => out.write_str(self.message),
            '_' => out.write_str(&self.message.replace('\n', "\\n")),
            'j' => {
                let quoted = serde_json::Value::from(self.message).to_string();
                out.write_str(&quoted[1..quoted.len() - 1])
            }
            't' => write!(out, "{}", thread_number()),
            'P' => write!(out, "{}", std::process::id()),
            'n' => out.write_str(self.logger),
            'l' => out.write_str(level_name(self.level)),
            'L' => out.write_str(level_name(self.level).get(..1).unwrap_or_default().to_uppercase().as_str()),
            'g' => out.write_str(self.file),
            's' => out.write_str(self.file.rsplit('/').next().unwrap_or_default()),
            '#' => write!(out, "{}", self.line),
            '@' => write!(out, "{}:{}", self.file.rsplit('/').next().unwrap_or_default(), self.line),
            other => write!(out, "%{other}"),
        }
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::TRACE => "trace",
        Level::DEBUG => "debug",
        Level::INFO => "info",
        Level::WARN => "warning",
        Level::ERROR => "error",
    }
}

/// A number of this thread's own.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Relaxed);
    }
    NUMBER.with(|number| *number)
}

impl<S, N> FormatEvent<S, N> for Pattern
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut message = String::new();
        context.field_format().format_fields(Writer::new(&mut message), event)?;
        let metadata = event.metadata();
        let line = Line {
            time: SystemTime::now(),
            level: *metadata.level(),
            logger: super::levels::logger_of(metadata.target()),
            file: metadata.file().unwrap_or_default(),
            line: metadata.line().unwrap_or_default(),
            message: &message,
        };
        self.write(&line, &mut out)?;
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn written(pattern: &Pattern) -> String {
        let line = Line {
            time: UNIX_EPOCH + Duration::from_micros(1_795_490_455_690_123),
            level: Level::WARN,
            logger: "server",
            file: "src/server.rs",
            line: 7,
            message: "a \"b\"\nc",
        };
        let mut out = String::new();
        pattern.write(&line, &mut out).unwrap();
        out
    }

    #[test]
    fn istios_pattern_is_written() {
        let pattern = Pattern::text("%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\t%%");
        let expected = "2026-11-24T03:20:55.690123Z\twarning\tenvoy server src/server.rs:7\ta \"b\"\nc\t%";
        assert_eq!(written(&pattern), expected);
    }

    #[test]
    fn every_flag_has_its_text() {
        for (flag, text) in [
            ("%a %A %b %B", "Tue Tuesday Nov November"),
            ("%c", "Tue Nov 24 03:20:55 2026"),
            ("%C %D %I %p %r %R %X %z", "26 11/24/26 03 AM 03:20:55 AM 03:20 03:20:55 +00:00"),
            ("%e %F %E", "690 690123000 1795490455"),
            ("%L %s %@ %_ %j", "W server.rs server.rs:7 a \"b\"\\nc a \\\"b\\\"\\nc"),
            ("%^x%$ %y %", "x %y %"),
        ] {
            assert_eq!(written(&Pattern::text(flag)), text, "{flag}");
        }
    }

    #[test]
    fn json_lines_are_json() {
        let pattern =
            Pattern::json(&serde_json::json!({"level": "%l", "message": "%j", "n": {"at": "%H:%M"}})).unwrap();
        let line: serde_json::Value = serde_json::from_str(&written(&pattern)).unwrap();
        assert_eq!(line, serde_json::json!({"level": "warning", "message": "a \"b\"\nc", "n": {"at": "03:20"}}));
        let error = Pattern::json(&serde_json::json!({"m": "%v"})).unwrap_err();
        assert!(error.ends_with("Usage of %v is unavailable for JSON log formats"), "{error}");
    }
}
