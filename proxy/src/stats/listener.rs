//! A listener's stats, `listener.<address>.*`, and the manager's, under Envoy's names.
//! It must not know when they are counted.

use tidegate_stats::stats_block;

stats_block! {
    /// `listener.<address>.*`.
    pub struct ListenerStats {
        counters {
            downstream_cx_destroy, downstream_cx_overflow,
            downstream_cx_overload_reject, downstream_cx_total, downstream_cx_transport_socket_connect_timeout,
            downstream_global_cx_overflow, downstream_listener_filter_error, downstream_listener_filter_remote_close,
            downstream_pre_cx_timeout, extension_config_missing, network_extension_config_missing, no_filter_chain_match,
        }
        gauges { downstream_cx_active, downstream_pre_cx_active }
        histograms { connections_accepted_per_socket_event: Unspecified, downstream_cx_length_ms: Milliseconds }
    }
}

stats_block! {
    /// `listener.admin.*`: the same, without what no configuration of the admin interface can bring about.
    pub struct AdminListenerStats {
        counters {
            downstream_cx_destroy, downstream_cx_overflow, downstream_cx_overload_reject, downstream_cx_total,
            downstream_cx_transport_socket_connect_timeout, downstream_global_cx_overflow,
            downstream_listener_filter_error, downstream_listener_filter_remote_close, downstream_pre_cx_timeout,
            no_filter_chain_match,
        }
        gauges { downstream_cx_active, downstream_pre_cx_active }
        histograms { connections_accepted_per_socket_event: Unspecified, downstream_cx_length_ms: Milliseconds }
    }
}

stats_block! {
    /// `listener.<address>.worker_<index>.*`.
    pub struct WorkerListenerStats {
        counters { downstream_cx_total }
        gauges { downstream_cx_active }
        histograms {}
    }
}

stats_block! {
    /// `listener_manager.*`.
    pub struct ListenerManagerStats {
        counters {
            listener_added, listener_create_failure, listener_create_success, listener_in_place_updated,
            listener_modified, listener_removed, listener_stopped,
        }
        gauges {
            total_filter_chains_draining, total_listeners_active, total_listeners_draining, total_listeners_warming,
            workers_pinned, workers_started,
        }
        histograms {}
        zeros { total_listeners_warming }
    }
}
