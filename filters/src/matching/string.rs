//! `StringMatcher`: exact, prefix, suffix, contains and regex, on bytes.
//! It must not know where the values come from.

use memchr::memmem::Finder;
use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb;
use tidegate_xds::pb::xds::r#type::matcher::v3 as xds;
use tidegate_xds::{Coverage, FieldError};

use super::Regex;
use crate::context::CompileContext;

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.type.matcher.v3.StringMatcher",
        enforced: &["exact", "prefix", "suffix", "safe_regex", "contains", "ignore_case"],
        listed: &[],
    },
    Coverage { message: "envoy.type.matcher.v3.ListStringMatcher", enforced: &["patterns"], listed: &[] },
    Coverage {
        message: "xds.type.matcher.v3.StringMatcher",
        enforced: &["exact", "prefix", "suffix", "safe_regex", "contains", "ignore_case"],
        listed: &[],
    },
    Coverage { message: "xds.type.matcher.v3.ListStringMatcher", enforced: &["patterns"], listed: &[] },
    Coverage {
        message: "xds.type.matcher.v3.RegexMatcher",
        enforced: &["regex"],
        listed: &[("google_re2", "the only engine there is")],
    },
];

/// A compiled `StringMatcher`. Ignoring case is ASCII's business only, as in Envoy.
#[derive(Debug, Clone)]
pub enum StringMatcher {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<Finder<'static>>),
    ExactIgnoringCase(Box<[u8]>),
    PrefixIgnoringCase(Box<[u8]>),
    SuffixIgnoringCase(Box<[u8]>),
    /// The needle, in lower case.
    ContainsIgnoringCase(Box<regex::bytes::Regex>),
    Regex(Regex),
}

impl StringMatcher {
    pub fn exact(value: &str) -> Self {
        Self::Exact(value.as_bytes().into())
    }

    pub fn prefix(value: &str) -> Self {
        Self::Prefix(value.as_bytes().into())
    }

    pub fn suffix(value: &str) -> Self {
        Self::Suffix(value.as_bytes().into())
    }

    pub fn contains(value: &str) -> Self {
        Self::Contains(Box::new(Finder::new(value.as_bytes()).into_owned()))
    }

    pub fn compile(matcher: &pb::StringMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::string_matcher::MatchPattern::{Contains, Custom, Exact, Prefix, SafeRegex, Suffix};
        match &matcher.match_pattern {
            Some(Exact(value)) => Self::literal(Self::exact, Self::ExactIgnoringCase, value, matcher.ignore_case),
            Some(Prefix(value)) => Self::literal(Self::prefix, Self::PrefixIgnoringCase, value, matcher.ignore_case),
            Some(Suffix(value)) => Self::literal(Self::suffix, Self::SuffixIgnoringCase, value, matcher.ignore_case),
            Some(Contains(value)) if matcher.ignore_case => return Self::contains_ignoring_case(value, context),
            Some(Contains(value)) => Ok(Self::contains(value)),
            Some(SafeRegex(_)) if matcher.ignore_case => Err("ignore_case has no effect for safe_regex.".to_owned()),
            Some(SafeRegex(regex)) => {
                return context.within("safe_regex", |context| Regex::compile(regex, context)).map(Self::Regex);
            }
            Some(Custom(_)) => return Err(context.error_at("custom", "not supported yet: custom string matchers")),
            None => Err("a match pattern is required".to_owned()),
        }
        .map_err(|reason| context.error(reason))
    }

    /// The same of the `xds` package.
    pub fn compile_xds(matcher: &xds::StringMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::string_matcher::MatchPattern as To;
        use xds::string_matcher::MatchPattern as From;
        let match_pattern = matcher.match_pattern.clone().map(|pattern| match pattern {
            From::Exact(value) => To::Exact(value),
            From::Prefix(value) => To::Prefix(value),
            From::Suffix(value) => To::Suffix(value),
            From::Contains(value) => To::Contains(value),
            From::SafeRegex(regex) => To::SafeRegex(pb::RegexMatcher { regex: regex.regex, ..Default::default() }),
            From::Custom(custom) => To::Custom(custom),
        });
        Self::compile(&pb::StringMatcher { match_pattern, ignore_case: matcher.ignore_case }, context)
    }

