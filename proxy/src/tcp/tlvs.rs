//! What a TCP proxy says to hosts of a connection beside its addresses (`proxy_protocol_tlvs`). It must not know headers.

use std::sync::Arc;

use tidegate_filters::connection::Tlv;
use tidegate_filters::stream_info::StreamInfo;

use crate::cluster::proxied::{AddedTlv, Proxied};

/// What becomes of what the client's own PROXY header said (`proxy_protocol_tlv_merge_policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergeTlvs {
    /// Where there was such a header, what it said is all.
    #[default]
    AddIfAbsent,
    /// Of one type, the proxy's count.
    Overwrite,
    /// All of it, the client's first.
    Append,
}

/// What is said, and beside what.
#[derive(Debug, Default)]
pub struct TcpTlvs {
    pub added: Vec<AddedTlv>,
    pub merge: MergeTlvs,
}

impl TcpTlvs {
    /// Whom a connection to a host is for.
    pub(super) fn proxied(&self, stream: &StreamInfo) -> Arc<Proxied> {
        let connection = &stream.connection;
        let theirs = connection.proxy_tlvs.as_deref();
        if self.added.is_empty() || theirs.is_some() && self.merge == MergeTlvs::AddIfAbsent {
            return Proxied::of(connection, None);
        }
        let own: Vec<Tlv> = self.added.iter().map(|added| added.render(stream)).collect();
        Proxied::of(connection, Some(merged(self.merge, own, theirs.unwrap_or_default())))
    }
}

fn merged(merge: MergeTlvs, mut own: Vec<Tlv>, theirs: &[Tlv]) -> Arc<[Tlv]> {
    match merge {
        MergeTlvs::Append => theirs.iter().cloned().chain(own).collect(),
        MergeTlvs::AddIfAbsent | MergeTlvs::Overwrite => {
            let other: Vec<Tlv> =
                theirs.iter().filter(|(kind, _)| own.iter().all(|(own, _)| own != kind)).cloned().collect();
            own.extend(other);
            own.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured on Envoy 1.40.
    #[test]
    fn the_clients_go_first_or_give_way() {
        let tlv = |kind: u8, value: &'static str| (kind, value.into());
        let own = || vec![tlv(241, "hi"), tlv(224, "z")];
        let theirs = [tlv(224, "BC"), tlv(225, "D"), tlv(224, "E")];
        assert_eq!(*merged(MergeTlvs::Overwrite, own(), &theirs), [tlv(241, "hi"), tlv(224, "z"), tlv(225, "D")]);
        let all = [tlv(224, "BC"), tlv(225, "D"), tlv(224, "E"), tlv(241, "hi"), tlv(224, "z")];
        assert_eq!(*merged(MergeTlvs::Append, own(), &theirs), all);
    }
}
