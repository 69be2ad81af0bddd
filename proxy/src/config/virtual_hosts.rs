//! `Vhds` -> where a route configuration's virtual hosts come from. It must not know which hosts.

use tidegate_filters::context::{CompileContext, ConfigSource};
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::route::v3::Vhds;
use tidegate_xds::{Coverage, FieldError};

use super::sources::{Known, config_source};

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] =
    &[Coverage { message: "envoy.config.route.v3.Vhds", enforced: &["config_source"], listed: &[] }];

/// Where they come from: a stream that says only what changed.
///
/// # Errors
/// Any other source, in Envoy's words.
pub(crate) fn source(vhds: &Vhds, known: &Known, context: &mut CompileContext<'_>) -> Result<ConfigSource, FieldError> {
    use core::config_source::ConfigSourceSpecifier as Specifier;
    let Some(source) = &vhds.config_source else {
        return Err(context.error_at("vhds.config_source", "a config source is required"));
    };
    let wrong = match &source.config_source_specifier {
        Some(Specifier::Ads(_)) if known.ads_delta => None,
        Some(Specifier::Ads(_)) if known.ads => {
            Some("vhds: ADS must use DELTA_GRPC api_type when used as VHDS config source.")
        }
        Some(Specifier::Ads(_)) => Some("vhds: ADS config source specified but no ADS configured in bootstrap."),
        Some(Specifier::ApiConfigSource(api)) if api.api_type() == core::api_config_source::ApiType::DeltaGrpc => None,
        _ => Some("vhds: only 'DELTA_GRPC' or 'ADS' (which uses Delta xDS) is supported as a config source."),
    };
    match wrong {
        Some(reason) => Err(context.error(reason)),
        None => context
            .within("vhds", |context| context.within("config_source", |context| config_source(source, known, context))),
    }
}
