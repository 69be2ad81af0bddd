//! The operators without a parameter: name and what is read. They must not know how a value is printed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Version};
use tidegate_tls::Certificate;
use tidegate_tls::certificate::SanKind;

use super::FormatContext;
use super::grpc::GrpcForm;
use super::value::{FlagNames, Value};
use crate::connection::TlsInfo;
use crate::http::{RequestHead, ResponseHead};
use crate::stream_info::{Address, CloseType, StreamInfo, Tried};

/// Reads one field.
pub(super) type Read = for<'a> fn(&FormatContext<'a>) -> Value<'a>;

/// Whatever their identifier.
static ANY_OTHER_NAME: SanKind = SanKind::Other(String::new());

/// Sorted by name.
pub(super) static FIELDS: &[(&str, Read)] = &[
    ("ACCESS_LOG_TYPE", |c| Value::Text(c.access_log_type.name().as_bytes())),
    ("BYTES_RECEIVED", |c| Value::Unsigned(c.info.bytes.body_received)),
    // HTTP/3's alone.
    ("BYTES_RETRANSMITTED", |_| Value::Unsigned(0)),
    ("BYTES_SENT", |c| Value::Unsigned(c.info.bytes.body_sent)),
    ("CONNECTION_ID", |c| Value::Unsigned(c.info.connection.id)),
    ("CONNECTION_TERMINATION_DETAILS", |c| Value::text(c.info.connection_termination_details.as_deref())),
    // Set by filters; none does yet.
    ("CUSTOM_FLAGS", |_| Value::Text(b"")),
    ("DOWNSTREAM_CX_RTT", |c| c.info.connection.round_trip_millis.map_or(Value::Absent, Value::Unsigned)),
    ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", |c| Value::Unsigned(c.info.bytes.fields_received)),
    ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", |c| Value::Unsigned(c.info.bytes.fields_sent)),
    ("DOWNSTREAM_DETECTED_CLOSE_TYPE", |c| Value::Text(c.info.close_type.name().as_bytes())),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", |c| Value::Address(&c.info.connection.direct_local)),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID", |c| endpoint_id(Some(&c.info.connection.direct_local))),
    ("DOWNSTREAM_DIRECT_LOCAL_PORT", |c| port(direct_local(c.info))),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", |c| Value::Address(&c.info.connection.direct_remote)),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", |c| port(direct_remote(c.info))),
    ("DOWNSTREAM_HANDSHAKE_DURATION", |c| {
        downstream_tls(c).map_or(Value::Absent, |tls| since_start(c.info, tls.handshake_complete))
    }),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", |c| Value::Unsigned(c.info.bytes.header_received)),
    ("DOWNSTREAM_HEADER_BYTES_SENT", |c| Value::Unsigned(c.info.bytes.header_sent)),
    ("DOWNSTREAM_LOCAL_ADDRESS", |c| Value::Address(&c.info.connection.local)),
    ("DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", |c| endpoint_id(Some(&c.info.connection.local))),
    ("DOWNSTREAM_LOCAL_CLOSE_REASON", |c| Value::text(c.info.local_close_reason.as_deref())),
    ("DOWNSTREAM_LOCAL_DNS_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::local), &SanKind::Dns)),
    ("DOWNSTREAM_LOCAL_EMAIL_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::local), &SanKind::Email)),
    ("DOWNSTREAM_LOCAL_IP_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::local), &SanKind::Ip)),
    ("DOWNSTREAM_LOCAL_OTHERNAME_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::local), &ANY_OTHER_NAME)),
    ("DOWNSTREAM_LOCAL_PORT", |c| port(local(c.info))),
    ("DOWNSTREAM_LOCAL_SUBJECT", |c| fact(downstream_tls(c).and_then(TlsInfo::local), |own| &own.subject)),
    ("DOWNSTREAM_LOCAL_URI_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::local), &SanKind::Uri)),
    ("DOWNSTREAM_PEER_CERT", |c| Value::text(downstream_tls(c).and_then(TlsInfo::peer_pem))),
    ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1", |c| chain(downstream_tls(c), |one| &one.sha1)),
    ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256", |c| chain(downstream_tls(c), |one| &one.sha256)),
    ("DOWNSTREAM_PEER_CHAIN_SERIALS", |c| chain(downstream_tls(c), |one| &one.serial)),
    ("DOWNSTREAM_PEER_DNS_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::peer), &SanKind::Dns)),
    ("DOWNSTREAM_PEER_EMAIL_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::peer), &SanKind::Email)),
    ("DOWNSTREAM_PEER_FINGERPRINT_1", |c| fact(downstream_tls(c).and_then(TlsInfo::peer), |peer| &peer.sha1)),
    ("DOWNSTREAM_PEER_FINGERPRINT_256", |c| fact(downstream_tls(c).and_then(TlsInfo::peer), |peer| &peer.sha256)),
    ("DOWNSTREAM_PEER_IP_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::peer), &SanKind::Ip)),
    ("DOWNSTREAM_PEER_ISSUER", |c| fact(downstream_tls(c).and_then(TlsInfo::peer), |peer| &peer.issuer)),
    ("DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256", |c| fact(issuer(downstream_tls(c)), |issuer| &issuer.sha256)),
    ("DOWNSTREAM_PEER_ISSUER_SERIAL", |c| fact(issuer(downstream_tls(c)), |issuer| &issuer.serial)),
    ("DOWNSTREAM_PEER_OTHERNAME_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::peer), &ANY_OTHER_NAME)),
    ("DOWNSTREAM_PEER_SERIAL", |c| fact(downstream_tls(c).and_then(TlsInfo::peer), |peer| &peer.serial)),
    ("DOWNSTREAM_PEER_SUBJECT", |c| fact(downstream_tls(c).and_then(TlsInfo::peer), |peer| &peer.subject)),
    ("DOWNSTREAM_PEER_URI_SAN", |c| names(downstream_tls(c).and_then(TlsInfo::peer), &SanKind::Uri)),
    ("DOWNSTREAM_REMOTE_ADDRESS", |c| Value::Address(&c.info.downstream_remote)),
    ("DOWNSTREAM_REMOTE_PORT", |c| port(remote(c.info))),
    ("DOWNSTREAM_TLS_CIPHER", |c| Value::text(downstream_tls(c).map(|tls| tls.cipher))),
    ("DOWNSTREAM_TLS_GROUP", |c| Value::text(downstream_tls(c).and_then(|tls| tls.group))),
    ("DOWNSTREAM_TLS_SESSION_ID", |_| Value::Absent),
    ("DOWNSTREAM_TLS_VERSION", |c| Value::text(downstream_tls(c).map(|tls| tls.version))),
    // A request's connection did not fail, whatever an inspector made of its first bytes.
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", |c| {
        no_spaces(c.info.connection.transport_failure_reason.as_ref().filter(|_| c.request.is_none()))
    }),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", |c| Value::Unsigned(c.info.bytes.wire_received)),
    ("DOWNSTREAM_WIRE_BYTES_SENT", |c| Value::Unsigned(c.info.bytes.wire_sent)),
    ("DURATION", |c| millis(Some(c.info.start), Some(c.info.end.unwrap_or_else(Instant::now)))),
    ("FILTER_CHAIN_NAME", |c| Value::non_empty(Some(&c.info.connection.filter_chain_name))),
    ("GRPC_STATUS_NUMBER", |c| GrpcForm::Number.value(c)),
    ("LISTENER_NAME", |c| Value::non_empty(Some(&c.info.connection.listener_name))),
    ("LOCAL_REPLY_BODY", |c| Value::Text(c.local_reply_body.unwrap_or_default().as_bytes())),
    ("PACKETS_RETRANSMITTED", |_| Value::Unsigned(0)),
    ("PROTOCOL", |c| protocol(c.info.protocol)),
    ("REQUEST_DURATION", |c| millis(Some(c.info.start), c.info.timings.last_downstream_rx)),
    ("REQUEST_HEADERS_BYTES", |c| Value::Unsigned(c.request.map_or(0, request_bytes))),
    ("REQUEST_TX_DURATION", |c| millis(Some(c.info.start), c.info.timings.last_upstream_tx)),
    ("RESPONSE_CODE", |c| Value::Unsigned(c.info.response_code.map_or(0, |code| code.as_u16().into()))),
    ("RESPONSE_DURATION", |c| millis(Some(c.info.start), c.info.timings.first_upstream_rx)),
    ("RESPONSE_FLAGS", |c| Value::Flags(c.info.flags, FlagNames::Short)),
    ("RESPONSE_FLAGS_LONG", |c| Value::Flags(c.info.flags, FlagNames::Long)),
    ("RESPONSE_HEADERS_BYTES", |c| Value::Unsigned(c.response.map_or(0, response_bytes))),
    ("RESPONSE_TRAILERS_BYTES", |c| Value::Unsigned(c.response_trailers.map_or(0, map_bytes))),
    ("RESPONSE_TX_DURATION", |c| millis(c.info.timings.first_upstream_rx, c.info.timings.last_downstream_tx)),
    // HTTP/3's alone.
    ("ROUNDTRIP_DURATION", |_| Value::Absent),
    ("ROUTE_NAME", |c| Value::non_empty(c.info.route_name.as_ref())),
    ("ROUTE_RESOLUTION_COUNT", |c| Value::Unsigned(c.info.route_resolutions.into())),
    ("ROUTE_RESOLUTION_TIME_US", |c| micros(c.info.route_resolution_time)),
    ("SPAN_ID", |c| Value::non_empty(c.info.span_id.as_ref())),
    ("STREAM_ID", |c| Value::text(c.info.request_id.as_ref())),
    ("TLS_JA3_FINGERPRINT", |c| Value::non_empty(c.info.connection.ja3.as_ref())),
    ("TLS_JA4_FINGERPRINT", |c| Value::non_empty(c.info.connection.ja4.as_ref())),
    ("TRACE_ID", |c| Value::non_empty(c.info.trace_id.as_ref())),
    ("UNIQUE_ID", |_| Value::Owned(unique_id(rand::random()))),
    ("UPSTREAM_CLUSTER", |c| {
        Value::non_empty(c.info.upstream.observability_name.as_ref().or(c.info.upstream.cluster.as_ref()))
    }),
    ("UPSTREAM_CLUSTER_RAW", |c| Value::non_empty(c.info.upstream.cluster.as_ref())),
    ("UPSTREAM_CONNECTION_ID", |c| Value::Unsigned(c.info.upstream.connection_id.unwrap_or(0))),
    ("UPSTREAM_CONNECTION_IDS_ATTEMPTED", |c| attempted(c.info, |tried| tried.connection_id.map(|id| id.to_string()))),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", |c| whole_millis(c.info.upstream.pool_wait)),
    ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", |c| Value::Unsigned(c.info.upstream.bytes.fields_received)),
    ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", |c| Value::Unsigned(c.info.upstream.bytes.fields_sent)),
    ("UPSTREAM_DETECTED_CLOSE_TYPE", |c| Value::text(c.info.upstream.close_type.map(CloseType::name))),
    ("UPSTREAM_HEADER_BYTES_RECEIVED", |c| Value::Unsigned(c.info.upstream.bytes.header_received)),
    ("UPSTREAM_HEADER_BYTES_SENT", |c| Value::Unsigned(c.info.upstream.bytes.header_sent)),
    ("UPSTREAM_HOST", |c| address(c.info.upstream.host.as_ref())),
    ("UPSTREAM_HOSTS_ATTEMPTED", |c| attempted(c.info, |tried| Some(tried.address.to_string()))),
    ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", |c| {
        attempted(c.info, |tried| Some(address_without_port(&tried.address)))
    }),
    ("UPSTREAM_HOST_NAME", |c| match host_name(c.info) {
        Some(name) => Value::Text(name.as_bytes()),
        None => address(c.info.upstream.host.as_ref()),
    }),
    ("UPSTREAM_HOST_NAMES_ATTEMPTED", |c| attempted(c.info, |tried| Some(name_of(tried)))),
    ("UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT", |c| {
        attempted(c.info, |tried| {
            let name = tried.host_name.as_deref().filter(|name| !name.is_empty());
            Some(name.map_or_else(|| address_without_port(&tried.address), |name| without_port(name).to_owned()))
        })
    }),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", |c| match (host_name(c.info), &c.info.upstream.host) {
        (Some(name), _) => Value::Text(without_port(name).as_bytes()),
        (None, Some(host)) => Value::Host(host, None),
        (None, None) => Value::Absent,
    }),
    ("UPSTREAM_LOCAL_ADDRESS", |c| address(upstream_local(c.info))),
    ("UPSTREAM_LOCAL_CLOSE_REASON", |c| Value::text(c.info.upstream.local_close_reason)),
    ("UPSTREAM_LOCAL_DNS_SAN", |c| names(upstream_tls(c).and_then(TlsInfo::local), &SanKind::Dns)),
    ("UPSTREAM_LOCAL_IP_SAN", |c| names(upstream_tls(c).and_then(TlsInfo::local), &SanKind::Ip)),
    ("UPSTREAM_LOCAL_PORT", |c| port(upstream_local(c.info))),
    ("UPSTREAM_LOCAL_URI_SAN", |c| names(upstream_tls(c).and_then(TlsInfo::local), &SanKind::Uri)),
    ("UPSTREAM_PEER_CERT", |c| Value::text(upstream_tls(c).and_then(TlsInfo::peer_pem))),
    ("UPSTREAM_PEER_DNS_SAN", |c| names(upstream_tls(c).and_then(TlsInfo::peer), &SanKind::Dns)),
    ("UPSTREAM_PEER_IP_SAN", |c| names(upstream_tls(c).and_then(TlsInfo::peer), &SanKind::Ip)),
    ("UPSTREAM_PEER_ISSUER", |c| fact(upstream_tls(c).and_then(TlsInfo::peer), |peer| &peer.issuer)),
    ("UPSTREAM_PEER_SUBJECT", |c| fact(upstream_tls(c).and_then(TlsInfo::peer), |peer| &peer.subject)),
    ("UPSTREAM_PEER_URI_SAN", |c| names(upstream_tls(c).and_then(TlsInfo::peer), &SanKind::Uri)),
    ("UPSTREAM_PROTOCOL", |c| protocol(c.info.upstream.protocol)),
    ("UPSTREAM_REMOTE_ADDRESS", |c| address(upstream_remote(c.info))),
    ("UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", |c| endpoint_id(upstream_remote(c.info))),
    ("UPSTREAM_REMOTE_PORT", |c| port(upstream_remote(c.info))),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", |c| Value::Unsigned(c.info.upstream.attempts.into())),
    ("UPSTREAM_SERVER_NAME", |c| Value::non_empty(upstream_tls(c).and_then(|tls| tls.sni.as_ref()))),
    ("UPSTREAM_TLS_CIPHER", |c| Value::text(upstream_tls(c).map(|tls| tls.cipher))),
    ("UPSTREAM_TLS_GROUP", |c| Value::text(upstream_tls(c).and_then(|tls| tls.group))),
    ("UPSTREAM_TLS_SESSION_ID", |_| Value::Absent),
    ("UPSTREAM_TLS_VERSION", |c| Value::text(upstream_tls(c).map(|tls| tls.version))),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", |c| no_spaces(c.info.upstream.transport_failure_reason.as_ref())),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", |c| Value::Unsigned(c.info.upstream.bytes.wire_received)),
    ("UPSTREAM_WIRE_BYTES_SENT", |c| Value::Unsigned(c.info.upstream.bytes.wire_sent)),
    ("VIRTUAL_CLUSTER_NAME", |c| Value::non_empty(c.info.virtual_cluster.as_ref())),
];

pub(super) fn direct_local(info: &StreamInfo) -> Option<&Address> {
    Some(&info.connection.direct_local)
}

pub(super) fn direct_remote(info: &StreamInfo) -> Option<&Address> {
    Some(&info.connection.direct_remote)
}

pub(super) fn local(info: &StreamInfo) -> Option<&Address> {
    Some(&info.connection.local)
}

pub(super) fn remote(info: &StreamInfo) -> Option<&Address> {
    Some(&info.downstream_remote)
}

pub(super) fn upstream_local(info: &StreamInfo) -> Option<&Address> {
    info.upstream.local_address.as_ref()
}

/// The host's address, once there is a connection to it or a socket that needs none.
pub(super) fn upstream_remote(info: &StreamInfo) -> Option<&Address> {
    info.upstream.host.as_ref().filter(|_| info.upstream.local_address.is_some() || info.upstream.datagrams)
}

fn downstream_tls<'a>(context: &FormatContext<'a>) -> Option<&'a TlsInfo> {
    context.info.connection.tls.as_deref()
}

