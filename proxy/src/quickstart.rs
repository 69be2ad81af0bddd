//! The embedded demonstration: a configuration that needs nothing, and the upstreams that it points at.
//! It must not know more of the proxy than a configuration file does.

use tidegate_filters::context::Defaults;
use tidegate_xds::{FieldError, Format};

use crate::config::bootstrap::{Bootstrap, Overrides};

const CONFIGURATION: &str = include_str!("../../configs/quickstart.yaml");

/// The upstreams, in the same process: listeners that answer by themselves.
fn upstreams() -> String {
    let upstream = |name: &str, port: u16| {
        format!(
            r#"
  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: / }}
                direct_response: {{ status: 200, body: {{ inline_string: "hello from {name}\n" }} }}"#
        )
    };
    format!("static_resources:\n  listeners:{}{}\n", upstream("demo-a", 10001), upstream("demo-b", 10002))
}

/// The configuration of the demonstration, compiled into the binary.
///
/// # Errors
/// None, unless the embedded file is wrong; a test loads it.
pub fn bootstrap() -> Result<Bootstrap, Vec<FieldError>> {
    let overrides = Overrides { yaml: Some(upstreams()), ..Overrides::default() };
    Bootstrap::read(CONFIGURATION.as_bytes(), Format::Yaml, &overrides, Defaults::Safe)
}

/// Prints what to try.
pub fn announce() {
    println!(
        "tidegate: gateway on http://127.0.0.1:10000, admin on http://127.0.0.1:9901

Try:
  curl -s http://127.0.0.1:10000/                        a page that says what there is
  curl -s http://127.0.0.1:10000/split                   4 of 5 from demo-a, the others from demo-b
  curl -s -H 'x-demo: b' http://127.0.0.1:10000/split    always from demo-b
  for i in 1 2 3 4 5 6; do curl -s -o /dev/null -w '%{{http_code}}\\n' http://127.0.0.1:10000/limited; done
                                                         5 in 10 seconds, then 429
  curl -s http://127.0.0.1:9901/clusters                 what the gateway knows of its upstreams

Ctrl-C drains and ends."
    );
}
