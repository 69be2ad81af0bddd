//! As much of JSON Schema as the short form's schema uses. A word that it does not know is a fault, so that none goes unchecked.

use serde_json::Value;

/// What is wrong with a value.
pub(super) fn faults(root: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(root, root, value, "", &mut found);
    found
}

fn matches(root: &Value, schema: &Value, value: &Value) -> bool {
    let mut found = Vec::new();
    check(root, schema, value, "", &mut found);
    found.is_empty()
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let mut fail = |word: &str| found.push(format!("{at}: {word}: {value}"));
    let object = value.as_object();
    let mut within: Vec<(String, &Value, &Value)> = Vec::new();
    for (word, rule) in schema.as_object().unwrap() {
        let list = || rule.as_array().unwrap();
        let holds = match word.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" | "x-without" => true,
            "$ref" => {
                within.push((
                    at.to_owned(),
                    root.pointer(rule.as_str().unwrap().trim_start_matches('#')).unwrap(),
                    value,
                ));
                true
            }
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_u64(),
                other => panic!("type {other}"),
            },
            "properties" => {
                for (name, of) in rule.as_object().unwrap() {
                    within.extend(object.and_then(|it| it.get(name)).map(|value| (format!("{at}.{name}"), of, value)));
                }
                true
            }
            "additionalProperties" => {
                let own = schema["properties"].as_object();
                let more =
                    object.into_iter().flatten().filter(|(name, _)| !own.is_some_and(|own| own.contains_key(*name)));
                let more: Vec<_> = more.collect();
                if rule.is_object() {
                    within.extend(more.iter().map(|(name, value)| (format!("{at}.{name}"), rule, *value)));
                }
                rule.is_object() || more.is_empty()
            }
            "propertyNames" => {
                object.into_iter().flatten().all(|(name, _)| matches(root, rule, &Value::from(name.as_str())))
            }
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                within.extend(items.map(|(index, item)| (format!("{at}[{index}]"), rule, item)));
                true
            }
            "required" => list().iter().all(|name| object.is_none_or(|it| it.contains_key(name.as_str().unwrap()))),
            "dependentRequired" => rule.as_object().unwrap().iter().all(|(name, needs)| {
                let needed = || needs.as_array().unwrap().iter().map(|need| need.as_str().unwrap());
                object.is_none_or(|it| !it.contains_key(name) || needed().all(|need| it.contains_key(need)))
            }),
            "enum" => list().contains(value),
            "const" => rule == value,
            "minimum" => value.as_u64().is_none_or(|value| value >= rule.as_u64().unwrap()),
            "maximum" => value.as_u64().is_none_or(|value| value <= rule.as_u64().unwrap()),
            "minLength" => value.as_str().is_none_or(|value| value.len() as u64 >= rule.as_u64().unwrap()),
            "format" => *rule == "regex" && value.as_str().is_none_or(|value| regex::Regex::new(value).is_ok()),
            "pattern" => {
                let regex = regex::Regex::new(rule.as_str().unwrap()).unwrap();
                value.as_str().is_none_or(|value| regex.is_match(value))
            }
            "anyOf" => list().iter().any(|way| matches(root, way, value)),
            "oneOf" => list().iter().filter(|way| matches(root, way, value)).count() == 1,
            "allOf" => list().iter().all(|way| matches(root, way, value)),
            "not" => !matches(root, rule, value),
            other => panic!("`{other}` is not checked"),
        };
        if !holds {
            fail(word);
        }
    }
    for (at, schema, value) in within {
        check(root, schema, value, &at, found);
    }
}

/// Tells each field of a record that a value has.
pub(super) fn visit(root: &Value, value: &Value, tell: &mut dyn FnMut(&str, &str)) {
    go(root, root, value, tell);
}

fn go(root: &Value, schema: &Value, value: &Value, tell: &mut dyn FnMut(&str, &str)) {
    if let Some(reference) = schema["$ref"].as_str() {
        let record = root.pointer(reference.trim_start_matches('#')).unwrap();
        let name = reference.rsplit('/').next().unwrap();
        for (field, value) in value.as_object().into_iter().flatten() {
            tell(name, field);
            go(root, &record["properties"][field], value, tell);
        }
    }
    if let Some(ways) = schema["anyOf"].as_array() {
        ways.iter().filter(|way| matches(root, way, value)).for_each(|way| go(root, way, value, tell));
    }
    for item in value.as_array().into_iter().flatten() {
        go(root, &schema["items"], item, tell);
    }
    if schema["additionalProperties"].is_object() {
        for (_, value) in value.as_object().into_iter().flatten() {
            go(root, &schema["additionalProperties"], value, tell);
        }
    }
}
