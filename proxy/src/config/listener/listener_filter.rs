//! `ListenerFilter` -> what looks at a connection's first bytes. It must not know the filters themselves.

use std::sync::Arc;

use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::context::CompileContext;
use tidegate_filters::listener::{Disabled, ListenerFilter, ListenerFilterConfig};
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::listener::v3 as proto;

use crate::config::Compiler;
use crate::config::discovered_filter::DiscoveredFilter;

/// Compiles all of a listener's, in their order.
pub(super) fn compile_all(
    compiler: &Compiler,
    filters: &[proto::ListenerFilter],
    context: &mut CompileContext<'_>,
) -> Result<Vec<Arc<dyn ListenerFilterConfig>>, FieldError> {
    let compile = |(index, filter): (usize, &proto::ListenerFilter)| {
        context.within_item("listener_filters", index, |context| compile(compiler, filter, context))
    };
    filters.iter().enumerate().map(compile).collect()
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
