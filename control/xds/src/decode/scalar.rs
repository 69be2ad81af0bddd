//! Scalar values and map keys of a document to fields on the wire. It must not know messages.

use crate::{
    FieldError,
    decode::{encoder::Encoder, number, suggest},
    document::{NodeId, Value},
    error::Trail,
    schema::{Enum, Field, Kind},
    wire,
};

impl Encoder<'_> {
    /// Appends a field whose value is not null. A zero is left out where the schema cannot tell it from "not set".
    pub(super) fn scalar(&mut self, field: &'static Field, node: NodeId, out: &mut Vec<u8>, trail: &Trail<'_>) {
        let keep_zero = field.has_presence() || field.is_repeated();
        let result = match field.kind {
            Kind::Enum => match field.enumeration() {
                Some(of) => self.enumeration(of, node, trail).map(|value| {
                    // An enum value that is not known is left out.
                    value.map(|value| put_integer(out, field, i128::from(value), keep_zero)).unwrap_or_default()
                }),
                None => Ok(()),
            },
            Kind::Bool => self.boolean(node).map(|value| put_integer(out, field, i128::from(value), keep_zero)),
            Kind::Double | Kind::Float => self.float(field, node).map(|value| put_float(out, field, value, keep_zero)),
            Kind::String => self.text(node).map(|text| put_bytes(out, field, text.as_bytes(), keep_zero)),
            Kind::Bytes => self.bytes(node).map(|bytes| put_bytes(out, field, &bytes, keep_zero)),
            // Messages do not come here.
            Kind::Message => Ok(()),
            _ => self.integer(field, node).map(|value| put_integer(out, field, value, keep_zero)),
        };
        if let Err(reason) = result {
            self.fail(node, trail, reason);
        }
    }

    /// A map's key, which JSON always writes as text.
    pub(super) fn map_key(
        &mut self,
        field: &'static Field,
        key: &str,
        node: NodeId,
        out: &mut Vec<u8>,
        trail: &Trail<'_>,
    ) {
        let result = match field.kind {
            Kind::String => return put_bytes(out, field, key.as_bytes(), false),
            Kind::Bool => match key {
                "true" => Ok(1),
                "false" => Ok(0),
                _ => Err("expected `true` or `false` as the key".to_owned()),
            },
            _ => {
                let (lowest, highest) = bounds(field.kind);
                number::integer(key, lowest, highest)
            }
        };
        match result {
            Ok(value) => put_integer(out, field, value, false),
            Err(reason) => self.fail(node, trail, reason),
        }
    }

    fn text(&self, node: NodeId) -> Result<&str, String> {
        match &self.document.node(node).value {
            Value::Text(text) => Ok(text),
            found @ (Value::Bool(_) | Value::Number(_)) => {
                Err(format!("expected a string, found {}; put it in quotes", found.describe()))
            }
            other => Err(format!("expected a string, found {}", other.describe())),
        }
    }

    fn bytes(&self, node: NodeId) -> Result<Vec<u8>, String> {
        base64(self.text(node)?.as_bytes()).ok_or_else(|| "expected bytes in base64".to_owned())
    }

    fn boolean(&self, node: NodeId) -> Result<bool, String> {
        match &self.document.node(node).value {
            Value::Bool(value) => Ok(*value),
            Value::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "t" | "yes" | "y" | "1" => Ok(true),
                "false" | "f" | "no" | "n" | "0" => Ok(false),
                _ => Err(format!("expected true or false, found {text:?}")),
            },
            other => Err(format!("expected true or false, found {}", other.describe())),
        }
    }

    fn integer(&self, field: &'static Field, node: NodeId) -> Result<i128, String> {
        let (lowest, highest) = bounds(field.kind);
        match &self.document.node(node).value {
            Value::Number(text) | Value::Text(text) => number::integer(text, lowest, highest),
            other => Err(format!("expected an integer, found {}", other.describe())),
        }
    }

    fn float(&self, field: &'static Field, node: NodeId) -> Result<f64, String> {
        let (Value::Number(text) | Value::Text(text)) = &self.document.node(node).value else {
            return Err(format!("expected a number, found {}", self.document.node(node).value.describe()));
        };
        let value = number::float(text).ok_or_else(|| format!("expected a number, found {text:?}"))?;
        if field.kind == Kind::Float && value.is_finite() && !(value as f32).is_finite() {
            return Err(format!("{text} is out of range"));
        }
        Ok(value)
    }

    /// An enum value by name in any case, or by number; `None` where an unknown one is to be left out.
    fn enumeration(&mut self, of: &'static Enum, node: NodeId, trail: &Trail<'_>) -> Result<Option<i32>, String> {
        let number = |text: &str| number::integer(text, i128::from(i32::MIN), i128::from(i32::MAX));
        let document = self.document;
        match &document.node(node).value {
            Value::Number(text) => number(text).map(|value| i32::try_from(value).ok()),
            Value::Text(text) => {
                if let Some(value) = of.values().iter().find(|value| value.name().eq_ignore_ascii_case(text)) {
                    return Ok(Some(value.number));
                }
                if let Ok(value) = text.trim().parse::<i32>() {
                    return Ok(Some(value));
                }
                self.unknown(|| {
                    let reason = suggest::unknown_value(of, text);
                    FieldError::new(trail.path(), reason).at(Some(document.node(node).location))
                });
                Ok(None)
            }
            other => Err(format!("expected a value of {}, found {}", of.name(), other.describe())),
        }
    }
}

