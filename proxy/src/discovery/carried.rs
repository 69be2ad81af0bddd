//! What a stream carries everything of, beside names: scopes of one source, virtual hosts of route configurations, and the single
//! hosts that requests asked for. It must not know how it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_control::client::{Interest, WILDCARD};

use super::Kind;

/// By kind and subscription: the names that are asked for besides.
#[derive(Debug, Default)]
pub(super) struct Carried(BTreeMap<Kind, BTreeMap<Arc<str>, BTreeSet<Arc<str>>>>);

impl Carried {
    /// What one poll asks for.
    pub(super) fn polled(kind: Kind, name: &Arc<str>) -> Self {
        let mut carried = Self::default();
        carried.set(kind, name, kind == Kind::Scope);
        carried
    }

    pub(super) fn set(&mut self, kind: Kind, subscription: &Arc<str>, carries: bool) {
        let known = self.0.entry(kind).or_default();
        if carries {
            known.entry(Arc::clone(subscription)).or_default();
        } else {
            known.remove(subscription);
        }
    }

    pub(super) fn has(&self, kind: Kind, subscription: &str) -> bool {
        self.find(kind, subscription).is_some()
    }

    pub(super) fn find(&self, kind: Kind, subscription: &str) -> Option<&Arc<str>> {
        self.0.get(&kind)?.get_key_value(subscription).map(|(known, _)| known)
    }

    /// The subscriptions of a kind.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = &Arc<str>> {
        self.0.get(&kind).into_iter().flat_map(BTreeMap::keys)
    }

    /// The source whose scopes come this way.
    pub(super) fn scopes(&self) -> Option<&Arc<str>> {
        self.of(Kind::Scope).next()
    }

    /// A request asks for this host, or it is forgotten.
    pub(super) fn ask_host(&mut self, routes: &Arc<str>, name: &Arc<str>, asks: bool) {
        let Some(names) = self.0.get_mut(&Kind::VirtualHost).and_then(|known| known.get_mut(routes)) else { return };
        if asks {
            names.insert(Arc::clone(name));
        } else {
            names.remove(name);
        }
    }

    /// What is to be asked for after `before`. Everything is asked for by naming nothing, until something was named.
    pub(super) fn interest(&self, kind: Kind, before: Option<&Interest>) -> Interest {
        let Some(carried) = self.0.get(&kind).filter(|carried| !carried.is_empty()) else {
            return Interest::default();
        };
        let mut names = carried.values().flatten().peekable();
        let unnamed = before.is_none_or(|before| *before == Interest::everything() || before.is_empty());
        if names.peek().is_none() && unnamed {
            return Interest::everything();
        }
        Interest::names(names.cloned().chain([Arc::from(WILDCARD)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_asked_for_by_naming_nothing_until_something_is_named() {
        let (mut carried, routes, host) = (Carried::default(), Arc::from("r"), Arc::from("r/a.com"));
        let kind = Kind::VirtualHost;
        assert_eq!(carried.interest(kind, None), Interest::default());
        carried.set(kind, &routes, true);
        let first = carried.interest(kind, None);
        assert_eq!(first, Interest::everything());
        carried.ask_host(&routes, &host, true);
        let second = carried.interest(kind, Some(&first));
        assert_eq!(second, Interest::names([WILDCARD, "r/a.com"]));
        carried.ask_host(&routes, &host, false);
        assert_eq!(carried.interest(kind, Some(&second)), Interest::names([WILDCARD]));
        carried.set(kind, &routes, false);
        assert_eq!(carried.interest(kind, Some(&second)), Interest::default());
        assert!(!carried.has(kind, "r") && carried.scopes().is_none());
    }
}
