//! `QueryParameterMatcher` and `CookieMatcher`: name-value pairs inside a path or a header, raw, first of a name wins.
//! The matchers decode nothing: to them `%6b` is not `k`, as in Envoy.

use tidegate_xds::pb::envoy::config::route::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::StringMatcher;
use crate::context::CompileContext;
use crate::http::{HeaderKey, Headers};

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.route.v3.QueryParameterMatcher",
        enforced: &["name", "string_match", "present_match"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.CookieMatcher",
        enforced: &["name", "string_match", "invert_match"],
        listed: &[],
    },
];

/// A compiled `QueryParameterMatcher`.
#[derive(Debug, Clone)]
pub struct QueryParameterMatcher {
    name: Box<[u8]>,
    condition: Condition,
}

#[derive(Debug, Clone)]
enum Condition {
    Present(bool),
    Value(StringMatcher),
}

impl QueryParameterMatcher {
    pub fn compile(matcher: &pb::QueryParameterMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
        let condition = match &matcher.query_parameter_match_specifier {
            None => Condition::Present(true),
            Some(Specifier::PresentMatch(present)) => Condition::Present(*present),
            Some(Specifier::StringMatch(string)) => {
                let compiled = context.within("string_match", |context| StringMatcher::compile(string, context))?;
                Condition::Value(compiled)
            }
        };
        Ok(Self { name: matcher.name.as_bytes().into(), condition })
    }

    /// `query` is what follows the `?`; no query has no parameters.
    pub fn matches(&self, query: Option<&[u8]>) -> bool {
        let value = query.and_then(|query| query_parameter(query, &self.name));
        match &self.condition {
            Condition::Present(present) => value.is_some() == *present,
            Condition::Value(matcher) => value.is_some_and(|value| matcher.matches(value)),
        }
    }
}

/// The raw value of the first parameter of this name; empty when it has no `=`.
pub fn query_parameter<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    query_parameters(query).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// All parameters, raw, in order.
pub fn query_parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| split_once(pair, b'=').unwrap_or((pair, b"")))
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Every `%XX` becomes its byte; what is none stays.
pub fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        match percent_escape(rest) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// The byte that a `%XX` at the start of `text` stands for.
pub(crate) fn percent_escape(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

/// A compiled `CookieMatcher`.
#[derive(Debug, Clone)]
pub struct CookieMatcher {
    name: Box<[u8]>,
    value: StringMatcher,
    invert: bool,
}

impl CookieMatcher {
    pub fn compile(matcher: &pb::CookieMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let string = matcher.string_match.clone().unwrap_or_default();
        Ok(Self {
            name: matcher.name.as_bytes().into(),
            value: context.within("string_match", |context| StringMatcher::compile(&string, context))?,
            invert: matcher.invert_match,
        })
    }

    /// A cookie that is not there satisfies the inverted matcher only.
    pub fn matches<H: Headers + ?Sized>(&self, headers: &H) -> bool {
        cookie(headers, &self.name).is_some_and(|value| self.value.matches(value)) != self.invert
    }
}

/// The value of the first cookie of this name, without the double quotes around it.
pub fn cookie<'a, H: Headers + ?Sized>(headers: &'a H, name: &[u8]) -> Option<&'a [u8]> {
    const COOKIE: HeaderKey = HeaderKey::Plain(http::header::COOKIE);
    headers.values(&COOKIE).find_map(|line| {
        line.split(|byte| *byte == b';').find_map(|pair| {
            let start = pair.iter().position(|byte| *byte != b' ')?;
            let (key, value) = split_once(&pair[start..], b'=')?;
            (key == name).then(|| value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
        })
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb_matcher;

    use super::*;
    use crate::matching::testing::ok;

    fn exact(value: &str) -> pb_matcher::StringMatcher {
        let match_pattern = Some(pb_matcher::string_matcher::MatchPattern::Exact(value.to_owned()));
        pb_matcher::StringMatcher { match_pattern, ignore_case: false }
    }

    fn parameter(value: Option<&str>) -> QueryParameterMatcher {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch;
        let query_parameter_match_specifier = value.map(|value| StringMatch(exact(value)));
        let proto = pb::QueryParameterMatcher { name: "k".to_owned(), query_parameter_match_specifier };
        ok(|c| QueryParameterMatcher::compile(&proto, c))
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn parameters_are_raw_and_the_first_wins() {
        for (query, present, is_v) in [
            (Some("k=v"), true, true),
            (Some("k=z&k=v"), true, false),
            (Some("k=v&k=z"), true, true),
            (Some("%6b=v"), false, false),
            (Some("k=%76"), true, false),
            (Some("k"), true, false),
            (Some(""), false, false),
            (None, false, false),
            (Some("a=1;k=v"), false, false),
            (Some("a=1&&k=v"), true, true),
            (Some("k=v=w"), true, false),
            (Some("K=v"), false, false),
        ] {
            let query = query.map(str::as_bytes);
            assert_eq!(parameter(None).matches(query), present, "{query:?}");
            assert_eq!(parameter(Some("v")).matches(query), is_v, "{query:?}");
        }
        assert!(parameter(Some("")).matches(Some(b"k")));
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn cookies_as_envoy_reads_them() {
        for (lines, is_1) in [
            (&["a=1"][..], true),
            (&["b=2; a=1"], true),
            (&["b=2;a=1"], true),
            (&["a=2; a=1"], false),
            (&["a=1; a=2"], true),
            (&["a=\"1\""], true),
            (&["a=2", "a=1"], false),
            (&["x=2", "a=1"], true),
            (&["a"], false),
            (&["a =1"], false),
            (&["a= 1"], false),
            (&["A=1"], false),
            (&["a=1=2"], false),
            (&["a=1 ;b=2"], false),
            (&["a=\"1"], false),
        ] {
            let headers: HeaderMap =
                lines.iter().map(|line| (http::header::COOKIE, HeaderValue::from_static(line))).collect();
            for invert_match in [false, true] {
                let string_match = Some(exact("1"));
                let proto = pb::CookieMatcher { name: "a".to_owned(), string_match, invert_match };
                let matcher = ok(|c| CookieMatcher::compile(&proto, c));
                assert_eq!(matcher.matches(&headers), is_1 != invert_match, "{lines:?}");
            }
        }
    }
}
