//! JSON text to a `Document`, with what protobuf's legacy JSON lexer takes besides: single quotes, bare keys, trailing
//! commas, raw control characters in strings. It must not know the schema.

use std::collections::HashSet;

use crate::{
    FieldError, FieldPath, Location,
    document::{Document, Key, MAX_DEPTH, NodeId, Value},
};

/// Reads one JSON value.
pub(crate) fn parse(text: &str) -> Result<Document, FieldError> {
    let mut lexer = Lexer { text, at: 0, line: 1, column: 1, counted: 0, document: Document::new(text.len()) };
    let root = lexer.value(0)?;
    lexer.skip_space();
    if lexer.at < text.len() {
        return Err(lexer.fail("more text after the end"));
    }
    let mut document = lexer.document;
    document.set_root(root);
    Ok(document)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    /// Column of the byte at `counted`; a long line must not be counted again for each value in it.
    column: u32,
    counted: usize,
    document: Document,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn here(&mut self) -> Location {
        if let Some(passed) = self.text.get(self.counted..self.at) {
            let passed = u32::try_from(passed.chars().count()).unwrap_or(u32::MAX);
            self.column = self.column.saturating_add(passed);
            self.counted = self.at;
        }
        Location { line: self.line, column: self.column }
    }

    fn fail(&mut self, reason: &str) -> FieldError {
        FieldError::new(FieldPath::root(), format!("not valid JSON: {reason}")).at(Some(self.here()))
    }

    fn skip_space(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.at += 1;
            self.new_line(byte);
        }
    }

    fn new_line(&mut self, byte: u8) {
        if byte == b'\n' {
            self.line = self.line.saturating_add(1);
            (self.column, self.counted) = (1, self.at);
        }
    }

    /// Consumes `byte` if it comes next.
    fn take(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Result<NodeId, FieldError> {
        self.skip_space();
        let location = self.here();
        // Two more than a message may nest, so that `decode` names the field.
        if depth > MAX_DEPTH + 1 {
            return Err(self.fail("nested too deeply"));
        }
        let value = match self.peek() {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"' | b'\'') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            Some(b't') => self.word("true", Value::Bool(true))?,
            Some(b'f') => self.word("false", Value::Bool(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            Some(_) => return Err(self.fail("unexpected character")),
            None => return Err(self.fail("unexpected end")),
        };
        Ok(self.document.add(location, value))
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, FieldError> {
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(self.fail("unexpected character"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn list(&mut self, depth: usize) -> Result<Value, FieldError> {
        self.at += 1;
        let mut items = Vec::new();
        let mut comma = true;
        while !self.take(b']') {
            if !comma {
                return Err(self.fail("expected ',' or ']'"));
            }
            items.push(self.value(depth + 1)?);
            comma = self.take(b',');
        }
        Ok(Value::List(items))
    }

    fn object(&mut self, depth: usize) -> Result<Value, FieldError> {
        self.at += 1;
        let mut entries = Vec::new();
        let mut comma = true;
        while !self.take(b'}') {
            if !comma {
                return Err(self.fail("expected ',' or '}'"));
            }
            let location = self.here();
            let name = match self.peek() {
                Some(b'"' | b'\'') => self.string()?,
                _ => self.bare_word()?,
            };
            if !self.take(b':') {
                return Err(self.fail("expected ':'"));
            }
            let value = self.value(depth + 1)?;
            entries.push((Key { name, location }, value));
            comma = self.take(b',');
        }
        self.doubt_repeated(&entries);
        Ok(Value::Object(entries))
    }

    /// All of the keys that occur twice are read, one after the other.
    fn doubt_repeated(&mut self, entries: &[(Key, NodeId)]) {
        let mut seen = HashSet::with_capacity(entries.len());
        for (key, _) in entries.iter().filter(|(key, _)| !seen.insert(&key.name)) {
            self.document.doubt(key.location, format!("`{}` is set before, too", key.name));
        }
    }

    fn bare_word(&mut self) -> Result<String, FieldError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let starts = rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default().to_owned();
        if !starts || matches!(word.as_str(), "null" | "true" | "false") {
            return Err(self.fail("expected a key"));
        }
        self.at += end;
        Ok(word)
    }

    fn number(&mut self) -> Result<String, FieldError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(rest.len());
        let number = rest.get(..end).unwrap_or_default();
        let digits = number.strip_prefix('-').unwrap_or(number);
        let integer = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let fraction = digits.get(integer..).unwrap_or_default();
        let well_formed = integer > 0
            && (integer == 1 || !digits.starts_with('0'))
            && (fraction.is_empty() || fraction.starts_with(['e', 'E']) || is_fraction(fraction));
        if !well_formed || !number.parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(self.fail("not a number"));
        }
        let number = number.to_owned();
        self.at += end;
        Ok(number)
    }

    fn string(&mut self) -> Result<String, FieldError> {
        let quote = self.peek();
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let Some(c) = rest.chars().next() else {
                return Err(self.fail("a string without an end"));
            };
            self.at += c.len_utf8();
            match c {
                '"' | '\'' if Some(c as u8) == quote => return Ok(out),
                '\\' => out.push(self.escape()?),
                '\n' => {
                    self.new_line(b'\n');
                    out.push(c);
                }
                other => out.push(other),
            }
        }
    }

    fn escape(&mut self) -> Result<char, FieldError> {
        let byte = self.peek();
        self.at += 1;
        Ok(match byte {
            Some(c @ (b'"' | b'\\' | b'/' | b'\'')) => c as char,
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u' | b'U') => return self.unicode(),
            _ => {
                self.at -= 1;
                return Err(self.fail("not an escape sequence"));
            }
        })
    }

    /// `\uXXXX`, or two of them for a character outside the basic plane.
    fn unicode(&mut self) -> Result<char, FieldError> {
        let first = self.hex()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with("\\u")) {
                    return Err(self.fail("half of a surrogate pair"));
                }
                self.at += 2;
                let second = self.hex()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(self.fail("half of a surrogate pair"));
                }
                0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff)
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.fail("not a character"))
    }

    fn hex(&mut self) -> Result<u32, FieldError> {
        let digits = self.text.get(self.at..self.at + 4).filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
        let value = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let value = value.ok_or_else(|| self.fail("expected four hexadecimal digits"))?;
        self.at += 4;
        Ok(value)
    }
}

