//! Envoy's attributes of one stream as CEL values (<https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/advanced/attributes>).
//! They must not know expressions. An attribute without a value is left out: to ask for it is an error in CEL.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cel::Value;
use cel::objects::{Key, Map};
use http::{HeaderMap, Version};
use serde_json::Value as Json;
use tidegate_tls::Certificate;
use tidegate_tls::certificate::SanKind;

use crate::connection::TlsInfo;
use crate::format::FormatContext;
use crate::http::filter::RouteView;
use crate::http::{RequestHead, ResponseHead};
use crate::metadata::{FilterState, Metadata};
use crate::stream_info::{Address, StreamInfo};

/// What the attributes are read from.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub info: &'a StreamInfo,
    pub request: Option<&'a RequestHead>,
    pub response: Option<&'a ResponseHead>,
    pub response_trailers: Option<&'a HeaderMap>,
    pub route: Option<&'a dyn RouteView>,
}

/// Sorted; by the first word of their names.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    (
        "connection",
        &[
            "id",
            "mtls",
            "requested_server_name",
            "tls_version",
            "subject_local_certificate",
            "subject_peer_certificate",
            "uri_san_local_certificate",
            "uri_san_peer_certificate",
            "dns_san_local_certificate",
            "dns_san_peer_certificate",
            "sha256_peer_certificate_digest",
            "termination_details",
            "transport_failure_reason",
        ],
    ),
    ("destination", &["address", "port"]),
    ("filter_state", &[]),
    ("metadata", &["filter_metadata"]),
    (
        "request",
        &[
            "path",
            "url_path",
            "query",
            "host",
            "scheme",
            "method",
            "headers",
            "referer",
            "useragent",
            "time",
            "id",
            "protocol",
            "duration",
            "size",
            "total_size",
        ],
    ),
    (
        "response",
        &[
            "code",
            "code_details",
            "flags",
            "grpc_status",
            "headers",
            "trailers",
            "size",
            "total_size",
            "backend_latency",
        ],
    ),
    ("source", &["address", "port"]),
    (
        "upstream",
        &[
            "address",
            "port",
            "local_address",
            "transport_failure_reason",
            "request_attempt_count",
            "tls_version",
            "subject_local_certificate",
            "subject_peer_certificate",
            "uri_san_local_certificate",
            "uri_san_peer_certificate",
            "dns_san_local_certificate",
            "dns_san_peer_certificate",
            "sha256_peer_certificate_digest",
            "cx_pool_ready_duration",
        ],
    ),
    ("upstream_filter_state", &[]),
    (
        "xds",
        &[
            "cluster_name",
            "cluster_metadata",
            "route_name",
            "virtual_host_name",
            "upstream_host_metadata",
            "filter_chain_name",
        ],
    ),
];

/// The root's own name, if it is one.
pub(super) fn root(name: &str) -> Option<&'static str> {
    ATTRIBUTES.iter().find(|(root, _)| *root == name).map(|(root, _)| *root)
}

/// Whether there is such an attribute; what filters keep in the filter state has any name.
pub(super) fn is_known(root: &str, field: &str) -> bool {
    matches!(root, "filter_state" | "upstream_filter_state")
        || ATTRIBUTES.iter().any(|(name, fields)| *name == root && fields.contains(&field))
}

impl<'a> Facts<'a> {
    /// The stream's facts and nothing else.
    pub fn of(info: &'a StreamInfo) -> Self {
        Self { info, request: None, response: None, response_trailers: None, route: None }
    }

    pub(super) fn value(&self, root: &str) -> Value {
        match root {
            "request" => self.request(),
            "response" => self.response(),
            "connection" => self.connection(),
            "upstream" => self.upstream(),
            "source" => address(&self.info.downstream_remote).finish(),
            "destination" => address(&self.info.connection.local).finish(),
            "metadata" => {
                let mut fields = Fields::default();
                fields.put("filter_metadata", metadata(&self.info.dynamic_metadata));
                fields.finish()
            }
            "filter_state" => filter_state(&self.info.filter_state, &self.info.connection.filter_state),
            "upstream_filter_state" => match &self.info.upstream.filter_state {
                Some(state) => filter_state(state, &FilterState::default()),
                None => map(std::iter::empty()),
            },
            "xds" => self.xds(),
            _ => Value::Null,
        }
    }

