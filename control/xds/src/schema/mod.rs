//! The schema of every message that Envoy's API knows: read-only tables that the build script makes from the .proto files.
//! It must not know what any message means, nor hold anything that is computed at run time but compiled patterns.

pub(crate) mod rules;
mod tables;
#[cfg(test)]
mod tests;

use rules::FieldRules;
use tables::{BY_NAME, ENUMS, FIELDS, MESSAGES, NAMES, ONEOFS, RULES, VALUES};

/// A name's offset and length in `NAMES`.
#[derive(Debug, Clone, Copy)]
struct Text(u32, u16);

impl Text {
    fn get(self) -> &'static str {
        let start = self.0 as usize;
        NAMES.get(start..start + usize::from(self.1)).unwrap_or_default()
    }
}

/// A message type.
#[derive(Debug)]
pub struct Message {
    name: Text,
    fields: (u16, u16),
    oneofs: (u16, u16),
    pub(crate) special: Special,
}

/// Message types whose JSON form is their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    No,
    MapEntry,
    Any,
    Duration,
    Timestamp,
    Struct,
    Value,
    ListValue,
    FieldMask,
    Wrapper,
}

/// A field of a message.
#[derive(Debug)]
pub struct Field {
    name: Text,
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    flags: u8,
    target: u16,
    oneof: u8,
    rules: u16,
}

/// A field's type as protobuf names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(dead_code, reason = "Envoy's API uses most of protobuf's types, not all")]
pub(crate) enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Message,
    Enum,
}

/// A oneof of a message (never the synthetic one of a proto3 `optional`).
#[derive(Debug)]
pub(crate) struct Oneof {
    name: Text,
    /// One of its members must be set.
    pub(crate) required: bool,
}

/// An enum type.
#[derive(Debug)]
pub struct Enum {
    name: Text,
    values: (u16, u16),
}

/// A value of an enum.
#[derive(Debug)]
pub(crate) struct EnumValue {
    name: Text,
    pub(crate) number: i32,
    /// Envoy refuses it unless a runtime key allows it.
    pub(crate) disallowed: bool,
}

/// The message of this full name, e.g. `envoy.config.cluster.v3.Cluster`.
pub fn message(name: &str) -> Option<&'static Message> {
    MESSAGES.binary_search_by(|message| message.name().cmp(name)).ok().and_then(|at| MESSAGES.get(at))
}

/// Every message type, sorted by full name.
pub fn messages() -> &'static [Message] {
    &MESSAGES
}

fn part<T>(all: &'static [T], (start, len): (u16, u16)) -> &'static [T] {
    let start = usize::from(start);
    all.get(start..start + usize::from(len)).unwrap_or_default()
}

impl Message {
    /// Full name, e.g. `envoy.config.cluster.v3.Cluster`.
    pub fn name(&self) -> &'static str {
        self.name.get()
    }

    /// Its fields, sorted by number.
    pub fn fields(&self) -> &'static [Field] {
        part(&FIELDS, self.fields)
    }

    pub(crate) fn oneofs(&self) -> &'static [Oneof] {
        part(&ONEOFS, self.oneofs)
    }

    pub(crate) fn by_number(&self, number: u32) -> Option<&'static Field> {
        let fields = self.fields();
        fields.binary_search_by_key(&number, |field| field.number).ok().and_then(|at| fields.get(at))
    }

    /// The field of this name, in either spelling: `foo_bar` or `fooBar`.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        let order = part(&BY_NAME, self.fields);
        let at = |position: &u16| FIELDS.get(usize::from(*position));
        order
            .binary_search_by(|position| at(position).map_or("", |field| field.name()).cmp(name))
            .ok()
            .and_then(|found| at(order.get(found)?))
            .or_else(|| self.fields().iter().find(|field| is_json_name(field.name(), name)))
    }
}

impl Field {
    const REPEATED: u8 = 1;
    const MAP: u8 = 1 << 1;
    const PRESENCE: u8 = 1 << 2;
    const PACKED: u8 = 1 << 3;
    const DEPRECATED: u8 = 1 << 4;
    const DISALLOWED: u8 = 1 << 5;
    const SENSITIVE: u8 = 1 << 6;

    /// Name as the .proto file spells it.
    pub fn name(&self) -> &'static str {
        self.name.get()
    }

    /// Whether Envoy's API marks it deprecated.
    pub fn is_deprecated(&self) -> bool {
        self.flags & Self::DEPRECATED != 0
    }

    /// Whether it is a list or a map.
    pub fn is_repeated(&self) -> bool {
        self.flags & Self::REPEATED != 0
    }

    pub(crate) fn is_map(&self) -> bool {
        self.flags & Self::MAP != 0
    }

    /// Whether "set to the default" differs from "not set".
    pub(crate) fn has_presence(&self) -> bool {
        self.flags & Self::PRESENCE != 0
    }

    pub(crate) fn is_packed(&self) -> bool {
        self.flags & Self::PACKED != 0
    }

    /// Whether Envoy refuses it unless a runtime key allows it.
    pub(crate) fn is_disallowed(&self) -> bool {
        self.flags & Self::DISALLOWED != 0
    }

    /// Whether its value must be hidden from people.
    pub(crate) fn is_sensitive(&self) -> bool {
        self.flags & Self::SENSITIVE != 0
    }

    /// The type of a message field.
    pub fn message(&self) -> Option<&'static Message> {
        (self.kind == Kind::Message).then(|| MESSAGES.get(usize::from(self.target))).flatten()
    }

    /// The type of an enum field.
    pub fn enumeration(&self) -> Option<&'static Enum> {
        (self.kind == Kind::Enum).then(|| ENUMS.get(usize::from(self.target))).flatten()
    }

    /// Position in its message's oneofs.
    pub(crate) fn oneof(&self) -> Option<usize> {
        usize::from(self.oneof).checked_sub(1)
    }

    pub(crate) fn rules(&self) -> &'static FieldRules {
        RULES.get(usize::from(self.rules)).unwrap_or(&rules::NO_RULES)
    }
}

impl Oneof {
    pub(crate) fn name(&self) -> &'static str {
        self.name.get()
    }
}

impl Enum {
    /// Full name.
    pub fn name(&self) -> &'static str {
        self.name.get()
    }

    pub(crate) fn values(&self) -> &'static [EnumValue] {
        part(&VALUES, self.values)
    }

    pub(crate) fn by_number(&self, number: i32) -> Option<&'static EnumValue> {
        self.values().iter().find(|value| value.number == number)
    }
}

impl EnumValue {
    pub(crate) fn name(&self) -> &'static str {
        self.name.get()
    }
}

/// Whether `json` is what protobuf's JSON calls the field `name`.
pub(crate) fn is_json_name(name: &str, json: &str) -> bool {
    let mut json = json.bytes();
    let mut upper = false;
    for byte in name.bytes() {
        if byte == b'_' {
            upper = true;
            continue;
        }
        let expected = if upper { byte.to_ascii_uppercase() } else { byte };
        if json.next() != Some(expected) {
            return false;
        }
        upper = false;
    }
    json.next().is_none()
}
