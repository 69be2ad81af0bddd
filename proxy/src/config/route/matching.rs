//! `RouteMatch`: the path condition and the criteria. It must not know the action.

use tidegate_filters::context::CompileContext;
use tidegate_filters::matching::{
    CookieMatcher, FilterStateMatcher, HeaderMatcher, MetadataMatcher, QueryParameterMatcher,
};
use tidegate_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use tidegate_xds::pb::envoy::config::route::v3::{HeaderMatcher as HeaderProto, RouteMatch as RouteMatchProto};
use tidegate_xds::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use tidegate_xds::{FieldError, any};

use crate::config::values::{runtime_fraction, wrapped_bool};
use crate::route::{Criterion, PathMatch, PathRegex, RouteMatch, Text, UriTemplate};

/// Compiles a route's `match`.
pub(super) fn compile(proto: &RouteMatchProto, context: &mut CompileContext<'_>) -> Result<RouteMatch, FieldError> {
    Ok(RouteMatch { path: path(proto, context)?, criteria: criteria(proto, context)? })
}

fn path(proto: &RouteMatchProto, context: &mut CompileContext<'_>) -> Result<PathMatch, FieldError> {
    let ignore_case = !wrapped_bool(proto.case_sensitive.as_ref(), true);
    let text = |text: &str| Text { bytes: text.as_bytes().into(), ignore_case };
    Ok(match &proto.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(text(prefix)),
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(text(path)),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => PathMatch::SeparatedPrefix(text(prefix)),
        Some(PathSpecifier::SafeRegex(regex)) => PathMatch::Regex(
            PathRegex::new(&regex.regex).map_err(|error| context.error_at("safe_regex.regex", error.to_string()))?,
        ),
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            PathMatch::Template(context.within("path_match_policy", |context| template(policy, context))?)
        }
        None => return Err(context.error("a path specifier is required")),
    })
}

fn template(policy: &TypedExtensionConfig, context: &CompileContext<'_>) -> Result<UriTemplate, FieldError> {
    let config: UriTemplateMatchConfig = extension(policy, context)?;
    UriTemplate::new(&config.path_template)
        .map_err(|error| context.error_at("typed_config.path_template", error.to_string()))
}

/// The configuration of the one extension that may stand at a place.
pub(super) fn extension<M: prost::Message + prost::Name + Default>(
    config: &TypedExtensionConfig,
    context: &CompileContext<'_>,
) -> Result<M, FieldError> {
    let Some(typed) = &config.typed_config else { return Err(context.error_at("typed_config", "is required")) };
    if any::type_name(&typed.type_url) != Some(&M::full_name()) {
        return Err(context.error_at("typed_config", format!("not supported yet: {}", typed.type_url)));
    }
    any::unpack(typed, &context.path.clone().field("typed_config"))
}

fn criteria(proto: &RouteMatchProto, context: &mut CompileContext<'_>) -> Result<Vec<Criterion>, FieldError> {
    let mut criteria = Vec::new();
    criteria.extend(proto.runtime_fraction.as_ref().map(|fraction| Criterion::Runtime(runtime_fraction(fraction))));
    criteria.extend(proto.grpc.as_ref().map(|_| Criterion::Grpc));
    criteria.extend(headers("headers", &proto.headers, context)?);
    for (index, matcher) in proto.query_parameters.iter().enumerate() {
        let compile = |context: &mut CompileContext<'_>| QueryParameterMatcher::compile(matcher, context);
        criteria.push(Criterion::Query(index, context.within_item("query_parameters", index, compile)?));
    }
    for (index, matcher) in proto.cookies.iter().enumerate() {
        let compile = |context: &mut CompileContext<'_>| CookieMatcher::compile(matcher, context);
        criteria.push(Criterion::Cookie(index, context.within_item("cookies", index, compile)?));
    }
    criteria.extend(proto.tls_context.as_ref().map(|tls| Criterion::Tls {
        presented: tls.presented.as_ref().map(|presented| presented.value),
        validated: tls.validated.as_ref().map(|validated| validated.value),
    }));
    for (index, matcher) in proto.dynamic_metadata.iter().enumerate() {
        let compile = |context: &mut CompileContext<'_>| MetadataMatcher::compile(matcher, context);
        criteria.push(Criterion::Metadata(index, context.within_item("dynamic_metadata", index, compile)?));
    }
    for (index, matcher) in proto.filter_state.iter().enumerate() {
        let compile = |context: &mut CompileContext<'_>| FilterStateMatcher::compile(matcher, context);
        criteria.push(Criterion::FilterState(index, context.within_item("filter_state", index, compile)?));
    }
    Ok(criteria)
}

