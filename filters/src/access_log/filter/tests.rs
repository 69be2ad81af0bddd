//! Each filter as measured on Envoy 1.40.

use http::{HeaderValue, Method, StatusCode};
use pb::access_log_filter::FilterSpecifier as Specifier;
use serde_json::json;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::route::v3 as route;
use tidegate_xds::pb::envoy::r#type::matcher::v3 as matcher;
use tidegate_xds::pb::google::protobuf::BoolValue;

use super::*;
use crate::connection::ConnectionInfo;
use crate::http::RequestHead;
use crate::matching::testing::{error, ok};
use crate::runtime::Runtime;
use crate::stream_info::{Address, StreamInfo};

fn info() -> StreamInfo {
    let start = Instant::now();
    let address = Address::Pipe(Arc::from("@x"));
    let connection = ConnectionInfo::new(1, address.clone(), address, start);
    let mut info = StreamInfo::new(Arc::new(connection), start, std::time::SystemTime::UNIX_EPOCH);
    info.end = Some(start + std::time::Duration::from_millis(50));
    info
}

fn matches(specifier: &Specifier, info: &StreamInfo) -> bool {
    let proto = pb::AccessLogFilter { filter_specifier: Some(specifier.clone()) };
    ok(|c| Filter::compile(&proto, c)).matches(&FormatContext::of(info))
}

fn comparison(op: pb::comparison_filter::Op, default_value: u32) -> Option<pb::ComparisonFilter> {
    let value = Some(core::RuntimeUInt32 { default_value, runtime_key: "key".to_owned() });
    Some(pb::ComparisonFilter { op: op.into(), value })
}

#[test]
fn status_and_duration_are_compared() {
    use pb::comparison_filter::Op;
    let mut info = info();
    for (op, expected) in
        [(Op::Eq, [true, false]), (Op::Ne, [false, true]), (Op::Ge, [true, true]), (Op::Le, [true, false])]
    {
        let status = Specifier::StatusCodeFilter(pb::StatusCodeFilter { comparison: comparison(op, 200) });
        let duration = Specifier::DurationFilter(pb::DurationFilter { comparison: comparison(op, 50) });
        info.response_code = Some(StatusCode::OK);
        info.end = Some(info.start + std::time::Duration::from_millis(50));
        assert_eq!([matches(&status, &info), matches(&duration, &info)], [expected[0]; 2], "{op:?}");
        info.response_code = Some(StatusCode::NOT_FOUND);
        info.end = Some(info.start + std::time::Duration::from_millis(51));
        assert_eq!([matches(&status, &info), matches(&duration, &info)], [expected[1]; 2], "{op:?}");
    }
    info.response_code = None;
    let below = Specifier::StatusCodeFilter(pb::StatusCodeFilter { comparison: comparison(Op::Le, 0) });
    assert!(matches(&below, &info));
}

struct Set(u64);

impl Runtime for Set {
    fn integer(&self, _: &str) -> Option<u64> {
        Some(self.0)
    }
    fn double(&self, _: &str) -> Option<f64> {
        None
    }
    fn boolean(&self, _: &str) -> Option<bool> {
        None
    }
    fn string(&self, _: &str) -> Option<String> {
        None
    }
    fn fraction(&self, _: &str) -> Option<(u64, u64)> {
        None
    }
}

#[test]
fn the_runtime_samples_by_the_request_id() {
    let mut info = info();
    let percent = |numerator| Some(types::FractionalPercent { numerator, denominator: 1 });
    let filter = |percent_sampled| {
        Specifier::RuntimeFilter(pb::RuntimeFilter {
            runtime_key: "key".to_owned(),
            percent_sampled,
            use_independent_randomness: false,
        })
    };
    assert!(!matches(&filter(None), &info));
    assert!(matches(&filter(percent(10_000)), &info));
    info.request_id = Some(HeaderValue::from_static("00001000-0e5c-4635-af01-8d2fbb644578"));
    assert!(matches(&filter(percent(4097)), &info) && !matches(&filter(percent(4096)), &info));
    let proto = pb::AccessLogFilter { filter_specifier: Some(filter(percent(0))) };
    let compiled = ok(|c| Filter::compile(&proto, c));
    let holds = |runtime: &dyn Runtime| compiled.matches(&FormatContext { runtime, ..FormatContext::of(&info) });
    assert!(holds(&Set(4097)) && !holds(&Set(4096)));
}

#[test]
fn flags_log_types_and_health_checks() {
    let mut info = info();
    let flags = |names: &[&str]| {
        Specifier::ResponseFlagFilter(pb::ResponseFlagFilter { flags: names.iter().map(|n| (*n).to_owned()).collect() })
    };
    assert!(!matches(&flags(&[]), &info));
    info.flags = ResponseFlags::NO_ROUTE_FOUND;
    assert!(matches(&flags(&[]), &info) && matches(&flags(&["UF", "NR"]), &info) && !matches(&flags(&["UF"]), &info));

    let types = |types: &[i32], exclude| Specifier::LogTypeFilter(pb::LogTypeFilter { types: types.to_vec(), exclude });
    assert!(matches(&types(&[0], false), &info) && !matches(&types(&[6], false), &info));
    assert!(!matches(&types(&[], false), &info) && matches(&types(&[6], true), &info));

    let traceable = Specifier::TraceableFilter(pb::TraceableFilter {});
    assert!(!matches(&traceable, &info));
    info.traceable = true;
    assert!(matches(&traceable, &info));

    let not_health_check = Specifier::NotHealthCheckFilter(pb::NotHealthCheckFilter {});
    assert!(matches(&not_health_check, &info));
    info.health_check_request = true;
    assert!(!matches(&not_health_check, &info));
}

