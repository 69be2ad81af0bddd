//! How sockets to hosts are made: source addresses, keep-alive, order of addresses.

use std::net::SocketAddr;
use std::time::Duration;

use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::PreconnectPolicy;
use tidegate_xds::pb::envoy::config::cluster::v3::upstream_connection_options::{
    FirstAddressFamilyVersion, HappyEyeballsConfig,
};
use tidegate_xds::pb::envoy::config::cluster::v3::{Cluster, UpstreamConnectionOptions};
use tidegate_xds::pb::envoy::config::core::v3::{BindConfig as BindConfigProto, TcpKeepalive as TcpKeepaliveProto};

use super::address;
use crate::cluster::options::{AddressFamily, BindConfig, ConnectionOptions, HappyEyeballs, TcpKeepalive};

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
    let options = proto.upstream_connection_options.unwrap_or_default();
    Ok(ConnectionOptions {
        tcp_keepalive: options.tcp_keepalive.as_ref().map(tcp_keepalive),
        source: source.map(Box::new),
        happy_eyeballs: happy_eyeballs(&options, context)?,
    })
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

/// A bind configuration; `None` when it names no address.
pub(super) fn bind(
    proto: &BindConfigProto,
    field: &str,
    context: &mut CompileContext<'_>,
) -> Result<Option<BindConfig>, FieldError> {
    context.within(field, |context| {
        let extra = extra_addresses(proto, context)?;
        let Some(source) = &proto.source_address else {
            if extra.is_some() {
                let reason = "extra source addresses cannot be specified if source_address is not set";
                return Err(context.error(reason));
            }
            return Ok(None);
        };
        let source = context.within("source_address", |context| address::ip(source, context))?;
        let mut addresses = vec![source];
        if let Some(extra) = extra {
            if extra.is_ipv4() == source.is_ipv4() {
                return Err(
                    context.error("has two same IP version source addresses, only different ones are supported")
                );
            }
            addresses.push(extra);
        }
        Ok(Some(BindConfig { addresses, freebind: proto.freebind.is_some_and(|freebind| freebind.value) }))
    })
}

fn extra_addresses(
    proto: &BindConfigProto,
    context: &mut CompileContext<'_>,
) -> Result<Option<SocketAddr>, FieldError> {
    #[expect(deprecated, reason = "Envoy 1.40 reads it")]
    let additional = &proto.additional_source_addresses;
    let extra: Vec<_> = proto.extra_source_addresses.iter().filter_map(|extra| extra.address.as_ref()).collect();
    if !additional.is_empty() && !extra.is_empty() {
        return Err(context.error("can't specify both `extra_source_addresses` and `additional_source_addresses`"));
    }
    match extra.into_iter().chain(additional).collect::<Vec<_>>().as_slice() {
        [] => Ok(None),
        [one] => context.within("extra_source_addresses[0].address", |context| address::ip(one, context)).map(Some),
        _ => Err(context.error("has more than one extra source address, only one is supported")),
    }
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
