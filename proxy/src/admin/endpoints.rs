//! The list of endpoints: path, what it is for, its parameters, and what answers it. It must not know how it is reached.

use super::reply::Reply;
use super::{
    Call, certificates, clusters, commands, config_dump, help, listeners, logging, lookups, profiling, runtime,
    server_info, stats, status,
};

/// Something that can be asked of a process.
pub(super) struct Endpoint {
    pub(super) path: &'static str,
    pub(super) help: &'static str,
    /// Whether it changes something, so that it must be posted.
    pub(super) changes: bool,
    /// Names and what they are for.
    pub(super) parameters: &'static [(&'static str, &'static str)],
    pub(super) act: fn(&Call<'_>) -> Reply,
}

type Act = fn(&Call<'_>) -> Reply;
type Parameters = &'static [(&'static str, &'static str)];

const fn shows(path: &'static str, help: &'static str, parameters: Parameters, act: Act) -> Endpoint {
    Endpoint { path, help, changes: false, parameters, act }
}

const fn changes(path: &'static str, help: &'static str, parameters: Parameters, act: Act) -> Endpoint {
    Endpoint { path, help, changes: true, parameters, act }
}

/// All that can be asked, by path.
pub(super) const ENDPOINTS: &[Endpoint] = &[
    shows("/", "Admin home page", &[], help::home),
    changes(
        "/allocprofiler",
        "enable/disable the allocation profiler (not in this build)",
        &[("enable", "enable/disable the allocation profiler; One of (y, n)")],
        profiling::heap,
    ),
    shows("/certs", "print certs on machine", &[], certificates::certificates),
    shows(
        "/clusters",
        "upstream cluster status",
        &[
            ("filter", "Regular expression (Google re2) for filtering clusters by name"),
            ("format", "File format to use; One of (text, json)"),
        ],
        clusters::show,
    ),
    shows(
        "/config_dump",
        "dump current configuration",
        &[
            ("resource", "The resource to dump"),
            ("mask", "The fields to show, as a FieldMask. With a resource it is applied to each of its elements"),
            ("name_regex", "Show only the configurations whose whole name matches the regular expression"),
            ("include_eds", "Show endpoints as well"),
        ],
        config_dump::show,
    ),
    shows("/contention", "dump mutex contention stats (not in this build)", &[], profiling::contention),
    changes(
        "/cpuprofiler",
        "enable/disable the CPU profiler (not in this build)",
        &[("enable", "enables the CPU profiler; One of (y, n)")],
        profiling::cpu,
    ),
    changes(
        "/drain_listeners",
        "drain listeners",
        &[
            ("graceful", "Ask connections to leave for the drain time before listeners are closed"),
            ("skip_exit", "Ask connections to leave, and never close listeners"),
            ("inboundonly", "Only listeners whose traffic_direction is INBOUND"),
        ],
        commands::drain_listeners,
    ),
    changes("/healthcheck/fail", "cause the server to fail health checks", &[], commands::fail_health_checks),
    changes("/healthcheck/ok", "cause the server to pass health checks", &[], commands::pass_health_checks),
    shows("/heap_dump", "dump the heap (not in this build)", &[], profiling::heap),
    changes(
        "/heapprofiler",
        "enable/disable the heap profiler (not in this build)",
        &[("enable", "enable/disable the heap profiler; One of (y, n)")],
        profiling::heap,
    ),
    shows("/help", "print out list of admin commands", &[], help::show),
    shows("/hot_restart_version", "print the hot restart compatibility version", &[], server_info::hot_restart),
    shows("/init_dump", "show what is waited for before serving", &[], server_info::initialization),
    shows(
        "/listeners",
        "print listener info",
        &[("format", "File format to use; One of (text, json)")],
        listeners::show,
    ),
    changes(
        "/logging",
        "query/change logging levels",
        &[
            (
                "paths",
                "Change multiple logging levels: <logger_name1>:<desired_level1>,<logger_name2>:<desired_level2>",
            ),
            (
                "level",
                "desired logging level of all loggers; One of (, trace, debug, info, warning, error, critical, off)",
            ),
            (
                "group",
                "Change the levels of a logger's source files, where levels are by file: <logger_name>:<desired_level>",
            ),
        ],
        logging::change,
    ),
    shows("/memory", "print current allocation/heap usage", &[], server_info::memory),
    shows("/memory/tcmalloc", "print TCMalloc stats (not in this build)", &[], profiling::tcmalloc),
    shows("/peak_heap_dump", "dump the heap at its peak (not in this build)", &[], profiling::heap),
    changes("/quitquitquit", "exit the server", &[], commands::quit),
    shows("/ready", "print server state, return 200 if LIVE, otherwise return 503", &[], server_info::ready),
    changes("/reopen_logs", "reopen access logs", &[], commands::reopen_logs),
    changes("/reset_counters", "reset all counters to zero", &[], commands::reset_counters),
    shows("/runtime", "print runtime values", &[], runtime::show),
    changes(
        "/runtime_modify",
        "set runtime values of the admin layer, e.g. ?key1=value1&key2=value2; an empty value takes away what was set here",
        &[],
        runtime::modify,
    ),
    shows("/server_info", "print server version/status information", &[], server_info::show),
    shows(
        "/stats",
        "print server stats",
        &[
            ("usedonly", "Only include stats that have been written by system since restart"),
            ("filter", "Regular expression (Google re2) for filtering stats"),
            ("invert_filter", "Invert the filter regex"),
            ("format", "Format to use; One of (html, active-html, text, json, prometheus)"),
            ("type", "Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)"),
            ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, disjoint, detailed, summary)"),
            (
                "hidden",
                "Whether groups of stats that are deferred show if they are there; One of (include, only, exclude)",
            ),
        ],
        stats::show,
    ),
    shows(
        "/stats/prometheus",
        "print server stats in prometheus format",
        &[
            ("usedonly", "Only include stats that have been written by system since restart"),
            ("text_readouts", "Show text readouts as gauges with value 0"),
            ("filter", "Regular expression (Google re2) for filtering stats"),
            ("invert_filter", "Invert the filter regex"),
            ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, summary)"),
        ],
        stats::show_prometheus,
    ),
    shows("/stats/recentlookups", "Show recent stat-name lookups", &[], lookups::show),
    changes("/stats/recentlookups/clear", "clear list of stat-name lookups and counter", &[], lookups::clear),
    changes("/stats/recentlookups/disable", "disable recording of stat-name lookups", &[], lookups::disable),
    changes("/stats/recentlookups/enable", "enable recording of stat-name lookups", &[], lookups::enable),
    shows(
        "/status",
        "the process in a few lines: control planes, versions, and what was refused and why",
        &[("format", "File format to use; One of (text, json)")],
        status::show,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_sorted_and_told_apart() {
        let paths: Vec<_> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
        assert!(paths.is_sorted_by(|a, b| a < b));
    }
}
