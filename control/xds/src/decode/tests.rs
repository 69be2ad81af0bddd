//! Each leniency of Envoy's loader, and each of its limits, as measured on Envoy 1.40.

use serde_json::{Value, json};

use crate::{Format, UnknownFields, decode, root_keys, to_json};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const NODE: &str = "envoy.config.core.v3.Node";
const EXTENSION: &str = "envoy.config.core.v3.TypedExtensionConfig";

fn yaml(message: &str, text: &str) -> Value {
    match decode(message, text.as_bytes(), Format::Yaml, UnknownFields::Reject) {
        Ok(decoded) => to_json(message, &decoded.bytes),
        Err(errors) => panic!("{text}: {}", errors[0]),
    }
}

fn errors(message: &str, text: &str) -> Vec<String> {
    match decode(message, text.as_bytes(), Format::Yaml, UnknownFields::Reject) {
        Ok(decoded) => panic!("{text}: accepted as {}", to_json(message, &decoded.bytes)),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn enums_are_names_in_any_case_or_numbers() {
    for text in ["EDS", "eds", "Eds", "3", "'3'", "0x3", "'+3'", "' 3'"] {
        assert_eq!(yaml(CLUSTER, &format!("type: {text}")), json!({"type": "EDS"}), "{text}");
    }
    assert_eq!(yaml(CLUSTER, "type: 77"), json!({"type": 77}));
    assert_eq!(
        errors(CLUSTER, "type: strict-dns"),
        ["type: unknown enum value `strict-dns`; did you mean `STRICT_DNS`? (line 1, column 7)"]
    );
    assert!(errors(CLUSTER, "type: yes")[0].contains("found the boolean true"));
}

#[test]
fn one_value_may_stand_for_a_list() {
    assert_eq!(yaml(NODE, "client_features: a"), json!({"client_features": ["a"]}));
    assert_eq!(
        yaml(NODE, "listening_addresses: {pipe: {path: a}}"),
        json!({"listening_addresses": [{"pipe": {"path": "a"}}]})
    );
    assert_eq!(yaml(NODE, "client_features: [[a, b], c]"), json!({"client_features": ["a", "b", "c"]}));
    assert_eq!(yaml(NODE, "client_features: [~]"), json!({"client_features": [""]}));
    assert_eq!(yaml(NODE, "client_features: ~"), json!({}));
}

#[test]
fn well_known_types_have_two_forms() {
    for text in ["0.25s", "{nanos: 250000000}", "{seconds: '0', nanos: 250000000}"] {
        assert_eq!(yaml(CLUSTER, &format!("connect_timeout: {text}")), json!({"connect_timeout": "0.250s"}));
    }
    for text in ["7", "'7'", "{value: 7}", "7.0", "07", "0x7"] {
        let text = format!("per_connection_buffer_limit_bytes: {text}");
        assert_eq!(yaml(CLUSTER, &text), json!({"per_connection_buffer_limit_bytes": 7}), "{text}");
    }
    assert_eq!(yaml(CLUSTER, "per_connection_buffer_limit_bytes: ~"), json!({}));
    for text in ["5", "250ms", "'5'", "[1s]"] {
        errors(CLUSTER, &format!("connect_timeout: {text}"));
    }
}

#[test]
fn strings_are_not_made_of_other_scalars() {
    for text in ["1.5", "70696e67", "3000000000", "1e3", "2001-01-01", "'15'", "\"yes\"", "! 15"] {
        assert!(yaml(NODE, &format!("id: {text}")).get("id").is_some(), "{text}");
    }
    for text in ["15", "yes", "0x10", "-5", "[a]", "{a: b}", "!!str 15"] {
        assert!(errors(NODE, &format!("id: {text}"))[0].contains("expected a string"), "{text}");
    }
}

#[test]
fn booleans_may_be_quoted() {
    for text in ["true", "on", "y", "Yes", "'true'", "'yes'", "'1'", "'T'"] {
        assert_eq!(yaml(CLUSTER, &format!("respect_dns_ttl: {text}")), json!({"respect_dns_ttl": true}), "{text}");
    }
    for text in ["1", "'on'", "''", "1.0"] {
        errors(CLUSTER, &format!("respect_dns_ttl: {text}"));
    }
}

#[test]
fn both_spellings_of_a_name_are_read() {
    assert_eq!(yaml(NODE, "{userAgentName: a, user_agent_version: b}").as_object().unwrap().len(), 2);
    assert_eq!(
        yaml(CLUSTER, "{connect_timeout: {seconds: 1}, connectTimeout: {nanos: 5}}"),
        json!({"connect_timeout": "1.000000005s"})
    );
    errors(NODE, "User_agent_name: a");
}

#[test]
fn an_any_names_its_type() {
    let expect = |text: &str, json: Value| {
        assert_eq!(yaml(EXTENSION, &format!("{{name: a, typed_config: {text}}}"))["typed_config"], json, "{text}");
    };
    expect("{}", json!({}));
    expect(
        "{'@type': x/google.protobuf.Duration, value: 1s}",
        json!({"@type": "x/google.protobuf.Duration", "value": "1s"}),
    );
    expect(
        "{id: a, '@type': x/y/envoy.config.core.v3.Node}",
        json!({"@type": "x/y/envoy.config.core.v3.Node", "id": "a"}),
    );
    expect(
        "{'@type': x/udpa.type.v1.TypedStruct, type_url: a/b, value: {a: [1, {}], b: 1.5}}",
        json!({"@type": "x/udpa.type.v1.TypedStruct", "type_url": "a/b", "value": {"a": [1, {}], "b": "1.5"}}),
    );
    for (text, reason) in [
        ("{a: 1}", "`@type` is missing"),
        ("{'@type': envoy.config.core.v3.Node}", "needs a `/`"),
        ("{'@type': /envoy.config.core.v3.Node}", "needs a `/`"),
        ("{'@type': x/foo.Bar}", "unknown type \"x/foo.Bar\""),
        ("{'@type': x/google.protobuf.Duration, val: 1s}", "only `@type` and `value`"),
        ("[]", "expected an object with `@type`"),
    ] {
        let found = errors(EXTENSION, &format!("{{name: a, typed_config: {text}}}"));
        assert!(found[0].contains(reason), "{text}: {}", found[0]);
    }
}

#[test]
fn of_a_oneof_one_member_may_be_set() {
    let found = errors(NODE, "user_agent_version: a\nuser_agent_build_version: {}\n");
    assert_eq!(
        found,
        ["user_agent_build_version: only one of `user_agent_version_type` may be set, and `user_agent_version` \
          already is (line 2, column 27)"]
    );
    assert_eq!(yaml(NODE, "{user_agent_version: a, user_agent_build_version: ~}"), json!({"user_agent_version": "a"}));
}

#[test]
fn every_error_is_reported_with_field_and_place() {
    let found = errors(
        "envoy.config.bootstrap.v3.Bootstrap",
        "static_resources:\n  clusterz: []\n  clusters:\n  - name: 15\n    type: FOO\n  - connect_timeout: 5\nadmn: {}\n",
    );
    assert_eq!(
        found,
        [
            "static_resources.clusterz: unknown field `clusterz`; did you mean `clusters`? (line 2, column 3)",
            "static_resources.clusters[0].name: expected a string, found the number 15; put it in quotes \
             (line 4, column 11)",
            "static_resources.clusters[0].type: unknown enum value `FOO` (line 5, column 11)",
            "static_resources.clusters[1].connect_timeout: expected a duration such as \"0.25s\", found the number 5 \
             (line 6, column 22)",
            "admn: unknown field `admn`; did you mean `admin`? (line 7, column 1)",
        ]
    );
}

#[test]
fn unknown_fields_may_be_left_out() {
    let text = b"{name: a, foo: {bar: [1]}, type: FOO, lb_policy: MAGLEV}";
    let decoded = decode(CLUSTER, text, Format::Yaml, UnknownFields::Collect).unwrap();
    assert_eq!(to_json(CLUSTER, &decoded.bytes), json!({"name": "a", "lb_policy": "MAGLEV"}));
    assert_eq!(decoded.unknown.len(), 2);
    assert!(decode(CLUSTER, b"{foo: 1, name: [}", Format::Yaml, UnknownFields::Collect).is_err());
}

#[test]
fn nesting_ends_at_a_hundred() {
    let nested = |levels: usize| format!("{{metadata: {{a: {}1{}}}}}", "[".repeat(levels), "]".repeat(levels));
    yaml(NODE, &nested(98));
    assert!(errors(NODE, &nested(99))[0].contains("nested too deeply"));
    errors(NODE, &nested(100_000));
}

#[test]
fn aliases_may_not_grow_without_end() {
    let mut text = "metadata:\n  a0: &a0 {x: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx}\n".to_owned();
    for level in 1..20 {
        let previous = format!("*a{}", level - 1);
        text += &format!("  a{level}: &a{level} [{}]\n", [previous.as_str(); 10].join(", "));
    }
    assert!(errors(NODE, &text).iter().any(|error| error.contains("aliases make the text too large")));
}

#[test]
fn a_document_must_be_an_object() {
    assert_eq!(errors(NODE, ""), ["the document is empty (line 1, column 1)"]);
    assert!(errors(NODE, "a")[0].contains("expected an object"));
    assert!(errors(NODE, "[]")[0].contains("expected an object"));
    assert!(decode(NODE, &[0xff], Format::Yaml, UnknownFields::Reject).is_err());
    assert!(decode("no.such.Message", b"{}", Format::Yaml, UnknownFields::Reject).is_err());
}

#[test]
fn json_numbers_are_numbers() {
    let text = br#"{"metadata": {"a": 1.5, "b": 3000000000}, 'id': "x",}"#;
    let decoded = decode(NODE, text, Format::Json, UnknownFields::Reject).unwrap();
    assert_eq!(to_json(NODE, &decoded.bytes), json!({"id": "x", "metadata": {"a": 1.5, "b": 3_000_000_000_i64}}));
    assert!(decode(NODE, br#"{"metadata": {"a": 1, "a": 2}}"#, Format::Json, UnknownFields::Reject).is_err());
    assert!(decode(NODE, br#"{"id": 1.5}"#, Format::Json, UnknownFields::Reject).is_err());
}

#[test]
fn the_keys_of_the_root_tell_what_a_text_is() {
    let keys = |text: &str| root_keys(text.as_bytes(), Format::Yaml).unwrap();
    assert_eq!(keys("resources: []\nversion_info: '1'\n"), ["resources", "version_info"]);
    assert_eq!(keys("- a\n"), [""; 0]);
    assert!(root_keys(b"{", Format::Json).is_err());
}
