//! `ListenerFilter` -> what looks at a connection's first bytes. It must not know the filters themselves.

use std::sync::Arc;

use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::context::CompileContext;
use tidegate_filters::listener::{Disabled, FACTORIES, ListenerFilter, ListenerFilterConfig};
use tidegate_xds::pb::envoy::config::listener::v3 as proto;
use tidegate_xds::{FieldError, any};

use crate::config::Compiler;
use crate::config::discovered_filter::DiscoveredFilter;

const TLS_INSPECTOR: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";

/// Compiles all of a listener's, in their order, and one that looks for TLS where chains are chosen by what it sees.
pub(super) fn compile_all(
    compiler: &Compiler,
    listener: &proto::Listener,
    context: &mut CompileContext<'_>,
) -> Result<Vec<Arc<dyn ListenerFilterConfig>>, FieldError> {
    let compile = |(index, filter): (usize, &proto::ListenerFilter)| {
        context.within_item("listener_filters", index, |context| compile(compiler, filter, context))
    };
    let mut filters = listener.listener_filters.iter().enumerate().map(compile).collect::<Result<Vec<_>, _>>()?;
    let inspector = FACTORIES.iter().find(|factory| factory.message() == TLS_INSPECTOR);
    if let Some(inspector) = inspector.filter(|_| lacks_inspector(listener)) {
        tracing::warn!(
            listener = %listener.name,
            "filter chain match rules require TLS Inspector listener filter, but it isn't configured, trying to inject it"
        );
        filters.push(Arc::from(inspector.compile(&[], context)?));
    }
    Ok(filters)
}

/// Whether chains are chosen by what only a TLS inspector sees, and there is none.
fn lacks_inspector(listener: &proto::Listener) -> bool {
    let inspects = |filter: &proto::ListenerFilter| match &filter.config_type {
        Some(proto::listener_filter::ConfigType::TypedConfig(config)) => {
            any::type_name(&config.type_url) == Some(TLS_INSPECTOR)
        }
        _ => false,
    };
    let asks = |chain: &proto::FilterChain| {
        chain.filter_chain_match.as_ref().is_some_and(|rule| match rule.transport_protocol.as_str() {
            "tls" => true,
            "" => !rule.server_names.is_empty() || !rule.application_protocols.is_empty(),
            _ => false,
        })
    };
    listener.filter_chains.iter().any(asks) && !listener.listener_filters.iter().any(inspects)
}

fn compile(
    compiler: &Compiler,
    filter: &proto::ListenerFilter,
    context: &mut CompileContext<'_>,
) -> Result<Arc<dyn ListenerFilterConfig>, FieldError> {
    use proto::listener_filter::ConfigType;
    let compiled: Box<dyn ListenerFilterConfig> = match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => compiler.listener_filter(config, context)?,
        Some(ConfigType::ConfigDiscovery(discovery)) => {
            let compile =
                |context: &mut CompileContext<'_>| compiler.discovered_filter(&filter.name, discovery, context);
            Box::new(Discovered(context.within("config_discovery", compile)?))
        }
        None => return Err(context.error("a typed_config or a config_discovery is required")),
    };
    match &filter.filter_disabled {
        Some(when) => context
            .within("filter_disabled", |context| Disabled::compile(when, compiled, context))
            .map(|filter| Arc::new(filter) as _),
        None => Ok(Arc::from(compiled)),
    }
}

/// One whose configuration is discovered: its place is known to whoever brings that.
struct Discovered(Arc<DiscoveredFilter<Arc<dyn ListenerFilterConfig>>>);

impl ListenerFilterConfig for Discovered {
    fn is_there(&self) -> bool {
        self.0.is_there()
    }

    fn new_connection(&self, connection: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>> {
        self.0.new_connection(connection)
    }
}
