//! Why a host was picked, step by step. It costs nothing when nobody asks.

use std::sync::Arc;

use crate::cluster::host::Host;
use crate::cluster::priority_load::Tier;

/// One step of a pick.
#[derive(Debug, Clone)]
pub enum Step {
    /// The priority and tier that the hash or random value fell on.
    Priority { index: usize, tier: Tier, panic: bool },
    /// The policy's choice.
    Chosen(Arc<Host>),
    /// The choice was not wanted by a retry predicate.
    Excluded(Arc<Host>),
}

/// The steps of a pick, in order.
#[derive(Debug, Clone, Default)]
pub struct PickTrace {
    pub steps: Vec<Step>,
}

impl PickTrace {
    pub(crate) fn push(&mut self, step: Step) {
        self.steps.push(step);
    }
}
