//! What a stream carries everything of, beside names: scopes of one source, virtual hosts of route configurations, and the single
//! hosts that requests asked for. It must not know how it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_control::client::{Interest, WILDCARD};

use super::Kind;

/// By kind and subscription: the names that are asked for besides.
#[derive(Debug, Default)]
pub(super) struct Carried(BTreeMap<(Kind, Arc<str>), BTreeSet<Arc<str>>>);

impl Carried {
    /// What one poll asks for.
    pub(super) fn polled(kind: Kind, name: &Arc<str>) -> Self {
        let mut carried = Self::default();
        carried.set(kind, name, kind == Kind::Scope);
        carried
    }

    pub(super) fn set(&mut self, kind: Kind, subscription: &Arc<str>, carries: bool) {
        let key = (kind, Arc::clone(subscription));
        if carries {
            self.0.entry(key).or_default();
        } else {
            self.0.remove(&key);
        }
    }

    pub(super) fn has(&self, kind: Kind, subscription: &str) -> bool {
        self.of(kind).any(|known| **known == *subscription)
    }

    /// The subscriptions of a kind.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys().filter(move |(known, _)| *known == kind).map(|(_, subscription)| subscription)
    }

    /// The source whose scopes come this way.
    pub(super) fn scopes(&self) -> Option<&Arc<str>> {
        self.of(Kind::Scope).next()
    }

    /// A request asks for this host, or it is forgotten.
    pub(super) fn ask_host(&mut self, routes: &Arc<str>, name: &Arc<str>, asks: bool) {
        let Some(names) = self.0.get_mut(&(Kind::VirtualHost, Arc::clone(routes))) else { return };
        if asks {
            names.insert(Arc::clone(name));
        } else {
            names.remove(name);
        }
    }

    /// What is to be asked for after `before`. Everything is asked for by naming nothing, until something was named.
    pub(super) fn interest(&self, kind: Kind, before: Option<&Interest>) -> Interest {
        let mut carried = self.0.iter().filter(|((known, _), _)| *known == kind).map(|(_, names)| names).peekable();
        if carried.peek().is_none() {
            return Interest::default();
        }
        let mut names = carried.flatten().peekable();
        let unnamed = before.is_none_or(|before| *before == Interest::everything() || before.is_empty());
        if names.peek().is_none() && unnamed {
            return Interest::everything();
        }
        Interest::names(names.map(|name| name.to_string()).chain([WILDCARD.to_owned()]))
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
