//! Listeners of the short form to those of xDS, each with the routes that have its name. What Envoy advises at the edge is said
//! aloud, so that every proxy does it. It must not know which routes these are.

use serde_json::{Value, json};

use super::{CONNECTION_BUFFER_BYTES, aggregated, duration, filters, typed};
use crate::short::form::{AccessLog, EscapedSlashes, Listen, ListenProtocol, LogFormat, Underscores};

const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// A listener.
pub(super) fn resource(name: &str, listen: &Listen, log: Option<&AccessLog>) -> Value {
    let manager = typed(MANAGER, manager(name, listen, log));
    let manager = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    let limit = listen.max_connections.map(|most| {
        let limit = json!({"stat_prefix": name, "max_connections": most.0});
        let limit = typed("envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit", limit);
        json!({"name": "envoy.filters.network.connection_limit", "typed_config": limit})
    });
    let filters: Vec<Value> = limit.into_iter().chain([manager]).collect();
    let (address, port) = (listen.address.0.ip().to_string(), listen.address.0.port());
    let mut listener = json!({
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "filter_chains": [{"filters": filters}],
    });
    if listen.proxy_protocol {
        let proxy = typed("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", json!({}));
        listener["listener_filters"] =
            json!([{"name": "envoy.filters.listener.proxy_protocol", "typed_config": proxy}]);
    }
    typed("envoy.config.listener.v3.Listener", listener)
}

fn manager(name: &str, listen: &Listen, log: Option<&AccessLog>) -> Value {
    let mut manager = json!({
        "stat_prefix": name,
        "codec_type": match listen.protocol {
            ListenProtocol::Auto => "AUTO",
            ListenProtocol::Http1 => "HTTP1",
            ListenProtocol::Http2 => "HTTP2",
        },
        "rds": {"route_config_name": name, "config_source": aggregated()},
        "use_remote_address": true,
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": match listen.escaped_slashes {
            EscapedSlashes::Redirect => "UNESCAPE_AND_REDIRECT",
            EscapedSlashes::Reject => "REJECT_REQUEST",
            EscapedSlashes::Keep => "KEEP_UNCHANGED",
        },
        "common_http_protocol_options": {
            "idle_timeout": duration(listen.keepalive_timeout.0),
            "headers_with_underscores_action": match listen.underscores {
                Underscores::Drop => "DROP_HEADER",
                Underscores::Reject => "REJECT_REQUEST",
                Underscores::Keep => "ALLOW",
            },
        },
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 64 << 10,
            "initial_connection_window_size": 1 << 20,
        },
        "request_headers_timeout": duration(listen.header_timeout.0),
        "http_filters": filters::all(),
    });
    if listen.trusted_hops.0 > 0 {
        manager["xff_num_trusted_hops"] = json!(listen.trusted_hops.0);
    }
    if let Some(log) = log.and_then(access_log) {
        manager["access_log"] = json!([log]);
    }
    manager
}

fn access_log(log: &AccessLog) -> Option<Value> {
    let mut fields = match log.format {
        LogFormat::Text => json!({}),
        LogFormat::Json => json!({"log_format": {"json_format": json_line()}}),
    };
    let (name, message) = match log.to.0.as_str() {
        "none" => return None,
        "stdout" => ("envoy.access_loggers.stdout", "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"),
        "stderr" => ("envoy.access_loggers.stderr", "envoy.extensions.access_loggers.stream.v3.StderrAccessLog"),
        path => {
            fields["path"] = json!(path);
            ("envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog")
        }
    };
    Some(json!({"name": name, "typed_config": typed(message, fields)}))
}

/// What an incident asks for.
fn json_line() -> Value {
    json!({
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "host": "%REQ(:AUTHORITY)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "request_bytes": "%BYTES_RECEIVED%",
        "response_bytes": "%BYTES_SENT%",
        "duration_ms": "%DURATION%",
        "upstream_ms": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "forwarded_for": "%REQ(X-FORWARDED-FOR)%",
        "user_agent": "%REQ(USER-AGENT)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "route": "%ROUTE_NAME%",
        "upstream": "%UPSTREAM_CLUSTER%",
        "upstream_host": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    })
}
