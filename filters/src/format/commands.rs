//! The commands with a parameter: their names, what they allow, and what they compile to. It is the way from a command's
//! name to an operator; commands without a parameter are rows of the table in `fields`.

use super::fields;
use super::grpc::GrpcForm;
use super::operator::{
    AddressOf, DurationUnit, HeadersOf, MetadataOf, Operator, Point, ServerNameFirst, Source, StateForm, StateOf,
    TimeOf,
};
use super::time::TimeFormat;
use super::{Costly, Extensions, FormatError};
use crate::http::HeaderKey;
use crate::matching::cel::{Expression, Functions};

/// Compiles the command `name` with its parameter, which is empty where none is given.
pub(super) fn compile(
    name: &str,
    parameter: &str,
    length: Option<usize>,
    extensions: Extensions,
) -> Result<Operator, FormatError> {
    if let Ok(row) = fields::FIELDS.binary_search_by_key(&name, |(known, _)| known) {
        let (known, read) = fields::FIELDS[row];
        let bare = parameter.is_empty() && length.is_none();
        if let Some(costly) = costly(known) {
            costly.ask_for();
        }
        return if bare { Ok(Operator::Field(read)) } else { Err(FormatError::CommandOnly(known)) };
    }
    if let Some(row) = COMMANDS.iter().find(|command| command.name == name) {
        if row.parameter_required && parameter.is_empty() {
            return Err(FormatError::ParametersRequired(row.name));
        }
        if !row.length_allowed && length.is_some() {
            return Err(FormatError::NoLength(row.name));
        }
        return (row.compile)(parameter, length);
    }
    match name {
        "REQ_WITHOUT_QUERY" if extensions.req_without_query => header(HeadersOf::Request, parameter, length, true),
        "CEL" if !parameter.is_empty() => cel(parameter, false, length, extensions.functions),
        "CEL" => Err(FormatError::ParametersRequired("CEL")),
        "TYPED_CEL" if !parameter.is_empty() => cel(parameter, true, length, extensions.functions),
        "TYPED_CEL" => Err(FormatError::ParametersRequired("TYPED_CEL")),
        "HOSTNAME" if parameter.is_empty() && length.is_none() => Ok(Operator::Constant(hostname())),
        "HOSTNAME" => Err(FormatError::CommandOnly("HOSTNAME")),
        _ => Err(FormatError::UnknownOperator(name.to_owned())),
    }
}

fn costly(field: &str) -> Option<Costly> {
    match field {
        "ROUTE_RESOLUTION_TIME_US" => Some(Costly::RouteTime),
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Some(Costly::PoolWait),
        _ if field.contains("_HEADER_BYTES_") || field.contains("_WIRE_BYTES_") => Some(Costly::WireBytes),
        _ => None,
    }
}

/// A command that takes a parameter.
struct Command {
    name: &'static str,
    parameter_required: bool,
    length_allowed: bool,
    compile: fn(&str, Option<usize>) -> Result<Operator, FormatError>,
}

const fn command(
    name: &'static str,
    parameter_required: bool,
    length_allowed: bool,
    compile: fn(&str, Option<usize>) -> Result<Operator, FormatError>,
) -> Command {
    Command { name, parameter_required, length_allowed, compile }
}

