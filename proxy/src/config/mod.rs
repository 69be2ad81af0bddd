//! Proto -> domain: one file per resource kind, a store that keeps the last good of each, and warming.
//! No proto type leaves this module; it must not know how what it compiles is served.

pub(crate) mod admin;
pub mod bootstrap;
mod bootstrap_asking;
mod bootstrap_collections;
mod bootstrap_coverage;
mod bootstrap_values;
pub mod cluster;
pub mod coverage;
pub mod defaults;
mod discovered_filter;
pub(crate) mod extensions;
pub mod files;
pub(crate) mod grpc_services;
pub(crate) mod http_connection_manager;
mod http_coverage;
pub(crate) mod inline_routes;
pub(crate) mod listener;
mod node;
pub(crate) mod origin;
mod overload;
mod proxy_tlvs;
pub mod registry;
mod request_rules;
pub mod route;
mod router;
pub(crate) mod runtime;
mod scoped_routes;
pub(crate) mod sources;
pub(crate) mod stats;
pub(crate) mod store;
pub(crate) mod tcp_proxy;
pub(crate) mod tls;
pub(crate) mod unknown_fields;
mod upstream_filters;
pub(crate) mod values;
mod virtual_hosts;
mod warnings;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use tidegate_filters::access_log::AccessLog;
use tidegate_filters::context::{CompileContext, Defaults, Needs, RouteSubscription};
use tidegate_filters::http::header_mutations::HeaderEdits;
use tidegate_filters::http::{FilterFactory, HttpFilterConfig};
use tidegate_filters::listener::ListenerFilterConfig;
use tidegate_filters::network::NetworkFilterConfig;
use tidegate_stats::Scope;
use tidegate_xds::pb::envoy::config::accesslog::v3 as accesslog;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::route::v3 as route_proto;
use tidegate_xds::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyHeaderMutation;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, FieldPath, any};

use self::discovered_filter::DiscoveredFilters;
use self::registry::Registry;
use crate::http::local_reply::BodyFormat;
use crate::route::{HeaderMutations, RouteTable};

const EARLY_HEADER_MUTATION: &str = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation";

/// This node, as control planes and headers name it.
#[derive(Debug, Clone, Default)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    pub zone: String,
    pub region: String,
    pub sub_zone: String,
}

impl Node {
    /// What sources may refer to, with this node, and with an aggregated stream that says only what changed, or all.
    pub(crate) fn known(&self, ads: Option<bool>, primary: BTreeSet<String>) -> sources::Known {
        let node = !self.id.is_empty() && !self.cluster.is_empty();
        sources::Known { ads: ads.is_some(), ads_delta: ads == Some(true), node, primary: Arc::new(primary) }
    }
}

/// What every compile step of a process shares.
#[derive(Clone)]
pub struct Compiler {
    pub(crate) registry: &'static Registry,
    pub(crate) defaults: Defaults,
    /// The root of all stats.
    pub(crate) stats: Scope,
    pub(crate) node: Node,
    pub(crate) known: sources::Known,
    pub(crate) discovered: DiscoveredFilters,
    pub(crate) buffer_limit_bytes: usize,
    pub(crate) cluster_defaults: cluster::ClusterDefaults,
}

/// Whether clusters of a route configuration must exist by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteOrigin {
    Inline,
    Discovered,
}

impl Compiler {
    /// Secrets that contexts of TLS are made of.
    pub(crate) fn secrets(&self) -> &tls::Secrets {
        &self.cluster_defaults.tls.secrets
    }

    /// A context for one resource, at its root or at the place in the bootstrap where it stands.
    pub(crate) fn context<'a>(&self, resource: &'a str, path: FieldPath, needs: &'a mut Needs) -> CompileContext<'a> {
        CompileContext { resource, path, defaults: self.defaults, stats: self.stats.clone(), needs }
    }

    pub(crate) fn http_filter(
        &self,
        config: &Any,
        is_optional: bool,
        context: &mut CompileContext<'_>,
    ) -> Result<Option<Arc<dyn HttpFilterConfig>>, FieldError> {
        match self.registry.http_filter(&config.type_url) {
            Some(factory) => {
                context.within("typed_config", |context| factory.compile(&config.value, context)).map(Some)
            }
            None if is_optional => Ok(None),
            None => Err(context.error_at("typed_config", self.unsupported("an HTTP filter", &config.type_url))),
        }
    }

