//! What the connection manager does to a request's headers before anyone routes on it (Envoy's
//! `ConnectionManagerUtility::mutateRequestHeaders`): whom to believe, what to strip, what to add.
//! It must not know routes or filters.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::header::{CONNECTION, HeaderName, REFERER, TE, TRANSFER_ENCODING, UPGRADE, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::http::RequestHead;
use tidegate_filters::stream_info::Address;

use super::client_cert;
use super::headers::*;
use super::options::{ForwardedProto, HttpConnectionManager, OriginalIp};

/// What was learnt about the client.
pub(crate) struct Client {
    pub remote: Address,
    pub internal: bool,
}

/// Headers that only internal clients may set; stripped from all others.
static INTERNAL_ONLY: [HeaderName; 14] = [
    X_ENVOY_RETRIABLE_STATUS_CODES,
    X_ENVOY_RETRIABLE_HEADER_NAMES,
    X_ENVOY_RETRY_ON,
    X_ENVOY_RETRY_GRPC_ON,
    X_ENVOY_MAX_RETRIES,
    X_ENVOY_UPSTREAM_ALT_STAT_NAME,
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
    X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
    X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
    X_ENVOY_FORCE_TRACE,
    X_ENVOY_IP_TAGS,
    X_ENVOY_ORIGINAL_URL,
    X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
];

/// Headers that the edge strips as well.
static EDGE_ONLY: [HeaderName; 4] = [
    X_ENVOY_DECORATOR_OPERATION,
    X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
    X_ENVOY_DOWNSTREAM_SERVICE_NODE,
    X_ENVOY_ORIGINAL_PATH,
];

/// Whether a request asks to leave HTTP: `connection: upgrade` with an `upgrade` header.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers.get_all(CONNECTION).iter().any(|value| {
            value.as_bytes().split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        })
}

/// Sanitises `head` in place. `Err` carries the status of a reply: an IP detection extension refused the request.
pub(crate) fn sanitize(
    hcm: &HttpConnectionManager,
    connection: &ConnectionInfo,
    internal_only: &[HeaderName],
    node_address: Option<IpAddr>,
    head: &mut RequestHead,
) -> Result<Client, StatusCode> {
    if hcm.drop_colliding_names {
        drop_colliding_names(&mut head.headers);
    }
    join_repeated(&mut head.headers, X_FORWARDED_FOR, b",");
    join_repeated(&mut head.headers, X_FORWARDED_CLIENT_CERT, b",");
    strip_hop_by_hop(&mut head.headers);
    sanitize_referer(&mut head.headers);
    let detected = detect_client(hcm, connection, node_address, &mut head.headers)?;
    let proto = HeaderValue::from_static(client_proto(&hcm.forwarded_proto, connection));
    if !head.headers.contains_key(&X_FORWARDED_PROTO) {
        head.headers.insert(X_FORWARDED_PROTO, proto.clone());
    }
    set_scheme(hcm, head, &proto);
    if let Some(scheme) = hcm.scheme_override {
        head.headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }

    let internal = detected.may_be_internal
        && detected.address.as_ref().is_some_and(|address| match address {
            Address::Ip(address) => hcm.client_address.internal.contains(address.ip()),
            _ => hcm.client_address.internal_unix_sockets,
        });
    let remote = detected.address.unwrap_or_else(|| connection.remote.clone());
    let edge = !internal && hcm.client_address.use_remote_address;
    let headers = &mut head.headers;
    // In Envoy's order.
    if let Some(via) = &hcm.via {
        append_to_list(headers, http::header::VIA, via);
    }
    if internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else {
        remove_all(headers, &INTERNAL_ONLY);
        remove_all(headers, internal_only);
        if edge {
            remove_all(headers, &EDGE_ONLY);
            if let Address::Ip(address) = &remote {
                headers.insert(X_ENVOY_EXTERNAL_ADDRESS, ip_value(address.ip()));
            }
        }
    }
    if hcm.add_user_agent {
        identify_ourselves(hcm, headers);
    }
    if hcm.generate_request_id && (!headers.contains_key(&X_REQUEST_ID) || edge && !hcm.preserve_external_request_id) {
        headers.insert(X_REQUEST_ID, request_id());
    }
    client_cert::forward(hcm.client_cert, connection.tls.as_deref(), headers);
    Ok(Client { remote, internal })
}

