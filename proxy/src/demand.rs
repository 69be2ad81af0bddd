//! What exchanges ask the control thread for while they wait: routes that come on demand.
//! It must not know how they come, nor who waits.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::route::ScopeKey;

/// At most so many are on their way to the control thread; more find nothing.
pub(crate) const MOST: usize = 1024;

/// One exchange's wish.
pub(crate) struct Demand {
    pub what: What,
    /// The version of the snapshot that lacks it.
    pub seen: u64,
    /// Whether there is a newer snapshot to look at; gone, there is nothing to wait for.
    pub done: oneshot::Sender<bool>,
}

/// What is wished for.
pub(crate) enum What {
    /// The routes of the scope of this key, among those of a source.
    Scope { source: Arc<str>, key: ScopeKey },
    /// The virtual host of this name, in small letters, of a route configuration.
    Host { routes: Arc<str>, host: String },
}

/// The way from workers to the control thread.
pub(crate) struct Demands {
    sender: mpsc::Sender<Demand>,
    receiver: Mutex<Option<mpsc::Receiver<Demand>>>,
}

impl Default for Demands {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(MOST);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl Demands {
    /// Asks; none where too many do.
    pub(crate) fn ask(&self, what: What, seen: u64) -> Option<oneshot::Receiver<bool>> {
        let (done, answer) = oneshot::channel();
        self.sender.try_send(Demand { what, seen, done }).ok()?;
        Some(answer)
    }

    /// The end that is listened at; it is given once.
    pub(crate) fn take(&self) -> Option<mpsc::Receiver<Demand>> {
        self.receiver.lock().take()
    }
}
