//! What a connection's TLS handshake told, either side, for logs, matchers and headers. Certificates are kept as they came and
//! read when somebody first asks: most connections' never are. It must not know how their facts are shown.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustls_pki_types::CertificateDer;
use tidegate_tls::certificate::url_encoded_pem;
use tidegate_tls::{Certificate, Identity, Session};

/// What a finished TLS handshake told, either side.
#[derive(Debug)]
pub struct TlsInfo {
    pub version: &'static str,
    pub cipher: &'static str,
    /// The key agreement's group, e.g. `X25519`.
    pub group: Option<&'static str>,
    pub alpn: Option<Arc<str>>,
    pub sni: Option<Arc<str>>,
    pub resumed: bool,
    pub peer_presented: bool,
    pub peer_validated: bool,
    /// When the handshake was complete.
    pub handshake_complete: Instant,
    /// What was presented to the peer.
    pub local_identity: Option<Arc<Identity>>,
    peer: Peer,
}

/// A peer's certificates, its own first.
#[derive(Debug, Default)]
struct Peer {
    chain: Arc<[CertificateDer<'static>]>,
    own: OnceLock<Option<Box<Certificate>>>,
    /// Those after its own.
    others: OnceLock<Vec<Certificate>>,
    own_pem: OnceLock<Box<str>>,
}

impl TlsInfo {
    pub fn new(session: Session, handshake_complete: Instant) -> Self {
        let text = |bytes: &[u8]| Arc::from(String::from_utf8_lossy(bytes));
        Self {
            version: session.version,
            cipher: session.cipher,
            group: session.group,
            alpn: session.alpn.as_deref().map(text),
            sni: session.server_name.as_deref().map(Arc::from),
            resumed: session.resumed,
            peer_presented: !session.peer_chain.is_empty(),
            peer_validated: session.peer_validated,
            handshake_complete,
            local_identity: session.local,
            peer: Peer { chain: session.peer_chain.into(), ..Peer::default() },
        }
    }

    /// The peer's own certificate; `None` where it presented none.
    pub fn peer(&self) -> Option<&Certificate> {
        let read = || Some(Box::new(Certificate::parse(self.peer.chain.first()?).ok()?));
        self.peer.own.get_or_init(read).as_deref()
    }

    /// All certificates that the peer presented, its own first.
    pub fn peer_chain(&self) -> impl Iterator<Item = &Certificate> {
        let read = || {
            let others = self.peer.chain.iter().skip(1);
            others.map(|der| Certificate::parse(der).unwrap_or_default()).collect()
        };
        self.peer().into_iter().chain(self.peer.others.get_or_init(read))
    }

    /// The same as they came.
    pub fn peer_ders(&self) -> &[CertificateDer<'static>] {
        &self.peer.chain
    }

    /// The peer's own certificate as PEM, escaped for URLs.
    pub fn peer_pem(&self) -> Option<&str> {
        let own = self.peer.chain.first()?;
        Some(self.peer.own_pem.get_or_init(|| url_encoded_pem(own).into()))
    }

    /// The certificate that was presented to the peer.
    pub fn local(&self) -> Option<&Certificate> {
        self.local_identity.as_deref().map(Identity::leaf)
    }
}

/// Handshakes that never were, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    /// The certificate that `change` makes of one without names, and its key, as PEM.
    pub(crate) fn issue(change: impl FnOnce(&mut CertificateParams)) -> (rcgen::Certificate, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        (params.self_signed(&key).unwrap(), key.serialize_pem())
    }

    /// Of TLS 1.3, nobody presented anything.
    pub(crate) fn session() -> Session {
        Session {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            group: Some("X25519"),
            peer_signature: None,
            alpn: None,
            server_name: None,
            resumed: false,
            peer_chain: Vec::new(),
            peer_validated: false,
            doubt: None,
            local: None,
        }
    }

    /// A peer that presented what `change` makes of a certificate without names.
    pub(crate) fn peer(change: impl FnOnce(&mut CertificateParams)) -> TlsInfo {
        let (certificate, _) = issue(change);
        let session = Session { peer_chain: vec![certificate.der().clone()], peer_validated: true, ..session() };
        TlsInfo::new(session, Instant::now())
    }

    pub(crate) fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    pub(crate) fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{issue, peer, session, uri};
    use super::*;

    #[test]
    fn certificates_are_read_once_when_somebody_asks() {
        let tls = peer(|params| params.subject_alt_names = vec![uri("spiffe://a/b")]);
        assert!(tls.peer_presented && tls.peer_validated);
        assert!(tls.peer.own.get().is_none() && tls.peer.own_pem.get().is_none());
        let first: *const Certificate = tls.peer().unwrap();
        assert_eq!(tls.peer().unwrap().sans[0].value, b"spiffe://a/b");
        assert!(std::ptr::eq(first, tls.peer().unwrap()));
        assert!(tls.peer_pem().unwrap().starts_with("-----BEGIN%20CERTIFICATE-----%0A"));
    }

    #[test]
    fn a_chain_is_told_from_the_peer_on() {
        let (own, other) = (issue(|_| ()).0, issue(|_| ()).0);
        let peer_chain = vec![own.der().clone(), other.der().clone()];
        let tls = TlsInfo::new(Session { peer_chain: peer_chain.clone(), ..session() }, Instant::now());
        let read = peer_chain.iter().map(|der| Certificate::parse(der).unwrap()).collect::<Vec<_>>();
        assert_eq!(tls.peer_chain().cloned().collect::<Vec<_>>(), read);
        assert_eq!(tls.peer_ders(), peer_chain);
    }

    #[test]
    fn what_is_no_certificate_has_no_facts() {
        let junk = CertificateDer::from(vec![0x30, 0x82, 0xff]);
        let tls = TlsInfo::new(Session { peer_chain: vec![junk], ..session() }, Instant::now());
        assert!(tls.peer_presented && tls.peer().is_none());
        let nobody = TlsInfo::new(session(), Instant::now());
        assert!(!nobody.peer_presented && nobody.peer().is_none() && nobody.peer_pem().is_none());
        assert_eq!(nobody.peer_chain().count(), 0);
    }

    #[test]
    fn a_connection_keeps_little_of_a_handshake() {
        assert!(size_of::<TlsInfo>() <= 256, "{}", size_of::<TlsInfo>());
    }
}
