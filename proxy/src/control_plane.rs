//! `tidegate control`: sockets and signals for the control plane. It must not know how it serves.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tidegate_control::run::{self, Listen, RunError};
use tidegate_control::source::{Directory, Store};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ControlFlags;

/// How many connections may wait: after a restart all proxies come back at once.
const BACKLOG: u32 = 4096;

/// Why the control plane did not run.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    #[error("cannot read tokens from {path}: {1}", path = .0.display())]
    Tokens(PathBuf, io::Error),
    #[error("there is no token in {}", .0.display())]
    NoToken(PathBuf),
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// An address that cannot be bound, and what [`run::run`] has against the source.
pub async fn run(flags: ControlFlags) -> Result<(), ControlError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ControlError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ControlError::Signals)?;
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let tokens = flags.token_file.map(tokens).transpose()?.unwrap_or_default();
    let clients = listen(flags.listen)?;
    let admin = match flags.admin {
        Some(address) => Some(listen(address)?),
        None => None,
    };
    tracing::info!(address = %flags.listen, admin = ?flags.admin, "control plane starts");
    let mut listen = Listen { clients, admin, tokens, store: None };
    if let Some(directory) = flags.store {
        let store = Store::open(&directory, flags.bootstrap_cluster).map_err(RunError::Source)?;
        listen.store = Some(store.clone());
        return Ok(run::run(store.source(), listen, end).await?);
    }
    // The command line has one of them.
    let source = Directory::new(flags.source.unwrap_or_default(), flags.bootstrap_cluster);
    Ok(run::run(source, listen, end).await?)
}

fn listen(address: SocketAddr) -> Result<TcpListener, ControlError> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|error| ControlError::Listen(address, error))
}

/// One a line. A file without any would let anybody in, which nobody means who gives one.
fn tokens(path: PathBuf) -> Result<Vec<String>, ControlError> {
    let text = std::fs::read_to_string(&path).map_err(|error| ControlError::Tokens(path.clone(), error))?;
    let tokens: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if tokens.is_empty() { Err(ControlError::NoToken(path)) } else { Ok(tokens) }
}
