//! What a matcher tree looks at: inputs by their type URL, read from a stream or connection.
//! They must not know what the values are compared with.

use std::borrow::Cow;
use std::net::IpAddr;

use http::HeaderMap;
use prost::{Message, Name};
use serde_json::Value as Json;
use tidegate_tls::Certificate;
use tidegate_tls::certificate::SanKind;
use tidegate_xds::pb::envoy::extensions::matching::common_inputs::{
    network::v3 as network, ssl::v3 as ssl, transport_socket::v3 as host,
};
use tidegate_xds::pb::envoy::r#type::matcher::v3 as pb;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::protos::matcher::HttpAttributesCelMatchInput;
use tidegate_xds::{Coverage, FieldError, any};

use super::cel::Facts;
use super::{MetadataPath, percent_decode, query_parameters};
use crate::connection::{ConnectionInfo, TlsInfo};
use crate::context::CompileContext;
use crate::format::write::json_value;
use crate::http::filter::RouteView;
use crate::http::{HeaderKey, Headers, RequestHead, ResponseHead};
use crate::metadata::{FilterState, Metadata};
use crate::runtime::{NoRuntime, Runtime};
use crate::stream_info::{Address, StreamInfo};

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage { message: "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", enforced: &["header_name"], listed: &[] },
    Coverage { message: "envoy.type.matcher.v3.HttpRequestTrailerMatchInput", enforced: &["header_name"], listed: &[] },
    Coverage { message: "envoy.type.matcher.v3.HttpResponseHeaderMatchInput", enforced: &["header_name"], listed: &[] },
    Coverage {
        message: "envoy.type.matcher.v3.HttpResponseTrailerMatchInput",
        enforced: &["header_name"],
        listed: &[],
    },
    Coverage {
        message: "envoy.type.matcher.v3.HttpRequestQueryParamMatchInput",
        enforced: &["query_param"],
        listed: &[],
    },
    Coverage { message: "envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput", enforced: &[], listed: &[] },
    Coverage { message: "envoy.type.matcher.v3.HttpResponseStatusCodeClassMatchInput", enforced: &[], listed: &[] },
    Coverage { message: "envoy.type.matcher.v3.HttpResponseLocalReplyMatchInput", enforced: &[], listed: &[] },
    Coverage { message: "xds.type.matcher.v3.HttpAttributesCelMatchInput", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.SourceIPInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.SourcePortInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.DirectSourceIPInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.SourceTypeInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.ServerNameInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.TransportProtocolInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput",
        enforced: &["key", "field"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
        enforced: &["filter", "path"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput.PathSegment",
        enforced: &["key"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.transport_socket.v3.EndpointMetadataInput",
        enforced: &["filter", "path"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.transport_socket.v3.EndpointMetadataInput.PathSegment",
        enforced: &["key"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.transport_socket.v3.LocalityMetadataInput",
        enforced: &["filter", "path"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.transport_socket.v3.LocalityMetadataInput.PathSegment",
        enforced: &["key"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.transport_socket.v3.FilterStateInput",
        enforced: &["key"],
        listed: &[],
    },
    Coverage { message: "envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput", enforced: &[], listed: &[] },
    Coverage { message: "envoy.extensions.matching.common_inputs.ssl.v3.DnsSanInput", enforced: &[], listed: &[] },
    Coverage { message: "envoy.extensions.matching.common_inputs.ssl.v3.SubjectInput", enforced: &[], listed: &[] },
];

/// Which inputs may stand in a tree; Envoy allows others in each place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inputs {
    /// A route table's: request headers and filter state only.
    RouteTable,
    /// A listener's filter chains and network filters.
    Network,
    /// HTTP filters that decide on request headers (RBAC).
    HttpRequest,
    /// Everything of an HTTP stream.
    Http,
    /// A host that a connection is made to.
    Host,
}

/// A host that a connection is made to, and for whom.
#[derive(Clone, Copy)]
pub struct HostData<'a> {
    pub metadata: &'a Metadata,
    pub locality: &'a Metadata,
    /// Of the stream that it is made for; what of it goes upstream counts.
    pub state: &'a FilterState,
}

/// What inputs are read from. What is `None` has not come yet.
#[derive(Clone, Copy)]
pub struct MatchData<'a> {
    pub connection: &'a ConnectionInfo,
    /// The client: of the connection, or what XFF and the like made of it.
    pub remote: &'a Address,
    pub metadata: &'a Metadata,
    pub filter_state: &'a FilterState,
    pub request: Option<&'a RequestHead>,
    pub request_trailers: Option<&'a HeaderMap>,
    pub response: Option<&'a ResponseHead>,
    pub response_trailers: Option<&'a HeaderMap>,
    /// Whether the response is the proxy's own.
    pub local_reply: bool,
    /// All that is known of the stream, and its route: for expressions.
    pub stream: Option<&'a StreamInfo>,
    pub route: Option<&'a dyn RouteView>,
    pub runtime: &'a dyn Runtime,
    pub host: Option<HostData<'a>>,
}

impl<'a> MatchData<'a> {
    /// A connection, before any stream.
    pub fn of_connection(connection: &'a ConnectionInfo) -> Self {
        Self {
            connection,
            remote: &connection.remote,
            metadata: &connection.metadata,
            filter_state: &connection.filter_state,
            request: None,
            request_trailers: None,
            response: None,
            response_trailers: None,
            local_reply: false,
            stream: None,
            route: None,
            runtime: &NoRuntime,
            host: None,
        }
    }

    /// A stream whose request head is there.
    pub fn of_request(info: &'a StreamInfo, request: &'a RequestHead) -> Self {
        Self {
            remote: &info.downstream_remote,
            metadata: &info.dynamic_metadata,
            filter_state: &info.filter_state,
            request: Some(request),
            stream: Some(info),
            ..Self::of_connection(&info.connection)
        }
    }
}

/// A compiled input.
#[derive(Debug, Clone)]
pub(super) enum Input {
    RequestHeader(HeaderKey),
    RequestTrailer(HeaderKey),
    ResponseHeader(HeaderKey),
    ResponseTrailer(HeaderKey),
    QueryParameter(String),
    StatusCode,
    StatusCodeClass,
    LocalReply,
    /// All attributes of CEL, which only an expression can ask.
    Attributes,
    DestinationIp,
    DestinationPort,
    SourceIp,
    SourcePort,
    DirectSourceIp,
    SourceType,
    ServerName,
    TransportProtocol,
    ApplicationProtocol,
    FilterState {
        key: String,
        field: String,
    },
    DynamicMetadata(MetadataPath),
    UriSan,
    DnsSan,
    Subject,
    HostMetadata(MetadataPath),
    LocalityMetadata(MetadataPath),
    /// Filter state that goes upstream.
    SharedState(String),
}

/// An input on its own, without a tree around it.
#[derive(Debug, Clone)]
pub struct LoneInput(Input);

impl LoneInput {
    pub fn compile(config: &Any, inputs: Inputs, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let input = Input::compile(config, inputs, context)?;
        if input.is_attributes() {
            return Err(context.error(ATTRIBUTES_ALONE));
        }
        Ok(Self(input))
    }

    /// Its value as text; `None` where it has none yet.
    pub fn read<'a>(&self, data: &MatchData<'a>) -> Option<Cow<'a, [u8]>> {
        self.0.read(data).into_text()
    }
}

/// What an input gives.
pub(super) enum Found<'a> {
    /// It cannot be known yet.
    NotYet,
    Absent,
    Text(Cow<'a, [u8]>),
    Ip(IpAddr),
    /// Only a metadata matcher takes it.
    Json(Option<&'a Json>),
    /// Only an expression takes them.
    Attributes(Facts<'a>),
}

/// What is said of attributes where no expression asks for them.
pub(super) const ATTRIBUTES_ALONE: &str = "Unsupported data input type: cel_data_input";

impl<'a> Found<'a> {
    fn text(value: Option<&'a (impl AsRef<[u8]> + ?Sized)>) -> Self {
        value.map_or(Self::Absent, |value| Self::Text(Cow::Borrowed(value.as_ref())))
    }

    fn number(number: u16) -> Self {
        Self::Text(Cow::Owned(number.to_string().into_bytes()))
    }

    fn ip(address: &Address) -> Self {
        address.ip().map_or(Self::Absent, |socket| Self::Ip(socket.ip().to_canonical()))
    }

    fn port(address: &Address) -> Self {
        address.ip().map_or(Self::Absent, |socket| Self::number(socket.port()))
    }

    /// The value as text, if it is any.
    pub(super) fn into_text(self) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Ip(ip) => Some(Cow::Owned(ip.to_string().into_bytes())),
            Self::NotYet | Self::Absent | Self::Json(_) | Self::Attributes(_) => None,
        }
    }
}

impl Input {
    /// Compiles the input of this type URL, if it may stand here.
    pub(super) fn compile(config: &Any, inputs: Inputs, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        let url = &config.type_url;
        let refused = |reason: &str| Err(context.error(format!("{reason}: {url}")));
        let Some((input, place)) = known(config, context)? else {
            return refused("not supported yet");
        };
        let allowed = match inputs {
            Inputs::RouteTable => place == Place::RequestHeaders || matches!(input, Input::FilterState { .. }),
            Inputs::Network => matches!(place, Place::Network | Place::Connection),
            Inputs::HttpRequest => matches!(place, Place::RequestHeaders | Place::Connection | Place::Attributes),
            Inputs::Http => !matches!(place, Place::Network | Place::Host),
            Inputs::Host => place == Place::Host,
        };
        if allowed { Ok(input) } else { refused("this input cannot be matched on here") }
    }

    /// Whether it gives attributes, which only an expression takes.
    pub(super) fn is_attributes(&self) -> bool {
        matches!(self, Self::Attributes)
    }

    pub(super) fn read<'a>(&self, data: &MatchData<'a>) -> Found<'a> {
        let connection = data.connection;
        match self {
            Self::RequestHeader(key) => joined(data.request, key),
            Self::RequestTrailer(key) => joined(data.request_trailers, key),
            Self::ResponseHeader(key) => joined(data.response, key),
            Self::ResponseTrailer(key) => joined(data.response_trailers, key),
            Self::QueryParameter(name) => match data.request {
                None => Found::NotYet,
                Some(request) => decoded_parameter(request, name),
            },
            Self::StatusCode => data.response.map_or(Found::NotYet, |response| Found::number(response.status.as_u16())),
            Self::StatusCodeClass => data.response.map_or(Found::NotYet, status_class),
            Self::Attributes => data.stream.map_or(Found::NotYet, |info| {
                let MatchData { request, response, response_trailers, route, .. } = *data;
                Found::Attributes(Facts { info, request, response, response_trailers, route })
            }),
            Self::LocalReply if data.response.is_none() => Found::NotYet,
            Self::LocalReply => Found::Text(Cow::Borrowed(if data.local_reply { b"true" } else { b"false" })),
            Self::DestinationIp => Found::ip(&connection.local),
            Self::DestinationPort => Found::port(&connection.local),
            Self::SourceIp => Found::ip(data.remote),
            Self::SourcePort => Found::port(data.remote),
            Self::DirectSourceIp => Found::ip(&connection.direct_remote),
            Self::SourceType if connection.is_local() => Found::Text(Cow::Borrowed(b"local")),
            Self::SourceType => Found::Absent,
            Self::ServerName => Found::text(non_empty(connection.requested_server_name.as_deref())),
            Self::TransportProtocol => {
                Found::text(Some(non_empty(Some(&connection.transport_protocol)).unwrap_or("raw_buffer")))
            }
            Self::ApplicationProtocol => application_protocols(connection),
            Self::FilterState { key, field } => filter_state(data, key, field),
            Self::DynamicMetadata(path) => Found::Json(path.find(data.metadata)),
            Self::UriSan => sans(connection, &SanKind::Uri),
            Self::DnsSan => sans(connection, &SanKind::Dns),
            Self::HostMetadata(path) => value_text(data.host.and_then(|host| path.find(host.metadata))),
            Self::LocalityMetadata(path) => value_text(data.host.and_then(|host| path.find(host.locality))),
            Self::SharedState(key) => {
                let object = data.host.and_then(|host| host.state.get_shared(key));
                object
                    .and_then(|object| object.text())
                    .map_or(Found::Absent, |text| Found::Text(text.into_bytes().into()))
            }
            Self::Subject => Found::text(non_empty(peer(connection).map(|peer| peer.subject.as_str()))),
        }
    }
}

