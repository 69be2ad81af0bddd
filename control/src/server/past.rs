//! The clusters that were served last, by their version: of what it has, a client of the state of the world that comes back says
//! no more. It must not know who comes.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::groups::Sets;
use super::resource_set::{Kind, ResourceType};

/// So many versions are kept; they share what is in several of them.
const MOST: usize = 256;

/// The versions of clusters, the oldest first.
#[derive(Debug, Default)]
pub struct Past(Mutex<VecDeque<Kind>>);

impl Past {
    /// Keeps what is served now.
    pub(super) fn keep(&self, sets: &Sets) {
        let mut kept = self.0.lock();
        for (_, set) in sets.all() {
            let clusters = set.kind(ResourceType::CLUSTER);
            if kept.iter().any(|kept| kept.version() == clusters.version()) {
                continue;
            }
            if kept.len() == MOST {
                kept.pop_front();
            }
            kept.push_back(clusters.clone());
        }
    }

    /// The clusters of a version, if it was served not long ago.
    pub(super) fn find(&self, version: &str) -> Option<Kind> {
        self.0.lock().iter().find(|kept| kept.version() == version).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::{cluster, set};

    #[test]
    fn what_was_served_last_is_known() {
        let (past, of) = (Past::default(), |number: usize| set([cluster("a", &number.to_string())]));
        for number in (0..=MOST).chain([MOST]) {
            past.keep(&Sets { rest: of(number), groups: Vec::new() });
        }
        let found = |number: usize| past.find(&of(number).kind(ResourceType::CLUSTER).version()).map(|kind| kind.len());
        assert_eq!([found(0), found(1), found(MOST)], [None, Some(1), Some(1)]);
    }
}
