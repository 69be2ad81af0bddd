//! What wraps connections to hosts: a cluster's `transport_socket`, and those of hosts whose metadata asks for another
//! (`transport_socket_matches`). The one place where transport sockets to hosts are compiled.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Name as _;
use tidegate_filters::context::CompileContext;
use tidegate_filters::listener::PassedTlvs;
use tidegate_filters::matching::{Inputs, Matcher};
use tidegate_filters::metadata::object;
use tidegate_stats::Scope;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use tidegate_xds::pb::envoy::config::core::v3::TransportSocket as TransportSocketProto;
use tidegate_xds::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use tidegate_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use tidegate_xds::pb::envoy::extensions::matching::common_inputs::transport_socket::v3::TransportSocketNameAction;
use tidegate_xds::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use tidegate_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use tidegate_xds::pb::xds::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::xds::r#type::matcher::v3::Matcher as MatcherProto;
use tidegate_xds::{FieldError, any};

use crate::cluster::options::{HttpOptions, HttpProtocol};
use crate::cluster::proxied::ProxySocket;
use crate::cluster::sockets::{SocketMatch, SocketMatcher, TransportSocket, TransportSockets};
use crate::config::proxy_tlvs;
use crate::config::tls::{self, Around};
use crate::proxy_header::ProxyVersion;

pub(super) fn compile(
    proto: &Cluster,
    http: &HttpOptions,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<TransportSockets, FieldError> {
    let name = if proto.alt_stat_name.is_empty() { &proto.name } else { &proto.alt_stat_name };
    let scope = context.stats.scope(&format!("cluster.{}.", name.replace(':', "_")));
    let compile = |socket: Option<&TransportSocketProto>, context: &mut CompileContext<'_>| match socket {
        Some(socket) => context.within("transport_socket", |context| one(socket, &scope, around, context)),
        None => Ok(TransportSocket::RawBuffer),
    };
    let default = compile(proto.transport_socket.as_ref(), context)?;
    let mut matches = Vec::with_capacity(proto.transport_socket_matches.len());
    for (index, given) in proto.transport_socket_matches.iter().enumerate() {
        let socket = context.within_item("transport_socket_matches", index, |context| {
            compile(given.transport_socket.as_ref(), context)
        })?;
        let criteria = given.r#match.as_ref().map(object);
        matches.push(SocketMatch { criteria: criteria.unwrap_or_default(), socket });
    }
    let matcher = match &proto.transport_socket_matcher {
        Some(matcher) => Some(Arc::new(compile_matcher(matcher, &proto.transport_socket_matches, context)?)),
        None => None,
    };
    let sockets = TransportSockets { default, matches: matches.into(), matcher };
    if matches!(http.protocol, HttpProtocol::Auto(..)) && !sockets.all().all(TransportSocket::can_agree) {
        let reason = "ALPN configured for a cluster which has a non-ALPN transport socket";
        return Err(context.error_at("typed_extension_protocol_options", reason));
    }
    Ok(sockets)
}

/// `transport_socket_matcher`: its actions name matches, whose own criteria do not count then. A name that none has is the cluster's
/// own socket, as in Envoy.
fn compile_matcher(
    matcher: &MatcherProto,
    matches: &[TransportSocketMatch],
    context: &mut CompileContext<'_>,
) -> Result<SocketMatcher, FieldError> {
    let mut by_name = HashMap::with_capacity(matches.len());
    for (index, given) in matches.iter().enumerate() {
        if by_name.insert(given.name.as_str(), index).is_some() {
            let reason = format!("Duplicate transport socket name '{}' found in transport_socket_matches", given.name);
            return Err(context.error_at(&format!("transport_socket_matches[{index}].name"), reason));
        }
    }
    context.within("transport_socket_matcher", |context| {
        let action = &mut |action: &TypedExtensionConfig, context: &mut CompileContext<'_>| {
            let config = action.typed_config.as_ref();
            let url = config.map_or("", |config| config.type_url.as_str());
            match config.filter(|_| any::type_name(url) == Some(&TransportSocketNameAction::full_name())) {
                Some(config) => {
                    let named: TransportSocketNameAction = any::unpack(config, &context.path)?;
                    Ok(by_name.get(named.name.as_str()).copied())
                }
                None => {
                    let name = &action.name;
                    let reason = format!("Didn't find a registered implementation for '{name}' with type URL: '{url}'");
                    Err(context.error_at("typed_config", reason))
                }
            }
        };
        Matcher::compile(matcher, Inputs::Host, context, action).map(SocketMatcher)
    })
}

fn one(
    proto: &TransportSocketProto,
    scope: &Scope,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<TransportSocket, FieldError> {
    let Some(ConfigType::TypedConfig(config)) = &proto.config_type else {
        let reason = format!("didn't find a registered implementation for '{}' with type URL: ''", proto.name);
        return Err(context.error_at("typed_config", reason));
    };
    let name = any::type_name(&config.type_url).unwrap_or_default();
    context.within("typed_config", |context| {
        if name == RawBuffer::full_name() {
            return Ok(TransportSocket::RawBuffer);
        }
        if name == UpstreamTlsContext::full_name() {
            let proto: UpstreamTlsContext = any::unpack(config, &context.path)?;
            return tls::upstream(&proto, scope, around, context).map(TransportSocket::Tls);
        }
        if name == ProxyProtocolUpstreamTransport::full_name() {
            let proto: ProxyProtocolUpstreamTransport = any::unpack(config, &context.path)?;
            return proxy(&proto, scope, around, context).map(TransportSocket::Proxy);
        }
        Err(context.error(format!("not supported yet: {name}")))
    })
}

fn proxy(
    proto: &ProxyProtocolUpstreamTransport,
    scope: &Scope,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<Arc<ProxySocket>, FieldError> {
    let config = proto.config.clone().unwrap_or_default();
    let added = context.within("config", |context| proxy_tlvs::compile(&config.added_tlvs, "added_tlvs", context))?;
    let Some(inner) = &proto.transport_socket else {
        return Err(context.error_at("transport_socket", "value is required"));
    };
    let inner = context.within("transport_socket", |context| one(inner, scope, around, context))?;
    let version = match config.version() {
        Version::V1 => ProxyVersion::V1,
        Version::V2 => ProxyVersion::V2,
    };
    let passed = PassedTlvs::of(config.pass_through_tlvs.as_ref());
    Ok(Arc::new(ProxySocket { version, passed, added, inner }))
}
