//! `ListenerFilter` -> what looks at a connection's first bytes. It must not know the filters themselves.

use std::sync::Arc;

use tidegate_filters::context::CompileContext;
use tidegate_filters::listener::{Disabled, FACTORIES, ListenerFilterConfig};
use tidegate_xds::pb::envoy::config::listener::v3 as proto;
use tidegate_xds::{FieldError, any};

/// Compiles all of a listener's, in their order.
pub(super) fn compile_all(
    filters: &[proto::ListenerFilter],
    context: &mut CompileContext<'_>,
) -> Result<Vec<Arc<dyn ListenerFilterConfig>>, FieldError> {
    let compile = |(index, filter): (usize, &proto::ListenerFilter)| {
        context.within_item("listener_filters", index, |context| compile(filter, context))
    };
    filters.iter().enumerate().map(compile).collect()
}

fn compile(
    filter: &proto::ListenerFilter,
    context: &mut CompileContext<'_>,
) -> Result<Arc<dyn ListenerFilterConfig>, FieldError> {
    let Some(proto::listener_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(context.error("a typed_config is required"));
    };
    let name = any::type_name(&config.type_url);
    let Some(factory) = FACTORIES.iter().find(|factory| name == Some(factory.message())) else {
        return Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url)));
    };
    let compiled = context.within("typed_config", |context| factory.compile(&config.value, context))?;
    match &filter.filter_disabled {
        Some(when) => context
            .within("filter_disabled", |context| Disabled::compile(when, compiled, context))
            .map(|filter| Arc::new(filter) as _),
        None => Ok(Arc::from(compiled)),
    }
}
