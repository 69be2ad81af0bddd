//! `ssl.*` of listeners and clusters, under Envoy's names. It must not know handshakes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use tidegate_stats::{OwnedCounter, Scope, stats_block};
use tidegate_tls::certificate::Certificate;
use tidegate_tls::validation::Reason;
use tidegate_tls::{Identity, Session, Staple, Validation};

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
    /// By what was agreed on: `versions.` and `TLSv1.3`.
    agreed: RwLock<HashMap<(&'static str, &'static str), Arc<OwnedCounter>>>,
    expiring: Mutex<Expiring>,
}

/// What expires first of what is presented and trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Expiring {
    /// Of certificates, in seconds since 1970.
    pub(crate) certificate: Option<u64>,
    /// Of OCSP responses, in seconds since 1970.
    pub(crate) response: Option<u64>,
    /// It was told that it has.
    told: bool,
}

impl Expiring {
    /// The first of both.
    pub(crate) fn and(self, other: Self) -> Self {
        let first = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        Self {
            certificate: first(self.certificate, other.certificate),
            response: first(self.response, other.response),
            told: false,
        }
    }
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
        Self { fixed: SslStats::new(&scope), scope, agreed: RwLock::default(), expiring: Mutex::default() }
    }

    /// A handshake is over.
    pub(super) fn count(&self, session: &Session) {
        self.fixed.handshake().inc();
        if session.resumed {
            self.fixed.session_reused().inc();
        }
        if let Some(doubt) = &session.doubt {
            self.count_unverified(doubt);
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

    /// A peer's certificate is not what it must be.
    pub(super) fn count_unverified(&self, reason: &Reason) {
        match reason {
            Reason::Chain(_) | Reason::Domain(_) => self.fixed.fail_verify_error().inc(),
            Reason::San(_) => self.fixed.fail_verify_san().inc(),
            Reason::Hash => self.fixed.fail_verify_cert_hash().inc(),
            Reason::KeyUsage => self.fixed.connection_error().inc(),
        }
    }

    /// A certificate was chosen for a client.
    pub(super) fn count_staple(&self, staple: Staple) {
        let became = match staple {
            Staple::NotAsked => return,
            Staple::Sent => self.fixed.ocsp_staple_responses(),
            Staple::Omitted => self.fixed.ocsp_staple_omitted(),
            Staple::Failed => self.fixed.ocsp_staple_failed(),
        };
        self.fixed.ocsp_staple_requests().inc();
        became.inc();
    }

    fn agree(&self, kind: &'static str, what: &'static str) {
        if let Some(counter) = self.agreed.read().get(&(kind, what)) {
            return counter.inc();
        }
        let counter = Arc::new(self.scope.counter(&format!("{kind}{what}")));
        self.agreed.write().entry((kind, what)).or_insert(counter).inc();
    }

    /// What expires first. Once something has, that is told: it is presented and trusted on as it was.
    pub(crate) fn expiring(&self, now: SystemTime) -> Expiring {
        let mut expiring = self.expiring.lock();
        let has_expired = expiring.certificate.is_some_and(|at| seconds(now).is_some_and(|now| at <= now));
        if has_expired && !std::mem::replace(&mut expiring.told, true) {
            let of = self.scope.prefix();
            tracing::warn!(of, "a certificate has expired: it stays as it is until another one comes; /certs shows it");
        }
        *expiring
    }

    /// When certificates expire, in seconds since 1970: of those of one name the first.
    pub(super) fn show_expiry<'a>(
        &self,
        identities: impl IntoIterator<Item = &'a Arc<Identity>>,
        validation: &Validation,
    ) {
        let identities: Vec<&Arc<Identity>> = identities.into_iter().collect();
        let responses = identities.iter().filter_map(|identity| identity.ocsp.as_ref()?.valid_until());
        let response = responses.filter_map(seconds).min();
        // What the hash of no name is.
        let called = |name: &str, unnamed: &str| match name {
            "" => format!("{unnamed}_e3b0c442"),
            name => name.to_owned(),
        };
        let own =
            identities.into_iter().map(|identity| (called(&identity.name, "unnamed_cert"), expiry(identity.leaf())));
        let roots = validation.trust.iter().map(|trust| {
            let first = trust.roots.certificates.iter().filter_map(expiry).min();
            (called(&trust.name, "unnamed_ca_cert"), first)
        });
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for (name, expiry) in own.chain(roots) {
            let Some(expiry) = expiry else { continue };
            let known = all.entry(name).or_insert(expiry);
            *known = expiry.min(*known);
        }
        *self.expiring.lock() = Expiring { certificate: all.values().min().copied(), response, told: false };
        self.expiring(SystemTime::now());
        for (name, expiry) in all {
            self.scope.gauge(&format!("certificate.{name}.expiration_unix_time_seconds")).set(expiry);
        }
    }
}

fn expiry(certificate: &Certificate) -> Option<u64> {
    certificate.valid_until.and_then(seconds)
}

fn seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}
