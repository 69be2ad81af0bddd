//! `envoy.config.listener.v3.Listener` -> [`Listener`]. It must not know how a listener is served.

mod coverage;
mod filter_chain;
mod listener_filter;

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::listener::v3 as proto;
use tidegate_xds::pb::google::protobuf::BoolValue;

pub(crate) use coverage::COVERAGE;

use super::values::{self, wrapped_bool, wrapped_u32};
use super::{Compiler, cluster};
use crate::listener::{DrainType, ListenSocket, Listener, SocketSettings};
use crate::stats::listener::ListenerStats;

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
    let sockets = sockets(listener, context)?;
    if let Some(previous) = previous {
        keeps_its_sockets(listener, &sockets, previous, context)?;
    }
    let main = sockets.first().map(|socket| socket.address.to_string()).unwrap_or_default();
    let stat_name = if listener.stat_prefix.is_empty() { main } else { listener.stat_prefix.clone() };
    let scope = compiler.stats.scope(&format!("listener.{}.", stat_name.replace(':', "_")));
    // What is buffered for a connection is the listener's to say.
    let compiler = &Compiler { buffer_limit_bytes: buffer_limit(listener), ..compiler.clone() };
    let chains = filter_chain::compile_all(compiler, listener, previous, &scope, context)?;
    let use_original_dst = wrapped_bool(listener.use_original_dst.as_ref(), false);
    let mut filters = listener_filter::compile_all(compiler, listener, context)?;
    if use_original_dst {
        // After the others, as in Envoy: who hands connections on must know where they were going.
        filters.push(tidegate_filters::listener::original_destination());
    }
    let access_logs = compiler.access_logs("access_log", &listener.access_log, context)?;
    let name = if listener.name.is_empty() { stat_name.clone() } else { listener.name.clone() };
    let bind = listener.bind_to_port.or_else(|| old_bind_to_port(listener)).map(|value| value.value);
    let most_accepts = wrapped_u32(listener.max_connections_to_accept_per_socket_event.as_ref(), u32::MAX);
    Ok(Listener {
        limit_key: format!("envoy.resource_limits.listener.{name}.connection_limit"),
        name: name.into(),
        metadata: listener.metadata.as_ref().map(|metadata| Arc::new(cluster::values::metadata(Some(metadata)))),
        sockets,
        bind_to_port: bind.unwrap_or(true),
        filters,
        filters_timeout: values::timeout(listener.listener_filters_timeout.as_ref(), Some(Duration::from_secs(15))),
        continue_on_filters_timeout: listener.continue_on_listener_filters_timeout,
        use_original_dst,
        chains,
        inbound: listener.traffic_direction == i32::from(core::TrafficDirection::Inbound),
        access_logs,
        max_accepts_per_event: most_accepts,
        exact_balance: listener.connection_balance_config.is_some(),
        ignore_global_limit: listener.ignore_global_conn_limit || listener.bypass_overload_manager,
        stats: ListenerStats::new(&scope),
        scope,
        digest: digest(listener),
        position: previous.map_or(0, |previous| previous.position),
    })
}

/// A port that is not shared cannot be bound a second time, with other options, while the first socket serves.
fn keeps_its_sockets(
    listener: &proto::Listener,
    sockets: &[ListenSocket],
    previous: &Listener,
    context: &CompileContext<'_>,
) -> Result<(), FieldError> {
    let changed = |socket: &ListenSocket| {
        let before = previous.sockets.iter().find(|before| before.address == socket.address);
        before.is_some_and(|before| !before.settings.same_but_backlog(&socket.settings))
    };
    let name = &listener.name;
    let shares = |sockets: &[ListenSocket]| sockets.first().map(|socket| socket.settings.reuse_port);
    if shares(sockets) != shares(&previous.sockets) {
        let reason = format!("Listener {name}: reuse port cannot be changed during an update");
        return Err(context.error_at("enable_reuse_port", reason));
    }
    if !previous.bind_to_port || sockets.iter().all(|socket| socket.settings.reuse_port || !changed(socket)) {
        return Ok(());
    }
    let reason = format!(
        "listener '{name}' has the address of the existing one, whose sockets are made otherwise, and 'enable_reuse_port' is \
         'false'"
    );
    Err(context.error_at("enable_reuse_port", reason))
}

#[expect(deprecated, reason = "Envoy 1.40 reads it")]
fn old_bind_to_port(listener: &proto::Listener) -> Option<BoolValue> {
    listener.deprecated_v1.as_ref()?.bind_to_port
}

fn drain_type(listener: &proto::Listener) -> DrainType {
    match listener.drain_type() {
        proto::listener::DrainType::ModifyOnly => DrainType::ModifyOnly,
        proto::listener::DrainType::Default => DrainType::Default,
    }
}

fn buffer_limit(listener: &proto::Listener) -> usize {
    wrapped_u32(listener.per_connection_buffer_limit_bytes.as_ref(), 1 << 20) as usize
}

/// Every address, with the options of its sockets.
fn sockets(listener: &proto::Listener, context: &mut CompileContext<'_>) -> Result<Vec<ListenSocket>, FieldError> {
    let settings = socket_settings(listener);
    let address = context.within("address", |context| values::listen_address(listener.address.as_ref(), context))?;
    let mut sockets = vec![ListenSocket { address, settings: settings.clone() }];
    for (index, more) in listener.additional_addresses.iter().enumerate() {
        let address = context.within_item("additional_addresses", index, |context| {
            context.within("address", |context| values::listen_address(more.address.as_ref(), context))
        })?;
        let mut settings = settings.clone();
        if let Some(options) = &more.socket_options {
            settings.options = values::socket_options(&options.socket_options);
        }
        if let Some(keepalive) = &more.tcp_keepalive {
            settings.keepalive = Some(values::keepalive(keepalive));
        }
        sockets.push(ListenSocket { address, settings });
    }
    Ok(sockets)
}

fn socket_settings(listener: &proto::Listener) -> SocketSettings {
    SocketSettings {
        options: values::socket_options(&listener.socket_options),
        reuse_port: wrapped_bool(listener.enable_reuse_port.as_ref(), true),
        transparent: wrapped_bool(listener.transparent.as_ref(), false),
        freebind: wrapped_bool(listener.freebind.as_ref(), false),
        backlog: i32::try_from(wrapped_u32(listener.tcp_backlog_size.as_ref(), 4096)).unwrap_or(i32::MAX),
        tcp_fast_open: listener.tcp_fast_open_queue_length.as_ref().map(|value| value.value),
        keepalive: listener.tcp_keepalive.as_ref().map(values::keepalive),
    }
}
