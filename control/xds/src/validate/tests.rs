//! Each kind of rule on a field of Envoy's API that has it, as measured on Envoy 1.40.

use crate::{Format, UnknownFields, decode, validate};

fn check(message: &str, text: &str) -> Vec<String> {
    let decoded = decode(message, text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap();
    match validate(message, &decoded.bytes) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ROUTE: &str = "envoy.config.route.v3.Route";
const HEADER: &str = "envoy.config.route.v3.HeaderMatcher";

#[track_caller]
fn good(message: &str, text: &str) {
    assert_eq!(check(message, text), Vec::<String>::new(), "{text}");
}

#[track_caller]
fn bad(message: &str, text: &str, expected: &str) {
    assert_eq!(check(message, text), [expected], "{text}");
}

#[test]
fn numbers_have_bounds() {
    let priority = |value| format!("{{endpoints: [{{priority: {value}}}], cluster_name: a}}");
    let message = "envoy.config.endpoint.v3.ClusterLoadAssignment";
    good(message, &priority(128));
    bad(message, &priority(129), "endpoints[0].priority: 129 must be at most 128");
    let status = |value| format!("{{match: {{prefix: /}}, direct_response: {{status: {value}}}}}");
    good(ROUTE, &status(599));
    bad(ROUTE, &status(600), "direct_response.status: 600 must be less than 600");
    bad(ROUTE, "{match: {prefix: /}, direct_response: {}}", "direct_response.status: 0 must be at least 200");
    bad("envoy.type.v3.Percent", "value: 100.5", "value: 100.5 must be at most 100");
}

#[test]
fn rules_of_wrappers_are_those_of_their_value() {
    let percent = |value| format!("{{name: a, outlier_detection: {{max_ejection_percent: {value}}}}}");
    good(CLUSTER, &percent("~"));
    good(CLUSTER, &percent("100"));
    bad(CLUSTER, &percent("101"), "outlier_detection.max_ejection_percent: 101 must be at most 100");
    bad(
        CLUSTER,
        "{name: a, least_request_lb_config: {choice_count: 0}}",
        "least_request_lb_config.choice_count: 0 must be at least 2",
    );
}

#[test]
fn strings_have_lengths_patterns_and_forms() {
    bad(CLUSTER, "{}", "name: must not be empty");
    good(HEADER, "{name: 'a b', present_match: true}");
    bad(
        HEADER,
        "{name: \"a\\nb\", present_match: true}",
        "name: \"a\\nb\" is not allowed in a header (no NUL, CR or LF)",
    );
    let prefix = |value| format!("{{match: {{path_separated_prefix: {value:?}}}, direct_response: {{status: 200}}}}");
    good(ROUTE, &prefix("/a"));
    bad(ROUTE, &prefix("/a/"), "match.path_separated_prefix: \"/a/\" must match ^[^?#]+[^?#/]$");
    let query = |name: &str| {
        format!("{{match: {{prefix: /, query_parameters: [{{name: {name}}}]}}, direct_response: {{status: 200}}}}")
    };
    good(ROUTE, &query(&"a".repeat(1024)));
    bad(ROUTE, &query(&"é".repeat(513)), "match.query_parameters[0].name: must have at most 1024 bytes, has 1026");
}

#[test]
fn messages_and_oneofs_are_required() {
    bad(ROUTE, "{direct_response: {status: 200}}", "match: is required");
    assert!(check(ROUTE, "{match: {prefix: /}}")[0].starts_with("one of `action` is required: `route`, `redirect`"));
    // `safe_regex` is required as a message, but only where it is the member that is set.
    good(ROUTE, "{match: {path: /}, direct_response: {status: 200}}");
}

#[test]
fn enums_must_be_defined() {
    bad(CLUSTER, "{name: a, dns_lookup_family: 9}", "dns_lookup_family: 9 is not one of the defined values");
    bad(CLUSTER, "{name: a, lb_policy: 4}", "lb_policy: 4 is not one of the defined values");
}

#[test]
fn durations_have_bounds_of_their_own() {
    bad(CLUSTER, "{name: a, connect_timeout: 0s}", "connect_timeout: 0s must be more than 0s");
    good(CLUSTER, "{name: a, dns_refresh_rate: 9223372035.999999999s}");
    bad(CLUSTER, "{name: a, dns_jitter: -1s}", "dns_jitter: a duration must not be negative");
    bad(
        CLUSTER,
        "{name: a, dns_jitter: 9223372036s}",
        "dns_jitter: 9223372036s is too long; the longest duration is 9223372035s",
    );
    bad(
        CLUSTER,
        "{name: a, dns_jitter: {nanos: 1000000000}}",
        "dns_jitter: 1000000000 nanoseconds are more than a second",
    );
}

#[test]
fn lists_and_maps_have_sizes_and_rules_for_their_parts() {
    bad("envoy.config.route.v3.VirtualHost", "{name: a}", "domains: must not be empty");
    bad(
        "envoy.config.route.v3.VirtualHost",
        "{name: a, domains: [a], response_headers_to_remove: [x, '']}",
        "response_headers_to_remove[1]: must not be empty",
    );
    bad(
        "xds.data.orca.v3.OrcaLoadReport",
        "{utilization: {a: 0.5, b: 1.5}}",
        "utilization[\"b\"]: 1.5 must be at most 1",
    );
}

#[test]
fn rules_hold_inside_of_an_any() {
    let text = "{name: a, transport_socket: {name: x, typed_config: {'@type': x/envoy.type.v3.Percent, value: 101}}}";
    bad(CLUSTER, text, "transport_socket.typed_config.value: 101 must be at most 100");
    let unknown = [&b"\x0a\x05x/a.B"[..0], b"\x12\x02\xff\xff"].concat();
    assert!(validate("google.protobuf.Any", &unknown).is_ok(), "nobody knows what it holds");
}

#[test]
fn what_envoy_no_longer_takes_is_refused() {
    let zipkin = "envoy.config.trace.v3.ZipkinConfig";
    bad(
        zipkin,
        "{collector_cluster: a, collector_endpoint: b}",
        "collector_endpoint_version: DEPRECATED_AND_UNAVAILABLE_DO_NOT_USE is deprecated and no longer accepted",
    );
    good(zipkin, "{collector_cluster: a, collector_endpoint: b, collector_endpoint_version: HTTP_JSON}");
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    for bytes in [&[0xff][..], &[0x08, 1], &[0x0a, 1, 0xff], &[0x0a, 200]] {
        assert!(validate(CLUSTER, bytes).is_err(), "{bytes:?}");
    }
    assert!(validate("no.such.Message", &[]).is_err());
}
