//! A message's bytes as values by field, with protobuf's rules for what occurs more than once.
//! It must not know what is done with the values: `validate`, `audit` and `to_json` walk them.

use std::borrow::Cow;

use crate::{
    schema::{Field, Kind, Message},
    wire::{Malformed, Reader, Wire},
};

/// The deepest nesting of messages that is walked: each level of JSON, which ends at 100, can be two messages.
pub(crate) const MAX_DEPTH: usize = 250;

/// More than any message of the schema has; a unit test counts.
const MOST_ONEOFS: usize = 16;

/// More unknown fields than this are not worth a line each.
const MOST_UNKNOWN: usize = 64;

/// One value of a field.
#[derive(Debug, Clone)]
pub(crate) enum Item<'a> {
    /// Of any width; booleans and enum numbers too.
    Integer(i128),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Message(Cow<'a, [u8]>),
}

#[derive(Debug)]
struct Entry<'a> {
    field: &'static Field,
    item: Item<'a>,
}

/// The fields that are set, by number; of a oneof at most one.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    entries: Vec<Entry<'a>>,
    /// Field numbers that the schema does not know.
    pub(crate) unknown: Vec<u32>,
}

/// Why bytes are no message of their type, and at which field.
#[derive(Debug)]
pub(crate) struct BadRecord {
    pub(crate) field: Option<&'static Field>,
    pub(crate) reason: &'static str,
}

impl From<Malformed> for BadRecord {
    fn from(_: Malformed) -> Self {
        Self { field: None, reason: "not a protobuf message" }
    }
}

impl<'a> Record<'a> {
    pub(crate) fn parse(message: &'static Message, bytes: &'a [u8]) -> Result<Self, BadRecord> {
        let mut record = Self { entries: Vec::new(), unknown: Vec::new() };
        // Of each oneof the member that came last, and where it began: what came before it is gone.
        let mut chosen: [(u32, usize); MOST_ONEOFS] = [(0, 0); MOST_ONEOFS];
        for field in Reader::new(bytes) {
            let (number, wire) = field?;
            let Some(field) = message.by_number(number) else {
                if !record.unknown.contains(&number) && record.unknown.len() < MOST_UNKNOWN {
                    record.unknown.push(number);
                }
                continue;
            };
            if let Some(place) = field.oneof().and_then(|oneof| chosen.get_mut(oneof))
                && place.0 != number
            {
                *place = (number, record.entries.len());
            }
            record.add(field, wire)?;
        }
        let mut at = 0;
        record.entries.retain(|entry| {
            at += 1;
            let place = entry.field.oneof().and_then(|oneof| chosen.get(oneof));
            place.is_none_or(|(number, from)| *number == entry.field.number && at > *from)
        });
        // Serializers write fields in order, so this seldom moves anything; it keeps the order of equal numbers.
        record.entries.sort_by_key(|entry| entry.field.number);
        record.join_singular();
        Ok(record)
    }

    fn add(&mut self, field: &'static Field, wire: Wire<'a>) -> Result<(), BadRecord> {
        let fail = |reason| BadRecord { field: Some(field), reason };
        let item = match (field.kind, wire) {
            (Kind::String, Wire::Bytes(bytes)) => {
                Item::Text(std::str::from_utf8(bytes).map_err(|_| fail("not UTF-8"))?)
            }
            (Kind::Bytes, Wire::Bytes(bytes)) => Item::Bytes(bytes),
            (Kind::Message, Wire::Bytes(bytes)) => Item::Message(Cow::Borrowed(bytes)),
            (kind, Wire::Bytes(bytes)) if field.is_repeated() => {
                let mut reader = Reader::new(bytes);
                while !reader.is_empty() {
                    let wire = packed(kind, &mut reader).map_err(|_| fail("not a list of numbers"))?;
                    let item = number(kind, wire).ok_or_else(|| fail("of a wrong wire type"))?;
                    self.entries.push(Entry { field, item });
                }
                return Ok(());
            }
            (kind, wire) => number(kind, wire).ok_or_else(|| fail("of a wrong wire type"))?,
        };
        self.entries.push(Entry { field, item });
        Ok(())
    }