/// Name, whether a parameter is required, whether a length is allowed: as Envoy has it.
static COMMANDS: &[Command] = &[
    command("CLUSTER_METADATA", true, false, |p, n| Ok(metadata(MetadataOf::Cluster, p, n))),
    command("COALESCE", true, true, coalesce),
    command("COMMON_DURATION", true, false, |p, _| common_duration(p)),
    command("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", false, false, |p, _| host(fields::direct_local, p)),
    command("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", false, false, |p, _| host(fields::direct_remote, p)),
    command("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", false, false, |p, _| host(fields::local, p)),
    command("DOWNSTREAM_PEER_CERT_V_END", false, false, |p, _| {
        time(TimeOf::Certificate(|info| info.connection.tls.as_ref()?.peer()?.valid_until), p)
    }),
    command("DOWNSTREAM_PEER_CERT_V_START", false, false, |p, _| {
        time(TimeOf::Certificate(|info| info.connection.tls.as_ref()?.peer()?.valid_from), p)
    }),
    command("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", false, false, |p, _| host(fields::remote, p)),
    command("DYNAMIC_METADATA", true, true, |p, n| Ok(metadata(MetadataOf::Dynamic, p, n))),
    command("EMIT_TIME", false, false, |p, _| time(TimeOf::Emit, p)),
    command("EMIT_TIME_LOCAL", false, false, |p, _| local_time(TimeOf::Emit, p)),
    command("ENVIRONMENT", true, true, environment),
    command("FILTER_STATE", false, true, |p, n| filter_state(StateOf::Stream, p, n)),
    command("GRPC_STATUS", false, false, |p, _| grpc_status(p)),
    command("METADATA", false, true, any_metadata),
    command("PATH", false, true, path),
    command("QUERY_PARAM", true, true, |p, length| Ok(Operator::QueryParameter { name: p.to_owned(), length })),
    command("QUERY_PARAMS", false, true, query_params),
    command("REQ", true, true, |p, n| header(HeadersOf::Request, p, n, false)),
    command("REQUESTED_SERVER_NAME", false, false, |p, _| server_name(p)),
    command("REQUEST_HEADER", true, true, |p, n| header(HeadersOf::Request, p, n, false)),
    command("RESP", true, true, |p, n| header(HeadersOf::Response, p, n, false)),
    command("RESPONSE_CODE_DETAILS", false, false, |p, _| {
        Ok(Operator::ResponseCodeDetails { spaces: p == "ALLOW_WHITESPACES" })
    }),
    command("RESPONSE_HEADER", true, true, |p, n| header(HeadersOf::Response, p, n, false)),
    command("RESPONSE_TRAILER", true, true, |p, n| header(HeadersOf::ResponseTrailers, p, n, false)),
    command("START_TIME", false, false, |p, _| time(TimeOf::Start, p)),
    command("START_TIME_LOCAL", false, false, |p, _| local_time(TimeOf::Start, p)),
    command("TRAILER", true, true, |p, n| header(HeadersOf::ResponseTrailers, p, n, false)),
    command("UPSTREAM_FILTER_STATE", false, true, |p, n| filter_state(StateOf::Upstream, p, n)),
    command("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", false, false, |p, _| host(fields::upstream_local, p)),
    command("UPSTREAM_METADATA", true, false, |p, n| Ok(metadata(MetadataOf::UpstreamHost, p, n))),
    command("UPSTREAM_PEER_CERT_V_END", false, false, |p, _| {
        time(TimeOf::Certificate(|info| info.upstream.tls.as_ref()?.peer()?.valid_until), p)
    }),
    command("UPSTREAM_PEER_CERT_V_START", false, false, |p, _| {
        time(TimeOf::Certificate(|info| info.upstream.tls.as_ref()?.peer()?.valid_from), p)
    }),
    command("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", false, false, |p, _| host(fields::upstream_remote, p)),
];

fn cel(expression: &str, typed: bool, length: Option<usize>, functions: Functions) -> Result<Operator, FormatError> {
    let expression =
        Expression::compile(expression, functions).map_err(|error| FormatError::Parameter(error.to_string()))?;
    Ok(Operator::Cel { expression, typed, length })
}

fn header(
    from: HeadersOf,
    parameter: &str,
    length: Option<usize>,
    without_query: bool,
) -> Result<Operator, FormatError> {
    let mut names = parameter.split('?');
    let (name, alternative) = (names.next().unwrap_or_default(), names.next());
    if names.next().is_some() {
        let reason = format!("More than 1 alternative header specified in token: {parameter}");
        return Err(FormatError::Parameter(reason));
    }
    let key = |name: &str| {
        let plain = name.strip_prefix(':').unwrap_or(name);
        if !plain.is_empty() && http::HeaderName::from_bytes(plain.as_bytes()).is_err() {
            let reason = "Invalid header configuration. Format string contains invalid characters.";
            return Err(FormatError::Parameter(reason.to_owned()));
        }
        Ok(HeaderKey::new(name))
    };
    let alternative = alternative.filter(|name| !name.is_empty()).map(key).transpose()?;
    Ok(Operator::Header { from, name: key(name)?, alternative, without_query, length })
}

fn newline() -> FormatError {
    FormatError::Parameter("Invalid header configuration. Format string contains newline.".to_owned())
}

fn time(of: TimeOf, format: &str) -> Result<Operator, FormatError> {
    Ok(Operator::Time { of, format: TimeFormat::compile(format).ok_or_else(newline)? })
}

fn local_time(of: TimeOf, format: &str) -> Result<Operator, FormatError> {
    Ok(Operator::Time { of, format: TimeFormat::compile_local(format).ok_or_else(newline)? })
}

fn common_duration(parameter: &str) -> Result<Operator, FormatError> {
    let mut tokens = parameter.split(':');
    let (Some(from), Some(to), unit, None) = (tokens.next(), tokens.next(), tokens.next(), tokens.next()) else {
        return Err(FormatError::Parameter(format!("Invalid common duration configuration: {parameter}.")));
    };
    let unit = match unit {
        None | Some("ms") => DurationUnit::Milliseconds,
        Some("us") => DurationUnit::Microseconds,
        Some("ns") => DurationUnit::Nanoseconds,
        Some(unit) => return Err(FormatError::Parameter(format!("Invalid common duration precision: {unit}."))),
    };
    Ok(Operator::CommonDuration { from: point(from), to: point(to), unit })
}

