//! `HeaderMatcher`: one condition on one header of a request or response.
//! It must not know whose headers they are.

use tidegate_xds::pb::envoy::config::route::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{IntRange, Regex, StringMatcher};
use crate::context::CompileContext;
use crate::http::{HeaderKey, Headers};

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[Coverage {
    message: "envoy.config.route.v3.HeaderMatcher",
    enforced: &[
        "name",
        "exact_match",
        "safe_regex_match",
        "range_match",
        "present_match",
        "prefix_match",
        "suffix_match",
        "contains_match",
        "string_match",
        "invert_match",
        "treat_missing_header_as_empty",
    ],
    listed: &[],
}];

/// A compiled `HeaderMatcher`.
///
/// Each value of a repeated header is looked at by itself, and one that matches suffices (Envoy since 1.39). A missing
/// header matches nothing, inverted or not, unless it is asked for by presence or treated as empty.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    key: HeaderKey,
    condition: Condition,
    invert: bool,
    missing_is_empty: bool,
}

#[derive(Debug, Clone)]
enum Condition {
    Present(bool),
    Value(StringMatcher),
    Range(IntRange),
}

impl HeaderMatcher {
    #[expect(deprecated, reason = "Envoy takes the deprecated kinds too")]
    pub fn compile(matcher: &pb::HeaderMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::header_matcher::HeaderMatchSpecifier as Specifier;
        let condition = match &matcher.header_match_specifier {
            None => Condition::Present(true),
            Some(Specifier::PresentMatch(present)) => Condition::Present(*present),
            Some(Specifier::RangeMatch(range)) => Condition::Range(IntRange { start: range.start, end: range.end }),
            Some(Specifier::StringMatch(string)) => {
                let compiled = context.within("string_match", |context| StringMatcher::compile(string, context))?;
                Condition::Value(compiled)
            }
            Some(Specifier::SafeRegexMatch(regex)) => {
                let compiled = context.within("safe_regex_match", |context| Regex::compile(regex, context))?;
                Condition::Value(StringMatcher::Regex(compiled))
            }
            // An empty `exact_match` only asks for the header, as in Envoy.
            Some(Specifier::ExactMatch(value)) if value.is_empty() => Condition::Value(StringMatcher::prefix("")),
            Some(Specifier::ExactMatch(value)) => Condition::Value(StringMatcher::exact(value)),
            Some(Specifier::PrefixMatch(value)) => Condition::Value(StringMatcher::prefix(value)),
            Some(Specifier::SuffixMatch(value)) => Condition::Value(StringMatcher::suffix(value)),
            Some(Specifier::ContainsMatch(value)) => Condition::Value(StringMatcher::contains(value)),
        };
        Ok(Self {
            key: HeaderKey::new(&matcher.name),
            condition,
            invert: matcher.invert_match,
            missing_is_empty: matcher.treat_missing_header_as_empty,
        })
    }

    /// Compiles a repeated field of header matchers.
    pub fn compile_all(
        matchers: &[pb::HeaderMatcher],
        field: &str,
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Self>, FieldError> {
        let compile = |(index, matcher)| context.within_item(field, index, |c| Self::compile(matcher, c));
        matchers.iter().enumerate().map(compile).collect()
    }

    /// The header that is looked at.
    pub fn key(&self) -> &HeaderKey {
        &self.key
    }

    /// Whether the headers satisfy the condition.
    pub fn matches<H: Headers + ?Sized>(&self, headers: &H) -> bool {
        let mut values = headers.values(&self.key);
        let first = match values.next() {
            None if self.missing_is_empty => Some(&b""[..]),
            first => first,
        };
        match (&self.condition, first) {
            (Condition::Present(present), first) => (first.is_some() == *present) != self.invert,
            (_, None) => false,
            (condition, Some(first)) => {
                (condition.holds(first) || values.any(|value| condition.holds(value))) != self.invert
            }
        }
    }

    /// Whether all of them hold; true for none.
    pub fn all_match<H: Headers + ?Sized>(matchers: &[Self], headers: &H) -> bool {
        matchers.iter().all(|matcher| matcher.matches(headers))
    }
}

impl Condition {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(_) => true,
            Self::Value(matcher) => matcher.matches(value),
            Self::Range(range) => parse_integer(value).is_some_and(|number| range.contains(number)),
        }
    }
}

