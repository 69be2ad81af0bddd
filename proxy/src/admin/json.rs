//! JSON as protobuf writes it: objects without their defaults, 64-bit numbers and durations as text, one space of indent.
//! It must not know what it describes.

use std::time::Duration;

use serde_json::{Map, Value};

/// An object that leaves out what is at its default: false, 0, "", empty lists and nulls.
#[derive(Default)]
pub(super) struct Object(Map<String, Value>);

impl Object {
    pub(super) fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let is_default = match &value {
            Value::Null => true,
            Value::Bool(set) => !set,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(_) => false,
        };
        if !is_default {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    /// A 64-bit number, which JSON's readers may not hold: text.
    pub(super) fn set_u64(self, name: &str, value: u64) -> Self {
        self.set(name, if value == 0 { String::new() } else { value.to_string() })
    }

    /// Shown whatever its value.
    pub(super) fn always(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object.0)
    }
}

/// `1.5s`.
pub(super) fn duration(value: Duration) -> String {
    let nanos = value.subsec_nanos();
    let seconds = value.as_secs();
    match nanos {
        0 => format!("{seconds}s"),
        _ if nanos.is_multiple_of(1_000_000) => format!("{seconds}.{:03}s", nanos / 1_000_000),
        _ if nanos.is_multiple_of(1_000) => format!("{seconds}.{:06}s", nanos / 1_000),
        _ => format!("{seconds}.{nanos:09}s"),
    }
}

pub(super) fn pretty(value: &Value) -> String {
    let mut text = String::new();
    push_pretty(&mut text, value, 0);
    text.push('\n');
    text
}

fn push_pretty(out: &mut String, value: &Value, depth: usize) {
    let line = |out: &mut String, first: bool, depth: usize| {
        out.push_str(if first { "\n" } else { ",\n" });
        out.extend(std::iter::repeat_n(' ', depth));
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                line(out, index == 0, depth + 1);
                push_pretty(out, item, depth + 1);
            }
            line(out, true, depth);
            out.push(']');
        }
        Value::Object(fields) if !fields.is_empty() => {
            out.push('{');
            for (index, (name, field)) in fields.iter().enumerate() {
                line(out, index == 0, depth + 1);
                push_string(out, name);
                out.push_str(": ");
                push_pretty(out, field, depth + 1);
            }
            line(out, true, depth);
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// Appends text as a JSON string.
pub(super) fn push_string(out: &mut String, text: &str) {
    out.push_str(&Value::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_left_out() {
        let object =
            Object::default().set("a", 0).set("b", "").set("c", false).set("d", 1).set_u64("e", 5).set_u64("f", 0);
        assert_eq!(Value::from(object.always("g", 0)).to_string(), r#"{"d":1,"e":"5","g":0}"#);
    }

    #[test]
    fn layout_is_that_of_protobuf() {
        assert_eq!(
            pretty(&serde_json::json!({"a": [], "b": {"c": [1]}})),
            "{\n \"a\": [],\n \"b\": {\n  \"c\": [\n   1\n  ]\n }\n}\n"
        );
        assert_eq!(pretty(&serde_json::json!({})), "{}\n");
    }

    #[test]
    fn durations_have_as_many_digits_as_they_need() {
        assert_eq!(duration(Duration::from_secs(600)), "600s");
        assert_eq!(duration(Duration::from_millis(1500)), "1.500s");
        assert_eq!(duration(Duration::from_nanos(1_000)), "0.000001s");
    }
}
