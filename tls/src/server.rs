//! The side that accepts: which certificate a client gets, what is asked of it, and the handshake (Envoy's
//! `DownstreamTlsContext`). It must not know listeners.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context as Digest, SHA256};
use parking_lot::Mutex;
use rustls::pki_types::UnixTime;
use rustls::server::{
    Accepted, Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, StoresServerSessions,
};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme, SupportedCipherSuite};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::certificate::KeyKind;
use crate::kept::KeptSessions;
use crate::session::{Notes, noting};
use crate::signing::limited;
use crate::stream::{Began, TlsStream};
use crate::tickets::{TicketKeys, Tickets};
use crate::validation::{Expected, Peer, Validation};
use crate::verifier::Verifier;
use crate::{Failure, Identity, Parameters, Refused, Session, hello};

/// How long a session can be resumed where nothing is said, in seconds.
const SESSION_TIMEOUT: u32 = 7200;

/// When a stapled response is demanded (`ocsp_staple_policy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stapling {
    /// It is stapled while it is valid.
    #[default]
    Lenient,
    /// A certificate whose response has expired is not used.
    Strict,
    /// A certificate without a valid response is not used.
    Must,
}

/// What a context is made of.
#[derive(Debug)]
pub struct ServerSettings {
    pub parameters: Parameters,
    /// The first is for those who ask for none of them.
    pub identities: Vec<Arc<Identity>>,
    pub validation: Arc<Validation>,
    pub require_client_certificate: bool,
    pub require_server_name: bool,
    /// In the order of preference.
    pub alpn: Vec<Vec<u8>>,
    pub prefer_client_ciphers: bool,
    /// `full_scan_certs_on_sni_mismatch`.
    pub full_scan: bool,
    pub stapling: Stapling,
    /// `None`: no tickets (`disable_stateless_session_resumption`).
    pub tickets: Option<TicketKeys>,
    /// Sessions are kept for clients of TLS 1.2 without tickets.
    pub stateful_sessions: bool,
    /// In seconds; 0, as for BoringSSL, is the default.
    pub session_timeout: Option<u32>,
    /// Tells contexts with other trust or other certificates apart: sessions are not resumed from one to another.
    pub digest: [u8; 32],
}

/// A context, ready for handshakes.
#[derive(Debug)]
pub struct ServerContext {
    identities: Vec<Presented>,
    shape: Shape,
    /// By name, the indexes of those that have it; a wildcard without its `*`.
    names: HashMap<String, Vec<usize>>,
    validation: Arc<Validation>,
    require_server_name: bool,
    full_scan: bool,
    stapling: Stapling,
}

/// What became of stapling in a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staple {
    /// The client takes no response.
    NotAsked,
    Sent,
    /// There was none to send, and none needed.
    Omitted,
    /// There was none that was needed: the client is turned away.
    Failed,
}

/// What a client asks of the certificate that it is shown.
#[derive(Debug, Clone, Copy)]
struct Asked {
    ecdsa: bool,
    /// A stapled response.
    staple: bool,
    now: SystemTime,
}

/// An identity with rustls' configurations for it.
#[derive(Debug)]
struct Presented {
    identity: Arc<Identity>,
    is_ecdsa: bool,
    config: Arc<ServerConfig>,
    /// For clients that offer only protocols that are not ours: Envoy then agrees on none.
    without_alpn: Arc<ServerConfig>,
    /// What few handshakes need.
    others: Mutex<HashMap<OtherKey, Arc<ServerConfig>>>,
}

/// The number of the suite of TLS 1.2, whether protocols are agreed on, whether a response is stapled.
type OtherKey = (Option<u16>, bool, bool);

