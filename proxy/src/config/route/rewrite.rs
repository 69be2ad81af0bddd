//! Path and host rewrites of a route. It must not know requests.

use tidegate_filters::context::CompileContext;
use tidegate_filters::format::Format;
use tidegate_filters::http::HeaderKey;
use tidegate_filters::matching::Substitution;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::envoy::config::route::v3::RouteAction;
use tidegate_xds::pb::envoy::config::route::v3::route_action::HostRewriteSpecifier;
use tidegate_xds::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;

use super::{headers, matching};
use crate::route::{HostRewrite, PathMatch, PathRewrite, UriRewrite};

/// Compiles the one path rewrite that a route may have.
pub(super) fn path(
    proto: &RouteAction,
    matched: &PathMatch,
    context: &mut CompileContext<'_>,
) -> Result<Option<PathRewrite>, FieldError> {
    let set = [
        !proto.prefix_rewrite.is_empty(),
        proto.regex_rewrite.is_some(),
        proto.path_rewrite_policy.is_some(),
        !proto.path_rewrite.is_empty(),
    ];
    if set.into_iter().filter(|set| *set).count() > 1 {
        let reason = "only one of prefix_rewrite, regex_rewrite, path_rewrite_policy and path_rewrite may be set";
        return Err(context.error(reason));
    }
    if let Some(prefix) = headers::value("prefix_rewrite", &proto.prefix_rewrite, context)? {
        if matches!(matched, PathMatch::Template(_)) {
            return Err(context.error_at("prefix_rewrite", "cannot stand with a path_match_policy"));
        }
        return Ok(Some(PathRewrite::Prefix(prefix)));
    }
    if let Some(regex) = &proto.regex_rewrite {
        let compiled = context.within("regex_rewrite", |context| Substitution::compile(regex, context))?;
        return Ok(Some(PathRewrite::Regex(compiled)));
    }
    if !proto.path_rewrite.is_empty() {
        let format = Format::compile_omitting_empty(&proto.path_rewrite);
        let format = format.map_err(|error| context.error_at("path_rewrite", error.to_string()))?;
        return Ok(Some(PathRewrite::Format(format)));
    }
    match &proto.path_rewrite_policy {
        Some(policy) => {
            let compiled = context.within("path_rewrite_policy", |context| template(policy, matched, context))?;
            Ok(Some(PathRewrite::Template(compiled)))
        }
        None => Ok(None),
    }
}

fn template(
    policy: &TypedExtensionConfig,
    matched: &PathMatch,
    context: &CompileContext<'_>,
) -> Result<UriRewrite, FieldError> {
    let config: UriTemplateRewriteConfig = matching::extension(policy, context)?;
    let PathMatch::Template(template) = matched else {
        return Err(context.error("needs a path_match_policy with a URI template"));
    };
    UriRewrite::new(&config.path_template_rewrite, template)
        .map_err(|error| context.error_at("typed_config.path_template_rewrite", error.to_string()))
}

/// Compiles the host rewrite.
pub(super) fn host(proto: &RouteAction, context: &mut CompileContext<'_>) -> Result<HostRewrite, FieldError> {
    Ok(match &proto.host_rewrite_specifier {
        None => HostRewrite::Keep,
        Some(HostRewriteSpecifier::HostRewriteLiteral(literal)) => {
            headers::value("host_rewrite_literal", literal, context)?.map_or(HostRewrite::Keep, HostRewrite::Literal)
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) if auto.value => HostRewrite::Auto,
        Some(HostRewriteSpecifier::AutoHostRewrite(_)) => HostRewrite::Keep,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) if name.is_empty() => HostRewrite::Keep,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => HostRewrite::Header(HeaderKey::new(name)),
        Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
            let compile = |context: &mut CompileContext<'_>| Substitution::compile(regex, context);
            HostRewrite::PathRegex(context.within("host_rewrite_path_regex", compile)?)
        }
        Some(HostRewriteSpecifier::HostRewrite(format)) if format.is_empty() => HostRewrite::Keep,
        Some(HostRewriteSpecifier::HostRewrite(format)) => HostRewrite::Format(
            Format::compile(format).map_err(|error| context.error_at("host_rewrite", error.to_string()))?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use crate::config::route::testing::{chosen, connection, get, route_error, routes};
    use tidegate_filters::stream_info::StreamInfo;

    fn route(condition: &str, action: &str) -> String {
        format!("[{{match: {{{condition}}}, route: {{cluster: c, {action}}}}}]")
    }

    fn template(kind: &str, rest: &str) -> String {
        format!("{{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.path.{kind}, {rest}}}}}")
    }

    /// As Envoy 1.40 rewrote them.
    #[test]
    fn formats_are_filled_from_the_request() {
        let finalized = |action: &str, headers: &[(&'static str, &'static str)]| {
            let mut head = get("/pw/x?q=1", headers);
            let info = StreamInfo::new(Arc::new(connection()), Instant::now(), SystemTime::now());
            chosen(&routes(&route("prefix: /", action)), &head).finalize_request(&mut head, &info, true);
            let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
            (text(&head.authority), text(&head.path))
        };
        let pair = |host: &str, path: &str| (host.to_owned(), path.to_owned());
        let path = "path_rewrite: '/np%REQ(x-a)%'";
        assert_eq!(finalized(path, &[("x-a", "v")]), pair("h.com", "/npv?q=1"));
        assert_eq!(finalized(path, &[]), pair("h.com", "/np?q=1"));
        assert_eq!(finalized("path_rewrite: '%REQ(x-a)%'", &[]), pair("h.com", "/pw/x?q=1"));
        let host = "host_rewrite: 'p-%REQ(x-a)%'";
        assert_eq!(finalized(host, &[("x-a", "b")]), pair("p-b", "/pw/x?q=1"));
        assert_eq!(finalized(host, &[]), pair("p--", "/pw/x?q=1"));
        assert!(
            route_error(&route("prefix: /", "path_rewrite: '%NOPE%'")).starts_with("routes[0].route.path_rewrite: ")
        );
    }

    /// As Envoy 1.40 refuses them.
    #[test]
    fn rewrites_exclude_each_other() {
        let regex = "regex_rewrite: {pattern: {regex: a}, substitution: b}";
        let one = "routes[0].route: only one of prefix_rewrite, regex_rewrite, path_rewrite_policy and path_rewrite may be set";
        assert_eq!(route_error(&route("prefix: /", &format!("{regex}, prefix_rewrite: /"))), one);
        let matched = template("match.uri_template.v3.UriTemplateMatchConfig", "path_template: '/{a}'");
        let matched = format!("path_match_policy: {matched}");
        assert_eq!(
            route_error(&route(&matched, "prefix_rewrite: /")),
            "routes[0].route.prefix_rewrite: cannot stand with a path_match_policy"
        );
        let rewrite = |to: &str| {
            let rewrite =
                template("rewrite.uri_template.v3.UriTemplateRewriteConfig", &format!("path_template_rewrite: '{to}'"));
            format!("path_rewrite_policy: {rewrite}")
        };
        routes(&route(&matched, &rewrite("/{a}/x")));
        assert_eq!(
            route_error(&route("prefix: /", &rewrite("/x"))),
            "routes[0].route.path_rewrite_policy: needs a path_match_policy with a URI template"
        );
        assert_eq!(
            route_error(&route(&matched, &rewrite("/{b}"))),
            "routes[0].route.path_rewrite_policy.typed_config.path_template_rewrite: \
             the rewrite names a variable that the template does not have"
        );
    }
}