#[test]
fn grpc_status_is_unknown_without_one() {
    let mut info = info();
    let filter =
        |status: i32, exclude| Specifier::GrpcStatusFilter(pb::GrpcStatusFilter { statuses: vec![status], exclude });
    assert!(matches(&filter(2, false), &info) && !matches(&filter(2, true), &info));
    info.response_code = Some(StatusCode::NOT_FOUND);
    assert!(matches(&filter(12, false), &info) && matches(&filter(2, true), &info));
}

#[test]
fn metadata_that_is_not_there_is_logged_unless_told_otherwise() {
    let mut info = info();
    let value = |text: &str| {
        let match_pattern = Some(matcher::string_matcher::MatchPattern::Exact(text.to_owned()));
        let string = matcher::StringMatcher { match_pattern, ignore_case: false };
        matcher::ValueMatcher { match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(string)) }
    };
    let filter = |text: &str, invert, otherwise: Option<bool>| {
        let key = matcher::metadata_matcher::path_segment::Segment::Key("k".to_owned());
        Specifier::MetadataFilter(pb::MetadataFilter {
            matcher: Some(matcher::MetadataMatcher {
                filter: "ns".to_owned(),
                path: vec![matcher::metadata_matcher::PathSegment { segment: Some(key) }],
                value: Some(value(text)),
                invert,
            }),
            match_if_key_not_found: otherwise.map(|value| BoolValue { value }),
        })
    };
    assert!(matches(&filter("v", false, None), &info) && matches(&filter("v", true, Some(true)), &info));
    assert!(!matches(&filter("v", false, Some(false)), &info));
    let empty = Specifier::MetadataFilter(pb::MetadataFilter::default());
    assert!(matches(&empty, &info));
    info.dynamic_metadata.set("ns", json!({"k": "v"}).as_object().unwrap().clone());
    assert!(matches(&filter("v", false, Some(false)), &info) && !matches(&filter("w", true, None), &info));
}

#[test]
fn headers_and_combinations() {
    let info = info();
    let mut request = RequestHead::new(Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/"));
    let filter = |invert_match| pb::AccessLogFilter {
        filter_specifier: Some(Specifier::HeaderFilter(pb::HeaderFilter {
            header: Some(route::HeaderMatcher {
                name: "x".to_owned(),
                header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::PresentMatch(true)),
                invert_match,
                ..Default::default()
            }),
        })),
    };
    let holds = |specifier, request: Option<&RequestHead>| {
        let proto = pb::AccessLogFilter { filter_specifier: Some(specifier) };
        ok(|c| Filter::compile(&proto, c)).matches(&FormatContext { request, ..FormatContext::of(&info) })
    };
    let both = vec![filter(false), filter(true)];
    let and = Specifier::AndFilter(pb::AndFilter { filters: both.clone() });
    let or = Specifier::OrFilter(pb::OrFilter { filters: both });
    assert!(!holds(and, Some(&request)) && holds(or, Some(&request)));
    assert!(holds(filter(true).filter_specifier.unwrap(), None));
    request.headers.insert("x", HeaderValue::from_static(""));
    assert!(holds(filter(false).filter_specifier.unwrap(), Some(&request)));
}

#[test]
fn what_is_not_supported_is_refused_at_its_field() {
    let extension = Specifier::ExtensionFilter(pb::ExtensionFilter::default());
    let and = Specifier::AndFilter(pb::AndFilter {
        filters: vec![pb::AccessLogFilter { filter_specifier: Some(extension) }; 2],
    });
    let proto = pb::AccessLogFilter { filter_specifier: Some(and) };
    let expected = "and_filter.filters[0].extension_filter: a typed_config is required";
    assert_eq!(error(|c| Filter::compile(&proto, c)), expected);
}

#[test]
fn an_expression_is_compiled_or_refused_at_its_field() {
    use tidegate_xds::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
    let filter = |expression: &str| {
        let config = ExpressionFilter { expression: expression.to_owned(), ..Default::default() };
        let config_type = pb::extension_filter::ConfigType::TypedConfig(tidegate_xds::any::pack(&config));
        let extension = pb::ExtensionFilter { name: String::new(), config_type: Some(config_type) };
        pb::AccessLogFilter { filter_specifier: Some(Specifier::ExtensionFilter(extension)) }
    };
    let compiled = ok(|c| Filter::compile(&filter("response.code >= 400"), c));
    assert!(matches!(compiled, Filter::Expression(_)));
    let refused = error(|c| Filter::compile(&filter("response.code >="), c));
    assert!(refused.starts_with("extension_filter.typed_config.expression: failed to parse"), "{refused}");
}
