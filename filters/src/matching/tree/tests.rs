//! Trees as measured on Envoy 1.40; an action is the text of a `StringValue`.

use std::time::Instant;

use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use tidegate_xds::pb::google::protobuf::StringValue;
use tidegate_xds::pb::xds::core::v3::TypedExtensionConfig;
use tidegate_xds::{Format, UnknownFields, any, decode};

use super::*;
use crate::connection::ConnectionInfo;
use crate::http::RequestHead;
use crate::matching::testing::{error, ok};
use crate::stream_info::{Address, StreamInfo};

const HOST: &str = "type.googleapis.com/";

fn proto(matcher: &Value) -> pb::Matcher {
    let text = matcher.to_string();
    let decoded = decode("xds.type.matcher.v3.Matcher", text.as_bytes(), Format::Json, UnknownFields::Reject).unwrap();
    any::decode(&decoded.bytes, &tidegate_xds::FieldPath::root()).unwrap()
}

fn text(action: &TypedExtensionConfig, context: &mut CompileContext<'_>) -> Result<String, FieldError> {
    let value: StringValue = any::unpack(&action.typed_config.clone().unwrap_or_default(), &context.path)?;
    Ok(value.value)
}

fn compiled(matcher: &Value, inputs: Inputs) -> Matcher<String> {
    ok(|c| Matcher::compile(&proto(matcher), inputs, c, &mut text))
}

fn act(name: &str) -> Value {
    json!({"action": {"name": "a", "typed_config": {"@type": format!("{HOST}google.protobuf.StringValue"), "value": name}}})
}

fn input(name: &str, fields: &Value) -> Value {
    let mut config = fields.clone();
    config["@type"] = json!(format!("{HOST}{name}"));
    json!({"name": "i", "typed_config": config})
}

fn header(name: &str) -> Value {
    input("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", &json!({"header_name": name}))
}

fn network(name: &str) -> Value {
    input(&format!("envoy.extensions.matching.common_inputs.network.v3.{name}"), &json!({}))
}

fn single(input: &Value, value_match: &Value) -> Value {
    json!({"single_predicate": {"input": input, "value_match": value_match}})
}

fn custom(input: &Value, config: &Value) -> Value {
    json!({"single_predicate": {"input": input, "custom_match": {"name": "c", "typed_config": config}}})
}

const CEL: &str = "type.googleapis.com/xds.type.matcher.v3.CelMatcher";

/// Whether a field of the request has this value.
fn equals(field: &str, value: &str) -> Value {
    let field = json!({"select_expr": {"operand": {"ident_expr": {"name": "request"}}, "field": field}});
    let args = json!([field, {"const_expr": {"string_value": value}}]);
    json!({"expr": {"call_expr": {"function": "_==_", "args": args}}})
}

fn expression(field: &str, value: &str) -> Value {
    json!({"@type": CEL, "expr_match": {"cel_expr_parsed": equals(field, value)}})
}

fn is(value: &str) -> Value {
    single(&header("x"), &json!({"exact": value}))
}

fn starts(value: &str) -> Value {
    single(&header("x"), &json!({"prefix": value}))
}

fn list(items: &[(Value, Value)]) -> Value {
    let items: Vec<_> = items.iter().map(|(p, on_match)| json!({"predicate": p, "on_match": on_match})).collect();
    json!({"matcher_list": {"matchers": items}, "on_no_match": act("none")})
}

/// Matches only requests with `y: q`.
fn inner() -> Value {
    let matchers = json!([{"predicate": single(&header("y"), &json!({"exact": "q"})), "on_match": act("in")}]);
    json!({"matcher": {"matcher_list": {"matchers": matchers}}})
}

fn tree(kind: &str, branches: &Value) -> Value {
    json!({"matcher_tree": {"input": header("x"), kind: branches}, "on_no_match": act("none")})
}