/// Compiles header matchers that must all hold.
pub(super) fn headers(
    field: &str,
    matchers: &[HeaderProto],
    context: &mut CompileContext<'_>,
) -> Result<Vec<Criterion>, FieldError> {
    let compiled = HeaderMatcher::compile_all(matchers, field, context)?;
    Ok(compiled.into_iter().enumerate().map(|(index, matcher)| Criterion::Header(index, matcher)).collect())
}

#[cfg(test)]
mod tests {
    use crate::config::route::testing::{decide, get, route_error, routes};
    use crate::route::{Outcome, RouteTable};
    use http::Method;
    use tidegate_filters::http::RequestHead;

    fn one(condition: &str) -> RouteTable {
        routes(&format!("[{{match: {{{condition}}}, route: {{cluster: c}}}}]"))
    }

    fn takes(table: &RouteTable, head: &RequestHead) -> bool {
        matches!(decide(table, head), Outcome::Route(_))
    }

    /// Reference §4, rows 5 to 13: measured on Envoy 1.40.
    #[test]
    fn conditions_hold_as_envoys_do() {
        for (condition, path, headers, expected) in [
            ("path: /exact", "/exact?x", &[] as &[_], true),
            ("path: /exact", "/exact/", &[], false),
            ("path: /exact", "/EXACT", &[], false),
            ("path: /exact, case_sensitive: false", "/EXACT", &[], true),
            ("safe_regex: {regex: '/re/[0-9]+'}", "/re/12x", &[], false),
            ("safe_regex: {regex: '/re/[0-9]+'}", "/re/12?x", &[], true),
            ("path_separated_prefix: /sep", "/sepx", &[], false),
            ("path_separated_prefix: /sep", "/sep?x", &[], true),
            ("prefix: '/p?'", "/p?x", &[], false),
            ("prefix: /, headers: [{name: x, present_match: true, invert_match: true}]", "/", &[("x", "")], false),
            ("prefix: /, headers: [{name: x, range_match: {start: -5, end: 5}}]", "/", &[("x", "5")], false),
            ("prefix: /, headers: [{name: x, string_match: {exact: a}, invert_match: true}]", "/", &[], false),
            ("prefix: /, headers: [{name: x, string_match: {exact: a}}]", "/", &[("x", "b"), ("x", "a")], true),
            ("prefix: /, query_parameters: [{name: k, string_match: {exact: v}}]", "/?k=z&k=v", &[], false),
            ("prefix: /, query_parameters: [{name: k, string_match: {exact: v}}]", "/?%6b=v", &[], false),
            ("prefix: /, cookies: [{name: k, string_match: {exact: v}}]", "/", &[("cookie", "a=b; k=v")], true),
            ("prefix: /, grpc: {}", "/", &[("content-type", "application/grpc-web")], false),
            ("prefix: /, grpc: {}", "/", &[("content-type", "application/grpc+proto")], true),
            ("prefix: /, tls_context: {presented: true}", "/", &[], false),
            ("prefix: /, tls_context: {presented: false, validated: false}", "/", &[], true),
            ("prefix: /, runtime_fraction: {default_value: {numerator: 0}}", "/", &[], false),
            ("prefix: /, runtime_fraction: {default_value: {numerator: 1, denominator: MILLION}}", "/", &[], true),
            ("connect_matcher: {}", "/", &[], false),
        ] {
            assert_eq!(takes(&one(condition), &get(path, headers)), expected, "{condition} on {path} {headers:?}");
        }
    }

    #[test]
    fn a_template_matches_by_its_variables() {
        let template = "path_match_policy: {name: t, typed_config: {'@type': \
            type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: PATH}}";
        let table = one(&template.replace("PATH", "'/a/{x}/*'"));
        assert!(takes(&table, &get("/a/b/c?d", &[])) && !takes(&table, &get("/a/b", &[])));
        assert_eq!(
            route_error(&format!("[{{match: {{{}}}, route: {{cluster: c}}}}]", template.replace("PATH", "'/{a'"))),
            "routes[0].match.path_match_policy.typed_config.path_template: a brace is not closed"
        );
    }

    #[test]
    fn connect_needs_no_path() {
        let mut head = get("", &[]);
        head.method = Method::CONNECT;
        assert!(takes(&one("connect_matcher: {}"), &head) && !takes(&one("prefix: ''"), &head));
    }

    #[test]
    fn a_bad_regex_is_named() {
        let list = "[{match: {safe_regex: {regex: 'a('}}, route: {cluster: c}}]";
        assert!(route_error(list).starts_with("routes[0].match.safe_regex.regex: "), "{}", route_error(list));
    }
}
