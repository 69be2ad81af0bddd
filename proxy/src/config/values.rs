//! Small protos that many messages hold, as domain values: addresses, durations, ranges, wrappers.
//! It must not know which message they came from.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tidegate_filters::context::CompileContext;
use tidegate_filters::runtime::Fraction;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::r#type::v3 as types;
use tidegate_xds::pb::google::protobuf as wkt;
use tidegate_xds::{Coverage, FieldError};

use crate::listener::{Keepalive, ListenAddress, SocketOption, SocketState};

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage { message: "envoy.config.core.v3.Address", enforced: &["socket_address", "pipe"], listed: &[] },
    Coverage {
        message: "envoy.config.core.v3.SocketAddress",
        enforced: &["address", "port_value", "ipv4_compat", "protocol", "resolver_name"],
        listed: &[],
    },
    Coverage { message: "envoy.config.core.v3.Pipe", enforced: &["path", "mode"], listed: &[] },
    Coverage {
        message: "envoy.config.core.v3.SocketOption",
        enforced: &["level", "name", "int_value", "buf_value", "state", "type", "ip_version"],
        listed: &[("description", "a comment")],
    },
    Coverage {
        message: "envoy.config.core.v3.SocketOption.SocketType",
        enforced: &["stream", "datagram"],
        listed: &[],
    },
    Coverage { message: "envoy.config.core.v3.SocketOption.SocketType.Stream", enforced: &[], listed: &[] },
    Coverage { message: "envoy.config.core.v3.SocketOption.SocketType.Datagram", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.config.core.v3.TcpKeepalive",
        enforced: &["keepalive_probes", "keepalive_time", "keepalive_interval"],
        listed: &[],
    },
];

/// A duration; validation has seen to it that it is not negative.
pub(crate) fn duration(value: &wkt::Duration) -> Duration {
    let seconds = u64::try_from(value.seconds).unwrap_or(0);
    Duration::new(seconds, u32::try_from(value.nanos).unwrap_or(0))
}

/// A timeout: `default` where it is not set, never where it is 0.
pub(crate) fn timeout(value: Option<&wkt::Duration>, default: Option<Duration>) -> Option<Duration> {
    value.map(duration).or(default).filter(|limit| !limit.is_zero())
}

pub(crate) fn wrapped_bool(value: Option<&wkt::BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

pub(crate) fn wrapped_u32(value: Option<&wkt::UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

fn denominator(kind: i32) -> u64 {
    use types::fractional_percent::DenominatorType;
    match DenominatorType::try_from(kind) {
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        _ => 100,
    }
}

/// A share of streams; without a default none of them.
pub(crate) fn runtime_fraction(value: &core::RuntimeFractionalPercent) -> Fraction {
    let key = (!value.runtime_key.is_empty()).then(|| value.runtime_key.as_str().into());
    match &value.default_value {
        Some(default) => {
            Fraction { key, numerator: u64::from(default.numerator), denominator: denominator(default.denominator) }
        }
        None => Fraction { key, ..Fraction::NEVER },
    }
}

/// An address to listen on.
pub(crate) fn listen_address(
    address: Option<&core::Address>,
    context: &CompileContext<'_>,
) -> Result<ListenAddress, FieldError> {
    match address.and_then(|address| address.address.as_ref()) {
        Some(core::address::Address::SocketAddress(socket)) => {
            if socket.protocol == i32::from(core::socket_address::Protocol::Udp) {
                return Err(context.error_at("socket_address.protocol", "not supported yet: UDP"));
            }
            let address = socket_address(socket, context)?;
            let dual = address.ip().is_unspecified() && address.is_ipv6()
                || matches!(address.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
            if socket.ipv4_compat && !dual {
                let reason = "ipv4_compat is only for the address [::] or an IPv4-mapped IPv6 address";
                return Err(context.error_at("socket_address.ipv4_compat", reason));
            }
            Ok(ListenAddress::Ip { address, ipv4_compat: socket.ipv4_compat })
        }
        Some(core::address::Address::Pipe(pipe)) => {
            if pipe.path.starts_with('@') && pipe.mode != 0 {
                return Err(context.error_at("pipe.mode", "Cannot set mode for Abstract AF_UNIX sockets"));
            }
            Ok(ListenAddress::Pipe { path: pipe.path.as_str().into(), mode: pipe.mode })
        }
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            Err(context.error_at("envoy_internal_address", "not supported yet: internal listeners"))
        }
        None => Err(context.error("an address is required")),
    }
}

/// An IP address with its port.
pub(crate) fn socket_address(
    socket: &core::SocketAddress,
    context: &CompileContext<'_>,
) -> Result<SocketAddr, FieldError> {
    if !matches!(socket.resolver_name.as_str(), "" | "envoy.ip") {
        let reason = format!("Unknown address resolver: {}", socket.resolver_name);
        return Err(context.error_at("socket_address.resolver_name", reason));
    }
    let reason = || format!("malformed IP address: {}", socket.address);
    let ip: IpAddr = socket.address.parse().map_err(|_| context.error_at("socket_address.address", reason()))?;
    match &socket.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => {
            let port = u16::try_from(*port)
                .map_err(|_| context.error_at("socket_address.port_value", "a port is at most 65535"))?;
            Ok(SocketAddr::new(ip, port))
        }
        Some(core::socket_address::PortSpecifier::NamedPort(_)) => {
            Err(context.error_at("socket_address.named_port", "not supported yet: named ports"))
        }
        None => Ok(SocketAddr::new(ip, 0)),
    }
}

/// The options of stream sockets; those that are only for datagrams are left out.
pub(crate) fn socket_options(options: &[core::SocketOption]) -> Vec<SocketOption> {
    let datagram = |option: &&core::SocketOption| {
        option.r#type.as_ref().is_some_and(|kind| kind.datagram.is_some() && kind.stream.is_none())
    };
    options.iter().filter(|option| !datagram(option)).map(socket_option).collect()
}

fn socket_option(option: &core::SocketOption) -> SocketOption {
    use core::socket_option::{SocketIpVersion, SocketState as State, Value};
    let value = match &option.value {
        Some(Value::IntValue(value)) => i32::try_from(*value).unwrap_or(i32::MAX).to_ne_bytes().to_vec(),
        Some(Value::BufValue(value)) => value.clone(),
        None => Vec::new(),
    };
    SocketOption {
        level: i32::try_from(option.level).unwrap_or(i32::MAX),
        name: i32::try_from(option.name).unwrap_or(i32::MAX),
        value,
        state: match State::try_from(option.state) {
            Ok(State::StateBound) => SocketState::Bound,
            Ok(State::StateListening) => SocketState::Listening,
            _ => SocketState::BeforeBind,
        },
        only_v6: match option.ip_version() {
            SocketIpVersion::Unspecified => None,
            SocketIpVersion::Ipv4 => Some(false),
            SocketIpVersion::Ipv6 => Some(true),
        },
    }
}

pub(crate) fn keepalive(value: &core::TcpKeepalive) -> Keepalive {
    let seconds =
        |value: &Option<wkt::UInt32Value>| value.as_ref().map(|value| Duration::from_secs(u64::from(value.value)));
    Keepalive {
        probes: value.keepalive_probes.as_ref().map(|value| value.value),
        time: seconds(&value.keepalive_time),
        interval: seconds(&value.keepalive_interval),
    }
}
