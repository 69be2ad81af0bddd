//! The side that connects: the host that it names, the certificate that it has, what it asks of hosts, and the handshake (Envoy's
//! `UpstreamTlsContext`). It must not know clusters.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{DnsName, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::session::noting;
use crate::signing::limited;
use crate::stream::{Began, TlsStream};
use crate::validation::Validation;
use crate::verifier::Verifier;
use crate::{Failure, Identity, Parameters, Refused, Session};

/// What a context is made of.
#[derive(Debug)]
pub struct ClientSettings {
    pub parameters: Parameters,
    /// What is presented where a host asks for a certificate.
    pub identity: Option<Arc<Identity>>,
    pub validation: Arc<Validation>,
    /// Hosts must be named as their connection names them (`auto_sni_san_validation`).
    pub expects_name: bool,
    pub enforces_rsa_key_usage: bool,
    /// In the order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// How many hosts' sessions are kept (`max_session_keys`); 0: none is resumed.
    pub kept_sessions: usize,
}

/// A context, ready for handshakes.
#[derive(Debug)]
pub struct ClientContext {
    config: Arc<ClientConfig>,
    identity: Option<Arc<Identity>>,
    validation: Arc<Validation>,
    expects_name: bool,
}

/// Whom a connection is for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The host that is named to it (SNI); `None`: none is.
    pub server_name: Option<&'a str>,
    /// Where it is: sessions are kept by it where no host is named.
    pub address: Option<IpAddr>,
    /// What is offered where the context offers nothing.
    pub alpn: Option<&'a [Vec<u8>]>,
}

/// The only certificate that there is.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesClientCert for Only {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes)?;
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ClientContext {
    /// Makes a context.
    ///
    /// # Errors
    /// rustls refuses the settings.
    pub fn build(settings: ClientSettings) -> Result<Self, Refused> {
        let parameters = &settings.parameters;
        let verifier = Verifier {
            validation: Arc::clone(&settings.validation),
            mandatory: true,
            expects_name: settings.expects_name,
            enforces_rsa_key_usage: settings.enforces_rsa_key_usage,
            schemes: parameters.schemes.clone(),
            hints: Vec::new(),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&parameters.provider))
            .with_protocol_versions(&parameters.versions)
            .map_err(|error| Refused::new(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &settings.identity {
            Some(identity) => {
                let key = limited(Arc::clone(&identity.key), &parameters.schemes);
                builder.with_client_cert_resolver(Arc::new(Only(key)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = settings.alpn;
        config.resumption = match settings.kept_sessions {
            0 => Resumption::disabled(),
            count => Resumption::in_memory_sessions(count),
        };
        Ok(Self {
            config: Arc::new(config),
            identity: settings.identity,
            validation: settings.validation,
            expects_name: settings.expects_name,
        })
    }

    /// Whether hosts that nobody vouches for are believed.
    pub fn trusts_anyone(&self) -> bool {
        self.validation.trust.is_none() && self.validation.spiffe.is_none()
    }

    /// What is presented to hosts that ask.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }

    pub fn validation(&self) -> &Arc<Validation> {
        &self.validation
    }

    /// The protocols that are offered.
    pub fn alpn(&self) -> &[Vec<u8>] {
        &self.config.alpn_protocols
    }

    /// Shakes hands with a host.
    ///
    /// # Errors
    /// Either side does not agree, or the name is none that can be asked for.
    pub async fn connect<IO>(&self, io: IO, target: Target<'_>) -> Result<(TlsStream<IO>, Session), Failure>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.server_name(&target)?;
        let config = match target.alpn {
            Some(alpn) if self.config.alpn_protocols.is_empty() && !alpn.is_empty() => {
                let mut config = ClientConfig::clone(&self.config);
                config.alpn_protocols = alpn.to_vec();
                Arc::new(config)
            }
            _ => Arc::clone(&self.config),
        };
        let (handshake, notes) = noting(TlsConnector::from(config).connect(name, Began::new(io))).await;
        let stream = handshake.map_err(|error| match Failure::of(error, notes.reason.clone()) {
            // The host has not said yet who it is.
            Failure::Protocol(Error::AlertReceived(AlertDescription::HandshakeFailure)) if notes.scheme.is_none() => {
                Failure::HelloRefused
            }
            failure => failure,
        })?;
        let mut session = Session::of(stream.get_ref().1, target.server_name.map(str::to_owned), &notes);
        session.local.clone_from(&self.identity);
        // Whoever was resumed was verified by this same context.
        session.peer_validated |= session.resumed && (self.validation.asks() || self.expects_name);
        Ok((TlsStream(stream.into()), session))
    }

    /// rustls knows a connection's host by a name or an address; an address is not told to the host.
    fn server_name(&self, target: &Target<'_>) -> Result<ServerName<'static>, Failure> {
        let Some(name) = target.server_name.filter(|name| !name.is_empty()) else {
            if self.expects_name {
                return Err(Failure::Verify(crate::validation::Reason::San("SAN matcher".to_owned())));
            }
            let address = target.address.unwrap_or(IpAddr::from([127, 0, 0, 1]));
            return Ok(ServerName::IpAddress(address.into()));
        };
        match DnsName::try_from(name.to_owned()) {
            Ok(name) => Ok(ServerName::DnsName(name)),
            Err(_) => match name.parse::<IpAddr>() {
                Ok(address) => Ok(ServerName::IpAddress(address.into())),
                Err(_) => {
                    let reason = format!("{name:?} is no name that TLS can ask for");
                    Err(Failure::Io(std::io::Error::new(std::io::ErrorKind::InvalidInput, reason)))
                }
            },
        }
    }
}
