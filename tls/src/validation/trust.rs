//! Roots, and whether a chain ends in one of them (RFC 5280 section 6). webpki decides; what it refuses beyond BoringSSL is a
//! listed difference. It must not know names.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use ::aws_lc_rs::digest;
use parking_lot::Mutex;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::Peer;
use crate::{Certificate, Refused, pem};

/// What signatures are understood.
pub(crate) static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> =
    LazyLock::new(|| aws_lc_rs::default_provider().signature_verification_algorithms);

/// How many certificates may stand between a peer's own and a root where nothing is said, and how many a peer may present at
/// all (BoringSSL's default depth).
const MOST_BETWEEN: usize = 100;

/// Certificates that are trusted by themselves.
#[derive(Debug, Default)]
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    ders: Vec<CertificateDer<'static>>,
    /// Their facts, for those who look.
    pub certificates: Vec<Certificate>,
    /// Where they came from, for those who look.
    pub path: String,
}

/// Roots by what they were read of, and where that was.
type Known = HashMap<(Vec<u8>, String), Weak<Roots>>;

/// Those that somebody trusts now: many contexts trust the same.
static TRUSTED: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

impl Roots {
    /// Reads PEM, all certificates of it; what somebody else trusts already is shared with him.
    ///
    /// # Errors
    /// There is none, or one cannot be read.
    pub fn shared(text: &[u8], path: &str) -> Result<Arc<Self>, Refused> {
        let key = (digest::digest(&digest::SHA256, text).as_ref().to_vec(), path.to_owned());
        if let Some(roots) = TRUSTED.lock().get(&key).and_then(Weak::upgrade) {
            return Ok(roots);
        }
        let roots = Arc::new(Self::load(text, path)?);
        let mut trusted = TRUSTED.lock();
        trusted.retain(|_, roots| roots.strong_count() > 0);
        trusted.insert(key, Arc::downgrade(&roots));
        Ok(roots)
    }

    /// Reads PEM, all certificates of it.
    ///
    /// # Errors
    /// There is none, or one cannot be read.
    pub fn load(text: &[u8], path: &str) -> Result<Self, Refused> {
        let failed = |why: &dyn std::fmt::Display| {
            Refused::new(format!("Failed to load trusted CA certificates from {path}: {why}"))
        };
        let ders = pem::certificates(text).map_err(|error| failed(&error))?;
        if ders.is_empty() {
            return Err(failed(&"there is no certificate"));
        }
        let mut roots = Self { path: path.to_owned(), ..Self::default() };
        for der in ders {
            roots.certificates.push(Certificate::parse(&der).map_err(|error| failed(&format!("one {error}")))?);
            match webpki::anchor_from_trusted_cert(&der) {
                Ok(anchor) => roots.anchors.push(anchor.to_owned()),
                Err(error) => return Err(failed(&text_of(&error))),
            }
            roots.ders.push(der);
        }
        Ok(roots)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ders.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ders.is_empty()
    }

    /// Their subjects (DER), for those who choose a certificate by them.
    pub(crate) fn subjects(&self) -> Vec<rustls::DistinguishedName> {
        self.anchors.iter().map(|anchor| rustls::DistinguishedName::in_sequence(&anchor.subject)).collect()
    }
}

/// Roots, and what else a chain must be.
#[derive(Debug, Default)]
pub struct Trust {
    pub roots: Arc<Roots>,
    /// What the secret is called that they came as; empty: they have no name.
    pub name: String,
    revoked: Vec<CertRevocationList<'static>>,
    /// `only_verify_leaf_cert_crl`.
    pub leaf_crl_only: bool,
    /// `allow_expired_certificate`.
    pub allow_expired: bool,
    /// `max_verify_depth`: certificates between the peer's own and the root.
    pub max_depth: Option<usize>,
}

impl Trust {
    /// Trusts these roots alone.
    pub fn new(roots: impl Into<Arc<Roots>>) -> Self {
        Self { roots: roots.into(), ..Self::default() }
    }

