//! The PROXY header in front of a connection, version 1 or 2, as Envoy reads it
//! (<https://www.haproxy.org/download/2.1/doc/proxy-protocol.txt>). It must not know whether anyone believes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_BYTES: usize = 16;
const LONGEST_V1_BYTES: usize = 108;
/// A header of version 2 with the longest addresses, those of unix sockets.
pub(super) const FIRST_READ_BYTES: usize = V2_FIXED_BYTES + 216;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header<'a> {
    pub length: usize,
    /// Source and destination; `None` when the header says nothing of them.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// Types and values.
    pub tlvs: Vec<(u8, &'a [u8])>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// So many bytes are needed to say more.
    Incomplete(usize),
    Malformed,
}

/// Whether the bytes so far are, or may become, a header of this version.
pub(super) fn may_be(version: Version, bytes: &[u8]) -> bool {
    let signature = match version {
        Version::V1 => V1_SIGNATURE,
        Version::V2 => V2_SIGNATURE,
    };
    signature.starts_with(&bytes[..bytes.len().min(signature.len())])
}

/// Which version the bytes are; what is surely none, or ends like a short line, is malformed.
pub(super) fn version(bytes: &[u8]) -> Result<Version, Error> {
    if bytes.len() >= V2_FIXED_BYTES {
        if bytes.starts_with(V2_SIGNATURE) {
            return Ok(Version::V2);
        }
        if !bytes.starts_with(V1_SIGNATURE) {
            return Err(Error::Malformed);
        }
    }
    match v1_length(bytes) {
        Some(_) => Ok(Version::V1),
        None if bytes.len() > LONGEST_V1_BYTES => Err(Error::Malformed),
        None => Err(Error::Incomplete(FIRST_READ_BYTES)),
    }
}

/// The length of the first line, which may not be the beginning of version 2's signature.
fn v1_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    (end > 0).then_some(end + 2)
}

/// The header of this version.
pub(super) fn parse(version: Version, bytes: &[u8]) -> Result<Header<'_>, Error> {
    let header = match version {
        Version::V1 => v1(bytes)?,
        Version::V2 => v2(bytes)?,
    };
    match header.addresses {
        Some((source, destination)) if !is_unicast(source.ip()) || !is_unicast(destination.ip()) => {
            Err(Error::Malformed)
        }
        _ => Ok(header),
    }
}

fn v1(bytes: &[u8]) -> Result<Header<'_>, Error> {
    let length = v1_length(bytes).filter(|length| *length <= LONGEST_V1_BYTES).ok_or(Error::Malformed)?;
    let line = std::str::from_utf8(&bytes[..length]).map_err(|_| Error::Malformed)?.trim_ascii_end();
    let parts: Vec<&str> = line.split(' ').collect();
    let addresses = match parts[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", kind @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let address = |ip: &str, port: &str| -> Option<SocketAddr> {
                let ip: IpAddr = ip.parse().ok()?;
                let fits = ip.is_ipv4() == (kind == "TCP4");
                Some(SocketAddr::new(ip, port.parse().ok()?)).filter(|_| fits)
            };
            let addresses = address(source, source_port).zip(address(destination, destination_port));
            Some(addresses.ok_or(Error::Malformed)?)
        }
        _ => return Err(Error::Malformed),
    };
    Ok(Header { length, addresses, tlvs: Vec::new() })
}

fn v2(bytes: &[u8]) -> Result<Header<'_>, Error> {
    let fixed = bytes.get(V2_SIGNATURE.len()..V2_FIXED_BYTES).ok_or(Error::Incomplete(V2_FIXED_BYTES))?;
    let (version, command, family, transport) = (fixed[0] >> 4, fixed[0] & 15, fixed[1] >> 4, fixed[1] & 15);
    let length = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let address_bytes = match (version, command, family, transport) {
        (2, 0, ..) => 0,
        (2, 1, 1, 1 | 2) => 12,
        (2, 1, 2, 1 | 2) => 36,
        _ => return Err(Error::Malformed),
    };
    if length < V2_FIXED_BYTES + address_bytes {
        return Err(Error::Malformed);
    }
    let body = bytes.get(V2_FIXED_BYTES..length).ok_or(Error::Incomplete(length))?;
    let (addresses, rest) = body.split_at(address_bytes);
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    let addresses = match address_bytes {
        12 => {
            let ip = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&addresses[at..at + 4]).unwrap_or_default());
            Some((SocketAddr::from((ip(0), port(8))), SocketAddr::from((ip(4), port(10)))))
        }
        36 => {
            let ip = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&addresses[at..at + 16]).unwrap_or_default());
            Some((SocketAddr::from((ip(0), port(32))), SocketAddr::from((ip(16), port(34)))))
        }
        _ => None,
    };
    let tlvs = if addresses.is_some() { tlvs(rest)? } else { Vec::new() };
    Ok(Header { length, addresses, tlvs })
}

