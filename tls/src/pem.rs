//! PEM (RFC 7468) as secrets carry it. It must not keep a key in an error.

use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::Refused;

/// More certificates than any chain or bundle of roots has.
const MOST_CERTIFICATES: usize = 4096;

/// All certificates of a text, what is between them left out.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Refused> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        found.push(certificate.map_err(|error| Refused::new(format!("no valid PEM: {error}")))?);
        if found.len() > MOST_CERTIFICATES {
            return Err(Refused::new(format!("more than {MOST_CERTIFICATES} certificates")));
        }
    }
    Ok(found)
}

/// All revocation lists of a text.
pub(crate) fn revocation_lists(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Refused> {
    CertificateRevocationListDer::pem_slice_iter(text)
        .map(|list| list.map_err(|error| Refused::new(format!("no valid PEM: {error}"))))
        .collect()
}

/// The first private key of a text: PKCS#8, PKCS#1 or SEC1.
pub(crate) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Refused> {
    let encrypted = |marker: &[u8]| text.windows(marker.len()).any(|part| part == marker);
    if encrypted(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || encrypted(b"Proc-Type: 4,ENCRYPTED") {
        return Err(Refused::new("encrypted private keys are not supported: store the key without a password"));
    }
    let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text);
    loop {
        match sections.next() {
            Some(Ok((kind, der))) => {
                if let Some(key) = PrivateKeyDer::from_pem(kind, der) {
                    return Ok(key);
                }
            }
            Some(Err(_)) => return Err(Refused::new("the private key is no valid PEM")),
            None => return Err(Refused::new("there is no private key")),
        }
    }
}