fn point(name: &str) -> Point {
    match name {
        "DS_RX_BEG" => |info| Some(info.start),
        "DS_RX_END" => |info| info.timings.last_downstream_rx,
        "DS_CX_BEG" => |info| Some(info.connection.start),
        "US_CX_BEG" => |info| info.timings.upstream_connect_start,
        "US_CX_END" => |info| info.timings.upstream_connect_complete,
        "US_TX_BEG" => |info| info.timings.first_upstream_tx,
        "US_TX_END" => |info| info.timings.last_upstream_tx,
        "US_RX_BEG" => |info| info.timings.first_upstream_rx,
        "US_RX_END" => |info| info.timings.last_upstream_rx,
        "DS_TX_BEG" => |info| info.timings.first_downstream_tx,
        "DS_TX_END" => |info| info.timings.last_downstream_tx,
        "US_HS_END" => |info| Some(info.upstream.tls.as_ref()?.handshake_complete),
        "US_RX_BODY_BEG" => {
            Costly::BodyBegin.ask_for();
            |info| info.upstream.body_began.as_ref()?.get().copied()
        }
        "DS_CX_END" => |info| info.timings.downstream_end,
        // A point that a filter sets under a name of its own; none does.
        _ => |_| None,
    }
}

/// What is no number masks nothing, as in Envoy.
fn host(of: AddressOf, parameter: &str) -> Result<Operator, FormatError> {
    let prefix = parameter.parse::<u32>().ok().map(|prefix| u8::try_from(prefix).unwrap_or(u8::MAX));
    Ok(Operator::Host { of, prefix })
}

fn metadata(of: MetadataOf, parameter: &str, length: Option<usize>) -> Operator {
    let mut keys = parameter.split(':').map(str::to_owned);
    let namespace = keys.next().unwrap_or_default();
    Operator::Metadata { of, namespace, path: keys.collect(), length }
}

fn any_metadata(parameter: &str, length: Option<usize>) -> Result<Operator, FormatError> {
    let (kind, rest) = parameter.split_once(':').unwrap_or((parameter, ""));
    let of = match kind {
        "DYNAMIC" => MetadataOf::Dynamic,
        "CLUSTER" => MetadataOf::Cluster,
        "ROUTE" => MetadataOf::Route,
        "UPSTREAM_HOST" => MetadataOf::UpstreamHost,
        "LISTENER" => MetadataOf::Listener,
        "LISTENER_FILTER_CHAIN" => MetadataOf::FilterChain,
        "VIRTUAL_HOST" => MetadataOf::VirtualHost,
        _ => return Err(FormatError::Parameter(format!("{kind} is not supported type of metadata"))),
    };
    Ok(metadata(of, rest, length))
}

fn environment(name: &str, length: Option<usize>) -> Result<Operator, FormatError> {
    let value = std::env::var(name).unwrap_or_else(|_| "-".to_owned());
    let cut = &value.as_bytes()[..length.unwrap_or(value.len()).min(value.len())];
    Ok(Operator::Constant(String::from_utf8_lossy(cut).into_owned()))
}

fn filter_state(of: StateOf, parameter: &str, length: Option<usize>) -> Result<Operator, FormatError> {
    let refused = |reason: &str| Err(FormatError::Parameter(reason.to_owned()));
    let mut tokens = parameter.split(':');
    let key = tokens.next().unwrap_or_default();
    if key.is_empty() {
        return refused("Invalid filter state configuration, key cannot be empty.");
    }
    let form = match (tokens.next().unwrap_or_default(), tokens.next().unwrap_or_default()) {
        ("" | "TYPED", "") => StateForm::Typed,
        ("PLAIN", "") => StateForm::Plain,
        ("FIELD", field) if !field.is_empty() => StateForm::Field(field.to_owned()),
        ("" | "TYPED" | "PLAIN" | "FIELD", _) => {
            return refused("Invalid filter state serialize type, FIELD should be used with the field name.");
        }
        _ => return refused("Invalid filter state serialize type, only support PLAIN/TYPED/FIELD."),
    };
    Ok(Operator::FilterState { of, key: key.to_owned(), form, length })
}

fn grpc_status(form: &str) -> Result<Operator, FormatError> {
    Ok(Operator::GrpcStatus(match form {
        "" | "CAMEL_STRING" => GrpcForm::Camel,
        "SNAKE_STRING" => GrpcForm::Snake,
        "NUMBER" => GrpcForm::Number,
        _ => {
            let reason = format!("GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: {form}");
            return Err(FormatError::Parameter(reason));
        }
    }))
}