/// Where Envoy takes an input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    RequestHeaders,
    /// Of an HTTP stream, but not its request headers.
    Stream,
    /// All of an HTTP stream at once.
    Attributes,
    /// Of the connection, known to HTTP too.
    Connection,
    /// Of the connection, known only before there is HTTP.
    Network,
    /// Of a host.
    Host,
}

fn known(config: &Any, context: &CompileContext<'_>) -> Result<Option<(Input, Place)>, FieldError> {
    fn of<M: Message + Name + Default>(config: &Any, context: &CompileContext<'_>) -> Result<M, FieldError> {
        any::unpack(config, &context.path)
    }
    fn is<M: Name>(name: &str) -> bool {
        name == M::full_name()
    }
    let Some(name) = any::type_name(&config.type_url) else { return Ok(None) };
    let (http, connection, network) = (Place::Stream, Place::Connection, Place::Network);
    Ok(Some(match name {
        _ if is::<pb::HttpRequestHeaderMatchInput>(name) => {
            let input: pb::HttpRequestHeaderMatchInput = of(config, context)?;
            (Input::RequestHeader(HeaderKey::new(&input.header_name)), Place::RequestHeaders)
        }
        _ if is::<pb::HttpRequestTrailerMatchInput>(name) => {
            let input: pb::HttpRequestTrailerMatchInput = of(config, context)?;
            (Input::RequestTrailer(HeaderKey::new(&input.header_name)), http)
        }
        _ if is::<pb::HttpResponseHeaderMatchInput>(name) => {
            let input: pb::HttpResponseHeaderMatchInput = of(config, context)?;
            (Input::ResponseHeader(HeaderKey::new(&input.header_name)), http)
        }
        _ if is::<pb::HttpResponseTrailerMatchInput>(name) => {
            let input: pb::HttpResponseTrailerMatchInput = of(config, context)?;
            (Input::ResponseTrailer(HeaderKey::new(&input.header_name)), http)
        }
        _ if is::<pb::HttpRequestQueryParamMatchInput>(name) => {
            let input: pb::HttpRequestQueryParamMatchInput = of(config, context)?;
            (Input::QueryParameter(input.query_param), http)
        }
        _ if is::<network::FilterStateInput>(name) => {
            let input: network::FilterStateInput = of(config, context)?;
            (Input::FilterState { key: input.key, field: input.field }, connection)
        }
        _ if is::<network::DynamicMetadataInput>(name) => {
            use network::dynamic_metadata_input::path_segment::Segment;
            let input: network::DynamicMetadataInput = of(config, context)?;
            let keys = input.path.into_iter().map(|segment| match segment.segment {
                Some(Segment::Key(key)) => key,
                None => String::new(),
            });
            (Input::DynamicMetadata(MetadataPath::new(&input.filter, keys)), connection)
        }
        _ if is::<pb::HttpResponseStatusCodeMatchInput>(name) => (Input::StatusCode, http),
        _ if is::<pb::HttpResponseStatusCodeClassMatchInput>(name) => (Input::StatusCodeClass, http),
        _ if is::<pb::HttpResponseLocalReplyMatchInput>(name) => (Input::LocalReply, http),
        _ if is::<HttpAttributesCelMatchInput>(name) => (Input::Attributes, Place::Attributes),
        _ if is::<network::DestinationIpInput>(name) => (Input::DestinationIp, connection),
        _ if is::<network::DestinationPortInput>(name) => (Input::DestinationPort, connection),
        _ if is::<network::SourceIpInput>(name) => (Input::SourceIp, connection),
        _ if is::<network::SourcePortInput>(name) => (Input::SourcePort, connection),
        _ if is::<network::DirectSourceIpInput>(name) => (Input::DirectSourceIp, connection),
        _ if is::<network::ServerNameInput>(name) => (Input::ServerName, connection),
        _ if is::<network::SourceTypeInput>(name) => (Input::SourceType, network),
        _ if is::<network::TransportProtocolInput>(name) => (Input::TransportProtocol, network),
        _ if is::<network::ApplicationProtocolInput>(name) => (Input::ApplicationProtocol, network),
        _ if is::<host::EndpointMetadataInput>(name) => {
            use host::endpoint_metadata_input::path_segment::Segment;
            let input: host::EndpointMetadataInput = of(config, context)?;
            let key =
                |segment: host::endpoint_metadata_input::PathSegment| segment.segment.map(|Segment::Key(key)| key);
            (Input::HostMetadata(host_path(&input.filter, input.path.into_iter().filter_map(key))), Place::Host)
        }
        _ if is::<host::LocalityMetadataInput>(name) => {
            use host::locality_metadata_input::path_segment::Segment;
            let input: host::LocalityMetadataInput = of(config, context)?;
            let key =
                |segment: host::locality_metadata_input::PathSegment| segment.segment.map(|Segment::Key(key)| key);
            (Input::LocalityMetadata(host_path(&input.filter, input.path.into_iter().filter_map(key))), Place::Host)
        }
        _ if is::<host::FilterStateInput>(name) => {
            let input: host::FilterStateInput = of(config, context)?;
            (Input::SharedState(input.key), Place::Host)
        }
        _ if is::<ssl::UriSanInput>(name) => (Input::UriSan, connection),
        _ if is::<ssl::DnsSanInput>(name) => (Input::DnsSan, connection),
        _ if is::<ssl::SubjectInput>(name) => (Input::Subject, connection),
        _ => return Ok(None),
    }))
}

