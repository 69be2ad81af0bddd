//! What is asked for of one type. It must not know what has come.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{WILDCARD, xdstp};

/// Every resource of a type, some by name, or both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interest {
    /// [`WILDCARD`] is one of them.
    names: BTreeSet<Arc<str>>,
    /// Every resource, asked for in the old way: by naming none in a stream's first request.
    legacy_wildcard: bool,
}

impl Interest {
    /// Every resource, as Envoy asks for clusters and listeners.
    pub fn everything() -> Self {
        Self { names: BTreeSet::new(), legacy_wildcard: true }
    }

    /// These and no others.
    pub fn names(names: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), legacy_wildcard: false }
    }

    /// One name more.
    pub fn insert(&mut self, name: &Arc<str>) {
        self.names.insert(Arc::clone(name));
    }

    /// One name less.
    pub fn remove(&mut self, name: &str) {
        self.names.remove(name);
    }

    /// Takes as little room as it can: names that came in order leave half of it empty.
    pub fn compact(&mut self) {
        self.names = std::mem::take(&mut self.names).into_iter().collect();
    }

    /// The names; none where everything is asked for by naming none.
    pub fn names_asked(&self) -> &BTreeSet<Arc<str>> {
        &self.names
    }

    /// Whether all that there is comes: a name that does not is gone.
    pub(super) fn is_whole(&self) -> bool {
        self.is_wildcard() || self.names.iter().any(|name| xdstp::is_collection(name))
    }

    /// Whether a resource of this name is asked for, by its own name or with others.
    pub(super) fn covers(&self, name: &str) -> bool {
        self.is_wildcard()
            || self.names.contains(name)
            || xdstp::collection_of(name).is_some_and(|collection| self.names.contains(&*collection))
    }

    pub(super) fn is_wildcard(&self) -> bool {
        self.legacy_wildcard || self.names.contains(WILDCARD)
    }

    pub(super) fn is_legacy_wildcard(&self) -> bool {
        self.legacy_wildcard
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.legacy_wildcard
    }
}
