//! Writes PROXY protocol headers (versions 1 and 2) that name a connection's ends.
//! It must not know whom they are sent to.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};
use tidegate_filters::stream_info::Address;

use crate::route::ProxyVersion;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY or LOCAL.
const V2_PROXY: u8 = 0x21;
const V2_LOCAL: u8 = 0x20;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header for a connection from `remote` to `local`; ends that are not both IPv4 or both IPv6 are not named.
pub(crate) fn proxy_header(version: ProxyVersion, remote: &Address, local: &Address) -> Bytes {
    let ends = remote.ip().zip(local.ip()).filter(|(remote, local)| remote.is_ipv4() == local.is_ipv4());
    match (version, ends) {
        (ProxyVersion::V1, None) => Bytes::from_static(b"PROXY UNKNOWN\r\n"),
        (ProxyVersion::V1, Some((remote, local))) => {
            let family = if remote.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (remote.ip(), local.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", remote.port(), local.port()).into()
        }
        (ProxyVersion::V2, ends) => {
            let mut header = BytesMut::with_capacity(52);
            header.put_slice(V2_SIGNATURE);
            let Some((remote, local)) = ends else {
                header.put_slice(&[V2_LOCAL, 0, 0, 0]);
                return header.freeze();
            };
            header.put_u8(V2_PROXY);
            header.put_u8(if remote.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 });
            header.put_u16(if remote.is_ipv4() { 12 } else { 36 });
            for ip in [remote.ip(), local.ip()] {
                match ip {
                    IpAddr::V4(ip) => header.put_slice(&ip.octets()),
                    IpAddr::V6(ip) => header.put_slice(&ip.octets()),
                }
            }
            header.put_u16(remote.port());
            header.put_u16(local.port());
            header.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: ProxyVersion, remote: &str, local: &str) -> Bytes {
        let address = |text: &str| Address::Ip(text.parse().unwrap());
        proxy_header(version, &address(remote), &address(local))
    }

    #[test]
    fn headers_name_both_ends() {
        let v1 = header(ProxyVersion::V1, "1.2.3.4:5", "6.7.8.9:10");
        assert_eq!(v1, "PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n");
        let v1 = header(ProxyVersion::V1, "[2001:db8::1]:5", "[2001:db8::2]:10");
        assert_eq!(v1, "PROXY TCP6 2001:db8::1 2001:db8::2 5 10\r\n");
        let v2 = header(ProxyVersion::V2, "1.2.3.4:5", "6.7.8.9:10");
        assert_eq!(&v2[..12], V2_SIGNATURE);
        assert_eq!(v2[12..], [0x21, 0x11, 0, 12, 1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 0, 10]);
        assert_eq!(header(ProxyVersion::V2, "[::1]:5", "[::1]:10").len(), 16 + 36);
    }

    #[test]
    fn ends_of_two_families_are_not_named() {
        assert_eq!(header(ProxyVersion::V1, "1.2.3.4:5", "[::1]:10"), "PROXY UNKNOWN\r\n");
        assert_eq!(header(ProxyVersion::V2, "1.2.3.4:5", "[::1]:10")[12..], [0x20, 0, 0, 0]);
    }
}
