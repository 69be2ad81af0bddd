//! `envoy.config.cluster.v3.Cluster` as a [`ClusterConfig`]. Pure: it resolves no name and makes no connection; it must not
//! know which clusters there are.

mod address;
mod assignment;
mod balancing;
mod circuit_breakers;
mod connection;
mod coverage;
mod dns;
mod http_options;
pub(crate) mod protocol;
mod resolver;
mod subsets;
#[cfg(test)]
pub(crate) mod testing;
mod transport_socket;
pub(crate) mod values;

use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::config::bootstrap::v3::{Bootstrap, ClusterManager};
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, CustomClusterType, DiscoveryType};
use tidegate_xds::pb::envoy::config::cluster::v3::{Cluster, TrackClusterStats};
use tidegate_xds::pb::envoy::config::core::v3::ConfigSource;
use tidegate_xds::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use tidegate_xds::{FieldError, any};

pub use assignment::compile_assignment;
pub use coverage::{COVERAGE, OPAQUE};

use super::sources::Known;
use super::values::wrapped_bool;
use super::{Node, tls};
use crate::cluster::dns::ResolverConfig;
use crate::cluster::endpoint::Assignment;
use crate::cluster::lb::{HashKey, Policy};
use crate::cluster::options::{BindConfig, ClusterConfig, ConnectionOptions, Discovery, Eds, HttpOptions};
use crate::http::options::FilterChain;

/// What a bootstrap says to all clusters.
#[derive(Debug, Clone, Default)]
pub struct ClusterDefaults {
    /// `cluster_manager.upstream_bind_config`.
    pub bind: Option<BindConfig>,
    /// The bootstrap's `typed_dns_resolver_config` or `dns_resolution_config`.
    pub resolver: ResolverConfig,
    /// Secrets, and where they may come from.
    pub(crate) tls: tls::Around,
    /// The node's zone.
    pub zone: Option<Arc<str>>,
    /// The options that were compiled last: most clusters have the same.
    last: Arc<Mutex<Weak<HttpOptions>>>,
}

impl ClusterDefaults {
    /// Reads the fields of a bootstrap that act on every cluster.
    ///
    /// # Errors
    /// What Envoy refuses in them, and what is not supported yet.
    pub(crate) fn compile(
        bootstrap: &Bootstrap,
        node: &Node,
        known: &Known,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let manager = bootstrap.cluster_manager.clone().unwrap_or_default();
        let ClusterManager { upstream_bind_config, .. } = &manager;
        let bind = match upstream_bind_config {
            Some(proto) => connection::bind(proto, "cluster_manager.upstream_bind_config", context)?,
            None => None,
        };
        let resolver = resolver::of_bootstrap(bootstrap, context)?;
        let zone = Some(node.zone.as_str()).filter(|zone| !zone.is_empty()).map(Arc::from);
        Ok(Self {
            bind,
            resolver,
            zone,
            tls: tls::Around { secrets: tls::Secrets::default(), known: known.clone() },
            last: Arc::default(),
        })
    }

    fn shared(&self, options: HttpOptions) -> Arc<HttpOptions> {
        let mut last = self.last.lock();
        if let Some(same) = last.upgrade().filter(|before| **before == options) {
            return same;
        }
        let options = Arc::new(options);
        *last = Arc::downgrade(&options);
        options
    }
}

/// A compiled cluster, and the parts that others compile or fetch.
#[derive(Debug, Clone)]
pub struct Compiled {
    pub config: ClusterConfig,
    /// Where the endpoints of an EDS cluster come from.
    pub eds: Option<ConfigSource>,
    /// The upstream filter chain; empty when there is only the codec.
    pub http_filters: Vec<HttpFilter>,
}

