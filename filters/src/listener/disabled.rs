//! `ListenerFilterChainMatchPredicate`: which connections a listener filter does not look at (`filter_disabled`).
//! It must not know the filter.

use tidegate_xds::pb::envoy::config::listener::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{ListenerFilter, ListenerFilterConfig};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;

/// The fields that act in the messages compiled here.
pub const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.listener.v3.ListenerFilterChainMatchPredicate",
        enforced: &["or_match", "and_match", "not_match", "any_match", "destination_port_range"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet",
        enforced: &["rules"],
        listed: &[],
    },
];

/// Predicates nested deeper than this are refused.
const MAX_DEPTH: usize = 32;

/// A filter that is left out where its predicate holds. It is asked when the filter's turn comes, so it sees the
/// destination that an earlier filter restored.
pub struct Disabled {
    when: Predicate,
    filter: Box<dyn ListenerFilterConfig>,
}

#[derive(Debug)]
enum Predicate {
    Always,
    Any(Vec<Predicate>),
    All(Vec<Predicate>),
    Not(Box<Predicate>),
    /// From the first to before the second.
    DestinationPort(i32, i32),
}

impl Disabled {
    /// # Errors
    /// A predicate that says nothing.
    pub fn compile(
        when: &pb::ListenerFilterChainMatchPredicate,
        filter: Box<dyn ListenerFilterConfig>,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        Ok(Self { when: Predicate::compile(when, 0, context)?, filter })
    }
}

impl ListenerFilterConfig for Disabled {
    fn is_there(&self) -> bool {
        self.filter.is_there()
    }

    fn new_connection(&self, connection: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>> {
        if self.when.holds(connection) { None } else { self.filter.new_connection(connection) }
    }
}

impl Predicate {
    fn compile(
        rule: &pb::ListenerFilterChainMatchPredicate,
        depth: usize,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        use pb::listener_filter_chain_match_predicate::Rule;
        if depth > MAX_DEPTH {
            return Err(context.error("nested too deeply"));
        }
        let all = |field, rules: &[pb::ListenerFilterChainMatchPredicate], context: &mut CompileContext<'_>| {
            let compile =
                |(index, rule)| context.within_item(field, index, |context| Self::compile(rule, depth + 1, context));
            rules.iter().enumerate().map(compile).collect::<Result<Vec<_>, _>>()
        };
        match &rule.rule {
            Some(Rule::AnyMatch(_)) => Ok(Self::Always),
            Some(Rule::OrMatch(set)) => Ok(Self::Any(all("or_match.rules", &set.rules, context)?)),
            Some(Rule::AndMatch(set)) => Ok(Self::All(all("and_match.rules", &set.rules, context)?)),
            Some(Rule::NotMatch(rule)) => {
                let rule = context.within("not_match", |context| Self::compile(rule, depth + 1, context))?;
                Ok(Self::Not(Box::new(rule)))
            }
            Some(Rule::DestinationPortRange(range)) => Ok(Self::DestinationPort(range.start, range.end)),
            None => Err(context.error("a rule is required")),
        }
    }

    fn holds(&self, connection: &ConnectionInfo) -> bool {
        match self {
            Self::Always => true,
            Self::Any(rules) => rules.iter().any(|rule| rule.holds(connection)),
            Self::All(rules) => rules.iter().all(|rule| rule.holds(connection)),
            Self::Not(rule) => !rule.holds(connection),
            Self::DestinationPort(start, end) => {
                let port = connection.local.ip().map(|address| i32::from(address.port()));
                port.is_some_and(|port| (*start..*end).contains(&port))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pb::ListenerFilterChainMatchPredicate as Proto;
    use pb::listener_filter_chain_match_predicate::{MatchSet, Rule};
    use tidegate_xds::pb::envoy::r#type::v3::Int32Range;

    use super::*;
    use crate::matching::testing::{error, ok};
    use crate::network::testing::connection;

    fn rule(rule: Rule) -> Proto {
        Proto { rule: Some(rule) }
    }

    fn port(start: i32, end: i32) -> Proto {
        rule(Rule::DestinationPortRange(Int32Range { start, end }))
    }

    fn set(rules: &[Proto]) -> MatchSet {
        MatchSet { rules: rules.to_vec() }
    }

    #[test]
    fn predicates_combine() {
        // The connection goes to port 8080.
        for (proto, expected) in [
            (rule(Rule::AnyMatch(true)), true),
            (port(8080, 8081), true),
            (port(8000, 8080), false),
            (rule(Rule::OrMatch(set(&[port(1, 2), port(8080, 8081)]))), true),
            (rule(Rule::AndMatch(set(&[port(1, 2), port(8080, 8081)]))), false),
            (rule(Rule::NotMatch(Box::new(port(1, 2)))), true),
        ] {
            let predicate = ok(|context| Predicate::compile(&proto, 0, context));
            assert_eq!(predicate.holds(&connection()), expected, "{predicate:?}");
        }
    }

    #[test]
    fn what_says_nothing_or_never_ends_is_refused() {
        assert!(error(|context| Predicate::compile(&Proto::default(), 0, context)).ends_with("a rule is required"));
        let deep = (0..100).fold(port(1, 2), |inner, _| rule(Rule::NotMatch(Box::new(inner))));
        assert!(error(|context| Predicate::compile(&deep, 0, context)).ends_with("nested too deeply"));
    }
}
