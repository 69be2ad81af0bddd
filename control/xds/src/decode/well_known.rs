//! Messages whose JSON is their own: Any, Struct and Value, durations, times, field masks.
//! It must not know ordinary messages: `encoder` does them.

use crate::{
    any,
    decode::{
        encoder::{Encoder, Oneofs},
        number, suggest,
    },
    document::{Key, NodeId, Value},
    error::Trail,
    schema::{self, Message, Special},
    wire,
};

impl Encoder<'_> {
    /// `{"@type": url, ...fields}`, or `{}` for an Any that is empty.
    pub(super) fn any(&mut self, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>, depth: usize) {
        let document = self.document;
        let Value::Object(entries) = &document.node(node).value else {
            let found = document.node(node).value.describe();
            return self.fail(node, trail, format!("expected an object with `@type`, found {found}"));
        };
        let mut types = entries.iter().filter(|(key, _)| key.name == "@type");
        let Some((_, url)) = types.next() else {
            if !entries.is_empty() {
                self.fail(node, trail, "`@type` is missing");
            }
            return;
        };
        if let Some((_, second)) = types.next() {
            return self.fail(*second, trail, "`@type` occurs twice");
        }
        match self.type_of_any(*url) {
            Ok((url, message)) => {
                if !url.is_empty() {
                    wire::put_bytes_field(out, 1, url.as_bytes());
                }
                let mut value = Vec::new();
                self.any_value(message, entries, &mut value, trail, depth);
                if !value.is_empty() {
                    wire::put_bytes_field(out, 2, &value);
                }
            }
            Err(reason) => self.fail(*url, &trail.field("@type"), reason),
        }
    }

    fn type_of_any(&self, url: NodeId) -> Result<(&str, &'static Message), String> {
        let url = match &self.document.node(url).value {
            Value::Text(url) => url.as_str(),
            other => return Err(format!("expected a type URL, found {}", other.describe())),
        };
        let name = any::type_name(url).ok_or_else(|| {
            format!("the type URL {url:?} needs a `/` before the type's name, such as type.googleapis.com/{url}")
        })?;
        Ok((url, schema::message(name).ok_or_else(|| suggest::unknown_type(url, name))?))
    }

    fn any_value(
        &mut self,
        message: &'static Message,
        entries: &[(Key, NodeId)],
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        let mut oneofs = Oneofs::default();
        for (key, value) in entries.iter().filter(|(key, _)| key.name != "@type") {
            if matches!(message.special, Special::No | Special::MapEntry) {
                self.entry(message, (&key.name, key.location), *value, &mut oneofs, out, trail, depth);
            } else if key.name == "value" {
                self.message(message, *value, out, &trail.field("value"), depth + 1);
            } else {
                self.fail(*value, &trail.field(&key.name), "only `@type` and `value` may stand here");
            }
        }
    }

    pub(super) fn structure(
        &mut self,
        message: &'static Message,
        node: NodeId,
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        if let Some(fields) = message.by_number(1) {
            self.map(fields, node, out, trail, depth);
        }
    }

    pub(super) fn list_value(
        &mut self,
        message: &'static Message,
        node: NodeId,
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        match (&self.document.node(node).value, message.by_number(1)) {
            (Value::List(_), Some(values)) => self.repeated(values, node, out, trail, depth),
            (other, _) => {
                let reason = format!("expected a list, found {}", other.describe());
                self.fail(node, trail, reason);
            }
        }
    }

    /// The one of `Value`'s fields that this node is.
    pub(super) fn value(&mut self, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>, depth: usize) {
        let document = self.document;
        match &document.node(node).value {
            Value::Null => wire::put_varint_field(out, 1, 0),
            Value::Number(text) => {
                let value = number::float(text).unwrap_or_default();
                wire::put_fixed64_field(out, 2, value.to_le_bytes());
            }
            Value::Text(text) => wire::put_bytes_field(out, 3, text.as_bytes()),
            Value::Bool(value) => wire::put_varint_field(out, 4, u64::from(*value)),
            Value::Object(_) => self.value_as(5, "google.protobuf.Struct", node, out, trail, depth),
            Value::List(_) => self.value_as(6, "google.protobuf.ListValue", node, out, trail, depth),
        }
    }

    fn value_as(&mut self, number: u32, name: &str, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>, depth: usize) {
        let Some(message) = schema::message(name) else {
            return;
        };
        wire::put_message_field(out, number, |out| match message.special {
            Special::Struct => self.structure(message, node, out, trail, depth),
            _ => self.list_value(message, node, out, trail, depth),
        });
    }

    pub(super) fn duration(&mut self, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>) {
        match self.own_text(node, "a duration such as \"0.25s\"").and_then(duration) {
            Ok((seconds, nanos)) => put_time(out, seconds, nanos),
            Err(reason) => self.fail(node, trail, reason),
        }
    }

    pub(super) fn timestamp(&mut self, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>) {
        let parsed = self.own_text(node, "a time such as \"2030-01-02T03:04:05Z\"").and_then(|text| {
            timestamp(text).ok_or_else(|| format!("{text:?} is not a time such as \"2030-01-02T03:04:05Z\""))
        });
        match parsed {
            Ok((seconds, nanos)) => put_time(out, seconds, nanos),
            Err(reason) => self.fail(node, trail, reason),
        }
    }

    /// `a,b.fooBar` as the paths `a` and `b.foo_bar`.
    pub(super) fn field_mask(&mut self, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>) {
        match self.own_text(node, "field names with commas between them") {
            Ok(paths) => {
                for path in paths.split(',').filter(|_| !paths.is_empty()) {
                    let mut snake = String::with_capacity(path.len() + 4);
                    for c in path.chars() {
                        if c.is_ascii_uppercase() {
                            snake.push('_');
                        }
                        snake.push(c.to_ascii_lowercase());
                    }
                    wire::put_bytes_field(out, 1, snake.as_bytes());
                }
            }
            Err(reason) => self.fail(node, trail, reason),
        }
    }

    fn own_text(&self, node: NodeId, expected: &str) -> Result<&str, String> {
        match &self.document.node(node).value {
            Value::Text(text) => Ok(text),
            other => Err(format!("expected {expected}, found {}", other.describe())),
        }
    }
}

