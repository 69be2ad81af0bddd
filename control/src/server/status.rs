//! What is known of a client's state: what it has, what is on the way to it, what it refused and why. It must not know how
//! that is shown.

use std::sync::Arc;
use std::time::Instant;

use super::resource_set::{Resource, ResourceType};
use crate::client::beginning;

/// The longest explanation of a client that is kept, in bytes.
const MAX_REASON_BYTES: usize = 4096;

/// As much of a node's id stands in a line of the log, in bytes.
const MAX_NODE_BYTES: usize = 256;

/// What a client said against something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The version of what was refused; empty for a removal.
    pub version: String,
    pub code: i32,
    pub reason: String,
    pub at: Instant,
}

impl Refusal {
    pub(super) fn new(version: String, error: &tidegate_xds::pb::google::rpc::Status, at: Instant) -> Self {
        Self { version, code: error.code, reason: beginning(&error.message, MAX_REASON_BYTES).to_owned(), at }
    }
}

/// What a client calls itself, as it is logged.
pub(super) fn shown(node: &str) -> &str {
    beginning(node, MAX_NODE_BYTES)
}

/// A refusal that was not told of before.
#[derive(Debug, Clone)]
pub struct News {
    pub refusal: Refusal,
    /// What the response said, as far as that is still what there is.
    pub said: Vec<Arc<Resource>>,
}

/// How far a client has come with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has what is served.
    Synced,
    /// It has to be sent.
    NotSent,
    /// It was sent and not answered.
    Unanswered,
    Refused,
}

/// One resource of one client.
#[derive(Debug, Clone)]
pub struct ResourceStatus {
    pub kind: ResourceType,
    pub name: Arc<str>,
    /// None: there is no such resource.
    pub resource: Option<Arc<Resource>>,
    pub state: State,
    pub refusal: Option<Refusal>,
}

/// How many resources are how far, those that were asked for and are not there among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub synced: usize,
    pub not_sent: usize,
    pub unanswered: usize,
    pub refused: usize,
}

impl Counts {
    pub(super) fn new(all: usize, not_sent: usize, unanswered: usize, refused: usize) -> Self {
        Self { synced: all.saturating_sub(not_sent + unanswered + refused), not_sent, unanswered, refused }
    }
}

/// One type of one client.
#[derive(Debug, Clone)]
pub struct TypeStatus {
    pub kind: ResourceType,
    pub wildcard: bool,
    /// Names that were asked for.
    pub names: usize,
    /// The version that is served.
    pub version: String,
    pub counts: Counts,
    /// What was refused last, unless something was accepted since.
    pub refusal: Option<Refusal>,
    /// Names of what is refused by itself.
    pub refused: Vec<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say_is_cut() {
        let long = "é".repeat(3000);
        assert_eq!((shown("n"), shown(&format!("x{long}")).len()), ("n", 255));
        let error = tidegate_xds::pb::google::rpc::Status { message: long, ..Default::default() };
        assert_eq!(Refusal::new(String::new(), &error, Instant::now()).reason.len(), MAX_REASON_BYTES);
    }
}
