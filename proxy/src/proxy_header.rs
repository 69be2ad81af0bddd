//! Writes PROXY protocol headers (versions 1 and 2) that name a connection's ends, and what else version 2 says of it.
//! It must not know whom they are sent to.
//!
//! See <https://www.haproxy.org/download/2.1/doc/proxy-protocol.txt>.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};
use tidegate_filters::connection::Tlv;
use tidegate_filters::stream_info::Address;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY or LOCAL.
const V2_PROXY: u8 = 0x21;
const V2_LOCAL: u8 = 0x20;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// In front of a value: its type and its length.
const TLV_HEAD_BYTES: usize = 3;

/// The version of a PROXY protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// Where a connection came from and where it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

impl Ends {
    /// Those of a connection; none where they are not both IPv4 or both IPv6, which no header can say.
    pub(crate) fn of(remote: &Address, local: &Address) -> Option<Self> {
        let (from, to) = remote.ip().zip(local.ip())?;
        (from.is_ipv4() == to.is_ipv4()).then_some(Self { from, to })
    }
}

/// A header. Version 1 says nothing but the ends; of version 2, what does not fit any more is left out, the last first.
pub(crate) fn proxy_header(version: ProxyVersion, ends: Option<Ends>, tlvs: &[Tlv]) -> Bytes {
    match (version, ends) {
        (ProxyVersion::V1, None) => Bytes::from_static(b"PROXY UNKNOWN\r\n"),
        (ProxyVersion::V1, Some(Ends { from, to })) => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into()
        }
        (ProxyVersion::V2, None) => [&V2_SIGNATURE[..], &[V2_LOCAL, 0, 0, 0]].concat().into(),
        (ProxyVersion::V2, Some(ends)) => v2(ends, tlvs),
    }
}

fn v2(Ends { from, to }: Ends, tlvs: &[Tlv]) -> Bytes {
    let mut body = BytesMut::with_capacity(36);
    for ip in [from.ip(), to.ip()] {
        match ip {
            IpAddr::V4(ip) => body.put_slice(&ip.octets()),
            IpAddr::V6(ip) => body.put_slice(&ip.octets()),
        }
    }
    body.put_u16(from.port());
    body.put_u16(to.port());
    for (kind, value) in tlvs {
        let fits = body.len() + TLV_HEAD_BYTES + value.len() <= usize::from(u16::MAX);
        let Some(length) = u16::try_from(value.len()).ok().filter(|_| fits) else { break };
        body.put_u8(*kind);
        body.put_u16(length);
        body.put_slice(value);
    }
    let mut header = BytesMut::with_capacity(16 + body.len());
    header.put_slice(V2_SIGNATURE);
    header.put_u8(V2_PROXY);
    header.put_u8(if from.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 });
    header.put_u16(u16::try_from(body.len()).unwrap_or(u16::MAX));
    header.put_slice(&body);
    header.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: ProxyVersion, remote: &str, local: &str, tlvs: &[Tlv]) -> Bytes {
        let address = |text: &str| Address::Ip(text.parse().unwrap());
        proxy_header(version, Ends::of(&address(remote), &address(local)), tlvs)
    }

    #[test]
    fn headers_name_both_ends() {
        let v1 = header(ProxyVersion::V1, "1.2.3.4:5", "6.7.8.9:10", &[]);
        assert_eq!(v1, "PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n");
        let v1 = header(ProxyVersion::V1, "[2001:db8::1]:5", "[2001:db8::2]:10", &[]);
        assert_eq!(v1, "PROXY TCP6 2001:db8::1 2001:db8::2 5 10\r\n");
        let v2 = header(ProxyVersion::V2, "1.2.3.4:5", "6.7.8.9:10", &[]);
        assert_eq!(&v2[..12], V2_SIGNATURE);
        assert_eq!(v2[12..], [0x21, 0x11, 0, 12, 1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 0, 10]);
        assert_eq!(header(ProxyVersion::V2, "[::1]:5", "[::1]:10", &[]).len(), 16 + 36);
    }

    #[test]
    fn ends_of_two_families_are_not_named() {
        assert_eq!(header(ProxyVersion::V1, "1.2.3.4:5", "[::1]:10", &[]), "PROXY UNKNOWN\r\n");
        let v2 = header(ProxyVersion::V2, "1.2.3.4:5", "[::1]:10", &[(1, Bytes::from_static(b"a"))]);
        assert!(v2.starts_with(V2_SIGNATURE) && v2[12..] == [V2_LOCAL, 0, 0, 0]);
    }

    #[test]
    fn the_second_version_says_more_as_far_as_it_fits() {
        let tlvs =
            |longest: usize| [(5, Bytes::from_static(b"ab")), (6, Bytes::from(vec![0; longest])), (7, Bytes::new())];
        let v2 = header(ProxyVersion::V2, "1.2.3.4:5", "6.7.8.9:10", &tlvs(1));
        assert_eq!(v2[14..16], [0, 12 + 5 + 4 + 3]);
        assert_eq!(v2[28..], [5, 0, 2, b'a', b'b', 6, 0, 1, 0, 7, 0, 0]);
        for longest in [65_535, 65_516, 70_000] {
            assert_eq!(header(ProxyVersion::V2, "1.2.3.4:5", "6.7.8.9:10", &tlvs(longest))[14..16], [0, 17]);
        }
        assert_eq!(header(ProxyVersion::V2, "1.2.3.4:5", "6.7.8.9:10", &tlvs(65_515))[14..16], [255, 255]);
        assert_eq!(
            header(ProxyVersion::V1, "1.2.3.4:5", "6.7.8.9:10", &tlvs(1)),
            "PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n"
        );
    }
}
