//! Addresses of configuration messages. It must not know who connects to them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tidegate_filters::context::CompileContext;
use tidegate_filters::stream_info::Address;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::address::Address as Kind;
use tidegate_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use tidegate_xds::pb::envoy::config::core::v3::{Address as AddressProto, Pipe, SocketAddress};

use crate::cluster::endpoint::Name;

/// The longest path that fits a unix socket's address.
const MAX_PIPE_PATH: usize = 107;

/// An address that needs no resolving.
pub(crate) fn resolved(
    proto: Option<&AddressProto>,
    field: &str,
    context: &mut CompileContext<'_>,
) -> Result<Address, FieldError> {
    context.within(field, |context| match proto.and_then(|address| address.address.as_ref()) {
        Some(Kind::SocketAddress(address)) => {
            context.within("socket_address", |context| ip(address, context)).map(Address::Ip)
        }
        Some(Kind::Pipe(pipe)) => context.within("pipe", |context| self::pipe(pipe, context)),
        Some(Kind::EnvoyInternalAddress(_)) => {
            Err(context.error_at("envoy_internal_address", "not supported yet: envoy_internal_address"))
        }
        None => Err(context.error("address must be set")),
    })
}

/// An IP address and port.
pub(crate) fn ip(proto: &SocketAddress, context: &CompileContext<'_>) -> Result<SocketAddr, FieldError> {
    if !matches!(proto.resolver_name.as_str(), "" | "envoy.ip") {
        return Err(context.error_at("resolver_name", format!("unknown address resolver: {}", proto.resolver_name)));
    }
    let malformed = || {
        let address = &proto.address;
        let advice = "Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'";
        context.error_at("address", format!("malformed IP address: {address}. {advice}"))
    };
    let ip: IpAddr = proto.address.parse().map_err(|_| malformed())?;
    Ok(SocketAddr::new(ip, port(proto, context)?))
}

/// A name and port to resolve.
pub(crate) fn name(
    proto: Option<&AddressProto>,
    field: &str,
    context: &mut CompileContext<'_>,
) -> Result<Name, FieldError> {
    context.within(field, |context| match proto.and_then(|address| address.address.as_ref()) {
        Some(Kind::SocketAddress(address)) => context.within("socket_address", |context| {
            if !address.resolver_name.is_empty() {
                return Err(context.error_at("resolver_name", "DNS clusters must NOT have a custom resolver name set"));
            }
            Ok(Name { host: address.address.as_str().into(), port: port(address, context)? })
        }),
        Some(_) => Err(context.error("DNS clusters resolve socket addresses only")),
        None => Err(context.error("address must be set")),
    })
}

fn port(proto: &SocketAddress, context: &CompileContext<'_>) -> Result<u16, FieldError> {
    match proto.port_specifier {
        Some(PortSpecifier::PortValue(port)) => {
            u16::try_from(port).map_err(|_| context.error_at("port_value", "a port is at most 65535"))
        }
        Some(PortSpecifier::NamedPort(_)) => {
            Err(context.error_at("named_port", "IP resolver can't handle a named port"))
        }
        None => Ok(0),
    }
}

fn pipe(proto: &Pipe, context: &CompileContext<'_>) -> Result<Address, FieldError> {
    if proto.path.len() > MAX_PIPE_PATH {
        let reason = format!("Path \"{}\" exceeds maximum UNIX domain socket path size of {MAX_PIPE_PATH}", proto.path);
        return Err(context.error_at("path", reason));
    }
    Ok(Address::Pipe(Arc::from(proto.path.as_str())))
}
