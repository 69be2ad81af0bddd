//! `ssl.*` of listeners and clusters, under Envoy's names. It must not know handshakes.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use tidegate_stats::{OwnedCounter, Scope, stats_block};
use tidegate_tls::certificate::Certificate;
use tidegate_tls::{Identity, Session, Validation};

stats_block! {
    /// `ssl.*`.
    pub struct SslStats {
        counters {
            connection_error, fail_verify_cert_hash, fail_verify_error, fail_verify_no_cert, fail_verify_san, handshake,
            no_certificate, ocsp_staple_failed, ocsp_staple_omitted, ocsp_staple_requests, ocsp_staple_responses,
            session_reused,
        }
        gauges {}
        histograms {}
    }
}

stats_block! {
    /// `server_ssl_socket_factory.*` and `client_ssl_socket_factory.*`.
    pub struct SocketFactoryStats {
        counters { downstream_context_secrets_not_ready, ssl_context_update_by_sds, upstream_context_secrets_not_ready }
        gauges {}
        histograms {}
    }
}

/// What is counted of handshakes.
pub struct TlsStats {
    fixed: SslStats,
    scope: Scope,
    /// By what was agreed on: `versions.TLSv1.3`.
    agreed: RwLock<HashMap<String, Arc<OwnedCounter>>>,
}

impl Deref for TlsStats {
    type Target = SslStats;

    fn deref(&self) -> &SslStats {
        &self.fixed
    }
}

impl TlsStats {
    /// Below `listener.<address>.` or `cluster.<name>.`.
    pub fn new(owner: &Scope) -> Self {
        let scope = owner.scope("ssl.");
        Self { fixed: SslStats::new(&scope), scope, agreed: RwLock::default() }
    }

    /// A handshake is over.
    pub(super) fn count(&self, session: &Session) {
        self.fixed.handshake().inc();
        if session.resumed {
            self.fixed.session_reused().inc();
        }
        if session.peer_chain.is_empty() {
            self.fixed.no_certificate().inc();
        }
        self.agree("ciphers.", session.cipher);
        self.agree("versions.", session.version);
        if let Some(group) = session.group {
            self.agree("curves.", group);
        }
        if let Some(scheme) = session.peer_signature {
            self.agree("sigalgs.", scheme);
        }
    }

    fn agree(&self, kind: &str, what: &str) {
        let name = format!("{kind}{what}");
        if let Some(counter) = self.agreed.read().get(&name) {
            return counter.inc();
        }
        let counter = Arc::new(self.scope.counter(&name));
        self.agreed.write().entry(name).or_insert(counter).inc();
    }

    /// When certificates expire, in seconds since 1970: of several without a name the one that is first.
    pub(super) fn show_expiry<'a>(
        &self,
        identities: impl IntoIterator<Item = &'a Arc<Identity>>,
        validation: &Validation,
    ) {
        let own = identities.into_iter().flat_map(|identity| &identity.chain).filter_map(expiry).min();
        let roots = validation.trust.iter().flat_map(|trust| &trust.roots.certificates).filter_map(expiry).min();
        for (kind, expiry) in [("cert", own), ("ca_cert", roots)] {
            if let Some(expiry) = expiry {
                // What the hash of no name is.
                let name = format!("certificate.unnamed_{kind}_e3b0c442.expiration_unix_time_seconds");
                self.scope.gauge(&name).set(expiry);
            }
        }
    }
}

fn expiry(certificate: &Certificate) -> Option<u64> {
    let until: SystemTime = certificate.valid_until?;
    until.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}