    /// Compiles `ListStringMatcher.patterns`.
    pub fn compile_list(
        list: &pb::ListStringMatcher,
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Self>, FieldError> {
        let compile = |(index, matcher)| context.within_item("patterns", index, |c| Self::compile(matcher, c));
        list.patterns.iter().enumerate().map(compile).collect()
    }

    fn literal(
        plain: fn(&str) -> Self,
        ignoring_case: fn(Box<[u8]>) -> Self,
        value: &str,
        ignore_case: bool,
    ) -> Result<Self, String> {
        Ok(if ignore_case { ignoring_case(value.as_bytes().into()) } else { plain(value) })
    }

    fn contains_ignoring_case(value: &str, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        let mut builder = regex::bytes::RegexBuilder::new(&regex::escape(value));
        let regex = builder.unicode(false).case_insensitive(true).build();
        regex.map(|r| Self::ContainsIgnoringCase(Box::new(r))).map_err(|e| context.error_at("contains", e.to_string()))
    }

    /// Whether a value matches.
    #[inline]
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(expected) => value == &**expected,
            Self::Prefix(prefix) => value.starts_with(prefix),
            Self::Suffix(suffix) => value.ends_with(suffix),
            Self::Contains(finder) => finder.find(value).is_some(),
            Self::ExactIgnoringCase(expected) => value.eq_ignore_ascii_case(expected),
            Self::PrefixIgnoringCase(prefix) => {
                value.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            }
            Self::SuffixIgnoringCase(suffix) => {
                let start = value.len().checked_sub(suffix.len());
                start.is_some_and(|start| value[start..].eq_ignore_ascii_case(suffix))
            }
            Self::ContainsIgnoringCase(needle) => needle.is_match(value),
            Self::Regex(regex) => regex.matches(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use pb::string_matcher::MatchPattern;
    use proptest::prelude::*;

    use super::*;
    use crate::matching::testing::{error, ok};

    fn matcher(match_pattern: MatchPattern, ignore_case: bool) -> StringMatcher {
        ok(|c| StringMatcher::compile(&pb::StringMatcher { match_pattern: Some(match_pattern), ignore_case }, c))
    }

    fn naive(pattern: &MatchPattern, ignore_case: bool, value: &str) -> bool {
        let fold = |text: &str| if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
        let value = fold(value);
        match pattern {
            MatchPattern::Exact(p) => value == fold(p),
            MatchPattern::Prefix(p) => value.starts_with(&fold(p)),
            MatchPattern::Suffix(p) => value.ends_with(&fold(p)),
            MatchPattern::Contains(p) => value.contains(&fold(p)),
            _ => unreachable!(),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_matcher(
            kind in 0..4usize, pattern in "[aAbB.é*]{0,4}", value in "[aAbB.é*]{0,8}", ignore_case: bool,
        ) {
            let kinds = [MatchPattern::Exact, MatchPattern::Prefix, MatchPattern::Suffix, MatchPattern::Contains];
            let pattern = kinds[kind](pattern);
            let expected = naive(&pattern, ignore_case, &value);
            prop_assert_eq!(matcher(pattern, ignore_case).matches(value.as_bytes()), expected);
        }
    }

    #[test]
    fn bad_patterns_name_their_field() {
        let regex = pb::RegexMatcher { regex: "a**".to_owned(), ..Default::default() };
        let proto = |match_pattern, ignore_case| pb::StringMatcher { match_pattern: Some(match_pattern), ignore_case };
        let bad = proto(MatchPattern::SafeRegex(regex.clone()), false);
        assert_eq!(error(|c| StringMatcher::compile(&bad, c)), "safe_regex.regex: bad repetition operator: **");
        let bad = proto(MatchPattern::SafeRegex(regex), true);
        assert_eq!(error(|c| StringMatcher::compile(&bad, c)), ": ignore_case has no effect for safe_regex.");
        let bad = proto(MatchPattern::Custom(Default::default()), false);
        assert!(error(|c| StringMatcher::compile(&bad, c)).starts_with("custom: not supported yet"));
    }
}
