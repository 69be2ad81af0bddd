//! What wraps connections to hosts. The one place where further transport sockets are compiled.

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::config::core::v3::TransportSocket as TransportSocketProto;
use tidegate_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use tidegate_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use tidegate_xds::{FieldError, any};

use crate::cluster::options::TransportSocket;

pub(super) fn compile(
    proto: Option<&TransportSocketProto>,
    context: &mut CompileContext<'_>,
) -> Result<TransportSocket, FieldError> {
    let Some(proto) = proto else {
        return Ok(TransportSocket::RawBuffer);
    };
    context.within("transport_socket", |context| {
        let Some(ConfigType::TypedConfig(config)) = &proto.config_type else {
            let reason = format!("didn't find a registered implementation for '{}' with type URL: ''", proto.name);
            return Err(context.error_at("typed_config", reason));
        };
        let name = any::type_name(&config.type_url).unwrap_or_default();
        if name != <RawBuffer as prost::Name>::full_name() {
            return Err(context.error_at("typed_config", format!("not supported yet: {name}")));
        }
        Ok(TransportSocket::RawBuffer)
    })
}