fn upstream_tls<'a>(context: &FormatContext<'a>) -> Option<&'a TlsInfo> {
    context.info.upstream.tls.as_deref()
}

fn address(address: Option<&Address>) -> Value<'_> {
    address.map_or(Value::Absent, Value::Address)
}

fn port(address: Option<&Address>) -> Value<'_> {
    address.and_then(Address::ip).map_or(Value::Absent, |socket| Value::Unsigned(socket.port().into()))
}

/// Empty for an address that is not internal.
fn endpoint_id(address: Option<&Address>) -> Value<'_> {
    match address {
        None => Value::Absent,
        Some(Address::Internal(name)) => {
            let path = name.strip_prefix("envoy://").unwrap_or(name);
            Value::Text(path.split_once('/').map_or("", |(_, id)| id.trim_end_matches('/')).as_bytes())
        }
        Some(_) => Value::Text(b""),
    }
}

/// One fact of a certificate; an empty one is none.
fn fact<'a>(of: Option<&'a Certificate>, fact: impl Fn(&'a Certificate) -> &'a String) -> Value<'a> {
    Value::text(of.map(fact).filter(|fact| !fact.is_empty()))
}

/// A certificate's names of one kind.
fn names<'a>(of: Option<&Certificate>, kind: &SanKind) -> Value<'a> {
    of.map_or(Value::Absent, |of| list(of.values_of(kind)))
}

