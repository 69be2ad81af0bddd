//! What a compiled operator is, and what it gives for a stream.
//! It must not know the commands' syntax.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::Value as Json;

use super::FormatContext;
use super::fields::Read;
use super::grpc::GrpcForm;
use super::query::{decode_visible, decoded_parameter};
use super::time::TimeFormat;
use super::value::Value;
use crate::http::{HeaderKey, Headers, RequestHead};
use crate::matching::cel::Expression;
use crate::metadata::StateObject;
use crate::stream_info::{Address, StreamInfo};

/// One compiled command.
#[derive(Debug, Clone)]
pub(super) enum Operator {
    /// Known when the format is compiled.
    Constant(String),
    Field(Read),
    Header {
        from: HeadersOf,
        name: HeaderKey,
        alternative: Option<HeaderKey>,
        without_query: bool,
        length: Option<usize>,
    },
    Time {
        of: TimeOf,
        format: TimeFormat,
    },
    CommonDuration {
        from: Point,
        to: Point,
        unit: DurationUnit,
    },
    Host {
        of: AddressOf,
        prefix: Option<u8>,
    },
    Metadata {
        of: MetadataOf,
        namespace: String,
        path: Vec<String>,
        length: Option<usize>,
    },
    FilterState {
        of: StateOf,
        key: String,
        form: StateForm,
        length: Option<usize>,
    },
    ResponseCodeDetails {
        spaces: bool,
    },
    GrpcStatus(GrpcForm),
    Path {
        query: bool,
        source: Source,
        length: Option<usize>,
    },
    QueryParameter {
        name: String,
        length: Option<usize>,
    },
    QueryParameters {
        decoded: bool,
        length: Option<usize>,
    },
    ServerName {
        first: ServerNameFirst,
        host: Source,
    },
    Cel {
        expression: Expression,
        /// As JSON: numbers stay numbers.
        typed: bool,
        length: Option<usize>,
    },
    Coalesce {
        operators: Vec<Operator>,
        length: Option<usize>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadersOf {
    Request,
    Response,
    ResponseTrailers,
}

/// Which point in time is printed.
#[derive(Debug, Clone, Copy)]
pub(super) enum TimeOf {
    Start,
    /// When the line is written.
    Emit,
    Certificate(fn(&StreamInfo) -> Option<SystemTime>),
}

/// A point of a stream's life; `None` when it was not reached.
pub(super) type Point = fn(&StreamInfo) -> Option<Instant>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DurationUnit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

pub(super) type AddressOf = for<'a> fn(&'a StreamInfo) -> Option<&'a Address>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetadataOf {
    Dynamic,
    Route,
    Cluster,
    UpstreamHost,
    VirtualHost,
    Listener,
    FilterChain,
}

/// Whose filter state is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StateOf {
    /// The stream's, and its connection's.
    Stream,
    /// The upstream connection's.
    Upstream,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StateForm {
    Plain,
    Typed,
    Field(String),
}

/// Whether a path or host is the one that came or the one before Envoy rewrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    OriginalOrCurrent,
    Original,
    Current,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerNameFirst {
    SniOnly,
    SniFirst,
    HostFirst,
}

impl Operator {
    /// Asks the stream.
    pub(super) fn value<'a>(&'a self, context: &FormatContext<'a>) -> Value<'a> {
        let info = context.info;
        match self {
            Self::Constant(text) => Value::Text(text.as_bytes()),
            Self::Field(read) => read(context),
            Self::Header { from, name, alternative, without_query, length } => {
                let value = header_value(*from, name, alternative.as_ref(), context);
                let value = value.map(|value| if *without_query { before_query(value) } else { value });
                Value::text(value).cut(*length)
            }
            Self::Time { of, format } => match of.read(info) {
                Some(time) => Value::Time(time, format),
                None => Value::Absent,
            },
            Self::CommonDuration { from, to, unit } => match (from(info), to(info)) {
                (Some(from), Some(to)) => Value::Signed(unit.between(from, to)),
                _ => Value::Absent,
            },
            Self::Host { of, prefix } => of(info).map_or(Value::Absent, |address| Value::Host(address, *prefix)),
            Self::Metadata { of, namespace, path, length } => {
                of.read(context, namespace, path).map_or(Value::Absent, Value::Json).cut(*length)
            }
            Self::FilterState { of, key, form, length } => form.read(of.read(info, key)).cut(*length),
            Self::ResponseCodeDetails { spaces: true } => Value::text(info.details.as_deref()),
            Self::ResponseCodeDetails { spaces: false } => {
                info.details.as_deref().map_or(Value::Absent, Value::NoSpaces)
            }
            Self::GrpcStatus(form) => form.value(context),
            Self::Path { query, source, length } => {
                let path = source.read(context.request, ORIGINAL_PATH, &HeaderKey::Path);
                let path = path.map(|path| if *query { path } else { before_query(path) });
                Value::text(path).cut(*length)
            }
            Self::QueryParameter { name, length } => {
                let query = context.request.and_then(|request| request.query());
                let value = query.and_then(|query| decoded_parameter(query, name.as_bytes()));
                value.map_or(Value::Absent, Value::Owned).cut(*length)
            }
            Self::QueryParameters { decoded, length } => {
                let query = context.request.and_then(|request| request.query());
                match query {
                    None => Value::Absent,
                    Some(query) if *decoded => Value::Owned(decode_visible(query)).cut(*length),
                    Some(query) => Value::Text(query).cut(*length),
                }
            }
            Self::ServerName { first, host } => first.value(*host, context),
            Self::Cel { expression, typed, length } => {
                let value = expression.json(&context.facts()).filter(|value| *typed || !value.is_null());
                let value = match value {
                    Some(value) if *typed || value.is_string() => Value::Json(Cow::Owned(value)),
                    Some(value) => Value::Owned(value.to_string().into_bytes()),
                    None => Value::Absent,
                };
                value.cut(*length)
            }
            Self::Coalesce { operators, length } => {
                let values = operators.iter().map(|operator| operator.value(context));
                values.into_iter().find(|value| !value.is_empty()).unwrap_or(Value::Absent).cut(*length)
            }
        }
    }
}

