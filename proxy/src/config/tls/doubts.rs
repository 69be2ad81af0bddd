//! What a TLS context may say and hardly means, or what is left out of it: for a person, nothing is refused for it.

use tidegate_filters::context::{CompileContext, Defaults, Needs};
use tidegate_xds::pb::envoy::config::core::v3::TransportSocket;
use tidegate_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use tidegate_xds::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, UpstreamTlsContext,
};
use tidegate_xds::{FieldError, FieldPath, any};

use super::values::{Side, parameters};

/// Everything of that kind in a transport socket at `path`.
pub(in crate::config) fn doubts(socket: &TransportSocket, path: &FieldPath) -> Vec<FieldError> {
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else { return Vec::new() };
    let path = path.clone().field("typed_config");
    let common = |common: Option<CommonTlsContext>| common.unwrap_or_default();
    if let Ok(context) = any::unpack::<UpstreamTlsContext>(config, &path) {
        let (common, path) = (common(context.common_tls_context), path.field("common_tls_context"));
        let mut found = left_out(&common, Side::Client, &path);
        if trusts_anyone(&common) {
            let reason = "there is no trusted_ca: any host is believed, whoever it is, as in Envoy";
            found.push(FieldError::new(path, reason));
        }
        return found;
    }
    if let Ok(proxy) = any::unpack::<ProxyProtocolUpstreamTransport>(config, &path) {
        let inner = proxy.transport_socket.iter();
        return inner.flat_map(|inner| doubts(inner, &path.clone().field("transport_socket"))).collect();
    }
    match any::unpack::<DownstreamTlsContext>(config, &path) {
        Ok(context) => left_out(&common(context.common_tls_context), Side::Server, &path.field("common_tls_context")),
        Err(_) => Vec::new(),
    }
}

/// What rustls has no equivalent for.
fn left_out(common: &CommonTlsContext, side: Side, path: &FieldPath) -> Vec<FieldError> {
    let mut needs = Needs::default();
    let context = CompileContext {
        resource: "",
        path: path.clone(),
        defaults: Defaults::Safe,
        stats: tidegate_stats::Store::new().root(),
        needs: &mut needs,
    };
    let Ok(parameters) = parameters(common.tls_params.as_ref(), side, &context) else { return Vec::new() };
    let path = path.clone().field("tls_params");
    parameters.left_out.into_iter().map(|reason| FieldError::new(path.clone(), reason)).collect()
}

fn trusts_anyone(common: &CommonTlsContext) -> bool {
    let nobody = |context: &CertificateValidationContext| {
        context.trusted_ca.is_none()
            && context.system_root_certs.is_none()
            && context.custom_validator_config.is_none()
            && context.verify_certificate_hash.is_empty()
            && context.verify_certificate_spki.is_empty()
    };
    match &common.validation_context_type {
        None => true,
        Some(ValidationContextType::ValidationContext(context)) => nobody(context),
        Some(_) => false,
    }
}
