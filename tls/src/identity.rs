//! A certificate chain with its private key, as one side of a handshake presents it (Envoy's `TlsCertificate`).
//! It must not know who asks for it.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;

use crate::certificate::{Certificate, KeyKind, SanKind};
use crate::ocsp::OcspResponse;
use crate::{Refused, pem};

/// A chain and its key, ready to sign.
#[derive(Debug)]
pub struct Identity {
    pub(crate) key: Arc<CertifiedKey>,
    /// The chain, its own certificate first.
    pub chain: Vec<Certificate>,
    /// Where the chain came from, for those who look.
    pub path: String,
    /// What the secret is called that it came as; empty: it has no name.
    pub name: String,
    pub ocsp: Option<OcspResponse>,
}

impl Identity {
    /// The same, by this name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Reads a chain and its key, both PEM, and an OCSP response (DER).
    ///
    /// # Errors
    /// Something cannot be read, is of a kind that Envoy refuses, or the parts do not belong together.
    pub fn load(chain: &[u8], key: &[u8], ocsp: Option<&[u8]>, path: &str) -> Result<Self, Refused> {
        let ders = pem::certificates(chain)
            .map_err(|error| Refused::new(format!("Failed to load certificate chain from {path}: {error}")))?;
        if ders.is_empty() {
            return Err(Refused::new(format!("Failed to load certificate chain from {path}: there is no certificate")));
        }
        let chain: Vec<Certificate> = ders
            .iter()
            .map(|der| Certificate::parse(der))
            .collect::<Result<_, _>>()
            .map_err(|error| Refused::new(format!("Failed to load certificate chain from {path}: it {error}")))?;
        let leaf = &chain[0];
        check_key_kind(leaf, path)?;
        let failed = |cause: &dyn std::fmt::Display| {
            Refused::new(format!("Failed to load private key from {path}, Cause: {cause}"))
        };
        let key = pem::private_key(key).map_err(|error| failed(&error))?;
        let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| failed(&error))?;
        let mut certified = CertifiedKey::new(ders, key);
        certified.keys_match().map_err(|_| failed(&"KEY_VALUES_MISMATCH"))?;
        let ocsp = match ocsp {
            Some(response) => {
                let parsed = OcspResponse::parse(response)?;
                if !parsed.is_about(&leaf.serial) {
                    return Err(Refused::new("OCSP response does not match its TLS certificate"));
                }
                certified.ocsp = Some(response.to_vec());
                Some(parsed)
            }
            None => None,
        };
        let name = String::new();
        Ok(Self { key: Arc::new(certified), chain, path: path.to_owned(), name, ocsp })
    }

    /// The certificate that is its own.
    pub fn leaf(&self) -> &Certificate {
        &self.chain[0]
    }

    /// The names that clients may ask for it by, lower case: DNS names, or else the common name.
    pub fn names(&self) -> Vec<String> {
        let leaf = self.leaf();
        let mut names: Vec<String> = leaf.sans_of(&SanKind::Dns).map(|name| name.to_ascii_lowercase()).collect();
        if names.is_empty() {
            names.extend(leaf.common_name.iter().map(|name| name.to_ascii_lowercase()));
        }
        names
    }

    /// The same without what is stapled to it.
    pub(crate) fn without_ocsp(&self) -> Arc<CertifiedKey> {
        let mut key = CertifiedKey::clone(&self.key);
        key.ocsp = None;
        Arc::new(key)
    }
}

fn check_key_kind(leaf: &Certificate, path: &str) -> Result<(), Refused> {
    let only = match leaf.key {
        KeyKind::Rsa(bits) if bits < 2048 => "only RSA certificates with 2048-bit or larger keys are supported",
        KeyKind::Ecdsa(bits) if !matches!(bits, 256 | 384 | 521) => {
            "only P-256, P-384 or P-521 ECDSA certificates are supported"
        }
        KeyKind::Rsa(_) | KeyKind::Ecdsa(_) => return Ok(()),
        KeyKind::Other => "only RSA and ECDSA certificates are supported",
    };
    Err(Refused::new(format!("Failed to load certificate chain from {path}, {only}")))
}

#[cfg(test)]
mod tests;
