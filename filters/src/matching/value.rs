//! `ValueMatcher` and `MetadataMatcher`: conditions on a JSON value, and on where in metadata it stands.
//! They must not know whose metadata it is.

use serde_json::{Map, Value};
use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{DoubleMatcher, StringMatcher};
use crate::context::CompileContext;
use crate::metadata::Metadata;

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.type.matcher.v3.ValueMatcher",
        enforced: &[
            "null_match",
            "double_match",
            "string_match",
            "bool_match",
            "present_match",
            "list_match",
            "or_match",
        ],
        listed: &[],
    },
    Coverage { message: "envoy.type.matcher.v3.ValueMatcher.NullMatch", enforced: &[], listed: &[] },
    Coverage { message: "envoy.type.matcher.v3.ListMatcher", enforced: &["one_of"], listed: &[] },
    Coverage { message: "envoy.type.matcher.v3.OrMatcher", enforced: &["value_matchers"], listed: &[] },
    Coverage {
        message: "envoy.type.matcher.v3.MetadataMatcher",
        enforced: &["filter", "path", "value", "invert"],
        listed: &[],
    },
    Coverage { message: "envoy.type.matcher.v3.MetadataMatcher.PathSegment", enforced: &["key"], listed: &[] },
];

/// A compiled `ValueMatcher`. A value that is not there satisfies none of them.
#[derive(Debug, Clone)]
pub enum ValueMatcher {
    Null,
    Double(DoubleMatcher),
    String(StringMatcher),
    Bool(bool),
    /// `false` is never satisfied, as in Envoy.
    Present(bool),
    /// Any item of a list.
    OneOf(Box<ValueMatcher>),
    Any(Vec<ValueMatcher>),
}

/// Matchers nested deeper than this are refused.
const MAX_DEPTH: usize = 32;

impl ValueMatcher {
    pub fn compile(matcher: &pb::ValueMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        Self::nested(matcher, context, 0)
    }

    fn nested(matcher: &pb::ValueMatcher, context: &mut CompileContext<'_>, depth: usize) -> Result<Self, FieldError> {
        use pb::value_matcher::MatchPattern;
        if depth > MAX_DEPTH {
            return Err(context.error("nested too deeply"));
        }
        Ok(match &matcher.match_pattern {
            Some(MatchPattern::NullMatch(_)) => Self::Null,
            Some(MatchPattern::DoubleMatch(double)) => Self::Double(DoubleMatcher::compile(double)),
            Some(MatchPattern::StringMatch(string)) => {
                Self::String(context.within("string_match", |context| StringMatcher::compile(string, context))?)
            }
            Some(MatchPattern::BoolMatch(value)) => Self::Bool(*value),
            Some(MatchPattern::PresentMatch(present)) => Self::Present(*present),
            Some(MatchPattern::ListMatch(list)) => {
                let Some(pb::list_matcher::MatchPattern::OneOf(item)) = &list.match_pattern else {
                    return Err(context.error_at("list_match", "a match pattern is required"));
                };
                let item = context.within("list_match.one_of", |context| Self::nested(item, context, depth + 1))?;
                Self::OneOf(Box::new(item))
            }
            Some(MatchPattern::OrMatch(or)) => {
                let compile = |(index, matcher)| {
                    context.within_item("or_match.value_matchers", index, |c| Self::nested(matcher, c, depth + 1))
                };
                Self::Any(or.value_matchers.iter().enumerate().map(compile).collect::<Result<_, _>>()?)
            }
            None => return Err(context.error("a match pattern is required")),
        })
    }

    pub fn matches(&self, value: Option<&Value>) -> bool {
        let Some(value) = value else { return false };
        match self {
            Self::Null => value.is_null(),
            Self::Double(matcher) => value.as_f64().is_some_and(|number| matcher.matches(number)),
            Self::String(matcher) => value.as_str().is_some_and(|text| matcher.matches(text.as_bytes())),
            Self::Bool(expected) => value.as_bool() == Some(*expected),
            Self::Present(present) => *present,
            Self::OneOf(matcher) => {
                value.as_array().is_some_and(|items| items.iter().any(|item| matcher.matches(Some(item))))
            }
            Self::Any(matchers) => matchers.iter().any(|matcher| matcher.matches(Some(value))),
        }
    }
}

/// Where in metadata a value stands: a namespace, and keys below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataPath {
    namespace: String,
    keys: Vec<String>,
}

impl MetadataPath {
    pub fn new(namespace: &str, keys: impl IntoIterator<Item = String>) -> Self {
        Self { namespace: namespace.to_owned(), keys: keys.into_iter().collect() }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn find<'a>(&self, metadata: &'a Metadata) -> Option<&'a Value> {
        metadata.get(&self.namespace, self.keys.iter().map(String::as_str))
    }

    /// Below the namespace's values, wherever they come from.
    fn find_in<'a>(&self, values: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.keys.split_first()?;
        rest.iter().try_fold(values.get(first)?, |value, key| value.as_object()?.get(key))
    }
}

