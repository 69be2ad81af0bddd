//! What asks for a CONNECT-UDP (RFC 9298): the target that the path names becomes the host, as in Envoy.
//! It must not know what becomes of the tunnel.

use http::HeaderValue;
use http::header::UPGRADE;
use tidegate_filters::http::RequestHead;
use tidegate_filters::matching::percent_decode;

use super::codec::h1::request::is_authority;

const TEMPLATE: &[u8] = b"/.well-known/masque/udp/";

/// Whether a request asks for a UDP tunnel; one of HTTP/2 looks like HTTP/1's past the codec.
pub(super) fn is_asked(head: &RequestHead) -> bool {
    head.headers.get(UPGRADE).is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(b"connect-udp"))
}

/// Makes `host:port` of the path's target the authority; false when the path names none.
pub(super) fn retarget(head: &mut RequestHead) -> bool {
    let Some(authority) = target(head.path.as_bytes()).and_then(|target| HeaderValue::try_from(target).ok()) else {
        return false;
    };
    head.authority = authority;
    true
}

fn target(path: &[u8]) -> Option<Vec<u8>> {
    if path.iter().any(|byte| !byte.is_ascii_graphic()) {
        return None;
    }
    let parts: Vec<&[u8]> = path.strip_prefix(TEMPLATE)?.split(|byte| *byte == b'/').collect();
    let [host, port, b""] = parts[..] else { return None };
    let host = percent_decode(host);
    // No zone of an IPv6 address (RFC 9298 §3.1).
    if host.is_empty() || port.is_empty() || host.contains(&b'%') {
        return None;
    }
    let host =
        if host.contains(&b':') && host.first() != Some(&b'[') { [b"[", &host[..], b"]"].concat() } else { host };
    let authority = [&host[..], b":", port].concat();
    // Envoy hands on whatever the path says.
    is_authority(&authority).then_some(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_names_host_and_port() {
        for (path, expected) in [
            ("/.well-known/masque/udp/foo.test/53/", Some("foo.test:53")),
            ("/.well-known/masque/udp/192.0.2.6/443/", Some("192.0.2.6:443")),
            ("/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/", Some("[2001:db8::42]:443")),
            ("/.well-known/masque/udp/fe80%3A%3A1%25eth0/443/", None),
            ("/.well-known/masque/udp/foo/53", None),
            ("/.well-known/masque/udp/foo/53/x", None),
            ("/.well-known/masque/udp/a%2Fb/53/", None),
            ("/.well-known/masque/udp//53/", None),
            ("/.well-known/masque/udp/foo//", None),
            ("/elsewhere", None),
            ("/.well-known/masque/udp/a b/53/", None),
        ] {
            let found = target(path.as_bytes());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path}");
        }
    }
}
