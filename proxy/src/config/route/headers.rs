//! Header names, values and mutations of route messages. It must not know on which level they stand.

use http::{HeaderName, HeaderValue};
use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::HeaderValueOption;

use crate::route::HeaderMutations;

/// Compiles `request_headers_to_add` and `request_headers_to_remove`.
pub(super) fn request(
    add: &[HeaderValueOption],
    remove: &[String],
    context: &mut CompileContext<'_>,
) -> Result<HeaderMutations, FieldError> {
    HeaderMutations::compile(("request_headers_to_add", add), ("request_headers_to_remove", remove), context)
}

/// Compiles `response_headers_to_add` and `response_headers_to_remove`.
pub(super) fn response(
    add: &[HeaderValueOption],
    remove: &[String],
    context: &mut CompileContext<'_>,
) -> Result<HeaderMutations, FieldError> {
    HeaderMutations::compile(("response_headers_to_add", add), ("response_headers_to_remove", remove), context)
}

/// Compiles a list of header names.
pub(super) fn names(
    field: &str,
    names: &[String],
    context: &mut CompileContext<'_>,
) -> Result<Vec<HeaderName>, FieldError> {
    let compile = |(index, name): (usize, &String)| {
        context.within_item(field, index, |context| {
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| context.error("no header name"))
        })
    };
    names.iter().enumerate().map(compile).collect()
}

pub(super) fn name(field: &str, name: &str, context: &CompileContext<'_>) -> Result<HeaderName, FieldError> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| context.error_at(field, "no header name"))
}

/// Optional header values: an empty string is none.
pub(super) fn value(field: &str, value: &str, context: &CompileContext<'_>) -> Result<Option<HeaderValue>, FieldError> {
    if value.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_str(value).map(Some).map_err(|_| context.error_at(field, "no header value"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use crate::config::route::testing::{chosen, connection, error, get, route_error, table};
    use tidegate_filters::stream_info::StreamInfo;

    const LEVELS: &str = "
request_headers_to_add: [{header: {key: x, value: config}}, {header: {key: o, value: config}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
virtual_hosts:
- name: v
  domains: ['*']
  request_headers_to_add: [{header: {key: x, value: host}}, {header: {key: o, value: host}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
  routes:
  - match: {prefix: /}
    request_headers_to_add: [{header: {key: x, value: route}}, {header: {key: o, value: route}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
    route:
      host_rewrite_header: x
      prefix_rewrite: /n/
      weighted_clusters:
        clusters: [{name: c, weight: 1, request_headers_to_add: [{header: {key: x, value: cluster}}]}]
";

    fn finalized(text: &str) -> (Vec<String>, String, String) {
        let mut head = get("/a", &[("x", "client")]);
        let info = StreamInfo::new(Arc::new(connection()), Instant::now(), SystemTime::now());
        chosen(&table(text), &head).finalize_request(&mut head, &info, true);
        let values = head.headers.get_all("x").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
        let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
        assert_eq!((text(&head.authority), text(&head.path)), ("client".to_owned(), "/n/a".to_owned()));
        (values, text(&head.headers["o"]), text(&head.headers["x-envoy-original-path"]))
    }

    /// Reference §4, row 34, and the weighted cluster before them.
    #[test]
    fn levels_go_from_the_route_outwards_unless_the_most_specific_wins() {
        let values = |names: &str| names.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let plain = (values("client cluster route host config"), "config".to_owned(), "/a".to_owned());
        assert_eq!(finalized(LEVELS), plain);
        let specific = (values("client cluster config host route"), "route".to_owned(), "/a".to_owned());
        assert_eq!(finalized(&format!("most_specific_header_mutations_wins: true{LEVELS}")), specific);
    }

    #[test]
    fn headers_that_routing_owns_stay() {
        let route = |rest: &str| route_error(&format!("[{{match: {{prefix: /}}, route: {{cluster: c}}, {rest}}}]"));
        let modified = "routes[0].request_headers_to_add[0].header.key: :-prefixed or host headers may not be modified";
        assert_eq!(route("request_headers_to_add: [{header: {key: ':path', value: x}}]"), modified);
        assert_eq!(route("request_headers_to_add: [{header: {key: Host, value: x}}]"), modified);
        assert_eq!(
            route("response_headers_to_remove: [a, Host]"),
            "routes[0].response_headers_to_remove[1]: :-prefixed or host headers may not be modified"
        );
        assert_eq!(
            error("request_headers_to_add: [{header: {key: x}, append: true, append_action: ADD_IF_ABSENT}]"),
            "request_headers_to_add[0].append: both append and append_action are set and it's not allowed"
        );
    }
}
