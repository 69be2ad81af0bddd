//! Internal redirect policies. It must not know responses.

use http::StatusCode;
use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::envoy::config::route::v3::route_action::InternalRedirectAction;
use tidegate_xds::pb::envoy::config::route::v3::{InternalRedirectPolicy as PolicyProto, RouteAction};
use tidegate_xds::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use tidegate_xds::{FieldError, any};

use super::headers;
use crate::config::values::wrapped_u32;
use crate::route::{InternalRedirectPolicy, RedirectPredicate};

/// Compiles the policy, or what the deprecated fields say in its place.
#[expect(deprecated, reason = "Envoy takes internal_redirect_action and max_internal_redirects too")]
pub(super) fn compile(
    proto: &RouteAction,
    context: &mut CompileContext<'_>,
) -> Result<Option<InternalRedirectPolicy>, FieldError> {
    if let Some(proto) = &proto.internal_redirect_policy {
        return context.within("internal_redirect_policy", |context| policy(proto, context)).map(Some);
    }
    let handles = i32::from(InternalRedirectAction::HandleInternalRedirect);
    if proto.internal_redirect_action != handles {
        return Ok(None);
    }
    let max_internal_redirects = proto.max_internal_redirects;
    policy(&PolicyProto { max_internal_redirects, ..PolicyProto::default() }, context).map(Some)
}

fn policy(proto: &PolicyProto, context: &mut CompileContext<'_>) -> Result<InternalRedirectPolicy, FieldError> {
    let known = |code: &u32| matches!(code, 301 | 302 | 303 | 307 | 308);
    let codes = proto.redirect_response_codes.iter().filter(|code| known(code));
    let mut statuses: Vec<StatusCode> =
        codes.filter_map(|code| StatusCode::from_u16(u16::try_from(*code).ok()?).ok()).collect();
    if proto.redirect_response_codes.is_empty() {
        statuses.push(StatusCode::FOUND);
    }
    for (index, name) in proto.response_headers_to_copy.iter().enumerate() {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            let reason = ":-prefixed headers or host may not be specified here";
            return Err(context.within_item("response_headers_to_copy", index, |context| context.error(reason)));
        }
    }
    let predicates = proto
        .predicates
        .iter()
        .enumerate()
        .map(|(index, proto)| context.within_item("predicates", index, |context| predicate(proto, context)));
    Ok(InternalRedirectPolicy {
        max: wrapped_u32(proto.max_internal_redirects.as_ref(), 1),
        statuses,
        predicates: predicates.collect::<Result<_, _>>()?,
        cross_scheme: proto.allow_cross_scheme_redirect,
        copied_headers: headers::names("response_headers_to_copy", &proto.response_headers_to_copy, context)?,
    })
}

fn predicate(proto: &TypedExtensionConfig, context: &CompileContext<'_>) -> Result<RedirectPredicate, FieldError> {
    let Some(config) = &proto.typed_config else { return Err(context.error_at("typed_config", "is required")) };
    match any::type_name(&config.type_url) {
        Some("envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig") => {
            let config: AllowListedRoutesConfig = any::unpack(config, &context.path.clone().field("typed_config"))?;
            let names = config.allowed_route_names.iter().map(|name| name.as_str().into());
            Ok(RedirectPredicate::Allowed(names.collect()))
        }
        Some("envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig") => {
            Ok(RedirectPredicate::NotPrevious)
        }
        Some("envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig") => {
            Ok(RedirectPredicate::SafeCrossScheme)
        }
        _ => Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url))),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::route::testing::{chosen, get, route_error, routes};
    use crate::route::InternalRedirectPolicy;

    fn policy(action: &str) -> Option<InternalRedirectPolicy> {
        let table = routes(&format!("[{{match: {{prefix: /}}, route: {{cluster: c, {action}}}}}]"));
        chosen(&table, &get("/", &[])).forward().unwrap().internal_redirect.as_deref().cloned()
    }

    #[test]
    fn only_redirects_are_followed() {
        assert!(policy("").is_none());
        let statuses = |action| policy(action).unwrap().statuses;
        assert_eq!(statuses("internal_redirect_policy: {}"), [302]);
        assert_eq!(statuses("internal_redirect_policy: {redirect_response_codes: [200, 307]}"), [307]);
        let deprecated =
            policy("internal_redirect_action: HANDLE_INTERNAL_REDIRECT, max_internal_redirects: 3").unwrap();
        assert_eq!((deprecated.max, deprecated.statuses.len()), (3, 1));
        let list = "[{match: {prefix: /}, route: {cluster: c, internal_redirect_policy: {response_headers_to_copy: [a, Host]}}}]";
        assert_eq!(
            route_error(list),
            "routes[0].route.internal_redirect_policy.response_headers_to_copy[1]: :-prefixed headers or host may not be specified here"
        );
    }
}