/// The action for each request, which is its `x` and `y` headers.
fn found(matcher: &Value, requests: &[&[(&str, &str)]]) -> Vec<String> {
    let matcher = compiled(matcher, Inputs::RouteTable);
    let address = Address::Ip("127.0.0.1:1".parse().unwrap());
    let connection = ConnectionInfo::new(1, address.clone(), address, Instant::now());
    let info = StreamInfo::new(connection.into(), Instant::now(), std::time::SystemTime::UNIX_EPOCH);
    let one = |headers: &&[(&str, &str)]| {
        let mut head = RequestHead::new(Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/"));
        for (name, value) in *headers {
            head.headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        match matcher.matches(&MatchData::of_request(&info, &head)) {
            Outcome::Action(action) => action.clone(),
            Outcome::NoMatch => "404".to_owned(),
            Outcome::NotYet => "not yet".to_owned(),
        }
    };
    requests.iter().map(one).collect()
}

#[test]
fn a_list_goes_on_where_a_nested_matcher_finds_nothing() {
    let matcher = list(&[(is("a"), inner()), (starts("a"), act("second"))]);
    let requests: [&[_]; 4] = [&[("x", "a")], &[("x", "ab")], &[("x", "b")], &[("x", "a"), ("y", "q")]];
    assert_eq!(found(&matcher, &requests), ["second", "second", "none", "in"]);
}

#[test]
fn repeated_headers_are_joined() {
    let matcher = list(&[(is("a,b"), act("joined")), (is("a"), act("a"))]);
    assert_eq!(found(&matcher, &[&[("x", "a")], &[("x", "a"), ("x", "b")]]), ["a", "joined"]);
}

#[test]
fn predicates_combine() {
    let not = json!({"not_matcher": is("a")});
    assert_eq!(found(&list(&[(not, act("not"))]), &[&[("x", "a")], &[("x", "b")], &[]]), ["none", "not", "not"]);
    let ends = single(&header("x"), &json!({"suffix": "z"}));
    let and = json!({"and_matcher": {"predicate": [starts("a"), ends]}});
    let or = json!({"or_matcher": {"predicate": [is("1"), is("2")]}});
    let matcher = list(&[(and, act("and")), (or, act("or"))]);
    assert_eq!(found(&matcher, &[&[("x", "abz")], &[("x", "ab")], &[("x", "2")]]), ["and", "none", "or"]);
}

#[test]
fn maps_match_exactly_or_by_the_longest_prefix_that_leads_somewhere() {
    let exact = tree("exact_match_map", &json!({"map": {"a": inner(), "b": act("b")}}));
    let requests: [&[_]; 4] = [&[("x", "a")], &[("x", "b")], &[("x", "c")], &[]];
    assert_eq!(found(&exact, &requests), ["none", "b", "none", "none"]);
    let prefix = tree("prefix_match_map", &json!({"map": {"a": act("a"), "ab": inner(), "": act("empty")}}));
    let requests: [&[_]; 5] = [&[("x", "a")], &[("x", "abz")], &[("x", "abz"), ("y", "q")], &[("x", "z")], &[]];
    assert_eq!(found(&prefix, &requests), ["a", "a", "in", "empty", "none"]);
}

#[test]
fn addresses_match_the_longest_range_that_leads_somewhere() {
    let range = |address: &str, length: u32, on_match: &Value, exclusive: bool| {
        let ranges = json!([{"address_prefix": address, "prefix_len": length}]);
        json!({"ranges": ranges, "on_match": on_match, "exclusive": exclusive})
    };
    let ip = |ranges: &[Value]| {
        let config = json!({"@type": format!("{HOST}xds.type.matcher.v3.IPMatcher"), "range_matchers": ranges});
        tree("custom_match", &json!({"name": "ip", "typed_config": config}))
    };
    let matcher = ip(&[
        range("10.0.0.0", 8, &act("8"), false),
        range("10.1.0.0", 16, &act("16"), false),
        range("10.2.0.0", 16, &inner(), false),
        range("10.0.0.0", 8, &act("8b"), false),
    ]);
    let requests: [&[_]; 6] =
        [&[("x", "10.9.9.9")], &[("x", "10.1.1.1")], &[("x", "10.2.2.2")], &[("x", "1.1.1.1")], &[("x", "zz")], &[]];
    assert_eq!(found(&matcher, &requests), ["8", "16", "8", "none", "none", "none"]);
    let exclusive = ip(&[range("10.0.0.0", 8, &act("8"), true), range("10.2.0.0", 16, &inner(), false)]);
    assert_eq!(found(&exclusive, &[&[("x", "10.9.9.9")], &[("x", "10.2.2.2")]]), ["8", "none"]);
}

#[test]
fn server_names_match_exactly_then_by_their_parents() {
    let domain = |domain: &str, on_match: &Value| json!({"domains": [domain], "on_match": on_match});
    let config = json!({
        "@type": format!("{HOST}xds.type.matcher.v3.ServerNameMatcher"),
        "domain_matchers": [
            domain("a.com", &act("exact")), domain("*.a.com", &act("*.a.com")), domain("*.b.a.com", &inner()),
            domain("*", &act("*")),
        ],
    });
    let matcher = tree("custom_match", &json!({"name": "sn", "typed_config": config}));
    let requests: [&[_]; 7] = [
        &[("x", "a.com")],
        &[("x", "x.a.com")],
        &[("x", "x.b.a.com")],
        &[("x", "b.a.com")],
        &[("x", "A.COM")],
        &[],
        &[("x", "")],
    ];
    assert_eq!(found(&matcher, &requests), ["exact", "*.a.com", "*.a.com", "*.a.com", "*", "none", "none"]);
}

#[test]
fn a_connection_is_matched_by_what_is_known_of_it() {
    let address = |text: &str| Address::Ip(text.parse().unwrap());
    let mut connection = ConnectionInfo::new(1, address("127.0.0.1:4000"), address("10.0.0.1:443"), Instant::now());
    let matches = |name: &str, value: &str, connection: &ConnectionInfo| {
        let matcher = list(&[(single(&network(name), &json!({"exact": value})), act("yes"))]);
        let matcher = compiled(&matcher, Inputs::Network);
        matcher.matches(&MatchData::of_connection(connection)) == Outcome::Action(&"yes".to_owned())
    };
    for (name, value, expected) in [
        ("SourceIPInput", "127.0.0.1", true),
        ("DirectSourceIPInput", "127.0.0.1", true),
        ("SourcePortInput", "4000", true),
        ("DestinationIPInput", "10.0.0.1", true),
        ("DestinationPortInput", "443", true),
        ("SourceTypeInput", "local", true),
        ("ServerNameInput", "", false),
        ("TransportProtocolInput", "raw_buffer", true),
        ("ApplicationProtocolInput", "", false),
    ] {
        assert_eq!(matches(name, value, &connection), expected, "{name}");
    }
    connection.application_protocols = vec!["h2".into(), "http/1.1".into()];
    connection.requested_server_name = Some("a.com".into());
    connection.transport_protocol = "tls".into();
    assert!(matches("ApplicationProtocolInput", "'h2','http/1.1'", &connection));
    assert!(matches("ServerNameInput", "a.com", &connection));
    assert!(matches("TransportProtocolInput", "tls", &connection));
}

#[test]
fn what_has_not_come_yet_decides_nothing() {
    let status = input("envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput", &json!({}));
    let matcher = list(&[(json!({"not_matcher": single(&status, &json!({"exact": "200"}))}), act("yes"))]);
    let matcher = compiled(&matcher, Inputs::Http);
    let address = Address::Pipe("@x".into());
    let connection = ConnectionInfo::new(1, address.clone(), address, Instant::now());
    let data = MatchData::of_connection(&connection);
    assert_eq!(matcher.matches(&data), Outcome::NotYet);
    let response = crate::http::ResponseHead::new(http::StatusCode::NOT_FOUND);
    let data = MatchData { response: Some(&response), ..data };
    assert_eq!(matcher.matches(&data), Outcome::Action(&"yes".to_owned()));
}

#[test]
fn what_may_not_stand_here_is_refused_at_its_field() {
    let refused = |matcher: &Value, inputs| error(|c| Matcher::compile(&proto(matcher), inputs, c, &mut text));
    let at = "matcher_list.matchers[0].predicate.single_predicate.input.typed_config: ";
    let by_port = list(&[(single(&network("SourcePortInput"), &json!({"exact": "1"})), act("a"))]);
    assert_eq!(
        refused(&by_port, Inputs::RouteTable),
        format!(
            "{at}this input cannot be matched on here: {HOST}envoy.extensions.matching.common_inputs.network.v3.SourcePortInput"
        )
    );
    assert!(refused(&list(&[(is("a"), act("a"))]), Inputs::Network).starts_with(at));
    let cel = input("xds.type.matcher.v3.HttpAttributesCelMatchInput", &json!({}));
    let by_cel = list(&[(single(&cel, &json!({"exact": "1"})), act("a"))]);
    assert!(refused(&by_cel, Inputs::HttpRequest).ends_with("Unsupported data input type: cel_data_input"));
    assert!(refused(&by_cel, Inputs::RouteTable).starts_with(&format!("{at}this input cannot be matched on here: ")));
    assert!(refused(&by_cel, Inputs::Network).starts_with(&format!("{at}this input cannot be matched on here: ")));
    let by_header = list(&[(custom(&header("x"), &expression("path", "/a")), act("a"))]);
    assert!(refused(&by_header, Inputs::HttpRequest).ends_with("Unsupported data input type: string"));
    let by_map = json!({"matcher_tree": {"input": cel, "exact_match_map": {"map": {"a": act("a")}}}});
    assert!(refused(&by_map, Inputs::HttpRequest).contains("currently only string type is supported in map matcher"));
    let empty = list(&[(custom(&cel, &json!({"@type": CEL, "expr_match": {"cel_expr_string": "true"}})), act("a"))]);
    assert!(refused(&empty, Inputs::HttpRequest).ends_with("failed to create an expression: CEL expression not set."));
    let mut keep = act("a");
    keep["keep_matching"] = json!(true);
    let expected = "matcher_list.matchers[0].on_match.keep_matching: keep_matching is not supported in this context";
    assert_eq!(refused(&list(&[(is("a"), keep)]), Inputs::HttpRequest), expected);
}

#[test]
fn every_action_is_visited() {
    let matcher = compiled(&list(&[(is("a"), inner()), (is("b"), act("b"))]), Inputs::RouteTable);
    assert_eq!(matcher.actions(), ["in", "b", "none"]);
    assert!(compiled(&json!({}), Inputs::RouteTable).actions().is_empty());
}

#[test]
fn expressions_look_at_the_whole_stream() {
    let attributes = input("xds.type.matcher.v3.HttpAttributesCelMatchInput", &json!({}));
    let held = |held: Value| custom(&attributes, &json!({"@type": CEL, "description": "d", "expr_match": held}));
    // A checked one goes before a parsed one.
    let both = json!({"cel_expr_checked": equals("path", "/b"), "cel_expr_parsed": equals("path", "/c")});
    let matcher = list(&[
        (custom(&attributes, &expression("path", "/a")), act("parsed")),
        (held(both), act("checked")),
        (held(json!({"parsed_expr": equals("path", "/d")})), act("older")),
        (held(json!({"checked_expr": equals("path", "/e")})), act("older still")),
    ]);
    let matcher = compiled(&matcher, Inputs::HttpRequest);
    let address = Address::Ip("127.0.0.1:1".parse().unwrap());
    let connection = ConnectionInfo::new(1, address.clone(), address, Instant::now());
    let info = StreamInfo::new(connection.into(), Instant::now(), std::time::SystemTime::UNIX_EPOCH);
    for (path, expected) in
        [("/a", "parsed"), ("/b", "checked"), ("/c", "none"), ("/d", "older"), ("/e", "older still"), ("/f", "none")]
    {
        let head = RequestHead::new(Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static(path));
        let outcome = matcher.matches(&MatchData::of_request(&info, &head));
        assert_eq!(outcome, Outcome::Action(&expected.to_owned()), "{path}");
    }
    // Before there is a stream nothing can be said.
    assert_eq!(matcher.matches(&MatchData::of_connection(&info.connection)), Outcome::NotYet);
}
