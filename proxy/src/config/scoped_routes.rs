//! `ScopedRoutes` -> [`ScopedRoutes`], its scopes in line or to be discovered (SRDS), and a discovered scope -> what it leads to.
//! It must not know how a request's key is looked up, nor how scopes come.

use std::sync::Arc;

use tidegate_filters::context::{CompileContext, ScopesSubscription};
use tidegate_filters::http::HeaderKey;
use tidegate_xds::pb::envoy::config::route::v3::ScopedRouteConfiguration;
use tidegate_xds::pb::envoy::config::route::v3::scoped_route_configuration::key::fragment::Type as Fragment;
use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use tidegate_xds::{Coverage, FieldError};
use xxhash_rust::xxh64::xxh64;

use super::sources::config_source;
use super::{Compiler, RouteOrigin};
use crate::route::{Extract, HeaderFragment, InlineScopes, RouteTable, ScopeKey, ScopedRoutes, Scopes, scope_key};
use proto::scoped_routes::ConfigSpecifier;
use proto::scoped_routes::scope_key_builder::fragment_builder::header_value_extractor::ExtractType;
use proto::scoped_routes::scope_key_builder::fragment_builder::{HeaderValueExtractor, Type};

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes",
        enforced: &["name", "scope_key_builder", "scoped_route_configurations_list", "scoped_rds", "rds_config_source"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRds",
        enforced: &["scoped_rds_config_source"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder",
        enforced: &["fragments"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder",
        enforced: &["header_value_extractor"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor",
        enforced: &["name", "element_separator", "index", "element"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor.KvElement",
        enforced: &["separator", "key"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRouteConfigurationsList",
        enforced: &["scoped_route_configurations"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.ScopedRouteConfiguration",
        enforced: &["name", "route_configuration_name", "route_configuration", "key", "on_demand"],
        listed: &[],
    },
    Coverage { message: "envoy.config.route.v3.ScopedRouteConfiguration.Key", enforced: &["fragments"], listed: &[] },
    Coverage {
        message: "envoy.config.route.v3.ScopedRouteConfiguration.Key.Fragment",
        enforced: &["string_key"],
        listed: &[],
    },
];

/// Compiles scoped routes.
pub(super) fn compile(
    compiler: &Compiler,
    proto: &proto::ScopedRoutes,
    context: &mut CompileContext<'_>,
) -> Result<ScopedRoutes, FieldError> {
    let scopes = match &proto.config_specifier {
        Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
            Scopes::Inline(inline(compiler, &list.scoped_route_configurations, context)?)
        }
        Some(ConfigSpecifier::ScopedRds(scoped)) => Scopes::Discovered(subscribe(compiler, proto, scoped, context)?),
        None => return Err(context.error("a scoped_route_configurations_list or scoped_rds is required")),
    };
    let builders = proto.scope_key_builder.as_ref().map_or(&[][..], |builder| &builder.fragments);
    let mut fragments = Vec::with_capacity(builders.len());
    for (index, builder) in builders.iter().enumerate() {
        fragments.push(context.within_item("scope_key_builder.fragments", index, |context| {
            let Some(Type::HeaderValueExtractor(extractor)) = &builder.r#type else {
                return Err(context.error("a header_value_extractor is required"));
            };
            context.within("header_value_extractor", |context| fragment(extractor, context))
        })?);
    }
    Ok(ScopedRoutes { fragments, scopes })
}

/// Scopes that stand in line.
fn inline(
    compiler: &Compiler,
    list: &[ScopedRouteConfiguration],
    context: &mut CompileContext<'_>,
) -> Result<InlineScopes, FieldError> {
    let mut tables = InlineScopes::default();
    // A scope takes the place of an earlier one of its name, as in Envoy.
    let replaced = |index: usize| list[index + 1..].iter().any(|later| later.name == list[index].name);
    for (index, scope) in list.iter().enumerate() {
        let at = "scoped_route_configurations_list.scoped_route_configurations";
        let table = context.within_item(at, index, |context| table(compiler, scope, context))?;
        if !replaced(index) {
            // Of two with one key the last counts, as in Envoy.
            tables.insert(Box::from(&*key(scope)), Arc::new(table));
        }
    }
    Ok(tables)
}

/// The key of a scope.
pub(crate) fn key(scope: &ScopedRouteConfiguration) -> ScopeKey {
    let fragments = scope.key.as_ref().map_or(&[][..], |key| &key.fragments);
    scope_key(fragments.iter().map(|fragment| match &fragment.r#type {
        Some(Fragment::StringKey(text)) => text.as_str(),
        None => "",
    }))
}

/// Notes where scopes come from; returns what tells that source from others. Whoever has the same shares its scopes, as in
/// Envoy, whatever they are called.
fn subscribe(
    compiler: &Compiler,
    proto: &proto::ScopedRoutes,
    scoped: &proto::ScopedRds,
    context: &mut CompileContext<'_>,
) -> Result<Arc<str>, FieldError> {
    let Some(source) = &scoped.scoped_rds_config_source else {
        return Err(context.error_at("scoped_rds.scoped_rds_config_source", "a config source is required"));
    };
    let source = context.within("scoped_rds", |context| {
        context.within("scoped_rds_config_source", |context| config_source(source, &compiler.known, context))
    })?;
    let routes = match &proto.rds_config_source {
        Some(source) => {
            Some(context.within("rds_config_source", |context| config_source(source, &compiler.known, context))?)
        }
        None => None,
    };
    let id = format!("{:016x}", xxh64(format!("{:?}", source.clone().without_wait()).as_bytes(), 0));
    let subscription = ScopesSubscription {
        name: proto.name.clone(),
        source,
        routes,
        stats_prefix: context.stats.prefix().to_owned(),
    };
    let shared = Arc::from(id.as_str());
    context.needs.scopes.insert(id, subscription);
    Ok(shared)
}

/// What a discovered scope leads to.
pub(crate) enum Leads {
    Inline(RouteTable),
    Named(Arc<str>),
}

/// Compiles a discovered scope. Its own route configuration goes before one that it names, as in Envoy.
///
/// # Errors
/// A scope that has neither, and what is wrong with its own.
pub(crate) fn leads_to(
    compiler: &Compiler,
    scope: &ScopedRouteConfiguration,
    context: &mut CompileContext<'_>,
) -> Result<Leads, FieldError> {
    match &scope.route_configuration {
        Some(routes) => context.within("route_configuration", |context| {
            compiler.route_table(routes, RouteOrigin::Inline, context).map(Leads::Inline)
        }),
        None if scope.route_configuration_name.is_empty() => {
            Err(FieldError::new(context.path.clone(), "route_configuration_name is empty."))
        }
        None => Ok(Leads::Named(scope.route_configuration_name.as_str().into())),
    }
}

fn fragment(proto: &HeaderValueExtractor, context: &CompileContext<'_>) -> Result<HeaderFragment, FieldError> {
    let extract = match &proto.extract_type {
        Some(ExtractType::Index(index)) if *index > 0 && proto.element_separator.is_empty() => {
            return Err(context.error_at("index", "an index over 0 needs an element_separator"));
        }
        Some(ExtractType::Index(index)) => Extract::Index(*index as usize),
        Some(ExtractType::Element(element)) => {
            Extract::Element { separator: element.separator.as_bytes().into(), key: element.key.as_bytes().into() }
        }
        None => return Err(context.error("an index or an element is required")),
    };
    let element_separator = proto.element_separator.as_bytes().into();
    Ok(HeaderFragment { header: HeaderKey::new(&proto.name), element_separator, extract })
}

fn table(
    compiler: &Compiler,
    scope: &ScopedRouteConfiguration,
    context: &mut CompileContext<'_>,
) -> Result<RouteTable, FieldError> {
    if !scope.route_configuration_name.is_empty() {
        let reason = "a scope that stands in line cannot name a route configuration to be discovered";
        return Err(context.error_at("route_configuration_name", reason));
    }
    let Some(routes) = &scope.route_configuration else {
        return Err(context.error_at("route_configuration", "a scope that stands in line needs one"));
    };
    context.within("route_configuration", |context| compiler.route_table(routes, RouteOrigin::Inline, context))
}

#[cfg(test)]
mod tests {
    use tidegate_filters::context::{Defaults, Needs};
    use tidegate_xds::{FieldPath, Format, UnknownFields, any, decode, validate};

    use super::*;
    use crate::snapshot::Snapshot;

    const MESSAGE: &str = "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes";
    const ROUTES: &str = "route_configuration: {name: r}";

    fn compiled(builder: &str, scopes: &str) -> Result<ScopedRoutes, String> {
        let text = format!(
            "name: s\nscope_key_builder: {{fragments: [{{header_value_extractor: {{name: x, {builder}}}}}]}}\n\
             scoped_route_configurations_list: {{scoped_route_configurations: [{scopes}]}}"
        );
        let bytes = decode(MESSAGE, text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap().bytes;
        validate(MESSAGE, &bytes).unwrap();
        let compiler = Compiler {
            registry: crate::config::registry::Registry::built_in(),
            defaults: Defaults::Envoy,
            stats: tidegate_stats::Store::new().root(),
            node: super::super::Node::default(),
            known: Default::default(),
            discovered: Default::default(),
            buffer_limit_bytes: 0,
            cluster_defaults: super::super::cluster::ClusterDefaults::default(),
        };
        let mut needs = Needs::default();
        let mut context = compiler.context("r", FieldPath::root(), &mut needs);
        let proto: proto::ScopedRoutes = any::decode(&bytes, &FieldPath::root()).unwrap();
        compile(&compiler, &proto, &mut context).map_err(|error| format!("{}: {}", error.path, error.reason))
    }

    fn scope(name: &str, key: &str, rest: &str) -> String {
        format!("{{name: {name}, key: {{fragments: [{{string_key: {key}}}]}}, {rest}}}")
    }

    /// As Envoy 1.40 refuses them.
    #[test]
    fn what_cannot_stand_in_line_is_refused() {
        let refused = |builder: &str, rest: &str| compiled(builder, &scope("a", "k", rest)).err().unwrap();
        let (fragment, scopes) = (
            "scope_key_builder.fragments[0].header_value_extractor",
            "scoped_route_configurations_list.scoped_route_configurations[0]",
        );
        assert_eq!(
            refused("index: 1", ROUTES),
            format!("{fragment}.index: an index over 0 needs an element_separator")
        );
        assert_eq!(refused("", ROUTES), format!("{fragment}: an index or an element is required"));
        assert_eq!(
            refused("index: 0", "route_configuration_name: r"),
            format!(
                "{scopes}.route_configuration_name: a scope that stands in line cannot name a route configuration to be discovered"
            )
        );
        assert_eq!(
            refused("index: 0", "on_demand: true"),
            format!("{scopes}.route_configuration: a scope that stands in line needs one")
        );
    }

    #[test]
    fn the_last_scope_of_a_name_and_of_a_key_counts() {
        let named = |name: &str| format!("route_configuration: {{name: {name}}}");
        let scopes = [
            scope("a", "k", &named("first")),
            scope("b", "l", &named("replaced")),
            scope("c", "k", &named("last")),
            scope("b", "m", &named("replacing")),
        ];
        let compiled = compiled("index: 0", &scopes.join(", ")).unwrap();
        let name = |key: &'static str| {
            let empty = http::HeaderValue::from_static("");
            let mut head = tidegate_filters::http::RequestHead::new(http::Method::GET, empty.clone(), empty);
            head.headers.insert("x", http::HeaderValue::from_static(key));
            compiled.table(&head, &Snapshot::default()).map(|table| table.name().to_string())
        };
        assert_eq!((name("k").as_deref(), name("l"), name("m").as_deref()), (Some("last"), None, Some("replacing")));
    }
}