/// A compiled `MetadataMatcher`.
#[derive(Debug, Clone)]
pub struct MetadataMatcher {
    path: MetadataPath,
    value: ValueMatcher,
    invert: bool,
}

impl MetadataMatcher {
    pub fn compile(matcher: &pb::MetadataMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::metadata_matcher::path_segment::Segment;
        let keys = matcher.path.iter().map(|segment| match &segment.segment {
            Some(Segment::Key(key)) => key.clone(),
            None => String::new(),
        });
        let Some(value) = &matcher.value else { return Err(context.error_at("value", "a value matcher is required")) };
        Ok(Self {
            path: MetadataPath::new(&matcher.filter, keys),
            value: context.within("value", |context| ValueMatcher::compile(value, context))?,
            invert: matcher.invert,
        })
    }

    /// Where it looks, and what it asks of the value there; `invert` aside.
    pub fn into_parts(self) -> (MetadataPath, ValueMatcher) {
        (self.path, self.value)
    }

    pub fn matches(&self, metadata: &Metadata) -> bool {
        self.value.matches(self.path.find(metadata)) != self.invert
    }

    pub fn namespace(&self) -> &str {
        self.path.namespace()
    }

    /// The same where only the values of its namespace are at hand.
    pub fn matches_namespace(&self, values: Option<&Map<String, Value>>) -> bool {
        self.value.matches(values.and_then(|values| self.path.find_in(values))) != self.invert
    }
}

#[cfg(test)]
mod tests {
    use pb::value_matcher::MatchPattern;
    use serde_json::json;

    use super::*;
    use crate::matching::testing::{error, ok};

    fn value(match_pattern: MatchPattern) -> pb::ValueMatcher {
        pb::ValueMatcher { match_pattern: Some(match_pattern) }
    }

    fn text(expected: &str) -> pb::ValueMatcher {
        let match_pattern = Some(pb::string_matcher::MatchPattern::Exact(expected.to_owned()));
        value(MatchPattern::StringMatch(pb::StringMatcher { match_pattern, ignore_case: false }))
    }

    fn list(item: pb::ValueMatcher) -> pb::ValueMatcher {
        let match_pattern = Some(pb::list_matcher::MatchPattern::OneOf(Box::new(item)));
        value(MatchPattern::ListMatch(Box::new(pb::ListMatcher { match_pattern })))
    }

    #[test]
    fn values_match_by_their_type() {
        let or = pb::OrMatcher { value_matchers: vec![text("b"), value(MatchPattern::BoolMatch(true))] };
        let exact = pb::DoubleMatcher { match_pattern: Some(pb::double_matcher::MatchPattern::Exact(1.0)) };
        for (matcher, matching, other) in [
            (value(MatchPattern::NullMatch(pb::value_matcher::NullMatch {})), json!(null), json!(0)),
            (value(MatchPattern::DoubleMatch(exact)), json!(1), json!("1")),
            (text("a"), json!("a"), json!(["a"])),
            (value(MatchPattern::BoolMatch(false)), json!(false), json!(null)),
            (list(text("a")), json!(["b", "a"]), json!([])),
            (list(list(text("a"))), json!([["a"]]), json!(["a"])),
            (value(MatchPattern::OrMatch(or)), json!(true), json!("a")),
        ] {
            let matcher = ok(|c| ValueMatcher::compile(&matcher, c));
            assert!(matcher.matches(Some(&matching)), "{matcher:?}");
            assert!(!matcher.matches(Some(&other)), "{matcher:?}");
            assert!(!matcher.matches(None));
        }
        for present in [true, false] {
            let matcher = ok(|c| ValueMatcher::compile(&value(MatchPattern::PresentMatch(present)), c));
            assert_eq!(matcher.matches(Some(&json!(1))), present);
            assert!(!matcher.matches(None));
        }
    }

    #[test]
    fn metadata_is_found_by_namespace_and_keys() {
        let mut metadata = Metadata::default();
        metadata.set("ns", json!({"a": {"b": "v"}}).as_object().unwrap().clone());
        let proto = |invert, keys: &[&str]| pb::MetadataMatcher {
            filter: "ns".to_owned(),
            path: keys
                .iter()
                .map(|key| pb::metadata_matcher::PathSegment {
                    segment: Some(pb::metadata_matcher::path_segment::Segment::Key((*key).to_owned())),
                })
                .collect(),
            value: Some(text("v")),
            invert,
        };
        for (invert, keys, expected) in [
            (false, &["a", "b"][..], true),
            (true, &["a", "b"], false),
            (false, &["a"], false),
            (false, &["x"], false),
            (true, &["x"], true),
        ] {
            let matcher = ok(|c| MetadataMatcher::compile(&proto(invert, keys), c));
            assert_eq!(matcher.matches(&metadata), expected, "{keys:?} {invert}");
        }
    }

    #[test]
    fn endless_nesting_is_refused() {
        let deep = (0..100).fold(text("a"), |inner, _| list(inner));
        assert!(error(|c| ValueMatcher::compile(&deep, c)).ends_with("nested too deeply"));
    }
}
