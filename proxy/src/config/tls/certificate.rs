//! `TlsCertificate` and `TlsSessionTicketKeys` -> [`Identity`] and [`TicketKeys`]. It must not know who presents them.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_filters::context::CompileContext;
use tidegate_tls::Identity;
use tidegate_tls::tickets::TicketKeys;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::DataSource;
use tidegate_xds::pb::envoy::config::core::v3::data_source::Specifier;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::{TlsCertificate, TlsSessionTicketKeys};

use crate::config::data_source;

/// Reads a chain and its key; `name`: of the secret that they are, empty where they are none.
///
/// # Errors
/// What is missing, cannot be read, or is no usable pair.
pub(super) fn identity(
    proto: &TlsCertificate,
    name: &str,
    context: &mut CompileContext<'_>,
) -> Result<Arc<Identity>, FieldError> {
    let given = |source: &Option<DataSource>| source.as_ref().is_some_and(|source| source.specifier.is_some());
    for (is_given, field) in
        [(given(&proto.certificate_chain), "certificate_chain"), (given(&proto.private_key), "private_key")]
    {
        if !is_given {
            let reason = "a certificate needs a certificate_chain and a private_key";
            return Err(context.error_at(field, reason));
        }
    }
    let chain = read("certificate_chain", proto.certificate_chain.as_ref(), context)?.unwrap_or_default();
    let key = read("private_key", proto.private_key.as_ref(), context)?.unwrap_or_default();
    let ocsp = read("ocsp_staple", proto.ocsp_staple.as_ref(), context)?;
    if let Some(DataSource { specifier: Some(Specifier::InlineString(_)), .. }) = &proto.ocsp_staple {
        return Err(context.error_at("ocsp_staple.inline_string", "OCSP staple cannot be provided via inline_string"));
    }
    let path = path_of(proto.certificate_chain.as_ref());
    let identity = Identity::load(&chain, &key, ocsp.as_deref(), path);
    identity.map(|identity| Arc::new(identity.named(name))).map_err(|refused| context.error(refused.0))
}

/// Reads keys of session tickets.
///
/// # Errors
/// A key cannot be read, or is not 80 bytes long.
pub(super) fn ticket_keys(
    proto: &TlsSessionTicketKeys,
    context: &mut CompileContext<'_>,
) -> Result<TicketKeys, FieldError> {
    let mut keys = Vec::with_capacity(proto.keys.len());
    for (index, key) in proto.keys.iter().enumerate() {
        keys.push(context.within_item("keys", index, |context| data_source(key, context))?.to_vec());
    }
    TicketKeys::given(keys).map_err(|refused| context.error_at("keys", refused.0))
}

/// The bytes of a source; none where there is none.
pub(super) fn read(
    field: &str,
    source: Option<&DataSource>,
    context: &mut CompileContext<'_>,
) -> Result<Option<Bytes>, FieldError> {
    match source {
        Some(source) if source.specifier.is_some() => {
            context.within(field, |context| data_source(source, context)).map(Some)
        }
        _ => Ok(None),
    }
}

/// As Envoy names where something comes from.
pub(super) fn path_of(source: Option<&DataSource>) -> &str {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::Filename(path)) => path,
        _ => "<inline>",
    }
}
