//! Connections to where resources are kept or told of: as they are, or in TLS with whom an authority of ours vouches for. It must
//! not know what is asked there.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tidegate_tls::client::Target;
use tidegate_tls::parameters::{Version, Wanted};
use tidegate_tls::validation::{Roots, Trust};
use tidegate_tls::{ClientContext, ClientSettings, Identity, Parameters, TlsStream, Validation};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::server::tls::TlsError;

/// The files, PEM.
#[derive(Debug, Clone)]
pub struct SecurityFiles {
    /// Whom the other side's certificate must come from; it must be for the host that is asked.
    pub ca: PathBuf,
    /// What it is shown where it asks: a certificate chain and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// TLS with where resources come from. The files are read again for the next connection once they have changed.
#[derive(Debug)]
pub struct Security {
    files: SecurityFiles,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    context: Arc<ClientContext>,
    /// When each file was changed last.
    seen: Vec<Option<SystemTime>>,
}

impl Security {
    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read, or is of no use.
    pub fn new(files: SecurityFiles) -> Result<Arc<Self>, TlsError> {
        let seen = times(&files);
        let context = Arc::new(read(&files)?);
        Ok(Arc::new(Self { files, state: Mutex::new(State { context, seen }) }))
    }

    /// What the next connection shakes hands with. Files of no use change nothing.
    fn context(&self) -> Arc<ClientContext> {
        let mut state = self.state.lock();
        let seen = times(&self.files);
        if seen != state.seen {
            state.seen = seen;
            match read(&self.files) {
                Ok(context) => state.context = Arc::new(context),
                Err(error) => tracing::error!(%error, "what certificates held before is shown and trusted on"),
            }
        }
        Arc::clone(&state.context)
    }

    /// Shakes hands with a host, a name or an address.
    async fn shake(&self, host: &str, stream: TcpStream, protocol: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        let alpn = [protocol.to_vec()];
        // An address in the words in which certificates are compared with it.
        let expected: Arc<str> =
            host.parse::<IpAddr>().map_or_else(|_| host.into(), |address| address.to_string().into());
        let target = Target { server_name: Some(host), expected: Some(&expected), address: None, alpn: Some(&alpn) };
        match self.context().connect(stream, target).await {
            Ok((stream, _)) => Ok(stream),
            Err(failure) => Err(io::Error::other(format!("TLS: {failure}"))),
        }
    }
}

fn times(files: &SecurityFiles) -> Vec<Option<SystemTime>> {
    let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let identity = files.identity.iter().flat_map(|(chain, key)| [chain, key]);
    [&files.ca].into_iter().chain(identity).map(changed).collect()
}

fn read(files: &SecurityFiles) -> Result<ClientContext, TlsError> {
    let bytes = |path: &Path| std::fs::read(path).map_err(|error| TlsError::Read(path.to_owned(), error));
    let shown = |path: &Path| path.display().to_string();
    let trust = Trust::new(Roots::load(&bytes(&files.ca)?, &shown(&files.ca))?);
    let identity = match &files.identity {
        Some((chain, key)) => Some(Arc::new(Identity::load(&bytes(chain)?, &bytes(key)?, None, &shown(chain))?)),
        None => None,
    };
    let wanted =
        Wanted { min: Version::Tls12, max: Version::Tls13, cipher_suites: &[], groups: &[], signature_algorithms: &[] };
    Ok(ClientContext::build(ClientSettings {
        parameters: Parameters::new(&wanted)?,
        identity,
        validation: Arc::new(Validation { trust: Some(trust), ..Validation::default() }),
        expects_server_name: false,
        enforces_rsa_key_usage: false,
        alpn: Vec::new(),
        kept_sessions: 0,
    })?)
}

/// Makes connections to the authorities of URIs.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    plain: HttpConnector,
    security: Option<Arc<Security>>,
    /// What is spoken (ALPN).
    protocol: &'static [u8],
    /// How long a connection, and then a handshake, may take.
    limit: Duration,
}

impl Dialer {
    pub(super) fn new(security: Option<Arc<Security>>, protocol: &'static [u8], limit: Duration) -> Self {
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        plain.set_connect_timeout(Some(limit));
        plain.set_nodelay(true);
        Self { plain, security, protocol, limit }
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Wire>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.plain.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.plain.call(uri.clone());
        let (security, protocol, limit) = (self.security.clone(), self.protocol, self.limit);
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let Some(security) = security else { return Ok(TokioIo::new(Wire::Plain(stream))) };
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let shaken = tokio::time::timeout(limit, security.shake(host, stream, protocol)).await;
            let late = |_| format!("TLS: no handshake within {} s", limit.as_secs());
            Ok(TokioIo::new(Wire::Secured(Box::new(shaken.map_err(late)??))))
        })
    }
}

/// A connection.
#[derive(Debug)]
pub(super) enum Wire {
    Plain(TcpStream),
    Secured(Box<TlsStream<TcpStream>>),
}

macro_rules! carried {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut *$self {
            Wire::Plain($stream) => $call,
            Wire::Secured($stream) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        carried!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        carried!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        carried!(self, stream => Pin::new(stream).poll_write_vectored(context, slices))
    }

    /// Both kinds take several slices at once.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        carried!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        carried!(self, stream => Pin::new(stream).poll_shutdown(context))
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
