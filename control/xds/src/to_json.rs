//! A message's bytes as the JSON that Envoy's `config_dump` prints. It must not know which message it is.

use serde_json::{Map, Value, json};

use crate::{
    any,
    record::{Item, MAX_DEPTH, MapEntry, Record, any_parts},
    schema::{self, Field, Kind, Message, Special},
};

const REDACTED: &str = "[redacted]";

/// The message of this full name as JSON: names as in the .proto files, each Any of a known type expanded, defaults left
/// out, sensitive fields shown as `[redacted]`. What cannot be read is null.
pub fn to_json(message: &str, bytes: &[u8]) -> Value {
    schema::message(message).map_or(Value::Null, |schema| Printer::new(true).message(schema, bytes, 0))
}

/// The same with sensitive fields as they are: for another program that is to act on them, never for people.
pub fn to_whole_json(message: &str, bytes: &[u8]) -> Value {
    schema::message(message).map_or(Value::Null, |schema| Printer::new(false).message(schema, bytes, 0))
}

#[derive(Clone, Copy)]
struct Printer {
    /// Sensitive fields are not shown.
    discreet: bool,
    /// Inside of a sensitive field.
    redacting: bool,
}

impl Printer {
    fn new(discreet: bool) -> Self {
        Self { discreet, redacting: false }
    }

    fn message(self, message: &'static Message, bytes: &[u8], depth: usize) -> Value {
        let Ok(record) = Record::parse(message, bytes) else {
            return Value::Null;
        };
        if depth > MAX_DEPTH {
            return Value::Null;
        }
        match message.special {
            Special::No | Special::MapEntry => self.object(&record, depth),
            Special::Any => self.any(&record, depth),
            Special::Wrapper => message.by_number(1).map_or(Value::Null, |field| {
                let item = record.number(1).cloned().or_else(|| crate::record::default(field.kind));
                item.map_or(Value::Null, |item| self.item(field, &item, depth))
            }),
            Special::Struct => message.by_number(1).map_or(Value::Null, |fields| self.map(fields, &record, depth)),
            Special::ListValue => message.by_number(1).map_or(Value::Null, |values| self.list(values, &record, depth)),
            Special::Value => {
                let field = record.fields().next();
                field.map_or(Value::Null, |(field, values)| {
                    values
                        .first()
                        .filter(|_| field.number != 1)
                        .map_or(Value::Null, |item| self.item(field, item, depth))
                })
            }
            Special::Duration => json!(self.hide(|| duration(&record))),
            Special::Timestamp => json!(self.hide(|| timestamp(&record))),
            Special::FieldMask => json!(field_mask(message, &record)),
        }
    }

    fn hide(self, show: impl FnOnce() -> String) -> String {
        if self.redacting { REDACTED.to_owned() } else { show() }
    }

    fn object(self, record: &Record<'_>, depth: usize) -> Value {
        let mut object = Map::new();
        for (field, values) in record.fields() {
            let printer = Self { redacting: self.redacting || (self.discreet && field.is_sensitive()), ..self };
            let has_text = matches!(field.kind, Kind::Message | Kind::String | Kind::Bytes);
            if printer.redacting && !has_text {
                continue;
            }
            let value = if field.is_map() {
                printer.map(field, record, depth)
            } else if field.is_repeated() {
                printer.list(field, record, depth)
            } else {
                match values.first() {
                    Some(item) if field.has_presence() || !item.is_default() => printer.item(field, item, depth),
                    _ => continue,
                }
            };
            object.insert(field.name().to_owned(), value);
        }
        Value::Object(object)
    }

    fn list(self, field: &'static Field, record: &Record<'_>, depth: usize) -> Value {
        record.get(field).iter().map(|item| self.item(field, item, depth)).collect()
    }

