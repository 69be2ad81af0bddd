//! How HTTP is spoken to a cluster: `typed_extension_protocol_options`, or the deprecated fields where that is absent.

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::ClusterProtocolSelection;
use tidegate_xds::pb::envoy::config::core::v3::{
    HttpProtocolOptions as CommonOptions, UpstreamHttpProtocolOptions as UpstreamOptions,
};
use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use tidegate_xds::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use tidegate_xds::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use tidegate_xds::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use tidegate_xds::{FieldError, any};

use super::protocol::{http1, http2};
use super::values::limit;
use crate::cluster::options::{HttpOptions, HttpProtocol, RequestPolicies};
use crate::config::route;

/// The key under which Envoy looks for the options.
const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Compiled options, and upstream filters that are not compiled yet.
pub(super) struct Compiled {
    pub(super) options: HttpOptions,
    pub(super) filters: Vec<HttpFilter>,
}

pub(super) fn compile(proto: &Cluster, context: &mut CompileContext<'_>) -> Result<Compiled, FieldError> {
    if let Some(other) = proto.typed_extension_protocol_options.keys().find(|key| *key != KEY) {
        let field = format!("typed_extension_protocol_options[{other:?}]");
        return Err(context.error_at(&field, format!("not supported yet: protocol options for '{other}'")));
    }
    let mut compiled = match proto.typed_extension_protocol_options.get(KEY) {
        Some(config) => {
            let field = format!("typed_extension_protocol_options[{KEY:?}]");
            context.within(&field, |context| {
                let options: HttpProtocolOptions = any::unpack(config, &context.path)?;
                typed(&options, context)
            })?
        }
        None => Compiled { options: deprecated(proto, context)?, filters: Vec::new() },
    };
    let options = &mut compiled.options;
    #[expect(deprecated, reason = "Envoy 1.40 reads it")]
    if let Some(most) = proto.max_requests_per_connection {
        if options.max_requests_per_connection.is_some() {
            let reason = "only one of max_requests_per_connection from Cluster or HttpProtocolOptions can be specified";
            return Err(context.error_at("max_requests_per_connection", reason));
        }
        options.max_requests_per_connection = Some(most.value);
    }
    options.max_requests_per_connection = options.max_requests_per_connection.filter(|&most| most > 0);
    Ok(compiled)
}

fn typed(proto: &HttpProtocolOptions, context: &mut CompileContext<'_>) -> Result<Compiled, FieldError> {
    let mut options = HttpOptions::default();
    if let Some(common) = &proto.common_http_protocol_options {
        context.within("common_http_protocol_options", |context| self::common(common, &mut options, context))?;
    }
    if let Some(upstream) = &proto.upstream_http_protocol_options {
        self::upstream(upstream, &mut options, context)?;
    }
    options.protocol = protocol(proto, context)?;
    options.policies = RequestPolicies {
        retry: match &proto.retry_policy {
            Some(policy) => {
                Some(context.within("retry_policy", |context| route::retry_policy(policy, context))?.into())
            }
            None => None,
        },
        hash: route::hash_policies(&proto.hash_policy, context)?.into(),
        mirrors: route::mirror_policies(&proto.request_mirror_policies, false, context)?.into(),
    };
    Ok(Compiled { options, filters: proto.http_filters.clone() })
}

