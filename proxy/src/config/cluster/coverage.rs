//! Which fields of cluster messages act. It must not know how.

use tidegate_xds::Coverage;

const NO_HEALTH_CHECKS: &str = "acts only with active health checks or outlier detection, which are refused";
const NO_LOCAL_CLUSTER: &str = "acts only where the bootstrap names a local cluster, which is refused";
const NO_ORIGINAL_DST: &str = "acts only on ORIGINAL_DST clusters, which are refused";
const NO_SLOW_START: &str = "acts only with a slow start window, which is refused";
const NOT_IN_ENVOY: &str = "Envoy does not implement it";
const SOCKET_PER_QUERY: &str = "every query has a socket of its own";

/// Messages that are looked into only once one of their alternatives is chosen.
pub const OPAQUE: &[&str] = &["envoy.config.cluster.v3.LoadBalancingPolicy"];

/// The fields of every message that this folder compiles.
pub const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.cluster.v3.Cluster",
        enforced: &[
            "name",
            "alt_stat_name",
            "type=STATIC|STRICT_DNS|LOGICAL_DNS|EDS",
            "cluster_type",
            "eds_cluster_config",
            "connect_timeout",
            "per_connection_buffer_limit_bytes",
            "lb_policy",
            "load_assignment",
            "max_requests_per_connection",
            "circuit_breakers",
            "upstream_http_protocol_options",
            "common_http_protocol_options",
            "http_protocol_options",
            "http2_protocol_options",
            "typed_extension_protocol_options",
            "dns_refresh_rate",
            "dns_jitter",
            "dns_failure_refresh_rate",
            "respect_dns_ttl",
            "dns_lookup_family",
            "dns_resolvers",
            "use_tcp_for_dns_lookups",
            "dns_resolution_config",
            "typed_dns_resolver_config",
            "upstream_bind_config",
            "lb_subset_config",
            "ring_hash_lb_config",
            "maglev_lb_config",
            "least_request_lb_config",
            "round_robin_lb_config",
            "common_lb_config",
            "transport_socket",
            "transport_socket_matches",
            "transport_socket_matcher",
            "metadata",
            "protocol_selection",
            "upstream_connection_options",
            "load_balancing_policy",
            "preconnect_policy",
            "upstream_config",
            "track_cluster_stats",
            "track_timeout_budgets",
            "wait_for_warm_on_init",
        ],
        listed: &[
            ("ignore_health_on_host_removal", NO_HEALTH_CHECKS),
            ("close_connections_on_host_health_failure", NO_HEALTH_CHECKS),
            ("cleanup_interval", NO_ORIGINAL_DST),
            ("original_dst_lb_config", NO_ORIGINAL_DST),
            ("lrs_server", NOT_IN_ENVOY),
        ],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.CustomClusterType",
        enforced: &["name", "typed_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.EdsClusterConfig",
        enforced: &["eds_config", "service_name"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.RefreshRate",
        enforced: &["base_interval", "max_interval"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.LbSubsetConfig",
        enforced: &[
            "fallback_policy",
            "default_subset",
            "subset_selectors",
            "locality_weight_aware",
            "scale_locality_weight",
            "panic_mode_any",
            "list_as_any",
            "metadata_fallback_policy",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector",
        enforced: &["keys", "single_host_per_subset", "fallback_policy", "fallback_keys_subset"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.SlowStartConfig",
        enforced: &["slow_start_window"],
        listed: &[("aggression", NO_SLOW_START), ("min_weight_percent", NO_SLOW_START)],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig",
        enforced: &["slow_start_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig",
        enforced: &["choice_count", "active_request_bias", "slow_start_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.RingHashLbConfig",
        enforced: &["minimum_ring_size", "maximum_ring_size", "hash_function"],
        listed: &[],
    },
    Coverage { message: "envoy.config.cluster.v3.Cluster.MaglevLbConfig", enforced: &["table_size"], listed: &[] },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.CommonLbConfig",
        enforced: &[
            "healthy_panic_threshold",
            "zone_aware_lb_config",
            "locality_weighted_lb_config",
            "consistent_hashing_lb_config",
            "close_connections_on_host_set_change",
        ],
        listed: &[
            ("update_merge_window", "an update costs what changed, so each is applied at once"),
            ("ignore_new_hosts_until_first_hc", NO_HEALTH_CHECKS),
            ("override_host_status", "acts only on host overrides, which no filter sets"),
        ],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig",
        enforced: &["fail_traffic_on_panic"],
        listed: &[("routing_enabled", NO_LOCAL_CLUSTER), ("min_cluster_size", NO_LOCAL_CLUSTER)],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig",
        enforced: &["use_hostname_for_hashing", "hash_balance_factor"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.CircuitBreakers",
        enforced: &["thresholds", "per_host_thresholds"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
        enforced: &[
            "priority",
            "max_connections",
            "max_pending_requests",
            "max_requests",
            "max_retries",
            "max_connection_pools",
            "retry_budget",
            "track_remaining",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget",
        enforced: &["budget_percent", "min_retry_concurrency"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.UpstreamConnectionOptions",
        enforced: &["tcp_keepalive", "happy_eyeballs_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.UpstreamConnectionOptions.HappyEyeballsConfig",
        enforced: &["first_address_family_version=DEFAULT|V4|V6", "first_address_family_count"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.PreconnectPolicy",
        enforced: &["per_upstream_preconnect_ratio", "predictive_preconnect_ratio"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.TrackClusterStats",
        enforced: &["timeout_budgets", "request_response_sizes"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.endpoint.v3.ClusterLoadAssignment",
        enforced: &["cluster_name", "endpoints", "policy"],
        listed: &[("named_endpoints", NOT_IN_ENVOY)],
    },
    Coverage {
        message: "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy",
        enforced: &["drop_overloads", "overprovisioning_factor", "weighted_priority_health"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload",
        enforced: &["drop_percentage"],
        listed: &[("category", "acts only in load reports, which are refused")],
    },
    Coverage {
        message: "envoy.config.endpoint.v3.LocalityLbEndpoints",
        enforced: &["locality", "metadata", "lb_endpoints", "load_balancing_weight", "priority"],
        listed: &[("load_balancer_endpoints", NOT_IN_ENVOY), ("proximity", NOT_IN_ENVOY)],
    },
    Coverage {
        message: "envoy.config.endpoint.v3.LbEndpoint",
        enforced: &["endpoint", "endpoint_name", "health_status", "metadata", "load_balancing_weight"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.endpoint.v3.Endpoint",
        enforced: &["address", "hostname", "additional_addresses"],
        listed: &[("health_check_config", NO_HEALTH_CHECKS)],
    },
    Coverage { message: "envoy.config.endpoint.v3.Endpoint.AdditionalAddress", enforced: &["address"], listed: &[] },
    Coverage {
        message: "envoy.config.core.v3.BindConfig",
        enforced: &[
            "source_address",
            "freebind",
            "socket_options",
            "extra_source_addresses",
            "additional_source_addresses",
            "local_address_selector",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.ExtraSourceAddress",
        enforced: &["address", "socket_options"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.UpstreamHttpProtocolOptions",
        enforced: &["auto_sni", "auto_san_validation", "override_auto_sni_header"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        enforced: &["config", "transport_socket"],
        listed: &[
            ("allow_unspecified_address", "of clients that have no address, a header says nothing of addresses"),
            ("tlv_as_pool_key", "a connection that was made for one client is never used for another"),
        ],
    },
    Coverage {
        message: "envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction",
        enforced: &["name"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.cluster.v3.Cluster.TransportSocketMatch",
        enforced: &["name", "match", "transport_socket"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        enforced: &[
            "common_http_protocol_options",
            "upstream_http_protocol_options",
            "explicit_http_config",
            "use_downstream_protocol_config",
            "auto_config",
            "http_filters",
            "request_mirror_policies",
            "hash_policy",
            "retry_policy",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        enforced: &["http_protocol_options", "http2_protocol_options"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
        enforced: &["http_protocol_options", "http2_protocol_options"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig",
        enforced: &["http_protocol_options", "http2_protocol_options"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.upstreams.http.generic.v3.GenericConnectionPoolProto",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.clusters.dns.v3.DnsCluster",
        enforced: &[
            "dns_refresh_rate",
            "dns_failure_refresh_rate",
            "respect_dns_ttl",
            "dns_jitter",
            "typed_dns_resolver_config",
            "dns_lookup_family",
            "all_addresses_in_single_endpoint",
            "dns_min_refresh_rate",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.clusters.dns.v3.DnsCluster.RefreshRate",
        enforced: &["base_interval", "max_interval"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.DnsResolutionConfig",
        enforced: &["resolvers", "dns_resolver_options"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.DnsResolverOptions",
        enforced: &["use_tcp_for_dns_lookups", "no_default_search_domain"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        enforced: &[
            "resolvers",
            "use_resolvers_as_fallback",
            "dns_resolver_options",
            "query_timeout_seconds",
            "query_tries",
            "rotate_nameservers",
            "qcache_max_ttl",
        ],
        listed: &[
            ("edns0_max_payload_size", "what does not fit is asked for again over TCP"),
            ("udp_max_queries", SOCKET_PER_QUERY),
            ("max_udp_channel_duration", SOCKET_PER_QUERY),
            ("reinit_channel_on_timeout", SOCKET_PER_QUERY),
        ],
    },
    Coverage {
        message: "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig",
        enforced: &["num_retries"],
        listed: &[("num_resolver_threads", "queries wait on no thread")],
    },
    Coverage {
        message: "envoy.extensions.network.dns_resolver.hickory.v3.HickoryDnsResolverConfig",
        enforced: &["resolvers", "cache_size", "use_system_config", "query_timeout", "query_tries"],
        listed: &[("num_resolver_threads", "queries wait on no thread")],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig",
        enforced: &["zone_aware_lb_config", "locality_weighted_lb_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.LocalityWeightedLbConfig",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig",
        enforced: &["fail_traffic_on_panic"],
        listed: &[
            ("routing_enabled", NO_LOCAL_CLUSTER),
            ("min_cluster_size", NO_LOCAL_CLUSTER),
            ("force_locality_direct_routing", NO_LOCAL_CLUSTER),
            ("force_local_zone", NO_LOCAL_CLUSTER),
            ("locality_basis", NO_LOCAL_CLUSTER),
        ],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig",
        enforced: &["slow_start_window"],
        listed: &[("aggression", NO_SLOW_START), ("min_weight_percent", NO_SLOW_START)],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.common.v3.ConsistentHashingLbConfig",
        enforced: &["use_hostname_for_hashing", "hash_balance_factor"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
        enforced: &["slow_start_config", "locality_lb_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.random.v3.Random",
        enforced: &["locality_lb_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        enforced: &[
            "choice_count",
            "active_request_bias",
            "slow_start_config",
            "locality_lb_config",
            "selection_method",
        ],
        listed: &[("enable_full_scan", NOT_IN_ENVOY)],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash",
        enforced: &[
            "hash_function",
            "minimum_ring_size",
            "maximum_ring_size",
            "use_hostname_for_hashing",
            "hash_balance_factor",
            "consistent_hashing_lb_config",
            "locality_weighted_lb_config",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.maglev.v3.Maglev",
        enforced: &["table_size", "consistent_hashing_lb_config", "locality_weighted_lb_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.subset.v3.Subset",
        enforced: &[
            "fallback_policy",
            "default_subset",
            "subset_selectors",
            "allow_redundant_keys",
            "locality_weight_aware",
            "scale_locality_weight",
            "panic_mode_any",
            "list_as_any",
            "metadata_fallback_policy",
            "subset_lb_policy",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.load_balancing_policies.subset.v3.Subset.LbSubsetSelector",
        enforced: &["keys", "single_host_per_subset", "fallback_policy", "fallback_keys_subset"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.Percent", enforced: &["value"], listed: &[] },
    Coverage {
        message: "envoy.config.core.v3.RuntimeDouble",
        enforced: &["default_value", "runtime_key"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
        enforced: &["forward_reason_phrase", "formatter_type_on_envoy_headers"],
        listed: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declared_exists() {
        let mistakes: Vec<_> = COVERAGE.iter().flat_map(Coverage::mistakes).collect();
        assert_eq!(mistakes, Vec::<String>::new());
    }
}
