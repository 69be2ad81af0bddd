//! `PathMatcher` and `FilterStateMatcher`: string and address matchers on a path and on filter state.
//! They must not know who asks.

use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{AddressMatcher, StringMatcher};
use crate::context::CompileContext;
use crate::http::RequestHead;
use crate::metadata::FilterState;

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage { message: "envoy.type.matcher.v3.PathMatcher", enforced: &["path"], listed: &[] },
    Coverage {
        message: "envoy.type.matcher.v3.FilterStateMatcher",
        enforced: &["key", "string_match", "address_match"],
        listed: &[],
    },
];

/// A compiled `PathMatcher`: the path without its query and fragment.
#[derive(Debug, Clone)]
pub struct PathMatcher(StringMatcher);

impl PathMatcher {
    pub fn compile(matcher: &pb::PathMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        match &matcher.rule {
            Some(pb::path_matcher::Rule::Path(path)) => {
                context.within("path", |context| StringMatcher::compile(path, context)).map(Self)
            }
            None => Err(context.error("a rule is required")),
        }
    }

    /// A request without a path (CONNECT) matches nothing.
    pub fn matches(&self, request: &RequestHead) -> bool {
        !request.path.is_empty() && self.0.matches(request.path_only())
    }
}

/// A compiled `FilterStateMatcher`.
#[derive(Debug, Clone)]
pub struct FilterStateMatcher {
    key: String,
    condition: Condition,
}

#[derive(Debug, Clone)]
enum Condition {
    Text(StringMatcher),
    Address(AddressMatcher),
}

impl FilterStateMatcher {
    pub fn compile(matcher: &pb::FilterStateMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::filter_state_matcher::Matcher;
        let condition = match &matcher.matcher {
            Some(Matcher::StringMatch(string)) => {
                let compile = |context: &mut CompileContext<'_>| StringMatcher::compile(string, context);
                Condition::Text(context.within("string_match", compile)?)
            }
            Some(Matcher::AddressMatch(address)) => {
                let compile = |context: &mut CompileContext<'_>| AddressMatcher::compile(address, context);
                Condition::Address(context.within("address_match", compile)?)
            }
            None => return Err(context.error("a matcher is required")),
        };
        Ok(Self { key: matcher.key.clone(), condition })
    }

    /// An object that is not there, or has no text, matches nothing.
    pub fn matches(&self, state: &FilterState) -> bool {
        let Some(object) = state.get(&self.key) else { return false };
        match &self.condition {
            Condition::Text(matcher) => object.text().is_some_and(|text| matcher.matches(text.as_bytes())),
            Condition::Address(matcher) => object.ip().is_some_and(|ip| matcher.matches(ip)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderValue, Method};
    use tidegate_xds::pb::xds::core::v3::CidrRange;

    use super::*;
    use crate::matching::testing::ok;
    use crate::metadata::{Ip, Sharing, Text};

    fn exact(value: &str) -> pb::StringMatcher {
        let match_pattern = Some(pb::string_matcher::MatchPattern::Exact(value.to_owned()));
        pb::StringMatcher { match_pattern, ignore_case: false }
    }

    #[test]
    fn a_path_is_matched_without_its_query() {
        let proto = pb::PathMatcher { rule: Some(pb::path_matcher::Rule::Path(exact("/a"))) };
        let matcher = ok(|c| PathMatcher::compile(&proto, c));
        for (path, expected) in [("/a", true), ("/a?b", true), ("/a/", false), ("", false)] {
            let path = HeaderValue::from_static(path);
            let head = RequestHead::new(Method::GET, HeaderValue::from_static("h"), path);
            assert_eq!(matcher.matches(&head), expected, "{:?}", head.path);
        }
    }

    #[test]
    fn filter_state_is_matched_as_text_or_address() {
        use pb::filter_state_matcher::Matcher;
        let mut state = FilterState::default();
        state.set("text", Arc::new(Text("v".to_owned())), false, Sharing::None);
        state.set("address", Arc::new(Ip([10, 1, 1, 1].into())), false, Sharing::None);
        state.set("like one", Arc::new(Text("10.1.1.1".to_owned())), false, Sharing::None);
        let ranges = vec![CidrRange {
            address_prefix: "10.0.0.0".to_owned(),
            prefix_len: Some(tidegate_xds::pb::google::protobuf::UInt32Value { value: 8 }),
        }];
        let address = Matcher::AddressMatch(pb::AddressMatcher { ranges, invert_match: false });
        for (key, matcher, expected) in [
            ("text", Matcher::StringMatch(exact("v")), true),
            ("text", Matcher::StringMatch(exact("w")), false),
            ("none", Matcher::StringMatch(exact("v")), false),
            ("address", address.clone(), true),
            ("text", address.clone(), false),
            ("like one", address, false),
        ] {
            let proto = pb::FilterStateMatcher { key: key.to_owned(), matcher: Some(matcher) };
            assert_eq!(ok(|c| FilterStateMatcher::compile(&proto, c)).matches(&state), expected, "{proto:?}");
        }
    }
}
