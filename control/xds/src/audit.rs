//! No silent configuration: every field that is set is enforced, listed as known and without effect, or refused.
//! It must not know how a field acts: whoever acts on it declares so in a [`Coverage`].

use std::collections::HashSet;

use crate::{
    FieldError, FieldPath, any,
    error::Trail,
    record::{Item, MAX_DEPTH, MapEntry, Record, any_parts},
    schema::{self, Enum, Field, Kind, Message, Special},
    validate::bad_record,
};

/// The fields of one message that act, and those known to be without effect that anyone could observe.
///
/// A field of an enum may name the values that act: `"type=STATIC|EDS"`. The value 0 of a field that is not set needs no
/// mention.
#[derive(Debug, Clone, Copy)]
pub struct Coverage {
    /// Full name, e.g. `envoy.config.cluster.v3.Cluster`.
    pub message: &'static str,
    pub enforced: &'static [&'static str],
    /// Field and reason.
    pub listed: &'static [(&'static str, &'static str)],
}

/// Where the coverage of messages is found.
pub trait CoverageSource {
    /// The coverage of the message of this full name.
    fn of(&self, message: &str) -> Option<&Coverage>;

    /// Whether a message acts as a whole, whatever it holds.
    fn opaque(&self, _message: &str) -> bool {
        false
    }
}

impl CoverageSource for &[Coverage] {
    fn of(&self, message: &str) -> Option<&Coverage> {
        self.iter().find(|coverage| coverage.message == message)
    }
}

/// What a configuration asks for that does not act.
#[derive(Debug, Default)]
pub struct Audit {
    /// Set, but nothing acts on it.
    pub unsupported: Vec<FieldError>,
    /// Set, known and without effect, with the reason.
    pub without_effect: Vec<(FieldPath, &'static str)>,
    /// Field numbers that Envoy's API does not define. Envoy ignores them in dynamic configuration and refuses them in
    /// static configuration unless told otherwise.
    pub unknown: Vec<FieldError>,
}

/// More findings than this are not listed, of each kind.
const MOST_FINDINGS: usize = 1000;

/// Compares what a message sets with what is declared to act.
pub fn audit(message: &str, bytes: &[u8], coverage: &dyn CoverageSource) -> Audit {
    let mut auditor = Auditor { coverage, audit: Audit::default(), optional: false };
    match schema::message(message) {
        Some(schema) => auditor.message(schema, bytes, &Trail::ROOT, 0),
        None => auditor.unsupported(&Trail::ROOT, message),
    }
    auditor.audit
}

impl Coverage {
    /// What it names that does not exist, so that a test can tell.
    pub fn mistakes(&self) -> Vec<String> {
        let Some(message) = schema::message(self.message) else {
            return vec![format!("no message `{}`", self.message)];
        };
        let mut mistakes = Vec::new();
        let mut seen = HashSet::new();
        let listed = self.listed.iter().map(|(name, _)| *name);
        for entry in self.enforced.iter().copied().chain(listed) {
            let (name, values) = split(entry);
            let field = message.fields().iter().find(|field| field.name() == name);
            if field.is_none() {
                mistakes.push(format!("no field `{name}` in {}", self.message));
            }
            if !seen.insert(name) {
                mistakes.push(format!("`{name}` twice in {}", self.message));
            }
            let of = field.and_then(Field::enumeration);
            for value in values.into_iter().flat_map(|values| values.split('|')) {
                if !of.is_some_and(|of| of.values().iter().any(|known| known.name() == value)) {
                    mistakes.push(format!("no value `{value}` of `{name}` in {}", self.message));
                }
            }
        }
        mistakes
    }
}

impl Coverage {
    /// Fields that act but hold a message of which nobody says what acts, so that a test can tell: they could not be set.
    pub fn holes(&self, source: &dyn CoverageSource) -> Vec<String> {
        let fields = schema::message(self.message).map(Message::fields).unwrap_or_default();
        let acts = |field: &&Field| self.enforced.iter().any(|entry| split(entry).0 == field.name());
        let hole = |field: &Field| {
            let message = field.message()?;
            let value = if field.is_map() { message.by_number(2)?.message()? } else { message };
            let known = !matches!(value.special, Special::No)
                || is_plain(value)
                || is_typed_struct(value)
                || source.opaque(value.name())
                || source.of(value.name()).is_some();
            (!known).then(|| format!("{}.{}: {}", self.message, field.name(), value.name()))
        };
        fields.iter().filter(acts).filter_map(hole).collect()
    }
}

/// A field's name, and the enum values that act if they are restricted.
fn split(entry: &'static str) -> (&'static str, Option<&'static str>) {
    entry.split_once('=').map_or((entry, None), |(name, values)| (name, Some(values)))
}

struct Auditor<'c> {
    coverage: &'c dyn CoverageSource,
    audit: Audit,
    /// The extension that comes next may be of a type that nobody has.
    optional: bool,
}

