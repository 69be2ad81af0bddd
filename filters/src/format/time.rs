//! Date formats: `strftime` in the C locale, in UTC or the machine's time zone, with Envoy's `%s`, `%3f` and the `%E` forms of its library.
//! It must not know the clock: a time comes in, text goes out.

mod zone;

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, FixedOffset, Timelike, Utc};

use self::zone::LocalTime;
use super::write::{padded, unsigned};

/// A compiled date format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TimeFormat {
    kind: Kind,
    /// In the machine's time zone, else UTC.
    local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// `2026-11-24T03:20:54.686Z`, Envoy's default.
    Default,
    Items(Vec<Item>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Literal(String),
    Number {
        field: Number,
        width: usize,
        pad: u8,
    },
    Text {
        field: Text,
        upper: bool,
    },
    Zone(Zone),
    /// Digits of the second's fraction; `None` is as many as matter.
    Fraction {
        digits: Option<usize>,
        dot: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Year,
    Century,
    YearOfCentury,
    IsoYear,
    IsoYearOfCentury,
    Month,
    Day,
    DayOfYear,
    Hour,
    Hour12,
    Minute,
    Second,
    Weekday,
    WeekdayFromMonday,
    WeekFromSunday,
    WeekFromMonday,
    IsoWeek,
    Epoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Weekday { short: bool },
    Month { short: bool },
    HalfDay { lower: bool },
}

/// How far the zone is from UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    /// `+0530`
    Plain,
    /// `+05:30`
    Colons,
    /// `+05:30:00`
    Seconds,
    /// `CEST`
    Name,
}

/// Envoy's default where the zone is local.
const LOCAL_DEFAULT: &str = "%Y-%m-%dT%H:%M:%E3S%z";

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Digits after the point, at most; Envoy's library has the same bound.
const MAX_DIGITS: usize = 1024;

impl TimeFormat {
    /// An empty format is the default one. `None` where the format has a newline.
    pub(super) fn compile(format: &str) -> Option<Self> {
        let kind = if format.is_empty() { Kind::Default } else { Kind::Items(items_of(format)?) };
        Some(Self { kind, local: false })
    }

    /// The same in the machine's time zone.
    pub(super) fn compile_local(format: &str) -> Option<Self> {
        let format = if format.is_empty() { LOCAL_DEFAULT } else { format };
        Some(Self { kind: Kind::Items(items_of(format)?), local: true })
    }

    pub(super) fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::Default => write_default(time, out),
            Kind::Items(items) => {
                let at = utc(time);
                let zone = if self.local { LocalTime::at(at.timestamp()) } else { LocalTime::UTC };
                let there = FixedOffset::east_opt(zone.east_seconds);
                let at = there.map_or_else(|| at.fixed_offset(), |there| at.with_timezone(&there));
                items.iter().for_each(|item| item.write(&at, zone, out));
            }
        }
    }
}

fn items_of(format: &str) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        push_literal(&mut items, &rest[..at]);
        rest = specifier(&rest[at..], &mut items)?;
    }
    push_literal(&mut items, rest);
    Some(items)
}

/// Reads one specifier at the start of `text` and returns what follows it; what is none is literal text.
fn specifier<'a>(text: &'a str, items: &mut Vec<Item>) -> Option<&'a str> {
    let bytes = text.as_bytes();
    let flags = bytes[1..].iter().take_while(|b| matches!(b, b'-' | b'_' | b'0' | b'^' | b'#')).count();
    let (flags, mut at) = (&bytes[1..=flags], 1 + flags);
    let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    let width: Option<usize> = text[at..at + digits].parse().ok();
    at += digits;
    let extended = matches!(bytes.get(at), Some(b'E' | b'O'));
    if extended {
        at += 1;
        if let Some(length) = extended_specifier(&text[at..], items) {
            return Some(&text[at + length..]);
        }
    }
    let Some(letter) = bytes.get(at).copied() else {
        push_literal(items, text);
        return Some("");
    };
    if letter == b'f' && flags.is_empty() && !extended {
        items.push(Item::Fraction { digits: Some(width.unwrap_or(9).clamp(1, 9)), dot: false });
        return Some(&text[at + 1..]);
    }
    if letter == b'n' {
        return None;
    }
    if !plain(letter, flags, width, items) {
        let end = at + text[at..].chars().next().map_or(0, char::len_utf8);
        push_literal(items, &text[..end]);
        return Some(&text[end..]);
    }
    Some(&text[at + 1..])
}

