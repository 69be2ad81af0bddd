//! `tidegate control`: sockets and signals for the control plane. It must not know how it serves.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tidegate_control::run::{self, Listen, RunError};
use tidegate_control::server::tls::{Tls, TlsError, TlsFiles};
use tidegate_control::source::registry::{self, RegistryError};
use tidegate_control::source::{
    Access, Directory, EtcdUrl, EtcdUrlError, Password, Registered, Registries, Registry, Security, SecurityFiles,
    Store,
};
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
    #[error("--{0}: {1}")]
    OfRegistry(&'static str, String),
    #[error("TLS of registry '{0}': {1}")]
    RegistryTls(String, TlsError),
    #[error("TLS of etcd: {0}")]
    StoreTls(TlsError),
    #[error("--store: {0}")]
    Store(#[from] EtcdUrlError),
    #[error("--store-password-file: {0}")]
    StorePassword(String),
    #[error("--{0}: that is for etcd, not for {path}", path = .1.display())]
    ForEtcd(&'static str, PathBuf),
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
    let registries = registries(&flags)?;
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
    if source
        .to_str()
        .is_some_and(|source| ["etcd://", "etcd+https://"].iter().any(|scheme| source.starts_with(scheme)))
    {
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
        Some(url) => {
            let identity = flags.store_certificate.clone().zip(flags.store_key.clone());
            let files = flags.store_ca.clone().map(|ca| SecurityFiles { ca, identity });
            let security = files.map(Security::new).transpose().map_err(ControlError::StoreTls)?;
            Store::connect(url?, Access { password, security }, held, registries).await
        }
        None if password.is_some() => return Err(ControlError::ForEtcd("store-password-file", store.clone())),
        None if flags.store_ca.is_some() => return Err(ControlError::ForEtcd("store-ca", store.clone())),
        None => Store::open(store, held, registries),
    };
    Ok(Some(opened.map_err(RunError::Source)?))
}

/// The registries of the command line, each with what goes with it.
fn registries(flags: &ControlFlags) -> Result<Registries, ControlError> {
    let mut tokens = OfRegistries::read("registry-token-file", &flags.registry_token_file)?;
    let mut authorities = OfRegistries::read("registry-ca", &flags.registry_ca)?;
    let mut chains = OfRegistries::read("registry-certificate", &flags.registry_certificate)?;
    let mut keys = OfRegistries::read("registry-key", &flags.registry_key)?;
    let mut all = Vec::new();
    for url in &flags.registry {
        let name = registry::name_of(url);
        let token = tokens.take(name).map(|path| registry::token(&path)).transpose();
        let token = token.map_err(|reason| tokens.wrong(reason))?;
        let identity = match (chains.take(name), keys.take(name)) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            (Some(_), None) => return Err(chains.wrong(format!("--registry-key {name}=FILE is required, too"))),
            (None, Some(_)) => return Err(keys.wrong(format!("--registry-certificate {name}=FILE is required, too"))),
        };
        let security = match authorities.take(name) {
            Some(ca) => {
                let files = SecurityFiles { ca, identity };
                Some(Security::new(files).map_err(|error| ControlError::RegistryTls(name.to_owned(), error))?)
            }
            None if identity.is_some() => {
                return Err(chains.wrong(format!("--registry-ca {name}=FILE is required, too")));
            }
            None => None,
        };
        all.push(Registry::parse(url, registry::Access { token, security })?);
    }
    [tokens, authorities, chains, keys].into_iter().try_for_each(OfRegistries::all_taken)?;
    Ok(Registries::new(all)?)
}

/// What one flag says of registries, by their names.
struct OfRegistries<'a> {
    flag: &'static str,
    files: BTreeMap<&'a str, PathBuf>,
}

impl<'a> OfRegistries<'a> {
    fn read(flag: &'static str, given: &'a [String]) -> Result<Self, ControlError> {
        let mut all = Self { flag, files: BTreeMap::new() };
        for one in given {
            let (name, path) = one.split_once('=').ok_or_else(|| all.wrong(format!("'{one}' is not NAME=FILE")))?;
            if all.files.insert(name, path.into()).is_some() {
                return Err(all.wrong(format!("'{name}' has two")));
            }
        }
        Ok(all)
    }

    fn take(&mut self, name: &str) -> Option<PathBuf> {
        self.files.remove(name)
    }

    fn wrong(&self, reason: String) -> ControlError {
        ControlError::OfRegistry(self.flag, reason)
    }

    fn all_taken(self) -> Result<(), ControlError> {
        let left = self.files.keys().next();
        left.map_or(Ok(()), |name| Err(self.wrong(format!("there is no registry '{name}'"))))
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
