//! `envoy.config.listener.v3.Listener` -> [`Listener`]. It must not know how a listener is served.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tidegate_filters::context::CompileContext;
use tidegate_filters::matching::cidr::Cidr;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::listener::v3 as proto;
use tidegate_xds::pb::google::protobuf::{Any, BoolValue};
use tidegate_xds::{Coverage, FieldError, any};

use super::Compiler;
use super::values::{self, duration, wrapped_bool, wrapped_u32};
use crate::http::stats::ListenerHttpStats;
use crate::listener::filter_chain::SourceType;
use crate::listener::{ChainMatch, DrainType, FilterChain, FilterChains, Listener, SocketSettings, Terminal};
use crate::stats::listener::ListenerStats;

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.listener.v3.Listener",
        enforced: &[
            "name",
            "address",
            "additional_addresses",
            "stat_prefix",
            "filter_chains",
            "default_filter_chain",
            "use_original_dst",
            "per_connection_buffer_limit_bytes",
            "drain_type",
            "listener_filters",
            "listener_filters_timeout",
            "continue_on_listener_filters_timeout",
            "transparent",
            "freebind",
            "socket_options",
            "tcp_fast_open_queue_length",
            "traffic_direction",
            "enable_reuse_port",
            "access_log",
            "tcp_backlog_size",
            "bind_to_port",
            "tcp_keepalive",
            "deprecated_v1",
        ],
        listed: &[
            ("metadata", "only filters that are not built yet read it"),
            (
                "max_connections_to_accept_per_socket_event",
                "connections are accepted one at a time, each worker in turn",
            ),
            ("reuse_port", "deprecated and ignored by Envoy as well"),
            ("connection_balance_config", "workers share the load by SO_REUSEPORT"),
            ("ignore_global_conn_limit", "there is no global limit yet, so every listener ignores it"),
            ("bypass_overload_manager", "there is no overload manager yet, so every listener bypasses it"),
        ],
    },
    Coverage { message: "envoy.config.listener.v3.Listener.DeprecatedV1", enforced: &["bind_to_port"], listed: &[] },
    Coverage { message: "envoy.config.listener.v3.AdditionalAddress", enforced: &["address"], listed: &[] },
    Coverage {
        message: "envoy.config.listener.v3.FilterChain",
        enforced: &["filter_chain_match", "filters", "name", "transport_socket", "transport_socket_connect_timeout"],
        listed: &[("metadata", "only filters that are not built yet read it")],
    },
    Coverage {
        message: "envoy.config.listener.v3.FilterChainMatch",
        enforced: &[
            "destination_port",
            "prefix_ranges",
            "direct_source_prefix_ranges",
            "source_type",
            "source_prefix_ranges",
            "source_ports",
            "server_names",
            "transport_protocol",
            "application_protocols",
        ],
        listed: &[],
    },
    Coverage { message: "envoy.config.listener.v3.Filter", enforced: &["name", "typed_config"], listed: &[] },
    Coverage { message: "envoy.config.listener.v3.ListenerFilter", enforced: &["name", "typed_config"], listed: &[] },
    Coverage { message: "envoy.config.core.v3.TransportSocket", enforced: &["name", "typed_config"], listed: &[] },
    Coverage { message: "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", enforced: &[], listed: &[] },
    Coverage { message: "envoy.extensions.filters.network.echo.v3.Echo", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.extensions.filters.network.direct_response.v3.Config",
        enforced: &["response"],
        listed: &[],
    },
    Coverage { message: "envoy.config.core.v3.CidrRange", enforced: &["address_prefix", "prefix_len"], listed: &[] },
];

/// A digest of a message, to tell a change from none.
pub(super) fn digest(message: &impl Message) -> u64 {
    ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(message.encode_to_vec())
}

