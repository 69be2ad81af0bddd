//! Every operator on a whole stream, with values as measured on Envoy 1.40.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use http::{HeaderValue, Method, StatusCode, Version};
use serde_json::json;
use tidegate_xds::pb::google::protobuf as wkt;

use super::*;
use crate::connection::tls::testing::{peer, session, uri};
use crate::connection::{ConnectionInfo, TlsInfo};
use crate::metadata::{FilterState, Metadata, Sharing, Text};
use crate::stream_info::{Address, CloseType, ResponseFlags};

mod certificates;

fn address(text: &str) -> Address {
    Address::Ip(text.parse::<SocketAddr>().unwrap())
}

fn info() -> StreamInfo {
    let start = Instant::now();
    let mut connection = ConnectionInfo::new(7, address("10.1.2.3:4000"), address("[2001:db8::1]:8080"), start);
    connection.listener_name = Arc::from("l");
    connection.requested_server_name = Some(Arc::from("sni.example"));
    let tls = peer(|params| {
        params.subject_alt_names = vec![uri("spiffe://a"), uri("spiffe://b")];
        params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    });
    connection.tls = Some(Arc::new(tls));
    let mut info = StreamInfo::new(Arc::new(connection), start, UNIX_EPOCH + Duration::from_millis(1_795_490_491_685));
    info.protocol = Some(Version::HTTP_11);
    info.response_code = Some(StatusCode::OK);
    info.details = Some("via upstream".into());
    info.flags = ResponseFlags::UPSTREAM_REQUEST_TIMEOUT | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
    info.bytes.body_received = 11;
    info.bytes.body_sent = 22;
    info.end = Some(start + Duration::from_millis(42));
    info.timings.last_downstream_rx = Some(start + Duration::from_millis(3));
    info.timings.first_upstream_rx = Some(start + Duration::from_micros(20_500));
    info.timings.last_downstream_tx = Some(start + Duration::from_millis(41));
    info.upstream.cluster = Some(Arc::from("raw"));
    info.upstream.observability_name = Some(Arc::from("alt"));
    info.upstream.host = Some(address("127.0.0.1:9000"));
    info.upstream.host_name = Some(Arc::from("host.example:9000"));
    info.upstream.transport_failure_reason = Some(Arc::from("delayed connect error: refused"));
    info.upstream.attempts = 2;
    info.route_name = Some(Arc::from("r1"));
    info.request_id = Some(HeaderValue::from_static("id-1"));
    let serde_json::Value::Object(fields) = json!({
        "k": "val\"ue", "n": 5, "f": 1.5, "b": true, "nul": null, "o": {"z": 1, "a": "x"}, "l": [1, "a", null],
    }) else {
        unreachable!()
    };
    info.dynamic_metadata.set("ns", fields.clone());
    let mut host = Metadata::default();
    host.set("envoy.lb", fields);
    info.upstream.host_metadata = Some(Arc::new(host));
    (info.bytes.fields_received, info.bytes.fields_sent) = (31, 32);
    (info.upstream.bytes.fields_received, info.upstream.bytes.fields_sent) = (33, 34);
    (info.close_type, info.upstream.close_type) = (CloseType::LocalReset, Some(CloseType::RemoteReset));
    (info.local_close_reason, info.upstream.local_close_reason) = (Some("tcp_session_idle_timeout".into()), Some("up"));
    info.route_resolution_time = Some(Duration::from_micros(12));
    info.upstream.pool_wait = Some(Duration::from_micros(3_900));
    info.upstream.body_began = Some(Arc::new((start + Duration::from_millis(21)).into()));
    info.timings.downstream_end = Some(start + Duration::from_millis(40));
    info.upstream.tls = Some(Arc::new(TlsInfo::new(session(), start + Duration::from_millis(2))));
    let mut shared = FilterState::default();
    shared.set("s", Arc::new(Text("shared".to_owned())), false, Sharing::Once);
    info.upstream.filter_state = Some(Arc::new(shared));
    info.filter_state.set("k", Arc::new(Text("stateval".to_owned())), false, Sharing::None);
    info
}

