//! Keys that sign with some schemes only (`signature_algorithms`). It must not know who asks for signatures.

use std::sync::Arc;

use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

/// A key that is held to schemes.
#[derive(Debug)]
struct Limited {
    key: Arc<dyn SigningKey>,
    schemes: Vec<SignatureScheme>,
}

impl SigningKey for Limited {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let both: Vec<SignatureScheme> =
            offered.iter().copied().filter(|scheme| self.schemes.contains(scheme)).collect();
        self.key.choose_scheme(&both)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

/// Holds the key to the schemes; no schemes are all.
pub(crate) fn limited(key: Arc<CertifiedKey>, schemes: &[SignatureScheme]) -> Arc<CertifiedKey> {
    if schemes.is_empty() {
        return key;
    }
    let mut limited = CertifiedKey::clone(&key);
    limited.key = Arc::new(Limited { key: Arc::clone(&key.key), schemes: schemes.to_vec() });
    Arc::new(limited)
}