const ORIGINAL_PATH: &str = "x-envoy-original-path";
const ORIGINAL_HOST: &str = "x-envoy-original-host";

fn header_value<'a>(
    from: HeadersOf,
    name: &HeaderKey,
    alternative: Option<&HeaderKey>,
    context: &FormatContext<'a>,
) -> Option<&'a [u8]> {
    fn either<'a, H: Headers>(headers: &'a H, name: &HeaderKey, alternative: Option<&HeaderKey>) -> Option<&'a [u8]> {
        headers.first(name).or_else(|| headers.first(alternative?))
    }
    match from {
        HeadersOf::Request => either(context.request?, name, alternative),
        HeadersOf::Response => either(context.response?, name, alternative),
        HeadersOf::ResponseTrailers => either(context.response_trailers?, name, alternative),
    }
}

/// A path without its query.
fn before_query(path: &[u8]) -> &[u8] {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(path.len());
    &path[..end]
}

impl TimeOf {
    fn read(self, info: &StreamInfo) -> Option<SystemTime> {
        match self {
            Self::Start => Some(info.start_time),
            Self::Emit => Some(info.end.map_or_else(SystemTime::now, |end| info.start_time + (end - info.start))),
            Self::Certificate(read) => read(info),
        }
    }
}

impl DurationUnit {
    /// Negative when `to` came first.
    fn between(self, from: Instant, to: Instant) -> i64 {
        let (span, negative) = if to >= from { (to - from, false) } else { (from - to, true) };
        let number = match self {
            Self::Milliseconds => span.as_millis(),
            Self::Microseconds => span.as_micros(),
            Self::Nanoseconds => span.as_nanos(),
        };
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        if negative { -number } else { number }
    }
}

impl MetadataOf {
    /// A namespace as a whole when `path` is empty.
    fn read<'a>(self, context: &FormatContext<'a>, namespace: &str, path: &[String]) -> Option<Cow<'a, Json>> {
        let info = context.info;
        let metadata = match self {
            Self::Route => {
                let fields = context.route?.metadata(namespace)?;
                let Some((first, rest)) = path.split_first() else {
                    return Some(Cow::Owned(Json::Object(fields.clone())));
                };
                return rest.iter().try_fold(fields.get(first)?, |value, key| value.get(key)).map(Cow::Borrowed);
            }
            // A connection has what its listener filters said.
            Self::Dynamic if context.request.is_none() && info.dynamic_metadata.is_empty() => &info.connection.metadata,
            Self::Dynamic => &info.dynamic_metadata,
            Self::Cluster => info.upstream.cluster_metadata.as_deref()?,
            Self::VirtualHost => info.virtual_host_metadata.as_deref()?,
            Self::Listener => info.connection.listener_metadata.as_deref()?,
            Self::FilterChain => info.connection.filter_chain_metadata.as_deref()?,
            Self::UpstreamHost => info.upstream.host_metadata.as_deref()?,
        };
        metadata.get(namespace, path.iter().map(String::as_str)).map(Cow::Borrowed)
    }
}

impl StateOf {
    fn read(self, info: &StreamInfo, key: &str) -> Option<Arc<dyn StateObject>> {
        match self {
            Self::Stream => {
                let of_connection = || info.connection.filter_state_now().get(key).cloned();
                info.filter_state.get(key).cloned().or_else(of_connection)
            }
            Self::Upstream => info.upstream.filter_state.as_ref()?.get(key).cloned(),
        }
    }
}

impl StateForm {
    fn read(&self, object: Option<Arc<dyn StateObject>>) -> Value<'static> {
        let Some(object) = object else { return Value::Absent };
        let text = |text: Option<String>| text.map_or(Value::Absent, |text| Value::Owned(text.into_bytes()));
        match self {
            Self::Plain => text(object.text()),
            Self::Field(name) => text(object.field(name)),
            Self::Typed => object.json().map_or(Value::Absent, Value::QuotedJson),
        }
    }
}

impl Source {
    fn read<'a>(self, request: Option<&'a RequestHead>, original: &str, current: &HeaderKey) -> Option<&'a [u8]> {
        let request = request?;
        let original = || request.headers.get(original).map(http::HeaderValue::as_bytes);
        match self {
            Self::Original => original(),
            Self::Current => request.first(current),
            Self::OriginalOrCurrent => original().or_else(|| request.first(current)),
        }
    }
}

impl ServerNameFirst {
    fn value<'a>(self, host: Source, context: &FormatContext<'a>) -> Value<'a> {
        let sni = context.info.connection.requested_server_name.as_ref().filter(|name| !name.is_empty());
        let sni = || sni.map(|name| name.as_bytes());
        let host = || host.read(context.request, ORIGINAL_HOST, &HeaderKey::Authority);
        let name = match self {
            Self::SniOnly => sni(),
            Self::SniFirst => sni().or_else(host),
            Self::HostFirst => host().or_else(sni),
        };
        let unusual =
            |byte: &u8| !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']'));
        match name {
            // What no host name can hold is not printed.
            Some(name) if name.iter().any(unusual) => {
                Value::Owned(name.iter().map(|byte| if unusual(byte) { b'_' } else { *byte }).collect())
            }
            name => Value::text(name),
        }
    }
}