/// Compiles one listener. `previous` is the one that it replaces: filter chains that say the same as before live on.
pub(crate) fn compile(
    compiler: &Compiler,
    listener: &proto::Listener,
    previous: Option<&Listener>,
    context: &mut CompileContext<'_>,
) -> Result<Listener, FieldError> {
    let mut addresses =
        vec![context.within("address", |context| values::listen_address(listener.address.as_ref(), context))?];
    for (index, more) in listener.additional_addresses.iter().enumerate() {
        addresses.push(context.within_item("additional_addresses", index, |context| {
            context.within("address", |context| values::listen_address(more.address.as_ref(), context))
        })?);
    }
    let stat_name = if listener.stat_prefix.is_empty() {
        addresses.first().map(ToString::to_string).unwrap_or_default()
    } else {
        listener.stat_prefix.clone()
    };
    let scope = compiler.stats.scope(&format!("listener.{}.", stat_name.replace(':', "_")));
    let chains = compile_chains(compiler, listener, previous, &scope, context)?;
    let filters = compiler.listener_filters(&listener.listener_filters, context)?;
    let access_logs = compiler.access_logs("access_log", &listener.access_log, context)?;
    let name = if listener.name.is_empty() { stat_name.clone() } else { listener.name.clone() };
    let bind = listener.bind_to_port.or_else(|| old_bind_to_port(listener)).map(|value| value.value);
    Ok(Listener {
        name: name.into(),
        addresses,
        bind_to_port: bind.unwrap_or(true),
        socket: socket_settings(listener),
        filters,
        filters_timeout: values::timeout(listener.listener_filters_timeout.as_ref(), Some(Duration::from_secs(15))),
        continue_on_filters_timeout: listener.continue_on_listener_filters_timeout,
        use_original_dst: wrapped_bool(listener.use_original_dst.as_ref(), false),
        chains,
        buffer_limit_bytes: wrapped_u32(listener.per_connection_buffer_limit_bytes.as_ref(), 1 << 20) as usize,
        drain_type: if listener.drain_type == i32::from(proto::listener::DrainType::ModifyOnly) {
            DrainType::ModifyOnly
        } else {
            DrainType::Default
        },
        inbound: listener.traffic_direction == i32::from(core::TrafficDirection::Inbound),
        access_logs,
        max_accepts_per_event: 0,
        exact_balance: false,
        stats: ListenerStats::new(&scope),
        digest: digest(listener),
    })
}

#[expect(deprecated, reason = "Envoy 1.40 reads it")]
fn old_bind_to_port(listener: &proto::Listener) -> Option<BoolValue> {
    listener.deprecated_v1.as_ref()?.bind_to_port
}

fn socket_settings(listener: &proto::Listener) -> SocketSettings {
    SocketSettings {
        options: listener.socket_options.iter().map(values::socket_option).collect(),
        reuse_port: wrapped_bool(listener.enable_reuse_port.as_ref(), true),
        transparent: wrapped_bool(listener.transparent.as_ref(), false),
        freebind: wrapped_bool(listener.freebind.as_ref(), false),
        backlog: i32::try_from(wrapped_u32(listener.tcp_backlog_size.as_ref(), 4096)).unwrap_or(i32::MAX),
        tcp_fast_open: listener.tcp_fast_open_queue_length.as_ref().map(|value| value.value),
        keepalive: listener.tcp_keepalive.as_ref().map(values::keepalive),
    }
}

fn compile_chains(
    compiler: &Compiler,
    listener: &proto::Listener,
    previous: Option<&Listener>,
    scope: &tidegate_stats::Scope,
    context: &mut CompileContext<'_>,
) -> Result<FilterChains, FieldError> {
    if listener.filter_chains.is_empty() && listener.default_filter_chain.is_none() {
        return Err(context.error_at("filter_chains", "no filter chains specified"));
    }
    let mut chains = Vec::with_capacity(listener.filter_chains.len());
    for (index, chain) in listener.filter_chains.iter().enumerate() {
        let compiled = context.within_item("filter_chains", index, |context| {
            let rule = compile_match(chain.filter_chain_match.as_ref(), context)?;
            Ok((rule, compile_chain(compiler, chain, previous, scope, context)?))
        })?;
        chains.push(compiled);
    }
    let default = match &listener.default_filter_chain {
        Some(chain) => Some(
            context
                .within("default_filter_chain", |context| compile_chain(compiler, chain, previous, scope, context))?,
        ),
        None => None,
    };
    FilterChains::build(chains, default).map_err(|duplicate| {
        let name = |index: usize| listener.filter_chains.get(index).map_or("", |chain| chain.name.as_str());
        let reason = format!(
            "filter chain '{}' has the same matching rules defined as '{}'",
            name(duplicate.second),
            name(duplicate.first)
        );
        context.error_at(&format!("filter_chains[{}]", duplicate.second), reason)
    })
}

