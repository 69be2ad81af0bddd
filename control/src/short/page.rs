//! The documentation of the short form's fields, in Markdown: made from the types that read it. It must not know a field by
//! name.

use std::fmt::Write;

use serde_json::Value;

use super::schema::records;

/// A table for each record, in the order in which one leads to the next.
pub fn page() -> String {
    let records = records();
    let mut order = vec!["File"];
    let mut next = 0;
    while let Some(name) = order.get(next).copied() {
        next += 1;
        let named = records.get(name).map(references).unwrap_or_default();
        for (known, _) in records.iter().filter(|(known, _)| named.contains(known)) {
            if !order.contains(&known.as_str()) {
                order.push(known);
            }
        }
    }
    let mut page = String::new();
    for name in order {
        let Some(record) = records.get(name) else { continue };
        let required: Vec<&str> =
            record["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        // Writing to a String cannot fail.
        let _ = write!(page, "### {name}\n\n{}\n\n", text(&record["description"]));
        page += "| field | value | default | what it is for |\n|---|---|---|---|\n";
        for (field, of) in record["properties"].as_object().into_iter().flatten() {
            let default = match (&of["default"], of["x-without"].as_str()) {
                _ if required.contains(&field.as_str()) => "required".to_owned(),
                (Value::Null, without) => without.unwrap_or_default().to_owned(),
                (default, _) => code(default),
            };
            let cells = [format!("`{field}`"), value(of), default, text(&of["description"]).to_owned()];
            let _ = writeln!(page, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
        page.push('\n');
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A value as it is written.
fn code(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "empty".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(items) => items.iter().map(code).collect::<Vec<_>>().join(", "),
        other => format!("`{other}`"),
    }
}

/// What may stand in a field.
fn value(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return format!("[{reference}](#{})", reference.to_ascii_lowercase());
    }
    if let Some(title) = schema["title"].as_str() {
        return title.to_owned();
    }
    if let Some(ways) = schema["anyOf"].as_array() {
        return ways.iter().map(value).collect::<Vec<_>>().join("; or ");
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(code).collect::<Vec<_>>().join(", ");
    }
    if !schema["const"].is_null() {
        return code(&schema["const"]);
    }
    match text(&schema["type"]) {
        "array" => format!("a list: {}", value(&schema["items"])),
        "object" => format!("by name: {}", value(&schema["additionalProperties"])),
        "integer" => format!("{} to {}", schema["minimum"], schema["maximum"]),
        "boolean" => "`true` or `false`".to_owned(),
        _ => "text".to_owned(),
    }
}

/// The records that a schema refers to.
fn references(schema: &Value) -> Vec<String> {
    match schema {
        Value::Object(object) => {
            let own = object.get("$ref").and_then(Value::as_str).and_then(|reference| reference.rsplit('/').next());
            own.map(str::to_owned).into_iter().chain(object.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}
