//! `/config_dump`: the configuration that acts, whole, by resource, by field or by name. It must not know how configuration
//! is compiled, nor where it came from.
//!
//! See <https://www.envoyproxy.io/docs/envoy/latest/api-v3/admin/v3/config_dump.proto>.

use http::StatusCode;
use regex::Regex;
use serde_json::{Value, json};
use tidegate_xds::any::type_name;
use tidegate_xds::schema;

use super::Call;
use super::field_mask::FieldMask;
use super::reply::Reply;
use super::stats::re2_error;

pub(super) fn show(call: &Call<'_>) -> Reply {
    let names = match call.query.filled("name_regex").map(|text| (text, Regex::new(&format!("^(?:{text})$")))) {
        None => None,
        Some((_, Ok(regex))) => Some(regex),
        Some((text, Err(error))) => {
            let reason = re2_error(&error, text);
            return refuse(
                StatusCode::BAD_REQUEST,
                format!("INVALID_ARGUMENT: Error while parsing name_regex from {text}: {reason}"),
            );
        }
    };
    let mut sections = call.state.config_dump(call.query.has("include_eds"));
    if let Some(names) = &names {
        sections.iter_mut().for_each(|section| keep_named(section, names));
    }
    let mask = call.query.filled("mask");
    let configs = match call.query.filled("resource") {
        Some(resource) => elements(sections, resource, mask),
        None => masked(sections, mask),
    };
    match configs {
        // An empty list is left out, as protobuf does.
        Ok(configs) if configs.is_empty() => Reply::json(&json!({})),
        Ok(configs) => Reply::json(&json!({"configs": configs})),
        Err(reply) => reply,
    }
}

fn refuse(status: StatusCode, reason: String) -> Reply {
    Reply { content_type: "text/plain", ..Reply::error(status, reason) }
}

/// All sections, each with the fields of the mask; those that do not have them are left out.
fn masked(sections: Vec<Value>, mask: Option<&str>) -> Result<Vec<Value>, Reply> {
    let Some(text) = mask else { return Ok(sections) };
    let mask = FieldMask::parse(text);
    let trim = |mut section: Value| mask.trim(&mut section).is_ok().then_some(section);
    let trimmed: Vec<Value> = sections.into_iter().filter_map(trim).collect();
    if trimmed.is_empty() {
        let reason = format!("FieldMask {text} could not be successfully applied to any configs.");
        return Err(refuse(StatusCode::BAD_REQUEST, reason));
    }
    Ok(trimmed)
}

/// The elements of one list, each with its own type.
fn elements(sections: Vec<Value>, resource: &str, mask: Option<&str>) -> Result<Vec<Value>, Reply> {
    for mut section in sections {
        let schema = section_type(&section).and_then(schema::message);
        let Some(field) = schema.and_then(|schema| schema.field(resource)) else { continue };
        let (name, element) = (field.name(), field.message());
        let (true, Some(element)) = (field.is_repeated(), element) else {
            let reason = format!("{name} is not a repeated field. Use ?mask={name} to get only this field");
            return Err(refuse(StatusCode::BAD_REQUEST, reason));
        };
        let list = match section.get_mut(name).map(Value::take) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let mut configs: Vec<Value> = list.into_iter().map(|value| with_type(element.name(), value)).collect();
        if let Some(text) = mask {
            let mask = FieldMask::parse(text);
            if configs.iter_mut().any(|config| mask.trim(config).is_err()) {
                let reason = format!("FieldMask {text} could not be successfully used.");
                return Err(refuse(StatusCode::BAD_REQUEST, reason));
            }
        }
        return Ok(configs);
    }
    Err(refuse(StatusCode::NOT_FOUND, format!("{resource} not found in config dump")))
}

fn section_type(section: &Value) -> Option<&str> {
    section.get("@type").and_then(Value::as_str).and_then(type_name)
}

fn with_type(name: &str, value: Value) -> Value {
    let mut typed = json!({"@type": format!("type.googleapis.com/{name}")});
    if let (Value::Object(typed), Value::Object(fields)) = (&mut typed, value) {
        typed.extend(fields);
    }
    typed
}

/// Drops the elements of a section's lists whose name does not match.
fn keep_named(section: &mut Value, names: &Regex) {
    let Some(fields) = section.as_object_mut() else { return };
    for list in fields.values_mut().filter_map(Value::as_array_mut) {
        list.retain(|element| name_of(element).is_some_and(|name| names.is_match(name)));
    }
    fields.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
}

/// The name of a section's element: its own, or that of the resource in it.
fn name_of(element: &Value) -> Option<&str> {
    let own = |value: &'_ Value| value.get("name").is_some();
    let named = if own(element) {
        element
    } else {
        element.as_object()?.values().find(|value| value.get("@type").is_some())?
    };
    let named = named.pointer("/failed_configuration").unwrap_or(named);
    named.get("name").or_else(|| named.get("cluster_name")).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get};
    use super::*;

    fn configs(path: &str) -> Value {
        get(&Fake::default(), path).parsed()["configs"].take()
    }

    #[test]
    fn the_whole_dump_has_every_section() {
        let dump = configs("/config_dump");
        assert_eq!(dump.as_array().map(Vec::len), Some(3));
        assert_eq!(configs("/config_dump?include_eds").as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn a_resource_is_a_list_of_its_own() {
        let clusters = configs("/config_dump?resource=static_clusters&mask=cluster.name");
        assert_eq!(
            clusters,
            json!([
                {
                    "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
                    "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "eds"},
                },
                {
                    "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
                    "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "web"},
                },
            ])
        );
        assert_eq!(get(&Fake::default(), "/config_dump?resource=dynamic_active_clusters").text(), "{}\n");
    }

    #[test]
    fn a_mask_chooses_sections_and_fields() {
        let dump = configs("/config_dump?mask=bootstrap.node.id");
        let expected = json!([{
            "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
            "bootstrap": {"node": {"id": "n1"}},
        }]);
        assert_eq!(dump, expected);
    }

    #[test]
    fn names_are_matched_whole() {
        let dump = configs("/config_dump?name_regex=w.*");
        assert_eq!(dump[0]["bootstrap"]["node"]["id"], "n1");
        assert_eq!(dump[1]["static_clusters"].as_array().map(Vec::len), Some(1));
        assert_eq!(dump[2].get("dynamic_listeners"), None);
        let listeners = configs("/config_dump?resource=dynamic_listeners&name_regex=dy");
        assert_eq!(listeners, Value::Null);
        let endpoints = configs("/config_dump?include_eds&resource=static_endpoint_configs&name_regex=e.s");
        assert_eq!(endpoints[0]["endpoint_config"]["cluster_name"], "eds");
    }

    #[test]
    fn mistakes_are_told() {
        for (path, status, text) in [
            ("/config_dump?resource=foo", 404, "foo not found in config dump"),
            (
                "/config_dump?resource=bootstrap",
                400,
                "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field",
            ),
            (
                "/config_dump?mask=bootstrap.admin,static_clusters",
                400,
                "FieldMask bootstrap.admin,static_clusters could not be successfully applied to any configs.",
            ),
            (
                "/config_dump?resource=static_clusters&mask=cluster.foo",
                400,
                "FieldMask cluster.foo could not be successfully used.",
            ),
            ("/config_dump?name_regex=(", 400, "INVALID_ARGUMENT: Error while parsing name_regex from (: missing ): ("),
        ] {
            let reply = get(&Fake::default(), path);
            assert_eq!((reply.status.as_u16(), reply.text()), (status, text));
        }
    }
}