    fn request(&self) -> Value {
        let info = self.info;
        let mut fields = Fields::default();
        if let Some(head) = self.request {
            let path = text(head.path.as_bytes());
            fields.put("url_path", text(head.path_only()));
            fields.put("query", text(head.query().unwrap_or_default()));
            fields.put("path", path);
            fields.put("host", text(head.authority.as_bytes()));
            fields.put("scheme", text(head.scheme.as_bytes()));
            fields.put("method", text(head.method.as_str().as_bytes()));
            for (name, header) in [("referer", "referer"), ("useragent", "user-agent"), ("id", "x-request-id")] {
                fields.maybe(name, head.headers.get(header).map(|value| text(value.as_bytes())));
            }
            let length =
                head.headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
            fields.put("size", Value::Int(length.unwrap_or_else(|| int(info.bytes.body_received))));
            let headers = request_headers(head);
            let header_bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            fields.put("total_size", Value::Int(int(info.bytes.body_received + header_bytes as u64)));
            fields.put("headers", map(headers.into_iter().map(|(name, value)| (name, text(&value)))));
        }
        fields.put("time", timestamp(info.start_time));
        fields.maybe("protocol", info.protocol.and_then(protocol).map(Value::from));
        fields.maybe("duration", info.end.map(|end| span(end.saturating_duration_since(info.start))));
        fields.finish()
    }

    fn response(&self) -> Value {
        let info = self.info;
        let mut fields = Fields::default();
        fields.maybe("code", info.response_code.map(|code| Value::Int(code.as_u16().into())));
        fields.maybe("code_details", info.details.as_deref().map(Value::from));
        fields.put("flags", Value::Int(int(info.flags.bits())));
        let context = FormatContext {
            response: self.response,
            response_trailers: self.response_trailers,
            ..FormatContext::of(info)
        };
        fields.maybe("grpc_status", crate::format::grpc_status(&context).map(Value::Int));
        let headers = self.response.map(|head| {
            let status = (":status".to_owned(), head.status.as_str().as_bytes().to_vec());
            let mut all = joined(&head.headers);
            all.push(status);
            all
        });
        let headers = headers.unwrap_or_default();
        let header_bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        fields.put("headers", map(headers.into_iter().map(|(name, value)| (name, text(&value)))));
        let trailers = self.response_trailers.map(joined).unwrap_or_default();
        let trailer_bytes: usize = trailers.iter().map(|(name, value)| name.len() + value.len()).sum();
        fields.put("trailers", map(trailers.into_iter().map(|(name, value)| (name, text(&value)))));
        fields.put("size", Value::Int(int(info.bytes.body_sent)));
        let total = info.bytes.body_sent + (header_bytes + trailer_bytes) as u64;
        fields.put("total_size", Value::Int(int(total)));
        let timings = &info.timings;
        fields.maybe("backend_latency", between(timings.first_upstream_tx, timings.last_upstream_rx));
        fields.finish()
    }

    fn connection(&self) -> Value {
        let connection = &self.info.connection;
        let tls = connection.tls.as_deref();
        let mut fields = Fields::default();
        fields.put("id", Value::UInt(connection.id));
        fields.put("mtls", Value::Bool(tls.is_some_and(|tls| tls.peer_presented)));
        // Only what an inspector saw; empty where none did.
        fields.put("requested_server_name", connection.requested_server_name.as_deref().unwrap_or_default().into());
        fields.maybe("termination_details", self.info.connection_termination_details.as_deref().map(Value::from));
        fields.maybe("transport_failure_reason", connection.transport_failure_reason.as_deref().map(Value::from));
        certificates(tls, &mut fields);
        fields.finish()
    }

    fn upstream(&self) -> Value {
        let upstream = &self.info.upstream;
        let mut fields = upstream.host.as_ref().map(address).unwrap_or_default();
        fields.maybe("local_address", upstream.local_address.as_ref().map(|local| local.to_string().into()));
        let reason = upstream.transport_failure_reason.as_deref().unwrap_or_default();
        fields.put("transport_failure_reason", reason.into());
        fields.put("request_attempt_count", Value::UInt(upstream.attempts.into()));
        let timings = &self.info.timings;
        fields.maybe("cx_pool_ready_duration", between(Some(self.info.start), timings.upstream_connect_complete));
        certificates(upstream.tls.as_deref(), &mut fields);
        fields.finish()
    }

    fn xds(&self) -> Value {
        let info = self.info;
        let mut fields = Fields::default();
        fields.maybe("cluster_name", info.upstream.cluster.as_deref().map(Value::from));
        // A route without a name has an empty one.
        let route = self.route.map(|route| route.name()).or(info.route_name.as_deref());
        fields.maybe("route_name", route.map(Value::from));
        fields.maybe("virtual_host_name", info.virtual_host.as_deref().map(Value::from));
        fields.put("filter_chain_name", Value::from(&*info.connection.filter_chain_name));
        let wrapped = |inner: &Metadata| {
            let mut fields = Fields::default();
            fields.put("filter_metadata", metadata(inner));
            fields.finish()
        };
        fields.maybe("cluster_metadata", info.upstream.cluster_metadata.as_deref().map(wrapped));
        fields.maybe("upstream_host_metadata", info.upstream.host_metadata.as_deref().map(wrapped));
        fields.finish()
    }
}

