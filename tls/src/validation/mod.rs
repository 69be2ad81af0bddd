//! Whether a peer's certificate is accepted: its chain, its names, its hashes (Envoy's `CertificateValidationContext` and its
//! default validator). Pure but for the time that it is given. It must not know rustls' handshake, or whether the peer is a
//! client or a host beyond what its key may be used for.

pub mod san;
pub mod spiffe;
pub(crate) mod trust;

use rustls::pki_types::{CertificateDer, UnixTime};

pub use san::{Expected, SanMatcher, SanPattern, TextMatch};
pub use spiffe::Spiffe;
pub use trust::{Broken, Roots, Trust};

use crate::Certificate;

/// Which side the peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Client,
    Server,
}

/// What is asked of peers' certificates. What is empty is not asked.
#[derive(Debug, Default)]
pub struct Validation {
    /// Whom chains must end in.
    pub trust: Option<Trust>,
    /// Trust domains, each with its own roots; then `trust` is empty.
    pub spiffe: Option<Spiffe>,
    /// One of them must match.
    pub sans: Vec<SanMatcher>,
    /// SHA-256 of the certificate: it is one of them, or one of `spki`.
    pub hashes: Vec<[u8; 32]>,
    /// SHA-256 of the public key with its algorithm.
    pub spki: Vec<[u8; 32]>,
    /// `trust_chain_verification: ACCEPT_UNTRUSTED`: whoever fails is let in, and known as not validated.
    pub accept_untrusted: bool,
    /// Clients are not told which roots are trusted (`suppress_client_ca_list`).
    pub hides_roots: bool,
}

/// Whether a certificate that was let in was also found good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    NotValidated,
    Validated,
}

/// Why a certificate is not accepted; by Envoy's stats.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// `ssl.fail_verify_error`.
    #[error("verify cert failed: X509_verify_cert: {0}")]
    Chain(Broken),
    /// `ssl.fail_verify_error`: of no trust domain that is known.
    #[error("verify cert failed: {0}")]
    Domain(&'static str),
    /// `ssl.fail_verify_san`.
    #[error("verify cert failed: {0}")]
    San(String),
    /// `ssl.fail_verify_cert_hash`.
    #[error("verify cert failed: cert hash and spki")]
    Hash,
    /// The key may not be used so (`enforce_rsa_key_usage`).
    #[error("KEY_USAGE_BIT_INCORRECT")]
    KeyUsage,
}

impl Validation {
    /// Whether anything at all is asked.
    pub fn asks(&self) -> bool {
        self.trust.is_some() || self.spiffe.is_some() || !self.sans.is_empty() || self.pins()
    }

    fn pins(&self) -> bool {
        !self.hashes.is_empty() || !self.spki.is_empty()
    }

    /// Accepts a chain or says why not. `chain` has the peer's own certificate first; `expected` are names that it must have.
    ///
    /// # Errors
    /// It is not accepted.
    pub fn check(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &Expected,
        peer: Peer,
        now: UnixTime,
    ) -> Result<Outcome, Reason> {
        match self.examine(chain, expected, peer, now) {
            Err(_) if self.accept_untrusted => Ok(Outcome::NotValidated),
            result => result,
        }
    }

    /// The same of a chain that this validation has accepted for another connection, whose session goes on: what it was not
    /// asked then.
    ///
    /// # Errors
    /// It is not accepted.
    pub fn check_again(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &Expected,
        peer: Peer,
        now: UnixTime,
    ) -> Result<Outcome, Reason> {
        if self.accept_untrusted {
            // Nobody has written down what was thought of it.
            return self.check(chain, expected, peer, now);
        }
        if !expected.is_empty() {
            let leaf = chain.first().and_then(|leaf| Certificate::parse(leaf).ok());
            self.check_names(&leaf.ok_or(Reason::Chain(webpki::Error::BadDer.into()))?, expected)?;
        }
        Ok(if self.asks() || !expected.is_empty() { Outcome::Validated } else { Outcome::NotValidated })
    }

    /// The same, whoever is let in who fails (`accept_untrusted`).
    pub(crate) fn examine(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &Expected,
        peer: Peer,
        now: UnixTime,
    ) -> Result<Outcome, Reason> {
        let Some((leaf, between)) = chain.split_first() else {
            return Err(Reason::Chain(webpki::Error::BadDer.into()));
        };
        if let Some(spiffe) = &self.spiffe {
            let facts = Certificate::parse(leaf).map_err(|_| Reason::Chain(webpki::Error::BadDer.into()))?;
            spiffe.check(&facts, leaf, between, peer, now)?;
            self.check_names(&facts, expected)?;
            return Ok(Outcome::Validated);
        }
        let mut outcome = Outcome::NotValidated;
        if let Some(trust) = &self.trust {
            trust.verify(leaf, between, peer, now).map_err(Reason::Chain)?;
            outcome = Outcome::Validated;
        }
        if expected.is_empty() && self.sans.is_empty() && !self.pins() {
            return Ok(outcome);
        }
        let facts = Certificate::parse(leaf).map_err(|_| Reason::Chain(webpki::Error::BadDer.into()))?;
        if self.check_names(&facts, expected)? | self.check_pins(&facts)? {
            outcome = Outcome::Validated;
        }
        Ok(outcome)
    }

    /// Whether any name was asked for.
    fn check_names(&self, facts: &Certificate, expected: &Expected) -> Result<bool, Reason> {
        if !expected.is_empty() {
            // Anybody can have any name where nobody has to vouch for it.
            let vouched = self.trust.is_some() || self.spiffe.is_some() || self.pins();
            if !vouched || !expected.is_met_by(&facts.sans) {
                return Err(other_names(facts));
            }
        }
        if self.sans.is_empty() || expected.server_name.is_some() {
            return Ok(!expected.is_empty());
        }
        if !self.sans.iter().any(|matcher| facts.sans.iter().any(|san| matcher.matches(san))) {
            return Err(other_names(facts));
        }
        Ok(true)
    }

    /// Whether any pin was asked for.
    fn check_pins(&self, facts: &Certificate) -> Result<bool, Reason> {
        if !self.pins() {
            return Ok(false);
        }
        let hash = |pin: &[u8; 32]| crate::certificate::hex(pin) == facts.sha256;
        if self.hashes.iter().any(hash) || self.spki.contains(&facts.spki_sha256) {
            return Ok(true);
        }
        Err(Reason::Hash)
    }
}

/// None of the names that the certificate has was asked for.
fn other_names(facts: &Certificate) -> Reason {
    let names: Vec<String> = facts.sans.iter().map(crate::certificate::San::text).collect();
    Reason::San(format!("SAN matcher, certificate SANs are [{}]", names.join(", ")))
}

#[cfg(test)]
mod tests;
