//! Configuration text to protobuf bytes of a named message, with all that Envoy's loader tolerates.
//! It must not know what a field means, nor whether its value makes sense: `validate` checks that.

mod encoder;
mod number;
mod scalar;
mod suggest;
#[cfg(test)]
mod tests;
mod well_known;

use crate::{
    FieldError, FieldPath, Location,
    document::{Document, SourceMap, Value},
    error::Trail,
    json, schema, yaml,
};
use encoder::Encoder;
pub use suggest::nearest;

/// How the text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Yaml,
    Json,
}

impl Format {
    /// As Envoy chooses it: `.json` is JSON, all else is YAML.
    pub fn of_path(path: &std::path::Path) -> Self {
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("json") => Self::Json,
            _ => Self::Yaml,
        }
    }
}

/// What to do with fields and enum names that the schema does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownFields {
    /// They are errors: Envoy's default for static configuration.
    #[default]
    Reject,
    /// They are left out and returned in [`Decoded::unknown`]: Envoy's default for dynamic configuration.
    Collect,
}

/// A decoded message.
#[derive(Debug)]
pub struct Decoded {
    /// The message on the wire.
    pub bytes: Vec<u8>,
    /// What [`UnknownFields::Collect`] left out.
    pub unknown: Vec<FieldError>,
    /// What can be read, but is hardly meant so: keys that occur twice, documents that nobody reads.
    pub doubts: Vec<FieldError>,
    /// Where each field stands in the text.
    pub source: SourceMap,
}

/// Decodes the first document of `text` as the message of this full name, e.g. `envoy.config.bootstrap.v3.Bootstrap`.
///
/// # Errors
/// All that is wrong, each with its field and its place in the text.
pub fn decode(
    message: &str,
    text: &[u8],
    format: Format,
    unknown_fields: UnknownFields,
) -> Result<Decoded, Vec<FieldError>> {
    let fail = |reason: String| vec![FieldError::new(FieldPath::root(), reason)];
    let schema = schema::message(message).ok_or_else(|| fail(format!("`{message}` is not a known message")))?;
    let mut document = parse(text, format).map_err(|error| vec![error])?;

    let mut encoder = Encoder::new(&document, unknown_fields);
    let mut bytes = Vec::new();
    encoder.message(schema, document.root(), &mut bytes, &Trail::ROOT, 0);
    let (errors, unknown) = encoder.finish();
    if !errors.is_empty() {
        return Err(errors);
    }
    let doubts = document.take_doubts();
    Ok(Decoded { bytes, unknown, doubts, source: SourceMap::new(document) })
}

fn not_utf8(text: &[u8], good: usize) -> FieldError {
    let before = text.get(..good).unwrap_or_default();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    let characters = before.iter().skip(start).filter(|byte| (**byte as i8) >= -0x40).count();
    let location = Location { line: number(lines + 1), column: number(characters + 1) };
    let reason = format!("not UTF-8 text (byte {good})");
    FieldError::new(FieldPath::root(), reason).at(Some(location))
}

/// The keys of the object that the first document of `text` is, in their order; none where it is something else.
///
/// # Errors
/// A text that cannot be read.
pub fn root_keys(text: &[u8], format: Format) -> Result<Vec<String>, FieldError> {
    let document = parse(text, format)?;
    Ok(match &document.node(document.root()).value {
        Value::Object(entries) => entries.iter().map(|(key, _)| key.name.clone()).collect(),
        _ => Vec::new(),
    })
}

pub(crate) fn parse(text: &[u8], format: Format) -> Result<Document, FieldError> {
    let text = std::str::from_utf8(text).map_err(|error| not_utf8(text, error.valid_up_to()))?;
    match format {
        Format::Yaml => yaml::parse(text),
        Format::Json => json::parse(text),
    }
}

/// Merges `overlay` over `base`, two messages of one type, as protobuf's `MergeFrom` does: scalars are replaced, lists
/// appended, messages merged. This is how `--config-yaml` is laid over the configuration file.
pub fn merge(base: &mut Vec<u8>, overlay: &[u8]) {
    // The wire format defines a message's bytes after another's to mean exactly this.
    base.extend_from_slice(overlay);
}