fn request() -> RequestHead {
    let path = HeaderValue::from_static("/up?q=a%20b&e");
    let mut head = RequestHead::new(Method::GET, HeaderValue::from_static("h:80"), path);
    head.headers.append("x-multi", HeaderValue::from_static("first"));
    head.headers.append("x-multi", HeaderValue::from_static("second"));
    head.headers.append("latin", HeaderValue::from_bytes(b"\xe9\"").unwrap());
    head
}

fn rendered(format: &str) -> String {
    let (info, request) = (info(), request());
    let mut response = ResponseHead::new(StatusCode::OK);
    response.headers.insert("server", HeaderValue::from_static("envoy"));
    let mut trailers = HeaderMap::new();
    trailers.insert("t", HeaderValue::from_static("trailer"));
    let context = FormatContext {
        request: Some(&request),
        response: Some(&response),
        response_trailers: Some(&trailers),
        access_log_type: AccessLogType::DownstreamEnd,
        ..FormatContext::of(&info)
    };
    let mut out = Vec::new();
    Format::compile(format).unwrap_or_else(|error| panic!("{format}: {error}")).render(&context, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn operators_print_what_envoy_prints() {
    for (format, expected) in [
        ("%REQ(:METHOD)% %REQ(host)% %REQ(:scheme)% %REQ(X-Multi)%", "GET h:80 http first"),
        ("%REQ(nope)% %REQ(nope?x-multi)% %REQ(:path):3% %REQUEST_HEADER(x-multi):99%", "- first /up first"),
        ("%RESP(server)% %RESP(:status)% %TRAILER(t)% %RESPONSE_TRAILER(x?t):2%", "envoy 200 trailer tr"),
        (
            "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%",
            concat!("HTTP/1.1 200 UT,URX ", "UpstreamRequestTimeout,UpstreamRetryLimitExceeded"),
        ),
        ("%RESPONSE_CODE_DETAILS%|%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", "via_upstream|via upstream"),
        ("%BYTES_RECEIVED% %BYTES_SENT% %DURATION%", "11 22 42"),
        ("%REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION% %REQUEST_TX_DURATION%", "3 20 20 -"),
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)% %COMMON_DURATION(US_RX_BEG:DS_RX_END:ms)%", "20500 -17"),
        ("%COMMON_DURATION(DS_RX_BEG:mine:ns)%", "-"),
        ("%START_TIME% %START_TIME(%s.%3f)%", "2026-11-24T03:21:31.685Z 1795490491.685"),
        ("%EMIT_TIME%", "2026-11-24T03:21:31.727Z"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_PORT%", "10.1.2.3:4000 4000"),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%",
            "10.1.2.3 10.1.0.0/16",
        ),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(129)% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(x)%",
            "10.1.2.3/32 10.1.2.3",
        ),
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(32)%", "[2001:db8::1]:8080 2001:db8::/32"),
        ("%DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID%%DOWNSTREAM_DIRECT_LOCAL_PORT%", "8080"),
        ("%UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_HOST%", "alt raw 127.0.0.1:9000"),
        ("%UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT%", "host.example:9000 host.example"),
        ("%UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_CONNECTION_ID%", "- - 0"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "delayed_connect_error:_refused"),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT% %ROUTE_NAME% %VIRTUAL_CLUSTER_NAME%", "2 r1 -"),
        ("%CONNECTION_ID% %STREAM_ID% %LISTENER_NAME% %FILTER_CHAIN_NAME%", "7 id-1 l -"),
        ("%DYNAMIC_METADATA(ns:k)% %DYNAMIC_METADATA(ns:n)% %DYNAMIC_METADATA(ns:b)%", "val\"ue 5 true"),
        (
            "%DYNAMIC_METADATA(ns:o)% %DYNAMIC_METADATA(ns:o:a)% %DYNAMIC_METADATA(ns:l)%",
            r#"{"a":"x","z":1} x [1,"a",null]"#,
        ),
        ("%METADATA(DYNAMIC:ns:k):2% %METADATA(DYNAMIC:ns:o):4% %METADATA(DYNAMIC:ns:nul)%", "va {\"a\" -"),
        ("%UPSTREAM_METADATA(envoy.lb:f)% %CLUSTER_METADATA(ns:k)% %METADATA(ROUTE:ns)%", "1.5 - -"),
        ("%FILTER_STATE(k)% %FILTER_STATE(k:PLAIN)% %FILTER_STATE(k:PLAIN):2%", "\"stateval\" stateval st"),
        ("%FILTER_STATE(nope:PLAIN)% %FILTER_STATE(k:FIELD:x)%", "- -"),
        ("%UPSTREAM_FILTER_STATE(s)% %UPSTREAM_FILTER_STATE(s:PLAIN):2% %UPSTREAM_FILTER_STATE(k)%", "\"shared\" sh -"),
        (
            "%DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED% %DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT% \
             %UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED% %UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT%",
            "31 32 33 34",
        ),
        ("%DOWNSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_DETECTED_CLOSE_TYPE%", "LocalReset RemoteReset"),
        ("%DOWNSTREAM_LOCAL_CLOSE_REASON% %UPSTREAM_LOCAL_CLOSE_REASON%", "tcp_session_idle_timeout up"),
        ("%ROUTE_RESOLUTION_TIME_US% %UPSTREAM_CONNECTION_POOL_READY_DURATION%", "12 3"),
        ("%COMMON_DURATION(DS_RX_BEG:US_HS_END)% %COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG)%", "2 21"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_CX_END)%", "40"),
        ("%REQUESTED_SERVER_NAME% %REQUESTED_SERVER_NAME(HOST_FIRST:HOST)%", "sni.example h:80"),
        ("%PATH% %PATH(NQ)% %PATH(NQ:ORIG)% %PATH(WQ:PATH):4%", "/up?q=a%20b&e /up - /up?"),
        ("%QUERY_PARAM(q)% %QUERY_PARAM(e)% %QUERY_PARAM(x)% %QUERY_PARAM(q):1%", "a b  - a"),
        ("%QUERY_PARAMS% %QUERY_PARAMS(DECODED)% %QUERY_PARAMS:3%", "q=a%20b&e q=a%20b&e q=a"),
        ("%GRPC_STATUS% %GRPC_STATUS_NUMBER% %TRACE_ID% %CUSTOM_FLAGS%", "- - - "),
        (
            "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN%",
            "TLSv1.3 spiffe://a,spiffe://b -",
        ),
        ("%DOWNSTREAM_PEER_CERT_V_START(%Y)% %UPSTREAM_PEER_CERT_V_END%", "1970 -"),
        ("%ACCESS_LOG_TYPE% %LOCAL_REPLY_BODY%|%%", "DownstreamEnd |%"),
        (r#"%COALESCE({"operators":["VIRTUAL_CLUSTER_NAME",{"command":"REQ","param":":authority"}]}):3%"#, "h:8"),
        (r#"%COALESCE({"operators":["VIRTUAL_CLUSTER_NAME"]})%"#, "-"),
    ] {
        assert_eq!(rendered(format), expected, "{format}");
    }
}

#[test]
fn grpc_status_comes_from_trailers_headers_or_the_http_status() {
    let info = info();
    let mut request = request();
    request.headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut trailers = HeaderMap::new();
    let show = |trailers: &HeaderMap| {
        let response_trailers = Some(trailers);
        let context = FormatContext { request: Some(&request), response_trailers, ..FormatContext::of(&info) };
        let format = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)%";
        let mut out = Vec::new();
        Format::compile(format).unwrap().render(&context, &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(show(&trailers), "Unknown UNKNOWN 2");
    for (value, expected) in [("1", "Canceled CANCELLED 1"), ("14", "Unavailable UNAVAILABLE 14"), ("99", "99 99 99")] {
        trailers.insert("grpc-status", HeaderValue::from_static(value));
        assert_eq!(show(&trailers), expected);
    }
}

#[test]
fn constants_are_known_ahead() {
    assert_eq!(Format::compile("100%%").unwrap().constant(), Some("100%"));
    assert_eq!(Format::compile("").unwrap().constant(), Some(""));
    assert!(Format::compile("%HOSTNAME%-%ENVIRONMENT(NOPE_NOPE)%").unwrap().is_constant());
    assert!(!Format::compile("%DURATION%").unwrap().is_constant());
}

/// Envoy 1.40's own words.
#[test]
fn errors_name_what_is_wrong() {
    for (format, error) in [
        ("a %FOO% b", "Not supported field in StreamInfo: FOO"),
        ("%REQ_WITHOUT_QUERY(a)%", "Not supported field in StreamInfo: REQ_WITHOUT_QUERY"),
        ("%VIRTUAL_HOST_NAME%", "Not supported field in StreamInfo: VIRTUAL_HOST_NAME"),
        ("%DURATION(a)%", "DURATION does not take any parameters or length"),
        ("%PROTOCOL:5%", "PROTOCOL does not take any parameters or length"),
        ("%REQ()%", "REQ requires parameters"),
        ("%START_TIME:5%", "START_TIME does not allow length to be specified."),
        ("%CLUSTER_METADATA(a):5%", "CLUSTER_METADATA does not allow length to be specified."),
        ("%REQ(a?b?c)%", "More than 1 alternative header specified in token: a?b?c"),
        ("%REQ(a b)%", "Invalid header configuration. Format string contains invalid characters."),
        ("%START_TIME(%n)%", "Invalid header configuration. Format string contains newline."),
        ("%COMMON_DURATION(a:b:s)%", "Invalid common duration precision: s."),
        ("%COMMON_DURATION(a)%", "Invalid common duration configuration: a."),
        ("%FILTER_STATE(k:FOO)%", "Invalid filter state serialize type, only support PLAIN/TYPED/FIELD."),
        ("%FILTER_STATE%", "Invalid filter state configuration, key cannot be empty."),
        ("%METADATA(FOO:a)%", "FOO is not supported type of metadata"),
        ("%PATH(X)%", "Invalid PATH option: 'X', only 'WQ'/'NQ' are allowed"),
        ("%GRPC_STATUS(a)%", "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: a"),
        (
            r#"%COALESCE({"operators":["FOO"]})%"#,
            "COALESCE: failed to parse operator at index 0: unknown command: 'FOO'",
        ),
    ] {
        assert_eq!(Format::compile(format).unwrap_err().to_string(), error, "{format}");
    }
}

fn structure(json: &serde_json::Value) -> wkt::Struct {
    fn value(json: &serde_json::Value) -> wkt::Value {
        use wkt::value::Kind;
        let kind = match json {
            serde_json::Value::Null => Kind::NullValue(0),
            serde_json::Value::Bool(b) => Kind::BoolValue(*b),
            serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap()),
            serde_json::Value::String(s) => Kind::StringValue(s.clone()),
            serde_json::Value::Array(a) => Kind::ListValue(wkt::ListValue { values: a.iter().map(value).collect() }),
            serde_json::Value::Object(_) => Kind::StructValue(structure(json)),
        };
        wkt::Value { kind: Some(kind) }
    }
    let fields = json.as_object().unwrap().iter().map(|(key, json)| (key.clone(), value(json)));
    wkt::Struct { fields: fields.collect() }
}

fn rendered_json(template: &serde_json::Value, omit_empty: bool) -> String {
    let (info, request) = (info(), request());
    let context = FormatContext { request: Some(&request), ..FormatContext::of(&info) };
    let template = json::JsonTemplate::compile(&structure(template), omit_empty, Extensions::default()).unwrap();
    let mut out = Vec::new();
    template.render(&context, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn json_keeps_types_sorts_keys_and_escapes() {
    let template = json!({
        "z": "%DURATION%",
        "a": {"y": "%REQ(nope)%", "b": ["%PROTOCOL%", "x%REQ(nope)%y", {"q": "%REQ(nope)%"}, "%REQ(nope)%"]},
        "num": 5, "bo": true, "n": null, "empty": "", "key\"esc": "lit", "h": "%REQ(latin)%", "h2": "x %REQ(latin)%",
        "e": {}, "el": [], "md": "%DYNAMIC_METADATA(ns:o)%", "mix": "%DURATION%%PROTOCOL%",
        "inner": {"n": {"x": "%REQ(nope)%"}}, "cut": "%DYNAMIC_METADATA(ns:n):1%", "flags": "%RESPONSE_FLAGS%",
        "host": "%DOWNSTREAM_REMOTE_ADDRESS%", "port": "%DOWNSTREAM_REMOTE_PORT%", "state": "%FILTER_STATE(k)%",
    });
    let expected = concat!(
        r#"{"a":{"b":["HTTP/1.1","x-y",{"q":null},null],"y":null},"bo":true,"cut":5,"e":{},"el":[],"empty":"","#,
        r#""flags":"UT,URX","h":"\u00e9\u0022","h2":"x \u00e9\u0022","host":"10.1.2.3:4000","inner":{"n":{"x":null}},"#,
        r#""key\"esc":"lit","md":{"a":"x","z":1},"mix":"42HTTP/1.1","n":null,"num":5,"port":4000,"state":"stateval","#,
        r#""z":42}"#
    );
    assert_eq!(rendered_json(&template, false), expected);
    let expected = concat!(
        r#"{"a":{"b":["HTTP/1.1","xy"]},"bo":true,"cut":5,"el":[],"empty":"","#,
        r#""flags":"UT,URX","h":"\u00e9\u0022","h2":"x \u00e9\u0022","host":"10.1.2.3:4000","#,
        r#""key\"esc":"lit","md":{"a":"x","z":1},"mix":"42HTTP/1.1","num":5,"port":4000,"state":"stateval","#,
        r#""z":42}"#
    );
    assert_eq!(rendered_json(&template, true), expected);
}

proptest::proptest! {
    #[test]
    fn any_format_is_a_format_or_an_error(format in "[%A-Z_():a-z0-9?{}\" ]{0,40}") {
        let info = info();
        if let Ok(format) = Format::compile(&format) {
            format.render(&FormatContext::of(&info), &mut Vec::new());
        }
    }
}

/// Every command that Envoy 1.40 takes.
const ENVOYS: &str = r#"ACCESS_LOG_TYPE BYTES_RECEIVED BYTES_RETRANSMITTED BYTES_SENT CEL(a) CLUSTER_METADATA(a) CONNECTION_ID
     CONNECTION_TERMINATION_DETAILS CUSTOM_FLAGS DOWNSTREAM_CX_RTT DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED
     DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_DIRECT_LOCAL_ADDRESS
     DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT
     DOWNSTREAM_DIRECT_LOCAL_PORT DOWNSTREAM_DIRECT_REMOTE_ADDRESS DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT
     DOWNSTREAM_DIRECT_REMOTE_PORT DOWNSTREAM_HANDSHAKE_DURATION DOWNSTREAM_HEADER_BYTES_RECEIVED
     DOWNSTREAM_HEADER_BYTES_SENT DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID
     DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_LOCAL_DNS_SAN
     DOWNSTREAM_LOCAL_EMAIL_SAN DOWNSTREAM_LOCAL_IP_SAN DOWNSTREAM_LOCAL_OTHERNAME_SAN DOWNSTREAM_LOCAL_PORT
     DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_CERT DOWNSTREAM_PEER_CERT_V_END
     DOWNSTREAM_PEER_CERT_V_START DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256
     DOWNSTREAM_PEER_CHAIN_SERIALS DOWNSTREAM_PEER_DNS_SAN DOWNSTREAM_PEER_EMAIL_SAN DOWNSTREAM_PEER_FINGERPRINT_1
     DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_IP_SAN DOWNSTREAM_PEER_ISSUER
     DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256 DOWNSTREAM_PEER_ISSUER_SERIAL DOWNSTREAM_PEER_OTHERNAME_SAN
     DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_PEER_URI_SAN DOWNSTREAM_REMOTE_ADDRESS
     DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_REMOTE_PORT DOWNSTREAM_TLS_CIPHER DOWNSTREAM_TLS_GROUP
     DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_TLS_VERSION DOWNSTREAM_TRANSPORT_FAILURE_REASON
     DOWNSTREAM_WIRE_BYTES_RECEIVED DOWNSTREAM_WIRE_BYTES_SENT DURATION DYNAMIC_METADATA(a) EMIT_TIME
     EMIT_TIME_LOCAL ENVIRONMENT(a) FILTER_CHAIN_NAME FILTER_STATE(a) GRPC_STATUS GRPC_STATUS_NUMBER HOSTNAME
     LISTENER_NAME LOCAL_REPLY_BODY PATH PROTOCOL QUERY_PARAM(a) QUERY_PARAMS REQ(a) REQUESTED_SERVER_NAME
     REQUEST_DURATION REQUEST_HEADER(a) REQUEST_HEADERS_BYTES REQUEST_TX_DURATION RESP(a) RESPONSE_CODE
     RESPONSE_CODE_DETAILS RESPONSE_DURATION RESPONSE_FLAGS RESPONSE_FLAGS_LONG RESPONSE_HEADER(a)
     RESPONSE_HEADERS_BYTES RESPONSE_TRAILER(a) RESPONSE_TRAILERS_BYTES RESPONSE_TX_DURATION ROUNDTRIP_DURATION
     ROUTE_NAME ROUTE_RESOLUTION_COUNT ROUTE_RESOLUTION_TIME_US SPAN_ID START_TIME START_TIME_LOCAL STREAM_ID
     TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT TRACE_ID TRAILER(a) TYPED_CEL(a) UNIQUE_ID UPSTREAM_CLUSTER
     UPSTREAM_CLUSTER_RAW UPSTREAM_CONNECTION_ID UPSTREAM_CONNECTION_IDS_ATTEMPTED
     UPSTREAM_CONNECTION_POOL_READY_DURATION UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED
     UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT UPSTREAM_DETECTED_CLOSE_TYPE UPSTREAM_FILTER_STATE(a)
     UPSTREAM_HEADER_BYTES_RECEIVED UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HOST UPSTREAM_HOSTS_ATTEMPTED
     UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAME UPSTREAM_HOST_NAMES_ATTEMPTED
     UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_LOCAL_ADDRESS
     UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_LOCAL_CLOSE_REASON UPSTREAM_LOCAL_DNS_SAN UPSTREAM_LOCAL_IP_SAN
     UPSTREAM_LOCAL_PORT UPSTREAM_LOCAL_URI_SAN UPSTREAM_METADATA(a) UPSTREAM_PEER_CERT UPSTREAM_PEER_CERT_V_END
     UPSTREAM_PEER_CERT_V_START UPSTREAM_PEER_DNS_SAN UPSTREAM_PEER_IP_SAN UPSTREAM_PEER_ISSUER
     UPSTREAM_PEER_SUBJECT UPSTREAM_PEER_URI_SAN UPSTREAM_PROTOCOL UPSTREAM_REMOTE_ADDRESS
     UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_PORT
     UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_SERVER_NAME UPSTREAM_TLS_CIPHER UPSTREAM_TLS_GROUP
     UPSTREAM_TLS_SESSION_ID UPSTREAM_TLS_VERSION UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_WIRE_BYTES_RECEIVED
     UPSTREAM_WIRE_BYTES_SENT VIRTUAL_CLUSTER_NAME COALESCE({"operators":["PROTOCOL"]}) METADATA(ROUTE:a)
     COMMON_DURATION(DS_RX_BEG:DS_TX_END)"#;

#[test]
fn every_command_of_envoy_is_built() {
    for command in ENVOYS.split_ascii_whitespace() {
        if let Err(error) = Format::compile(&format!("%{command}%")) {
            panic!("{command}: {error}");
        }
    }
}

#[test]
fn an_extension_lets_expressions_call_more() {
    let functions = Functions::compile(Some(&tidegate_xds::pb::envoy::config::core::v3::CelExpressionConfig {
        enable_string_functions: true,
        enable_string_concat: true,
        ..Default::default()
    }));
    let with = |format: &str, extensions| {
        let (info, request) = (info(), request());
        let context = FormatContext { request: Some(&request), ..FormatContext::of(&info) };
        let mut out = Vec::new();
        Format::with(format, extensions, "-")?.render(&context, &mut out);
        Ok::<_, FormatError>(String::from_utf8(out).unwrap())
    };
    let more = Extensions { functions, ..Extensions::default() };
    let format = "%CEL(request.method.lowerAscii())% %TYPED_CEL(request.method + 'x'):2%";
    assert_eq!(with(format, more).unwrap(), "get GE");
    assert!(with(format, Extensions::default()).is_err());
    assert_eq!(with("%CEL%", more).unwrap_err().to_string(), "CEL requires parameters");
}