/// Below the namespace of load balancing, unless another one is named.
fn host_path(namespace: &str, keys: impl Iterator<Item = String>) -> MetadataPath {
    MetadataPath::new(if namespace.is_empty() { "envoy.lb" } else { namespace }, keys)
}

/// A string as it is, anything else as JSON; an empty one is none.
fn value_text(value: Option<&Json>) -> Found<'_> {
    match value {
        None => Found::Absent,
        Some(Json::String(text)) => Found::text(non_empty(Some(text))),
        Some(other) => {
            let mut text = Vec::new();
            json_value(&mut text, other);
            Found::Text(text.into())
        }
    }
}

/// All values of a header as one text: here Envoy still joins them, with commas.
fn joined<'a, H: Headers>(headers: Option<&'a H>, key: &HeaderKey) -> Found<'a> {
    let Some(headers) = headers else { return Found::NotYet };
    let mut values = headers.values(key);
    let Some(first) = values.next() else { return Found::Absent };
    let mut all = Cow::Borrowed(first);
    for value in values {
        let all = all.to_mut();
        all.push(b',');
        all.extend_from_slice(value);
    }
    Found::Text(all)
}

/// Unlike a route's query matcher, this one decodes.
fn decoded_parameter<'a>(request: &RequestHead, name: &str) -> Found<'a> {
    let found = query_parameters(request.query().unwrap_or_default())
        .find(|(key, _)| percent_decode(key) == name.as_bytes())
        .map(|(_, value)| percent_decode(value));
    found.map_or(Found::Absent, |value| Found::Text(Cow::Owned(value)))
}