/// Compiles one cluster.
///
/// # Errors
/// What Envoy refuses, and what is not supported yet, with its path in the resource.
pub fn compile(
    proto: &Cluster,
    defaults: &ClusterDefaults,
    context: &mut CompileContext<'_>,
) -> Result<Compiled, FieldError> {
    let http = http_options::compile(proto, context)?;
    let transport_sockets = transport_socket::compile(proto, &http.options, &defaults.tls, context)?;
    let name: Arc<str> = proto.name.as_str().into();
    let discovery = discovery(proto, &name, defaults, context)?;
    let balancing = balancing::compile(proto, context)?;
    refuse_hostname_keys(&balancing.policy, &discovery, context)?;
    let timeout = values::duration(proto.connect_timeout.as_ref(), "connect_timeout", context)?;
    let tracked = proto.track_cluster_stats.unwrap_or_default();
    let TrackClusterStats { timeout_budgets, request_response_sizes, .. } = tracked;
    #[expect(deprecated, reason = "Envoy 1.40 reads it")]
    let track_timeout_budgets = timeout_budgets || proto.track_timeout_budgets;
    let config = ClusterConfig {
        name,
        alt_stat_name: Some(proto.alt_stat_name.as_str()).filter(|name| !name.is_empty()).map(Arc::from),
        discovery,
        connect_timeout: timeout.unwrap_or(Duration::from_secs(5)),
        buffer_limit_bytes: proto.per_connection_buffer_limit_bytes.map_or(1 << 20, |limit| limit.value),
        preconnect_ratio: connection::preconnect_ratio(proto.preconnect_policy.as_ref(), context)?,
        thresholds: circuit_breakers::compile(proto.circuit_breakers.as_ref(), context)?,
        balancing,
        http: defaults.shared(http.options),
        connection: shared(connection::compile(proto, defaults.bind.as_ref(), context)?),
        transport_sockets,
        metadata: values::shared_metadata(proto.metadata.as_ref()),
        upstream_filters: FilterChain::default(),
        own_zone: defaults.zone.clone(),
        track_timeout_budgets,
        track_request_response_sizes: request_response_sizes,
        wait_for_warm_on_init: wrapped_bool(proto.wait_for_warm_on_init.as_ref(), true),
        added_via_api: false,
    };
    let eds = proto.eds_cluster_config.as_ref().and_then(|eds| eds.eds_config.clone());
    let eds = eds.filter(|_| matches!(config.discovery, Discovery::Eds(_)));
    Ok(Compiled { config, eds, http_filters: http.filters })
}

/// Most clusters say nothing of their connections.
fn shared(options: ConnectionOptions) -> Arc<ConnectionOptions> {
    static NONE: LazyLock<Arc<ConnectionOptions>> = LazyLock::new(Arc::default);
    if options == **NONE { Arc::clone(&NONE) } else { Arc::new(options) }
}

fn discovery(
    proto: &Cluster,
    name: &Arc<str>,
    defaults: &ClusterDefaults,
    context: &mut CompileContext<'_>,
) -> Result<Discovery, FieldError> {
    let kind = match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return custom_discovery(proto, name, custom, defaults, context);
        }
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).unwrap_or(DiscoveryType::Static),
        None => DiscoveryType::Static,
    };
    match kind {
        DiscoveryType::Static => static_discovery(proto, context),
        DiscoveryType::StrictDns => dns::compile(proto, false, &defaults.resolver, context),
        DiscoveryType::LogicalDns => dns::compile(proto, true, &defaults.resolver, context),
        DiscoveryType::Eds => eds_discovery(proto, name, context),
        DiscoveryType::OriginalDst => Err(context.error_at("type", "not supported yet: ORIGINAL_DST")),
    }
}

