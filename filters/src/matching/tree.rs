//! The unified matcher `xds.type.matcher.v3.Matcher`: lists and trees of conditions that end in actions.
//! It must not know what an action is: whoever compiles a tree says how.

use std::collections::HashMap;
use std::net::IpAddr;

pub use compile::CompileAction;
use tidegate_xds::FieldError;
use tidegate_xds::pb::xds::r#type::matcher::v3 as pb;

use super::Cidr;
use super::input::{Found, Input, Inputs, MatchData};
use super::test::{Test, parse_ip};
use crate::context::CompileContext;

pub(super) use compile::COVERAGE;

mod compile;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// Longest first.
type ByLength<L, T> = Vec<(L, T)>;

/// A compiled tree; `A` is what its caller makes of an action.
#[derive(Clone)]
pub struct Matcher<A> {
    kind: Kind<A>,
    on_no_match: Option<Box<OnMatch<A>>>,
}

#[derive(Clone)]
enum Kind<A> {
    /// Nothing but `on_no_match`.
    Nothing,
    List(Vec<(Predicate, OnMatch<A>)>),
    Tree {
        input: Input,
        branches: Branches<A>,
    },
}

#[derive(Clone)]
enum OnMatch<A> {
    Action(A),
    Matcher(Matcher<A>),
}

#[derive(Clone)]
enum Branches<A> {
    Exact(Map<Vec<u8>, OnMatch<A>>),
    /// By length of the prefix, longest first.
    Prefix(ByLength<usize, Map<Vec<u8>, OnMatch<A>>>),
    Ip(IpBranches<A>),
    ServerName(Map<String, OnMatch<A>>),
}

#[derive(Clone)]
struct IpBranches<A> {
    /// By length of the range, longest first; a range's branches in their order.
    ranges: ByLength<u8, Map<Cidr, Vec<usize>>>,
    /// What happens, and whether it only does when no longer range was tried.
    branches: Vec<(OnMatch<A>, bool)>,
}

#[derive(Clone)]
enum Predicate {
    Single(Input, Test),
    Any(Vec<Predicate>),
    All(Vec<Predicate>),
    Not(Box<Predicate>),
}

/// What a tree says.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<'t, A> {
    Action(&'t A),
    NoMatch,
    /// An input that it takes cannot be known yet.
    NotYet,
}

impl<A> Matcher<A> {
    /// # Errors
    /// An input that may not stand here, an extension that is not supported, or an action that does not compile.
    pub fn compile(
        matcher: &pb::Matcher,
        inputs: Inputs,
        context: &mut CompileContext<'_>,
        action: CompileAction<'_, A>,
    ) -> Result<Self, FieldError> {
        compile::Compiler::new(inputs, action).matcher(matcher, context)
    }

    /// The action for what the inputs say.
    pub fn matches<'t>(&'t self, data: &MatchData<'_>) -> Outcome<'t, A> {
        let outcome = match &self.kind {
            Kind::Nothing => Outcome::NoMatch,
            Kind::List(items) => list(items, data),
            Kind::Tree { input, branches } => match input.read(data) {
                Found::NotYet => Outcome::NotYet,
                found => branches.matches(found, data),
            },
        };
        match (outcome, &self.on_no_match) {
            (Outcome::NoMatch, Some(on_no_match)) => on_no_match.matches(data),
            (outcome, _) => outcome,
        }
    }

    /// Every action in the tree, so that what they need can be gathered.
    pub fn actions(&self) -> Vec<&A> {
        let mut actions = Vec::new();
        self.visit(&mut actions);
        actions
    }

    fn visit<'t>(&'t self, actions: &mut Vec<&'t A>) {
        let mut visit = |on_match: &'t OnMatch<A>| match on_match {
            OnMatch::Action(action) => actions.push(action),
            OnMatch::Matcher(matcher) => matcher.visit(actions),
        };
        match &self.kind {
            Kind::Nothing => {}
            Kind::List(items) => items.iter().for_each(|(_, on_match)| visit(on_match)),
            Kind::Tree { branches, .. } => match branches {
                Branches::Exact(map) => map.values().for_each(visit),
                Branches::Prefix(maps) => maps.iter().flat_map(|(_, map)| map.values()).for_each(visit),
                Branches::Ip(ip) => ip.branches.iter().for_each(|(on_match, _)| visit(on_match)),
                Branches::ServerName(map) => map.values().for_each(visit),
            },
        }
        if let Some(on_no_match) = &self.on_no_match {
            match &**on_no_match {
                OnMatch::Action(action) => actions.push(action),
                OnMatch::Matcher(matcher) => matcher.visit(actions),
            }
        }
    }
}

