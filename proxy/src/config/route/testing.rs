//! Route configurations from text, as tests of this folder need them. It must not be used outside tests.

use std::time::Instant;

use http::{HeaderName, HeaderValue};
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::context::{CompileContext, Defaults, Needs};
use tidegate_filters::http::{FilterFactory, RequestHead};
use tidegate_filters::metadata::{FilterState, Metadata};
use tidegate_filters::runtime::NoRuntime;
use tidegate_filters::stream_info::Address;
use tidegate_stats::Store;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::{FieldError, FieldPath, Format, UnknownFields, any, audit, decode, validate};

use super::compile;
use crate::config::registry::Registry;
use crate::route::{Outcome, Route, RouteInput, RouteTable, route};

const MESSAGE: &str = "envoy.config.route.v3.RouteConfiguration";

/// Runs all stages on a route configuration in YAML; tells the clusters that it needs.
pub(super) fn try_table(
    text: &str,
    factories: &dyn Fn(&str) -> Option<&'static dyn FilterFactory>,
) -> Result<(RouteTable, Vec<String>), FieldError> {
    let first = |errors: Vec<FieldError>| errors.into_iter().next().unwrap();
    let decoded = decode(MESSAGE, text.as_bytes(), Format::Yaml, UnknownFields::Reject).map_err(first)?;
    validate(MESSAGE, &decoded.bytes).map_err(first)?;
    if let Some(error) = audit(MESSAGE, &decoded.bytes, Registry::built_in().coverage()).unsupported.into_iter().next()
    {
        return Err(error);
    }
    let proto: RouteConfiguration = any::decode(&decoded.bytes, &FieldPath::root())?;
    let mut needs = Needs::default();
    let mut context = CompileContext {
        resource: &proto.name,
        path: FieldPath::root(),
        defaults: Defaults::Envoy,
        stats: Store::new().root(),
        needs: &mut needs,
    };
    let table = compile(&proto, true, factories, &mut context)?;
    Ok((table, needs.clusters.into_keys().collect()))
}

pub(super) fn table(text: &str) -> RouteTable {
    try_table(text, &|_| None).map_or_else(|error| panic!("{error}\n{text}"), |(table, _)| table)
}

/// A table of one virtual host, whose routes are given as a YAML list.
pub(super) fn routes(list: &str) -> RouteTable {
    table(&format!("virtual_hosts: [{{name: v, domains: ['*'], routes: {list}}}]"))
}

/// The path and reason of a configuration that must be refused.
pub(super) fn error(text: &str) -> String {
    match try_table(text, &|_| None) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => format!("{}: {}", error.path, error.reason),
    }
}

/// The same for a list of routes; the path begins behind `virtual_hosts[0].`.
pub(super) fn route_error(list: &str) -> String {
    let error = error(&format!("virtual_hosts: [{{name: v, domains: ['*'], routes: {list}}}]"));
    error.trim_start_matches("virtual_hosts[0].").to_owned()
}

/// A GET of `path` with some headers.
pub(super) fn get(path: &str, headers: &[(&'static str, &'static str)]) -> RequestHead {
    let mut head =
        RequestHead::new(http::Method::GET, HeaderValue::from_static("h.com"), HeaderValue::from_str(path).unwrap());
    for (name, value) in headers {
        head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    head
}

pub(super) fn connection() -> ConnectionInfo {
    let address = |text: &str| Address::Ip(text.parse().unwrap());
    ConnectionInfo::new(1, address("10.0.0.1:1234"), address("10.0.0.2:80"), Instant::now())
}

/// Runs `ask` with a request's surroundings.
pub(super) fn with_input<T>(head: &RequestHead, ask: impl FnOnce(&RouteInput<'_>) -> T) -> T {
    let connection = connection();
    ask(&RouteInput {
        head,
        connection: &connection,
        remote: &connection.remote,
        metadata: &Metadata::default(),
        filter_state: &FilterState::default(),
        stream: None,
        runtime: &NoRuntime,
        random: 0,
    })
}

pub(super) fn decide(table: &RouteTable, head: &RequestHead) -> Outcome {
    with_input(head, |input| route(table, input, None))
}

/// The route that a request takes.
pub(super) fn chosen(table: &RouteTable, head: &RequestHead) -> std::sync::Arc<Route> {
    match decide(table, head) {
        Outcome::Route(route) => route,
        _ => panic!("no route for {:?}", head.path),
    }
}
