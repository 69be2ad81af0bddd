//! Edits of a path's query by parameter (`KeyValueMutation`), as the header_mutation filter makes them.
//! It must not know when they act.
//!
//! As Envoy, an edited query is written anew: decoded, sorted by key, each with a `=`. Unlike Envoy, what would end a
//! value or the request line (space, control, `&`, `#`, bytes that are no ASCII) is encoded again.

use std::collections::BTreeMap;

use http::HeaderValue;
use tidegate_xds::pb::envoy::config::core::v3 as pb;
use tidegate_xds::pb::google::protobuf::value::Kind;
use tidegate_xds::{Coverage, FieldError};

use super::RequestHead;
use super::header_mutations::AppendAction;
use crate::context::CompileContext;
use crate::format::{Format, FormatContext};
use crate::matching::percent_decode;
use crate::stream_info::StreamInfo;

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage { message: "envoy.config.core.v3.KeyValueMutation", enforced: &["append", "remove"], listed: &[] },
    Coverage { message: "envoy.config.core.v3.KeyValueAppend", enforced: &["record", "action"], listed: &[] },
    Coverage { message: "envoy.config.core.v3.KeyValuePair", enforced: &["key", "value"], listed: &[] },
];

type Parameters = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// A list of edits, each seeing what the ones before it did.
#[derive(Default)]
pub(super) struct QueryEdits(Vec<QueryEdit>);

enum QueryEdit {
    Remove(Vec<u8>),
    Append { key: Vec<u8>, value: Format, action: AppendAction },
}

impl QueryEdits {
    pub(super) fn compile(
        field: &str,
        edits: &[pb::KeyValueMutation],
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let compile = |(index, edit): (usize, &pb::KeyValueMutation)| {
            context.within_item(field, index, |context| match &edit.append {
                Some(append) if edit.remove.is_empty() => {
                    context.within("append", |context| QueryEdit::compile(append, context))
                }
                None if !edit.remove.is_empty() => Ok(QueryEdit::Remove(edit.remove.as_bytes().to_vec())),
                _ => Err(context.error("either append or remove must be set")),
            })
        };
        edits.iter().enumerate().map(compile).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn apply(&self, head: &mut RequestHead, info: &StreamInfo) {
        if self.0.is_empty() || head.path.is_empty() {
            return;
        }
        let mut parameters = parse(head.query().unwrap_or_default());
        for edit in &self.0 {
            edit.apply(&mut parameters, &FormatContext { request: Some(head), ..FormatContext::of(info) });
        }
        let mut path = head.path_only().to_vec();
        write(&parameters, &mut path);
        // What is written holds nothing that could not stand in a path.
        if let Ok(path) = HeaderValue::from_bytes(&path) {
            head.path = path;
        }
    }
}

impl QueryEdit {
    fn compile(append: &pb::KeyValueAppend, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::key_value_append::KeyValueAppendAction as Action;
        let Some(record) = &append.record else { return Err(context.error_at("record", "a record is required")) };
        let Some(Kind::StringValue(value)) = record.value.as_ref().and_then(|value| value.kind.as_ref()) else {
            return Err(context.error_at("record.value", "Only string value is allowed for record value."));
        };
        let value = Format::compile_omitting_empty(value)
            .map_err(|error| context.error_at("record.value", error.to_string()))?;
        let action = match Action::try_from(append.action) {
            Ok(Action::AddIfAbsent) => AppendAction::AddIfAbsent,
            Ok(Action::OverwriteIfExistsOrAdd) => AppendAction::Overwrite,
            Ok(Action::OverwriteIfExists) => AppendAction::OverwriteIfExists,
            Ok(Action::AppendIfExistsOrAdd) | Err(_) => AppendAction::Append,
        };
        Ok(Self::Append { key: record.key.as_bytes().to_vec(), value, action })
    }

    fn apply(&self, parameters: &mut Parameters, context: &FormatContext<'_>) {
        let (key, value, action) = match self {
            Self::Remove(key) => {
                parameters.remove(key);
                return;
            }
            Self::Append { key, value, action } => (key, value, *action),
        };
        let present = parameters.contains_key(key);
        let mut text = Vec::new();
        value.render(context, &mut text);
        let value = encode(&text);
        match action {
            AppendAction::Append => parameters.entry(key.clone()).or_default().push(value),
            AppendAction::AddIfAbsent if !present => parameters.entry(key.clone()).or_default().push(value),
            AppendAction::Overwrite => drop(parameters.insert(key.clone(), vec![value])),
            AppendAction::OverwriteIfExists if present => drop(parameters.insert(key.clone(), vec![value])),
            AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
        }
    }
}

/// Everything between `&`, also what is empty.
fn parse(query: &[u8]) -> Parameters {
    let mut parameters = Parameters::new();
    for pair in query.split(|byte| *byte == b'&').filter(|_| !query.is_empty()) {
        let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        let value = pair.get(at + 1..).unwrap_or_default();
        parameters.entry(decode(&pair[..at], b"&#=")).or_default().push(decode(value, b"&#"));
    }
    parameters
}

fn write(parameters: &Parameters, path: &mut Vec<u8>) {
    let mut separator = b'?';
    for (key, values) in parameters {
        for value in values {
            path.push(separator);
            path.extend_from_slice(key);
            path.push(b'=');
            path.extend_from_slice(value);
            separator = b'&';
        }
    }
}

/// Decoded, but for what may not stand there as it is.
fn decode(text: &[u8], kept: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in percent_decode(text) {
        if byte.is_ascii_graphic() && !kept.contains(&byte) { out.push(byte) } else { escape(byte, &mut out) }
    }
    out
}

/// Everything but unreserved characters is encoded (RFC 3986, 2.3).
fn encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text {
        let unreserved = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        if unreserved { out.push(byte) } else { escape(byte, &mut out) }
    }
    out
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("%{byte:02X}").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(query: &str) -> String {
        let mut path = b"/p".to_vec();
        write(&parse(query.as_bytes()), &mut path);
        String::from_utf8(path).unwrap()
    }

    /// Measured on Envoy 1.40, but for the last two.
    #[test]
    fn an_edited_query_is_sorted_and_decoded() {
        assert_eq!(rewritten(""), "/p");
        assert_eq!(rewritten("z=1&a=%2F+z&flag&b=1&%62=2"), "/p?a=/+z&b=1&b=2&flag=&z=1");
        assert_eq!(rewritten("=empty&&x=%zz&y=%41=%42"), "/p?=empty&=&x=%zz&y=A=B");
        assert_eq!(rewritten("a=%20b%0d%0a&%3d=c"), "/p?%3D=c&a=%20b%0D%0A");
        assert_eq!(rewritten("x=a%26b%3Dc&y=%C3%A9#"), "/p?x=a%26b=c&y=%C3%A9%23");
    }

    #[test]
    fn values_that_are_set_are_encoded() {
        assert_eq!(encode(b"h&i b/c"), b"h%26i%20b%2Fc");
    }
}
