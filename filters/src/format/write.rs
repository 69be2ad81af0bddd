//! Small writers of text and JSON into a byte buffer, without allocation.
//! They must not know what they write.

use serde_json::Value;

/// Appends a number in decimal.
pub(super) fn unsigned(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a number in decimal.
pub(super) fn signed(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a number, filled with `pad` on its left up to `width`.
pub(super) fn padded(out: &mut Vec<u8>, number: u64, width: usize, pad: u8) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number).as_bytes();
    out.resize(out.len() + width.saturating_sub(digits.len()), pad);
    out.extend_from_slice(digits);
}

/// Appends a string as JSON.
pub(super) fn json_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.extend_from_slice(text);
    escape_from(out, start);
    out.push(b'"');
}

/// Escapes what was written since `start`, to stand inside a JSON string.
///
/// Text that is not UTF-8 is taken as Latin-1 and its every unusual byte becomes `\u00..`, as in Envoy.
pub(super) fn escape_from(out: &mut Vec<u8>, start: usize) {
    let unusual = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\' || byte >= 0x7f;
    let written = &out[start..];
    let Some(first) = written.iter().position(|byte| unusual(*byte)) else { return };
    let is_text = std::str::from_utf8(written).is_ok();
    let rest = out.split_off(start + first);
    for byte in rest {
        let short = match byte {
            _ if !is_text && unusual(byte) => None,
            b'"' | b'\\' => Some(byte),
            b'\n' => Some(b'n'),
            b'\t' => Some(b't'),
            b'\r' => Some(b'r'),
            0x08 => Some(b'b'),
            0x0c => Some(b'f'),
            0..0x20 => None,
            other => {
                out.push(other);
                continue;
            }
        };
        match short {
            Some(letter) => out.extend_from_slice(&[b'\\', letter]),
            None => {
                let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble & 15)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte)]);
            }
        }
    }
}

/// Appends a JSON value with sorted keys, as Envoy prints a `google.protobuf.Struct`.
pub(crate) fn json_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        // Every number of a Struct is a double.
        Value::Number(number) => double(out, number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => json_string(out, text.as_bytes()),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json_value(out, item);
            }
            out.push(b']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(key, _)| *key);
            out.push(b'{');
            for (index, (key, value)) in fields.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json_string(out, key.as_bytes());
                out.push(b':');
                json_value(out, value);
            }
            out.push(b'}');
        }
    }
}

/// Appends a double as C++'s `std::to_chars`, which Envoy uses: the fewest digits that read back as the same number, with
/// or without an exponent, whichever is shorter (100000 is `1e+05`). What JSON has no number for is `null`.
pub(super) fn double(out: &mut Vec<u8>, number: f64) {
    if !number.is_finite() {
        return out.extend_from_slice(b"null");
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    let scientific = format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    let fixed = plain(number);
    let shorter = if scientific.len() < fixed.len() { scientific } else { fixed };
    out.extend_from_slice(shorter.as_bytes());
}

/// Without an exponent; large integers with all their digits.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn plain(number: f64) -> String {
    const EXACT: f64 = 1e30;
    if number.fract() == 0.0 && number != 0.0 && number.abs() < EXACT {
        (number as i128).to_string()
    } else {
        number.to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn strings_are_escaped_as_envoy_does() {
        let text = "a\"b\\c/\n\t<>&é\u{1}\u{7f}'";
        let expected = "\"a\\\"b\\\\c/\\n\\t<>&é\\u0001\u{7f}'\"";
        assert_eq!(written(|out| json_string(out, text.as_bytes())), expected.as_bytes());
        let expected = br#""x \u00e9\u0009\u0022\u005c/<>'&""#;
        assert_eq!(written(|out| json_string(out, b"x \xe9\t\"\\/<>'&")), expected);
    }

    #[test]
    fn values_have_sorted_keys_and_plain_integers() {
        let value = json!({"n": 5.0, "b": true, "f": 1.5, "o": {"z": 1, "a": "x"}, "l": [1, "a", null], "e": {}});
        let expected = br#"{"b":true,"e":{},"f":1.5,"l":[1,"a",null],"n":5,"o":{"a":"x","z":1}}"#;
        assert_eq!(written(|out| json_value(out, &value)), expected);
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn doubles_are_as_short_as_they_can_be() {
        for (number, expected) in [
            (-12_345_678_901.0, "-12345678901"),
            (1e300, "1e+300"),
            (0.1, "0.1"),
            (1e21, "1e+21"),
            (123_456_789_012_345_678_901.0, "123456789012345683968"),
            (-0.0, "-0"),
            (5e-7, "5e-07"),
            (1.5, "1.5"),
            (0.0, "0"),
            (f64::NAN, "null"),
        ] {
            assert_eq!(written(|out| double(out, number)), expected.as_bytes());
        }
    }

    #[test]
    fn numbers_are_padded() {
        assert_eq!(written(|out| padded(out, 7, 3, b'0')), b"007");
        assert_eq!(written(|out| padded(out, 1234, 3, b'0')), b"1234");
    }
}
