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
    Coverage { message: "envoy.config.overload.v3.ResourceMonitor", enforced: &["name", "typed_config"], listed: &[] },
    Coverage { message: CONNECTIONS, enforced: &["max_active_downstream_connections"], listed: &[] },
];

/// The one name that this monitor may have.
const MONITOR: &str = "envoy.resource_monitors.global_downstream_max_connections";

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
            if monitor.name != MONITOR {
                let reason = format!(
                    "Didn't find a registered implementation for '{}' with type URL: '{CONNECTIONS}': it must be named {MONITOR}",
                    monitor.name
                );
                return Err(context.error_at("name", reason));
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

#[cfg(test)]
mod tests {
    use tidegate_filters::context::Defaults;
    use tidegate_xds::Format;

    use super::{CONNECTIONS, MONITOR};
    use crate::config::bootstrap::{Bootstrap, Overrides};

    fn refused(names: &[&str]) -> Option<String> {
        let config = format!("{{'@type': type.googleapis.com/{CONNECTIONS}, max_active_downstream_connections: 5}}");
        let monitors: Vec<String> =
            names.iter().map(|name| format!("{{name: {name}, typed_config: {config}}}")).collect();
        let yaml = format!("{{overload_manager: {{resource_monitors: [{}]}}}}", monitors.join(", "));
        let read = Bootstrap::read(yaml.as_bytes(), Format::Yaml, &Overrides::default(), Defaults::Envoy);
        read.err().map(|errors| errors[0].to_string())
    }

    #[test]
    fn the_monitor_has_one_name_and_stands_once() {
        assert_eq!(refused(&[MONITOR]), None);
        assert!(refused(&["mine"]).is_some_and(|reason| reason.contains("resource_monitors[0].name: Didn't find")));
        assert!(refused(&[MONITOR, MONITOR]).is_some_and(|reason| reason.contains("[1].name: Duplicate")));
    }
}