impl Auditor<'_> {
    fn unsupported(&mut self, trail: &Trail<'_>, what: &str) {
        if self.audit.unsupported.len() < MOST_FINDINGS {
            self.audit.unsupported.push(FieldError::new(trail.path(), format!("not supported yet: {what}")));
        }
    }

    fn message(&mut self, message: &'static Message, bytes: &[u8], trail: &Trail<'_>, depth: usize) {
        match message.special {
            Special::Any => return self.any(message, bytes, trail, depth),
            Special::No | Special::MapEntry => {}
            _ => return,
        }
        if depth > MAX_DEPTH || self.coverage.opaque(message.name()) || is_plain(message) {
            return;
        }
        if is_typed_struct(message) {
            return self.typed_struct(message, bytes, trail);
        }
        match self.coverage.of(message.name()).copied() {
            Some(coverage) => {
                self.optional = false;
                self.fields(message, &coverage, bytes, trail, depth);
            }
            None => self.unsupported(trail, message.name()),
        }
    }

    fn fields(
        &mut self,
        message: &'static Message,
        coverage: &Coverage,
        bytes: &[u8],
        trail: &Trail<'_>,
        depth: usize,
    ) {
        let record = match Record::parse(message, bytes) {
            Ok(record) => record,
            Err(error) => return self.audit.unsupported.push(bad_record(&error, trail)),
        };
        for number in &record.unknown {
            if self.audit.unknown.len() < MOST_FINDINGS {
                let reason = format!("unknown field number {number} of {}", message.name());
                self.audit.unknown.push(FieldError::new(trail.path(), reason));
            }
        }
        let is_optional = message.fields().iter().find(|field| field.name() == "is_optional");
        let optional = is_optional.is_some_and(|field| {
            let set = record.fields().find(|(of, _)| of.name() == field.name());
            set.is_some_and(|(_, values)| values.first().is_some_and(|value| !value.is_default()))
        });
        for (field, values) in record.fields() {
            // An implicit default on the wire is not a set field.
            if !field.has_presence() && !field.is_repeated() && values.first().is_some_and(Item::is_default) {
                continue;
            }
            let trail = trail.field(field.name());
            let enforced = coverage.enforced.iter().map(|entry| split(entry)).find(|(name, _)| *name == field.name());
            if let Some((_, allowed)) = enforced {
                for (index, item) in values.iter().enumerate() {
                    let item_trail = trail.index(index);
                    let at = if field.is_repeated() && !field.is_map() { &item_trail } else { &trail };
                    self.optional = optional;
                    self.item(field, item, allowed, at, depth);
                    self.optional = false;
                }
            } else if let Some((_, reason)) = coverage.listed.iter().find(|(name, _)| *name == field.name()) {
                if self.audit.without_effect.len() < MOST_FINDINGS {
                    self.audit.without_effect.push((trail.path(), reason));
                }
            } else {
                let path = trail.path();
                self.unsupported(&trail, path.as_str());
            }
        }
    }

    fn item(
        &mut self,
        field: &'static Field,
        item: &Item<'_>,
        allowed: Option<&'static str>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        match (field.kind, item) {
            (Kind::Message, Item::Message(bytes)) if field.is_map() => {
                if let Ok(entry) = MapEntry::parse(field, bytes)
                    && let Some(value) = &entry.value
                {
                    let name = entry.key.key(entry.key_field.kind);
                    self.item(entry.value_field, value, allowed, &trail.key(&name), depth);
                }
            }
            (Kind::Message, Item::Message(bytes)) => {
                if let Some(message) = field.message() {
                    self.message(message, bytes, trail, depth + 1);
                }
            }
            (Kind::Enum, Item::Integer(value)) => {
                if let Some(of) = field.enumeration() {
                    self.value(of, *value, allowed, trail);
                }
            }
            _ => {}
        }
    }

    /// An enum value acts if it is known and, where values are named, is one of them.
    fn value(&mut self, of: &'static Enum, value: i128, allowed: Option<&'static str>, trail: &Trail<'_>) {
        let known = i32::try_from(value).ok().and_then(|value| of.by_number(value));
        let acts =
            known.is_some_and(|known| allowed.is_none_or(|list| list.split('|').any(|name| name == known.name())));
        if !acts {
            let shown = known.map_or_else(|| value.to_string(), |known| known.name().to_owned());
            self.unsupported(trail, &shown);
        }
    }

    fn any(&mut self, message: &'static Message, bytes: &[u8], trail: &Trail<'_>, depth: usize) {
        let Ok(record) = Record::parse(message, bytes) else {
            return;
        };
        let (url, value) = any_parts(&record);
        if url.is_empty() && value.is_empty() {
            return;
        }
        let name = any::type_name(url).unwrap_or_default();
        let optional = self.optional;
        match schema::message(name) {
            None if optional => {}
            Some(_) if self.coverage.opaque(name) => {}
            Some(inner) if self.coverage.of(name).is_some() || !matches!(inner.special, Special::No) => {
                self.message(inner, value, trail, depth + 1);
            }
            Some(inner) if is_typed_struct(inner) => self.typed_struct(inner, value, trail),
            Some(inner) if is_plain(inner) => {}
            _ => self.unsupported(trail, url),
        }
    }

    /// A TypedStruct stands for the message that it names; of one whose schema nobody has, the outermost keys are seen.
    fn typed_struct(&mut self, message: &'static Message, bytes: &[u8], trail: &Trail<'_>) {
        let Ok(record) = Record::parse(message, bytes) else {
            return;
        };
        let Some(Item::Text(url)) = record.number(1) else {
            return;
        };
        let name = any::type_name(url).unwrap_or_default();
        if self.coverage.opaque(name) || self.optional && schema::message(name).is_none() {
            return;
        }
        let Some(coverage) = self.coverage.of(name).copied() else {
            return self.unsupported(trail, url);
        };
        let Some(Item::Message(value)) = record.number(2) else {
            return;
        };
        let fields = schema::message("google.protobuf.Struct").and_then(|of| of.by_number(1).map(|f| (of, f)));
        let Some((structure, entries)) = fields else {
            return;
        };
        let Ok(record) = Record::parse(structure, value) else {
            return;
        };
        for item in record.get(entries).iter() {
            let Item::Message(bytes) = item else { continue };
            let Ok(entry) = MapEntry::parse(entries, bytes) else {
                continue;
            };
            let key = entry.key.key(Kind::String);
            let trail = trail.field(&key);
            let is = |name: &str| name == key || schema::is_json_name(name, &key);
            if coverage.enforced.iter().any(|name| is(split(name).0)) {
                continue;
            }
            match coverage.listed.iter().find(|(name, _)| is(name)) {
                Some((_, reason)) => self.audit.without_effect.push((trail.path(), reason)),
                None => {
                    let path = trail.path();
                    self.unsupported(&trail, path.as_str());
                }
            }
        }
    }
}

