//! A configuration text without a schema: its values, and where they stand. It must not know what they are for.

use serde_json::{Map, Number, Value as Json};

use crate::decode::{Format, parse};
use crate::document::{Document, MAX_DEPTH, NodeId, SourceMap, Value};
use crate::{FieldError, FieldPath};

/// What a text holds.
#[derive(Debug)]
pub struct Plain {
    pub value: Json,
    /// What can be read, but is hardly meant so: keys that occur twice, documents that nobody reads.
    pub doubts: Vec<FieldError>,
    /// Where each value stands in the text.
    pub source: SourceMap,
}

/// Reads the first document of a text for a schema that is not Envoy's.
///
/// # Errors
/// A text that cannot be read.
pub fn plain(text: &[u8], format: Format) -> Result<Plain, FieldError> {
    let mut document = parse(text, format)?;
    let mut budget = document.budget();
    let value = value(&document, document.root(), 0, &mut budget)?;
    let doubts = document.take_doubts();
    Ok(Plain { value, doubts, source: SourceMap::new(document) })
}

fn value(document: &Document, id: NodeId, depth: usize, budget: &mut usize) -> Result<Json, FieldError> {
    let node = document.node(id);
    let fail = |reason: &str| Err(FieldError::new(FieldPath::root(), reason).at(Some(node.location)));
    let cost = match &node.value {
        Value::Text(text) | Value::Number(text) => 8 + text.len(),
        _ => 8,
    };
    match budget.checked_sub(cost) {
        Some(left) => *budget = left,
        None => return fail("aliases make the text too large"),
    }
    if depth > MAX_DEPTH {
        return fail("nested too deeply");
    }
    Ok(match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(text) => text.parse::<Number>().map_or_else(|_| Json::String(text.clone()), Json::Number),
        Value::Text(text) => Json::String(text.clone()),
        Value::List(items) => {
            let items = items.iter().map(|item| value(document, *item, depth + 1, budget));
            Json::Array(items.collect::<Result<_, _>>()?)
        }
        Value::Object(entries) => {
            let mut object = Map::with_capacity(entries.len());
            for (key, item) in entries {
                object.insert(key.name.clone(), value(document, *item, depth + 1, budget)?);
            }
            Json::Object(object)
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_have_their_types_and_places() {
        let text = b"a: 1\nb: [yes, 'yes', 1.5, ~]\nc: &x {d: text}\ne: *x\n";
        let plain = plain(text, Format::Yaml).unwrap();
        let expected = json!({"a": 1, "b": [true, "yes", "1.5", null], "c": {"d": "text"}, "e": {"d": "text"}});
        assert_eq!(plain.value, expected);
        let place = plain.source.locate(&FieldPath::root().field("c").key("d")).unwrap();
        assert_eq!((place.line, place.column), (3, 8));
    }

    #[test]
    fn aliases_cannot_make_it_endless() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let again = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("a{level}: &a{level} [{again}]\n");
        }
        let error = plain(text.as_bytes(), Format::Yaml).unwrap_err();
        assert_eq!(error.reason, "aliases make the text too large");
        assert!(plain(b"{", Format::Json).is_err());
    }

    #[test]
    fn keys_that_occur_twice_are_doubted() {
        let plain = plain(b"a: 1\na: 2\n", Format::Yaml).unwrap();
        assert_eq!((plain.value, plain.doubts.len()), (json!({"a": 2}), 1));
    }
}
