//! Which fields of a bootstrap act, beside those whose messages are compiled elsewhere. It must not know how.

use tidegate_xds::Coverage;

const NO_WATCHDOG: &str = "no thread is watched: one that hangs is neither counted nor killed";

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.bootstrap.v3.Bootstrap",
        enforced: &[
            "node",
            "static_resources",
            "dynamic_resources",
            "admin",
            "application_log_config",
            "bootstrap_extensions",
            "cluster_manager",
            "dns_resolution_config",
            "typed_dns_resolver_config",
            "use_tcp_for_dns_lookups",
            "stats_flush_on_admin",
            "stats_flush_interval",
            "layered_runtime",
            "overload_manager",
            "stats_config",
            "stats_eviction_interval",
            "stats_server_version_override",
            "header_prefix",
            "flags_path",
            "watchdog",
            "watchdogs",
            "deferred_stat_options",
            "default_socket_interface",
            "default_regex_engine",
            "node_context_params",
        ],
        listed: &[
            ("memory_allocator_manager", "there is no tcmalloc here"),
            ("perf_tracing_file_path", "only builds with performance tracing write it"),
            ("enable_worker_cpu_affinity", "where a worker runs shows in nothing but speed"),
            ("grpc_async_client_manager_config", "how long an idle client of a service is kept shows in nothing"),
        ],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.Bootstrap.StaticResources",
        enforced: &["listeners", "clusters", "secrets"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.Bootstrap.DynamicResources",
        enforced: &["lds_config", "lds_resources_locator", "cds_config", "cds_resources_locator", "ads_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.Admin",
        enforced: &["address", "access_log", "access_log_path", "allow_paths", "socket_options"],
        listed: &[
            ("profile_path", "there is no profiler to write there"),
            ("ignore_global_conn_limit", "the admin interface is never limited"),
        ],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.Bootstrap.ApplicationLogConfig",
        enforced: &["log_format"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.Bootstrap.ApplicationLogConfig.LogFormat",
        enforced: &["json_format", "text_format"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.Bootstrap.DeferredStatOptions",
        enforced: &["enable_deferred_creation_stats"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.Watchdogs",
        enforced: &["main_thread_watchdog", "worker_watchdog"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.Watchdog",
        enforced: &[],
        listed: &[
            ("miss_timeout", NO_WATCHDOG),
            ("megamiss_timeout", NO_WATCHDOG),
            ("kill_timeout", NO_WATCHDOG),
            ("max_kill_timeout_jitter", NO_WATCHDOG),
            ("multikill_timeout", NO_WATCHDOG),
            ("multikill_threshold", NO_WATCHDOG),
        ],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.ClusterManager",
        enforced: &[
            "upstream_bind_config",
            "outlier_detection",
            "enable_deferred_cluster_creation",
            "load_stats_config",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.bootstrap.v3.ClusterManager.OutlierDetection",
        enforced: &["event_log_path"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
        enforced: &[],
        listed: &[(
            "buffer_size_kb",
            "of internal connections, and internal listeners are refused until they are built",
        )],
    },
    Coverage { message: "envoy.extensions.regex_engines.v3.GoogleRE2", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.extensions.network.socket_interface.v3.DefaultSocketInterface",
        enforced: &[],
        listed: &[],
    },
];
