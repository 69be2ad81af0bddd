//! Objects of a document to fields on the wire, led by the schema. It must not know how the document was written.

use crate::{
    FieldError,
    decode::{UnknownFields, suggest},
    document::{Document, MAX_DEPTH, NodeId, Value},
    error::Trail,
    schema::{Field, Kind, Message, Special},
    wire,
};

/// A text with more mistakes than this is not a configuration.
const MOST_ERRORS: usize = 100;

pub(super) struct Encoder<'d> {
    pub(super) document: &'d Document,
    unknown_fields: UnknownFields,
    errors: Vec<FieldError>,
    unknown: Vec<FieldError>,
    budget: usize,
}

impl<'d> Encoder<'d> {
    pub(super) fn new(document: &'d Document, unknown_fields: UnknownFields) -> Self {
        Self { document, unknown_fields, errors: Vec::new(), unknown: Vec::new(), budget: document.budget() }
    }

    /// Errors, and the unknown fields that were left out.
    pub(super) fn finish(self) -> (Vec<FieldError>, Vec<FieldError>) {
        (self.errors, self.unknown)
    }

    pub(super) fn fail(&mut self, node: NodeId, trail: &Trail<'_>, reason: impl Into<String>) {
        if self.errors.len() < MOST_ERRORS {
            let location = self.document.node(node).location;
            self.errors.push(FieldError::new(trail.path(), reason).at(Some(location)));
        }
    }

    /// Notes something that the schema does not know: an error, or left out.
    pub(super) fn unknown(&mut self, error: impl FnOnce() -> FieldError) {
        let noted = match self.unknown_fields {
            UnknownFields::Reject => &mut self.errors,
            UnknownFields::Collect => &mut self.unknown,
        };
        if noted.len() < MOST_ERRORS {
            noted.push(error());
        }
    }

    /// Whether this node may still be read; aliases could make it endless.
    fn spend(&mut self, node: NodeId, trail: &Trail<'_>, depth: usize) -> bool {
        let cost = match &self.document.node(node).value {
            Value::Text(text) | Value::Number(text) => 8 + text.len(),
            _ => 8,
        };
        let enough = self.budget >= cost;
        if !enough && self.budget > 0 {
            self.fail(node, trail, "aliases make the text too large");
        }
        self.budget = if enough { self.budget - cost } else { 0 };
        let container = matches!(self.document.node(node).value, Value::List(_) | Value::Object(_));
        let too_deep = container && depth >= MAX_DEPTH;
        if too_deep {
            self.fail(node, trail, "nested too deeply");
        }
        enough && !too_deep
    }

    /// Appends the fields of a message; `depth` counts the objects and lists around it.
    pub(super) fn message(
        &mut self,
        message: &'static Message,
        node: NodeId,
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        if !self.spend(node, trail, depth) {
            return;
        }
        let is_object = matches!(self.document.node(node).value, Value::Object(_));
        match message.special {
            Special::Any => self.any(node, out, trail, depth),
            Special::Value => self.value(node, out, trail, depth),
            Special::Struct => self.structure(message, node, out, trail, depth),
            Special::No | Special::MapEntry => self.object(message, node, out, trail, depth),
            // These may also be written as the messages that they are: `{seconds: 1}`.
            _ if is_object => self.object(message, node, out, trail, depth),
            Special::ListValue => self.list_value(message, node, out, trail, depth),
            Special::Wrapper => {
                if let Some(field) = message.by_number(1) {
                    self.singular(field, node, out, trail, depth);
                }
            }
            Special::Timestamp => self.timestamp(node, out, trail),
            Special::Duration => self.duration(node, out, trail),
            Special::FieldMask => self.field_mask(node, out, trail),
        }
    }

    fn object(&mut self, message: &'static Message, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>, depth: usize) {
        let document = self.document;
        let Value::Object(entries) = &document.node(node).value else {
            let reason = match &document.node(node).value {
                Value::Null if depth == 0 => "the document is empty".to_owned(),
                found => format!("expected an object ({}), found {}", short_name(message), found.describe()),
            };
            return self.fail(node, trail, reason);
        };
        let mut oneofs = Oneofs::default();
        for (key, value) in entries {
            self.entry(message, (&key.name, key.location), *value, &mut oneofs, out, trail, depth);
        }
    }

    /// One key of an object that stands for a message.
    #[expect(clippy::too_many_arguments, reason = "the state of one walk")]
    pub(super) fn entry(
        &mut self,
        message: &'static Message,
        (name, location): (&str, crate::Location),
        value: NodeId,
        oneofs: &mut Oneofs,
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        let Some(field) = message.field(name) else {
            return self.unknown(|| {
                let reason = suggest::unknown_field(message, name);
                FieldError::new(trail.field(name).path(), reason).at(Some(location))
            });
        };
        let trail = trail.field(field.name());
        let is_null = matches!(self.document.node(value).value, Value::Null);
        if let Some(oneof) = field.oneof()
            && !is_null
            && let Some(other) = oneofs.set(oneof, field)
        {
            let group = message.oneofs().get(oneof).map_or("", |oneof| oneof.name());
            let reason = if other == field.name() {
                "is set twice".to_owned()
            } else {
                format!("only one of `{group}` may be set, and `{other}` already is")
            };
            return self.fail(value, &trail, reason);
        }
        self.field(field, value, out, &trail, depth + 1);
    }