fn custom_discovery(
    proto: &Cluster,
    name: &Arc<str>,
    custom: &CustomClusterType,
    defaults: &ClusterDefaults,
    context: &mut CompileContext<'_>,
) -> Result<Discovery, FieldError> {
    let config = custom.typed_config.clone().unwrap_or_default();
    let type_name = any::type_name(&config.type_url).unwrap_or_default();
    // Envoy goes by the type of the configuration, and by the name where there is none.
    if type_name == <DnsCluster as prost::Name>::full_name() {
        let path = context.path.clone().field("cluster_type.typed_config");
        let config: DnsCluster = any::unpack(&config, &path)?;
        return dns::compile_typed(proto, &config, &defaults.resolver, context);
    }
    match (type_name, custom.name.as_str()) {
        ("", "envoy.cluster.static") => static_discovery(proto, context),
        ("", "envoy.cluster.strict_dns") => dns::compile(proto, false, &defaults.resolver, context),
        ("", "envoy.cluster.logical_dns") => dns::compile(proto, true, &defaults.resolver, context),
        ("", "envoy.cluster.eds") => eds_discovery(proto, name, context),
        ("", "envoy.cluster.dns") => dns::compile_typed(proto, &DnsCluster::default(), &defaults.resolver, context),
        ("", name) => Err(context.error_at("cluster_type.name", format!("not supported yet: {name}"))),
        (name, _) => Err(context.error_at("cluster_type.typed_config", format!("not supported yet: {name}"))),
    }
}

fn static_discovery(proto: &Cluster, context: &mut CompileContext<'_>) -> Result<Discovery, FieldError> {
    let assignment = match &proto.load_assignment {
        Some(assignment) => context.within("load_assignment", |context| assignment::compile(assignment, context))?,
        None => Assignment::default(),
    };
    Ok(Discovery::Static(Box::new(assignment)))
}

fn eds_discovery(proto: &Cluster, name: &Arc<str>, context: &CompileContext<'_>) -> Result<Discovery, FieldError> {
    let eds = proto.eds_cluster_config.clone().unwrap_or_default();
    if eds.eds_config.is_none() {
        return Err(
            context.error_at("eds_cluster_config.eds_config", "cannot create an EDS cluster without an EDS config")
        );
    }
    let service_name =
        if eds.service_name.is_empty() { Arc::clone(name) } else { Arc::from(eds.service_name.as_str()) };
    Ok(Discovery::Eds(Eds { service_name }))
}

