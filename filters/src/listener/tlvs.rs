//! What the second version of the PROXY protocol says beside addresses (TLVs), where it is passed on to hosts.
//! It must not know headers.

use std::collections::BTreeSet;

use prost::Message as _;
use tidegate_xds::pb::envoy::config::core::v3::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType;
use tidegate_xds::pb::envoy::config::core::v3::{PerHostConfig, ProxyProtocolPassThroughTlVs};

use crate::connection::Tlv;
use crate::metadata::Metadata;

/// Where a host's metadata says what it is told (`typed_filter_metadata`, a `PerHostConfig`).
pub const HOST_TLVS: &str = "envoy.transport_sockets.proxy_protocol";

/// Which TLVs are passed on (`ProxyProtocolPassThroughTLVs`): all, some types or, unset, none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassedTlvs {
    All,
    Some(BTreeSet<u8>),
}

impl PassedTlvs {
    pub fn of(proto: Option<&ProxyProtocolPassThroughTlVs>) -> Self {
        match proto {
            None => Self::Some(BTreeSet::new()),
            Some(proto) if proto.match_type() == PassTlVsMatchType::IncludeAll => Self::All,
            Some(proto) => Self::Some(proto.tlv_type.iter().filter_map(|kind| u8::try_from(*kind).ok()).collect()),
        }
    }

    pub fn passes(&self, kind: u8) -> bool {
        match self {
            Self::All => true,
            Self::Some(kinds) => kinds.contains(&kind),
        }
    }
}

/// What a host is told beside what its cluster's hosts are; what cannot be read is nothing, as in Envoy.
pub fn host_tlvs(metadata: &Metadata) -> Vec<Tlv> {
    let own = metadata.typed(HOST_TLVS).and_then(|own| PerHostConfig::decode(&*own.value).ok());
    let added = own.into_iter().flat_map(|own| own.added_tlvs);
    added.filter_map(|entry| Some((u8::try_from(entry.r#type).ok()?, entry.value.into()))).collect()
}
