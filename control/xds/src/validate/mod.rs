//! Checks a message against the rules that Envoy's API declares (`validate.rules`), and refuses what Envoy no longer
//! takes. It must not know what a field means: rules beyond the schema's belong to who compiles the message.

mod number;
#[cfg(test)]
mod tests;
mod text;

use std::collections::HashSet;

use crate::{
    FieldError, any,
    error::Trail,
    record::{self, BadRecord, Item, MAX_DEPTH, MapEntry, Record, Values, any_parts},
    schema::{
        self, Field, Message, Special,
        rules::{Check, FieldRules},
    },
};

/// A message with more mistakes than this is reported up to here.
const MOST_ERRORS: usize = 100;

/// Checks the message of this full name, everything below it, and what each Any of a known type holds.
///
/// # Errors
/// All rules that are broken, each with its field.
pub fn validate(message: &str, bytes: &[u8]) -> Result<(), Vec<FieldError>> {
    let Broken { own: mut all, packed } = broken(message, bytes);
    all.extend(packed);
    if all.is_empty() { Ok(()) } else { Err(all) }
}

/// Rules that a message breaks.
pub(crate) struct Broken {
    /// By itself: Envoy takes nothing of the response that brings such a resource.
    pub(crate) own: Vec<FieldError>,
    /// By what its Anys hold: Envoy looks at that once it makes something of it, and refuses that resource alone.
    pub(crate) packed: Vec<FieldError>,
}

/// The same as [`validate`], told apart.
pub(crate) fn broken(message: &str, bytes: &[u8]) -> Broken {
    let mut checker = Checker { own: Vec::new(), packed: Vec::new(), packings: 0 };
    match schema::message(message) {
        Some(schema) => checker.message(schema, bytes, &Trail::ROOT, 0),
        None => checker.fail(&Trail::ROOT, format!("`{message}` is not a known message")),
    }
    Broken { own: checker.own, packed: checker.packed }
}

pub(crate) fn bad_record(error: &BadRecord, trail: &Trail<'_>) -> FieldError {
    let path = match error.field {
        Some(field) => trail.field(field.name()).path(),
        None => trail.path(),
    };
    FieldError::new(path, error.reason)
}

struct Checker {
    own: Vec<FieldError>,
    packed: Vec<FieldError>,
    /// How many Anys what is checked stands in.
    packings: usize,
}

impl Checker {
    fn fail(&mut self, trail: &Trail<'_>, reason: impl Into<String>) {
        self.push(FieldError::new(trail.path(), reason));
    }

    fn push(&mut self, error: FieldError) {
        let errors = if self.packings == 0 { &mut self.own } else { &mut self.packed };
        if errors.len() < MOST_ERRORS {
            errors.push(error);
        }
    }

    fn message(&mut self, message: &'static Message, bytes: &[u8], trail: &Trail<'_>, depth: usize) {
        if depth > MAX_DEPTH {
            return self.fail(trail, "nested too deeply");
        }
        let record = match Record::parse(message, bytes) {
            Ok(record) => record,
            Err(error) => return self.push(bad_record(&error, trail)),
        };
        match message.special {
            Special::Any => return self.any(&record, trail, depth),
            Special::Duration => return self.report(trail, duration(&record).map(drop)),
            Special::No | Special::MapEntry => {}
            // The other well-known types have no rules.
            _ => return,
        }
        for field in message.fields() {
            self.field(message, field, record.get(field), &trail.field(field.name()), depth);
        }
        for (at, oneof) in message.oneofs().iter().enumerate().filter(|(_, oneof)| oneof.required) {
            if !record.fields().any(|(field, _)| field.oneof() == Some(at)) {
                let members = message.fields().iter().filter(|field| field.oneof() == Some(at));
                let names: Vec<_> = members.map(|field| format!("`{}`", field.name())).collect();
                self.fail(trail, format!("one of `{}` is required: {}", oneof.name(), names.join(", ")));
            }
        }
    }

    /// What an Any holds, if its type is known.
    fn any(&mut self, record: &Record<'_>, trail: &Trail<'_>, depth: usize) {
        let (url, value) = any_parts(record);
        if let Some(message) = any::type_name(url).and_then(schema::message) {
            self.packings += 1;
            self.message(message, value, trail, depth + 1);
            self.packings -= 1;
        }
    }

