//! JSON as YAML that a person reads: blocks, and quotes where they are needed. It must not know what the values are for.

use serde_json::Value;

/// A value as YAML, with a line break at its end.
pub fn yaml(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

/// A value that begins where the text ends.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (index, (name, value)) in object.iter().enumerate() {
                if index > 0 {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str(&scalar(name));
                out.push(':');
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        out.push_str(&" ".repeat(indent + 2));
                        block(value, indent + 2, out);
                    }
                    // As people write them: items below their name, not within it.
                    Value::Array(inner) if !inner.is_empty() => {
                        out.push('\n');
                        out.push_str(&" ".repeat(indent));
                        block(value, indent, out);
                    }
                    other => {
                        out.push(' ');
                        block(other, indent, out);
                    }
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str("- ");
                block(item, indent + 2, out);
            }
        }
        Value::String(text) => {
            out.push_str(&scalar(text));
            out.push('\n');
        }
        // Numbers, booleans, null, `{}` and `[]` are the same in both.
        other => {
            out.push_str(&other.to_string());
            out.push('\n');
        }
    }
}

/// Text, in quotes where it could be taken for anything else. JSON's are YAML's.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic() || "_/.".contains(c)) && text.chars().all(plain);
    let words = ["y", "yes", "n", "no", "on", "off", "true", "false", "null", ".inf", ".nan"];
    let means_more = words.iter().any(|word| text.eq_ignore_ascii_case(word));
    // A duration is the one text that begins with a digit and means no number.
    let is_duration = text.len() > 1
        && text
            .strip_suffix('s')
            .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
    if (is_word || is_duration) && !means_more { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidegate_xds::{Format, plain};

    use super::*;

    #[test]
    fn it_is_read_as_it_was() {
        let value = json!({
            "resources": [
                {"@type": "type.googleapis.com/x", "name": "yes", "list": [[1, 2], [], {}], "empty": {}},
                {"a": {"b": [{"c": "1"}, "text: more", "", "-", "# no", "a\nb", "15s", ".5s", "s", "0.250s", "*"]}},
            ],
            "other": [true, null, -1, "127.0.0.1", "é", "~", "0x1", ".5", "[", "a b"],
        });
        let text = yaml(&value);
        assert_eq!(plain(text.as_bytes(), Format::Yaml).unwrap().value, value, "{text}");
        assert!(text.starts_with("resources:\n- \"@type\": type.googleapis.com/x\n  name: \"yes\"\n"), "{text}");
    }
}