fn path(parameter: &str, length: Option<usize>) -> Result<Operator, FormatError> {
    let invalid = |option: &str, allowed: &str| {
        Err(FormatError::Parameter(format!("Invalid PATH option: '{option}', only {allowed} are allowed")))
    };
    let mut tokens = parameter.split(':');
    let query = match tokens.next() {
        None | Some("" | "WQ") => true,
        Some("NQ") => false,
        Some(option) => return invalid(option, "'WQ'/'NQ'"),
    };
    let source = match tokens.next() {
        None | Some("" | "ORIG_OR_PATH") => Source::OriginalOrCurrent,
        Some("ORIG") => Source::Original,
        Some("PATH") => Source::Current,
        Some(option) => return invalid(option, "'ORIG'/'PATH'/'ORIG_OR_PATH'"),
    };
    Ok(Operator::Path { query, source, length })
}

fn query_params(parameter: &str, length: Option<usize>) -> Result<Operator, FormatError> {
    let decoded = match parameter {
        "" | "ORIG" => false,
        "DECODED" => true,
        _ => {
            let reason = format!("Invalid QUERY_PARAMS option: '{parameter}', only 'ORIG'/'DECODED' are allowed");
            return Err(FormatError::Parameter(reason));
        }
    };
    Ok(Operator::QueryParameters { decoded, length })
}

fn server_name(parameter: &str) -> Result<Operator, FormatError> {
    let invalid = |option: &str, allowed: &str| {
        let reason = format!("Invalid REQUESTED_SERVER_NAME option: '{option}', only {allowed} are allowed");
        Err(FormatError::Parameter(reason))
    };
    let mut tokens = parameter.split(':');
    let first = match tokens.next() {
        None | Some("" | "SNI_ONLY") => ServerNameFirst::SniOnly,
        Some("SNI_FIRST") => ServerNameFirst::SniFirst,
        Some("HOST_FIRST") => ServerNameFirst::HostFirst,
        Some(option) => return invalid(option, "'SNI_ONLY'/'SNI_FIRST'/'HOST_FIRST'"),
    };
    let host = match tokens.next() {
        None | Some("" | "ORIG_OR_HOST") => Source::OriginalOrCurrent,
        Some("ORIG") => Source::Original,
        Some("HOST") => Source::Current,
        Some(option) => return invalid(option, "'ORIG_OR_HOST'/'HOST'/'ORIG'"),
    };
    Ok(Operator::ServerName { first, host })
}

fn coalesce(parameter: &str, length: Option<usize>) -> Result<Operator, FormatError> {
    use serde_json::Value as Json;
    let refused = |reason: String| FormatError::Parameter(format!("COALESCE: {reason}"));
    let config: Json = serde_json::from_str(parameter)
        .map_err(|error| refused(format!("failed to parse JSON configuration: {error}")))?;
    let operators = config
        .get("operators")
        .ok_or_else(|| refused("JSON configuration must contain 'operators' array".to_owned()))?;
    let operators = operators.as_array().ok_or_else(|| refused("'operators' must be an array".to_owned()))?;
    if operators.is_empty() {
        return Err(refused("'operators' array must not be empty".to_owned()));
    }
    let compile = |(index, entry)| {
        operand(entry).map_err(|error| refused(format!("failed to parse operator at index {index}: {error}")))
    };
    let operators = operators.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
    Ok(Operator::Coalesce { operators, length })
}

/// One operand of `%COALESCE%`: a command's name, or an object with `command`, `param` and `max_length`.
fn operand(entry: &serde_json::Value) -> Result<Operator, FormatError> {
    let refused = |reason: &str| FormatError::Parameter(reason.to_owned());
    if let Some(name) = entry.as_str() {
        return builtin(name, "", None);
    }
    let fields = entry.as_object().ok_or_else(|| {
        refused("operator entry must be either a string (command name) or an object with 'command' field")
    })?;
    let name = fields.get("command").and_then(|name| name.as_str());
    let name = name.ok_or_else(|| refused("operator object must have 'command' field"))?;
    let parameter = match fields.get("param") {
        None => "",
        Some(parameter) => parameter.as_str().ok_or_else(|| refused("'param' field must be a string"))?,
    };
    let length = match fields.get("max_length") {
        None => None,
        Some(length) => {
            let length = length.as_i64().ok_or_else(|| refused("'max_length' field must be an integer"))?;
            let positive = usize::try_from(length).ok().filter(|length| *length > 0);
            Some(positive.ok_or_else(|| refused("'max_length' must be a positive integer"))?)
        }
    };
    builtin(name, parameter, length)
}

fn builtin(name: &str, parameter: &str, length: Option<usize>) -> Result<Operator, FormatError> {
    compile(name, parameter, length, Extensions::default()).map_err(|error| match error {
        FormatError::UnknownOperator(name) => FormatError::Parameter(format!("unknown command: '{name}'")),
        error => error,
    })
}

/// The system's host name, `-` where it cannot be told.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "-".to_owned() } else { name.to_owned() }
}