fn bounds(kind: Kind) -> (i128, i128) {
    match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => (i128::from(i32::MIN), i128::from(i32::MAX)),
        Kind::Uint32 | Kind::Fixed32 => (0, i128::from(u32::MAX)),
        Kind::Uint64 | Kind::Fixed64 => (0, i128::from(u64::MAX)),
        _ => (i128::from(i64::MIN), i128::from(i64::MAX)),
    }
}

/// Writes an integer that is within the bounds of the field's type.
fn put_integer(out: &mut Vec<u8>, field: &Field, value: i128, keep_zero: bool) {
    if value == 0 && !keep_zero {
        return;
    }
    // Two's complement of 64 bits is what the wire has for negative numbers of any width.
    let bits = value as u64;
    match field.kind {
        Kind::Sint32 | Kind::Sint64 => {
            let signed = value as i64;
            wire::put_varint_field(out, field.number, ((signed << 1) ^ (signed >> 63)) as u64);
        }
        Kind::Fixed64 | Kind::Sfixed64 => wire::put_fixed64_field(out, field.number, bits.to_le_bytes()),
        Kind::Fixed32 | Kind::Sfixed32 => wire::put_fixed32_field(out, field.number, (bits as u32).to_le_bytes()),
        _ => wire::put_varint_field(out, field.number, bits),
    }
}

pub(super) fn put_float(out: &mut Vec<u8>, field: &Field, value: f64, keep_zero: bool) {
    // Negative zero is not the default.
    if value.to_bits() == 0 && !keep_zero {
        return;
    }
    if field.kind == Kind::Float {
        wire::put_fixed32_field(out, field.number, (value as f32).to_le_bytes());
    } else {
        wire::put_fixed64_field(out, field.number, value.to_le_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, field: &Field, value: &[u8], keep_empty: bool) {
    if !value.is_empty() || keep_empty {
        wire::put_bytes_field(out, field.number, value);
    }
}

/// Either alphabet, padding or none.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = match text {
        [inner @ .., b'=', b'='] | [inner @ .., b'='] if text.len().is_multiple_of(4) => inner,
        _ => text,
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut bits = 0u32;
        for byte in chunk {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let [_, first, second, third] = (bits << (6 * (4 - chunk.len()))).to_be_bytes();
        match chunk.len() {
            4 => out.extend([first, second, third]),
            3 => out.extend([first, second]),
            2 => out.push(first),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_of_either_alphabet_is_read() {
        assert_eq!(base64(b"aGVsbG8=").as_deref(), Some(&b"hello"[..]));
        assert_eq!(base64(b"aGVsbG8").as_deref(), Some(&b"hello"[..]));
        assert_eq!(base64(b"_-8="), base64(b"/+8="));
        assert_eq!(base64(b""), Some(Vec::new()));
        assert_eq!(base64(b"a"), None);
        assert_eq!(base64(b"a b="), None);
        assert_eq!(base64(b"===="), None);
    }
}
