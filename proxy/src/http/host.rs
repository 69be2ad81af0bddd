//! Strips what a request's host carries too much (`strip_port_mode`, `strip_trailing_host_dot`).
//! It must not know routes.

use std::borrow::Cow;

use http::{HeaderValue, Method};
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::http::RequestHead;
use tidegate_filters::stream_info::Address;

use super::options::{HttpConnectionManager, StripPort};

/// Normalises `head.authority` in place.
pub(crate) fn normalize(hcm: &HttpConnectionManager, connection: &ConnectionInfo, head: &mut RequestHead) {
    if hcm.strip_trailing_host_dot {
        strip_dot(head);
    }
    let strip = match hcm.strip_port {
        StripPort::Keep => return,
        StripPort::Any => None,
        StripPort::Matching => match &connection.local {
            Address::Ip(local) => Some(local.port()),
            _ => return,
        },
    };
    if head.method == Method::CONNECT {
        return;
    }
    let Some((host, port)) = split_port(head.authority.as_bytes()) else { return };
    if strip.is_none_or(|only| port == only)
        && let Ok(host) = HeaderValue::from_bytes(host)
    {
        head.authority = host;
    }
}

/// Host and port, if there is a port.
fn split_port(authority: &[u8]) -> Option<(&[u8], u16)> {
    let colon = authority.iter().rposition(|b| *b == b':')?;
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    if host.first() == Some(&b'[') && host.last() != Some(&b']') {
        return None;
    }
    Some((host, std::str::from_utf8(port).ok()?.parse().ok()?))
}

/// The host alone: without its port, and an IPv6 address without its brackets; what is no text is replaced.
pub(crate) fn without_port(authority: &HeaderValue) -> Cow<'_, str> {
    let host = match split_port(authority.as_bytes()) {
        Some((host, _)) => host,
        None => authority.as_bytes(),
    };
    String::from_utf8_lossy(host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host))
}

fn strip_dot(head: &mut RequestHead) {
    let authority = head.authority.as_bytes();
    let (host, rest) = match split_port(authority) {
        Some((host, _)) => authority.split_at(host.len()),
        None => (authority, &b""[..]),
    };
    if let Some(host) = host.strip_suffix(b".")
        && let Ok(value) = HeaderValue::from_bytes(&[host, rest].concat())
    {
        head.authority = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_told_from_ipv6_addresses() {
        assert_eq!(split_port(b"a:80"), Some((&b"a"[..], 80)));
        assert_eq!(split_port(b"[::1]:80"), Some((&b"[::1]"[..], 80)));
        assert_eq!(split_port(b"[::1]"), None);
        assert_eq!(split_port(b"a"), None);
    }

    #[test]
    fn a_trailing_dot_goes_before_the_port_too() {
        for (before, after) in [("a.", "a"), ("a.:80", "a:80"), ("a:80", "a:80")] {
            let mut head =
                RequestHead::new(Method::GET, HeaderValue::from_static(before), HeaderValue::from_static("/"));
            strip_dot(&mut head);
            assert_eq!(head.authority, after);
        }
    }
}
