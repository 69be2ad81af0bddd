//! The filter chains that run once an attempt: a cluster's `http_filters` and the router's `upstream_http_filters`.
//! It must not know who runs them.

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use tidegate_xds::{Coverage, FieldError, any};

use super::Compiler;
use crate::http::options::{FilterChain, FilterSlot};

const CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";

/// The codec has no fields.
pub(super) const COVERAGE: &[Coverage] = &[Coverage { message: CODEC, enforced: &[], listed: &[] }];

impl Compiler {
    /// Compiles an upstream chain, which ends in the codec; an empty one has nothing before it.
    pub(crate) fn upstream_filters(
        &self,
        field: &str,
        filters: &[HttpFilter],
        context: &mut CompileContext<'_>,
    ) -> Result<FilterChain, FieldError> {
        let mut slots = Vec::with_capacity(filters.len());
        for (index, filter) in filters.iter().enumerate() {
            let last = index + 1 == filters.len();
            let slot = context.within_item(field, index, |context| self.upstream_filter(filter, last, context))?;
            slots.extend(slot);
        }
        Ok(FilterChain(slots.into()))
    }

    fn upstream_filter(
        &self,
        filter: &HttpFilter,
        last: bool,
        context: &mut CompileContext<'_>,
    ) -> Result<Option<FilterSlot>, FieldError> {
        let config = match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) => config,
            Some(ConfigType::ConfigDiscovery(_)) => {
                return Err(
                    context.error_at("config_discovery", "not supported yet: extension configuration discovery")
                );
            }
            None => return Err(unregistered(filter, "", context)),
        };
        let codec = any::type_name(&config.type_url) == Some(CODEC);
        if last && !codec {
            let reason = format!("The codec filter is the only valid terminal upstream HTTP filter, use '{CODEC}'");
            return Err(context.error(reason));
        }
        if codec && !last {
            let reason = format!(
                "terminal filter named {} of type envoy.filters.http.upstream_codec must be the last filter in a upstream \
                 http filter chain.",
                filter.name
            );
            return Err(context.error(reason));
        }
        if codec {
            return Ok(None);
        }
        match self.registry.http_filter(&config.type_url).filter(|factory| factory.works_upstream()) {
            Some(factory) => {
                let compiled = context.within("typed_config", |context| factory.compile(&config.value, context))?;
                let name = filter.name.as_str().into();
                Ok(Some(FilterSlot { name, config: compiled, disabled: filter.disabled, legacy_name: None }))
            }
            None if filter.is_optional => Ok(None),
            None => Err(unregistered(filter, type_of(&config.type_url), context)),
        }
    }
}

fn type_of(type_url: &str) -> &str {
    any::type_name(type_url).unwrap_or(type_url)
}

fn unregistered(filter: &HttpFilter, type_name: &str, context: &CompileContext<'_>) -> FieldError {
    let reason = format!("Didn't find a registered implementation for '{}' with type URL: '{type_name}'", filter.name);
    context.error_at("typed_config", reason)
}