/// Host names are keys only where each stands for one address.
fn refuse_hostname_keys(
    policy: &Policy,
    discovery: &Discovery,
    context: &CompileContext<'_>,
) -> Result<(), FieldError> {
    let key = match policy {
        Policy::RingHash(ring) => ring.hash.key,
        Policy::Maglev(maglev) => maglev.hash.key,
        _ => HashKey::Address,
    };
    if key == HashKey::Hostname && !matches!(discovery, Discovery::StrictDns(_)) {
        let reason = "cannot use hostname for consistent hashing load balancing for a cluster that is not STRICT_DNS";
        return Err(context.error_at("common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::testing::{cluster, try_cluster};
    use super::*;
    use crate::cluster::dns::LookupFamily;
    use crate::cluster::options::HttpProtocol;

    fn refused(text: &str) -> String {
        try_cluster(text).expect_err(text).to_string()
    }

    #[test]
    fn a_silent_cluster_has_envoys_defaults() {
        let config = cluster("name: a").config;
        assert!(matches!(&config.discovery, Discovery::Static(assignment) if assignment.localities.is_empty()));
        assert_eq!(config.connect_timeout, Duration::from_secs(5));
        assert_eq!(config.buffer_limit_bytes, 1 << 20);
        assert_eq!(config.http.idle_timeout, Some(Duration::from_secs(3600)));
        assert!(matches!(config.http.protocol, HttpProtocol::Http1(options) if options.allow_absolute_url));
        assert!(matches!(config.balancing.policy, Policy::RoundRobin));
        assert_eq!(&**config.observability_name(), "a");
    }

    #[test]
    fn endpoints_keep_what_is_said_about_them() {
        let text = "
name: a
alt_stat_name: b
load_assignment:
  cluster_name: a
  policy: {overprovisioning_factor: 100, drop_overloads: [{category: c, drop_percentage: {numerator: 5, denominator: MILLION}}]}
  endpoints:
  - locality: {region: r, zone: z}
    priority: 1
    load_balancing_weight: 7
    lb_endpoints:
    - endpoint:
        address: {socket_address: {address: 127.0.0.1, port_value: 80}}
        additional_addresses: [{address: {socket_address: {address: '::1', port_value: 81}}}]
        hostname: h
      health_status: DEGRADED
      load_balancing_weight: 3
      metadata: {filter_metadata: {envoy.lb: {canary: true, version: '1'}}}
    - endpoint: {address: {pipe: {path: '@abstract'}}}
";
        let config = cluster(text).config;
        assert_eq!(&**config.observability_name(), "b");
        let Discovery::Static(assignment) = config.discovery else { panic!() };
        assert_eq!(assignment.overprovisioning_factor, 100);
        assert_eq!(assignment.drop_overload.as_ref().unwrap().fraction.denominator, 1_000_000);
        let [locality] = assignment.localities.as_slice() else { panic!() };
        assert_eq!((locality.priority, locality.weight, locality.locality.zone.as_str()), (1, 7, "z"));
        let [first, second] = locality.endpoints.as_slice() else { panic!() };
        assert_eq!((first.address.to_string().as_str(), first.weight, first.canary), ("127.0.0.1:80", 3, true));
        assert_eq!(first.more_addresses[0].to_string(), "[::1]:81");
        assert_eq!((second.address.to_string().as_str(), second.weight), ("@abstract", 1));
    }

    #[test]
    fn endpoints_that_envoy_refuses_are_refused_at_their_field() {
        let with = |endpoint: &str| {
            format!("{{name: a, load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{endpoint}]}}]}}}}")
        };
        let at = "resource 'a': load_assignment.endpoints[0].lb_endpoints[0].endpoint";
        assert_eq!(refused(&with("{}")), format!("{at}: address must be set"));
        assert_eq!(refused(&with("{endpoint: {}}")), format!("{at}.address: address must be set"));
        let named = "{endpoint: {address: {socket_address: {address: foo.com, port_value: 80}}}}";
        assert!(
            refused(&with(named)).starts_with(&format!("{at}.address.socket_address.address: malformed IP address"))
        );
        let port = "{endpoint: {address: {socket_address: {address: 127.0.0.1, named_port: http}}}}";
        assert!(refused(&with(port)).contains("endpoint.address.socket_address.named_port: not supported yet"));
    }

    #[test]
    fn the_protocol_is_chosen_by_typed_options_or_by_the_fields_before_them() {
        let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let typed = |body: &str, rest: &str| {
            format!(
                "{{name: a, typed_extension_protocol_options: {{{key}: {{'@type': type.googleapis.com/{key}, {body}}}}}{rest}}}"
            )
        };
        let protocol = |text: &str| cluster(text).config.http.protocol.clone();
        let text = typed("explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 9}}", "");
        assert!(matches!(protocol(&text), HttpProtocol::Http2(options) if options.max_concurrent_streams == 9));
        assert!(matches!(protocol(&typed("use_downstream_protocol_config: {}", "")), HttpProtocol::Downstream(..)));
        assert!(matches!(protocol("{name: a, http2_protocol_options: {}}"), HttpProtocol::Http2(_)));
        let text = "{name: a, protocol_selection: USE_DOWNSTREAM_PROTOCOL}";
        assert!(matches!(protocol(text), HttpProtocol::Downstream(..)));
        // Typed options win over all that stands beside them.
        let text = typed("explicit_http_config: {http_protocol_options: {}}", ", http2_protocol_options: {}");
        assert!(matches!(protocol(&text), HttpProtocol::Http1(_)));

        assert!(refused(&typed("auto_config: {}", "")).contains("non-ALPN transport socket"));
        assert!(
            refused("{name: a, http_protocol_options: {}, http2_protocol_options: {}}").contains("protocol_selection")
        );
        let both = "{name: a, max_requests_per_connection: 1, \
                    common_http_protocol_options: {max_requests_per_connection: 2}}";
        assert!(refused(both).contains("only one of max_requests_per_connection"));
        let options =
            "common_http_protocol_options: {idle_timeout: 0s}, explicit_http_config: {http_protocol_options: {}}";
        assert_eq!(cluster(&typed(options, "")).config.http.idle_timeout, None);
    }

    #[test]
    fn the_first_supported_policy_of_the_list_counts() {
        let policies = |list: &[&str]| {
            let prefix = "type.googleapis.com/envoy.extensions.load_balancing_policies";
            let list: Vec<_> = list
                .iter()
                .map(|policy| {
                    format!("{{typed_extension_config: {{name: x, typed_config: {{'@type': {prefix}.{policy}}}}}}}")
                })
                .collect();
            format!("{{name: a, load_balancing_policy: {{policies: [{}]}}}}", list.join(", "))
        };
        let locality = "least_request.v3.LeastRequest, choice_count: 3, \
                        locality_lb_config: {locality_weighted_lb_config: {}}";
        let unsupported = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin";
        let balancing = cluster(&policies(&[unsupported, locality, "random.v3.Random"])).config.balancing;
        assert!(matches!(&balancing.policy, Policy::LeastRequest(least) if least.choices == Some(3)));
        assert!(balancing.locality_weighted);
        assert!(refused(&policies(&[unsupported])).contains("not supported yet: type.googleapis.com/envoy"));
        assert!(refused(&policies(&["maglev.v3.Maglev, table_size: 100"])).contains("prime"));
        let window = "round_robin.v3.RoundRobin, slow_start_config: {slow_start_window: 1s}";
        assert!(refused(&policies(&[window])).contains("not supported yet: slow_start_window"));
        let hash_policy =
            "ring_hash.v3.RingHash, consistent_hashing_lb_config: {hash_policy: [{header: {header_name: a}}]}";
        assert!(refused(&policies(&[hash_policy])).contains("hash_policy"));
    }

    #[test]
    fn policies_of_the_old_form() {
        let policy = |text: &str| cluster(&format!("{{name: a, {text}}}")).config.balancing;
        assert!(matches!(policy("lb_policy: RANDOM").policy, Policy::Random));
        let ring =
            policy("lb_policy: ring_hash, ring_hash_lb_config: {minimum_ring_size: 5, hash_function: MURMUR_HASH_2}");
        assert!(matches!(ring.policy, Policy::RingHash(ring) if ring.minimum_ring_size == 5));
        // The options of another policy have no effect, as in Envoy.
        assert!(matches!(policy("ring_hash_lb_config: {}").policy, Policy::RoundRobin));
        let common =
            policy("common_lb_config: {healthy_panic_threshold: {value: 33.9}, locality_weighted_lb_config: {}}");
        assert_eq!((common.panic_threshold, common.locality_weighted), (33, true));
        assert!(refused("{name: a, lb_policy: CLUSTER_PROVIDED}").contains("cluster provided"));
        assert!(refused("{name: a, lb_policy: LOAD_BALANCING_POLICY_CONFIG}").contains("need to be set"));
        let ring = "lb_policy: RING_HASH, ring_hash_lb_config: {maximum_ring_size: 10}";
        assert!(refused(&format!("{{name: a, {ring}}}")).contains("minimum_ring_size (1024) > maximum_ring_size (10)"));
        let hostname =
            "lb_policy: MAGLEV, common_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true}}";
        assert!(refused(&format!("{{name: a, {hostname}}}")).contains("not STRICT_DNS"));
    }

    #[test]
    fn subsets_of_either_form() {
        let subsets = |text: &str| format!("{{name: a, lb_subset_config: {{{text}}}}}");
        let config = "fallback_policy: DEFAULT_SUBSET, default_subset: {a: 1}, subset_selectors: [{keys: [b, a, b]}]";
        let legacy = cluster(&subsets(config)).config.balancing.subsets.unwrap();
        assert_eq!(legacy.selectors[0].keys, ["a", "b"]);
        let prefix = "type.googleapis.com/envoy.extensions.load_balancing_policies";
        let child = format!(
            "{{policies: [{{typed_extension_config: {{name: x, typed_config: {{'@type': {prefix}.random.v3.Random}}}}}}]}}"
        );
        let typed = format!("{{'@type': {prefix}.subset.v3.Subset, {config}, subset_lb_policy: {child}}}");
        let typed = format!(
            "{{name: a, load_balancing_policy: {{policies: [{{typed_extension_config: {{name: x, typed_config: {typed}}}}}]}}}}"
        );
        let balancing = cluster(&typed).config.balancing;
        assert_eq!(balancing.subsets.unwrap(), legacy);
        assert!(matches!(balancing.policy, Policy::Random));
        assert!(cluster(&subsets("fallback_policy: ANY_ENDPOINT")).config.balancing.subsets.is_none());
        let refusals = [
            ("[{keys: [a], fallback_policy: KEYS_SUBSET}]", "cannot be empty"),
            ("[{keys: [a], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [a]}]", "cannot be equal to keys"),
            ("[{keys: [a, b], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [c]}]", "subset of selector keys"),
            ("[{keys: [a, b], fallback_keys_subset: [a]}]", "only for KEYS_SUBSET"),
        ];
        for (selectors, reason) in refusals {
            assert!(refused(&subsets(&format!("subset_selectors: {selectors}"))).contains(reason));
        }
        let aware = "subset_selectors: [{keys: [a]}], locality_weight_aware: true";
        assert!(refused(&subsets(aware)).contains("locality_weighted_lb_config"));
    }

    #[test]
    fn breakers_are_by_priority_and_the_first_of_each_counts() {
        let text = "
name: a
circuit_breakers:
  thresholds:
  - {max_requests: 1}
  - {max_requests: 2}
  - {priority: HIGH, max_retries: 9, retry_budget: {budget_percent: {value: 50}}}
  per_host_thresholds: [{max_connections: 4}]
";
        let config = cluster(text).config;
        let [default, high] = &*config.thresholds;
        assert_eq!((default.max_requests, default.max_connections_per_host), (1, Some(4)));
        assert_eq!((high.max_requests, high.max_retries, high.max_connections_per_host), (1024, 9, None));
        assert_eq!(high.retry_budget.unwrap().min_concurrency, 3);
        let per_host = "{name: a, circuit_breakers: {per_host_thresholds: [{max_requests: 1}]}}";
        assert!(refused(per_host).contains("Unsupported field in per_host_thresholds"));
    }

    #[test]
    fn dns_clusters_of_either_form() {
        let assignment = "load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: \
                          {socket_address: {address: foo.com, port_value: 80}}}}]}]}";
        let text =
            format!("{{name: a, type: STRICT_DNS, dns_lookup_family: V4_ONLY, dns_refresh_rate: 7s, {assignment}}}");
        let Discovery::StrictDns(dns) = cluster(&text).config.discovery else { panic!() };
        assert_eq!((dns.options.family, dns.options.refresh_rate), (LookupFamily::V4Only, Duration::from_secs(7)));
        assert_eq!(&*dns.targets.localities[0].endpoints[0].address.host, "foo.com");

        let config = "{'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, \
                      all_addresses_in_single_endpoint: true, dns_failure_refresh_rate: {base_interval: 2s}}";
        let typed = format!("{{name: a, cluster_type: {{name: any, typed_config: {config}}}, {assignment}}}");
        let Discovery::LogicalDns(dns) = cluster(&typed).config.discovery else { panic!() };
        assert_eq!(dns.options.failure_refresh, Some((Duration::from_secs(2), Duration::from_secs(20))));

        // Servers make a resolver of the cluster's own; how it is asked alone does not, as in Envoy.
        let resolver = |text: &str| {
            let text = format!("{{name: a, type: STRICT_DNS, {text}, {assignment}}}");
            let Discovery::StrictDns(dns) = cluster(&text).config.discovery else { panic!() };
            dns.options.resolver
        };
        assert_eq!(resolver("use_tcp_for_dns_lookups: true"), ResolverConfig::default());
        let server = "{socket_address: {address: 127.0.0.1, port_value: 53}}";
        let own = resolver(&format!("dns_resolvers: [{server}], use_tcp_for_dns_lookups: true"));
        assert_eq!((own.servers.len(), own.use_tcp), (1, true));
        let typed = |kind: &str| {
            let url = "type.googleapis.com/envoy.extensions.network.dns_resolver";
            resolver(&format!("typed_dns_resolver_config: {{name: r, typed_config: {{'@type': {url}.{kind}}}}}"))
        };
        let cares = typed(
            "cares.v3.CaresDnsResolverConfig, qcache_max_ttl: 9, query_tries: 2, use_resolvers_as_fallback: true",
        );
        assert_eq!((cares.tries, cares.servers_are_fallback), (2, true));
        assert_eq!(cares.cache.unwrap().longest, Duration::from_secs(9));
        let system = typed("getaddrinfo.v3.GetAddrInfoDnsResolverConfig, num_retries: 1");
        assert_eq!((system.tries, system.ttl), (2, Some(Duration::from_secs(60))));
        let hickory = typed(&format!("hickory.v3.HickoryDnsResolverConfig, resolvers: [{server}]"));
        assert_eq!((hickory.tries, hickory.no_search_domain, hickory.cache.unwrap().size), (3, true, 1024));

        assert!(refused("{name: a, type: LOGICAL_DNS}").contains("a single lb_endpoint"));
        let rates = "type: STRICT_DNS, dns_failure_refresh_rate: {base_interval: 2s, max_interval: 1s}";
        assert!(refused(&format!("{{name: a, {rates}}}")).contains("max_interval greater than or equal"));
        assert!(refused("{name: a, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}").contains("not supported yet"));
    }

    #[test]
    fn eds_needs_a_source() {
        let eds = "eds_cluster_config: {service_name: s, eds_config: {ads: {}}}";
        let compiled = try_cluster_without_audit(&format!("{{name: a, type: EDS, {eds}}}"));
        assert!(compiled.eds.is_some());
        assert!(matches!(&compiled.config.discovery, Discovery::Eds(eds) if &*eds.service_name == "s"));
        assert!(refused("{name: a, type: EDS}").contains("without an EDS config"));
    }

    /// The source's own message is another folder's to cover.
    fn try_cluster_without_audit(text: &str) -> Compiled {
        testing::compile_text(text).unwrap()
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let socket = "{name: a, transport_socket: {name: alts, typed_config: \
                   {'@type': type.googleapis.com/envoy.extensions.transport_sockets.alts.v3.Alts, handshaker_service: x}}}";
        assert!(refused(socket).contains("not supported yet"), "{}", refused(socket));
        assert!(refused(socket).contains("envoy.extensions.transport_sockets.alts.v3.Alts"));
        let upstream = |kind: &str| {
            let url = "type.googleapis.com/envoy.extensions.upstreams.http";
            format!("{{name: a, upstream_config: {{name: x, typed_config: {{'@type': {url}.{kind}}}}}}}")
        };
        cluster(&upstream("generic.v3.GenericConnectionPoolProto"));
        assert!(refused(&upstream("tcp.v3.TcpConnectionPoolProto")).contains("not supported yet"));
        for field in ["outlier_detection: {}", "preconnect_policy: {predictive_preconnect_ratio: 1.5}"] {
            assert!(refused(&format!("{{name: a, {field}}}")).contains("not supported yet"));
        }
    }

    #[test]
    fn source_addresses_are_of_different_families() {
        let bind = |text: &str| format!("{{name: a, upstream_bind_config: {{{text}}}}}");
        let v4 = "source_address: {address: 127.0.0.6, port_value: 0}";
        let extra = |address: &str| {
            format!("{v4}, extra_source_addresses: [{{address: {{address: '{address}', port_value: 0}}}}]")
        };
        let options = cluster(&bind(&extra("::1"))).config.connection;
        assert!(options.source.as_ref().unwrap().extra.is_some());
        assert!(cluster(&bind("")).config.connection.source.is_none());
        assert!(refused(&bind(&extra("127.0.0.7"))).contains("two same IP version"));
    }
}
