//! Which fields of the connection manager and of what it holds act. It must not know how.

use tidegate_xds::Coverage;

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
pub(super) const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: HCM,
        enforced: &[
            "codec_type",
            "stat_prefix",
            "rds",
            "scoped_routes",
            "route_config",
            "http_filters",
            "add_user_agent",
            "common_http_protocol_options",
            "http_protocol_options",
            "http2_protocol_options",
            "server_name",
            "server_header_transformation",
            "scheme_header_transformation",
            "max_request_headers_kb",
            "stream_idle_timeout",
            "request_timeout",
            "request_headers_timeout",
            "drain_timeout",
            "delayed_close_timeout",
            "access_log",
            "access_log_flush_interval",
            "flush_access_log_on_new_request",
            "access_log_options",
            "use_remote_address",
            "xff_num_trusted_hops",
            "original_ip_detection_extensions",
            "early_header_mutation_extensions",
            "internal_address_config",
            "skip_xff_append",
            "via",
            "generate_request_id",
            "preserve_external_request_id",
            "always_set_request_id_in_response",
            "forward_client_cert_details",
            "proxy_100_continue",
            "upgrade_configs",
            "normalize_path",
            "merge_slashes",
            "path_with_escaped_slashes_action",
            "request_id_extension",
            "local_reply_config",
            "strip_matching_host_port",
            "strip_any_host_port",
            "strip_trailing_host_dot",
            "append_x_forwarded_port",
        ],
        listed: &[
            ("http3_protocol_options", "HTTP/3 listeners are refused, so nothing speaks it"),
            (
                "set_current_client_cert_details",
                "acts with client certificates only, and TLS is refused until it is built",
            ),
            ("stream_error_on_invalid_http_message", "an HTTP/2 message that is invalid always is a stream error"),
        ],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.HcmAccessLogOptions",
        enforced: &[
            "access_log_flush_interval",
            "flush_access_log_on_new_request",
            "flush_log_on_tunnel_successfully_established",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
        enforced: &["config_source", "route_config_name"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        enforced: &["name", "typed_config", "is_optional", "disabled"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
        enforced: &["upgrade_type", "filters", "enabled"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig",
        enforced: &["unix_sockets", "cidr_ranges"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.LocalReplyConfig",
        enforced: &["mappers", "body_format"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ResponseMapper",
        enforced: &["filter", "status_code", "body", "body_format_override", "headers_to_add"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.RequestIDExtension",
        enforced: &["typed_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
        enforced: &[],
        listed: &[
            ("pack_trace_reason", "acts with tracing only, which is refused until it is built"),
            ("use_request_id_for_trace_sampling", "acts with tracing only, which is refused until it is built"),
        ],
    },
    Coverage {
        message: "envoy.config.core.v3.HttpProtocolOptions",
        enforced: &[
            "idle_timeout",
            "max_connection_duration",
            "max_headers_count",
            "max_response_headers_kb",
            "max_stream_duration",
            "headers_with_underscores_action",
            "max_requests_per_connection",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.Http1ProtocolOptions",
        enforced: &[
            "allow_absolute_url",
            "accept_http_10",
            "default_host_for_http_10",
            "header_key_format",
            "enable_trailers",
            "allow_chunked_length",
            "allow_custom_methods",
        ],
        listed: &[
            ("override_stream_error_on_invalid_http_message", "an HTTP/1 connection always closes after a bad message"),
            ("use_balsa_parser", "there is one parser here"),
        ],
    },
    Coverage {
        message: "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat",
        enforced: &["proper_case_words"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat.ProperCaseWords",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.Http2ProtocolOptions",
        enforced: &[
            "hpack_table_size",
            "max_concurrent_streams",
            "initial_stream_window_size",
            "initial_connection_window_size",
            "allow_connect",
            "connection_keepalive",
        ],
        listed: &[
            ("stream_error_on_invalid_http_messaging", "an invalid message always is a stream error"),
            ("override_stream_error_on_invalid_http_message", "an invalid message always is a stream error"),
            ("use_oghttp2_codec", "there is one codec here"),
        ],
    },
    Coverage {
        message: "envoy.config.core.v3.KeepaliveSettings",
        enforced: &["interval", "timeout", "connection_idle_interval"],
        listed: &[("interval_jitter", "PINGs are not held against a schedule by anyone")],
    },
    Coverage {
        message: "envoy.config.core.v3.SchemeHeaderTransformation",
        enforced: &["scheme_to_overwrite"],
        listed: &[],
    },
    Coverage {
        message: ROUTER,
        enforced: &["dynamic_stats", "suppress_envoy_headers", "respect_expected_rq_timeout"],
        listed: &[("start_child_span", "acts with tracing only, which is refused until it is built")],
    },
    Coverage {
        message: "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig",
        enforced: &["xff_num_trusted_hops", "xff_trusted_cidrs", "skip_xff_append"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.http.original_ip_detection.xff.v3.XffTrustedCidrs",
        enforced: &["cidrs"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig",
        enforced: &["header_name", "allow_extension_to_set_address_as_trusted", "reject_with_status"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        enforced: &["mutations"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.HttpStatus", enforced: &["code"], listed: &[] },
    Coverage { message: "envoy.config.core.v3.TypedExtensionConfig", enforced: &["name", "typed_config"], listed: &[] },
];
