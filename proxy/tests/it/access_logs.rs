//! Access logs: which lines a request has, and when.

use std::path::Path;

use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, Upstream, http_bootstrap_with};

const ROUTES: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";

/// The field of a connection manager, or of anything else, that logs to a file.
pub(crate) fn log(path: &Path, format: &str) -> String {
    format!(
        "access_log:
          - name: file
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {}
              log_format: {{ text_format_source: {{ inline_string: \"{format}\\n\" }} }}",
        path.display()
    )
}

#[test]
fn a_request_may_have_a_line_when_it_begins() {
    let (upstream, port, directory) = (Upstream::text("hello"), free_port(), Directory::new());
    let path = directory.0.join("log");
    let options = "access_log_options: { flush_access_log_on_new_request: true }
          ";
    let log = log(&path, "%ACCESS_LOG_TYPE% %RESPONSE_CODE% %UPSTREAM_CLUSTER%");
    let bootstrap = http_bootstrap_with(port, &format!("{options}{log}"), ROUTES, &[("up", upstream.port)], "");
    let _gateway = Gateway::start_with(&bootstrap, &["--file-flush-interval-msec", "10"]);
    assert_eq!(Client::new(port).get("/").status, 200);
    eventually("both lines", || {
        std::fs::read_to_string(&path).unwrap() == "DownstreamStart 0 up\nDownstreamEnd 200 up\n"
    });
}

#[test]
fn a_file_that_was_moved_away_is_opened_again_by_sigusr1() {
    let (upstream, port, directory) = (Upstream::text("hello"), free_port(), Directory::new());
    let (path, moved) = (directory.0.join("log"), directory.0.join("log.1"));
    let bootstrap = http_bootstrap_with(port, &log(&path, "%REQ(:PATH)%"), ROUTES, &[("up", upstream.port)], "");
    let gateway = Gateway::start_with(&bootstrap, &["--file-flush-interval-msec", "10"]);
    let mut client = Client::new(port);
    assert_eq!(client.get("/before").status, 200);
    eventually("the first line", || std::fs::read_to_string(&path).unwrap() == "/before\n");
    std::fs::rename(&path, &moved).unwrap();
    assert_eq!(client.get("/moved").status, 200);
    eventually("a line in the file that was moved", || std::fs::read_to_string(&moved).unwrap() == "/before\n/moved\n");
    gateway.signal("USR1");
    eventually("a new file", || path.exists());
    assert_eq!(client.get("/after").status, 200);
    eventually("a line in the new file", || std::fs::read_to_string(&path).unwrap() == "/after\n");
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "/before\n/moved\n");
}

#[test]
fn a_line_tells_times_sizes_and_what_was_shared_with_the_upstream() {
    let (upstream, port, directory) = (Upstream::text("hello"), free_port(), Directory::new());
    let path = directory.0.join("log");
    let format = "%DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED%/%UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT% \
                  %DOWNSTREAM_DETECTED_CLOSE_TYPE%/%UPSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_FILTER_STATE(k:PLAIN)% \
                  %ROUTE_RESOLUTION_TIME_US% %UPSTREAM_CONNECTION_POOL_READY_DURATION% \
                  %COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)% %COMMON_DURATION(DS_RX_BEG:DS_CX_END)%";
    let shares = "{ '@type': type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config, \
                  on_request_headers: [{ object_key: k, factory_key: envoy.string, shared_with_upstream: ONCE, \
                  format_string: { text_format_source: { inline_string: 'of %REQ(:PATH)%' } } }] }";
    let manager = format!("generate_request_id: false\n          {}", log(&path, format));
    let bootstrap = http_bootstrap_with(port, &manager, ROUTES, &[("up", upstream.port)], "");
    let filters = "          http_filters:\n";
    let bootstrap =
        bootstrap.replace(filters, &format!("{filters}          - {{ name: s, typed_config: {shares} }}\n"));
    let _gateway = Gateway::start_with(&bootstrap, &["--file-flush-interval-msec", "10"]);
    let mut client = Client::new(port);
    for path in ["/a", "/b"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n\r\n");
        assert_eq!(client.send(request).response().status, 200);
    }
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    eventually("both lines", || lines().lines().count() == 2);
    for line in lines().lines() {
        let words: Vec<_> = line.split(' ').collect();
        // `host: a.example` came; with it went `x-forwarded-proto: http` and `x-envoy-expected-rq-timeout-ms: 15000`.
        assert_eq!(words[0], "16/81", "{line}");
        assert_eq!(words[1], "Normal/Normal", "{line}");
        // The connection is the first request's.
        assert_eq!(words[2..4], ["of", "/a"], "{line}");
        assert!(words[4..7].iter().all(|number| number.parse::<u64>().is_ok()), "{line}");
        assert_eq!(words[7], "-", "{line}");
    }
}

/// Five logs and the application log, in one place that was opened twice: every line is there, whole.
#[test]
fn no_line_is_lost_where_several_logs_lead_to_one_place() {
    const REQUESTS: usize = 200;
    let (port, directory) = (free_port(), Directory::new());
    let out = directory.0.join("out");
    let line = |name: &str, more: &str| {
        format!(
            "- name: {name}
            typed_config: {{ '@type': type.googleapis.com/envoy.extensions.access_loggers.{more}, \
             log_format: {{ text_format_source: {{ inline_string: \"{name} %REQ(:PATH)%\\n\" }} }} }}
          "
        )
    };
    let file = |path: &str| format!("file.v3.FileAccessLog, path: {path}");
    let names = ["device", "path", "stdout", "stderr", "again"];
    let logs = [
        line("device", &file("/dev/stdout")),
        line("path", &file(out.to_str().unwrap())),
        line("stdout", "stream.v3.StdoutAccessLog"),
        line("stderr", "stream.v3.StderrAccessLog"),
        line("again", &file("/dev/stderr")),
    ];
    let logs = format!("access_log:\n          {}", logs.concat());
    let bootstrap =
        http_bootstrap_with(port, &logs, "[{ match: { prefix: / }, direct_response: { status: 200 } }]", &[], "");
    let configuration = directory.put("bootstrap.yaml", &bootstrap);
    let opened = || std::fs::File::create(&out).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["--concurrency", "1", "--file-flush-interval-msec", "1", "-l", "info", "-c"])
        .arg(configuration)
        .stdout(opened())
        .stderr(opened())
        .spawn()
        .unwrap();
    let text = || String::from_utf8(std::fs::read(&out).unwrap()).unwrap();
    eventually("the application log", || text().contains("listening"));
    let mut client = Client::new(port);
    for number in 0..REQUESTS {
        assert_eq!(client.get(&format!("/{number}")).status, 200);
    }
    drop(client);
    let stopped = std::process::Command::new("kill").arg("-INT").arg(child.id().to_string()).status();
    assert!(stopped.unwrap().success());
    assert!(child.wait().unwrap().success());
    let text = text();
    let lines: std::collections::HashSet<&str> = text.lines().collect();
    for name in names {
        let missing = (0..REQUESTS).filter(|number| !lines.contains(format!("{name} /{number}").as_str())).count();
        assert_eq!(missing, 0, "of {name}");
    }
    assert!(text.contains("listening"), "{text}");
    let whole = |line: &&&str| names.iter().any(|name| line.starts_with(&format!("{name} /")));
    assert_eq!(lines.iter().filter(whole).count(), names.len() * REQUESTS);
    assert!(!text.contains('\0'));
}