/// Always the same certificate.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ServerContext {
    /// Makes a context.
    ///
    /// # Errors
    /// There is no certificate, one lacks an OCSP response that it must have, or rustls refuses the settings.
    pub fn build(settings: ServerSettings) -> Result<Self, Refused> {
        if settings.identities.is_empty() {
            return Err(Refused::new("Server TlsCertificates must have a certificate specified"));
        }
        for identity in settings.identities.iter().filter(|identity| identity.ocsp.is_none()) {
            if identity.leaf().must_staple {
                return Err(Refused::new("OCSP response is required for must-staple certificate"));
            }
            if settings.stapling == Stapling::Must {
                return Err(Refused::new("Required OCSP response is missing from TLS context"));
            }
        }
        let shape = Shape::new(&settings)?;
        let identities =
            settings.identities.iter().map(|identity| Presented::new(identity, &shape)).collect::<Result<_, _>>()?;
        let mut names: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, identity) in settings.identities.iter().enumerate() {
            for name in identity.names() {
                let key = name.strip_prefix('*').map(str::to_owned).unwrap_or(name);
                names.entry(key).or_default().push(index);
            }
        }
        Ok(Self {
            identities,
            shape,
            names,
            validation: settings.validation,
            require_server_name: settings.require_server_name,
            full_scan: settings.full_scan,
            stapling: settings.stapling,
        })
    }

    /// What is presented, in the order of the configuration.
    pub fn identities(&self) -> impl Iterator<Item = &Arc<Identity>> {
        self.identities.iter().map(|presented| &presented.identity)
    }

    pub fn validation(&self) -> &Arc<Validation> {
        &self.validation
    }

    /// Shakes hands with a client.
    ///
    /// # Errors
    /// Either side does not agree; what was to be said to the client was.
    pub async fn accept<IO>(&self, io: IO) -> Result<(TlsStream<IO>, Session), Failure>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.accept_telling(io, |_| ()).await
    }

    /// The same; who counts is told what became of stapling as soon as a certificate is chosen, whatever comes of the handshake.
    ///
    /// # Errors
    /// The same.
    pub async fn accept_telling<IO>(
        &self,
        io: IO,
        tell: impl FnOnce(Staple),
    ) -> Result<(TlsStream<IO>, Session), Failure>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), Began::remembering(io));
        let mut start = match (&mut acceptor).await {
            Ok(start) => start,
            Err(error) => {
                let io = acceptor.take_io();
                return Err(Failure::before_hello(error, io.as_ref().map_or(&[], Began::first)));
            }
        };
        let asks = hello::asks_for_staple(&start.io.take_heard());
        let hello = start.client_hello();
        let server_name = hello.server_name().map(str::to_owned);
        let chosen = self.choose(&hello, asks);
        let (config, identity) = match chosen {
            Ok((config, identity, staple)) => {
                tell(staple);
                (config, identity)
            }
            Err(failure) => {
                if matches!(failure, Failure::NoStaple) {
                    tell(Staple::Failed);
                }
                refuse(start).await;
                return Err(failure);
            }
        };
        let (handshake, notes) = noting(start.into_stream(config), Expected::default()).await;
        let stream = match handshake {
            Ok(stream) => stream,
            Err(error) => return Err(Failure::of(error, notes.reason)),
        };
        let mut session = Session::of(stream.get_ref().1, server_name, &notes);
        session.local = Some(identity);
        self.check_resumed(&mut session, &notes)?;
        Ok((TlsStream(stream.into()), session))
    }

    /// rustls asks no verifier about a client whose session it resumes: its chain is looked at again.
    fn check_resumed(&self, session: &mut Session, notes: &Notes) -> Result<(), Failure> {
        if !session.resumed || notes.outcome.is_some() {
            return Ok(());
        }
        let demanded = self.shape.verifier.as_ref().is_some_and(|verifier| verifier.mandatory);
        if session.peer_chain.is_empty() && demanded {
            return Err(Failure::NoCertificate);
        }
        if session.peer_chain.is_empty() || !self.validation.asks() {
            return Ok(());
        }
        let outcome = self.validation.check(&session.peer_chain, &notes.expected, Peer::Client, UnixTime::now());
        let outcome = outcome.map_err(Failure::Verify)?;
        session.peer_validated = outcome == crate::validation::Outcome::Validated;
        Ok(())
    }

    /// `asks`: the client takes a stapled response.
    fn choose(
        &self,
        hello: &ClientHello<'_>,
        asks: bool,
    ) -> Result<(Arc<ServerConfig>, Arc<Identity>, Staple), Failure> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        if name.is_none() && self.require_server_name {
            return Err(Failure::NoServerName);
        }
        let now = SystemTime::now();
        let suites = hello.cipher_suites();
        let ecdsa = hello.signature_schemes().iter().any(is_ecdsa) && self.shape.parameters.can_ecdsa(suites);
        let wanted = Asked { ecdsa, staple: asks, now };
        let index = self.select(name.as_deref(), wanted).ok_or(Failure::NoStaple)?;
        let presented = &self.identities[index];
        let ours = &presented.config.alpn_protocols;
        let agreed = match hello.alpn() {
            Some(mut offered) => offered.any(|protocol| ours.iter().any(|our| our == protocol)),
            None => true,
        };
        let stapled = presented.identity.ocsp.as_ref().is_none_or(|response| !response.is_expired(now));
        let suite = match self.shape.prefer_client_ciphers {
            true => None,
            false => self.shape.parameters.suite_for(suites, presented.is_ecdsa),
        };
        let config = match (suite, stapled) {
            (None, true) if agreed => Arc::clone(&presented.config),
            (None, true) => Arc::clone(&presented.without_alpn),
            _ => presented.other(&self.shape, Other { suite, alpn: agreed, stapled }),
        };
        let staple = match (asks, presented.identity.ocsp.is_some() && stapled) {
            (false, _) => Staple::NotAsked,
            (true, true) => Staple::Sent,
            (true, false) => Staple::Omitted,
        };
        Ok((config, Arc::clone(&presented.identity), staple))
    }

    /// Whether one of its certificates is for this name, in lower case, exactly or by wildcard, or for this address.
    pub fn is_for(&self, name: &str) -> bool {
        if let Ok(address) = name.parse::<IpAddr>() {
            return self.identities().any(|identity| identity.leaf().has_address(address));
        }
        let wildcard = name.find('.').map(|dot| &name[dot..]);
        std::iter::once(name).chain(wildcard).any(|key| self.names.contains_key(key))
    }

    /// The certificate for a name: exactly, then by wildcard, else the first; of several the one whose kind of key the client
    /// prefers, as Envoy chooses.
    fn select(&self, name: Option<&str>, asked: Asked) -> Option<usize> {
        if let Some(name) = name {
            let wildcard = name.find('.').map(|dot| &name[dot..]);
            for key in std::iter::once(name).chain(wildcard) {
                if let Some(found) = self.names.get(key).and_then(|all| self.best(all.iter().copied(), asked)) {
                    return Some(found);
                }
            }
            if !self.full_scan {
                return self.usable(0, asked).then_some(0);
            }
        }
        self.best(0..self.identities.len(), asked).or_else(|| self.usable(0, asked).then_some(0))
    }

    fn best(&self, among: impl Iterator<Item = usize>, asked: Asked) -> Option<usize> {
        let mut candidate = None;
        for index in among.filter(|index| self.usable(*index, asked)) {
            if self.identities[index].is_ecdsa == asked.ecdsa {
                return Some(index);
            }
            // A client that can do ECDSA can do RSA as well.
            if asked.ecdsa && candidate.is_none() {
                candidate = Some(index);
            }
        }
        candidate
    }

    /// Whether the policy lets it be presented as it is. To a client that takes no response, any certificate can be.
    fn usable(&self, index: usize, asked: Asked) -> bool {
        let identity = &self.identities[index].identity;
        let valid = identity.ocsp.as_ref().map(|response| !response.is_expired(asked.now));
        match self.stapling {
            _ if !asked.staple => true,
            _ if identity.leaf().must_staple => valid == Some(true),
            Stapling::Lenient => true,
            Stapling::Strict => valid != Some(false),
            Stapling::Must => valid == Some(true),
        }
    }
}