fn protocol(proto: &HttpProtocolOptions, context: &mut CompileContext<'_>) -> Result<HttpProtocol, FieldError> {
    match &proto.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            context.within("explicit_http_config", |context| match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                    Ok(HttpProtocol::Http1(http1(Some(options), "http_protocol_options", context)?))
                }
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    Ok(HttpProtocol::Http2(http2(Some(options), "http2_protocol_options", context)?))
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    Err(context.error_at("http3_protocol_options", "not supported yet: http3_protocol_options"))
                }
                None => Err(context.error_at("protocol_config", "is required")),
            })
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(downstream)) => {
            context.within("use_downstream_protocol_config", |context| {
                if downstream.http3_protocol_options.is_some() {
                    return Err(context.error_at("http3_protocol_options", "not supported yet: http3_protocol_options"));
                }
                let http1 = http1(downstream.http_protocol_options.as_ref(), "http_protocol_options", context)?;
                let http2 = http2(downstream.http2_protocol_options.as_ref(), "http2_protocol_options", context)?;
                Ok(HttpProtocol::Downstream(http1, http2))
            })
        }
        Some(UpstreamProtocolOptions::AutoConfig(auto)) => context.within("auto_config", |context| {
            if auto.http3_protocol_options.is_some() {
                return Err(context.error_at("http3_protocol_options", "not supported yet: http3_protocol_options"));
            }
            let http1 = http1(auto.http_protocol_options.as_ref(), "http_protocol_options", context)?;
            let http2 = http2(auto.http2_protocol_options.as_ref(), "http2_protocol_options", context)?;
            Ok(HttpProtocol::Auto(http1, http2))
        }),
        None => Err(context.error_at("upstream_protocol_options", "is required")),
    }
}

fn common(proto: &CommonOptions, options: &mut HttpOptions, context: &CompileContext<'_>) -> Result<(), FieldError> {
    if proto.idle_timeout.is_some() {
        options.idle_timeout = limit(proto.idle_timeout.as_ref(), "idle_timeout", context)?;
    }
    let max_connection_duration = proto.max_connection_duration.as_ref();
    options.max_connection_duration = limit(max_connection_duration, "max_connection_duration", context)?;
    options.max_stream_duration = limit(proto.max_stream_duration.as_ref(), "max_stream_duration", context)?;
    if let Some(most) = proto.max_headers_count {
        options.max_headers_count = most.value;
    }
    if let Some(kilobytes) = proto.max_response_headers_kb {
        options.max_response_headers_bytes = Some(kilobytes.value.saturating_mul(1024));
    }
    options.max_requests_per_connection = proto.max_requests_per_connection.map(|most| most.value);
    Ok(())
}

fn upstream(
    proto: &UpstreamOptions,
    options: &mut HttpOptions,
    context: &CompileContext<'_>,
) -> Result<(), FieldError> {
    options.auto_sni = proto.auto_sni;
    options.auto_san_validation = proto.auto_san_validation;
    if !proto.override_auto_sni_header.is_empty() {
        let name = http::HeaderName::try_from(&*proto.override_auto_sni_header);
        let name = name.map_err(|_| context.error_at("override_auto_sni_header", "is not a header name"))?;
        options.override_auto_sni_header = Some(name);
    }
    Ok(())
}

/// The fields that stood in the cluster itself before there were typed options.
#[expect(deprecated, reason = "Envoy 1.40 reads them")]
fn deprecated(proto: &Cluster, context: &mut CompileContext<'_>) -> Result<HttpOptions, FieldError> {
    let mut options = HttpOptions::default();
    if let Some(common) = &proto.common_http_protocol_options {
        context.within("common_http_protocol_options", |context| self::common(common, &mut options, context))?;
    }
    if let Some(upstream) = &proto.upstream_http_protocol_options {
        self::upstream(upstream, &mut options, context)?;
    }
    let follow = proto.protocol_selection == ClusterProtocolSelection::UseDownstreamProtocol as i32;
    let first = proto.http_protocol_options.as_ref();
    let second = proto.http2_protocol_options.as_ref();
    if first.is_some() && second.is_some() && !follow {
        let reason = "both HTTP1 and HTTP2 options may only be configured with non-default 'protocol_selection' values";
        return Err(context.error_at("http2_protocol_options", reason));
    }
    let http1 = http1(first, "http_protocol_options", context)?;
    let http2 = http2(second, "http2_protocol_options", context)?;
    options.protocol = match (follow, second) {
        (true, _) => HttpProtocol::Downstream(http1, http2),
        (false, Some(_)) => HttpProtocol::Http2(http2),
        (false, None) => HttpProtocol::Http1(http1),
    };
    Ok(options)
}