/// The first whose predicate holds and that leads to an action: a nested matcher may find none, and the list goes on.
fn list<'t, A>(items: &'t [(Predicate, OnMatch<A>)], data: &MatchData<'_>) -> Outcome<'t, A> {
    for (predicate, on_match) in items {
        match predicate.holds(data) {
            None => return Outcome::NotYet,
            Some(false) => {}
            Some(true) => match on_match.matches(data) {
                Outcome::NoMatch => {}
                outcome => return outcome,
            },
        }
    }
    Outcome::NoMatch
}

impl<A> OnMatch<A> {
    fn matches<'t>(&'t self, data: &MatchData<'_>) -> Outcome<'t, A> {
        match self {
            Self::Action(action) => Outcome::Action(action),
            Self::Matcher(matcher) => matcher.matches(data),
        }
    }
}

impl Predicate {
    /// `None` when it cannot be known yet.
    fn holds(&self, data: &MatchData<'_>) -> Option<bool> {
        match self {
            Self::Single(input, test) => match input.read(data) {
                Found::NotYet => None,
                found => Some(test.holds(found, data.runtime)),
            },
            Self::Any(predicates) => first(predicates, true, data),
            Self::All(predicates) => first(predicates, false, data),
            Self::Not(predicate) => predicate.holds(data).map(|holds| !holds),
        }
    }
}

/// Ends at the first that is `decisive` or cannot be known yet.
fn first(predicates: &[Predicate], decisive: bool, data: &MatchData<'_>) -> Option<bool> {
    for predicate in predicates {
        if predicate.holds(data)? == decisive {
            return Some(decisive);
        }
    }
    Some(!decisive)
}

impl<A> Branches<A> {
    fn matches<'t>(&'t self, found: Found<'_>, data: &MatchData<'_>) -> Outcome<'t, A> {
        if let Self::Ip(branches) = self {
            let ip = match found {
                Found::Ip(ip) => Some(ip),
                found => found.into_text().and_then(|text| parse_ip(&text)),
            };
            return ip.map_or(Outcome::NoMatch, |ip| branches.matches(ip, data));
        }
        let Some(text) = found.into_text() else { return Outcome::NoMatch };
        match self {
            Self::Exact(map) => map.get(&*text).map_or(Outcome::NoMatch, |on_match| on_match.matches(data)),
            Self::Prefix(lengths) => {
                let prefixes = lengths.iter().filter_map(|(length, map)| map.get(text.get(..*length)?));
                first_match(prefixes, data)
            }
            Self::ServerName(map) => first_match(server_name_candidates(&text).filter_map(|name| map.get(name)), data),
            Self::Ip(_) => Outcome::NoMatch,
        }
    }
}

/// The first branch that leads to an action.
fn first_match<'t, A: 't>(branches: impl Iterator<Item = &'t OnMatch<A>>, data: &MatchData<'_>) -> Outcome<'t, A> {
    for branch in branches {
        match branch.matches(data) {
            Outcome::NoMatch => {}
            outcome => return outcome,
        }
    }
    Outcome::NoMatch
}

/// The name itself, then `*.` before each of its parents, then `*`; case matters and an empty name has none, as in Envoy.
fn server_name_candidates(name: &[u8]) -> impl Iterator<Item = &str> {
    let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty());
    name.into_iter().flat_map(|name| {
        let parents = name.match_indices('.').map(move |(at, _)| &name[at..]);
        std::iter::once(name).chain(parents).chain(["*"])
    })
}

impl<A> IpBranches<A> {
    fn matches<'t>(&'t self, ip: IpAddr, data: &MatchData<'_>) -> Outcome<'t, A> {
        let mut tried = false;
        for (length, ranges) in &self.ranges {
            for index in ranges.get(&Cidr::new(ip, *length)).into_iter().flatten() {
                let (on_match, exclusive) = &self.branches[*index];
                if tried && *exclusive {
                    continue;
                }
                tried = true;
                match on_match.matches(data) {
                    Outcome::NoMatch => {}
                    outcome => return outcome,
                }
            }
        }
        Outcome::NoMatch
    }
}

#[cfg(test)]
mod tests;