fn compile_match(
    rule: Option<&proto::FilterChainMatch>,
    context: &mut CompileContext<'_>,
) -> Result<ChainMatch, FieldError> {
    let Some(rule) = rule else { return Ok(ChainMatch::default()) };
    context.within("filter_chain_match", |context| {
        for (index, name) in rule.server_names.iter().enumerate() {
            let partial = name.strip_prefix("*.").unwrap_or(name).contains('*');
            if partial {
                let reason = format!("partial wildcards are not supported in server_names: {name}");
                return Err(context.error_at(&format!("server_names[{index}]"), reason));
            }
        }
        use proto::filter_chain_match::ConnectionSourceType as Source;
        Ok(ChainMatch {
            destination_port: rule.destination_port.as_ref().and_then(|port| u16::try_from(port.value).ok()),
            destination: ranges("prefix_ranges", &rule.prefix_ranges, context)?,
            server_names: rule.server_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            transport_protocol: rule.transport_protocol.clone(),
            application_protocols: rule.application_protocols.clone(),
            direct_source: ranges("direct_source_prefix_ranges", &rule.direct_source_prefix_ranges, context)?,
            source_type: match Source::try_from(rule.source_type) {
                Ok(Source::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
                Ok(Source::External) => SourceType::External,
                _ => SourceType::Any,
            },
            source: ranges("source_prefix_ranges", &rule.source_prefix_ranges, context)?,
            source_ports: rule.source_ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect(),
        })
    })
}

fn ranges(field: &str, ranges: &[core::CidrRange], context: &mut CompileContext<'_>) -> Result<Vec<Cidr>, FieldError> {
    let compile = |(index, range): (usize, &core::CidrRange)| {
        context.within_item(field, index, |context| Cidr::compile(range, context))
    };
    ranges.iter().enumerate().map(compile).collect()
}

fn compile_chain(
    compiler: &Compiler,
    chain: &proto::FilterChain,
    previous: Option<&Listener>,
    scope: &tidegate_stats::Scope,
    context: &mut CompileContext<'_>,
) -> Result<Arc<FilterChain>, FieldError> {
    let digest = digest(chain);
    let before = previous.into_iter().flat_map(|listener| listener.chains.all.iter().chain(&listener.chains.default));
    if let Some(same) = before.into_iter().find(|before| before.digest == digest) {
        return Ok(Arc::clone(same));
    }
    if let Some(socket) = &chain.transport_socket {
        context.within("transport_socket", |context| plain_transport(socket, context))?;
    }
    let (filters, terminal) = compile_filters(compiler, &chain.filters, scope, context)?;
    Ok(Arc::new(FilterChain {
        name: chain.name.as_str().into(),
        filters,
        terminal,
        transport_connect_timeout: chain.transport_socket_connect_timeout.as_ref().map(duration),
        drain: Arc::default(),
        digest,
    }))
}

fn plain_transport(socket: &core::TransportSocket, context: &CompileContext<'_>) -> Result<(), FieldError> {
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Err(context.error("a transport socket needs a typed_config"));
    };
    match any::type_name(&config.type_url) {
        Some("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer") => Ok(()),
        _ => Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url))),
    }
}

type Compiled = (Vec<Arc<dyn tidegate_filters::network::NetworkFilterConfig>>, Terminal);

fn compile_filters(
    compiler: &Compiler,
    filters: &[proto::Filter],
    scope: &tidegate_stats::Scope,
    context: &mut CompileContext<'_>,
) -> Result<Compiled, FieldError> {
    let Some((last, before)) = filters.split_last() else { return Ok((Vec::new(), Terminal::Close)) };
    let mut compiled = Vec::with_capacity(before.len());
    for (index, filter) in before.iter().enumerate() {
        compiled.push(context.within_item("filters", index, |context| {
            let config = typed_config(filter, context)?;
            compiler.network_filter(config, context)
        })?);
    }
    let terminal = context.within_item("filters", before.len(), |context| {
        let config = typed_config(last, context)?;
        context.within("typed_config", |context| terminal(compiler, config, scope, context))
    })?;
    Ok((compiled, terminal))
}

fn typed_config<'a>(filter: &'a proto::Filter, context: &CompileContext<'_>) -> Result<&'a Any, FieldError> {
    match &filter.config_type {
        Some(proto::filter::ConfigType::TypedConfig(config)) => Ok(config),
        Some(proto::filter::ConfigType::ConfigDiscovery(_)) => {
            Err(context.error_at("config_discovery", "not supported yet: extension configuration discovery"))
        }
        None => {
            Err(context
                .error(format!("Didn't find a registered implementation for '{}' with type URL: ''", filter.name)))
        }
    }
}

fn terminal(
    compiler: &Compiler,
    config: &Any,
    scope: &tidegate_stats::Scope,
    context: &mut CompileContext<'_>,
) -> Result<Terminal, FieldError> {
    use tidegate_xds::pb::envoy::extensions::filters::network as filters;
    match any::type_name(&config.type_url) {
        Some("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager") => {
            let config = any::unpack(config, &context.path)?;
            let hcm = super::http_connection_manager::compile(compiler, &config, context)?;
            let stats =
                ListenerHttpStats::new(&scope.scope(&format!("http.{}.", config.stat_prefix.replace(':', "_"))));
            Ok(Terminal::Http(Arc::new(hcm), stats))
        }
        Some("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy") => {
            let config = any::unpack(config, &context.path)?;
            super::tcp_proxy::compile(compiler, &config, context).map(|proxy| Terminal::Tcp(Arc::new(proxy)))
        }
        Some("envoy.extensions.filters.network.echo.v3.Echo") => Ok(Terminal::Echo),
        Some("envoy.extensions.filters.network.direct_response.v3.Config") => {
            let config: filters::direct_response::v3::Config = any::unpack(config, &context.path)?;
            let bytes = match &config.response {
                Some(source) => context.within("response", |context| compiler.data_source(source, context))?,
                None => Bytes::new(),
            };
            Ok(Terminal::DirectResponse(bytes))
        }
        _ => {
            let reason = format!("not supported yet: {} as the last filter of a chain", config.type_url);
            Err(context.error(reason))
        }
    }
}