/// A fact of each certificate that the peer presented.
fn chain<'a>(tls: Option<&TlsInfo>, fact: impl Fn(&Certificate) -> &String) -> Value<'a> {
    tls.map_or(Value::Absent, |tls| list(tls.peer_chain().map(|one| fact(one).as_bytes())))
}

/// The certificate that vouches for the peer's, where the peer presented it in this very handshake.
fn issuer(tls: Option<&TlsInfo>) -> Option<&Certificate> {
    tls.filter(|tls| !tls.resumed)?.peer_chain().nth(1)
}

/// Separated by commas; absent when there is none.
fn list<'a, 'b>(items: impl Iterator<Item = &'b [u8]>) -> Value<'a> {
    let items: Vec<&[u8]> = items.collect();
    if items.is_empty() { Value::Absent } else { Value::Owned(items.join(&b","[..])) }
}

fn no_spaces(text: Option<&Arc<str>>) -> Value<'_> {
    text.filter(|text| !text.is_empty()).map_or(Value::Absent, |text| Value::NoSpaces(text))
}

/// What is said of each host that was tried, the last one included, and said once.
fn attempted<'a>(info: &StreamInfo, say: impl Fn(&Tried) -> Option<String>) -> Value<'a> {
    let last = info.upstream.last_tried();
    let mut said: Vec<String> = Vec::new();
    for one in info.upstream.tried.iter().chain(&last).filter_map(say) {
        if !said.contains(&one) {
            said.push(one);
        }
    }
    if said.is_empty() { Value::Absent } else { Value::Owned(said.join(",").into_bytes()) }
}

