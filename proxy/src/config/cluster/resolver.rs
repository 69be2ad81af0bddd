//! Which DNS resolver is asked, and how: the typed forms of the bootstrap and of clusters, and those before them.
//! It must not know what is resolved.

use std::net::SocketAddr;
use std::time::Duration;

use tidegate_filters::context::CompileContext;
use tidegate_filters::stream_info::Address;
use tidegate_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::config::core::v3::{
    Address as AddressProto, DnsResolutionConfig, DnsResolverOptions, TypedExtensionConfig,
};
use tidegate_xds::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use tidegate_xds::pb::envoy::extensions::network::dns_resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig;
use tidegate_xds::pb::envoy::extensions::network::dns_resolver::hickory::v3::HickoryDnsResolverConfig;
use tidegate_xds::{FieldError, any};

use super::address;
use super::values::duration;
use crate::cluster::dns::{Cache, ResolverConfig};

/// The bootstrap's, for every cluster that has none of its own.
#[expect(deprecated, reason = "Envoy 1.40 reads them")]
pub(super) fn of_bootstrap(
    bootstrap: &Bootstrap,
    context: &mut CompileContext<'_>,
) -> Result<ResolverConfig, FieldError> {
    if let Some(typed) = &bootstrap.typed_dns_resolver_config {
        return self::typed(typed, context);
    }
    match &bootstrap.dns_resolution_config {
        Some(config) => resolution(config, context),
        None => Ok(ResolverConfig { use_tcp: bootstrap.use_tcp_for_dns_lookups, ..ResolverConfig::default() }),
    }
}

/// The typed form of a cluster, else the two older ones where they name servers, else the bootstrap's.
#[expect(deprecated, reason = "Envoy 1.40 reads them")]
pub(super) fn of_cluster(
    proto: &Cluster,
    default: &ResolverConfig,
    context: &mut CompileContext<'_>,
) -> Result<ResolverConfig, FieldError> {
    if let Some(typed) = &proto.typed_dns_resolver_config {
        return self::typed(typed, context);
    }
    if let Some(config) = proto.dns_resolution_config.as_ref().filter(|config| !config.resolvers.is_empty()) {
        return resolution(config, context);
    }
    if proto.dns_resolvers.is_empty() {
        return Ok(default.clone());
    }
    let servers = servers(&proto.dns_resolvers, "dns_resolvers", context)?;
    Ok(ResolverConfig { servers, use_tcp: proto.use_tcp_for_dns_lookups, ..ResolverConfig::default() })
}

fn resolution(proto: &DnsResolutionConfig, context: &mut CompileContext<'_>) -> Result<ResolverConfig, FieldError> {
    context.within("dns_resolution_config", |context| {
        let servers = servers(&proto.resolvers, "resolvers", context)?;
        let resolver = ResolverConfig { servers, ..ResolverConfig::default() };
        Ok(with_options(resolver, proto.dns_resolver_options.as_ref()))
    })
}

/// A `typed_dns_resolver_config`.
pub(super) fn typed(
    proto: &TypedExtensionConfig,
    context: &mut CompileContext<'_>,
) -> Result<ResolverConfig, FieldError> {
    context.within("typed_dns_resolver_config", |context| {
        let config = proto.typed_config.clone().unwrap_or_default();
        let name = any::type_name(&config.type_url).unwrap_or_default();
        let is = |full: String| name == full;
        if is(<CaresDnsResolverConfig as prost::Name>::full_name()) {
            context.within("typed_config", |context| cares(&any::unpack(&config, &context.path)?, context))
        } else if is(<GetAddrInfoDnsResolverConfig as prost::Name>::full_name()) {
            context.within("typed_config", |context| Ok(getaddrinfo(&any::unpack(&config, &context.path)?)))
        } else if is(<HickoryDnsResolverConfig as prost::Name>::full_name()) {
            context.within("typed_config", |context| hickory(&any::unpack(&config, &context.path)?, context))
        } else {
            Err(context.error_at("typed_config", format!("not supported yet: {name}")))
        }
    })
}

fn cares(proto: &CaresDnsResolverConfig, context: &mut CompileContext<'_>) -> Result<ResolverConfig, FieldError> {
    let default = ResolverConfig::default();
    let longest = proto.qcache_max_ttl.map(|seconds| Duration::from_secs(seconds.value.into()));
    let resolver = ResolverConfig {
        servers: servers(&proto.resolvers, "resolvers", context)?,
        servers_are_fallback: proto.use_resolvers_as_fallback,
        timeout: proto.query_timeout_seconds.map_or(default.timeout, |time| Duration::from_secs(time.value)),
        tries: proto.query_tries.map_or(default.tries, |tries| tries.value),
        rotate: proto.rotate_nameservers,
        cache: longest.filter(|longest| !longest.is_zero()).map(|longest| Cache { longest, ..Cache::default() }),
        ..default
    };
    Ok(with_options(resolver, proto.dns_resolver_options.as_ref()))
}

/// The system's resolver tells no TTL: Envoy's own is a minute.
fn getaddrinfo(proto: &GetAddrInfoDnsResolverConfig) -> ResolverConfig {
    let default = ResolverConfig::default();
    ResolverConfig {
        tries: proto.num_retries.map_or(default.tries, |retries| retries.value.saturating_add(1)),
        ttl: Some(Duration::from_secs(60)),
        ..default
    }
}

fn hickory(proto: &HickoryDnsResolverConfig, context: &mut CompileContext<'_>) -> Result<ResolverConfig, FieldError> {
    let system = proto.use_system_config.map_or(proto.resolvers.is_empty(), |system| system.value);
    if !system && proto.resolvers.is_empty() {
        return Err(context.error_at("use_system_config", "not supported yet: a resolver without any server"));
    }
    let size = proto.cache_size.map_or(Cache::default().size, |size| size.value.into());
    let default = ResolverConfig::default();
    Ok(ResolverConfig {
        servers: servers(&proto.resolvers, "resolvers", context)?,
        timeout: duration(proto.query_timeout.as_ref(), "query_timeout", context)?.unwrap_or(default.timeout),
        tries: proto.query_tries.map_or(3, |tries| tries.value),
        no_search_domain: !system,
        cache: (size > 0).then(|| Cache { size, ..Cache::default() }),
        ..default
    })
}

fn with_options(resolver: ResolverConfig, options: Option<&DnsResolverOptions>) -> ResolverConfig {
    let Some(options) = options else {
        return resolver;
    };
    ResolverConfig {
        use_tcp: options.use_tcp_for_dns_lookups,
        no_search_domain: options.no_default_search_domain,
        ..resolver
    }
}

fn servers(
    addresses: &[AddressProto],
    field: &str,
    context: &mut CompileContext<'_>,
) -> Result<Vec<SocketAddr>, FieldError> {
    let mut servers = Vec::with_capacity(addresses.len());
    for (index, proto) in addresses.iter().enumerate() {
        match address::resolved(Some(proto), &format!("{field}[{index}]"), context)? {
            Address::Ip(server) => servers.push(server),
            _ => {
                return Err(context.error_at(&format!("{field}[{index}]"), "a DNS server has an IP address"));
            }
        }
    }
    Ok(servers)
}
