//! Random messages of any type and property tests over them: whatever comes in, nothing panics, and what is printed
//! is read back. It must not be part of the library.

use std::{fmt::Write, sync::LazyLock};

use proptest::prelude::*;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::{
    Audit, Coverage, CoverageSource, Format, UnknownFields, audit, canonical, decode,
    schema::{self, Field, Kind, Message, Special},
    to_json, to_whole_json, validate, wire,
};

/// A small generator of numbers, so that a message needs only a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's MMIX constants.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn message(of: &'static Message, dice: &mut Dice, depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    match of.special {
        Special::Any => {
            let types = ["envoy.config.core.v3.Node", "google.protobuf.Duration", "google.protobuf.Struct"];
            let name = types[dice.roll(3) as usize];
            wire::put_bytes_field(&mut out, 1, format!("x/{name}").as_bytes());
            let value = message(schema::message(name).unwrap(), dice, depth + 1);
            wire::put_bytes_field(&mut out, 2, &value);
        }
        Special::Duration | Special::Timestamp => {
            wire::put_varint_field(&mut out, 1, dice.roll(100_000));
            wire::put_varint_field(&mut out, 2, dice.roll(1_000_000_000));
        }
        Special::FieldMask => wire::put_bytes_field(&mut out, 1, b"a_b.c"),
        // A Value always has a kind.
        Special::Value if depth > 6 => wire::put_bytes_field(&mut out, 3, b"text"),
        Special::Value => {
            let fields = of.fields();
            field(&fields[dice.roll(fields.len() as u64) as usize], dice, depth, &mut out);
        }
        _ => {
            let mut oneofs = Vec::new();
            for one in of.fields() {
                let taken = one.oneof().is_some_and(|oneof| oneofs.contains(&oneof));
                if !taken && dice.roll(2 + depth as u64 * 2) == 0 {
                    oneofs.extend(one.oneof());
                    for _ in 0..if one.is_repeated() && !one.is_map() { 1 + dice.roll(2) } else { 1 } {
                        field(one, dice, depth, &mut out);
                    }
                }
            }
        }
    }
    out
}

fn field(one: &'static Field, dice: &mut Dice, depth: usize, out: &mut Vec<u8>) {
    match one.kind {
        Kind::Message => {
            let of = one.message().unwrap();
            let value = if depth > 8 && of.special == Special::No { Vec::new() } else { message(of, dice, depth + 1) };
            wire::put_bytes_field(out, one.number, &value);
        }
        Kind::String => {
            wire::put_bytes_field(out, one.number, ["é\n\"\\", "15", "yes", "x"][dice.roll(4) as usize].as_bytes())
        }
        Kind::Bytes => wire::put_bytes_field(out, one.number, &[0xff, 0, 7][..dice.roll(3) as usize + 1]),
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
            let values = [1.5f64, 0.25, 1e300, -7.0, 3.0, f64::MIN_POSITIVE];
            wire::put_fixed64_field(out, one.number, values[dice.roll(6) as usize].to_le_bytes());
        }
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
            wire::put_fixed32_field(out, one.number, [0.1f32, 1e30, 7.0, -2.5][dice.roll(4) as usize].to_le_bytes());
        }
        Kind::Bool => wire::put_varint_field(out, one.number, 1),
        Kind::Enum => {
            let values = one.enumeration().unwrap().values();
            let number = values[dice.roll(values.len() as u64) as usize].number;
            wire::put_varint_field(out, one.number, i64::from(number) as u64);
        }
        Kind::Int64 | Kind::Sint64 | Kind::Uint64 => wire::put_varint_field(out, one.number, u64::MAX - dice.roll(9)),
        Kind::Int32 | Kind::Sint32 => wire::put_varint_field(out, one.number, (-1 - dice.roll(9) as i64) as u64),
        Kind::Uint32 => wire::put_varint_field(out, one.number, u64::from(u32::MAX) - dice.roll(9)),
    }
}

struct Everything;

impl CoverageSource for Everything {
    fn of(&self, _: &str) -> Option<&Coverage> {
        static NOTHING: Coverage = Coverage { message: "", enforced: &["name", "value", "match"], listed: &[] };
        Some(&NOTHING)
    }
}

/// All that takes bytes.
fn walk(name: &str, bytes: &[u8]) -> (Value, Audit) {
    let _ = (validate(name, bytes), canonical(name, bytes));
    (to_json(name, bytes), audit(name, bytes, &Everything))
}

/// Whether a message, somewhere in it, hides what it holds.
fn has_secrets(json: &Value) -> bool {
    let text = json.to_string();
    text.contains("[redacted]") || text.contains("W3JlZGFjdGVkXQ==")
}

