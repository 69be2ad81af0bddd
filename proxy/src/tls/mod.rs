//! TLS of listeners and clusters: contexts that may change while they serve, handshakes, and what is counted of them.
//! It must not know where certificates come from, or what is said once a handshake is over.

mod stats;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwapOption;
use tidegate_filters::connection::TlsInfo;
use tidegate_tls::client::{Target, check_server_name};
use tidegate_tls::{ClientContext, Failure, ServerContext, Session};

pub(crate) use stats::Expiring;
pub use stats::{SocketFactoryStats, TlsStats};

use crate::cluster::proxied::Proxied;
use crate::cluster::sockets::Chosen;
use crate::io::Transport;

/// Envoy's word where a secret has not come yet.
const NOT_READY: &str = "TLS error: Secret is not supplied by SDS";

/// TLS of a filter chain.
pub struct ServerTls {
    /// None: a secret that it needs has not come.
    context: ArcSwapOption<ServerContext>,
    stats: TlsStats,
    factory: SocketFactoryStats,
}

/// TLS to a cluster's hosts.
pub struct ClientTls {
    /// None: a secret that it needs has not come.
    context: ArcSwapOption<ClientContext>,
    /// The host that is named to all hosts; empty: none.
    pub server_name: Arc<str>,
    /// `auto_host_sni`: each is told its own name.
    pub auto_host_sni: bool,
    stats: TlsStats,
    factory: SocketFactoryStats,
}

/// Why there is no connection within TLS: Envoy's transport failure reason, where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoHandshake(pub Arc<str>);

impl ServerTls {
    pub fn new(context: Option<ServerContext>, stats: TlsStats, factory: SocketFactoryStats) -> Self {
        let tls = Self { context: ArcSwapOption::from(context.map(Arc::new)), stats, factory };
        tls.show_expiry();
        tls
    }

    /// Hands new connections another context; those that are open keep theirs. `came`: a secret that came is the reason.
    pub fn replace(&self, context: ServerContext, came: bool) {
        self.context.store(Some(Arc::new(context)));
        if came {
            self.factory.ssl_context_update_by_sds().inc();
        }
        self.show_expiry();
    }

    /// What acts now.
    pub fn context(&self) -> Option<Arc<ServerContext>> {
        self.context.load_full()
    }

    /// What expires first of what is presented and trusted; once it has, that is told.
    pub(crate) fn expiring(&self, now: SystemTime) -> Expiring {
        self.stats.expiring(now)
    }

    fn show_expiry(&self) {
        if let Some(context) = self.context() {
            self.stats.show_expiry(context.identities(), context.validation());
        }
    }

    /// Shakes hands with a client.
    ///
    /// # Errors
    /// Either side does not agree; it is counted.
    pub(crate) async fn accept(&self, transport: Transport) -> Result<(Transport, Arc<TlsInfo>), NoHandshake> {
        let Some(context) = self.context() else {
            self.factory.downstream_context_secrets_not_ready().inc();
            return Err(NoHandshake(NOT_READY.into()));
        };
        match context.accept_telling(transport, |staple| self.stats.count_staple(staple)).await {
            Ok((stream, session)) => {
                self.stats.count(&session);
                Ok((Transport::Tls(Box::new(stream)), told(session)))
            }
            Err(failure) => Err(refused(&self.stats, &failure)),
        }
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl ClientTls {
    pub fn new(
        context: Option<ClientContext>,
        server_name: &str,
        auto_host_sni: bool,
        stats: TlsStats,
        factory: SocketFactoryStats,
    ) -> Self {
        let context = ArcSwapOption::from(context.map(Arc::new));
        let tls = Self { context, server_name: server_name.into(), auto_host_sni, stats, factory };
        tls.show_expiry();
        tls
    }

    /// Hands new connections another context; those that are open keep theirs. `came`: a secret that came is the reason.
    pub fn replace(&self, context: ClientContext, came: bool) {
        self.context.store(Some(Arc::new(context)));
        if came {
            self.factory.ssl_context_update_by_sds().inc();
        }
        self.show_expiry();
    }

    /// What acts now.
    pub fn context(&self) -> Option<Arc<ClientContext>> {
        self.context.load_full()
    }

    /// What expires first of what is presented and trusted; once it has, that is told.
    pub(crate) fn expiring(&self, now: SystemTime) -> Expiring {
        self.stats.expiring(now)
    }

    fn show_expiry(&self) {
        if let Some(context) = self.context() {
            self.stats.show_expiry(context.identity(), context.validation());
        }
    }

    /// Whether the host can be asked for by the name that a connection is for: nobody need connect to it otherwise.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn check_name(&self, wanted: &Wanted, hostname: &str) -> Result<(), NoHandshake> {
        match self.name_of(wanted, hostname) {
            "" => Ok(()),
            name => check_server_name(name).map_err(|failure| NoHandshake(failure.reason().into())),
        }
    }

    /// The host that is named to it; empty: none.
    fn name_of<'a>(&'a self, wanted: &'a Wanted, hostname: &'a str) -> &'a str {
        let own = Some(hostname).filter(|name| self.auto_host_sni && !name.is_empty());
        wanted.server_name.as_deref().or(own).unwrap_or(&self.server_name)
    }

    /// Shakes hands with a host at `address`. What is wanted goes before what is configured.
    ///
    /// # Errors
    /// Either side does not agree; it is counted.
    pub(crate) async fn connect(
        &self,
        transport: Transport,
        address: Option<IpAddr>,
        wanted: &Wanted,
        hostname: &str,
    ) -> Result<(Transport, Arc<TlsInfo>), NoHandshake> {
        let Some(context) = self.context() else {
            self.factory.upstream_context_secrets_not_ready().inc();
            return Err(NoHandshake(NOT_READY.into()));
        };
        let server_name = Some(self.name_of(wanted, hostname));
        let target = Target { server_name, expected: wanted.expected.as_ref(), address, alpn: wanted.alpn.as_deref() };
        match context.connect(transport, target).await {
            Ok((stream, session)) => {
                self.stats.count(&session);
                Ok((Transport::Tls(Box::new(stream)), told(session)))
            }
            Err(failure) => Err(refused(&self.stats, &failure)),
        }
    }
}

/// What a connection to a host is to say in its handshake other than what its cluster says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The host that is named to it (`auto_sni`).
    pub server_name: Option<Arc<str>>,
    /// Its certificate must have this name (`auto_san_validation`).
    pub expected: Option<Arc<str>>,
    /// The protocols that are offered where the cluster says nothing of them.
    pub alpn: Option<Arc<[Vec<u8>]>>,
    /// Whom it is for, where hosts are told.
    pub(crate) proxied: Option<Arc<Proxied>>,
    /// What the connection is wrapped in.
    pub(crate) socket: Chosen,
}

fn told(session: Session) -> Arc<TlsInfo> {
    Arc::new(TlsInfo::new(session, Instant::now()))
}

fn refused(stats: &TlsStats, failure: &Failure) -> NoHandshake {
    match failure {
        Failure::NoCertificate => stats.fail_verify_no_cert().inc(),
        Failure::Verify(reason) => stats.count_unverified(reason),
        other if other.is_connection_error() => stats.connection_error().inc(),
        _ => {}
    }
    NoHandshake(failure.reason().into())
}