    fn field(
        &mut self,
        message: &'static Message,
        field: &'static Field,
        values: Values<'_, '_>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        self.disallowed(message, field, values, trail);
        // Rules of a oneof's member, `required` too, hold where it is the one that is set.
        if field.oneof().is_some() && values.len() == 0 {
            return;
        }
        let rules = field.rules();
        if field.is_map() {
            self.map(field, rules, values, trail, depth);
        } else if field.is_repeated() {
            self.repeated(field, rules, values, trail, depth);
        } else {
            self.value(field, rules, values.first(), trail, depth);
        }
    }

    /// Envoy refuses these unless a runtime key allows them, a default that is not written too.
    fn disallowed(
        &mut self,
        message: &'static Message,
        field: &'static Field,
        values: Values<'_, '_>,
        trail: &Trail<'_>,
    ) {
        let refuse = |what: &str| format!("{what} is deprecated and no longer accepted");
        if field.is_disallowed() && values.len() > 0 {
            self.fail(trail, refuse(&format!("{}.{}", message.name(), field.name())));
        }
        let Some(of) = field.enumeration().filter(|_| !field.is_repeated()) else {
            return;
        };
        let value = match values.first() {
            Some(Item::Integer(value)) => i32::try_from(*value).ok(),
            _ => of.values().first().map(|value| value.number),
        };
        if let Some(value) = value.and_then(|value| of.by_number(value)).filter(|value| value.disallowed) {
            self.fail(trail, refuse(value.name()));
        }
    }

