//! Which fields of listeners and of what they hold act. It must not know how.

use tidegate_xds::Coverage;

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
            "filter_chain_matcher",
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
    Coverage {
        message: "envoy.config.listener.v3.ListenerFilter",
        enforced: &["name", "typed_config", "filter_disabled"],
        listed: &[],
    },
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
