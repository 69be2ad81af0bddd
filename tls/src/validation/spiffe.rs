//! The SPIFFE validator: roots by trust domain (Envoy's `SPIFFECertValidatorConfig`, SPIFFE's X509-SVID section 5).
//! It must not know configuration.

use rustls::pki_types::{CertificateDer, UnixTime};

use super::trust::Trust;
use super::{Peer, Reason};
use crate::Certificate;
use crate::certificate::SanKind;

/// Trust domains with their roots.
#[derive(Debug, Default)]
pub struct Spiffe {
    /// By name, lower case.
    pub domains: Vec<(String, Trust)>,
}

impl Spiffe {
    pub(super) fn check(
        &self,
        facts: &Certificate,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        peer: Peer,
        now: UnixTime,
    ) -> Result<(), Reason> {
        if facts.is_ca {
            return Err(Reason::Domain("an X509-SVID is no certificate authority"));
        }
        if facts.key_usage.is_none_or(|usage| usage.signs_for_others) {
            return Err(Reason::Domain("the key of an X509-SVID says what it is for, and signs nothing for others"));
        }
        let mut uris = facts.sans.iter().filter(|san| san.kind == SanKind::Uri);
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(Reason::Domain("an X509-SVID has exactly one URI"));
        };
        let domain = std::str::from_utf8(&uri.value).ok().and_then(trust_domain);
        let domain = domain.ok_or(Reason::Domain("the certificate has no SPIFFE identity"))?;
        let found = self.domains.iter().find(|(name, _)| *name == domain);
        let (_, trust) = found.ok_or(Reason::Domain("no trust bundle for the certificate's trust domain"))?;
        trust.verify(leaf, between, peer, now).map_err(Reason::Chain)
    }
}

/// `spiffe://domain/path` -> `domain`.
fn trust_domain(uri: &str) -> Option<String> {
    let rest = uri.strip_prefix("spiffe://")?;
    let domain = rest.split('/').next()?;
    (!domain.is_empty()).then(|| domain.to_ascii_lowercase())
}
