//! A query's or a form's parameters, decoded as Envoy decodes them: `+` stays itself. It must not know which there are.

/// Parameters in the order in which they were sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        };
        Self(text.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// The first value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The same, where an empty value is as good as none.
    pub(super) fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

/// Replaces `%41` by `A`. What is not written so, or would not be UTF-8, stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+'))) {
            Some(escaped) => {
                decoded.push(escaped);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_values_acts() {
        let query = Query::parse("a=1&b&a=2&=x");
        assert_eq!(
            (query.get("a"), query.get("b"), query.get("c"), query.get("")),
            (Some("1"), Some(""), None, Some("x"))
        );
    }

    #[test]
    fn escapes_are_decoded_and_nothing_else() {
        assert_eq!(Query::parse("f=%5Ea.+%24").get("f"), Some("^a.+$"));
        assert_eq!(Query::parse("f=%zz%4").get("f"), Some("%zz%4"));
        assert_eq!(Query::parse("f=%ff").get("f"), Some("%ff"));
        assert_eq!(Query::parse("f=%+1").get("f"), Some("%+1"));
    }
}