    pub(crate) fn network_filter(
        &self,
        config: &Any,
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn NetworkFilterConfig>, FieldError> {
        let name = any::type_name(&config.type_url);
        let factories = tidegate_filters::network::FACTORIES;
        match factories.iter().find(|factory| name == Some(factory.message())) {
            Some(factory) => context.within("typed_config", |context| factory.compile(&config.value, context)),
            None => Err(context.error_at("typed_config", self.unsupported("a network filter", &config.type_url))),
        }
    }

    pub(crate) fn listener_filter(
        &self,
        config: &Any,
        context: &mut CompileContext<'_>,
    ) -> Result<Box<dyn ListenerFilterConfig>, FieldError> {
        let name = any::type_name(&config.type_url);
        let factories = tidegate_filters::listener::FACTORIES;
        match factories.iter().find(|factory| name == Some(factory.message())) {
            Some(factory) => context.within("typed_config", |context| factory.compile(&config.value, context)),
            None => Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url))),
        }
    }

    /// Why an extension of this type cannot stand where `what` is expected.
    pub(crate) fn unsupported(&self, what: &str, type_url: &str) -> String {
        let acts = |name: &&str| tidegate_xds::CoverageSource::of(self.registry.coverage(), name).is_some();
        match any::type_name(type_url).filter(acts) {
            Some(elsewhere) => format!("{elsewhere} is not {what}"),
            None => format!("not supported yet: {type_url}"),
        }
    }

    pub(crate) fn access_logs(
        &self,
        field: &str,
        logs: &[accesslog::AccessLog],
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Arc<AccessLog>>, FieldError> {
        let compile = |(index, log): (usize, &accesslog::AccessLog)| {
            context.within_item(field, index, |context| AccessLog::compile(log, context).map(Arc::new))
        };
        logs.iter().enumerate().map(compile).collect()
    }

    pub(crate) fn access_log_filter(
        &self,
        filter: &accesslog::AccessLogFilter,
        context: &mut CompileContext<'_>,
    ) -> Result<tidegate_filters::access_log::Filter, FieldError> {
        tidegate_filters::access_log::Filter::compile(filter, context)
    }

    pub(crate) fn body_format(
        &self,
        field: &str,
        format: Option<&core::SubstitutionFormatString>,
        context: &mut CompileContext<'_>,
    ) -> Result<Option<BodyFormat>, FieldError> {
        match format {
            Some(format) => context.within(field, |context| BodyFormat::compile(format, context)).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn headers_to_add(
        &self,
        field: &str,
        headers: &[core::HeaderValueOption],
        context: &mut CompileContext<'_>,
    ) -> Result<HeaderMutations, FieldError> {
        HeaderMutations::compile_additions(field, headers, context)
    }

    pub(crate) fn early_header_mutation(
        &self,
        config: &Any,
        context: &mut CompileContext<'_>,
    ) -> Result<HeaderEdits, FieldError> {
        if any::type_name(&config.type_url) != Some(EARLY_HEADER_MUTATION) {
            return Err(context.error(format!("not supported yet: {}", config.type_url)));
        }
        let config: EarlyHeaderMutation = any::unpack(config, &context.path)?;
        HeaderEdits::compile("mutations", &config.mutations, context)
    }

    pub(crate) fn route_table(
        &self,
        routes: &route_proto::RouteConfiguration,
        origin: RouteOrigin,
        context: &mut CompileContext<'_>,
    ) -> Result<RouteTable, FieldError> {
        route::compile(routes, origin == RouteOrigin::Inline, &self.route_overrides(), context)
    }

    /// The filter whose `typed_per_filter_config` has a type URL.
    pub(crate) fn route_overrides(&self) -> impl Fn(&str) -> Option<&'static dyn FilterFactory> {
        |url| self.registry.route_override(url)
    }

    /// Notes where a route configuration comes from.
    pub(crate) fn subscribe_routes(
        &self,
        name: &str,
        source: &core::ConfigSource,
        context: &mut CompileContext<'_>,
    ) -> Result<(), FieldError> {
        let source = sources::config_source(source, &self.known, context)?;
        let stats_prefix = context.stats.prefix().to_owned();
        context.needs.route_configurations.insert(name.to_owned(), RouteSubscription { source, stats_prefix });
        Ok(())
    }
}

/// Bytes that are inline, in a file, or in the environment.
pub(crate) fn data_source(source: &core::DataSource, context: &mut CompileContext<'_>) -> Result<Bytes, FieldError> {
    use core::data_source::Specifier;
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Some(Specifier::InlineBytes(bytes)) => Ok(Bytes::copy_from_slice(bytes)),
        Some(Specifier::Filename(path)) => std::fs::read(path)
            .map(Bytes::from)
            .map_err(|error| context.error_at("filename", format!("cannot read '{path}': {error}"))),
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name)
            .map(Bytes::from)
            .map_err(|_| context.error_at("environment_variable", format!("'{name}' is not set"))),
        None => Err(context.error("a data source is required")),
    }
}

impl BodyFormat {
    fn compile(format: &core::SubstitutionFormatString, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let format = tidegate_filters::format::SubstitutionFormat::compile(format, context)?;
        let content_type = HeaderValue::from_str(format.content_type())
            .map_err(|_| context.error_at("content_type", "not a header value"))?;
        Ok(Self { format, content_type })
    }
}
