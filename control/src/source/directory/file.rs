//! One file of resources. It must not know which others there are.

use std::path::Path;
use std::sync::Arc;

use prost::Name;
use serde_json::Value;
use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{
    Decoded, FieldError, FieldPath, Format, Location, Plain, UnknownFields, any, decode, load, plain, root_keys,
};

use crate::server::{Resource, ResourceSet};
use crate::short::{self, Outside, Parsed, Part};

/// What a file holds.
#[derive(Debug)]
pub(in crate::source) enum Held {
    Resources(Vec<Arc<Resource>>),
    /// It is of the short form; what it names may stand in other files.
    Short(Box<Parsed>),
}

/// The nodes of a group.
pub(super) fn node(name: &str, path: &Path, text: &[u8]) -> Result<Node, Vec<String>> {
    let loaded = load::<Node>(text, Format::of_path(path), UnknownFields::Reject);
    loaded.map(|loaded| loaded.message).map_err(|errors| told(name, errors))
}

/// What a file holds: a list of resources, one, or the short form. `name` is what the file is called in errors.
pub(in crate::source) fn held(name: &Arc<str>, path: &Path, text: &[u8]) -> Result<Held, Vec<String>> {
    let format = Format::of_path(path);
    let read = || {
        let keys = root_keys(text, format).map_err(|error| vec![error])?;
        if keys.iter().any(|key| key == short::KEY) {
            return Parsed::read(name, text, format).map(|parsed| Held::Short(Box::new(parsed)));
        }
        self::resources(name, &keys, format, text).map(Held::Resources)
    };
    read().map_err(|errors| told(name, errors))
}

/// What a file that stands alone says; whoever takes the resources checks what they name.
pub(in crate::source) fn alone(name: &Arc<str>, path: &Path, text: &[u8]) -> Result<Vec<Arc<Resource>>, Vec<String>> {
    match held(name, path, text)? {
        Held::Resources(resources) => Ok(resources),
        Held::Short(file) => {
            short::expand(&[Part { file: &file, of_group: false }], &Outside::Unknown, &ResourceSet::default())
        }
    }
}

/// The one resource that a text says with its `@type`.
pub(in crate::source) fn one(name: &Arc<str>, path: &Path, text: &[u8]) -> Result<Arc<Resource>, Vec<String>> {
    let format = Format::of_path(path);
    let read = || {
        let keys = root_keys(text, format).map_err(|error| vec![error])?;
        if !keys.iter().any(|key| key == "@type") {
            return Err(vec![FieldError::new(FieldPath::root(), "expected one resource with its `@type`".to_owned())]);
        }
        typed(name, format, text)
    };
    read().map_err(|errors| told(name, errors))
}

fn typed(name: &Arc<str>, format: Format, text: &[u8]) -> Result<Arc<Resource>, Vec<FieldError>> {
    let Decoded { bytes, source, .. } = decode("google.protobuf.Any", text, format, UnknownFields::Reject)?;
    let body: Any = any::decode(&bytes, &FieldPath::root()).map_err(|error| vec![error])?;
    Ok(Arc::new(Resource::read_in(body, name, &source, &FieldPath::root())?))
}

fn resources(
    name: &Arc<str>,
    keys: &[String],
    format: Format,
    text: &[u8],
) -> Result<Vec<Arc<Resource>>, Vec<FieldError>> {
    if keys.iter().any(|key| key == "@type") {
        return Ok(vec![typed(name, format, text)?]);
    }
    if keys.is_empty() {
        let Plain { value, source, .. } = plain(text, format).map_err(|error| vec![error])?;
        let found = match value {
            Value::Null | Value::Object(_) => return Ok(Vec::new()),
            Value::Array(_) => "a list",
            Value::String(_) => "text",
            Value::Number(_) => "a number",
            Value::Bool(_) => "a boolean",
        };
        return Err(unexpected(found, source.locate(&FieldPath::root())));
    }
    let other = |key: &&String| !["resources", "version_info", "versionInfo"].contains(&key.as_str());
    if let Some(key) = keys.iter().find(other) {
        let place = plain(text, format).ok().and_then(|plain| plain.source.locate(&FieldPath::root().field(key)));
        return Err(unexpected(&format!("`{key}`"), place));
    }
    // The schema's rules are left to each resource, which knows its name.
    let Decoded { bytes, source, .. } = decode(&DiscoveryResponse::full_name(), text, format, UnknownFields::Reject)?;
    let response: DiscoveryResponse = any::decode(&bytes, &FieldPath::root()).map_err(|error| vec![error])?;
    // An empty list says that there are none; a name with nothing after it was hardly meant so.
    if response.resources.is_empty()
        && let Ok(Plain { value, source, .. }) = plain(text, format)
        && value.get("resources").is_none_or(Value::is_null)
    {
        let found = if value.get("resources").is_some() { "`resources` with nothing in it" } else { "none of them" };
        return Err(unexpected(found, source.locate(&FieldPath::root().field("resources"))));
    }
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for (index, body) in response.resources.into_iter().enumerate() {
        let path = FieldPath::root().field("resources").index(index);
        match Resource::read_in(body, name, &source, &path) {
            Ok(resource) => found.push(Arc::new(resource)),
            Err(wrong) => errors.extend(wrong),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

fn unexpected(found: &str, place: Option<Location>) -> Vec<FieldError> {
    let reason = format!(
        "expected `resources`, one resource with its `@type`, or the short form with `tidegate: v1`; found {found}"
    );
    vec![FieldError::new(FieldPath::root(), reason).at(place)]
}

/// `file:line: what`
fn told(name: &str, errors: Vec<FieldError>) -> Vec<String> {
    let line = |mut error: FieldError| match error.location.take() {
        Some(location) => format!("{name}:{}: {error}", location.line),
        None => format!("{name}: {error}"),
    };
    errors.into_iter().map(line).collect()
}
