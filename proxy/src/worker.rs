//! A data worker: one thread with its own runtime, its own sockets of every listener, its own pools.
//! It must not know how listeners are decided on; it is told to listen and to stop.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::app::Shared;
use crate::listener::Listener;
use crate::listener::accept::{self, Accepted};

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
        sockets: Vec<ListeningSocket>,
    },
    /// Stop accepting for a listener; its connections go on.
    Stop {
        listener: Arc<str>,
    },
    Shutdown,
}

/// A running worker.
pub(crate) struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(index: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(61).build()?;
        let thread = std::thread::Builder::new().name(format!("worker_{index}")).spawn(move || {
            tidegate_stats::enter_worker(index);
            runtime.block_on(run(shared, receiver));
            runtime.shutdown_timeout(Duration::from_millis(100));
        })?;
        Ok(Self { commands, thread: Some(thread) })
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

async fn run(shared: Arc<Shared>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut accepting: HashMap<Arc<str>, Vec<AbortHandle>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen { listener, current, sockets } => {
                let tasks = accepting.entry(listener).or_default();
                for socket in sockets {
                    match accept_on(Arc::clone(&shared), Arc::clone(&current), socket) {
                        Ok(task) => tasks.push(task),
                        Err(error) => tracing::error!(%error, "cannot accept on a socket"),
                    }
                }
            }
            Command::Stop { listener } => {
                for task in accepting.remove(&listener).into_iter().flatten() {
                    task.abort();
                }
            }
            Command::Shutdown => break,
        }
    }
}

fn accept_on(shared: Arc<Shared>, current: Current, socket: ListeningSocket) -> io::Result<AbortHandle> {
    let task = match socket {
        ListeningSocket::Tcp(socket) => {
            let socket = TcpListener::from_std(socket)?;
            tokio::spawn(async move {
                loop {
                    let accepted = socket.accept().await.map(|(stream, peer)| {
                        // Without it small responses wait for acknowledgements; the socket works all the same.
                        let _ = stream.set_nodelay(true);
                        Accepted::Tcp(stream, peer)
                    });
                    hand_on(&shared, &current, accepted).await;
                }
            })
        }
        ListeningSocket::Unix(socket) => {
            let socket = UnixListener::from_std(socket)?;
            tokio::spawn(async move {
                loop {
                    let accepted = socket.accept().await.map(|(stream, _)| Accepted::Unix(stream));
                    hand_on(&shared, &current, accepted).await;
                }
            })
        }
    };
    Ok(task.abort_handle())
}

async fn hand_on(shared: &Arc<Shared>, current: &Current, accepted: io::Result<Accepted>) {
    match accepted {
        Ok(accepted) => {
            tokio::spawn(accept::serve(Arc::clone(shared), current.load_full(), accepted));
        }
        Err(error) if is_exhaustion(&error) => {
            tracing::warn!(%error, "cannot accept; waiting for resources");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The peer gave up between connecting and being accepted.
        Err(_) => {}
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
