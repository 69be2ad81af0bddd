//! A change of resources: what it expects to find, what becomes of what is there. It must not know where resources are kept.

use std::io;
use std::sync::Arc;

use crate::server::resource_set::Version;
use crate::server::{Resource, ResourceSet, ResourceType};
use crate::source::Refused;

/// What a change expects to find where it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Anything,
    Nothing,
    Version(Version),
}

/// Several resources that change together.
#[derive(Debug, Clone, Default)]
pub struct Change {
    pub put: Vec<(Arc<Resource>, Option<Expected>)>,
    pub delete: Vec<(ResourceType, Arc<str>, Option<Expected>)>,
    /// The version of all that is there, if nothing may have changed meanwhile.
    pub of: Option<String>,
}

/// What became of one resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    pub kind: ResourceType,
    pub name: Arc<str>,
    pub before: Option<Arc<Resource>>,
    pub after: Option<Arc<Resource>>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Something else is there than was expected.
    #[error("{0}")]
    Conflict(String),
    #[error("there is no {kind} '{1}'", kind = .0.short())]
    Missing(ResourceType, Arc<str>),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("cannot be written: {0}")]
    Storage(#[from] io::Error),
    /// More than where it is kept takes at once.
    #[error("too much for one change: {0}")]
    TooMuch(String),
    /// Where it is kept cannot be reached, or did not say what became of it.
    #[error("{0}")]
    Unreachable(String),
}

impl Change {
    /// What it makes of what is there. Whether that holds together is not looked at.
    ///
    /// # Errors
    /// Something else is there than is expected.
    pub(super) fn made(self, there: &ResourceSet) -> Result<ResourceSet, ChangeError> {
        if let Some(of) = self.of.filter(|of| *of != there.version()) {
            return Err(ChangeError::Conflict(format!("expected version {of} of all, found {}", there.version())));
        }
        let mut after = ResourceSet::clone(there);
        for (resource, expected) in self.put {
            expect(&after, resource.kind, &resource.name, expected)?;
            after.insert(resource);
        }
        for (kind, name, expected) in self.delete {
            expect(&after, kind, &name, expected)?;
            if after.remove(kind, &name).is_none() {
                return Err(ChangeError::Missing(kind, name));
            }
        }
        Ok(after)
    }
}

fn expect(set: &ResourceSet, kind: ResourceType, name: &str, expected: Option<Expected>) -> Result<(), ChangeError> {
    let here = set.kind(kind).get(name).map(|resource| resource.version);
    let wrong = match expected {
        None => false,
        Some(Expected::Anything) => here.is_none(),
        Some(Expected::Nothing) => here.is_some(),
        Some(Expected::Version(version)) => here != Some(version),
    };
    if !wrong {
        return Ok(());
    }
    let found = here.map_or_else(|| "nothing".to_owned(), |version| format!("version {version}"));
    Err(ChangeError::Conflict(format!("{} '{name}': found {found}", kind.short())))
}

/// What is other in `after`.
pub(super) fn changes(before: &ResourceSet, after: &ResourceSet) -> Vec<Changed> {
    let of_kind = |kind: ResourceType| {
        let (before, after) = (before.kind(kind), after.kind(kind));
        let changed = move |(name, after): (&Arc<str>, Option<&Arc<Resource>>)| {
            let (before, after) = (before.get(name).cloned(), after.cloned());
            Changed { kind, name: name.clone(), before, after }
        };
        before.changes(after).map(changed)
    };
    ResourceType::all().flat_map(of_kind).collect()
}
