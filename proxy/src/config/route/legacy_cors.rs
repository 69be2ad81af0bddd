//! The deprecated `cors` of virtual hosts and route actions, as the cors filter's own policy on that level.
//! It must not know what a policy does.
//!
//! Unlike in Envoy, it counts as its level's: there it comes after all of `typed_per_filter_config`.

use prost::{Message, Name};
use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::route::v3 as legacy;
use tidegate_xds::pb::envoy::config::route::v3::cors_policy::EnabledSpecifier;
use tidegate_xds::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use tidegate_xds::pb::google::protobuf::Any;

use super::Factories;
use super::overrides::Level;
use crate::http::options::CORS_NAME;

/// Adds a legacy policy to its level, unless the filter is configured there.
pub(super) fn add(
    cors: Option<&legacy::CorsPolicy>,
    level: &mut Level,
    factories: Factories<'_>,
    context: &mut CompileContext<'_>,
) -> Result<(), FieldError> {
    let Some(cors) = cors.cloned() else { return Ok(()) };
    let policy = CorsPolicy {
        allow_origin_string_match: cors.allow_origin_string_match,
        allow_methods: cors.allow_methods,
        allow_headers: cors.allow_headers,
        expose_headers: cors.expose_headers,
        max_age: cors.max_age,
        allow_credentials: cors.allow_credentials,
        filter_enabled: cors.enabled_specifier.map(|EnabledSpecifier::FilterEnabled(enabled)| enabled),
        shadow_enabled: cors.shadow_enabled,
        allow_private_network_access: cors.allow_private_network_access,
        forward_not_matching_preflights: cors.forward_not_matching_preflights,
    };
    let config =
        Any { type_url: format!("type.googleapis.com/{}", CorsPolicy::full_name()), value: policy.encode_to_vec() };
    context.within("cors", |context| level.add(CORS_NAME, &config, factories, context))
}

#[cfg(test)]
mod tests {
    use crate::config::route::testing::{chosen, get, try_table};
    use crate::http::options::CORS_NAME;

    #[test]
    fn a_legacy_policy_is_the_filters() {
        let cors = "cors: {allow_origin_string_match: [{exact: a}]}";
        let text = format!(
            "virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /r}}, route: {{cluster: c, {cors}}}}}, \
             {{match: {{prefix: /}}, route: {{cluster: c}}}}]}}]"
        );
        let registry = crate::config::registry::Registry::built_in();
        let (table, _) = try_table(&text, &|url| registry.route_override(url)).unwrap();
        assert!(chosen(&table, &get("/r", &[])).override_of(CORS_NAME).is_some());
        assert!(chosen(&table, &get("/", &[])).override_of(CORS_NAME).is_none());
    }
}
