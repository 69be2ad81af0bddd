//! What a finished handshake agreed on. It must not know what is done with it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use rustls::pki_types::CertificateDer;
use rustls::{CommonState, HandshakeKind, SignatureScheme};

use crate::Identity;
use crate::parameters::{group_name, scheme_name, suite_name, version_name};
use crate::validation::{Expected, Outcome, Reason};

/// A connection's session.
#[derive(Debug, Clone)]
pub struct Session {
    /// As BoringSSL names it: `TLSv1.3`.
    pub version: &'static str,
    /// As BoringSSL names it: `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// As BoringSSL names it: `X25519`; `None` where a TLS 1.2 session was resumed.
    pub group: Option<&'static str>,
    /// What the peer signed with; `None` where it signed nothing.
    pub peer_signature: Option<&'static str>,
    pub alpn: Option<Vec<u8>>,
    /// The host that the client named.
    pub server_name: Option<String>,
    pub resumed: bool,
    /// What the peer presented, its own certificate first; empty where it presented nothing.
    pub peer_chain: Vec<CertificateDer<'static>>,
    pub peer_validated: bool,
    /// What is wrong with a peer's certificate that was let in all the same (`accept_untrusted`).
    pub doubt: Option<Reason>,
    /// What is presented to peers that ask, whether or not this one has.
    pub local: Option<Arc<Identity>>,
}

impl Session {
    /// Reads a connection whose handshake is over.
    pub(crate) fn of(connection: &CommonState, server_name: Option<String>, notes: &Notes) -> Self {
        Self {
            version: connection.protocol_version().map_or("unknown", version_name),
            cipher: connection.negotiated_cipher_suite().map_or("unknown", |suite| suite_name(suite.suite())),
            group: connection.negotiated_key_exchange_group().map(|group| group_name(group.name())),
            peer_signature: notes.scheme.map(scheme_name),
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            server_name,
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            peer_chain: connection.peer_certificates().map(<[_]>::to_vec).unwrap_or_default(),
            peer_validated: notes.outcome == Some(Outcome::Validated),
            doubt: notes.doubt.clone(),
            local: None,
        }
    }
}

/// What a verifier is told of a connection, and what it learned while rustls had it look at a peer. rustls gives a verifier no
/// connection to tell it to; but it asks on the thread that drives the handshake.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// What the peer's certificate must say.
    pub(crate) expected: Expected,
    pub(crate) scheme: Option<SignatureScheme>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) reason: Option<Reason>,
    /// The same of a peer that was let in all the same.
    pub(crate) doubt: Option<Reason>,
}

thread_local! {
    static NOTES: Cell<Notes> = Cell::default();
}

/// For verifiers: adds to what is known of the handshake that is under way on this thread.
pub(crate) fn note(add: impl FnOnce(&mut Notes)) {
    NOTES.with(|notes| {
        let mut now = notes.take();
        add(&mut now);
        notes.set(now);
    });
}

/// For verifiers: what this handshake's peer must be.
pub(crate) fn expected() -> Expected {
    NOTES.with(|notes| {
        let now = notes.take();
        let expected = now.expected.clone();
        notes.set(now);
        expected
    })
}

/// Drives a handshake to its end with a peer of whom this is expected; gives also what verifiers noted meanwhile.
pub(crate) async fn noting<F: Future + Unpin>(mut handshake: F, expected: Expected) -> (F::Output, Notes) {
    let mut notes = Notes { expected, ..Notes::default() };
    let output = poll_fn(|cx| {
        NOTES.set(std::mem::take(&mut notes));
        let polled = Pin::new(&mut handshake).poll(cx);
        notes = NOTES.take();
        match polled {
            Poll::Ready(output) => Poll::Ready(output),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    (output, notes)
}