    /// Adds revocation lists, PEM.
    ///
    /// # Errors
    /// There is none, or one cannot be read.
    pub fn revoke(&mut self, text: &[u8], path: &str) -> Result<(), Refused> {
        let failed = |why: &dyn std::fmt::Display| Refused::new(format!("Failed to load CRL from {path}: {why}"));
        let lists = pem::revocation_lists(text).map_err(|error| failed(&error))?;
        if lists.is_empty() {
            return Err(failed(&"there is no revocation list"));
        }
        for list in lists {
            let list: OwnedCertRevocationList = BorrowedCertRevocationList::from_der(&list)
                .and_then(|list| list.to_owned())
                .map_err(|error| failed(&text_of(&error)))?;
            self.revoked.push(list.into());
        }
        Ok(())
    }

    /// Whether the chain ends in a root.
    ///
    /// # Errors
    /// It does not, or something about it is wrong.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        peer: Peer,
        now: UnixTime,
    ) -> Result<(), Broken> {
        let verified = self.verify_leniently(leaf, between, peer, now);
        verified.map_err(|error| Broken::find(error, &path(leaf, between), now, self.max_depth))
    }

    fn verify_leniently(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        peer: Peer,
        now: UnixTime,
    ) -> Result<(), Error> {
        if between.len() > MOST_BETWEEN {
            return Err(Error::MaximumPathDepthExceeded);
        }
        let verify = |time| self.verify_at(leaf, between, peer, time);
        match verify(now) {
            Err(error) if self.allow_expired && is_of_time(&error) => {
                at_another_time(error, other_times(leaf, between), verify)
            }
            result => result,
        }
    }

    fn verify_at(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        peer: Peer,
        time: UnixTime,
    ) -> Result<(), Error> {
        // A root can be the peer's own certificate: it is trusted by itself while it is valid.
        if let Some(index) = self.roots.ders.iter().position(|root| root.as_ref() == leaf.as_ref()) {
            return within(&self.roots.certificates[index], time);
        }
        let certificate = EndEntityCert::try_from(leaf)?;
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            let depth = if self.leaf_crl_only { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
            options
                .with_depth(depth)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let usage = match peer {
            Peer::Client => KeyUsage::client_auth(),
            Peer::Server => KeyUsage::server_auth(),
        };
        let most = self.max_depth.unwrap_or(MOST_BETWEEN);
        let short_enough = |path: &webpki::VerifiedPath<'_>| match path.intermediate_certificates().count() {
            between if between > most => Err(Error::MaximumPathDepthExceeded),
            _ => Ok(()),
        };
        certificate
            .verify_for_usage(
                ALGORITHMS.all,
                &self.roots.anchors,
                between,
                time,
                usage,
                revocation,
                Some(&short_enough),
            )
            .map(|_| ())
    }
}

/// Whether it is only that the time is another.
fn is_of_time(error: &Error) -> bool {
    matches!(error, Error::CertExpired { .. } | Error::CertNotValidYet { .. })
}

/// Times at which all of a chain may have been valid. A chain is as long as its peer likes, and each time costs all its
/// signatures: so they are few.
pub(super) fn other_times(leaf: &CertificateDer<'_>, between: &[CertificateDer<'_>]) -> Vec<UnixTime> {
    let Ok(leaf) = Certificate::parse(leaf) else { return Vec::new() };
    let between: Vec<Certificate> = between.iter().filter_map(|der| Certificate::parse(der).ok()).collect();
    let latest = between.iter().filter_map(|facts| facts.valid_from).chain(leaf.valid_from).max();
    let earliest = between.iter().filter_map(|facts| facts.valid_until).chain(leaf.valid_until).min();
    let mut times = Vec::with_capacity(4);
    for time in [latest, earliest, leaf.valid_from, leaf.valid_until].into_iter().flatten() {
        if let Ok(since) = time.duration_since(std::time::UNIX_EPOCH) {
            times.push(UnixTime::since_unix_epoch(Duration::from_secs(since.as_secs())));
        }
    }
    times.dedup();
    times
}

/// Verifies at these times until something else is wrong than the time, or nothing.
fn at_another_time(
    mut error: Error,
    times: Vec<UnixTime>,
    verify: impl Fn(UnixTime) -> Result<(), Error>,
) -> Result<(), Error> {
    for time in times {
        match verify(time) {
            Err(other) if is_of_time(&other) => error = other,
            result => return result,
        }
    }
    Err(error)
}

/// What is wrong with a chain, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub error: Error,
    /// How far from the peer's own certificate.
    pub depth: usize,
    /// That certificate vouches for itself.
    self_signed: bool,
}

