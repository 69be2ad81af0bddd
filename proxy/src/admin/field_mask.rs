//! Field masks on messages in their JSON form: `name,node.id` keeps these fields and drops all others. A mask goes through
//! Any, and not through lists. It must not know which messages it is applied to.

use serde_json::Value;
use tidegate_xds::any::type_name;
use tidegate_xds::schema::{self, Message};

/// The paths of a mask.
pub(super) struct FieldMask<'a>(Vec<&'a str>);

/// A mask has a path that its message does not have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotApplicable;

impl<'a> FieldMask<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        Self(text.split(',').collect())
    }

    /// Trims a message that names its type in `@type`.
    pub(super) fn trim(&self, message: &mut Value) -> Result<(), NotApplicable> {
        trim_any(message, &self.0)
    }
}

fn trim_any(message: &mut Value, paths: &[&str]) -> Result<(), NotApplicable> {
    let schema = message.get("@type").and_then(Value::as_str).and_then(type_name).and_then(schema::message);
    trim(schema.ok_or(NotApplicable)?, message, paths)
}

fn trim(schema: &Message, message: &mut Value, paths: &[&str]) -> Result<(), NotApplicable> {
    // Paths by their first field; a path that ends there keeps all of it.
    let mut kept: Vec<(&str, Option<Vec<&str>>)> = Vec::new();
    for path in paths {
        let (name, rest) = path.split_once('.').map_or((*path, None), |(name, rest)| (name, Some(rest)));
        let field = schema.field(name).ok_or(NotApplicable)?;
        if rest.is_some() && (field.is_repeated() || field.message().is_none()) {
            return Err(NotApplicable);
        }
        match kept.iter_mut().find(|(other, _)| *other == field.name()) {
            Some((_, all @ Some(_))) if rest.is_none() => *all = None,
            Some((_, Some(below))) => below.extend(rest),
            Some((_, None)) => {}
            None => kept.push((field.name(), rest.map(|rest| vec![rest]))),
        }
    }
    let Some(fields) = message.as_object_mut() else { return Ok(()) };
    fields.retain(|name, _| name == "@type" || kept.iter().any(|(kept, _)| kept == name));
    for (name, below) in &kept {
        let (Some(value), Some(below)) = (fields.get_mut(*name), below) else { continue };
        match schema.field(name).and_then(|field| field.message()) {
            Some(inner) if inner.name() == "google.protobuf.Any" => trim_any(value, below)?,
            Some(inner) => trim(inner, value, below)?,
            None => return Err(NotApplicable),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn trimmed(mask: &str) -> Result<Value, NotApplicable> {
        let mut message = json!({
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
            "cluster": {
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                "name": "a",
                "connect_timeout": "1s",
                "eds_cluster_config": {"service_name": "s", "eds_config": {"ads": {}}},
            },
            "last_updated": "2026-01-01T00:00:00Z",
        });
        FieldMask::parse(mask).trim(&mut message)?;
        Ok(message)
    }

    #[test]
    fn only_the_fields_of_the_mask_are_kept() {
        let kept = trimmed("cluster.name,cluster.eds_cluster_config.service_name").unwrap();
        assert_eq!(
            kept,
            json!({
                "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
                "cluster": {
                    "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                    "name": "a",
                    "eds_cluster_config": {"service_name": "s"},
                },
            })
        );
        let whole = trimmed("cluster.name,cluster").unwrap();
        assert_eq!(whole["cluster"]["connect_timeout"], "1s");
        assert_eq!(trimmed("last_updated").unwrap().get("cluster"), None);
    }

    #[test]
    fn a_path_that_the_message_does_not_have_is_an_error() {
        for mask in ["nope", "cluster.nope", "last_updated,cluster.name.x", "cluster.transport_socket_matches.name"] {
            assert_eq!(trimmed(mask), Err(NotApplicable), "{mask}");
        }
    }
}
