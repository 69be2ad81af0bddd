//! `transport_sockets.tls.v3`, both ways -> contexts of the crate `tls`. Secrets that are discovered (SDS) come later: a context is
//! made anew whenever one does. It must not know who serves with it.
//!
//! See <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/extensions/transport_sockets/tls/v3/tls.proto>.

mod certificate;
mod coverage;
mod doubts;
mod downstream;
mod recipe;
mod secrets;
mod upstream;
mod validation;
pub(super) mod values;

use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::TransportSocket;
use tidegate_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use tidegate_xds::pb::google::protobuf::Any;

pub(crate) use coverage::COVERAGE;
pub(super) use doubts::doubts;
pub(super) use downstream::downstream;
pub(crate) use secrets::{Secret, Secrets, files};
pub(super) use upstream::upstream;

use super::sources::Known;

/// Where secrets are, and where they may come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Around {
    pub(crate) secrets: Secrets,
    pub(crate) known: Known,
}

/// The configuration of a transport socket.
fn typed_config<'a>(socket: &'a TransportSocket, context: &CompileContext<'_>) -> Result<&'a Any, FieldError> {
    match &socket.config_type {
        Some(ConfigType::TypedConfig(config)) => Ok(config),
        None => {
            let reason = format!("didn't find a registered implementation for '{}' with type URL: ''", socket.name);
            Err(context.error_at("typed_config", reason))
        }
    }
}

#[cfg(test)]
mod tests;
