//! What one client asked for of one type, and what of it has to be said. It must not know how it is said.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::WILDCARD;
use super::resource_set::{Kind, Resource, ResourceType};

/// One type on one stream.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) kind: ResourceType,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    name_bytes: usize,
    /// What is served; all that is due was compared with it.
    served: Kind,
    due: BTreeSet<Arc<str>>,
}

impl Subscription {
    pub(super) fn new(kind: ResourceType, served: Kind) -> Self {
        Self { kind, wildcard: false, names: BTreeSet::new(), name_bytes: 0, served, due: BTreeSet::new() }
    }

    pub(super) fn served(&self) -> &Kind {
        &self.served
    }

    pub(super) fn names(&self) -> &BTreeSet<Arc<str>> {
        &self.names
    }

    /// How long they are together.
    pub(super) fn name_bytes(&self) -> usize {
        self.name_bytes
    }

    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub(super) fn is_name_due(&self, name: &str) -> bool {
        self.due.contains(name)
    }

    /// Whether a resource of this name was asked for. Virtual hosts are asked for together by the name of the route
    /// configuration that they belong to.
    pub(super) fn covers(&self, name: &str) -> bool {
        self.wildcard
            || self.names.contains(name)
            || self.namespace(name).is_some_and(|space| self.names.contains(space))
    }

    fn namespace<'n>(&self, name: &'n str) -> Option<&'n str> {
        let (space, _) = name.rsplit_once('/')?;
        (self.kind == ResourceType::VIRTUAL_HOST).then_some(space)
    }

    fn is_namespace(&self, name: &str) -> bool {
        self.kind == ResourceType::VIRTUAL_HOST && !name.contains('/')
    }

    /// Something else is served now: what is other and asked for falls due.
    pub(super) fn serve(&mut self, served: &Kind) {
        let before = std::mem::replace(&mut self.served, served.clone());
        for (name, _) in before.changes(served) {
            if self.covers(name) {
                self.due.insert(name.clone());
            }
        }
    }

    /// Asks for a name, once more if it was asked for before: it falls due.
    pub(super) fn add(&mut self, name: &str) {
        if name == WILDCARD {
            if !std::mem::replace(&mut self.wildcard, true) {
                let new = self.served.iter().filter(|resource| !self.names.contains(&resource.name));
                self.due.extend(new.map(|resource| resource.name.clone()));
            }
            return;
        }
        let name = self.known(name);
        if self.is_namespace(&name) {
            let prefix = format!("{name}/");
            let inside = self.served.iter().filter(|resource| resource.name.starts_with(&prefix));
            self.due.extend(inside.map(|resource| resource.name.clone()));
        } else {
            self.due.insert(name.clone());
        }
        let length = name.len();
        if self.names.insert(name) {
            self.name_bytes += length;
        }
    }

    /// Lets go of a name. Where everything is asked for too, what became of it falls due: the client cannot tell.
    pub(super) fn remove(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
        } else if let Some(name) = self.names.take(name) {
            self.name_bytes -= name.len();
            if self.wildcard {
                self.due.insert(name);
            }
        }
        if !self.wildcard {
            let due = std::mem::take(&mut self.due);
            self.due = due.into_iter().filter(|name| self.covers(name)).collect();
        }
    }

    /// The client has this already, or cannot use it now.
    pub(super) fn settle(&mut self, name: &str) {
        self.due.remove(name);
    }

    pub(super) fn settle_all(&mut self) {
        self.due.clear();
    }

    /// The client has something by this name that is not what is served.
    pub(super) fn raise(&mut self, name: &str) {
        let name = self.known(name);
        self.due.insert(name);
    }

    /// All that is asked for by name falls due.
    pub(super) fn raise_names(&mut self) {
        self.due.extend(self.names.iter().cloned());
    }

    /// The next name that has to be told of.
    pub(super) fn pop_due(&mut self) -> Option<Arc<str>> {
        self.due.pop_first()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.served.get(name)
    }

    /// How many resources are asked for, those that are not there too.
    pub(super) fn count(&self) -> usize {
        if self.wildcard {
            let absent = self.names.iter().filter(|name| self.served.get(name).is_none());
            return self.served.len() + absent.count();
        }
        let spaces = self.names.iter().filter(|name| self.is_namespace(name)).count();
        if spaces == 0 { self.names.len() } else { self.asked().len() + self.names.len() - spaces }
    }

    /// How many of them have to be told of.
    pub(super) fn count_due(&self) -> usize {
        self.due.len()
    }

    /// All that there is of what was asked for.
    pub(super) fn asked(&self) -> Vec<Arc<Resource>> {
        if self.wildcard || self.names.iter().any(|name| self.is_namespace(name)) {
            return self.served.iter().filter(|resource| self.covers(&resource.name)).cloned().collect();
        }
        self.names.iter().filter_map(|name| self.served.get(name)).cloned().collect()
    }

    /// The set's own copy of a name, where it has one: thousands of clients ask for the same.
    fn known(&self, name: &str) -> Arc<str> {
        self.served.get(name).map_or_else(|| name.into(), |resource| resource.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::{cluster, set};

    fn kind(names: &[(&str, &str)]) -> Kind {
        set(names.iter().map(|(name, content)| cluster(name, content))).kind(ResourceType::CLUSTER).clone()
    }

    fn due(subscription: &mut Subscription) -> Vec<String> {
        std::iter::from_fn(|| subscription.pop_due()).map(|name| name.to_string()).collect()
    }

    #[test]
    fn only_what_is_asked_for_falls_due() {
        let mut subscription = Subscription::new(ResourceType::CLUSTER, kind(&[("a", ""), ("b", "")]));
        subscription.add("a");
        subscription.add("none");
        assert_eq!(due(&mut subscription), ["a", "none"]);
        subscription.serve(&kind(&[("a", ""), ("b", "x"), ("none", "")]));
        assert_eq!(due(&mut subscription), ["none"]);
        subscription.add("*");
        assert_eq!(due(&mut subscription), ["b"]);
        subscription.serve(&kind(&[("a", ""), ("none", "")]));
        assert_eq!(due(&mut subscription), ["b"]);
        subscription.remove("a");
        assert_eq!(due(&mut subscription), ["a"]);
        subscription.remove("*");
        subscription.serve(&kind(&[("c", ""), ("none", "x")]));
        assert_eq!(due(&mut subscription), ["none"]);
    }

    #[test]
    fn virtual_hosts_are_asked_for_by_their_table() {
        let mut subscription = Subscription::new(ResourceType::VIRTUAL_HOST, Kind::default());
        subscription.add("table");
        assert!(subscription.covers("table/a") && !subscription.covers("other/a") && !subscription.is_due());
    }
}
