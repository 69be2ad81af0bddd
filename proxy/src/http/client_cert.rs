//! `x-forwarded-client-cert`: what hosts are told of the certificate that a client presented (Envoy's
//! `forward_client_cert_details`). It must not know whom the listener trusts.
//!
//! Its length is bounded: by the request's own headers, and by the 64 KiB that a chain may have in a handshake.

use http::{HeaderMap, HeaderValue};
use tidegate_filters::connection::TlsInfo;
use tidegate_tls::Certificate;
use tidegate_tls::certificate::{SanKind, url_encoded_pem};

use super::headers::X_FORWARDED_CLIENT_CERT;
use super::options::{ClientCert, ClientCertDetails};
use super::request_headers::append_to_list;

/// Where a client presented no certificate there is nothing to add, and what it claims goes unless it is always forwarded.
pub(super) fn forward(mode: ClientCert, tls: Option<&TlsInfo>, headers: &mut HeaderMap) {
    let peer = tls.filter(|tls| tls.peer_presented);
    match (mode, peer) {
        (ClientCert::AlwaysForwardOnly, _) | (ClientCert::ForwardOnly, Some(_)) => {}
        (ClientCert::AppendForward(details), Some(tls)) => {
            if let Some(element) = element(details, tls) {
                append_to_list(headers, X_FORWARDED_CLIENT_CERT, &element);
            }
        }
        (mode, peer) => {
            headers.remove(&X_FORWARDED_CLIENT_CERT);
            if let (ClientCert::SanitizeSet(details), Some(tls)) = (mode, peer)
                && let Some(element) = element(details, tls)
            {
                headers.insert(X_FORWARDED_CLIENT_CERT, element);
            }
        }
    }
}

/// `By;Hash;Cert;Chain;Subject;URI;DNS`: the first two always, the others where they are wanted.
fn element(details: ClientCertDetails, tls: &TlsInfo) -> Option<HeaderValue> {
    let peer = tls.peer()?;
    let mut out = Element(Vec::with_capacity(256));
    if let Some(local) = tls.local() {
        out.names(b"By=", local, &SanKind::Uri);
    }
    out.part(&[b"Hash=", peer.sha256.as_bytes()]);
    let own = tls.peer_pem().unwrap_or_default();
    if details.cert {
        out.part(&[b"Cert=\"", own.as_bytes(), b"\""]);
    }
    if details.chain {
        let others: String = tls.peer_ders().iter().skip(1).map(url_encoded_pem).collect();
        out.part(&[b"Chain=\"", own.as_bytes(), others.as_bytes(), b"\""]);
    }
    if details.subject {
        out.part(&[b"Subject=\"", peer.subject.as_bytes(), b"\""]);
    }
    // That it has none is said too; of DNS names nothing is said then.
    if details.uri && !out.names(b"URI=", peer, &SanKind::Uri) {
        out.part(&[b"URI="]);
    }
    if details.dns {
        out.names(b"DNS=", peer, &SanKind::Dns);
    }
    HeaderValue::from_maybe_shared(bytes::Bytes::from(out.0)).ok()
}

/// Parts separated by semicolons.
struct Element(Vec<u8>);

impl Element {
    fn part(&mut self, pieces: &[&[u8]]) {
        if !self.0.is_empty() {
            self.0.push(b';');
        }
        pieces.iter().for_each(|piece| self.0.extend_from_slice(piece));
    }

    /// A part for each name of one kind; whether there was any. A name that no header can carry is left out.
    fn names(&mut self, key: &[u8], of: &Certificate, kind: &SanKind) -> bool {
        let mut any = false;
        for name in of.values_of(kind).filter(|name| HeaderValue::from_bytes(name).is_ok()) {
            self.part(&[key, name]);
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests;
