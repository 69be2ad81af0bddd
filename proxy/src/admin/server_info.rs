//! `/server_info`, `/ready`, `/memory` and what else is told of the process as a whole. It must not know where it is from.

use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use super::json::duration;
use super::reply::Reply;
use super::state::{CommandLine, ServerState};
use crate::stats::server::VERSION;

pub(super) fn show(call: &Call<'_>) -> Reply {
    let info = call.state.server_info();
    let uptime = format!("{}s", info.uptime.as_secs());
    Reply::json(&json!({
        "version": VERSION,
        "state": call.state.server_state().name(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": options(&info.options),
        "node": info.node,
        "hot_restart_initializing": false,
    }))
}

fn options(options: &CommandLine) -> Value {
    json!({
        "base_id": options.base_id.to_string(),
        "concurrency": options.concurrency,
        "config_path": options.config_path,
        "config_yaml": options.config_yaml,
        "allow_unknown_static_fields": options.allow_unknown_static_fields,
        "admin_address_path": options.admin_address_path,
        "local_address_ip_version": options.local_address_ip_version,
        "log_level": options.log_level.name(),
        "component_log_level": options.component_log_level,
        "log_format": options.log_format,
        "log_path": options.log_path,
        "service_cluster": options.service_cluster,
        "service_node": options.service_node,
        "service_zone": options.service_zone,
        "file_flush_interval": duration(options.file_flush_interval),
        "file_flush_min_size": options.file_flush_min_size_kb,
        "drain_time": duration(options.drain_time),
        "parent_shutdown_time": duration(options.parent_shutdown_time),
        "mode": "Serve",
        "disable_hot_restart": true,
        "restart_epoch": options.restart_epoch,
        "reject_unknown_dynamic_fields": options.reject_unknown_dynamic_fields,
        "ignore_unknown_dynamic_fields": options.ignore_unknown_dynamic_fields,
        "drain_strategy": if options.drain_immediately { "Immediate" } else { "Gradual" },
        "enable_mutex_tracing": false,
        "cpuset_threads": options.cpuset_threads,
        "log_format_escaped": options.log_format_escaped,
        "disabled_extensions": [],
        "use_dynamic_base_id": options.use_dynamic_base_id,
        "base_id_path": options.base_id_path,
        "enable_fine_grain_logging": options.enable_fine_grain_logging,
        "socket_path": options.socket_path,
        // Envoy never tells these two.
        "socket_mode": 0,
        "enable_core_dump": false,
        "stats_tag": options.stats_tag,
        "skip_hot_restart_on_no_parent": options.skip_hot_restart_on_no_parent,
        "skip_hot_restart_parent_stats": options.skip_hot_restart_parent_stats,
        "skip_deprecated_logs": options.skip_deprecated_logs,
        "log_stacktrace_single_entry": options.log_stacktrace_single_entry,
    })
}

/// 200 while the process takes traffic.
pub(super) fn ready(call: &Call<'_>) -> Reply {
    let state = call.state.server_state();
    let status = if state == ServerState::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::error(status, format!("{}\n", state.name()))
}

/// `envoy.admin.v3.Memory`.
pub(super) fn memory(call: &Call<'_>) -> Reply {
    let memory = call.state.memory();
    Reply::json(&json!({
        "allocated": memory.allocated.to_string(),
        "heap_size": memory.heap_size.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": memory.physical.to_string(),
    }))
}

pub(super) fn hot_restart(_: &Call<'_>) -> Reply {
    Reply::ok("disabled")
}

/// What is waited for is not told one by one.
pub(super) fn initialization(_: &Call<'_>) -> Reply {
    Reply::json(&json!({}))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get};
    use super::*;

    #[test]
    fn the_process_tells_who_it_is() {
        let info = get(&Fake::default(), "/server_info").parsed();
        assert_eq!(info["state"], "LIVE");
        assert_eq!(info["uptime_current_epoch"], "61s");
        assert_eq!(info["hot_restart_version"], "disabled");
        assert_eq!(info["command_line_options"]["drain_time"], "600s");
        assert_eq!(info["command_line_options"]["log_level"], "info");
        assert_eq!(info["node"]["id"], "n1");
        assert_eq!(info["version"].as_str().map(|version| version.split('/').count()), Some(5));
    }

    #[test]
    fn only_a_live_process_is_ready() {
        for (state, status, text) in [
            (ServerState::Live, 200, "LIVE\n"),
            (ServerState::Draining, 503, "DRAINING\n"),
            (ServerState::PreInitializing, 503, "PRE_INITIALIZING\n"),
            (ServerState::Initializing, 503, "INITIALIZING\n"),
        ] {
            let reply = get(&Fake { server_state: state, ..Fake::default() }, "/ready");
            assert_eq!((reply.status.as_u16(), reply.text()), (status, text));
        }
    }

    #[test]
    fn memory_is_told_in_bytes() {
        assert_eq!(get(&Fake::default(), "/memory").parsed()["total_physical_bytes"], "3");
        assert_eq!(get(&Fake::default(), "/certs").text(), "{\n \"certificates\": []\n}\n");
        assert_eq!(get(&Fake::default(), "/hot_restart_version").text(), "disabled");
    }
}