/// The fields of a map in the making.
#[derive(Default)]
struct Fields(HashMap<Key, Value>);

impl Fields {
    fn put(&mut self, name: &str, value: Value) {
        self.0.insert(Key::from(name), value);
    }

    fn maybe(&mut self, name: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    fn finish(self) -> Value {
        Value::Map(Map { map: Arc::new(self.0) })
    }
}

fn map(pairs: impl Iterator<Item = (String, Value)>) -> Value {
    Value::Map(Map { map: Arc::new(pairs.map(|(name, value)| (Key::from(name), value)).collect()) })
}

fn text(bytes: &[u8]) -> Value {
    Value::from(&*String::from_utf8_lossy(bytes))
}

fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn timestamp(time: SystemTime) -> Value {
    Value::Timestamp(chrono::DateTime::<chrono::Utc>::from(time).fixed_offset())
}

fn span(span: Duration) -> Value {
    Value::Duration(chrono::Duration::from_std(span).unwrap_or(chrono::Duration::MAX))
}

fn between(from: Option<Instant>, to: Option<Instant>) -> Option<Value> {
    Some(span(to?.saturating_duration_since(from?)))
}

fn protocol(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("HTTP/1.0"),
        Version::HTTP_11 => Some("HTTP/1.1"),
        Version::HTTP_2 => Some("HTTP/2"),
        Version::HTTP_3 => Some("HTTP/3"),
        _ => None,
    }
}

fn address(address: &Address) -> Fields {
    let mut fields = Fields::default();
    fields.put("address", address.to_string().into());
    fields.maybe("port", address.ip().map(|ip| Value::Int(ip.port().into())));
    fields
}

/// With the pseudo-headers that matchers see; repeated ones are joined.
fn request_headers(head: &RequestHead) -> Vec<(String, Vec<u8>)> {
    let mut all = joined(&head.headers);
    let pseudo = [
        (":method", head.method.as_str().as_bytes()),
        (":path", head.path.as_bytes()),
        (":authority", head.authority.as_bytes()),
        (":scheme", head.scheme.as_bytes()),
    ];
    all.extend(
        pseudo.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.into(), value.into())),
    );
    all
}

fn joined(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let values = |name| headers.get_all(name).iter().map(|value| value.as_bytes()).collect::<Vec<_>>().join(&b","[..]);
    headers.keys().map(|name| (name.as_str().to_owned(), values(name))).collect()
}

fn certificates(tls: Option<&TlsInfo>, fields: &mut Fields) {
    let Some(tls) = tls else { return };
    fields.put("tls_version", tls.version.into());
    // Empty, unlike the others, where there is no certificate.
    let subject = |of: Option<&Certificate>| Value::from(of.map_or("", |certificate| certificate.subject.as_str()));
    fields.put("subject_local_certificate", subject(tls.local()));
    fields.put("subject_peer_certificate", subject(tls.peer()));
    let mut names = |side: &str, certificate: &Certificate| {
        let first = |kind: &SanKind| certificate.values_of(kind).next().map(text);
        fields.maybe(&format!("uri_san_{side}_certificate"), first(&SanKind::Uri));
        fields.maybe(&format!("dns_san_{side}_certificate"), first(&SanKind::Dns));
    };
    if let Some(own) = tls.local() {
        names("local", own);
    }
    if let Some(peer) = tls.peer() {
        names("peer", peer);
        fields.put("sha256_peer_certificate_digest", peer.sha256.as_str().into());
    }
}

fn metadata(metadata: &Metadata) -> Value {
    map(metadata.iter().map(|(name, value)| (name.clone(), from_json(value))))
}

fn filter_state(stream: &FilterState, connection: &FilterState) -> Value {
    let objects = connection.iter().chain(stream.iter());
    map(objects.filter_map(|(name, object)| Some((name.to_owned(), text(object.text()?.as_bytes())))))
}

fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        // Numbers of a `google.protobuf.Struct` are doubles.
        Json::Number(number) => Value::Float(number.as_f64().unwrap_or_default()),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(from_json).collect())),
        Json::Object(fields) => map(fields.iter().map(|(name, value)| (name.clone(), from_json(value)))),
    }
}