/// The same bytes as prost-reflect prints them.
fn second_opinion(name: &str, bytes: &[u8]) -> Result<Value, String> {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(&include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"))[..]).unwrap()
    });
    let descriptor = POOL.get_message_by_name(name).ok_or("no such message")?;
    let message = DynamicMessage::decode(descriptor, bytes).map_err(|error| error.to_string())?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|error| error.to_string())
}

/// Equal but for the digits of numbers: prost-reflect widens a float.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            a == b || ((a - b) / b).abs() < 1e-6
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        _ => a == b,
    }
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(seed: u64, at in 0..schema::messages().len()) {
        let of = &schema::messages()[at];
        let bytes = message(of, &mut Dice(seed), 0);
        let (json, _) = walk(of.name(), &bytes);
        if of.special != Special::No || has_secrets(&json) || of.fields().iter().any(Field::is_sensitive) {
            return Ok(());
        }
        let text = json.to_string();
        for format in [Format::Json, Format::Yaml] {
            match decode(of.name(), text.as_bytes(), format, UnknownFields::Reject) {
                Ok(decoded) if format == Format::Json => prop_assert_eq!(to_json(of.name(), &decoded.bytes), json.clone()),
                // YAML makes text of some numbers in a Struct.
                Ok(_) => {}
                Err(errors) => prop_assert!(false, "{}: {} in {text}", of.name(), errors[0]),
            }
        }
    }

    /// A control plane that starts again on what it kept is to tell no proxy of anything new.
    #[test]
    fn what_is_kept_as_text_is_the_same_content(seed: u64, at in 0..schema::messages().len()) {
        let of = &schema::messages()[at];
        let bytes = message(of, &mut Dice(seed), 0);
        if of.special != Special::No {
            return Ok(());
        }
        let text = to_whole_json(of.name(), &bytes).to_string();
        let again = decode(of.name(), text.as_bytes(), Format::Json, UnknownFields::Reject);
        let again = again.map_err(|errors| TestCaseError::fail(errors[0].to_string()))?.bytes;
        prop_assert_eq!(canonical(of.name(), &bytes), canonical(of.name(), &again), "{}: {}", of.name(), text);
    }

    #[test]
    fn a_second_reader_agrees(seed: u64, at in 0..schema::messages().len()) {
        let of = &schema::messages()[at];
        let bytes = message(of, &mut Dice(seed), 0);
        let ours = to_json(of.name(), &bytes);
        if of.special == Special::MapEntry || has_secrets(&ours) || of.fields().iter().any(Field::is_sensitive) {
            return Ok(());
        }
        let theirs = match second_opinion(of.name(), &bytes) {
            // It does not print an Any that is empty; Envoy does.
            Err(error) if error.contains("unsupported type url ''") => return Ok(()),
            theirs => theirs.map_err(TestCaseError::fail)?,
        };
        prop_assert!(same(&ours, &theirs), "{}:\n{ours}\n{theirs}", of.name());
    }

    #[test]
    fn any_bytes_are_walked(bytes: Vec<u8>, at in 0..schema::messages().len()) {
        walk(schema::messages()[at].name(), &bytes);
    }

    #[test]
    fn broken_messages_are_walked(seed: u64, at in 0..schema::messages().len(), cut in 0..200usize, flip in 0..200usize) {
        let of = &schema::messages()[at];
        let mut bytes = message(of, &mut Dice(seed), 0);
        bytes.truncate(cut);
        if let Some(byte) = bytes.get_mut(flip) {
            *byte ^= 1 << (seed % 8);
        }
        walk(of.name(), &bytes);
    }

    #[test]
    fn any_text_is_read(text in "[-{}\\[\\]:,&*!|>'\"%@`#?~ \t\n\rabn0x1.e\\\\u\u{e9}]{0,60}") {
        for name in ["envoy.config.bootstrap.v3.Bootstrap", "google.protobuf.Struct", "google.protobuf.Any"] {
            for format in [Format::Yaml, Format::Json] {
                for prefix in ["", "metadata: ", "{a: ", "'@type': x/google.protobuf.Struct\nvalue:\n  a: "] {
                    let mut whole = String::from(prefix);
                    let _ = write!(whole, "{text}");
                    if let Ok(decoded) = decode(name, whole.as_bytes(), format, UnknownFields::Collect) {
                        walk(name, &decoded.bytes);
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_text_or_not(text: Vec<u8>) {
        for format in [Format::Yaml, Format::Json] {
            let _ = decode("google.protobuf.Struct", &text, format, UnknownFields::Reject);
        }
    }
}