/// What follows `%E`: `3S`, `*f`, `4Y`, `z`; its length.
fn extended_specifier(text: &str, items: &mut Vec<Item>) -> Option<usize> {
    let number = |field, width| Item::Number { field, width, pad: b'0' };
    let bytes = text.as_bytes();
    if text.starts_with("4Y") {
        items.push(number(Number::Year, 4));
        return Some(2);
    }
    for (letters, zone) in [("*z", Zone::Seconds), ("z", Zone::Colons)] {
        if text.starts_with(letters) {
            items.push(Item::Zone(zone));
            return Some(letters.len());
        }
    }
    if text.starts_with('T') {
        push_literal(items, "T");
        return Some(1);
    }
    let (digits, length) = match bytes.first() {
        Some(b'*') => (None, 1),
        Some(digit) if digit.is_ascii_digit() => {
            let length = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
            (Some(text[..length].parse().unwrap_or(usize::MAX).min(MAX_DIGITS)), length)
        }
        _ => return None,
    };
    match bytes.get(length) {
        Some(b'S') => {
            items.push(number(Number::Second, 2));
            if digits != Some(0) {
                items.push(Item::Fraction { digits, dot: true });
            }
        }
        Some(b'f') => items.push(Item::Fraction { digits, dot: false }),
        _ => return None,
    }
    Some(length + 1)
}

/// `strftime`'s own letters; `false` for one that is none.
fn plain(letter: u8, flags: &[u8], width: Option<usize>, items: &mut Vec<Item>) -> bool {
    let upper = flags.contains(&b'^');
    let pad_of =
        |default: u8| flags.iter().rev().find(|flag| matches!(flag, b'-' | b'_' | b'0')).copied().unwrap_or(default);
    let mut number = |field, default_width: usize, default_pad: u8| {
        let (width, pad) = match pad_of(default_pad) {
            b'-' => (width.unwrap_or(0), b'0'),
            b'_' => (width.unwrap_or(default_width), b' '),
            pad => (width.unwrap_or(default_width), pad),
        };
        items.push(Item::Number { field, width, pad });
    };
    match letter {
        b'Y' => number(Number::Year, 0, b'0'),
        b'C' => number(Number::Century, 2, b'0'),
        b'y' => number(Number::YearOfCentury, 2, b'0'),
        b'G' => number(Number::IsoYear, 0, b'0'),
        b'g' => number(Number::IsoYearOfCentury, 2, b'0'),
        b'm' => number(Number::Month, 2, b'0'),
        b'd' => number(Number::Day, 2, b'0'),
        b'e' => number(Number::Day, 2, b' '),
        b'j' => number(Number::DayOfYear, 3, b'0'),
        b'H' => number(Number::Hour, 2, b'0'),
        b'k' => number(Number::Hour, 2, b' '),
        b'I' => number(Number::Hour12, 2, b'0'),
        b'l' => number(Number::Hour12, 2, b' '),
        b'M' => number(Number::Minute, 2, b'0'),
        b'S' => number(Number::Second, 2, b'0'),
        b'w' => number(Number::Weekday, 0, b'0'),
        b'u' => number(Number::WeekdayFromMonday, 0, b'0'),
        b'U' => number(Number::WeekFromSunday, 2, b'0'),
        b'W' => number(Number::WeekFromMonday, 2, b'0'),
        b'V' => number(Number::IsoWeek, 2, b'0'),
        b's' => number(Number::Epoch, 0, b'0'),
        b'a' => items.push(Item::Text { field: Text::Weekday { short: true }, upper }),
        b'A' => items.push(Item::Text { field: Text::Weekday { short: false }, upper }),
        b'b' | b'h' => items.push(Item::Text { field: Text::Month { short: true }, upper }),
        b'B' => items.push(Item::Text { field: Text::Month { short: false }, upper }),
        b'p' => items.push(Item::Text { field: Text::HalfDay { lower: false }, upper }),
        b'P' => items.push(Item::Text { field: Text::HalfDay { lower: true }, upper }),
        b'D' | b'x' => expand("%m/%d/%y", items),
        b'F' => expand("%Y-%m-%d", items),
        b'T' | b'X' => expand("%H:%M:%S", items),
        b'R' => expand("%H:%M", items),
        b'r' => expand("%I:%M:%S %p", items),
        b'c' => expand("%a %b %e %H:%M:%S %Y", items),
        b'z' => items.push(Item::Zone(Zone::Plain)),
        b'Z' => items.push(Item::Zone(Zone::Name)),
        b't' => push_literal(items, "\t"),
        b'%' => push_literal(items, "%"),
        _ => return false,
    }
    true
}

fn expand(format: &str, items: &mut Vec<Item>) {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        push_literal(items, &rest[..at]);
        let Some(after) = specifier(&rest[at..], items) else { return };
        rest = after;
    }
    push_literal(items, rest);
}

fn push_literal(items: &mut Vec<Item>, text: &str) {
    match items.last_mut() {
        _ if text.is_empty() => {}
        Some(Item::Literal(literal)) => literal.push_str(text),
        _ => items.push(Item::Literal(text.to_owned())),
    }
}

