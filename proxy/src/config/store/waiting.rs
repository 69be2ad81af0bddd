//! Exchanges that wait for routes which come on demand. It must not know what they ask for.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::Store;
use crate::demand::{Demand, What};

/// At most so many exchanges wait; more find nothing.
const MOST: usize = 10_000;

/// Who waits, by the name of what comes.
#[derive(Default)]
pub(super) struct Waiting {
    by_name: HashMap<Arc<str>, Vec<oneshot::Sender<bool>>>,
    count: usize,
}

impl Waiting {
    /// One more waits; not where too many do.
    pub(super) fn join(&mut self, name: &Arc<str>, done: oneshot::Sender<bool>) {
        if self.count >= MOST {
            self.forget_gone();
        }
        if self.count < MOST {
            self.by_name.entry(Arc::clone(name)).or_default().push(done);
            self.count += 1;
        }
    }

    /// It has come, or will not.
    pub(super) fn tell(&mut self, name: &str, came: bool) {
        for done in self.by_name.remove(name).into_iter().flatten() {
            self.count -= 1;
            // Whoever is gone need not know.
            let _ = done.send(came);
        }
    }

    /// Those whose clients have left.
    fn forget_gone(&mut self) {
        self.by_name.retain(|_, waiting| {
            waiting.retain(|done| !done.is_closed());
            !waiting.is_empty()
        });
        self.count = self.by_name.values().map(Vec::len).sum();
    }
}

impl Store {
    /// An exchange wants what has not come.
    pub(crate) fn demand(&mut self, demand: Demand) {
        let Demand { what, seen, done } = demand;
        match what {
            What::Scope { source, key } => self.demand_scope(&source, &key, seen, done),
            What::Host { routes, host } => self.demand_host(&routes, &host, seen, done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_wait_and_those_who_left_make_room() {
        let (mut waiting, name) = (Waiting::default(), Arc::from("a"));
        let join = |waiting: &mut Waiting| {
            let (done, answer) = oneshot::channel();
            waiting.join(&name, done);
            answer
        };
        let mut first: Vec<_> = (0..MOST).map(|_| join(&mut waiting)).collect();
        assert_eq!(join(&mut waiting).try_recv(), Err(oneshot::error::TryRecvError::Closed));
        first.truncate(1);
        let mut last = join(&mut waiting);
        assert_eq!(waiting.count, 2);
        waiting.tell("a", true);
        assert_eq!((first[0].try_recv(), last.try_recv(), waiting.count), (Ok(true), Ok(true), 0));
    }
}
