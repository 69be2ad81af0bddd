//! The validation rules that Envoy's API declares on fields (`validate.rules`), as constants.
//! It must not know how messages are walked: `validate` does that.

use std::sync::OnceLock;

use regex::Regex;

pub(crate) static NO_RULES: FieldRules = FieldRules { required: false, skip: false, check: Check::None };

/// The rules of one field.
#[derive(Debug)]
pub(crate) struct FieldRules {
    /// A message that must be set.
    pub(crate) required: bool,
    /// A message whose own fields are not to be checked.
    pub(crate) skip: bool,
    pub(crate) check: Check,
}

/// What a value must fulfil. Bounds are inclusive where nothing else is said.
#[derive(Debug)]
pub(crate) enum Check {
    None,
    Integer(Limits<i128>),
    Float(Limits<f64>),
    Bool(bool),
    Text(&'static TextRules),
    Bytes {
        min: u64,
        max: u64,
        ignore_empty: bool,
    },
    Enum {
        defined_only: bool,
        equal: Option<i32>,
        any_of: &'static [i32],
        none_of: &'static [i32],
    },
    Repeated {
        min: u64,
        max: u64,
        unique: bool,
        ignore_empty: bool,
        items: &'static FieldRules,
    },
    Map {
        min: u64,
        max: u64,
        ignore_empty: bool,
        keys: &'static FieldRules,
        values: &'static FieldRules,
    },
    Any {
        any_of: &'static [&'static str],
        none_of: &'static [&'static str],
    },
    /// In nanoseconds.
    Duration(Limits<i128>),
}

/// Bounds of a number: `(bound, inclusive)`.
#[derive(Debug)]
pub(crate) struct Limits<T: 'static> {
    pub(crate) equal: Option<T>,
    pub(crate) lower: Option<(T, bool)>,
    pub(crate) upper: Option<(T, bool)>,
    pub(crate) any_of: &'static [T],
    pub(crate) none_of: &'static [T],
    pub(crate) ignore_empty: bool,
}

/// Rules of a string.
#[derive(Debug)]
pub(crate) struct TextRules {
    pub(crate) equal: Option<&'static str>,
    pub(crate) characters: (u64, u64),
    pub(crate) bytes: (u64, u64),
    pub(crate) pattern: Option<&'static Pattern>,
    pub(crate) prefix: Option<&'static str>,
    pub(crate) suffix: Option<&'static str>,
    pub(crate) contains: Option<&'static str>,
    pub(crate) not_contains: Option<&'static str>,
    pub(crate) any_of: &'static [&'static str],
    pub(crate) none_of: &'static [&'static str],
    pub(crate) form: Option<Form>,
    pub(crate) ignore_empty: bool,
}

/// A well-known form of a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "rules that Envoy's API could use tomorrow"))]
pub(crate) enum Form {
    Hostname,
    Ip,
    Ipv4,
    Ipv6,
    Address,
    Uuid,
    HeaderName,
    HeaderValue,
    /// Either of them where the rule says `strict: false`.
    HeaderString,
}

/// A regular expression that the whole string must match, compiled when it is first used.
#[derive(Debug)]
pub(crate) struct Pattern {
    pub(crate) source: &'static str,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    pub(crate) const fn new(source: &'static str) -> Self {
        Self { source, compiled: OnceLock::new() }
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        let compiled = self.compiled.get_or_init(|| Regex::new(&format!("^(?:{})$", self.source)).ok());
        compiled.as_ref().is_some_and(|regex| regex.is_match(text))
    }
}