impl Item {
    fn write(&self, at: &DateTime<FixedOffset>, zone: LocalTime, out: &mut Vec<u8>) {
        match self {
            Self::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Self::Number { field, width, pad } => {
                let number = field.of(at);
                if number < 0 {
                    out.push(b'-');
                }
                padded(out, number.unsigned_abs(), *width, *pad);
            }
            Self::Text { field, upper } => {
                let start = out.len();
                out.extend_from_slice(field.of(at).as_bytes());
                if *upper {
                    out[start..].make_ascii_uppercase();
                }
            }
            Self::Zone(form) => form.write(zone, out),
            Self::Fraction { digits, dot } => write_fraction(at.timestamp_subsec_nanos(), *digits, *dot, out),
        }
    }
}

/// Nanoseconds as digits after the point, cut, not rounded.
fn write_fraction(nanos: u32, digits: Option<usize>, dot: bool, out: &mut Vec<u8>) {
    if dot && (digits.is_some() || nanos != 0) {
        out.push(b'.');
    }
    let start = out.len();
    padded(out, u64::from(nanos), 9, b'0');
    match digits {
        Some(digits) => out.resize(start + digits, b'0'),
        None => {
            let used = out[start..].iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
            out.truncate(start + used.max(usize::from(!dot)));
        }
    }
}

impl Zone {
    fn write(self, zone: LocalTime, out: &mut Vec<u8>) {
        let LocalTime { east_seconds, name } = zone;
        if self == Self::Name {
            return out.extend_from_slice(name.as_bytes());
        }
        let (sign, distance) = (if east_seconds < 0 { b'-' } else { b'+' }, u64::from(east_seconds.unsigned_abs()));
        out.push(sign);
        padded(out, distance / 3600, 2, b'0');
        if self != Self::Plain {
            out.push(b':');
        }
        padded(out, distance / 60 % 60, 2, b'0');
        if self == Self::Seconds {
            out.push(b':');
            padded(out, distance % 60, 2, b'0');
        }
    }
}

impl Number {
    fn of(self, at: &DateTime<FixedOffset>) -> i64 {
        let weekday = at.weekday();
        let week = |days_since_first: u32| (at.ordinal0() + 7 - days_since_first) / 7;
        let small = match self {
            Self::Epoch => return at.timestamp(),
            Self::Year => return at.year().into(),
            Self::Century => return at.year().div_euclid(100).into(),
            Self::YearOfCentury => return at.year().rem_euclid(100).into(),
            Self::IsoYear => return at.iso_week().year().into(),
            Self::IsoYearOfCentury => return at.iso_week().year().rem_euclid(100).into(),
            Self::IsoWeek => at.iso_week().week(),
            Self::Month => at.month(),
            Self::Day => at.day(),
            Self::DayOfYear => at.ordinal(),
            Self::Hour => at.hour(),
            Self::Hour12 => at.hour12().1,
            Self::Minute => at.minute(),
            Self::Second => at.second(),
            Self::Weekday => weekday.num_days_from_sunday(),
            Self::WeekdayFromMonday => weekday.number_from_monday(),
            Self::WeekFromSunday => week(weekday.num_days_from_sunday()),
            Self::WeekFromMonday => week(weekday.num_days_from_monday()),
        };
        small.into()
    }
}

impl Text {
    fn of(self, at: &DateTime<FixedOffset>) -> &'static str {
        let cut = |text: &'static str, short: bool| if short { &text[..3] } else { text };
        match self {
            Self::Weekday { short } => cut(WEEKDAYS[at.weekday().num_days_from_sunday() as usize], short),
            Self::Month { short } => cut(MONTHS[at.month0() as usize], short),
            Self::HalfDay { lower } => match (!at.hour12().0, lower) {
                (true, false) => "AM",
                (true, true) => "am",
                (false, false) => "PM",
                (false, true) => "pm",
            },
        }
    }
}

/// A time before the epoch, and one that no calendar holds, is the epoch.
fn utc(time: SystemTime) -> DateTime<Utc> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).ok();
    seconds.and_then(|seconds| DateTime::from_timestamp(seconds, since.subsec_nanos())).unwrap_or_default()
}

thread_local! {
    /// The last second that was written in the default format, and its text.
    static LAST: Cell<(i64, [u8; 19])> = const { Cell::new((i64::MIN, [0; 19])) };
}

fn write_default(time: SystemTime, out: &mut Vec<u8>) {
    let at = utc(time);
    let (last, text) = LAST.get();
    if last == at.timestamp() {
        out.extend_from_slice(&text);
    } else {
        let start = out.len();
        unsigned(out, at.year().unsigned_abs().into());
        for (before, number) in
            [(b'-', at.month()), (b'-', at.day()), (b'T', at.hour()), (b':', at.minute()), (b':', at.second())]
        {
            out.push(before);
            padded(out, number.into(), 2, b'0');
        }
        if let Ok(text) = out[start..].try_into() {
            LAST.set((at.timestamp(), text));
        }
    }
    out.push(b'.');
    padded(out, at.timestamp_subsec_millis().into(), 3, b'0');
    out.push(b'Z');
}

#[cfg(test)]
mod tests;
