//! An authority of a test's own, with files of what it signed.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

use super::{Security, SecurityFiles};
use crate::server::tls::{Tls, TlsFiles};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory with `ca.pem`, and a certificate for 127.0.0.1 with its key; it goes away with this.
pub(super) struct Certificates {
    pub(super) directory: PathBuf,
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Certificates {
    pub(super) fn new() -> Self {
        let name = format!("tidegate-certificates-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let made = Self { directory: std::env::temp_dir().join(name) };
        std::fs::create_dir_all(&made.directory).unwrap();
        made.sign("127.0.0.1");
        made
    }

    /// Begins anew: another authority, and a certificate of it for this address.
    pub(super) fn sign(&self, address: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address.parse().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let chain = params.signed_by(&key, &issuer).unwrap().pem();
        for (name, text) in [("ca", ca), ("chain", chain), ("key", key.serialize_pem())] {
            std::fs::write(self.path(name), text).unwrap();
            // Never twice the same, however fast one follows the other.
            let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(NEXT.fetch_add(1, Relaxed).into());
            File::options().write(true).open(self.path(name)).unwrap().set_modified(changed).unwrap();
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.pem"))
    }

    /// The side that accepts, and wants to see certificates of the same authority.
    pub(super) fn server(&self) -> Arc<Tls> {
        let client_ca = Some(self.path("ca"));
        Tls::new(TlsFiles { certificate: self.path("chain"), key: self.path("key"), client_ca }).unwrap()
    }

    /// The side that connects, with a certificate or without.
    pub(super) fn client(&self, shows: bool) -> Arc<Security> {
        let identity = shows.then(|| (self.path("chain"), self.path("key")));
        Security::new(SecurityFiles { ca: self.path("ca"), identity }).unwrap()
    }
}
