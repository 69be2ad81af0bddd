//! A message in the one form that all encodings of its content share, to be compared and hashed. It must not know what for.

use crate::{
    any,
    record::{Item, MAX_DEPTH, MapEntry, Record, any_parts},
    schema::{self, Field, Message, Special},
    wire::{put_bytes_field, put_fixed64_field, put_varint_field},
};

/// Bytes that are the same for the same content of the message of this full name, however it was encoded: fields by number,
/// numbers one by one, defaults left out, entries of maps sorted, each Any of a known type likewise. A message in it that
/// holds what the schema does not know stands as it is. They are not meant to be decoded.
pub fn canonical(message: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    match schema::message(message) {
        Some(message) => put_message(message, bytes, 0, &mut out),
        None => out.extend_from_slice(bytes),
    }
    out
}

fn put_message(message: &'static Message, bytes: &[u8], depth: usize, out: &mut Vec<u8>) {
    let record = Record::parse(message, bytes).ok().filter(|record| depth <= MAX_DEPTH && record.unknown.is_empty());
    let Some(record) = record else {
        out.extend_from_slice(bytes);
        return;
    };
    if message.special == Special::Any {
        let (url, value) = any_parts(&record);
        put_bytes_field(out, 1, url.as_bytes());
        let inner = any::type_name(url).and_then(schema::message);
        put_nested(2, out, |out| match inner {
            Some(inner) => put_message(inner, value, depth + 1, out),
            None => out.extend_from_slice(value),
        });
        return;
    }
    if message.special == Special::Value && bytes.is_empty() {
        // A value of no kind is null, as JSON spells it.
        return put_varint_field(out, 1, 0);
    }
    for (field, values) in record.fields() {
        if field.is_map() {
            put_map(field, values.iter(), depth, out);
            continue;
        }
        let says_something = |item: &&Item<'_>| field.is_repeated() || field.has_presence() || !item.is_default();
        values.iter().filter(says_something).for_each(|item| put_item(field, item, depth, out));
    }
}

/// Of two entries with one key the last counts.
fn put_map<'a, 'r>(field: &'static Field, items: impl Iterator<Item = &'r Item<'a>>, depth: usize, out: &mut Vec<u8>)
where
    'a: 'r,
{
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for item in items {
        let Item::Message(bytes) = item else { continue };
        let (mut key, mut value) = (Vec::new(), Vec::new());
        match MapEntry::parse(field, bytes) {
            Ok(entry) => {
                put_item(entry.key_field, &entry.key, depth, &mut key);
                let empty = Item::Message(Default::default());
                put_item(entry.value_field, entry.value.as_ref().unwrap_or(&empty), depth + 1, &mut value);
            }
            Err(_) => key.extend_from_slice(bytes),
        }
        entries.push((key, value));
    }
    entries.reverse();
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    entries.dedup_by(|(later, _), (kept, _)| later == kept);
    for (key, value) in entries {
        put_nested(field.number, out, |out| out.extend([key, value].concat()));
    }
}

fn put_item(field: &'static Field, item: &Item<'_>, depth: usize, out: &mut Vec<u8>) {
    match item {
        // A field has one type: the low bits tell its numbers apart.
        Item::Integer(value) => put_varint_field(out, field.number, *value as u64),
        Item::Float(value) => put_fixed64_field(out, field.number, value.to_le_bytes()),
        Item::Text(text) => put_bytes_field(out, field.number, text.as_bytes()),
        Item::Bytes(bytes) => put_bytes_field(out, field.number, bytes),
        Item::Message(bytes) => put_nested(field.number, out, |out| match field.message() {
            Some(inner) => put_message(inner, bytes, depth + 1, out),
            None => out.extend_from_slice(bytes),
        }),
    }
}

fn put_nested(number: u32, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    crate::wire::put_message_field(out, number, body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, UnknownFields, decode};

    fn of(message: &str, text: &str) -> Vec<u8> {
        canonical(message, &decode(message, text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap().bytes)
    }

    #[test]
    fn neither_the_order_nor_the_way_of_writing_shows() {
        let cluster = "envoy.config.cluster.v3.Cluster";
        let metadata = |a: &str, b: &str| format!("metadata: {{ filter_metadata: {{ {a}, {b} }} }}");
        let (one, two) = ("x: { b: 1, a: [true] }", "y: {}");
        let typed = |fields: &str| {
            let config = "'@type': type.googleapis.com/envoy.config.core.v3.Node";
            format!("upstream_config: {{ name: u, typed_config: {{ {config}, {fields} }} }}")
        };
        let first = format!("name: a\nconnect_timeout: 1s\n{}\n{}", metadata(one, two), typed("id: i, cluster: c"));
        let second = format!(
            "{}\n{}\nconnect_timeout: 1.0s\nname: a",
            typed("cluster: c, id: i"),
            metadata(two, "x: { a: [true], b: 1 }")
        );
        assert_eq!(of(cluster, &first), of(cluster, &second));
        for other in [first.replace("b: 1", "b: 2"), first.replace("id: i", "id: j"), first.replace("y: {}", "z: {}")] {
            assert_ne!(of(cluster, &first), of(cluster, &other), "{other}");
        }
    }

    #[test]
    fn what_is_encoded_otherwise_is_the_same() {
        let routes = "envoy.config.route.v3.RouteConfiguration";
        // name = 1, most_specific_header_mutations_wins = 10, max_direct_response_body_size_bytes = 11 (a wrapper).
        let plain = b"\x0a\x01a\x5a\x00";
        for other in [&b"\x5a\x00\x0a\x01a"[..], b"\x0a\x01b\x0a\x01a\x5a\x02\x08\x00", b"\x0a\x01a\x50\x00\x5a\x00"] {
            assert_eq!(canonical(routes, plain), canonical(routes, other), "{other:?}");
        }
        assert_ne!(canonical(routes, plain), canonical(routes, b"\x0a\x01a"));
        // What the schema does not know is content too.
        let unknown = |value: u8| [&plain[..], &[0xf8, 0x7f, value]].concat();
        assert_ne!(canonical(routes, &unknown(1)), canonical(routes, &unknown(2)));
        assert_eq!(canonical("no.such.Message", b"\x08\x01"), b"\x08\x01");
    }

    #[test]
    fn a_value_of_no_kind_is_null() {
        let value = "google.protobuf.Value";
        assert_eq!(canonical(value, b""), canonical(value, b"\x08\x00"));
        assert_ne!(canonical(value, b""), canonical(value, b"\x1a\x00"), "an empty text");
    }

    #[test]
    fn the_last_entry_of_a_key_counts() {
        // Struct: fields = 1; an entry: key = 1, value = 2; bool_value = 4.
        let entry = |value: u8| [0x0a, 7, 0x0a, 1, b'a', 0x12, 2, 0x20, value];
        let both = [entry(0), entry(1)].concat();
        assert_eq!(canonical("google.protobuf.Struct", &both), canonical("google.protobuf.Struct", &entry(1)));
        assert_ne!(canonical("google.protobuf.Struct", &both), canonical("google.protobuf.Struct", &entry(0)));
    }
}
