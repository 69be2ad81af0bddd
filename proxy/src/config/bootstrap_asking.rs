//! The bootstrap of a gateway that has nothing of its own: it asks one control plane for everything.
//! It must not know who starts it, nor what it will be told.

use std::net::SocketAddr;

use tidegate_filters::context::Defaults;
use tidegate_xds::{FieldError, Format};

use super::bootstrap::{Bootstrap, Overrides};

impl Bootstrap {
    /// A gateway that asks the control plane on this address for everything.
    pub(crate) fn asking(control: SocketAddr, admin: SocketAddr) -> Result<Self, Vec<FieldError>> {
        let text = format!(
            r#"
node: {{ id: quickstart, cluster: quickstart }}
admin: {{ address: {{ socket_address: {{ address: "{admin_host}", port_value: {admin_port} }} }} }}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{{ envoy_grpc: {{ cluster_name: quickstart.control }} }}]
  cds_config: {{ resource_api_version: V3, ads: {{}} }}
  lds_config: {{ resource_api_version: V3, ads: {{}} }}
static_resources:
  clusters:
  - name: quickstart.control
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: quickstart.control
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: "{host}", port_value: {port} }} }} }}
"#,
            admin_host = admin.ip(),
            admin_port = admin.port(),
            host = control.ip(),
            port = control.port(),
        );
        Self::read(text.as_bytes(), Format::Yaml, &Overrides::default(), Defaults::Safe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let bootstrap = Bootstrap::asking(address(1), address(2)).unwrap();
        crate::server::validate(&bootstrap, Defaults::Safe).unwrap();
    }
}
