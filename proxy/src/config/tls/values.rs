//! `TlsParameters` -> [`Parameters`]. It must not know contexts.

use tidegate_filters::context::CompileContext;
use tidegate_tls::Parameters;
use tidegate_tls::parameters::{Version, Wanted};
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;

/// Envoy's default maximum: a client offers TLS 1.3 only where it is told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// Compiles `tls_params`.
///
/// # Errors
/// What is unknown, or leaves nothing usable.
pub(crate) fn parameters(
    proto: Option<&TlsParameters>,
    side: Side,
    context: &CompileContext<'_>,
) -> Result<Parameters, FieldError> {
    let none = TlsParameters::default();
    let proto = proto.unwrap_or(&none);
    if !proto.compliance_policies.is_empty() {
        return Err(context.error_at("tls_params.compliance_policies", "not supported yet: compliance_policies"));
    }
    let min = version(proto.tls_minimum_protocol_version(), Version::Tls12);
    let default = match side {
        Side::Server => Version::Tls13,
        // Whoever asks for a minimum above it means it.
        Side::Client => Version::Tls12.max(min),
    };
    let max = version(proto.tls_maximum_protocol_version(), default);
    let wanted = Wanted {
        min,
        max,
        cipher_suites: &proto.cipher_suites,
        groups: &proto.ecdh_curves,
        signature_algorithms: &proto.signature_algorithms,
    };
    Parameters::new(&wanted).map_err(|refused| context.error_at("tls_params", refused.0))
}

fn version(proto: TlsProtocol, auto: Version) -> Version {
    match proto {
        TlsProtocol::TlsAuto => auto,
        TlsProtocol::TlSv10 => Version::Tls10,
        TlsProtocol::TlSv11 => Version::Tls11,
        TlsProtocol::TlSv12 => Version::Tls12,
        TlsProtocol::TlSv13 => Version::Tls13,
    }
}