/// Seconds and nanoseconds of a Duration or Timestamp.
fn put_time(out: &mut Vec<u8>, seconds: i64, nanos: i32) {
    if seconds != 0 {
        wire::put_varint_field(out, 1, seconds as u64);
    }
    if nanos != 0 {
        wire::put_varint_field(out, 2, i64::from(nanos) as u64);
    }
}

/// `1s`, `-0.25s`; no other unit.
fn duration(text: &str) -> Result<(i64, i32), String> {
    const LONGEST_SECONDS: i64 = 3_652_500 * 86_400;
    let wrong = || format!("{text:?} is not a duration; write it in seconds, such as \"0.25s\"");
    let number = text.strip_suffix('s').ok_or_else(wrong)?;
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(number.len());
    let (whole, fraction) = number.split_at(end);
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    if seconds.abs() > LONGEST_SECONDS {
        return Err(format!("{text:?} is out of range"));
    }
    let nanos = nanos(fraction).ok_or_else(wrong)?;
    Ok((seconds, if whole.starts_with('-') { -nanos } else { nanos }))
}

/// Nothing, or `.` and up to nine digits.
fn nanos(fraction: &str) -> Option<i32> {
    if fraction.is_empty() {
        return Some(0);
    }
    let digits = fraction.strip_prefix('.')?;
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<i32>().ok()?.checked_mul(10i32.pow(9 - u32::try_from(digits.len()).ok()?))
}

/// RFC 3339.
fn timestamp(text: &str) -> Option<(i64, i32)> {
    let number = |range: std::ops::Range<usize>| {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok()).flatten()
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, separator)| text.as_bytes().get(*at) != Some(separator)) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year == 0 || month == 0 || day == 0 {
        return None;
    }
    let rest = text.get(19..)?;
    let zone = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let nanos = nanos(rest.get(..zone)?)?;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some((seconds - zone_offset(rest.get(zone..)?)?, nanos))
}

/// `Z`, `+hh:mm` or `-hh:mm`, in seconds.
fn zone_offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = match zone.as_bytes() {
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return None,
    };
    let part = |range| zone.get(range).and_then(|digits: &str| digits.parse::<u8>().ok()).map(i64::from);
    Some(sign * (part(1..3)? * 3600 + part(4..6)? * 60))
}

/// Days of the proleptic Gregorian calendar, counted from March so that the leap day ends a year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let of_year = (month * 153 + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds() {
        assert_eq!(duration("0.25s"), Ok((0, 250_000_000)));
        assert_eq!(duration("-0.5s"), Ok((0, -500_000_000)));
        assert_eq!(duration("10s"), Ok((10, 0)));
        for bad in ["5", "250ms", "s", ".5s", "1.s", "1.0000000000s", "315576000001s", "1ss", "--1s", "1 s", "+1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        assert_eq!(timestamp("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(timestamp("2000-02-29T12:00:00.5+01:00"), Some((951_822_000, 500_000_000)));
        assert_eq!(timestamp("1969-12-31T23:59:59-00:01"), Some((59, 0)));
        for bad in ["", "2000-02-29", "2000-02-29T12:00:00", "2000-02-29 12:00:00Z", "2000-02-29T12:00:00z", "é"] {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }
}
