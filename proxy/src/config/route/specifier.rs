//! Cluster specifier plugins: extensions that name the cluster of a request. It must not know the route that asks.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Name;
use tidegate_filters::context::CompileContext;
use tidegate_filters::matching::{Inputs, Matcher};
use tidegate_xds::pb::envoy::config::route::v3::ClusterSpecifierPlugin;
use tidegate_xds::pb::envoy::extensions::router::cluster_specifiers::matcher::v3::{
    ClusterAction, MatcherClusterSpecifier,
};
use tidegate_xds::pb::xds::core::v3::TypedExtensionConfig;
use tidegate_xds::{FieldError, any};

use crate::route::ClusterSelector;

/// Types that Envoy has and we have not: `is_optional` is about those that nobody has.
const NOT_YET: &[&str] = &[
    "envoy.extensions.router.cluster_specifiers.lua.v3.LuaConfig",
    "envoy.extensions.router.cluster_specifiers.dynamic_modules.v3.DynamicModuleClusterSpecifierConfig",
];

/// Those of a route configuration, by name.
pub(super) type Plugins = HashMap<String, Plugin>;

/// One plugin, compiled.
pub(super) enum Plugin {
    /// `envoy.router.cluster_specifier_plugin.matcher`
    Matcher(Arc<Matcher<Arc<str>>>),
    /// Optional, and of a type that is not known: no route that asks it is taken.
    Unknown,
}

impl Plugin {
    pub(super) fn selector(&self) -> ClusterSelector {
        match self {
            Self::Matcher(tree) => ClusterSelector::Tree(Arc::clone(tree)),
            Self::Unknown => ClusterSelector::Nothing,
        }
    }
}

/// Compiles the plugins of a route configuration.
pub(super) fn compile_all(
    protos: &[ClusterSpecifierPlugin],
    context: &mut CompileContext<'_>,
) -> Result<Plugins, FieldError> {
    let mut plugins = Plugins::new();
    for (index, proto) in protos.iter().enumerate() {
        let plugin = context.within_item("cluster_specifier_plugins", index, |context| compile(proto, context))?;
        let name = proto.extension.as_ref().map(|extension| extension.name.clone()).unwrap_or_default();
        plugins.insert(name, plugin);
    }
    Ok(plugins)
}

/// Compiles one plugin.
pub(super) fn compile(proto: &ClusterSpecifierPlugin, context: &mut CompileContext<'_>) -> Result<Plugin, FieldError> {
    let config = proto.extension.as_ref().and_then(|extension| extension.typed_config.clone()).unwrap_or_default();
    context.within("extension.typed_config", |context| match any::type_name(&config.type_url) {
        Some(name) if name == MatcherClusterSpecifier::full_name() => {
            let specifier: MatcherClusterSpecifier = any::unpack(&config, &context.path)?;
            let matcher = specifier.cluster_matcher.unwrap_or_default();
            let compile =
                |context: &mut CompileContext<'_>| Matcher::compile(&matcher, Inputs::Http, context, &mut cluster);
            Ok(Plugin::Matcher(Arc::new(context.within("cluster_matcher", compile)?)))
        }
        Some(name) if proto.is_optional && !NOT_YET.contains(&name) => Ok(Plugin::Unknown),
        _ => Err(context.error(format!("not supported yet: {}", config.type_url))),
    })
}

fn cluster(action: &TypedExtensionConfig, context: &mut CompileContext<'_>) -> Result<Arc<str>, FieldError> {
    let config = action.typed_config.clone().unwrap_or_default();
    context.within("typed_config", |context| {
        if any::type_name(&config.type_url) != Some(&*ClusterAction::full_name()) {
            return Err(context.error(format!("a ClusterAction is required, found {:?}", config.type_url)));
        }
        let action: ClusterAction = any::unpack(&config, &context.path)?;
        Ok(action.cluster.into())
    })
}

#[cfg(test)]
mod tests {
    use crate::config::route::testing::{chosen, decide, error, get, table};
    use crate::route::Outcome;

    const TYPES: &str = "type.googleapis.com/envoy.extensions.router.cluster_specifiers";

    fn with(plugins: &str, action: &str) -> String {
        format!(
            "cluster_specifier_plugins: [{plugins}]\n\
             virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{{action}}}}}]}}]"
        )
    }

    fn plugin(rest: &str) -> String {
        format!("{{extension: {{name: p, typed_config: {{{rest}}}}}}}")
    }

    fn matcher() -> String {
        let input = "{name: i, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x}}";
        let action = format!(
            "{{action: {{name: a, typed_config: {{'@type': {TYPES}.matcher.v3.ClusterAction, cluster: one}}}}}}"
        );
        plugin(&format!(
            "'@type': {TYPES}.matcher.v3.MatcherClusterSpecifier, \
             cluster_matcher: {{matcher_tree: {{input: {input}, exact_match_map: {{map: {{a: {action}}}}}}}}}"
        ))
    }

    #[test]
    fn a_matcher_names_the_cluster_or_none() {
        for text in [
            with(&matcher(), "cluster_specifier_plugin: p"),
            with("", &format!("inline_cluster_specifier_plugin: {}", matcher())),
        ] {
            let table = table(&text);
            let cluster = |x| chosen(&table, &get("/", &[("x", x)])).cluster.clone().unwrap();
            assert_eq!((&*cluster("a"), &*cluster("b")), ("one", ""));
        }
    }

    #[test]
    fn what_is_not_there_is_refused_unless_it_is_optional_and_nobody_has_it() {
        let unknown = "'@type': type.googleapis.com/google.protobuf.Struct, value: {}";
        let optional = |rest: &str| plugin(rest).replacen("{extension", "{is_optional: true, extension", 1);
        let lua = format!("'@type': {TYPES}.lua.v3.LuaConfig, source_code: {{inline_string: x}}");
        let table = table(&with(&optional(unknown), "cluster_specifier_plugin: p"));
        assert!(matches!(decide(&table, &get("/", &[])), Outcome::NoRoute(_)));
        for refused in [plugin(unknown), plugin(&lua), optional(&lua)] {
            let error = error(&with(&refused, "cluster: c"));
            assert!(error.contains("not supported yet"), "{error}");
        }
        assert_eq!(
            error(&with("", "cluster_specifier_plugin: q")),
            "virtual_hosts[0].routes[0].route.cluster_specifier_plugin: there is no cluster specifier plugin 'q'"
        );
    }
}
