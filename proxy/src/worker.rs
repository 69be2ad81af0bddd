//! A data worker: one thread with its own runtime, its own sockets of every listener, its own pools.
//! It must not know how listeners are decided on; it is told to listen and to stop.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use crate::app::Shared;
use crate::cluster::pool;
use crate::listener::Listener;
use crate::listener::accept;
use crate::listener::acceptor::{Acceptor, HandedOver};
use crate::listener::load::Load;

/// A listening socket that has no runtime yet.
pub(crate) enum ListeningSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// The listener that a socket belongs to, as it is now.
pub(crate) type Current = Arc<ArcSwap<Listener>>;

/// What a worker is told.
pub(crate) enum Command {
    Listen {
        listener: Arc<str>,
        current: Current,
        load: Arc<Load>,
        sockets: Vec<ListeningSocket>,
    },
    /// Serve what another worker has accepted (`exact_balance`).
    Serve(HandedOver),
    /// Stop accepting for a listener; its connections go on.
    Stop {
        listener: Arc<str>,
    },
    /// Keep no connection to a host that nobody uses: the process leaves.
    Leave,
    Shutdown,
}

/// Where a worker is told; as many commands wait as there are changes of listeners and connections handed over.
pub(crate) type Commands = mpsc::UnboundedSender<Command>;

/// What a worker may use for calls within calls: one in a build that is not optimised takes more than 2 MiB for a request that
/// goes from cluster to cluster. Only what is used takes memory.
const STACK_BYTES: usize = 4 << 20;

/// A running worker.
pub(crate) struct Worker {
    commands: Commands,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(index: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(61).build()?;
        let thread = std::thread::Builder::new().name(format!("worker_{index}")).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || {
            tidegate_stats::enter_worker(index);
            runtime.block_on(run(index, shared, receiver));
            runtime.shutdown_timeout(Duration::from_millis(100));
        })?;
        Ok(Self { commands, thread: Some(thread) })
    }

    pub(crate) fn commands(&self) -> Commands {
        self.commands.clone()
    }

    pub(crate) fn tell(&self, command: Command) {
        // A worker that has ended was told to.
        let _ = self.commands.send(command);
    }

    /// Waits for the thread to end; it was told to shut down before.
    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker panicked");
        }
    }
}

async fn run(index: usize, shared: Arc<Shared>, mut commands: mpsc::UnboundedReceiver<Command>) {
    // Dropping a listener's sender tells those that accept for it to stop.
    let mut accepting: HashMap<Arc<str>, watch::Sender<()>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen { listener, current, load, sockets } => {
                let (stop, stopped) = watch::channel(());
                for socket in sockets {
                    let acceptor = Acceptor {
                        worker: index,
                        shared: Arc::clone(&shared),
                        current: Arc::clone(&current),
                        load: Arc::clone(&load),
                    };
                    // It ends when it is told to stop, or with this runtime.
                    if let Err(error) = acceptor.start(socket, stopped.clone()) {
                        tracing::error!(%error, "cannot accept on a socket");
                    }
                }
                accepting.insert(listener, stop);
            }
            Command::Serve(connection) => {
                let HandedOver { listener, accepted, place } = connection;
                match accepted.attach() {
                    Ok(accepted) => {
                        tokio::spawn(accept::serve(Arc::clone(&shared), listener, accepted, place));
                    }
                    Err(error) => tracing::error!(%error, "cannot take a connection from another worker"),
                }
            }
            Command::Stop { listener } => {
                accepting.remove(&listener);
            }
            Command::Leave => pool::leave(),
            Command::Shutdown => break,
        }
    }
}