fn remove_all(headers: &mut HeaderMap, names: &[HeaderName]) {
    // Most requests carry none of them: one look at the names that are there is cheaper than a lookup each.
    if names.is_empty() || !headers.keys().any(|name| names.contains(name)) {
        return;
    }
    for name in names {
        headers.remove(name);
    }
}

/// Drops `content_length` and its like: to an upstream that reads underscores as hyphens it is another header.
fn drop_colliding_names(headers: &mut HeaderMap) {
    let colliding: Vec<HeaderName> = headers.keys().filter(|name| collides(name.as_str())).cloned().collect();
    for name in colliding {
        headers.remove(name);
    }
}

fn collides(name: &str) -> bool {
    const NAMES: [&str; 16] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-request-id",
    ];
    if !name.contains('_') {
        return false;
    }
    let plain = name.replace('_', "-");
    NAMES.contains(&plain.as_str()) || plain.starts_with("x-forwarded-") || plain.starts_with("x-envoy-")
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if !is_upgrade(headers) {
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
        sanitize_te(headers);
    }
    headers.remove(&X_ENVOY_INTERNAL);
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
}

/// Only `trailers` survives in TE.
fn sanitize_te(headers: &mut HeaderMap) {
    let Some(value) = headers.get(TE) else { return };
    let trailers = value.as_bytes().split(|b| *b == b',').any(|token| {
        token.split(|b| *b == b';').next().is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// A referer that is repeated or no absolute URL is removed.
fn sanitize_referer(headers: &mut HeaderMap) {
    let mut values = headers.get_all(REFERER).iter();
    let Some(first) = values.next() else { return };
    let url = first.as_bytes();
    let absolute = [&b"http://"[..], b"https://"]
        .iter()
        .any(|scheme| url.len() > scheme.len() && url[..scheme.len()].eq_ignore_ascii_case(scheme));
    if values.next().is_some() || !absolute {
        headers.remove(REFERER);
    }
}

struct Detected {
    address: Option<Address>,
    /// Whether the address may be held against the internal ranges.
    may_be_internal: bool,
}

fn detect_client(
    hcm: &HttpConnectionManager,
    connection: &ConnectionInfo,
    node_address: Option<IpAddr>,
    headers: &mut HeaderMap,
) -> Result<Detected, StatusCode> {
    let rules = &hcm.client_address;
    if rules.use_remote_address {
        return Ok(from_peer(hcm, connection, node_address, headers));
    }
    for extension in &rules.detection {
        if let Some(detected) = by_extension(extension, connection, headers)? {
            return Ok(detected);
        }
    }
    if !rules.detection.is_empty() || !rules.trust_xff {
        return Ok(Detected { address: None, may_be_internal: false });
    }
    let (address, single) = last_forwarded(headers, rules.xff_num_trusted_hops);
    Ok(Detected { may_be_internal: single && address.is_some(), address })
}

fn from_peer(
    hcm: &HttpConnectionManager,
    connection: &ConnectionInfo,
    node_address: Option<IpAddr>,
    headers: &mut HeaderMap,
) -> Detected {
    let rules = &hcm.client_address;
    let hops = rules.xff_num_trusted_hops;
    let may_be_internal = !headers.contains_key(&X_FORWARDED_FOR);
    let forwarded = if hops > 0 { last_forwarded(headers, hops - 1).0 } else { None };
    if !rules.skip_xff_append
        && let Address::Ip(peer) = &connection.remote
    {
        let shown = node_address.filter(|_| is_own_loopback(peer.ip())).unwrap_or(peer.ip());
        append_to_list(headers, X_FORWARDED_FOR, &ip_value(shown));
    }
    if hops == 0 || !headers.contains_key(&X_FORWARDED_PROTO) {
        let proto = client_proto(&hcm.forwarded_proto, connection);
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if rules.append_x_forwarded_port
        && (hops == 0 || !headers.contains_key(&X_FORWARDED_PORT))
        && let Address::Ip(local) = &connection.local
    {
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(local.port()));
    }
    Detected { address: Some(forwarded.unwrap_or_else(|| connection.remote.clone())), may_be_internal }
}

/// How the client has spoken: by the port that it has reached somebody before us on, else to us.
fn client_proto(rules: &ForwardedProto, connection: &ConnectionInfo) -> &'static str {
    let port = connection.local.ip().filter(|_| connection.local_restored).map(|address| u32::from(address.port()));
    match port {
        Some(port) if rules.https_ports.contains(&port) => "https",
        Some(port) if rules.http_ports.contains(&port) => "http",
        _ if connection.tls.is_some() => "https",
        _ => "http",
    }
}

/// Envoy takes only 127.0.0.1 and ::1 for the machine itself, not all of 127/8.
fn is_own_loopback(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

fn by_extension(
    extension: &OriginalIp,
    connection: &ConnectionInfo,
    headers: &mut HeaderMap,
) -> Result<Option<Detected>, StatusCode> {
    match extension {
        OriginalIp::Xff { hops, trusted, skip_append } => {
            let (address, single) = match trusted {
                None => last_forwarded(headers, *hops),
                Some(trusted) => match &connection.remote {
                    Address::Ip(peer) if trusted.contains(peer.ip()) => {
                        (last_untrusted(headers, |ip| trusted.contains(ip)), false)
                    }
                    _ => (None, false),
                },
            };
            if !skip_append && let Address::Ip(peer) = &connection.remote {
                append_to_list(headers, X_FORWARDED_FOR, &ip_value(peer.ip()));
            }
            Ok(address.map(|address| Detected { address: Some(address), may_be_internal: single }))
        }
        OriginalIp::CustomHeader { header, reject_with, trusted } => {
            let address = headers.get(header).and_then(|value| parse_ip(value.as_bytes()));
            match (address, reject_with) {
                (None, Some(status)) => Err(*status),
                (None, None) => Ok(None),
                (Some(ip), _) => {
                    let address = Some(Address::Ip(SocketAddr::new(ip, 0)));
                    Ok(Some(Detected { address, may_be_internal: *trusted }))
                }
            }
        }
    }
}

fn parse_ip(text: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// Addresses of `x-forwarded-for`, last first.
fn forwarded_backwards(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(&X_FORWARDED_FOR).iter().rev();
    values.flat_map(|value| value.as_bytes().rsplit(|b| *b == b',').map(<[u8]>::trim_ascii))
}

/// The address that many hops from the end, and whether the header held just one (Envoy's `getLastAddressFromXFF`).
fn last_forwarded(headers: &HeaderMap, skip: u32) -> (Option<Address>, bool) {
    let mut addresses = forwarded_backwards(headers);
    let found = addresses.by_ref().nth(skip as usize);
    let single = found.is_some() && skip == 0 && addresses.next().is_none();
    let address = found.and_then(parse_ip).map(|ip| Address::Ip(SocketAddr::new(ip, 0)));
    (address, single)
}

fn last_untrusted(headers: &HeaderMap, trusted: impl Fn(IpAddr) -> bool) -> Option<Address> {
    // Where all are trusted, the first of them is the furthest that is known.
    let mut furthest = None;
    for text in forwarded_backwards(headers) {
        let ip = parse_ip(text)?;
        furthest = Some(Address::Ip(SocketAddr::new(ip, 0)));
        if !trusted(ip) {
            break;
        }
    }
    furthest
}

fn set_scheme(hcm: &HttpConnectionManager, head: &mut RequestHead, transport: &HeaderValue) {
    let forwarded = head.headers.get(&X_FORWARDED_PROTO).map(HeaderValue::as_bytes);
    head.scheme = match (hcm.scheme_override, forwarded) {
        (Some(scheme), _) => HeaderValue::from_static(scheme),
        (None, Some(b"https")) => HeaderValue::from_static("https"),
        (None, Some(b"http")) => HeaderValue::from_static("http"),
        _ => transport.clone(),
    };
}

fn identify_ourselves(hcm: &HttpConnectionManager, headers: &mut HeaderMap) {
    headers.insert(X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER, hcm.service_cluster.clone());
    if !headers.contains_key(USER_AGENT) {
        headers.insert(USER_AGENT, hcm.service_cluster.clone());
    }
    if !hcm.service_node.is_empty() {
        headers.insert(X_ENVOY_DOWNSTREAM_SERVICE_NODE, hcm.service_node.clone());
    }
}

pub(crate) fn ip_value(ip: IpAddr) -> HeaderValue {
    match HeaderValue::from_str(&ip.to_string()) {
        Ok(value) => value,
        // An address prints as digits, dots and colons.
        Err(_) => HeaderValue::from_static(""),
    }
}

/// Appends to a comma-separated header, or sets it.
pub(crate) fn append_to_list(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    if headers.contains_key(&name) {
        headers.append(name.clone(), value.clone());
        let separator: &[u8] = if name == http::header::VIA { b", " } else { b"," };
        join_repeated(headers, name, separator);
    } else {
        headers.insert(name, value.clone());
    }
}

/// Makes one line of a header that was sent in several.
fn join_repeated(headers: &mut HeaderMap, name: HeaderName, separator: &[u8]) {
    if headers.get_all(&name).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(lines.join(separator))) {
        headers.insert(name, joined);
    }
}

/// A random UUID (version 4).
pub(crate) fn request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bits: u128 = rand::random();
    bits = bits & !(0xf << 76) | 0x4 << 76;
    bits = bits & !(0x3 << 62) | 0x2 << 62;
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (index, slot) in text.iter_mut().enumerate() {
        if !matches!(index, 8 | 13 | 18 | 23) {
            shift -= 4;
            *slot = HEX[(bits >> shift) as usize & 0xf];
        }
    }
    match HeaderValue::from_bytes(&text) {
        Ok(value) => value,
        // Hexadecimal digits and dashes always are a header value.
        Err(_) => HeaderValue::from_static(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = request_id();
        let id = id.to_str().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
        assert_ne!(request_id(), request_id());
    }

    #[test]
    fn the_last_forwarded_address_is_counted_from_the_end() {
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_static("1.1.1.1, 2.2.2.2"));
        let (address, single) = last_forwarded(&headers, 1);
        assert_eq!(address.unwrap().ip().unwrap().ip().to_string(), "1.1.1.1");
        assert!(!single);
        assert!(last_forwarded(&headers, 2).0.is_none());
    }

    #[test]
    fn names_that_an_upstream_could_mistake_are_dropped() {
        let mut headers = HeaderMap::new();
        for name in ["content_length", "x_forwarded-for", "x-envoy_internal", "my_header", "transfer_encoding"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        drop_colliding_names(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["my_header"]);
    }

    #[test]
    fn only_trailers_survive_in_te() {
        let mut headers = HeaderMap::new();
        headers.insert(TE, HeaderValue::from_static("gzip, trailers"));
        sanitize_te(&mut headers);
        assert_eq!(headers[TE], "trailers");
        headers.insert(TE, HeaderValue::from_static("gzip"));
        sanitize_te(&mut headers);
        assert!(!headers.contains_key(TE));
    }
}
