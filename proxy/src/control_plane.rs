//! `tidegate control`: sockets and signals for the control plane. It must not know how it serves.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_control::run::{self, Listen, RunError};
use tidegate_control::server::tls::{Tls, TlsError, TlsFiles};
use tidegate_control::source::registry::{self, RegistryError};
use tidegate_control::source::{Directory, EtcdUrl, EtcdUrlError, Password, Registered, Registries, Registry, Store};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ControlFlags;
use crate::server::signals::HANG_UP;

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
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("--registry-token-file: {0}")]
    RegistryToken(String),
    #[error("--store: {0}")]
    Store(#[from] EtcdUrlError),
    #[error("--store-password-file: {0}")]
    StorePassword(String),
    #[error("--store-password-file: only etcd has passwords, not {}", .0.display())]
    NoPassword(PathBuf),
    #[error("--source: etcd keeps what is changed over the admin interface: --store etcd://...")]
    NoSource,
    #[error("TLS of clients: {0}")]
    Tls(#[from] TlsError),
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
    let mut hang_up = signal(SignalKind::hangup()).map_err(ControlError::Signals)?;
    let mut end = std::pin::pin!(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hang_up.recv() => tracing::warn!("{}", HANG_UP),
            }
        }
    });
    let tokens = flags.token_file.clone().map(tokens).transpose()?.unwrap_or_default();
    let registries = registries(&flags.registry, &flags.registry_token_file)?;
    // Before anybody may come: who finds nobody goes to another replica.
    let store = tokio::select! {
        store = store(&flags, &registries) => store?,
        () = &mut end => return Ok(()),
    };
    let tls = match (flags.tls_certificate, flags.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(Tls::new(TlsFiles { certificate, key, client_ca: flags.tls_client_ca })?)
        }
        // The command line has both or none.
        _ => None,
    };
    let clients = listen(flags.listen)?;
    let admin = match flags.admin {
        Some(address) => Some(listen(address)?),
        None => None,
    };
    tracing::info!(address = %flags.listen, admin = ?flags.admin, "control plane starts");
    let listen = Listen { clients, admin, tokens, tls, store: store.clone() };
    if let Some(store) = store {
        return Ok(run::run(Registered::new(store.source(), registries), listen, end).await?);
    }
    // The command line has one of them.
    let source = flags.source.unwrap_or_default();
    if source.to_str().is_some_and(|source| source.starts_with("etcd://")) {
        return Err(ControlError::NoSource);
    }
    let source = Directory::new(source, flags.bootstrap_cluster).with_registries(registries.clone());
    Ok(run::run(Registered::new(source, registries), listen, end).await?)
}

/// The store of the command line, if there is one.
async fn store(flags: &ControlFlags, registries: &Registries) -> Result<Option<Arc<Store>>, ControlError> {
    let Some(store) = &flags.store else { return Ok(None) };
    let (held, registries) = (flags.bootstrap_cluster.clone(), registries.clone());
    let password = flags.store_password_file.as_deref().map(Password::read).transpose();
    let password = password.map_err(ControlError::StorePassword)?;
    let opened = match store.to_str().and_then(EtcdUrl::parse) {
        Some(url) => Store::connect(url?, password, held, registries).await,
        None if password.is_some() => return Err(ControlError::NoPassword(store.clone())),
        None => Store::open(store, held, registries),
    };
    Ok(Some(opened.map_err(RunError::Source)?))
}

/// The registries of the command line, each with its token.
fn registries(urls: &[String], token_files: &[String]) -> Result<Registries, ControlError> {
    let mut tokens = BTreeMap::new();
    for given in token_files {
        let (name, path) =
            given.split_once('=').ok_or_else(|| ControlError::RegistryToken(format!("'{given}' is not NAME=FILE")))?;
        tokens.insert(name, registry::token(Path::new(path)).map_err(ControlError::RegistryToken)?);
    }
    let mut all = Vec::new();
    for url in urls {
        let token = tokens.remove(registry::name_of(url));
        all.push(Registry::parse(url, token.as_deref())?);
    }
    match tokens.keys().next() {
        Some(name) => Err(ControlError::RegistryToken(format!("there is no registry '{name}'"))),
        None => Ok(Registries::new(all)?),
    }
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
