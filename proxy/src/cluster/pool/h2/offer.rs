//! Places on connections, on their way to who asked for one: what nobody takes is offered to the next who waits.
//! It must not know what a place is used for.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Connection, Pool, State};

/// A place for one stream, until it is taken.
pub(super) struct Offer {
    connection: Arc<Connection>,
    pool: Arc<Pool>,
    open: bool,
}

impl Offer {
    pub(super) fn new(pool: &Arc<Pool>, connection: &Arc<Connection>) -> Self {
        connection.shared.offered.fetch_add(1, Relaxed);
        Self { connection: Arc::clone(connection), pool: Arc::clone(pool), open: true }
    }

    /// Takes the place: from here on it is no offer any more.
    pub(super) fn take(mut self) -> Arc<Connection> {
        self.close();
        Arc::clone(&self.connection)
    }

    fn close(&mut self) -> bool {
        let was_open = std::mem::take(&mut self.open);
        if was_open {
            self.connection.shared.offered.fetch_sub(1, Relaxed);
        }
        was_open
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if self.close() {
            self.pool.offer(&mut self.pool.state.lock(), &self.connection);
        }
    }
}

impl Pool {
    /// Offers the places that a connection has to those who wait.
    pub(super) fn offer(self: &Arc<Self>, state: &mut State, connection: &Arc<Connection>) {
        while state.waiters.len() > 0 && self.room(connection) > 0 {
            if let Some(mut back) = state.waiters.serve(Offer::new(self, connection)) {
                // Nobody waits any more. Dropped open, it would look for the next.
                back.close();
            }
        }
    }
}
