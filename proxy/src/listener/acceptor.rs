//! Accepts on one socket of one worker: within the limits, as many at a time as configured, on the worker with the
//! fewest connections where the load is balanced exactly. It must not know what becomes of a connection.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

use super::Listener;
use super::accept::{self, Accepted};
use super::load::{Load, Place, Refused};
use crate::app::Shared;
use crate::worker::{Command, Current, ListeningSocket};

/// One socket's accepting.
pub(crate) struct Acceptor {
    pub worker: usize,
    pub shared: Arc<Shared>,
    pub current: Current,
    pub load: Arc<Load>,
}

/// A connection on its way to another worker.
pub(crate) struct HandedOver {
    pub listener: Arc<Listener>,
    pub accepted: Detached,
    pub place: Place,
}

/// An accepted socket without a runtime.
pub(crate) enum Detached {
    Tcp(std::net::TcpStream, std::net::SocketAddr),
    Unix(std::os::unix::net::UnixStream),
}

impl Detached {
    /// Puts it on the runtime of this thread.
    pub(crate) fn attach(self) -> io::Result<Accepted> {
        Ok(match self {
            Self::Tcp(stream, peer) => Accepted::Tcp(TcpStream::from_std(stream)?, peer),
            Self::Unix(stream) => Accepted::Unix(UnixStream::from_std(stream)?),
        })
    }
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(socket) => socket.accept().await.map(|(stream, peer)| {
                // Without it small responses wait for acknowledgements; the socket works all the same.
                let _ = stream.set_nodelay(true);
                Accepted::Tcp(stream, peer)
            }),
            Self::Unix(socket) => socket.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }

    /// What waits in the queue, without asking the runtime whether something does.
    fn rest(self) -> io::Result<Vec<Accepted>> {
        let mut rest = Vec::new();
        match self {
            Self::Tcp(socket) => {
                let socket = socket.into_std()?;
                while let Ok((stream, peer)) = socket.accept() {
                    stream.set_nonblocking(true)?;
                    let _ = stream.set_nodelay(true);
                    rest.push(Accepted::Tcp(TcpStream::from_std(stream)?, peer));
                }
            }
            Self::Unix(socket) => {
                let socket = socket.into_std()?;
                while let Ok((stream, _)) = socket.accept() {
                    stream.set_nonblocking(true)?;
                    rest.push(Accepted::Unix(UnixStream::from_std(stream)?));
                }
            }
        }
        Ok(rest)
    }
}

impl Acceptor {
    /// Accepts until `stopped`; then what waits already is taken, and the socket closed.
    pub(crate) fn start(self, socket: ListeningSocket, mut stopped: watch::Receiver<()>) -> io::Result<()> {
        let socket = match socket {
            ListeningSocket::Tcp(socket) => Socket::Tcp(TcpListener::from_std(socket)?),
            ListeningSocket::Unix(socket) => Socket::Unix(UnixListener::from_std(socket)?),
        };
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    // Nothing is ever sent: the sender goes when it is time to stop.
                    _ = stopped.changed() => break,
                    first = socket.accept() => self.batch(first, &socket).await,
                }
            }
            match socket.rest() {
                Ok(rest) => rest.into_iter().for_each(|accepted| self.admit(accepted)),
                Err(error) => tracing::warn!(%error, "cannot empty the queue of a socket"),
            }
        });
        Ok(())
    }

    /// Takes what waits, at most `max_connections_to_accept_per_socket_event`.
    async fn batch(&self, first: io::Result<Accepted>, socket: &Socket) {
        let (stats, most) = {
            let listener = self.current.load();
            (listener.stats.clone(), listener.max_accepts_per_event)
        };
        let mut next = Some(first);
        let mut count = 0;
        while let Some(accepted) = next.take() {
            match accepted {
                Ok(accepted) => {
                    count += 1;
                    self.admit(accepted);
                }
                Err(error) if is_exhaustion(&error) => {
                    if let Some(times) = self.shared.global_load().exhaustion.note(Instant::now()) {
                        tracing::warn!(%error, times, "cannot accept; waiting for resources");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // The peer gave up between connecting and being accepted.
                Err(_) => {}
            }
            if count < most {
                next = socket.accept().now_or_never();
            }
        }
        stats.connections_accepted_per_socket_event().record(u64::from(count));
    }

    fn admit(&self, accepted: Accepted) {
        let listener = self.current.load_full();
        let worker = if listener.exact_balance { self.load.least_loaded(self.worker) } else { self.worker };
        let place = match self.load.enter(&listener, worker, &self.shared) {
            Ok(place) => place,
            Err(Refused::Listener) => return listener.stats.downstream_cx_overflow().inc(),
            Err(Refused::Everywhere) => return listener.stats.downstream_global_cx_overflow().inc(),
        };
        if worker == self.worker {
            tokio::spawn(accept::serve(Arc::clone(&self.shared), listener, accepted, place));
            return;
        }
        match accepted.detach() {
            Ok(accepted) => {
                self.load.tell(worker, Command::Serve(HandedOver { listener, accepted, place }));
            }
            Err(error) => tracing::error!(%error, "cannot hand a connection to another worker"),
        }
    }
}

impl Accepted {
    /// Takes it off this thread's runtime.
    fn detach(self) -> io::Result<Detached> {
        Ok(match self {
            Self::Tcp(stream, peer) => Detached::Tcp(stream.into_std()?, peer),
            Self::Unix(stream) => Detached::Unix(stream.into_std()?),
        })
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
