//! Access logs: which lines a request has, and when.

use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, Upstream, http_bootstrap_with};

const ROUTES: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";

#[test]
fn a_request_may_have_a_line_when_it_begins() {
    let (upstream, port, directory) = (Upstream::text("hello"), free_port(), Directory::new());
    let path = directory.0.join("log");
    let manager = format!(
        "access_log_options: {{ flush_access_log_on_new_request: true }}
          access_log:
          - name: file
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {}
              log_format:
                text_format_source: {{ inline_string: \"%ACCESS_LOG_TYPE% %RESPONSE_CODE% %UPSTREAM_CLUSTER%\\n\" }}",
        path.display()
    );
    let bootstrap = http_bootstrap_with(port, &manager, ROUTES, &[("up", upstream.port)], "");
    let _gateway = Gateway::start_with(&bootstrap, &["--file-flush-interval-msec", "10"]);
    assert_eq!(Client::new(port).get("/").status, 200);
    eventually("both lines", || {
        std::fs::read_to_string(&path).unwrap() == "DownstreamStart 0 up\nDownstreamEnd 200 up\n"
    });
}
