//! What fills the sets of a control plane. It must not know who is served.

mod directory;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

pub use directory::Directory;

use crate::server::Sets;

/// A place that resources come from.
pub trait Source: Send {
    /// Waits until there is something other than what was given last, or than what was refused last. Sets that are given hold
    /// together: nothing in them names what is not there.
    fn next(&mut self) -> impl Future<Output = Result<Arc<Sets>, Refused>> + Send;
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