    /// Of a value that occurs again the last counts; messages are merged.
    fn join_singular(&mut self) {
        self.entries.dedup_by(|later, earlier| {
            if later.field.number != earlier.field.number || later.field.is_repeated() {
                return false;
            }
            match (&mut later.item, &mut earlier.item) {
                (Item::Message(later), Item::Message(earlier)) => earlier.to_mut().extend_from_slice(later),
                (later, earlier) => std::mem::swap(later, earlier),
            }
            true
        });
    }

    /// Fields that are set, with their values.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'static Field, Values<'a, '_>)> {
        self.entries
            .chunk_by(|a, b| a.field.number == b.field.number)
            .filter_map(|chunk| chunk.first().map(|first| (first.field, Values(chunk))))
    }

    /// The values of a field, none if it is not set.
    pub(crate) fn get(&self, field: &Field) -> Values<'a, '_> {
        let start = self.entries.partition_point(|entry| entry.field.number < field.number);
        let rest = self.entries.get(start..).unwrap_or_default();
        let count = rest.partition_point(|entry| entry.field.number == field.number);
        Values(rest.get(..count).unwrap_or_default())
    }

    /// The only value of a field that is not repeated.
    pub(crate) fn number(&self, number: u32) -> Option<&Item<'a>> {
        self.entries.iter().find(|entry| entry.field.number == number).map(|entry| &entry.item)
    }
}

/// The values of one field.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values<'a, 'r>(&'r [Entry<'a>]);

impl<'a, 'r> Values<'a, 'r> {
    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    pub(crate) fn first(self) -> Option<&'r Item<'a>> {
        self.0.first().map(|entry| &entry.item)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = &'r Item<'a>> {
        self.0.iter().map(|entry| &entry.item)
    }
}

fn packed<'a>(kind: Kind, reader: &mut Reader<'a>) -> Result<Wire<'a>, Malformed> {
    Ok(match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Wire::Fixed64(u64::from_le_bytes(reader.fixed()?)),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Wire::Fixed32(u32::from_le_bytes(reader.fixed()?)),
        _ => Wire::Varint(reader.varint()?),
    })
}

/// A number as its type reads it; narrower types take the low bits, as protobuf's parsers do.
fn number<'a>(kind: Kind, wire: Wire<'a>) -> Option<Item<'a>> {
    Some(match (kind, wire) {
        (Kind::Double, Wire::Fixed64(bits)) => Item::Float(f64::from_bits(bits)),
        (Kind::Float, Wire::Fixed32(bits)) => Item::Float(f64::from(f32::from_bits(bits))),
        (Kind::Fixed64, Wire::Fixed64(bits)) => Item::Integer(i128::from(bits)),
        (Kind::Sfixed64, Wire::Fixed64(bits)) => Item::Integer(i128::from(bits as i64)),
        (Kind::Fixed32, Wire::Fixed32(bits)) => Item::Integer(i128::from(bits)),
        (Kind::Sfixed32, Wire::Fixed32(bits)) => Item::Integer(i128::from(bits as i32)),
        (Kind::Int64, Wire::Varint(bits)) => Item::Integer(i128::from(bits as i64)),
        (Kind::Uint64, Wire::Varint(bits)) => Item::Integer(i128::from(bits)),
        (Kind::Int32 | Kind::Enum, Wire::Varint(bits)) => Item::Integer(i128::from(bits as i32)),
        (Kind::Uint32, Wire::Varint(bits)) => Item::Integer(i128::from(bits as u32)),
        (Kind::Bool, Wire::Varint(bits)) => Item::Integer(i128::from(bits != 0)),
        (Kind::Sint32, Wire::Varint(bits)) => Item::Integer(i128::from(unzigzag(u64::from(bits as u32)))),
        (Kind::Sint64, Wire::Varint(bits)) => Item::Integer(i128::from(unzigzag(bits))),
        _ => return None,
    })
}

fn unzigzag(bits: u64) -> i64 {
    (bits >> 1) as i64 ^ -((bits & 1) as i64)
}

