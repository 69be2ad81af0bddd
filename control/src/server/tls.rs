//! TLS of clients: a certificate and, where clients have to show one, whom theirs must come from, in files that are read again
//! when others take their place. It must not know what clients ask.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tidegate_tls::parameters::{Version, Wanted};
use tidegate_tls::server::Stapling;
use tidegate_tls::tickets::TicketKeys;
use tidegate_tls::validation::{Roots, Trust};
use tidegate_tls::{Failure, Identity, Parameters, Refused, ServerContext, ServerSettings, TlsStream, Validation};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {1}", path = .0.display())]
    Read(PathBuf, io::Error),
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// The files, PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients have to show a certificate that one of these has signed; none: they need none.
    pub client_ca: Option<PathBuf>,
}

/// TLS as it is now.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    context: Mutex<Arc<ServerContext>>,
    /// When each file was changed last, as of the last look.
    seen: Mutex<Times>,
}

type Times = Vec<Option<SystemTime>>;

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read, or is of no use.
    pub fn new(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let seen = times(&files);
        let context = Mutex::new(Arc::new(read(&files)?));
        Ok(Arc::new(Self { files, context, seen: Mutex::new(seen) }))
    }

    /// Looks at the files again and again, where nobody waits for it. Files of no use change nothing.
    pub(crate) async fn follow(self: Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            let this = Arc::clone(&self);
            // It fails only as the process ends.
            let _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
    }

    fn look(&self) {
        let seen = times(&self.files);
        if std::mem::replace(&mut *self.seen.lock(), seen.clone()) == seen {
            return;
        }
        match read(&self.files) {
            Ok(context) => {
                tracing::info!("certificates were read again");
                *self.context.lock() = Arc::new(context);
            }
            Err(error) => tracing::error!(%error, "what certificates held before serves on"),
        }
    }

    /// What new connections shake hands with.
    fn context(&self) -> Arc<ServerContext> {
        Arc::clone(&self.context.lock())
    }
}

fn times(files: &TlsFiles) -> Times {
    let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    [&files.certificate, &files.key].into_iter().chain(&files.client_ca).map(changed).collect()
}

fn read(files: &TlsFiles) -> Result<ServerContext, TlsError> {
    let bytes = |path: &Path| std::fs::read(path).map_err(|error| TlsError::Read(path.to_owned(), error));
    let shown = |path: &Path| path.display().to_string();
    let (chain, key) = (bytes(&files.certificate)?, bytes(&files.key)?);
    let identity = Identity::load(&chain, &key, None, &shown(&files.certificate))?;
    let mut validation = Validation::default();
    if let Some(path) = &files.client_ca {
        validation.trust = Some(Trust::new(Roots::load(&bytes(path)?, &shown(path))?));
    }
    let wanted =
        Wanted { min: Version::Tls12, max: Version::Tls13, cipher_suites: &[], groups: &[], signature_algorithms: &[] };
    Ok(ServerContext::build(ServerSettings {
        parameters: Parameters::new(&wanted)?,
        identities: vec![Arc::new(identity)],
        require_client_certificate: validation.trust.is_some(),
        validation: Arc::new(validation),
        require_server_name: false,
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        prefer_client_ciphers: false,
        full_scan: false,
        stapling: Stapling::Lenient,
        // Each context has keys of its own: who was let in before the files changed is asked again.
        tickets: Some(TicketKeys::Random),
        stateful_sessions: false,
        session_timeout: None,
        digest: [0; 32],
    })?)
}

/// A client's bytes, within TLS or as they are.
pub(crate) enum Carrier {
    Plain(TcpStream),
    Shaking(Pin<Box<dyn Future<Output = Result<TlsStream<TcpStream>, Failure>> + Send>>),
    Secured(Box<TlsStream<TcpStream>>),
    Refused,
}

impl Carrier {
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr, tls: Option<&Arc<Tls>>) -> Self {
        let Some(tls) = tls else { return Self::Plain(stream) };
        let context = tls.context();
        Self::Shaking(Box::pin(async move {
            let shaken = context.accept(stream).await;
            // Whoever likes can fail as often as he likes.
            shaken.map(|(stream, _)| stream).inspect_err(|failure| tracing::debug!(%peer, %failure, "turned away"))
        }))
    }

    /// Ready once the handshake is over.
    fn poll_shaken(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Shaking(shaking) = self {
            *self = match ready!(shaking.as_mut().poll(context)) {
                Ok(stream) => Self::Secured(Box::new(stream)),
                Err(_) => Self::Refused,
            };
        }
        match self {
            Self::Refused => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

macro_rules! carried {
    ($self:expr, $context:expr, $stream:ident => $call:expr) => {{
        ready!($self.poll_shaken($context))?;
        match &mut *$self {
            Carrier::Plain($stream) => $call,
            Carrier::Secured($stream) => $call,
            Carrier::Shaking(_) | Carrier::Refused => Poll::Pending,
        }
    }};
}

impl AsyncRead for Carrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        carried!(self, context, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        carried!(self, context, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        carried!(self, context, stream => Pin::new(stream).poll_write_vectored(context, slices))
    }

    /// Both kinds of stream take several slices at once.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        carried!(self, context, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Secured(stream) => Pin::new(stream).poll_shutdown(context),
            // There is nothing to end yet, or any more.
            Self::Shaking(_) | Self::Refused => Poll::Ready(Ok(())),
        }
    }
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Shaking(_) => "Shaking",
            Self::Secured(_) => "Secured",
            Self::Refused => "Refused",
        })
    }
}
