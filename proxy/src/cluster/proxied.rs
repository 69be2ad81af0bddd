//! What hosts are told of whom a connection is for: a PROXY protocol header in front of everything else
//! (`ProxyProtocolUpstreamTransport`). It must not know how connections are made.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use tidegate_filters::connection::{ConnectionInfo, Tlv};
use tidegate_filters::format::{FormatContext, SubstitutionFormat};
use tidegate_filters::listener::{PassedTlvs, host_tlvs};
use tidegate_filters::stream_info::{Address, StreamInfo};

use super::host::Host;
use super::sockets::TransportSocket;
use crate::proxy_header::{Ends, ProxyVersion, proxy_header};

/// Whom a connection to a host is for: one is never used for anybody else.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Proxied {
    /// None: they cannot be said.
    ends: Option<Ends>,
    tlvs: Arc<[Tlv]>,
}

impl Proxied {
    /// A client's connection, with what is said of it beside its addresses.
    pub(crate) fn of(connection: &ConnectionInfo, tlvs: Option<Arc<[Tlv]>>) -> Arc<Self> {
        let tlvs = tlvs.or_else(|| connection.proxy_tlvs.clone()).unwrap_or_default();
        Arc::new(Self { ends: Ends::of(&connection.remote, &connection.local), tlvs })
    }
}

/// One value that is said beside the addresses.
#[derive(Debug, Clone)]
pub struct AddedTlv {
    pub kind: u8,
    pub value: TlvValue,
}

/// What it is.
#[derive(Debug, Clone)]
pub enum TlvValue {
    Fixed(Bytes),
    Format(Box<SubstitutionFormat>),
}

impl AddedTlv {
    /// With what is known of a stream.
    pub(crate) fn render(&self, stream: &StreamInfo) -> Tlv {
        let value = match &self.value {
            TlvValue::Fixed(value) => value.clone(),
            TlvValue::Format(format) => {
                let mut value = Vec::new();
                format.render(&FormatContext::of(stream), &mut value);
                value.into()
            }
        };
        (self.kind, value)
    }
}

/// `ProxyProtocolUpstreamTransport`.
#[derive(Debug)]
pub struct ProxySocket {
    pub version: ProxyVersion,
    /// Of what is known of the client.
    pub passed: PassedTlvs,
    pub added: Vec<AddedTlv>,
    pub inner: TransportSocket,
}

impl ProxySocket {
    /// The header for a connection from `local` to a host.
    pub(crate) fn header(&self, id: u64, proxied: Option<&Proxied>, local: Option<&Address>, host: &Host) -> Bytes {
        let Some(proxied) = proxied else {
            // Nobody's but this process's. Version 1 has no word for that: Envoy names the connection's own ends.
            let own = local.and_then(|local| Ends::of(local, &host.address));
            let ends = own.filter(|_| self.version == ProxyVersion::V1);
            return proxy_header(self.version, ends, &[]);
        };
        if self.version == ProxyVersion::V1 || proxied.ends.is_none() {
            return proxy_header(self.version, proxied.ends, &[]);
        }
        let tlvs = self.tlvs(id, proxied, local, host);
        proxy_header(self.version, proxied.ends, &tlvs)
    }

    /// The host's, then the cluster's, then those of the client: of one type the first count.
    fn tlvs(&self, id: u64, proxied: &Proxied, local: Option<&Address>, host: &Host) -> Vec<Tlv> {
        let mut tlvs = host_tlvs(&host.metadata);
        let mut said: BTreeSet<u8> = tlvs.iter().map(|(kind, _)| *kind).collect();
        if self.added.iter().any(|added| !said.contains(&added.kind)) {
            let stream = upstream_stream(id, local, host);
            let added = self.added.iter().filter(|added| !said.contains(&added.kind));
            tlvs.extend(added.map(|added| added.render(&stream)));
            said.extend(self.added.iter().map(|added| added.kind));
        }
        let passing = |(kind, _): &&Tlv| self.passed.passes(*kind) && !said.contains(kind);
        tlvs.extend(proxied.tlvs.iter().filter(passing).cloned());
        tlvs
    }
}

/// What Envoy's formats are told here: of the connection to the host alone, whose peer is the host.
fn upstream_stream(id: u64, local: Option<&Address>, host: &Host) -> StreamInfo {
    let local = local.cloned().unwrap_or_else(|| Address::Internal("".into()));
    let connection = ConnectionInfo::new(id, host.address.clone(), local.clone(), Instant::now());
    let mut stream = StreamInfo::new(Arc::new(connection), Instant::now(), SystemTime::now());
    stream.upstream.host = Some(host.address.clone());
    stream.upstream.local_address = Some(local);
    stream.upstream.connection_id = Some(id);
    stream
}
