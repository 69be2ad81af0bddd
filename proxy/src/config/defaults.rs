//! Envoy's defaults and ours, side by side: what acts where a configuration is silent and Envoy's value is unsafe at the
//! edge. It is the only place that knows both; the README's table is made from [`TABLE`].

use std::time::Duration;

use tidegate_filters::context::Defaults;

/// One row of the table in the README.
pub struct Row {
    pub field: &'static str,
    pub envoy: &'static str,
    pub tidegate: &'static str,
    pub why: &'static str,
}

/// Every default that differs from Envoy's; `--envoy-defaults` takes all of them back.
pub const TABLE: &[Row] = &[
    Row {
        field: "http_connection_manager.normalize_path",
        envoy: "false",
        tidegate: "true",
        why: "what was authorised must be what is forwarded",
    },
    Row {
        field: "http_connection_manager.path_with_escaped_slashes_action",
        envoy: "KEEP_UNCHANGED",
        tidegate: "kept, but a dot segment behind %2f, %5c or %2e is a 400",
        why: "an upstream that decodes would see another path than was authorised",
    },
    Row {
        field: "http_connection_manager.use_remote_address",
        envoy: "false: x-forwarded-for is believed",
        tidegate: "false: x-forwarded-for is not believed",
        why: "anybody can write a header",
    },
    Row {
        field: "filter_chain.transport_socket_connect_timeout",
        envoy: "none",
        tidegate: "15 s",
        why: "a client that dribbles a handshake holds a connection",
    },
    Row {
        field: "http_connection_manager.request_headers_timeout",
        envoy: "none",
        tidegate: "10 s",
        why: "a client that dribbles headers holds a connection",
    },
    Row {
        field: "common_http_protocol_options.headers_with_underscores_action",
        envoy: "ALLOW",
        tidegate: "ALLOW, but names that collide with framing, routing or trusted names are dropped",
        why: "`content_length` and `content-length` are the same name to many upstreams",
    },
    Row {
        field: "http2_protocol_options.max_concurrent_streams",
        envoy: "1024",
        tidegate: "100",
        why: "Envoy's own guide for the edge",
    },
    Row {
        field: "http2_protocol_options.initial_stream_window_size",
        envoy: "16 MiB",
        tidegate: "64 KiB",
        why: "what a client may make us hold",
    },
    Row {
        field: "http2_protocol_options.initial_connection_window_size",
        envoy: "24 MiB",
        tidegate: "1 MiB",
        why: "what a client may make us hold",
    },
];

/// The values that act where nothing is set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values {
    pub normalize_path: bool,
    pub reject_hidden_dot_segments: bool,
    pub trust_xff: bool,
    pub drop_colliding_names: bool,
    pub request_headers_timeout: Option<Duration>,
    pub handshake_timeout: Option<Duration>,
    pub max_concurrent_streams: u32,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub stream_idle_timeout: Duration,
    pub connection_idle_timeout: Duration,
}

/// The table as the README shows it.
pub fn markdown() -> String {
    let row = |row: &Row| format!("| `{}` | {} | {} | {} |\n", row.field, row.envoy, row.tidegate, row.why);
    "| field | Envoy | Tidegate | why |\n|---|---|---|---|\n".to_owned() + &TABLE.iter().map(row).collect::<String>()
}

impl Values {
    pub(crate) fn of(defaults: Defaults) -> Self {
        let safe = defaults == Defaults::Safe;
        Self {
            normalize_path: safe,
            reject_hidden_dot_segments: safe,
            trust_xff: !safe,
            drop_colliding_names: safe,
            handshake_timeout: safe.then_some(Duration::from_secs(15)),
            request_headers_timeout: safe.then_some(Duration::from_secs(10)),
            max_concurrent_streams: if safe { 100 } else { 1024 },
            stream_window_bytes: if safe { 64 << 10 } else { 16 << 20 },
            connection_window_bytes: if safe { 1 << 20 } else { 24 << 20 },
            stream_idle_timeout: Duration::from_secs(300),
            connection_idle_timeout: Duration::from_secs(3600),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_shows_this_table() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
        let (_, after) = readme.split_once("<!-- defaults:begin -->\n").unwrap();
        let (shown, _) = after.split_once("<!-- defaults:end -->").unwrap();
        assert_eq!(shown, super::markdown());
    }
}
