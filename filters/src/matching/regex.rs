//! `RegexMatcher` and `RegexMatchAndSubstitute`: RE2 patterns as Envoy runs them, in linear time.
//! It must not know where the values come from.

use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::re2;
use crate::context::CompileContext;

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.type.matcher.v3.RegexMatcher",
        // `google_re2` names the only engine there is.
        enforced: &["regex", "google_re2"],
        listed: &[],
    },
    Coverage {
        message: "envoy.type.matcher.v3.RegexMatcher.GoogleRE2",
        enforced: &[],
        // `max_program_size` is refused: it bounds RE2's own programs, which are not built here.
        listed: &[],
    },
    Coverage {
        message: "envoy.type.matcher.v3.RegexMatchAndSubstitute",
        enforced: &["pattern", "substitution"],
        listed: &[],
    },
];

/// Bytes that one compiled pattern may take. Envoy bounds the size of RE2's program instead: 100 by default, and what
/// `re2.max_program_size.error_level` says, which Istio sets to 32,768. Such a program is not built here; this is about as much
/// as one of that size takes, so that what acts there acts here, and no pattern takes more.
const SIZE_LIMIT_BYTES: usize = 4 << 20;

/// Why a pattern does not compile.
#[derive(Debug, thiserror::Error)]
pub enum RegexError {
    #[error(transparent)]
    Syntax(#[from] re2::SyntaxError),
    #[error("pattern too large - compile failed")]
    TooLarge,
    #[error("{0}")]
    Refused(regex::Error),
}

/// A pattern that matches when it matches the whole value.
#[derive(Debug, Clone)]
pub struct Regex(regex::bytes::Regex);

impl Regex {
    /// Compiles an RE2 pattern.
    pub fn new(pattern: &str) -> Result<Self, RegexError> {
        let (translated, _) = re2::translate(pattern)?;
        build(&format!(r"\A(?:{translated})\z")).map(Self)
    }

    pub fn compile(matcher: &pb::RegexMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        Self::new(&matcher.regex).map_err(|error| context.error_at("regex", error.to_string()))
    }

    #[inline]
    pub fn matches(&self, value: &[u8]) -> bool {
        self.0.is_match(value)
    }
}

fn build(pattern: &str) -> Result<regex::bytes::Regex, RegexError> {
    let mut builder = regex::bytes::RegexBuilder::new(pattern);
    builder.unicode(false).size_limit(SIZE_LIMIT_BYTES).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => RegexError::TooLarge,
        error => RegexError::Refused(error),
    })
}

/// `RegexMatchAndSubstitute`: every match, wherever it stands, is replaced.
///
/// Envoy accepts malformed replacements, and so do we, with the same outcome: one that names a group that the pattern
/// does not have changes nothing, and a backslash before anything but a digit or a backslash ends the replacement.
#[derive(Debug, Clone)]
pub struct Substitution {
    pattern: regex::bytes::Regex,
    /// `None` where nothing is ever replaced.
    parts: Option<Vec<Part>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    /// A capture group; 0 is the whole match.
    Group(usize),
}

impl Substitution {
    /// Compiles an RE2 pattern and a replacement in which `\1` is the first group and `\\` a backslash.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, RegexError> {
        let (translated, groups) = re2::translate(pattern)?;
        let parts = parse_substitution(substitution);
        let exists = |part: &Part| !matches!(part, Part::Group(group) if *group > groups);
        let parts = parts.iter().all(exists).then_some(parts);
        Ok(Self { pattern: build(&translated)?, parts })
    }

    pub fn compile(
        rewrite: &pb::RegexMatchAndSubstitute,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let pattern = rewrite.pattern.as_ref().map_or("", |pattern| &pattern.regex);
        Self::new(pattern, &rewrite.substitution).map_err(|error| context.error_at("pattern.regex", error.to_string()))
    }

    /// The value with every match replaced.
    pub fn apply(&self, value: &[u8]) -> Vec<u8> {
        let Some(parts) = &self.parts else { return value.to_vec() };
        let mut out = Vec::with_capacity(value.len() + 16);
        let mut from = 0;
        for captures in self.pattern.captures_iter(value) {
            let Some(whole) = captures.get(0) else { continue };
            out.extend_from_slice(&value[from..whole.start()]);
            for part in parts {
                match part {
                    Part::Literal(text) => out.extend_from_slice(text),
                    Part::Group(n) => out.extend_from_slice(captures.get(*n).map_or(b"", |group| group.as_bytes())),
                }
            }
            from = whole.end();
        }
        out.extend_from_slice(&value[from..]);
        out
    }
}

fn parse_substitution(text: &str) -> Vec<Part> {
    let mut parts = vec![Part::Literal(Vec::new())];
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let literal = match byte {
            b'\\' => match bytes.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    parts.push(Part::Group(usize::from(digit - b'0')));
                    continue;
                }
                Some(b'\\') => b'\\',
                Some(_) | None => break,
            },
            other => other,
        };
        match parts.last_mut() {
            Some(Part::Literal(text)) => text.push(literal),
            _ => parts.push(Part::Literal(vec![literal])),
        }
    }
    parts.retain(|part| *part != Part::Literal(Vec::new()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_value_matches() {
        let regex = Regex::new("/re/[0-9]+|x").unwrap();
        assert!(regex.matches(b"/re/12") && regex.matches(b"x"));
        assert!(!regex.matches(b"/re/12x") && !regex.matches(b"a/re/12") && !regex.matches(b"xx"));
        assert!(Regex::new("a|ab").unwrap().matches(b"ab"));
    }

    #[test]
    fn a_pattern_that_would_eat_the_memory_is_refused() {
        assert!(matches!(Regex::new(&"[a-f]{1000}".repeat(1000)), Err(RegexError::TooLarge)));
    }

    fn rewritten(pattern: &str, substitution: &str, value: &str) -> String {
        String::from_utf8(Substitution::new(pattern, substitution).unwrap().apply(value.as_bytes())).unwrap()
    }

    #[test]
    fn matches_are_substituted_as_re2_does() {
        for (pattern, substitution, value, expected) in [
            ("^/a/(.*)$", r"/b/\1", "/a/x", "/b/x"),
            ("a", r"[\0]", "/banana", "/b[a]n[a]n[a]"),
            ("a*", "-", "/baac", "-/-b-c-"),
            ("x*", "-", "/abc", "-/-a-b-c-"),
            ("(a)", r"\\1", "/a", r"/\1"),
            ("(a)|(b)", r"<\1\2>", "/ab", "/<a><b>"),
            ("(a)", r"$1\1\12", "/a", "/$1aa2"),
            (r"\b", "|", "/ab-c", "/|ab|-|c|"),
        ] {
            assert_eq!(rewritten(pattern, substitution, value), expected, "{pattern} {substitution}");
        }
    }

    #[test]
    fn malformed_substitutions_do_what_they_do_in_envoy() {
        for (substitution, expected) in [(r"\2", "/ab"), ("x\\", "/xb"), (r"x\qy", "/xb")] {
            assert_eq!(rewritten("(a)", substitution, "/ab"), expected, "{substitution}");
        }
    }
}