fn name_of(tried: &Tried) -> String {
    let name = tried.host_name.as_deref().filter(|name| !name.is_empty());
    name.map_or_else(|| tried.address.to_string(), str::to_owned)
}

fn address_without_port(address: &Address) -> String {
    address.ip().map_or_else(|| address.to_string(), |socket| socket.ip().to_string())
}

fn host_name(info: &StreamInfo) -> Option<&str> {
    info.upstream.host_name.as_deref().filter(|name| !name.is_empty())
}

fn without_port(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => name,
    }
}

/// Of what can have been before a stream's begin: then it is less than none.
fn since_start<'a>(info: &StreamInfo, at: Instant) -> Value<'a> {
    let whole = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    Value::Signed(match at.checked_duration_since(info.start) {
        Some(after) => whole(after),
        None => -whole(info.start.duration_since(at)),
    })
}

fn millis<'a>(from: Option<Instant>, to: Option<Instant>) -> Value<'a> {
    whole_millis(from.zip(to).map(|(from, to)| to.saturating_duration_since(from)))
}

fn whole_millis<'a>(span: Option<Duration>) -> Value<'a> {
    span.map_or(Value::Absent, |span| Value::Unsigned(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
}

fn micros<'a>(span: Option<Duration>) -> Value<'a> {
    span.map_or(Value::Absent, |span| Value::Unsigned(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
}

fn protocol<'a>(version: Option<Version>) -> Value<'a> {
    match version {
        Some(Version::HTTP_10 | Version::HTTP_09) => Value::Text(b"HTTP/1.0"),
        Some(Version::HTTP_11) => Value::Text(b"HTTP/1.1"),
        Some(Version::HTTP_2) => Value::Text(b"HTTP/2"),
        Some(Version::HTTP_3) => Value::Text(b"HTTP/3"),
        _ => Value::Absent,
    }
}

/// Names and values, pseudo-headers included.
fn request_bytes(head: &RequestHead) -> u64 {
    let pseudo = |name: &str, length: usize| if length == 0 { 0 } else { (name.len() + length) as u64 };
    pseudo(":method", head.method.as_str().len())
        + pseudo(":scheme", head.scheme.len())
        + pseudo(":authority", head.authority.len())
        + pseudo(":path", head.path.len())
        + pseudo(":protocol", head.protocol.as_ref().map_or(0, http::HeaderValue::len))
        + map_bytes(&head.headers)
}

fn response_bytes(head: &ResponseHead) -> u64 {
    (":status".len() + head.status.as_str().len()) as u64 + map_bytes(&head.headers)
}

fn map_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

/// A random UUID (version 4).
fn unique_id(random: [u8; 16]) -> Vec<u8> {
    let mut bytes = random;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = Vec::with_capacity(36);
    for (index, byte) in bytes.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble & 15)];
        out.extend_from_slice(&[digit(byte >> 4), digit(byte)]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(FIELDS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn unique_ids_are_uuids() {
        assert_eq!(unique_id([0xff; 16]), b"ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
