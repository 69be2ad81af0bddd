//! Role-based access control: policies of permissions and principals, and what they decide.
//! It must not know whether it is asked for a request or a connection, nor what follows from its answer.

mod compile;
mod mutual_tls;
mod rule;
pub(crate) mod told;

pub(crate) use compile::COVERAGE;
pub(crate) use rule::Facts;
use rule::Rule;
use serde_json::{Map, Value};

use crate::matching::cel::Expression;
use crate::matching::{MatchData, Matcher, Outcome};

/// What matching policies mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Deny,
    Log,
}

/// All of it holds: what is done, who does it, and under which condition.
#[derive(Debug)]
pub(crate) struct Policy {
    name: String,
    permissions: Rule,
    principals: Rule,
    condition: Option<Expression>,
}

impl Policy {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        self.permissions.holds(facts)
            && self.principals.holds(facts)
            && self.condition.as_ref().is_none_or(|condition| facts.satisfies(condition))
    }
}

/// Compiled `envoy.config.rbac.v3.RBAC`, or a matcher tree whose leaves are `envoy.config.rbac.v3.Action`.
pub(crate) enum Engine {
    /// In the order of their names, as Envoy looks at them.
    Policies(Action, Vec<Policy>),
    Matcher {
        tree: Matcher<Leaf>,
        /// Whether any leaf logs: then every decision tells the access log.
        logs: bool,
    },
}

/// What a matcher tree ends in.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    name: String,
    action: Action,
}

/// What an engine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision<'a> {
    pub allowed: bool,
    /// The first policy that matched.
    pub policy: Option<&'a str>,
    /// Whether the access log is told of a match; only the LOG action says.
    pub log: Option<bool>,
}

impl Engine {
    pub(crate) fn decide(&self, facts: &Facts<'_>) -> Decision<'_> {
        match self {
            Self::Policies(action, policies) => by_policies(*action, policies, facts),
            Self::Matcher { tree, logs } => by_matcher(tree, *logs, facts),
        }
    }

    /// Whether it looks at all that is known of a stream.
    pub(crate) fn has_conditions(&self) -> bool {
        matches!(self, Self::Policies(_, policies) if policies.iter().any(|policy| policy.condition.is_some()))
    }
}

fn by_policies<'e>(action: Action, policies: &'e [Policy], facts: &Facts<'_>) -> Decision<'e> {
    let policy = policies.iter().find(|policy| policy.holds(facts)).map(|policy| policy.name.as_str());
    let allowed = match action {
        Action::Allow => policy.is_some(),
        Action::Deny => policy.is_none(),
        Action::Log => true,
    };
    Decision { allowed, policy, log: (action == Action::Log).then_some(policy.is_some()) }
}

/// What matches nothing is denied.
fn by_matcher<'e>(tree: &'e Matcher<Leaf>, logs: bool, facts: &Facts<'_>) -> Decision<'e> {
    let data = MatchData {
        remote: facts.remote,
        metadata: facts.metadata,
        filter_state: facts.filter_state,
        request: facts.request,
        stream: facts.stream,
        route: facts.route,
        ..MatchData::of_connection(facts.connection)
    };
    match tree.matches(&data) {
        Outcome::Action(leaf) => Decision {
            allowed: leaf.action != Action::Deny,
            policy: Some(&leaf.name),
            log: logs.then_some(leaf.action == Action::Log),
        },
        Outcome::NoMatch | Outcome::NotYet => Decision { allowed: false, policy: None, log: None },
    }
}

impl Decision<'_> {
    /// `%RESPONSE_CODE_DETAILS%` or `%CONNECTION_TERMINATION_DETAILS%` of a denial; white space becomes `_`.
    pub(crate) fn details(&self) -> String {
        let name = self.policy.unwrap_or("none").replace(|c: char| c.is_ascii_whitespace(), "_");
        format!("rbac_access_denied_matched_policy[{name}]")
    }

    /// Writes it as dynamic metadata: `kind` is `enforced` or `shadow`.
    pub(crate) fn describe(&self, prefix: &str, kind: &str, into: &mut Map<String, Value>) {
        if let Some(policy) = self.policy {
            into.insert(format!("{prefix}{kind}_effective_policy_id"), policy.into());
        }
        let result = if self.allowed { "allowed" } else { "denied" };
        into.insert(format!("{prefix}{kind}_engine_result"), result.into());
    }
}
