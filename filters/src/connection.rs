//! The facts of a downstream connection that outlive its first byte: addresses, TLS, what the inspectors saw.
//! They are fixed once the filter chain is chosen, and shared by all streams of the connection.

use std::any::Any;
use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::metadata::{FilterState, Metadata};
use crate::stream_info::Address;

pub(crate) mod tls;

pub use tls::TlsInfo;

/// A type and its value (TLV), as the second version of the PROXY protocol says them.
pub type Tlv = (u8, Bytes);

/// A downstream connection as matchers, filters and logs see it.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    pub id: u64,
    /// The peer, or whom the PROXY protocol named.
    pub remote: Address,
    /// The peer of the socket itself.
    pub direct_remote: Address,
    /// The address that was connected to, after original destination or PROXY protocol restored it.
    pub local: Address,
    /// The address of the socket itself.
    pub direct_local: Address,
    /// Whether `local` was restored.
    pub local_restored: bool,
    /// The SNI that a TLS inspector or the handshake saw.
    pub requested_server_name: Option<Arc<str>>,
    /// ALPN values that an inspector saw, or the one that the handshake chose.
    pub application_protocols: Vec<Arc<str>>,
    /// `tls`, `raw_buffer` or what an inspector set; empty when nobody looked.
    pub transport_protocol: Arc<str>,
    pub tls: Option<Arc<TlsInfo>>,
    /// Fingerprints of the ClientHello, when an inspector was asked for them.
    pub ja3: Option<Arc<str>>,
    pub ja4: Option<Arc<str>>,
    /// Why the handshake failed: `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure_reason: Option<Arc<str>>,
    /// What a PROXY header said that is to be said to hosts too; `None` where there was no such header.
    pub proxy_tlvs: Option<Arc<[Tlv]>>,
    /// Listener filters' dynamic metadata (PROXY protocol TLVs).
    pub metadata: Metadata,
    pub filter_state: FilterState,
    /// What is added to it once data has come; `None` where no filter adds any.
    pub late_filter_state: Option<Arc<Mutex<FilterState>>>,
    pub start: Instant,
    /// Smoothed round trip of the handshake, when the platform tells.
    pub round_trip_millis: Option<u64>,
    pub listener_name: Arc<str>,
    pub filter_chain_name: Arc<str>,
    /// The metadata of the listener and of the filter chain, where they have some.
    pub listener_metadata: Option<Arc<Metadata>>,
    pub filter_chain_metadata: Option<Arc<Metadata>>,
    /// What its streams' filters keep for one another.
    pub shared: ConnectionState,
}

/// Objects that live as long as the connection, made by the first stream that asks.
#[derive(Clone, Default)]
pub struct ConnectionState(Arc<Mutex<Vec<Named>>>);

type Named = (&'static str, Arc<dyn Any + Send + Sync>);

impl ConnectionState {
    /// The object of this key, made if it is not there; `None` when the key is another type's.
    pub fn get_or_make<T: Any + Send + Sync>(&self, key: &'static str, make: impl FnOnce() -> T) -> Option<Arc<T>> {
        let mut objects = self.0.lock();
        let object = match objects.iter().find(|(known, _)| *known == key) {
            Some((_, object)) => Arc::clone(object),
            None => {
                let object: Arc<dyn Any + Send + Sync> = Arc::new(make());
                objects.push((key, Arc::clone(&object)));
                object
            }
        };
        object.downcast().ok()
    }
}

impl std::fmt::Debug for ConnectionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.lock().iter().map(|(key, _)| key)).finish()
    }
}

impl ConnectionInfo {
    pub fn new(id: u64, remote: Address, local: Address, start: Instant) -> Self {
        Self {
            id,
            direct_remote: remote.clone(),
            remote,
            direct_local: local.clone(),
            local,
            local_restored: false,
            requested_server_name: None,
            application_protocols: Vec::new(),
            transport_protocol: Arc::from(""),
            tls: None,
            ja3: None,
            ja4: None,
            transport_failure_reason: None,
            proxy_tlvs: None,
            metadata: Metadata::default(),
            filter_state: FilterState::default(),
            late_filter_state: None,
            start,
            round_trip_millis: None,
            listener_name: Arc::from(""),
            listener_metadata: None,
            filter_chain_metadata: None,
            filter_chain_name: Arc::from(""),
            shared: ConnectionState::default(),
        }
    }

    /// The filter state as of now.
    pub fn filter_state_now(&self) -> Cow<'_, FilterState> {
        let Some(late) = &self.late_filter_state else { return Cow::Borrowed(&self.filter_state) };
        let mut state = self.filter_state.clone();
        state.add(&late.lock());
        Cow::Owned(state)
    }

    /// Whether the peer is on this machine (`SAME_IP_OR_LOOPBACK`): at 127.0.0.1 or ::1 and nowhere else of the loopback
    /// range, at the address that it connected to, or behind a unix socket.
    pub fn is_local(&self) -> bool {
        let ip = |address: &Address| address.ip().map(|address| address.ip().to_canonical());
        match (ip(&self.remote), ip(&self.local)) {
            (Some(remote), Some(local)) => {
                remote == Ipv4Addr::LOCALHOST || remote == Ipv6Addr::LOCALHOST || remote == local
            }
            _ => matches!(self.remote, Address::Pipe(_)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_loopback_address_and_ones_own_are_local() {
        for (remote, local, expected) in [
            ("127.0.0.1:1", "127.0.0.9:80", true),
            ("127.0.0.2:1", "127.0.0.1:80", false),
            ("[::1]:1", "[2001:db8::1]:80", true),
            ("10.0.0.1:1", "10.0.0.1:80", true),
            ("10.0.0.2:1", "10.0.0.1:80", false),
        ] {
            let address = |text: &str| Address::Ip(text.parse().unwrap());
            let connection = ConnectionInfo::new(1, address(remote), address(local), Instant::now());
            assert_eq!(connection.is_local(), expected, "{remote} {local}");
        }
    }
}
