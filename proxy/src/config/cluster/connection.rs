//! How sockets to hosts are made: source addresses, keep-alive, order of addresses.

use std::time::Duration;

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::PreconnectPolicy;
use tidegate_xds::pb::envoy::config::cluster::v3::upstream_connection_options::{
    FirstAddressFamilyVersion, HappyEyeballsConfig,
};
use tidegate_xds::pb::envoy::config::cluster::v3::{Cluster, UpstreamConnectionOptions};
use tidegate_xds::pb::envoy::config::core::v3::{BindConfig as BindConfigProto, TcpKeepalive as TcpKeepaliveProto};
use tidegate_xds::pb::envoy::config::upstream::local_address_selector::v3::DefaultLocalAddressSelector;
use tidegate_xds::pb::envoy::extensions::upstreams::http::generic::v3::GenericConnectionPoolProto;
use tidegate_xds::{FieldError, any};

use super::address;
use crate::cluster::options::{AddressFamily, BindConfig, ConnectionOptions, HappyEyeballs, Source, TcpKeepalive};
use crate::config::values;
use crate::listener::SocketOption;

/// `inherited` is the bind configuration of the whole cluster manager, which the cluster's own replaces.
pub(super) fn compile(
    proto: &Cluster,
    inherited: Option<&BindConfig>,
    context: &mut CompileContext<'_>,
) -> Result<ConnectionOptions, FieldError> {
    let source = match &proto.upstream_bind_config {
        Some(own) => bind(own, "upstream_bind_config", context)?,
        None => inherited.cloned(),
    };
    check_upstream(proto, context)?;
    let options = proto.upstream_connection_options.unwrap_or_default();
    Ok(ConnectionOptions {
        tcp_keepalive: options.tcp_keepalive.as_ref().map(tcp_keepalive),
        source: source.map(Box::new),
        happy_eyeballs: happy_eyeballs(&options, context)?,
        close_on_host_set_change: proto
            .common_lb_config
            .as_ref()
            .is_some_and(|lb| lb.close_connections_on_host_set_change),
    })
}

/// Only the pool that everybody has: HTTP, and plain bytes where a CONNECT ends here.
fn check_upstream(proto: &Cluster, context: &CompileContext<'_>) -> Result<(), FieldError> {
    let Some(upstream) = &proto.upstream_config else { return Ok(()) };
    let config = upstream.typed_config.clone().unwrap_or_default();
    let name = any::type_name(&config.type_url).unwrap_or_default();
    if name == <GenericConnectionPoolProto as prost::Name>::full_name() {
        return Ok(());
    }
    Err(context.error_at("upstream_config.typed_config", format!("not supported yet: {name}")))
}

/// How many connections a host has for each request.
pub(super) fn preconnect_ratio(
    proto: Option<&PreconnectPolicy>,
    context: &CompileContext<'_>,
) -> Result<f64, FieldError> {
    let Some(proto) = proto else { return Ok(1.0) };
    if proto.predictive_preconnect_ratio.is_some_and(|ratio| ratio.value > 1.0) {
        let field = "preconnect_policy.predictive_preconnect_ratio";
        return Err(context.error_at(field, "not supported yet: predictive_preconnect_ratio"));
    }
    Ok(proto.per_upstream_preconnect_ratio.map_or(1.0, |ratio| ratio.value))
}

