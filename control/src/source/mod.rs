//! What fills the sets of a control plane. It must not know who is served.

mod dial;
mod directory;
pub mod registry;
mod store;
#[cfg(test)]
mod testing;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;

pub use dial::{Security, SecurityFiles};
pub use directory::Directory;
pub use registry::{Registered, Registries, Registry};
pub use store::{Access, Change, ChangeError, Changed, EtcdUrl, EtcdUrlError, Expected, Link, Password, Store};

use tokio::task::JoinError;

use crate::server::resource_set::Reference;
use crate::server::{Resource, ResourceSet, ResourceType, Sets};

/// A place that resources come from.
pub trait Source: Send {
    /// Waits until there is something other than what was given last, or than what was refused last. Sets that are given hold
    /// together: nothing in them names what is not there.
    fn next(&mut self) -> impl Future<Output = Result<Arc<Sets>, Refused>> + Send;
}

/// What resources may name although it is not among them.
#[derive(Debug, Clone, Default)]
struct Elsewhere {
    /// Clusters that proxies have from their bootstrap.
    clusters: BTreeSet<String>,
    /// Whose services are endpoints.
    registries: Registries,
}

impl Elsewhere {
    fn holds(&self, reference: &Reference) -> bool {
        (reference.to == ResourceType::CLUSTER && self.clusters.contains(&*reference.name))
            || self.registries.have(reference)
    }

    /// Whether a set names only what is there. `before` held together.
    fn check(&self, set: &ResourceSet, before: &ResourceSet) -> Result<(), Refused> {
        let dangling = set.dangling(before, &|reference| self.holds(reference));
        let faults: Vec<String> = dangling.iter().map(ToString::to_string).collect();
        if faults.is_empty() { Ok(()) } else { Err(Refused { faults }) }
    }
}

/// Reads resources from a text, YAML or (by its path) JSON: one, `resources: [...]`, or the short form. `name` is what errors
/// call it.
///
/// # Errors
/// All that is wrong with them, each with its line.
pub fn read(name: &str, path: &Path, text: &[u8]) -> Result<Vec<Arc<Resource>>, Vec<String>> {
    directory::file::alone(&name.into(), path, text)
}

/// Reads a directory or a file once.
///
/// # Errors
/// All that keeps it from being served.
pub fn load(path: &Path) -> Result<Arc<Sets>, Refused> {
    Directory::new(path.to_owned(), []).load()
}

/// Why what is there cannot be served. What was served before is served on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// One for each fault, with `file:line` where there is one.
    pub faults: Vec<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.faults.join("\n"))
    }
}

/// Does what takes long where it holds nobody up.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The process ends.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Any number: the standard library's hashes begin with one.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}