    fn map(self, field: &'static Field, record: &Record<'_>, depth: usize) -> Value {
        let mut object = Map::new();
        for item in record.get(field).iter() {
            let Item::Message(bytes) = item else { continue };
            let Ok(entry) = MapEntry::parse(field, bytes) else {
                continue;
            };
            let value = match &entry.value {
                Some(value) => self.item(entry.value_field, value, depth),
                None => self.item(entry.value_field, &Item::Message(Default::default()), depth),
            };
            object.insert(entry.key.key(entry.key_field.kind), value);
        }
        Value::Object(object)
    }

    fn item(self, field: &'static Field, item: &Item<'_>, depth: usize) -> Value {
        match item {
            Item::Message(bytes) => {
                field.message().map_or(Value::Null, |message| self.message(message, bytes, depth + 1))
            }
            // Envoy clears what has no text to replace.
            Item::Text(text) => json!(self.hide(|| (*text).to_owned())),
            Item::Bytes(_) if self.redacting => json!(base64(REDACTED.as_bytes())),
            Item::Bytes(bytes) => json!(base64(bytes)),
            Item::Integer(_) | Item::Float(_) if self.redacting => zero(field.kind),
            Item::Integer(value) => integer(field, *value),
            Item::Float(value) => float(field.kind, *value),
        }
    }

    fn any(self, record: &Record<'_>, depth: usize) -> Value {
        let (url, value) = any_parts(record);
        if url.is_empty() && value.is_empty() {
            return json!({});
        }
        let mut object = Map::new();
        object.insert("@type".to_owned(), json!(url));
        match any::type_name(url).and_then(schema::message) {
            Some(message) => match self.message(message, value, depth + 1) {
                Value::Object(fields) if message.special == Special::No => object.extend(fields),
                other => drop(object.insert("value".to_owned(), other)),
            },
            // Nobody has its schema: the bytes are all there is to show.
            None => drop(object.insert("value".to_owned(), json!(self.hide(|| base64(value))))),
        }
        Value::Object(object)
    }
}

fn zero(kind: Kind) -> Value {
    match kind {
        Kind::Bool => json!(false),
        _ => json!(0),
    }
}

fn integer(field: &Field, value: i128) -> Value {
    match field.kind {
        Kind::Bool => json!(value != 0),
        Kind::Enum => {
            let number = i32::try_from(value).unwrap_or_default();
            if field.enumeration().is_some_and(|of| of.name() == "google.protobuf.NullValue") {
                return Value::Null;
            }
            match field.enumeration().and_then(|of| of.by_number(number)) {
                Some(known) => json!(known.name()),
                None => json!(number),
            }
        }
        Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => {
            json!(value.to_string())
        }
        _ => json!(i64::try_from(value).unwrap_or_default()),
    }
}

/// Whole numbers without a fraction, and JSON's names for what is not finite.
fn float(kind: Kind, value: f64) -> Value {
    /// Up to here every integer is a double.
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    if value.is_nan() {
        return json!("NaN");
    }
    if value.is_infinite() {
        return json!(if value > 0.0 { "Infinity" } else { "-Infinity" });
    }
    if value.fract() == 0.0 && value.abs() <= LARGEST && !(value == 0.0 && value.is_sign_negative()) {
        return json!(value as i64);
    }
    // The shortest digits that mean the same float.
    let value = if kind == Kind::Float { (value as f32).to_string().parse().unwrap_or(value) } else { value };
    json!(value)
}

fn seconds_and_nanos(record: &Record<'_>) -> (i128, i128) {
    let part = |number| match record.number(number) {
        Some(Item::Integer(value)) => *value,
        _ => 0,
    };
    (part(1), part(2))
}

fn duration(record: &Record<'_>) -> String {
    let (seconds, nanos) = seconds_and_nanos(record);
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!("{sign}{}{}s", seconds.abs(), fraction(nanos.unsigned_abs()))
}

/// Nothing, or a point and three, six or nine digits.
fn fraction(nanos: u128) -> String {
    if nanos == 0 {
        String::new()
    } else if nanos.is_multiple_of(1_000_000) {
        format!(".{:03}", nanos / 1_000_000)
    } else if nanos.is_multiple_of(1000) {
        format!(".{:06}", nanos / 1000)
    } else {
        format!(".{nanos:09}")
    }
}

