//! The side that connects: the host that it names, the certificate that it has, what it asks of hosts, and the handshake (Envoy's
//! `UpstreamTlsContext`). It must not know clusters.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{DnsName, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::session::noting;
use crate::signing::limited;
use crate::stream::{Began, TlsStream};
use crate::validation::{Expected, Outcome, Peer, Reason, Validation};
use crate::verifier::Verifier;
use crate::{Failure, Identity, Parameters, Refused, Session};

/// So many configurations are kept beside a context's own: for HTTP/1, HTTP/2 and either, and one more.
const MOST_OFFERS: usize = 4;

/// What a context is made of.
#[derive(Debug)]
pub struct ClientSettings {
    pub parameters: Parameters,
    /// What is presented where a host asks for a certificate.
    pub identity: Option<Arc<Identity>>,
    pub validation: Arc<Validation>,
    /// Hosts must have the name that they are asked for by (`auto_sni_san_validation`).
    pub expects_server_name: bool,
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
    /// The same with what connections offer where the context offers nothing.
    offering: Mutex<Vec<Arc<ClientConfig>>>,
    identity: Option<Arc<Identity>>,
    validation: Arc<Validation>,
    expects_server_name: bool,
}

/// Whom a connection is for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The host that is named to it (SNI); `None`: none is.
    pub server_name: Option<&'a str>,
    /// A name that its certificate must have, of whatever kind.
    pub expected: Option<&'a Arc<str>>,
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
            offering: Mutex::default(),
            identity: settings.identity,
            validation: settings.validation,
            expects_server_name: settings.expects_server_name,
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
        let name = server_name(&target)?;
        let expected = self.expected(&target)?;
        let config = self.offering(target.alpn.unwrap_or_default());
        let (handshake, notes) = noting(TlsConnector::from(config).connect(name, Began::new(io)), expected).await;
        let stream = handshake.map_err(|error| match Failure::of(error, notes.reason.clone()) {
            // The host has not said yet who it is.
            Failure::Protocol(Error::AlertReceived(AlertDescription::HandshakeFailure)) if notes.scheme.is_none() => {
                Failure::HelloRefused
            }
            failure => failure,
        })?;
        let mut session = Session::of(stream.get_ref().1, target.server_name.map(str::to_owned), &notes);
        session.local.clone_from(&self.identity);
        if session.resumed && notes.outcome.is_none() {
            // Whoever was resumed was verified by this same context, but maybe under another name.
            let now = UnixTime::now();
            let outcome = self.validation.check_again(&session.peer_chain, &notes.expected, Peer::Server, now);
            session.peer_validated = outcome.map_err(Failure::Verify)? == Outcome::Validated;
        }
        Ok((TlsStream(stream.into()), session))
    }

    /// The configuration that offers these protocols, unless the context has some of its own.
    fn offering(&self, alpn: &[Vec<u8>]) -> Arc<ClientConfig> {
        if alpn.is_empty() || !self.config.alpn_protocols.is_empty() {
            return Arc::clone(&self.config);
        }
        let mut offering = self.offering.lock();
        if let Some(config) = offering.iter().find(|config| config.alpn_protocols == alpn) {
            return Arc::clone(config);
        }
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = alpn.to_vec();
        let config = Arc::new(config);
        if offering.len() < MOST_OFFERS {
            offering.push(Arc::clone(&config));
        }
        config
    }

    /// What the host's certificate must say of whom it is for.
    fn expected(&self, target: &Target<'_>) -> Result<Expected, Failure> {
        let named = target.server_name.filter(|name| !name.is_empty());
        if self.expects_server_name && named.is_none() {
            return Err(Failure::Verify(Reason::San("SAN matcher".to_owned())));
        }
        let server_name = named.filter(|_| self.expects_server_name).map(Arc::from);
        Ok(Expected { server_name, any: target.expected.cloned() })
    }
}

/// Whether TLS can ask for a host by this name; an address is a host's own, and not told to it.
///
/// # Errors
/// It is no DNS name as RFC 6066 wants it.
pub fn check_server_name(name: &str) -> Result<(), Failure> {
    parse_server_name(name).map(drop)
}

fn parse_server_name(name: &str) -> Result<ServerName<'static>, Failure> {
    if let Ok(name) = DnsName::try_from(name.to_owned()) {
        return Ok(ServerName::DnsName(name));
    }
    let address = name.parse::<IpAddr>().map_err(|_| Failure::Unnameable(name.to_owned()))?;
    Ok(ServerName::IpAddress(address.into()))
}

/// rustls knows a connection's host by a name or an address; an address is not told to the host.
fn server_name(target: &Target<'_>) -> Result<ServerName<'static>, Failure> {
    match target.server_name.filter(|name| !name.is_empty()) {
        Some(name) => parse_server_name(name),
        None => Ok(ServerName::IpAddress(target.address.unwrap_or(IpAddr::from([127, 0, 0, 1])).into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Version, Wanted};

    #[test]
    fn what_is_offered_again_is_not_made_again() {
        let wanted = Wanted {
            min: Version::Tls12,
            max: Version::Tls13,
            cipher_suites: &[],
            groups: &[],
            signature_algorithms: &[],
        };
        let settings = |alpn| ClientSettings {
            parameters: Parameters::new(&wanted).unwrap(),
            identity: None,
            validation: Arc::default(),
            expects_server_name: false,
            enforces_rsa_key_usage: true,
            alpn,
            kept_sessions: 1,
        };
        let (h2, either) = (vec![b"h2".to_vec()], vec![b"h2".to_vec(), b"http/1.1".to_vec()]);
        let context = ClientContext::build(settings(Vec::new())).unwrap();
        let first = context.offering(&h2);
        assert!(first.alpn_protocols == h2 && Arc::ptr_eq(&first, &context.offering(&h2)));
        assert_eq!(context.offering(&either).alpn_protocols, either);
        assert!(Arc::ptr_eq(&context.offering(&[]), &context.config));
        for number in 0..9 {
            assert_eq!(context.offering(&[vec![number]]).alpn_protocols, [vec![number]]);
        }
        assert_eq!(context.offering.lock().len(), MOST_OFFERS);
        let own = ClientContext::build(settings(h2.clone())).unwrap();
        assert_eq!(own.offering(&either).alpn_protocols, h2);
    }
}
