//! What a connection manager does to requests before anybody sees them -> domain values: paths, hosts, what is said of client
//! certificates. It must not know how that is done.

use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;

use super::defaults::Values;
use super::values::wrapped_bool;
use crate::http::options::{ClientCert, ClientCertDetails, EscapedSlashes, PathRules, StripPort};

pub(super) fn client_cert(config: &proto::HttpConnectionManager) -> ClientCert {
    use proto::http_connection_manager::ForwardClientCertDetails as Details;
    let shown = config.set_current_client_cert_details.unwrap_or_default();
    let shown = ClientCertDetails {
        subject: shown.subject.is_some_and(|subject| subject.value),
        cert: shown.cert,
        chain: shown.chain,
        dns: shown.dns,
        uri: shown.uri,
    };
    match Details::try_from(config.forward_client_cert_details) {
        Ok(Details::ForwardOnly) => ClientCert::ForwardOnly,
        Ok(Details::AppendForward) => ClientCert::AppendForward(shown),
        Ok(Details::SanitizeSet) => ClientCert::SanitizeSet(shown),
        Ok(Details::AlwaysForwardOnly) => ClientCert::AlwaysForwardOnly,
        _ => ClientCert::Sanitize,
    }
}

pub(super) fn path_rules(config: &proto::HttpConnectionManager, values: Values) -> PathRules {
    use proto::http_connection_manager::PathWithEscapedSlashesAction as Action;
    let escaped_slashes = match Action::try_from(config.path_with_escaped_slashes_action) {
        Ok(Action::RejectRequest) => EscapedSlashes::Reject,
        Ok(Action::UnescapeAndRedirect) => EscapedSlashes::UnescapeAndRedirect,
        Ok(Action::UnescapeAndForward) => EscapedSlashes::UnescapeAndForward,
        _ => EscapedSlashes::Keep,
    };
    let silent = config.path_with_escaped_slashes_action == i32::from(Action::ImplementationSpecificDefault);
    PathRules {
        normalize: wrapped_bool(config.normalize_path.as_ref(), values.normalize_path),
        merge_slashes: config.merge_slashes,
        escaped_slashes,
        reject_hidden_dot_segments: silent && values.reject_hidden_dot_segments,
    }
}

pub(super) fn strip_port(config: &proto::HttpConnectionManager) -> StripPort {
    use proto::http_connection_manager::StripPortMode;
    match &config.strip_port_mode {
        Some(StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
        _ if config.strip_matching_host_port => StripPort::Matching,
        _ => StripPort::Keep,
    }
}