fn is_ecdsa(scheme: &SignatureScheme) -> bool {
    use SignatureScheme::{ECDSA_NISTP256_SHA256, ECDSA_NISTP384_SHA384, ECDSA_NISTP521_SHA512};
    matches!(*scheme, ECDSA_NISTP256_SHA256 | ECDSA_NISTP384_SHA384 | ECDSA_NISTP521_SHA512)
}

/// Closes a connection whose ClientHello is not answered.
async fn refuse<IO: AsyncRead + AsyncWrite + Unpin>(start: StartHandshake<IO>) {
    let StartHandshake { accepted, mut io, .. } = start;
    drop::<Accepted>(accepted);
    // handshake_failure, fatal (RFC 8446 section 6). Whoever is gone already needs no answer.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut io, &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28]).await;
}

/// What the configurations of all identities share.
#[derive(Debug)]
struct Shape {
    parameters: Parameters,
    verifier: Option<Arc<Verifier>>,
    alpn: Vec<Vec<u8>>,
    prefer_client_ciphers: bool,
    sessions: Arc<dyn StoresServerSessions>,
    tickets: Option<Arc<Tickets>>,
}

impl Shape {
    fn new(settings: &ServerSettings) -> Result<Self, Refused> {
        let lifetime = settings.session_timeout.filter(|seconds| *seconds > 0).unwrap_or(SESSION_TIMEOUT);
        // Who demands certificates opens no ticket of one who does not.
        let mut digest = Digest::new(&SHA256);
        digest.update(&settings.digest);
        digest.update(&[u8::from(settings.require_client_certificate)]);
        let digest = digest.finish().as_ref().try_into().unwrap_or_default();
        let tickets = settings.tickets.as_ref().map(|keys| Tickets::new(keys, digest, lifetime)).transpose()?;
        Ok(Self {
            parameters: settings.parameters.clone(),
            verifier: verifier(settings).map(Arc::new),
            alpn: settings.alpn.clone(),
            prefer_client_ciphers: settings.prefer_client_ciphers,
            sessions: if settings.stateful_sessions {
                Arc::new(KeptSessions::new(Duration::from_secs(lifetime.into())))
            } else {
                Arc::new(NoServerSessionStorage {})
            },
            tickets: tickets.map(Arc::new),
        })
    }

