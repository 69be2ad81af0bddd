//! The certificates of what serves, for the admin interface.

use std::sync::Arc;
use std::time::SystemTime;

use tidegate_tls::validation::Roots;
use tidegate_tls::{Identity, Validation};

use crate::admin::state::{ContextCertificates, PlacedCertificate};
use crate::snapshot::Snapshot;
use crate::tls::Expiring;

/// Those of every context, listeners' first.
pub(super) fn of(snapshot: &Snapshot) -> Vec<ContextCertificates> {
    let mut contexts = Vec::new();
    for listener in snapshot.listeners.values() {
        for tls in listener.chains.all.iter().chain(&listener.chains.default).filter_map(|chain| chain.tls.as_ref()) {
            if let Some(context) = tls.context() {
                contexts.push(one(context.identities().map(|identity| &**identity), context.validation()));
            }
        }
    }
    for cluster in snapshot.clusters.values() {
        for socket in cluster.config().transport_sockets.all() {
            if let Some(context) = socket.tls().and_then(|tls| tls.context()) {
                contexts.push(one(context.identity().map(|identity| &**identity), context.validation()));
            }
        }
    }
    contexts
}

/// What expires first of all that is presented and trusted; once something has, that is told.
pub(super) fn expiring(snapshot: &Snapshot, now: SystemTime) -> Expiring {
    let chains =
        snapshot.listeners.values().flat_map(|listener| listener.chains.all.iter().chain(&listener.chains.default));
    let servers = chains.filter_map(|chain| chain.tls.as_ref()).map(|tls| tls.expiring(now));
    let sockets = snapshot.clusters.values().flat_map(|cluster| cluster.config().transport_sockets.all());
    let clients = sockets.filter_map(|socket| socket.tls()).map(|tls| tls.expiring(now));
    servers.chain(clients).fold(Expiring::default(), Expiring::and)
}

fn one<'a>(identities: impl IntoIterator<Item = &'a Identity>, validation: &Validation) -> ContextCertificates {
    let presented = |identity: &Identity| PlacedCertificate {
        path: identity.path.clone(),
        certificate: identity.leaf().clone(),
        ocsp: identity.ocsp.clone(),
    };
    let first = |roots: &Arc<Roots>| {
        let certificate = roots.certificates.first()?.clone();
        Some(PlacedCertificate { path: roots.path.clone(), certificate, ocsp: None })
    };
    let trusted = validation.trust.iter().map(|trust| &trust.roots);
    let domains = validation.spiffe.iter().flat_map(|spiffe| &spiffe.domains).map(|(_, trust)| &trust.roots);
    ContextCertificates {
        roots: trusted.chain(domains).filter_map(first).collect(),
        chain: identities.into_iter().map(presented).collect(),
    }
}
