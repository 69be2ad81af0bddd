//! The JSON Schema of the short form, for editors: made from the types that read it. It must not know a field by name.

use serde_json::{Value, json};

use super::form::File;
use super::shape::{Definitions, Shape};

/// The records of the short form, each as a JSON Schema; `x-without` says in words what is so without a field.
pub(super) fn records() -> Definitions {
    let mut definitions = Definitions::new();
    File::schema(&mut definitions);
    definitions
}

/// The JSON Schema of a file.
pub fn schema() -> Value {
    let mut definitions = records();
    definitions.values_mut().for_each(tell_what_is_without);
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tidegate's short form",
    });
    let file = definitions.remove("File");
    if let (Some(schema), Some(Value::Object(mut file))) = (schema.as_object_mut(), file) {
        schema.append(&mut file);
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    schema
}

/// Editors show descriptions only.
fn tell_what_is_without(record: &mut Value) {
    for field in record["properties"].as_object_mut().into_iter().flat_map(|fields| fields.values_mut()) {
        let Some(without) = field.as_object_mut().and_then(|field| field.remove("x-without")) else { continue };
        let about = field["description"].as_str().unwrap_or_default();
        field["description"] = json!(format!("{about} Without it: {}.", without.as_str().unwrap_or_default()));
    }
}