fn status_class<'a>(response: &ResponseHead) -> Found<'a> {
    Found::Text(Cow::Borrowed(match response.status.as_u16() {
        100..=199 => b"1xx",
        200..=299 => b"2xx",
        300..=399 => b"3xx",
        400..=499 => b"4xx",
        500..=599 => b"5xx",
        _ => return Found::Absent,
    }))
}

/// `'h2','http/1.1'`
fn application_protocols<'a>(connection: &ConnectionInfo) -> Found<'a> {
    if connection.application_protocols.is_empty() {
        return Found::Absent;
    }
    let quoted: Vec<_> = connection.application_protocols.iter().map(|name| format!("'{name}'")).collect();
    Found::Text(Cow::Owned(quoted.join(",").into_bytes()))
}

fn filter_state<'a>(data: &MatchData<'a>, key: &str, field: &str) -> Found<'a> {
    let object = data.filter_state.get(key).or_else(|| data.connection.filter_state.get(key));
    let text = object.and_then(|object| if field.is_empty() { object.text() } else { object.field(field) });
    text.map_or(Found::Absent, |text| Found::Text(Cow::Owned(text.into_bytes())))
}

fn peer(connection: &ConnectionInfo) -> Option<&Certificate> {
    connection.tls.as_deref().and_then(TlsInfo::peer)
}

/// All names of the peer of one kind, separated by commas.
fn sans<'a>(connection: &'a ConnectionInfo, kind: &'static SanKind) -> Found<'a> {
    let Some(peer) = peer(connection) else { return Found::Absent };
    let mut names = peer.values_of(kind);
    match (names.next(), names.next()) {
        (None, _) => Found::Absent,
        (Some(one), None) => Found::text(Some(one)),
        _ => Found::Text(Cow::Owned(peer.values_of(kind).collect::<Vec<_>>().join(&b","[..]))),
    }
}

fn non_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}