/// Messages without a meaning of their own.
fn is_plain(message: &Message) -> bool {
    matches!(message.name(), "google.protobuf.Empty")
}

fn is_typed_struct(message: &Message) -> bool {
    matches!(message.name(), "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, UnknownFields, decode};

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    const COVERED: &[Coverage] = &[
        Coverage {
            message: CLUSTER,
            enforced: &["name", "type=STATIC|EDS", "connect_timeout", "metadata", "typed_extension_protocol_options"],
            listed: &[("alt_stat_name", "for a test")],
        },
        Coverage { message: "envoy.config.core.v3.Metadata", enforced: &["filter_metadata"], listed: &[] },
        Coverage { message: "istio.Filter", enforced: &["keepAlive"], listed: &[("debug", "for a test")] },
    ];

    fn audit_yaml(text: &str) -> (Vec<String>, Vec<String>) {
        let decoded = decode(CLUSTER, text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap();
        let found = audit(CLUSTER, &decoded.bytes, &COVERED);
        assert!(found.unknown.is_empty());
        (
            found.unsupported.iter().map(ToString::to_string).collect(),
            found.without_effect.iter().map(|(path, reason)| format!("{path}: {reason}")).collect(),
        )
    }

    #[test]
    fn fields_are_enforced_listed_or_refused() {
        let (unsupported, listed) =
            audit_yaml("{name: a, connect_timeout: 1s, alt_stat_name: b, dns_lookup_family: V4_ONLY}");
        assert_eq!(unsupported, ["dns_lookup_family: not supported yet: dns_lookup_family"]);
        assert_eq!(listed, ["alt_stat_name: for a test"]);
    }

    #[test]
    fn enum_values_may_be_restricted() {
        assert!(audit_yaml("{type: EDS}").0.is_empty());
        assert_eq!(audit_yaml("{type: STRICT_DNS}").0, ["type: not supported yet: STRICT_DNS"]);
        assert_eq!(audit_yaml("{type: 77}").0, ["type: not supported yet: 77"]);
    }

    #[test]
    fn types_that_nobody_covers_are_refused() {
        let (unsupported, _) = audit_yaml(
            "typed_extension_protocol_options: {a: {'@type': type.googleapis.com/envoy.config.core.v3.Node, id: x}}",
        );
        assert_eq!(
            unsupported,
            [
                "typed_extension_protocol_options[\"a\"]: not supported yet: type.googleapis.com/envoy.config.core.v3.Node"
            ]
        );
        assert!(audit_yaml("metadata: {filter_metadata: {envoy.lb: {a: [1]}}}").0.is_empty());
    }

    #[test]
    fn a_typed_struct_stands_for_what_it_names() {
        let any = |url: &str| {
            format!(
                "typed_extension_protocol_options: {{a: {{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, \
                 type_url: {url}, value: {{keep_alive: 1, debug: 2, other: 3}}}}}}"
            )
        };
        let (unsupported, listed) = audit_yaml(&any("type.googleapis.com/istio.Filter"));
        assert_eq!(unsupported.len(), 2, "keep_alive is not keepAlive's proto name, other is unknown: {unsupported:?}");
        assert_eq!(listed.len(), 1);
        assert!(audit_yaml(&any("x/istio.Other")).0[0].ends_with("not supported yet: x/istio.Other"));
    }

    #[test]
    fn a_coverage_that_names_nothing_is_found_out() {
        assert_eq!(COVERED[0].mistakes(), Vec::<String>::new());
        let wrong = Coverage { message: CLUSTER, enforced: &["nme", "type=FOO"], listed: &[("type", "")] };
        assert_eq!(wrong.mistakes().len(), 3);
    }

    #[test]
    fn unknown_numbers_are_told_apart() {
        let found = audit(CLUSTER, &[0xba, 0x3e, 0], &COVERED);
        assert_eq!(found.unknown.len(), 1);
        assert!(found.unsupported.is_empty());
    }
}