fn timestamp(record: &Record<'_>) -> String {
    let (seconds, nanos) = seconds_and_nanos(record);
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days counted from March 1st of year 0, in cycles of 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let fraction = fraction(nanos.unsigned_abs());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

fn field_mask(message: &'static Message, record: &Record<'_>) -> String {
    let Some(paths) = message.by_number(1) else {
        return String::new();
    };
    let mut out = String::new();
    for item in record.get(paths).iter() {
        let Item::Text(path) = item else { continue };
        if !out.is_empty() {
            out.push(',');
        }
        let mut upper = false;
        for c in path.chars() {
            match c {
                '_' => upper = true,
                c if upper => {
                    out.push(c.to_ascii_uppercase());
                    upper = false;
                }
                c => out.push(c),
            }
        }
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(padded);
        for position in 0..4 {
            let digit = (bits >> (18 - 6 * position)) & 63;
            out.push(if position <= chunk.len() { ALPHABET[digit as usize] as char } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, UnknownFields, decode};

    fn round(message: &str, text: &str) -> Value {
        let decoded = decode(message, text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap();
        to_json(message, &decoded.bytes)
    }

    #[test]
    fn a_cluster_prints_as_in_config_dump() {
        let json = round(
            "envoy.config.cluster.v3.Cluster",
            "{name: a, type: eds, connectTimeout: 0.25s, perConnectionBufferLimitBytes: 0, ringHashLbConfig: \
             {minimumRingSize: 1024}, metadata: {filter_metadata: {x: {a: [1, 1.5, true, null, {}], b: '2'}}}}",
        );
        assert_eq!(
            json,
            json!({
                "name": "a", "type": "EDS", "connect_timeout": "0.250s", "per_connection_buffer_limit_bytes": 0,
                "ring_hash_lb_config": {"minimum_ring_size": "1024"},
                "metadata": {"filter_metadata": {"x": {"a": [1, "1.5", true, null, {}], "b": "2"}}},
            })
        );
    }

    #[test]
    fn an_any_is_expanded_and_secrets_are_hidden() {
        let json = round(
            "envoy.config.core.v3.TypedExtensionConfig",
            "{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, \
             name: s, tls_certificate: {certificate_chain: {inline_string: c}, private_key: {inline_string: k}}}}",
        );
        assert_eq!(
            json["typed_config"]["@type"],
            "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
        );
        assert_eq!(json["typed_config"]["tls_certificate"]["certificate_chain"]["inline_string"], "c");
        assert_eq!(json["typed_config"]["tls_certificate"]["private_key"]["inline_string"], "[redacted]");
        let any = round("google.protobuf.Any", "{'@type': a/google.protobuf.Duration, value: 1.5s}");
        assert_eq!(any, json!({"@type": "a/google.protobuf.Duration", "value": "1.500s"}));
    }

    #[test]
    fn times_and_bytes() {
        for time in ["1970-01-01T00:00:00Z", "2000-02-29T12:00:00.500Z", "1969-12-31T23:59:59Z", "2030-12-31T00:00:01Z"]
        {
            assert_eq!(round("google.protobuf.Timestamp", &format!("'{time}'")), json!(time));
        }
        assert_eq!(round("google.protobuf.FieldMask", "a.fooBar,c"), json!("a.fooBar,c"));
        for text in ["", "a", "ab", "abc", "abcd"] {
            let yaml = format!("{{inline_bytes: '{}'}}", base64(text.as_bytes()));
            assert_eq!(
                round("envoy.config.core.v3.DataSource", &yaml),
                json!({"inline_bytes": base64(text.as_bytes())})
            );
        }
    }

    #[test]
    fn what_is_no_message_is_null() {
        assert_eq!(to_json("envoy.config.cluster.v3.Cluster", &[0xff]), Value::Null);
        assert_eq!(to_json("no.such.Message", &[]), Value::Null);
    }
}