impl Item<'_> {
    /// Whether it is what an unset field reads as.
    pub(crate) fn is_default(&self) -> bool {
        match self {
            Self::Integer(value) => *value == 0,
            Self::Float(value) => value.to_bits() == 0,
            Self::Text(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Message(_) => false,
        }
    }

    /// As a map's key is shown.
    pub(crate) fn key(&self, kind: Kind) -> String {
        match self {
            Self::Integer(value) if kind == Kind::Bool => (*value != 0).to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Text(text) => (*text).to_owned(),
            _ => String::new(),
        }
    }
}

/// The default of a scalar type.
pub(crate) fn default(kind: Kind) -> Option<Item<'static>> {
    match kind {
        Kind::Double | Kind::Float => Some(Item::Float(0.0)),
        Kind::String => Some(Item::Text("")),
        Kind::Bytes => Some(Item::Bytes(&[])),
        Kind::Message => None,
        _ => Some(Item::Integer(0)),
    }
}

/// Key and value of a map's entry.
pub(crate) struct MapEntry<'a> {
    pub(crate) key_field: &'static Field,
    pub(crate) value_field: &'static Field,
    pub(crate) key: Item<'a>,
    /// None where a message is left out, which then is empty.
    pub(crate) value: Option<Item<'a>>,
}

impl<'a> MapEntry<'a> {
    pub(crate) fn parse(field: &'static Field, bytes: &'a [u8]) -> Result<Self, BadRecord> {
        let broken = || BadRecord { field: Some(field), reason: "not a map's entry" };
        let message = field.message().ok_or_else(broken)?;
        let key_field = message.by_number(1).ok_or_else(broken)?;
        let value_field = message.by_number(2).ok_or_else(broken)?;
        let record = Record::parse(message, bytes)?;
        let key = record.number(1).cloned().or_else(|| default(key_field.kind)).ok_or_else(broken)?;
        let value = record.number(2).cloned().or_else(|| default(value_field.kind));
        Ok(Self { key_field, value_field, key, value })
    }
}

/// Type URL and bytes of an Any.
pub(crate) fn any_parts<'r, 'a>(record: &'r Record<'a>) -> (&'a str, &'r [u8]) {
    let url = match record.number(1) {
        Some(Item::Text(url)) => url,
        _ => "",
    };
    let value = match record.number(2) {
        Some(Item::Bytes(value)) => value,
        _ => &[][..],
    };
    (url, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{schema, to_json};

    #[test]
    fn no_message_has_more_oneofs() {
        assert!(schema::messages().iter().all(|message| message.oneofs().len() <= MOST_ONEOFS));
    }

    #[test]
    fn of_a_oneof_the_last_member_counts() {
        // DataSource: filename = 1, inline_bytes = 2, inline_string = 3
        let json = to_json("envoy.config.core.v3.DataSource", b"\x0a\x01a\x1a\x01b");
        assert_eq!(json, serde_json::json!({"inline_string": "b"}));
        // Value: struct_value = 5 is merged with itself, unless another member came between.
        let entry = |key: u8| [0x2a, 9, 0x0a, 7, 0x0a, 1, key, 0x12, 2, 0x20, 1];
        let merged = [entry(b'a'), entry(b'b')].concat();
        assert_eq!(to_json("google.protobuf.Value", &merged), serde_json::json!({"a": true, "b": true}));
        let replaced = [&entry(b'a')[..], &[0x20, 1], &entry(b'b')].concat();
        assert_eq!(to_json("google.protobuf.Value", &replaced), serde_json::json!({"b": true}));
    }

    #[test]
    fn a_message_that_occurs_twice_is_merged() {
        let mut bytes = crate::decode(
            "envoy.config.core.v3.Node",
            b"{id: a, locality: {zone: z}, client_features: x}",
            crate::Format::Yaml,
            crate::UnknownFields::Reject,
        )
        .unwrap()
        .bytes;
        let overlay = crate::decode(
            "envoy.config.core.v3.Node",
            b"{id: b, locality: {region: r}, client_features: z}",
            crate::Format::Yaml,
            crate::UnknownFields::Reject,
        );
        crate::merge(&mut bytes, &overlay.unwrap().bytes);
        assert_eq!(
            to_json("envoy.config.core.v3.Node", &bytes),
            serde_json::json!({"id": "b", "locality": {"region": "r", "zone": "z"}, "client_features": ["x", "z"]})
        );
    }
}
