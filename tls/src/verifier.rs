//! rustls' questions about a peer's certificate, put to a [`Validation`]. What was learned is noted for whoever drives the
//! handshake. It must not decide anything itself.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

use crate::certificate::{Certificate, KeyKind};
use crate::session::{expected, note};
use crate::validation::trust::ALGORITHMS;
use crate::validation::{Expected, Outcome, Peer, Reason, Validation};

/// A validation as rustls asks it.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) validation: Arc<Validation>,
    /// A client that presents nothing is turned away.
    pub(crate) mandatory: bool,
    /// RSA keys may only do what `keyUsage` allows them (`enforce_rsa_key_usage`).
    pub(crate) enforces_rsa_key_usage: bool,
    /// Empty: all that there are.
    pub(crate) schemes: Vec<SignatureScheme>,
    /// The subjects of the roots.
    pub(crate) hints: Vec<DistinguishedName>,
}

impl Verifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        expected: &Expected,
        peer: Peer,
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf).chain(between).cloned().collect();
        match self.validation.examine(&chain, expected, peer, now) {
            Ok(outcome) => {
                note(|notes| notes.outcome = Some(outcome));
                Ok(())
            }
            Err(reason) if self.validation.accept_untrusted => {
                note(|notes| (notes.outcome, notes.doubt) = (Some(Outcome::NotValidated), Some(reason)));
                Ok(())
            }
            Err(reason) => {
                let error = alert_for(&reason);
                note(|notes| notes.reason = Some(reason));
                Err(error)
            }
        }
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        if self.schemes.is_empty() { ALGORITHMS.supported_schemes() } else { self.schemes.clone() }
    }
}

/// The error whose alert is the one that BoringSSL sends.
fn alert_for(reason: &Reason) -> Error {
    let certificate = match reason {
        Reason::Chain(broken) => match &broken.error {
            webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => CertificateError::Expired,
            webpki::Error::CertRevoked => CertificateError::Revoked,
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
                CertificateError::InvalidPurpose
            }
            webpki::Error::BadDer => CertificateError::BadEncoding,
            webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
            _ => CertificateError::UnknownIssuer,
        },
        Reason::Domain(_) => CertificateError::UnknownIssuer,
        Reason::San(_) | Reason::Hash | Reason::KeyUsage => {
            CertificateError::Other(OtherError(Arc::new(reason.clone())))
        }
    };
    Error::InvalidCertificate(certificate)
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.validation.asks() {
            self.check(end_entity, intermediates, &Expected::default(), Peer::Client, now)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        note(|notes| notes.scheme = Some(dss.scheme));
        verify_tls12_signature(message, cert, dss, &ALGORITHMS)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        note(|notes| notes.scheme = Some(dss.scheme));
        verify_tls13_signature(message, cert, dss, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.enforces_rsa_key_usage {
            check_rsa_key_usage(end_entity)?;
        }
        let expected = expected();
        if self.validation.asks() || !expected.is_empty() {
            self.check(end_entity, intermediates, &expected, Peer::Server, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// rustls' key exchanges all sign: a key that may only encipher must not be used (RFC 5280 section 4.2.1.3).
fn check_rsa_key_usage(leaf: &CertificateDer<'_>) -> Result<(), Error> {
    let Ok(facts) = Certificate::parse(leaf) else { return Err(CertificateError::BadEncoding.into()) };
    match (facts.key, facts.key_usage) {
        (KeyKind::Rsa(_), Some(usage)) if !usage.digital_signature => {
            note(|notes| notes.reason = Some(Reason::KeyUsage));
            Err(CertificateError::InvalidPurpose.into())
        }
        _ => Ok(()),
    }
}