    /// rustls' configuration for a key; `suite`: the one of TLS 1.2 that is agreed on.
    fn config(
        &self,
        key: Arc<CertifiedKey>,
        alpn: bool,
        suite: Option<SupportedCipherSuite>,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let only = suite.map(|suite| self.parameters.with_suite(suite));
        let parameters = only.as_ref().unwrap_or(&self.parameters);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&parameters.provider))
            .with_protocol_versions(&parameters.versions)?;
        let builder = match &self.verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier) as _),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Only(limited(key, &self.parameters.schemes))));
        if alpn {
            config.alpn_protocols.clone_from(&self.alpn);
        }
        // Of TLS 1.3 the client's order decides, as BoringSSL has it.
        config.ignore_client_order = false;
        config.session_storage = Arc::clone(&self.sessions);
        match &self.tickets {
            Some(tickets) => config.ticketer = Arc::clone(tickets) as _,
            None => config.send_tls13_tickets = 0,
        }
        Ok(Arc::new(config))
    }
}

/// What is asked of clients; none: nothing.
fn verifier(settings: &ServerSettings) -> Option<Verifier> {
    let validation = &settings.validation;
    if !settings.require_client_certificate && !validation.asks() {
        return None;
    }
    let trusted = validation.trust.iter().map(|trust| &trust.roots);
    let domains = validation.spiffe.iter().flat_map(|spiffe| &spiffe.domains).map(|(_, trust)| &trust.roots);
    let told = trusted.chain(domains).filter(|_| !validation.hides_roots);
    Some(Verifier {
        validation: Arc::clone(validation),
        mandatory: settings.require_client_certificate,
        enforces_rsa_key_usage: false,
        schemes: settings.parameters.schemes.clone(),
        hints: told.flat_map(|roots| roots.subjects()).collect(),
    })
}

impl Presented {
    fn new(identity: &Arc<Identity>, shape: &Shape) -> Result<Self, Refused> {
        let make = |alpn: bool| {
            let config = shape.config(Arc::clone(&identity.key), alpn, None);
            config.map_err(|error| Refused::new(error.to_string()))
        };
        Ok(Self {
            is_ecdsa: matches!(identity.leaf().key, KeyKind::Ecdsa(_)),
            config: make(true)?,
            without_alpn: make(false)?,
            others: Mutex::default(),
            identity: Arc::clone(identity),
        })
    }

    /// A configuration that few handshakes need: made when the first does.
    fn other(&self, shape: &Shape, wanted: Other) -> Arc<ServerConfig> {
        let suite = wanted.suite;
        let key = (suite.map(|suite| u16::from(suite.suite())), wanted.alpn, wanted.stapled);
        let mut others = self.others.lock();
        if let Some(config) = others.get(&key) {
            return Arc::clone(config);
        }
        let presented = if wanted.stapled { Arc::clone(&self.identity.key) } else { self.identity.without_ocsp() };
        // rustls took the same but for one suite when the context was made.
        let Ok(config) = shape.config(presented, wanted.alpn, suite) else { return Arc::clone(&self.config) };
        others.insert(key, Arc::clone(&config));
        config
    }
}

/// What a configuration that few handshakes need is like.
#[derive(Clone, Copy)]
struct Other {
    /// Of TLS 1.2.
    suite: Option<SupportedCipherSuite>,
    alpn: bool,
    /// With the response that is stapled.
    stapled: bool,
}

#[cfg(test)]
mod tests;