    fn field(&mut self, field: &'static Field, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>, depth: usize) {
        if field.is_map() {
            self.map(field, node, out, trail, depth);
        } else if !field.is_repeated() {
            self.singular(field, node, out, trail, depth);
        } else if field.is_packed() {
            self.packed(field, node, out, trail, depth);
        } else {
            self.repeated(field, node, out, trail, depth);
        }
    }

    /// Numbers of a list go on the wire together.
    fn packed(&mut self, field: &'static Field, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>, depth: usize) {
        let mut items = Vec::new();
        self.repeated(field, node, &mut items, trail, depth);
        let mut values = Vec::with_capacity(items.len());
        for (_, value) in wire::Reader::new(&items).flatten() {
            match value {
                wire::Wire::Varint(value) => wire::put_varint(&mut values, value),
                wire::Wire::Fixed64(value) => values.extend_from_slice(&value.to_le_bytes()),
                wire::Wire::Fixed32(value) => values.extend_from_slice(&value.to_le_bytes()),
                wire::Wire::Bytes(_) | wire::Wire::Group => {}
            }
        }
        if !values.is_empty() {
            wire::put_bytes_field(out, field.number, &values);
        }
    }

    pub(super) fn repeated(
        &mut self,
        field: &'static Field,
        node: NodeId,
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        if !self.spend(node, trail, depth) {
            return;
        }
        let document = self.document;
        let Value::List(items) = &document.node(node).value else {
            // One value may stand where a list is expected.
            return self.singular(field, node, out, &trail.index(0), depth);
        };
        let special = field.message().map(|message| message.special);
        let keeps_lists = matches!(special, Some(Special::Value | Special::ListValue));
        for (index, item) in items.iter().enumerate() {
            let trail = trail.index(index);
            match &document.node(*item).value {
                Value::Null if special != Some(Special::Value) => self.default(field, out),
                // A list within a list is part of the outer one.
                Value::List(_) if !keeps_lists => self.repeated(field, *item, out, &trail, depth + 1),
                _ => self.singular(field, *item, out, &trail, depth + 1),
            }
        }
    }

    /// Null in a list stands for the type's default.
    fn default(&mut self, field: &'static Field, out: &mut Vec<u8>) {
        match field.kind {
            Kind::String | Kind::Bytes | Kind::Message => wire::put_bytes_field(out, field.number, &[]),
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => wire::put_fixed64_field(out, field.number, [0; 8]),
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => wire::put_fixed32_field(out, field.number, [0; 4]),
            _ => wire::put_varint_field(out, field.number, 0),
        }
    }

    pub(super) fn map(
        &mut self,
        field: &'static Field,
        node: NodeId,
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        if !self.spend(node, trail, depth) {
            return;
        }
        let document = self.document;
        let entries = match &document.node(node).value {
            Value::Null => return,
            Value::Object(entries) => entries,
            other => {
                return self.fail(node, trail, format!("expected an object, found {}", other.describe()));
            }
        };
        let entry_type = field.message();
        let (Some(key_field), Some(value_field)) =
            (entry_type.and_then(|m| m.by_number(1)), entry_type.and_then(|m| m.by_number(2)))
        else {
            return;
        };
        let mut seen = std::collections::HashSet::with_capacity(entries.len());
        for (key, value) in entries {
            let trail = trail.key(&key.name);
            if !seen.insert(key.name.as_str()) {
                self.fail(*value, &trail, "this key occurs twice");
                continue;
            }
            wire::put_message_field(out, field.number, |out| {
                self.map_key(key_field, &key.name, *value, out, &trail);
                self.singular(value_field, *value, out, &trail, depth + 1);
            });
        }
    }

    /// A field that is not a list, or one item of one that is.
    pub(super) fn singular(
        &mut self,
        field: &'static Field,
        node: NodeId,
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        let is_null = matches!(self.document.node(node).value, Value::Null);
        match field.message() {
            Some(message) if !is_null || message.special == Special::Value => {
                wire::put_message_field(out, field.number, |out| self.message(message, node, out, trail, depth));
            }
            None if !is_null && self.spend(node, trail, depth) => self.scalar(field, node, out, trail),
            None if is_null && field.enumeration().is_some_and(|of| of.name() == "google.protobuf.NullValue") => {
                self.default(field, out);
            }
            // Null is "not set".
            _ => {}
        }
    }
}

/// Which member of each oneof an object has set.
#[derive(Default)]
pub(super) struct Oneofs(Vec<(usize, &'static str)>);

impl Oneofs {
    /// Marks a member as set; the one that was set before, if any.
    fn set(&mut self, oneof: usize, field: &'static Field) -> Option<&'static str> {
        let before = self.0.iter().find(|(other, _)| *other == oneof).map(|(_, name)| *name);
        if before.is_none() {
            self.0.push((oneof, field.name()));
        }
        before
    }
}

pub(super) fn short_name(message: &Message) -> &'static str {
    message.name().rsplit('.').next().unwrap_or_default()
}
