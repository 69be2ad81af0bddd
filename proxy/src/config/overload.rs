//! `envoy.config.overload.v3.OverloadManager` -> the limit of all downstream connections, the one monitor that is built.
//! It must not know who counts them.

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::config::overload::v3 as proto;
use tidegate_xds::pb::envoy::extensions::resource_monitors::downstream_connections::v3 as monitors;
use tidegate_xds::{Coverage, FieldError, any};

const CONNECTIONS: &str = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.overload.v3.OverloadManager",
        enforced: &["resource_monitors"],
        listed: &[("refresh_interval", "connections are counted as they come, not now and then")],
    },
    Coverage {
        message: "envoy.config.overload.v3.ResourceMonitor",
        enforced: &["typed_config"],
        listed: &[("name", "monitors are found by the type of their configuration")],
    },
    Coverage { message: CONNECTIONS, enforced: &["max_active_downstream_connections"], listed: &[] },
];

/// How many downstream connections there may be at a time; `None` where no monitor says.
pub(crate) fn compile(
    manager: &proto::OverloadManager,
    context: &mut CompileContext<'_>,
) -> Result<Option<u64>, FieldError> {
    let mut limit = None;
    for (index, monitor) in manager.resource_monitors.iter().enumerate() {
        context.within_item("resource_monitors", index, |context| {
            let Some(proto::resource_monitor::ConfigType::TypedConfig(config)) = &monitor.config_type else {
                return Err(context.error("a typed_config is required"));
            };
            if any::type_name(&config.type_url) != Some(CONNECTIONS) {
                return Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url)));
            }
            if limit.is_some() {
                return Err(context.error_at("name", format!("Duplicate resource monitor {}", monitor.name)));
            }
            let config: monitors::DownstreamConnectionsConfig = any::unpack(config, &context.path)?;
            limit = u64::try_from(config.max_active_downstream_connections).ok();
            Ok(())
        })?;
    }
    Ok(limit)
}