/// `.5` with perhaps an exponent.
fn is_fraction(text: &str) -> bool {
    text.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> Result<String, String> {
        let document = parse(text).map_err(|error| error.to_string())?;
        Ok(format!("{:?}", document.node(document.root()).value))
    }

    #[test]
    fn keys_that_occur_twice_are_told() {
        let mut document = parse("{\"a\": 1,\n 'a': 2}").unwrap();
        let told: Vec<_> = document.take_doubts().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["`a` is set before, too (line 2, column 2)"]);
    }

    #[test]
    fn legacy_syntax_is_read() {
        let document = parse("{a: 'x', \"b\": [1, 2,],}").unwrap();
        let Value::Object(entries) = &document.node(document.root()).value else { panic!("no object") };
        assert_eq!(entries.iter().map(|(key, _)| key.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn strings_are_unescaped() {
        assert_eq!(root(r#""\ud83d\ude00\n\u00e9/""#).unwrap(), "Text(\"😀\\né/\")");
        assert!(root(r#""\ud83d""#).is_err());
        assert!(root(r#""\x""#).is_err());
        assert!(root("\"abc").is_err());
    }

    #[test]
    fn numbers_are_jsons() {
        for good in ["0", "-1", "1.5", "1e3", "1.5E-3"] {
            assert_eq!(root(good).unwrap(), format!("Number({good:?})"));
        }
        for bad in ["01", "1.", "-", ".5", "1e999", "+1", "1-2"] {
            assert!(root(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_have_a_place() {
        let error = parse("{\n  \"a\": }").unwrap_err();
        assert_eq!(error.location, Some(Location { line: 2, column: 8 }));
        assert!(parse("{} x").is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse("\"é\\").is_err());
    }
}