    /// A field that is not repeated, an item of one that is, or a part of a map's entry.
    fn value(
        &mut self,
        field: &'static Field,
        rules: &FieldRules,
        item: Option<&Item<'_>>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        if let Some(message) = field.message() {
            return self.message_value(message, rules, item, trail, depth);
        }
        let Some(item) = item.cloned().or_else(|| default(field)) else {
            return;
        };
        self.scalar(field, rules, &item, trail);
    }

    fn message_value(
        &mut self,
        message: &'static Message,
        rules: &FieldRules,
        item: Option<&Item<'_>>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        let Some(Item::Message(bytes)) = item else {
            if rules.required {
                self.fail(trail, "is required");
            }
            return;
        };
        match &rules.check {
            Check::None if rules.skip => {}
            Check::None => self.message(message, bytes, trail, depth + 1),
            Check::Any { any_of, none_of } => {
                self.any_type(message, bytes, any_of, none_of, trail);
                self.message(message, bytes, trail, depth + 1);
            }
            Check::Duration(limits) => match Record::parse(message, bytes) {
                Ok(record) => {
                    let check = |nanos| number::check(limits, nanos, number::show_duration);
                    self.report(trail, duration(&record).and_then(check));
                }
                Err(error) => self.push(bad_record(&error, trail)),
            },
            // Rules of a scalar on a wrapper are those of its value.
            _ => match (message.by_number(1), Record::parse(message, bytes)) {
                (Some(inner), Ok(record)) => {
                    let item = record.number(1).cloned().or_else(|| record::default(inner.kind));
                    if let Some(item) = item {
                        self.scalar(inner, rules, &item, trail);
                    }
                }
                (_, Err(error)) => self.push(bad_record(&error, trail)),
                (None, Ok(_)) => {}
            },
        }
    }

    fn any_type(
        &mut self,
        message: &'static Message,
        bytes: &[u8],
        any_of: &[&str],
        none_of: &[&str],
        trail: &Trail<'_>,
    ) {
        let Ok(record) = Record::parse(message, bytes) else {
            return;
        };
        let (url, _) = any_parts(&record);
        if !any_of.is_empty() && !any_of.contains(&url) {
            self.fail(trail, format!("its type URL must be one of {}", any_of.join(", ")));
        }
        if none_of.contains(&url) {
            self.fail(trail, format!("its type URL must not be {url}"));
        }
    }

    fn scalar(&mut self, field: &'static Field, rules: &FieldRules, item: &Item<'_>, trail: &Trail<'_>) {
        let result = match (&rules.check, item) {
            (Check::Integer(limits), Item::Integer(value)) => number::check(limits, *value, |value| value.to_string()),
            (Check::Float(limits), Item::Float(value)) => number::check(limits, *value, |value| value.to_string()),
            (Check::Bool(expected), Item::Integer(value)) if *expected != (*value != 0) => {
                Err(format!("must be {expected}"))
            }
            (Check::Text(rules), Item::Text(value)) => text::check(rules, value),
            (Check::Bytes { min, max, ignore_empty }, Item::Bytes(value)) => {
                if *ignore_empty && value.is_empty() {
                    return;
                }
                number::check_count(value.len(), *min, *max, "byte")
            }
            (Check::Enum { defined_only, equal, any_of, none_of }, Item::Integer(value)) => {
                let Ok(value) = i32::try_from(*value) else {
                    return;
                };
                let known = field.enumeration().and_then(|of| of.by_number(value));
                let shown = || known.map_or_else(|| value.to_string(), |known| known.name().to_owned());
                if *defined_only && known.is_none() {
                    Err(format!("{value} is not one of the defined values"))
                } else if equal.is_some_and(|equal| equal != value)
                    || !any_of.is_empty() && !any_of.contains(&value)
                    || none_of.contains(&value)
                {
                    Err(format!("{} is not allowed here", shown()))
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        };
        self.report(trail, result);
    }

    fn report(&mut self, trail: &Trail<'_>, result: Result<(), String>) {
        if let Err(reason) = result {
            self.fail(trail, reason);
        }
    }

    fn repeated(
        &mut self,
        field: &'static Field,
        rules: &FieldRules,
        values: Values<'_, '_>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        let mut items = &schema::rules::NO_RULES;
        if let Check::Repeated { min, max, unique, ignore_empty, items: item_rules } = &rules.check {
            if *ignore_empty && values.len() == 0 {
                return;
            }
            items = item_rules;
            self.report(trail, number::check_count(values.len(), *min, *max, "item"));
            if *unique {
                self.unique(values, trail);
            }
        }
        for (index, item) in values.iter().enumerate() {
            self.value(field, items, Some(item), &trail.index(index), depth);
        }
    }

    fn unique(&mut self, values: Values<'_, '_>, trail: &Trail<'_>) {
        let mut seen = HashSet::with_capacity(values.len());
        for (index, item) in values.iter().enumerate() {
            let item = match item {
                Item::Integer(value) => value.to_le_bytes().to_vec(),
                Item::Float(value) => value.to_le_bytes().to_vec(),
                Item::Text(text) => text.as_bytes().to_vec(),
                Item::Bytes(bytes) => bytes.to_vec(),
                Item::Message(bytes) => bytes.to_vec(),
            };
            if !seen.insert(item) {
                self.fail(&trail.index(index), "occurs twice, but items must be unique");
            }
        }
    }

    fn map(
        &mut self,
        field: &'static Field,
        rules: &FieldRules,
        values: Values<'_, '_>,
        trail: &Trail<'_>,
        depth: usize,
    ) {
        let (mut key_rules, mut value_rules) = (&schema::rules::NO_RULES, &schema::rules::NO_RULES);
        if let Check::Map { min, max, ignore_empty, keys, values: of_values } = &rules.check {
            if *ignore_empty && values.len() == 0 {
                return;
            }
            (key_rules, value_rules) = (keys, of_values);
            self.report(trail, number::check_count(values.len(), *min, *max, "entry"));
        }
        for item in values.iter() {
            let Item::Message(bytes) = item else { continue };
            match MapEntry::parse(field, bytes) {
                Ok(entry) => {
                    let name = entry.key.key(entry.key_field.kind);
                    let trail = trail.key(&name);
                    self.scalar(entry.key_field, key_rules, &entry.key, &trail);
                    let nothing = Item::Message(std::borrow::Cow::Borrowed(&[]));
                    let value = entry.value.as_ref().unwrap_or(&nothing);
                    self.value(entry.value_field, value_rules, Some(value), &trail, depth);
                }
                Err(error) => self.push(bad_record(&error, trail)),
            }
        }
    }
}

/// What rules see of a scalar that is not set. Members of a oneof are seen only when set.
fn default(field: &'static Field) -> Option<Item<'static>> {
    if field.oneof().is_some() { None } else { record::default(field.kind) }
}

/// Nanoseconds of a `google.protobuf.Duration` that is within Envoy's bounds: no negative one anywhere in a
/// configuration, and none that does not fit into 64 bits of nanoseconds.
fn duration(record: &Record<'_>) -> Result<i128, String> {
    const LONGEST_SECONDS: i128 = (i64::MAX as i128 - 999_999_999) / 1_000_000_000;
    let part = |number| match record.number(number) {
        Some(Item::Integer(value)) => *value,
        _ => 0,
    };
    let (seconds, nanos) = (part(1), part(2));
    if seconds < 0 || nanos < 0 {
        return Err("a duration must not be negative".to_owned());
    }
    if nanos > 999_999_999 {
        return Err(format!("{nanos} nanoseconds are more than a second"));
    }
    if seconds > LONGEST_SECONDS {
        return Err(format!("{seconds}s is too long; the longest duration is {LONGEST_SECONDS}s"));
    }
    Ok(seconds * 1_000_000_000 + nanos)
}
