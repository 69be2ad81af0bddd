//! Shows each message inside of another one, what is in an Any of a known type too. It must not know what anybody looks for.

use crate::{
    FieldPath, any,
    error::Trail,
    record::{Item, MAX_DEPTH, MapEntry, Record, any_parts},
    schema::{self, Field, Message, Special},
};

/// A message on the way.
pub struct Visited<'a> {
    message: &'static Message,
    record: &'a Record<'a>,
    trail: &'a Trail<'a>,
}

/// Shows the message of this full name and all below it to `look`, outer ones first. What cannot be read is passed over.
pub fn walk(message: &str, bytes: &[u8], look: &mut dyn FnMut(&Visited<'_>)) {
    if let Some(message) = schema::message(message) {
        visit(message, bytes, &Trail::ROOT, 0, look);
    }
}

fn visit(message: &'static Message, bytes: &[u8], trail: &Trail<'_>, depth: usize, look: &mut dyn FnMut(&Visited<'_>)) {
    let Ok(record) = Record::parse(message, bytes) else { return };
    if depth > MAX_DEPTH {
        return;
    }
    if message.special == Special::Any {
        let (url, value) = any_parts(&record);
        if let Some(inner) = any::type_name(url).and_then(schema::message) {
            visit(inner, value, trail, depth + 1, look);
        }
        return;
    }
    if message.special != Special::No {
        return;
    }
    look(&Visited { message, record: &record, trail });
    for (field, values) in record.fields() {
        let Some(inner) = field.message() else { continue };
        let trail = trail.field(field.name());
        for (index, item) in values.iter().enumerate() {
            let Item::Message(bytes) = item else { continue };
            if field.is_map() {
                visit_entry(field, bytes, &trail, depth, look);
            } else if field.is_repeated() {
                visit(inner, bytes, &trail.index(index), depth + 1, look);
            } else {
                visit(inner, bytes, &trail, depth + 1, look);
            }
        }
    }
}

fn visit_entry(
    field: &'static Field,
    bytes: &[u8],
    trail: &Trail<'_>,
    depth: usize,
    look: &mut dyn FnMut(&Visited<'_>),
) {
    let Ok(entry) = MapEntry::parse(field, bytes) else { return };
    if let (Some(inner), Some(Item::Message(bytes))) = (entry.value_field.message(), &entry.value) {
        visit(inner, bytes, &trail.key(&entry.key.key(entry.key_field.kind)), depth + 1, look);
    }
}

impl Visited<'_> {
    /// Full name of the message.
    pub fn message(&self) -> &'static str {
        self.message.name()
    }

    /// Whether the field at the end of a path of field names (`eds_cluster_config.eds_config.ads`) is set.
    pub fn holds(&self, path: &str) -> bool {
        holds(self.message, self.record, path)
    }

    /// The texts of the field at the end of such a path, each with where it stands; none for an empty one.
    pub fn texts(&self, path: &str) -> Vec<(FieldPath, String)> {
        let mut found = Vec::new();
        texts(self.message, self.record, path, self.trail, &mut found);
        found
    }
}

fn step<'p>(message: &'static Message, path: &'p str) -> Option<(&'static Field, &'p str)> {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    Some((message.field(name)?, rest))
}

fn holds(message: &'static Message, record: &Record<'_>, path: &str) -> bool {
    let Some((field, rest)) = step(message, path) else { return false };
    match record.get(field).first() {
        None => false,
        Some(_) if rest.is_empty() => true,
        Some(Item::Message(bytes)) => field
            .message()
            .is_some_and(|inner| Record::parse(inner, bytes).is_ok_and(|record| holds(inner, &record, rest))),
        Some(_) => false,
    }
}

fn texts(
    message: &'static Message,
    record: &Record<'_>,
    path: &str,
    trail: &Trail<'_>,
    found: &mut Vec<(FieldPath, String)>,
) {
    let Some((field, rest)) = step(message, path) else { return };
    let trail = trail.field(field.name());
    for (index, item) in record.get(field).iter().enumerate() {
        let indexed = trail.index(index);
        let trail = if field.is_repeated() { &indexed } else { &trail };
        match item {
            Item::Text(text) if rest.is_empty() && !text.is_empty() => found.push((trail.path(), (*text).to_owned())),
            Item::Message(bytes) => {
                if let Some(inner) = field.message()
                    && let Ok(record) = Record::parse(inner, bytes)
                {
                    texts(inner, &record, rest, trail, found);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, UnknownFields, decode};

    #[test]
    fn messages_in_lists_maps_and_anys_are_seen() {
        let text = br#"
name: a
virtual_hosts:
- name: v
  domains: ["*", b]
  routes:
  - match: { prefix: / }
    route: { cluster: one }
    typed_per_filter_config:
      "x.y":
        "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
        config: { "@type": type.googleapis.com/envoy.config.core.v3.HttpUri, uri: u, cluster: two, timeout: 1s }
"#;
        let message = "envoy.config.route.v3.RouteConfiguration";
        let bytes = decode(message, text, Format::Yaml, UnknownFields::Reject).unwrap().bytes;
        let mut seen = Vec::new();
        walk(message, &bytes, &mut |visited| {
            for (path, text) in visited.texts("cluster") {
                seen.push(format!("{} {path} {text}", visited.message().rsplit('.').next().unwrap()));
            }
            if visited.message() == message {
                let domains = visited.texts("virtual_hosts.domains");
                seen.extend(domains.iter().map(|(path, text)| format!("{path} {text}")));
                assert!(visited.holds("virtual_hosts.name") && !visited.holds("vhds.config_source"));
                assert!(!visited.holds("nothing") && visited.texts("name.nothing").is_empty());
            }
        });
        assert_eq!(
            seen,
            [
                "virtual_hosts[0].domains[0] *",
                "virtual_hosts[0].domains[1] b",
                "RouteAction virtual_hosts[0].routes[0].route.cluster one",
                "HttpUri virtual_hosts[0].routes[0].typed_per_filter_config[\"x.y\"].config.cluster two",
            ]
        );
    }
}