/// A bind configuration; `None` when it says nothing.
pub(super) fn bind(
    proto: &BindConfigProto,
    field: &str,
    context: &mut CompileContext<'_>,
) -> Result<Option<BindConfig>, FieldError> {
    context.within(field, |context| {
        check_selector(proto, context)?;
        let options = values::socket_options(&proto.socket_options);
        let extra = extra_address(proto, &options, context)?;
        let Some(source) = &proto.source_address else {
            if extra.is_some() {
                let reason = "extra source addresses cannot be specified if source_address is not set";
                return Err(context.error(reason));
            }
            let said = !options.is_empty();
            return Ok(said.then_some(BindConfig {
                first: Source { address: None, options },
                extra: None,
                freebind: false,
            }));
        };
        let address = context.within("source_address", |context| address::ip(source, context))?;
        if extra.as_ref().and_then(|extra| extra.address).is_some_and(|extra| extra.is_ipv4() == address.is_ipv4()) {
            return Err(context.error("has two same IP version source addresses, only different ones are supported"));
        }
        let first = Source { address: Some(address), options };
        Ok(Some(BindConfig { first, extra, freebind: proto.freebind.is_some_and(|freebind| freebind.value) }))
    })
}

/// Only Envoy's own way to choose among the addresses.
fn check_selector(proto: &BindConfigProto, context: &CompileContext<'_>) -> Result<(), FieldError> {
    let Some(selector) = &proto.local_address_selector else { return Ok(()) };
    let config = selector.typed_config.clone().unwrap_or_default();
    let name = any::type_name(&config.type_url).unwrap_or_default();
    if name == <DefaultLocalAddressSelector as prost::Name>::full_name() {
        return Ok(());
    }
    Err(context.error_at("local_address_selector.typed_config", format!("not supported yet: {name}")))
}

/// The other address; it has the options of the first where it has none of its own.
fn extra_address(
    proto: &BindConfigProto,
    options: &[SocketOption],
    context: &mut CompileContext<'_>,
) -> Result<Option<Source>, FieldError> {
    #[expect(deprecated, reason = "Envoy 1.40 reads it")]
    let additional = &proto.additional_source_addresses;
    let extra = &proto.extra_source_addresses;
    if !additional.is_empty() && !extra.is_empty() {
        return Err(context.error("can't specify both `extra_source_addresses` and `additional_source_addresses`"));
    }
    if additional.len() + extra.len() > 1 {
        return Err(context.error("has more than one extra source address, only one is supported"));
    }
    if let [one] = additional.as_slice() {
        let address = context.within("additional_source_addresses[0]", |context| address::ip(one, context))?;
        return Ok(Some(Source { address: Some(address), options: options.to_vec() }));
    }
    let [one] = extra.as_slice() else { return Ok(None) };
    let address = one.address.clone().unwrap_or_default();
    let address = context.within("extra_source_addresses[0].address", |context| address::ip(&address, context))?;
    let own = one.socket_options.as_ref().map(|own| values::socket_options(&own.socket_options));
    Ok(Some(Source { address: Some(address), options: own.unwrap_or_else(|| options.to_vec()) }))
}

fn tcp_keepalive(proto: &TcpKeepaliveProto) -> TcpKeepalive {
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    TcpKeepalive {
        probes: proto.keepalive_probes.map(|probes| probes.value),
        time: proto.keepalive_time.map(|time| seconds(time.value)),
        interval: proto.keepalive_interval.map(|interval| seconds(interval.value)),
    }
}

fn happy_eyeballs(
    options: &UpstreamConnectionOptions,
    context: &CompileContext<'_>,
) -> Result<HappyEyeballs, FieldError> {
    let Some(proto) = &options.happy_eyeballs_config else {
        return Ok(HappyEyeballs::default());
    };
    let HappyEyeballsConfig { first_address_family_version, first_address_family_count } = proto;
    let first = match FirstAddressFamilyVersion::try_from(*first_address_family_version) {
        Ok(FirstAddressFamilyVersion::V4) => Some(AddressFamily::V4),
        Ok(FirstAddressFamilyVersion::V6) => Some(AddressFamily::V6),
        Ok(FirstAddressFamilyVersion::Default) => None,
        _ => {
            let field = "upstream_connection_options.happy_eyeballs_config.first_address_family_version";
            return Err(context.error_at(field, "not supported yet: a family that is not of IP"));
        }
    };
    Ok(HappyEyeballs { first, first_count: first_address_family_count.map_or(1, |count| count.value.max(1)) })
}