fn tlvs(mut bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, Error> {
    let mut tlvs = Vec::new();
    while !bytes.is_empty() {
        let [kind, high, low, ref rest @ ..] = *bytes else { return Err(Error::Malformed) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(Error::Malformed)?;
        tlvs.push((kind, value));
        bytes = rest;
    }
    Ok(tlvs)
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Header<'_>, Error> {
        parse(version(bytes)?, bytes)
    }

    fn shown(bytes: &[u8]) -> String {
        match read(bytes) {
            Ok(Header { addresses: Some((source, destination)), .. }) => format!("{source} {destination}"),
            Ok(_) => "-".to_owned(),
            Err(error) => format!("{error:?}"),
        }
    }

    /// Version 2: version and command, family and transport, what follows.
    pub(in super::super) fn v2_header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, body].concat()
    }

    pub(in super::super) const V4_ADDRESSES: &[u8] = &[9, 9, 9, 9, 8, 8, 8, 8, 4, 87, 8, 174];

    /// Measured on Envoy 1.40.
    #[test]
    fn version_1_as_envoy_reads_it() {
        for (line, expected) in [
            ("PROXY TCP4 1.2.3.4 5.6.7.8 11 22\r\n", "1.2.3.4:11 5.6.7.8:22"),
            ("PROXY TCP6 ::1 fe80::2 11 22\r\n", "[::1]:11 [fe80::2]:22"),
            ("PROXY UNKNOWN\r\n", "-"),
            ("PROXY UNKNOWN ffff::1 x\r\n", "-"),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 011 0\r\n", "1.2.3.4:11 5.6.7.8:0"),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 +11 99 \r\n", "1.2.3.4:11 5.6.7.8:99"),
            ("PROXY TCP6 ::ffff:1.2.3.4 ::ffff:5.6.7.8 1 2\r\n", "[::ffff:1.2.3.4]:1 [::ffff:5.6.7.8]:2"),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 11\r\n", "Malformed"),
            ("PROXY TCP4  1.2.3.4 5.6.7.8 11 22\r\n", "Malformed"),
            ("PROXY TCP4 224.2.3.4 5.6.7.8 11 22\r\n", "Malformed"),
            ("PROXY TCP4 0.0.0.0 5.6.7.8 11 22\r\n", "Malformed"),
            ("PROXY TCP6 1.2.3.4 5.6.7.8 11 22\r\n", "Malformed"),
            ("PROXY TCP4 ::1 ::2 11 22\r\n", "Malformed"),
            ("GET / HTTP/1.1\r\n", "Malformed"),
            ("hi\r\n", "Malformed"),
        ] {
            assert_eq!(shown(line.as_bytes()), expected, "{line}");
        }
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 11 22\r\n";
        for end in 0..line.len() {
            assert_eq!(read(&line[..end]), Err(Error::Incomplete(FIRST_READ_BYTES)), "{end}");
        }
        assert_eq!(shown(&[b"PROXY UNKNOWN "[..].to_vec(), vec![b'x'; 200]].concat()), "Malformed");
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn version_2_as_envoy_reads_it() {
        let v6 = [&[0; 15][..], &[9], &[0; 15], &[8], &[4, 87, 8, 174]].concat();
        for (header, expected) in [
            (v2_header(0x21, 0x11, V4_ADDRESSES), "9.9.9.9:1111 8.8.8.8:2222"),
            (v2_header(0x21, 0x12, V4_ADDRESSES), "9.9.9.9:1111 8.8.8.8:2222"),
            (v2_header(0x21, 0x21, &v6), "[::9]:1111 [::8]:2222"),
            (v2_header(0x20, 0, b""), "-"),
            (v2_header(0x20, 0, b"garbage!"), "-"),
            (v2_header(0x21, 0x31, &[b'x'; 216]), "Malformed"),
            (v2_header(0x21, 0, V4_ADDRESSES), "Malformed"),
            (v2_header(0x11, 0x11, V4_ADDRESSES), "Malformed"),
            (v2_header(0x22, 0x11, V4_ADDRESSES), "Malformed"),
            (v2_header(0x21, 0x11, b"abcd"), "Malformed"),
            (v2_header(0x21, 0x11, &[&[255; 4][..], &V4_ADDRESSES[4..]].concat()), "Malformed"),
            (v2_header(0x21, 0x11, &[V4_ADDRESSES, &[234, 0, 9, 1]].concat()), "Malformed"),
        ] {
            assert_eq!(shown(&header), expected, "{header:?}");
        }
        let header = v2_header(0x21, 0x11, &[V4_ADDRESSES, &[234, 0, 1, 7, 1, 0, 0]].concat());
        assert_eq!(read(&header[..20]), Err(Error::Incomplete(header.len())));
        let read = read(&[&header[..], b"more"].concat()).map(|header| (header.length, header.tlvs.len()));
        assert_eq!(read, Ok((header.len(), 2)));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            let _ = read(&bytes);
            let _ = read(&[b"PROXY ", &bytes[..], b"\r\n"].concat());
            let _ = read(&[V2_SIGNATURE, &[0x21], &bytes[..]].concat());
        }
    }
}