/// A decimal integer as Envoy reads it (`absl::SimpleAtoi`): a sign is allowed, and white space around.
pub(crate) fn parse_integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']).parse().ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use pb::header_matcher::HeaderMatchSpecifier as Specifier;
    use proptest::prelude::*;
    use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb_matcher;
    use tidegate_xds::pb::envoy::r#type::v3::Int64Range;

    use super::*;
    use crate::matching::testing::ok;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        values.iter().map(|v| (http::HeaderName::from_static("x"), HeaderValue::from_bytes(v).unwrap())).collect()
    }

    fn matcher(specifier: Option<Specifier>, invert: bool, missing_is_empty: bool) -> HeaderMatcher {
        let proto = pb::HeaderMatcher {
            name: "X".to_owned(),
            header_match_specifier: specifier,
            invert_match: invert,
            treat_missing_header_as_empty: missing_is_empty,
        };
        ok(|c| HeaderMatcher::compile(&proto, c))
    }

    fn exact(value: &str) -> Option<Specifier> {
        let match_pattern = Some(pb_matcher::string_matcher::MatchPattern::Exact(value.to_owned()));
        Some(Specifier::StringMatch(pb_matcher::StringMatcher { match_pattern, ignore_case: false }))
    }

    #[expect(deprecated, reason = "Envoy takes the deprecated kinds too")]
    /// Measured on Envoy 1.40: the columns are no header, an empty one, `a`, `b`, and the lines `b`, `a`.
    #[test]
    fn as_measured_on_envoy() {
        let requests = [headers(&[]), headers(&[b""]), headers(&[b"a"]), headers(&[b"b"]), headers(&[b"b", b"a"])];
        let present = |value| Some(Specifier::PresentMatch(value));
        for (specifier, invert, missing_is_empty, expected) in [
            (None, false, false, [false, true, true, true, true]),
            (present(true), true, false, [true, false, false, false, false]),
            (present(false), false, false, [true, false, false, false, false]),
            (present(false), true, false, [false, true, true, true, true]),
            (present(true), false, true, [true, true, true, true, true]),
            (present(false), false, true, [false, false, false, false, false]),
            (exact(""), false, false, [false, true, false, false, false]),
            (exact(""), false, true, [true, true, false, false, false]),
            (exact("a"), false, false, [false, false, true, false, true]),
            (exact("a"), true, false, [false, true, false, true, false]),
            (exact("a"), true, true, [true, true, false, true, false]),
            (Some(Specifier::ExactMatch(String::new())), false, false, [false, true, true, true, true]),
        ] {
            let matcher = matcher(specifier.clone(), invert, missing_is_empty);
            let found: Vec<_> = requests.iter().map(|headers| matcher.matches(headers)).collect();
            assert_eq!(found, expected, "{specifier:?} {invert} {missing_is_empty}");
        }
    }

    #[test]
    fn ranges_are_half_open_and_take_integers_only() {
        let range = matcher(Some(Specifier::RangeMatch(Int64Range { start: -5, end: 5 })), false, false);
        for (value, expected) in [
            ("4", true),
            ("+4", true),
            ("-5", true),
            ("04", true),
            ("5", false),
            ("4x", false),
            ("", false),
            ("0x4", false),
        ] {
            assert_eq!(range.matches(&headers(&[value.as_bytes()])), expected, "{value}");
        }
        let inverted = matcher(Some(Specifier::RangeMatch(Int64Range { start: -5, end: 5 })), true, false);
        assert!(inverted.matches(&headers(&[b"4x"])) && !inverted.matches(&headers(&[])));
        assert!(range.matches(&headers(&[b"zz", b"4"])));
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_matcher(
            values in proptest::collection::vec("[ab]{0,2}", 0..4), wanted in "[ab]{0,2}", invert: bool, empty: bool,
        ) {
            let mut seen: Vec<&str> = values.iter().map(String::as_str).collect();
            if seen.is_empty() && empty {
                seen.push("");
            }
            let expected = !seen.is_empty() && seen.contains(&wanted.as_str()) != invert;
            let values: Vec<_> = values.iter().map(String::as_bytes).collect();
            prop_assert_eq!(matcher(exact(&wanted), invert, empty).matches(&headers(&values)), expected);
        }
    }
}