impl Broken {
    /// webpki does not say where: this looks where BoringSSL would stop.
    fn find(error: Error, path: &[Certificate], now: UnixTime, max_depth: Option<usize>) -> Self {
        let last = path.len().saturating_sub(1);
        let depth = match &error {
            Error::UnknownIssuer => last,
            Error::MaximumPathDepthExceeded => max_depth.map_or(last, |most| last.min(most.saturating_add(1))),
            Error::CertExpired { .. } | Error::CertNotValidYet { .. } => {
                path.iter().rposition(|certificate| within(certificate, now).is_err()).unwrap_or(0)
            }
            _ => 0,
        };
        let self_signed = path.get(depth).is_some_and(|certificate| certificate.subject == certificate.issuer);
        Self { error, depth, self_signed }
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self { error, depth: 0, self_signed: false }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match (&self.error, self.self_signed, self.depth) {
            (Error::UnknownIssuer | Error::CaUsedAsEndEntity, true, 0) => "self signed certificate",
            (Error::UnknownIssuer, true, _) => "self signed certificate in certificate chain",
            (error, ..) => text(error),
        };
        write!(f, "certificate verification error at depth {}: {text}", self.depth)
    }
}

/// What was presented, as far as each vouches for the one before by its name.
fn path(leaf: &CertificateDer<'_>, between: &[CertificateDer<'_>]) -> Vec<Certificate> {
    let Ok(leaf) = Certificate::parse(leaf) else { return Vec::new() };
    let mut others: Vec<Certificate> = between.iter().filter_map(|der| Certificate::parse(der).ok()).collect();
    let mut path = Vec::with_capacity(1 + others.len());
    let mut last = leaf;
    while last.subject != last.issuer
        && let Some(index) = others.iter().position(|other| other.subject == last.issuer)
    {
        path.push(std::mem::replace(&mut last, others.swap_remove(index)));
    }
    path.push(last);
    path
}

fn within(certificate: &Certificate, time: UnixTime) -> Result<(), Error> {
    let seconds = |time: Option<std::time::SystemTime>| {
        let since = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
        UnixTime::since_unix_epoch(since)
    };
    let (from, until) = (seconds(certificate.valid_from), seconds(certificate.valid_until));
    if time < from {
        return Err(Error::CertNotValidYet { time, not_before: from });
    }
    if time > until {
        return Err(Error::CertExpired { time, not_after: until });
    }
    Ok(())
}

fn text_of(error: &Error) -> String {
    text(error).to_owned()
}

/// As BoringSSL says it where it says the same.
fn text(error: &Error) -> &'static str {
    match error {
        Error::UnknownIssuer => "unable to get local issuer certificate",
        Error::CertExpired { .. } => "certificate has expired",
        Error::CertNotValidYet { .. } => "certificate is not yet valid",
        Error::CertRevoked => "certificate revoked",
        Error::CrlExpired { .. } => "CRL has expired",
        Error::UnknownRevocationStatus => "unable to get certificate CRL",
        Error::CaUsedAsEndEntity => "a certificate authority is no peer",
        Error::EndEntityUsedAsCa => "invalid CA certificate",
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => "unsupported certificate purpose",
        Error::NameConstraintViolation => "permitted subtree violation",
        Error::PathLenConstraintViolated => "path length constraint exceeded",
        // So BoringSSL puts it when it may look no further.
        Error::MaximumPathDepthExceeded => "unable to get local issuer certificate",
        Error::InvalidSignatureForPublicKey => "certificate signature failure",
        Error::UnsupportedCriticalExtension => "unhandled critical extension",
        Error::UnsupportedCertVersion => "unsupported certificate version",
        _ => "invalid certificate",
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_another_time_is_a_reason_to_verify_again() {
        let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = || Error::CertExpired { time: time(9), not_after: time(1) };
        let asked = |results: &[Result<(), Error>]| {
            let count = Cell::new(0);
            let times = (0..results.len() as u64).map(time).collect();
            let result = at_another_time(expired(), times, |_| {
                count.set(count.get() + 1);
                results[count.get() - 1].clone()
            });
            (count.get(), result)
        };
        assert_eq!(asked(&[Err(expired()), Ok(()), Ok(())]), (2, Ok(())));
        let spent = Error::MaximumSignatureChecksExceeded;
        assert_eq!(asked(&[Err(spent.clone()), Ok(())]), (1, Err(spent)));
        assert_eq!(asked(&[Err(expired())]), (1, Err(expired())));
    }
}
