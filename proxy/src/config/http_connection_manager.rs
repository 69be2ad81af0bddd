//! `HttpConnectionManager` -> [`HttpConnectionManager`]. It must not know streams.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tidegate_filters::context::{CompileContext, Defaults};
use tidegate_filters::http::header_mutations::HeaderEdits;
use tidegate_filters::matching::StringMatcher;
use tidegate_filters::matching::cidr::{Cidr, CidrList};
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::route::v3 as route_proto;
use tidegate_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use tidegate_xds::pb::envoy::extensions::http::original_ip_detection as detection;
use tidegate_xds::pb::envoy::r#type::v3::Percent;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, any};

use super::cluster::protocol::{floods, jitter_percent};
use super::defaults::Values;
use super::request_rules::{client_cert, path_rules, strip_port};
use super::router::{self, ROUTER};
use super::values::{duration, timeout, wrapped_bool, wrapped_u32};
use super::{Compiler, scoped_routes};
use crate::http::AccessLogOptions;
use crate::http::codec::stats::CodecStats;
use crate::http::local_reply::{LocalReplyRules, Mapper};
use crate::http::options::{
    CORS_NAME, ClientAddress, CodecType, FilterChain, FilterSlot, ForwardedProto, HttpConnectionManager, HttpTimeouts,
    OriginalIp, ProxyStatus, RouteSource, RouterOptions, ServerHeader, Upgrade,
};
use crate::http::protocol::{Http2Options, Keepalive, Underscores};
use crate::http::stats::{HttpStats, RouterStats, TracingStats};

/// Compiles a connection manager.
pub(crate) fn compile(
    compiler: &Compiler,
    config: &proto::HttpConnectionManager,
    context: &mut CompileContext<'_>,
) -> Result<HttpConnectionManager, FieldError> {
    let values = Values::of(context.defaults);
    let scope = compiler.stats.scope(&format!("http.{}.", config.stat_prefix.replace(':', "_")));
    let outer = std::mem::replace(&mut context.stats, scope.clone());
    let stats = (HttpStats::of(&scope), TracingStats::new(&scope.scope("tracing.")));
    let compiled = compile_in_scope(compiler, config, values, stats, context);
    context.stats = outer;
    compiled
}

fn compile_in_scope(
    compiler: &Compiler,
    config: &proto::HttpConnectionManager,
    values: Values,
    (stats, tracing_stats): (HttpStats, TracingStats),
    context: &mut CompileContext<'_>,
) -> Result<HttpConnectionManager, FieldError> {
    let common = config.common_http_protocol_options.unwrap_or_default();
    let (filters, (router, upstream_filters)) = filters(compiler, "http_filters", &config.http_filters, context)?;
    let routes = routes(compiler, config, context)?;
    let h1 = config.http_protocol_options.clone().unwrap_or_default();
    Ok(HttpConnectionManager {
        stat_prefix: config.stat_prefix.as_str().into(),
        stats,
        router_stats: RouterStats::new(&context.stats),
        tracing_stats,
        codec_stats: CodecStats::new(&compiler.stats.root()),
        codec: match proto::http_connection_manager::CodecType::try_from(config.codec_type) {
            Ok(proto::http_connection_manager::CodecType::Http1) => CodecType::Http1,
            Ok(proto::http_connection_manager::CodecType::Http2) => CodecType::Http2,
            Ok(proto::http_connection_manager::CodecType::Http3) => {
                return Err(context.error_at("codec_type", "not supported yet: HTTP3"));
            }
            _ => CodecType::Auto,
        },
        routes,
        filters,
        router,
        upstream_filters,
        upgrades: upgrades(compiler, config, context)?,
        http1: super::cluster::protocol::http1(Some(&h1), "http_protocol_options", context)?,
        default_host_for_http_10: header_value(
            "http_protocol_options.default_host_for_http_10",
            &h1.default_host_for_http_10,
            context,
        )?,
        http2: http2_options(config.http2_protocol_options.as_ref(), values),
        timeouts: timeouts(config, &common, values),
        max_request_headers_bytes: wrapped_u32(config.max_request_headers_kb.as_ref(), 60) as usize * 1024,
        max_headers_count: wrapped_u32(common.max_headers_count.as_ref(), 100) as usize,
        max_requests_per_connection: common
            .max_requests_per_connection
            .as_ref()
            .map(|value| value.value)
            .filter(|most| *most > 0),
        underscores: underscores(common.headers_with_underscores_action),
        drop_colliding_names: values.drop_colliding_names,
        server_name: header_value("server_name", &config.server_name, context)?
            .unwrap_or(HeaderValue::from_static("envoy")),
        server_header: server_header(config.server_header_transformation),
        scheme_override: scheme_override(config),
        add_user_agent: wrapped_bool(config.add_user_agent.as_ref(), false),
        service_cluster: HeaderValue::from_str(&compiler.node.cluster).unwrap_or(HeaderValue::from_static("")),
        service_node: HeaderValue::from_str(&compiler.node.id).unwrap_or(HeaderValue::from_static("")),
        access_logs: compiler.access_logs("access_log", &config.access_log, context)?,
        access_log_options: access_log_options(config, context)?,
        client_address: client_address(config, values, context)?,
        early_mutations: early_mutations(compiler, config, context)?,
        via: header_value("via", &config.via, context)?,
        generate_request_id: wrapped_bool(config.generate_request_id.as_ref(), true),
        preserve_external_request_id: config.preserve_external_request_id,
        always_set_request_id_in_response: config.always_set_request_id_in_response,
        client_cert: client_cert(config),
        proxy_100_continue: config.proxy_100_continue,
        path: path_rules(config, values),
        local_replies: local_replies(compiler, config.local_reply_config.as_ref(), context)?,
        strip_port: strip_port(config),
        strip_trailing_host_dot: config.strip_trailing_host_dot,
        buffer_limit_bytes: compiler.buffer_limit_bytes,
        ignored_upgrades: ignored_upgrades(&h1, context)?,
        forwarded_proto: forwarded_proto(config),
        scheme_matches_upstream: config
            .scheme_header_transformation
            .as_ref()
            .is_some_and(|scheme| scheme.match_upstream)
            && scheme_override(config).is_none(),
        proxy_status: proxy_status(compiler, config),
    })
}

fn header_value(field: &str, text: &str, context: &CompileContext<'_>) -> Result<Option<HeaderValue>, FieldError> {
    if text.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_str(text).map(Some).map_err(|_| context.error_at(field, "not a header value"))
}

fn routes(
    compiler: &Compiler,
    config: &proto::HttpConnectionManager,
    context: &mut CompileContext<'_>,
) -> Result<RouteSource, FieldError> {
    use proto::http_connection_manager::RouteSpecifier;
    match &config.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => context.within("route_config", |context| {
            if routes.vhds.is_none() {
                let table = compiler.route_table(routes, super::RouteOrigin::Inline, context)?;
                return Ok(RouteSource::Inline(Arc::new(table)));
            }
            // It is looked up by its name, as one that is discovered; here it is checked, and its clusters are named.
            let alone = route_proto::RouteConfiguration { vhds: None, ..routes.clone() };
            compiler.route_table(&alone, super::RouteOrigin::Inline, context)?;
            let (name, place) = (routes.name.clone(), context.path.clone());
            if name.is_empty() {
                return Err(context.error_at("name", "a route configuration that discovers virtual hosts needs a name"));
            }
            if context.needs.routes_in_line.insert(name, (routes.clone(), place)).is_some() {
                return Err(context.error_at("name", crate::config::store::SECOND_OF_NAME));
            }
            Ok(RouteSource::Rds(routes.name.as_str().into()))
        }),
        Some(RouteSpecifier::Rds(rds)) => {
            let name = if rds.route_config_name.is_empty() {
                return Err(context.error_at("rds.route_config_name", "a name is required"));
            } else {
                rds.route_config_name.as_str()
            };
            let Some(source) = &rds.config_source else {
                return Err(context.error_at("rds.config_source", "a config source is required"));
            };
            context.within("rds", |context| {
                context.within("config_source", |context| compiler.subscribe_routes(name, source, context))
            })?;
            Ok(RouteSource::Rds(name.into()))
        }
        Some(RouteSpecifier::ScopedRoutes(scoped)) => {
            let compile = |context: &mut CompileContext<'_>| scoped_routes::compile(compiler, scoped, context);
            Ok(RouteSource::Scoped(Arc::new(context.within("scoped_routes", compile)?)))
        }
        None => Err(context.error("a route_config, rds or scoped_routes is required")),
    }
}

/// What ends a chain: the router, and the filters below it.
pub(super) type Terminal = (RouterOptions, FilterChain);

/// Compiles a filter chain; its last filter is the router.
fn filters(
    compiler: &Compiler,
    field: &str,
    filters: &[proto::HttpFilter],
    context: &mut CompileContext<'_>,
) -> Result<(Arc<[FilterSlot]>, Terminal), FieldError> {
    let mut slots = Vec::with_capacity(filters.len());
    let mut router = None;
    for (index, filter) in filters.iter().enumerate() {
        let last = index + 1 == filters.len();
        context.within_item(field, index, |context| {
            let config = match &filter.config_type {
                Some(proto::http_filter::ConfigType::TypedConfig(config)) if !config.type_url.is_empty() => config,
                Some(proto::http_filter::ConfigType::ConfigDiscovery(discovery)) => {
                    let name = filter.name.as_str();
                    let config = context.within("config_discovery", |context| {
                        compiler.discovered_filter::<Arc<dyn tidegate_filters::http::HttpFilterConfig>>(
                            name, discovery, context,
                        )
                    })?;
                    let name = name.into();
                    slots.push(FilterSlot { name, config, disabled: filter.disabled, legacy_name: None });
                    return Ok(());
                }
                _ => {
                    return Err(context.error(format!(
                        "Didn't find a registered implementation for '{}' with type URL: ''",
                        filter.name
                    )));
                }
            };
            if any::type_name(&config.type_url) == Some(ROUTER) {
                if !last {
                    return Err(context.error(format!(
                        "terminal filter named {} of type {ROUTER} must be the last filter in a http filter chain.",
                        filter.name
                    )));
                }
                router = Some(context.within("typed_config", |context| router::options(compiler, config, context))?);
                return Ok(());
            }
            if last {
                return Err(context.error(format!(
                    "non-terminal filter named {} of type {} is the last filter in a http filter chain.",
                    filter.name,
                    any::type_name(&config.type_url).unwrap_or_default()
                )));
            }
            let Some(compiled) = compiler.http_filter(config, filter.is_optional, context)? else { return Ok(()) };
            let cors = any::type_name(&config.type_url) == Some("envoy.extensions.filters.http.cors.v3.Cors");
            let legacy_name = cors.then_some(CORS_NAME);
            let name = filter.name.as_str().into();
            slots.push(FilterSlot { name, config: compiled, disabled: filter.disabled, legacy_name });
            Ok(())
        })?;
    }
    let router =
        router.ok_or_else(|| context.error_at(field, "a router filter is required, and it must be the last"))?;
    Ok((slots.into(), router))
}

/// `access_log_options`, or the two fields that it took over from.
#[expect(deprecated, reason = "Envoy takes the deprecated fields too")]
fn access_log_options(
    config: &proto::HttpConnectionManager,
    context: &CompileContext<'_>,
) -> Result<AccessLogOptions, FieldError> {
    let Some(options) = &config.access_log_options else {
        return Ok(AccessLogOptions {
            on_new_request: config.flush_access_log_on_new_request,
            on_tunnel_established: false,
            interval: config.access_log_flush_interval.as_ref().map(duration),
        });
    };
    let twice =
        |field: &str| context.error_at(field, format!("Only one of {field} or access_log_options can be specified."));
    if config.flush_access_log_on_new_request {
        return Err(twice("flush_access_log_on_new_request"));
    }
    if config.access_log_flush_interval.is_some() {
        return Err(twice("access_log_flush_interval"));
    }
    Ok(AccessLogOptions {
        on_new_request: options.flush_access_log_on_new_request,
        on_tunnel_established: options.flush_log_on_tunnel_successfully_established,
        interval: options.access_log_flush_interval.as_ref().map(duration),
    })
}

fn upgrades(
    compiler: &Compiler,
    config: &proto::HttpConnectionManager,
    context: &mut CompileContext<'_>,
) -> Result<Vec<Upgrade>, FieldError> {
    let mut compiled: Vec<Upgrade> = Vec::new();
    for (index, upgrade) in config.upgrade_configs.iter().enumerate() {
        let one = context.within_item("upgrade_configs", index, |context| {
            let kind = upgrade.upgrade_type.to_ascii_lowercase();
            if compiled.iter().any(|other| *other.kind == *kind) {
                return Err(context.error_at("upgrade_type", format!("duplicate upgrade type '{kind}'")));
            }
            let chain = if upgrade.filters.is_empty() {
                None
            } else {
                Some(filters(compiler, "filters", &upgrade.filters, context)?.0)
            };
            Ok(Upgrade { kind: kind.into(), enabled: wrapped_bool(upgrade.enabled.as_ref(), true), filters: chain })
        })?;
        compiled.push(one);
    }
    Ok(compiled)
}

fn http2_options(options: Option<&core::Http2ProtocolOptions>, values: Values) -> Http2Options {
    let options = options.cloned().unwrap_or_default();
    Http2Options {
        max_concurrent_streams: wrapped_u32(options.max_concurrent_streams.as_ref(), values.max_concurrent_streams),
        initial_stream_window_bytes: wrapped_u32(
            options.initial_stream_window_size.as_ref(),
            values.stream_window_bytes,
        ),
        initial_connection_window_bytes: wrapped_u32(
            options.initial_connection_window_size.as_ref(),
            values.connection_window_bytes,
        ),
        header_table_bytes: wrapped_u32(options.hpack_table_size.as_ref(), 4096),
        allow_connect: options.allow_connect,
        keepalive: options.connection_keepalive.as_ref().map(|keepalive| Keepalive {
            interval: keepalive.interval.as_ref().map(duration),
            jitter_percent: jitter_percent(keepalive),
            timeout: keepalive.timeout.as_ref().map_or(Duration::ZERO, duration),
            idle_interval: keepalive.connection_idle_interval.as_ref().map(duration),
        }),
        floods: floods(&options),
    }
}

fn timeouts(config: &proto::HttpConnectionManager, common: &core::HttpProtocolOptions, values: Values) -> HttpTimeouts {
    HttpTimeouts {
        request_headers: timeout(config.request_headers_timeout.as_ref(), values.request_headers_timeout),
        request: timeout(config.request_timeout.as_ref(), None),
        stream_idle: timeout(config.stream_idle_timeout.as_ref(), Some(values.stream_idle_timeout)),
        stream_flush: config.stream_flush_timeout.as_ref().map(|limit| timeout(Some(limit), None)),
        max_stream_duration: timeout(common.max_stream_duration.as_ref(), None),
        connection_idle: timeout(common.idle_timeout.as_ref(), Some(values.connection_idle_timeout)),
        max_connection_duration: timeout(common.max_connection_duration.as_ref(), None),
        max_connection_duration_jitter_percent: percent(common.max_connection_duration_jitter.as_ref()),
        closes_http1_safely: config.http1_safe_max_connection_duration,
        drain: config.drain_timeout.as_ref().map_or(Duration::from_secs(5), duration),
        drain_jitter_percent: percent(config.drain_timeout_jitter.as_ref()),
        delayed_close: timeout(config.delayed_close_timeout.as_ref(), Some(Duration::from_secs(1))),
    }
}

fn percent(value: Option<&Percent>) -> f64 {
    value.map_or(0.0, |percent| percent.value)
}

/// `headers_with_underscores_action`.
pub(crate) fn underscores(action: i32) -> Underscores {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
    match Action::try_from(action) {
        Ok(Action::RejectRequest) => Underscores::Reject,
        Ok(Action::DropHeader) => Underscores::Drop,
        _ => Underscores::Allow,
    }
}

fn server_header(transformation: i32) -> ServerHeader {
    use proto::http_connection_manager::ServerHeaderTransformation as Transformation;
    match Transformation::try_from(transformation) {
        Ok(Transformation::AppendIfAbsent) => ServerHeader::AppendIfAbsent,
        Ok(Transformation::PassThrough) => ServerHeader::PassThrough,
        _ => ServerHeader::Overwrite,
    }
}

fn scheme_override(config: &proto::HttpConnectionManager) -> Option<&'static str> {
    use core::scheme_header_transformation::Transformation;
    match config.scheme_header_transformation.as_ref()?.transformation.as_ref()? {
        Transformation::SchemeToOverwrite(scheme) if scheme == "https" => Some("https"),
        Transformation::SchemeToOverwrite(_) => Some("http"),
    }
}

fn ignored_upgrades(
    options: &core::Http1ProtocolOptions,
    context: &mut CompileContext<'_>,
) -> Result<Arc<[StringMatcher]>, FieldError> {
    context.within("http_protocol_options", |context| {
        let compile = |(index, matcher)| {
            context.within_item("ignore_http_11_upgrade", index, |context| StringMatcher::compile(matcher, context))
        };
        options.ignore_http_11_upgrade.iter().enumerate().map(compile).collect()
    })
}

fn forwarded_proto(config: &proto::HttpConnectionManager) -> ForwardedProto {
    let ports = config.forward_proto_config.clone().unwrap_or_default();
    ForwardedProto { https_ports: ports.https_destination_ports, http_ports: ports.http_destination_ports }
}

fn proxy_status(compiler: &Compiler, config: &proto::HttpConnectionManager) -> Option<ProxyStatus> {
    use proto::http_connection_manager::proxy_status_config::ProxyName;
    let rules = config.proxy_status_config.as_ref()?;
    let name = match &rules.proxy_name {
        Some(ProxyName::LiteralProxyName(name)) => name.as_str(),
        Some(ProxyName::UseNodeId(_)) => compiler.node.id.as_str(),
        None if config.server_name.is_empty() => "envoy",
        None => config.server_name.as_str(),
    };
    Some(ProxyStatus {
        name: name.into(),
        details: !rules.remove_details,
        connection_termination_details: !rules.remove_connection_termination_details,
        response_flags: !rules.remove_response_flags,
        recommended_status: rules.set_recommended_response_code,
    })
}

fn cidr_list(
    field: &str,
    ranges: &[core::CidrRange],
    context: &mut CompileContext<'_>,
) -> Result<CidrList, FieldError> {
    let compile = |(index, range): (usize, &core::CidrRange)| {
        context.within_item(field, index, |context| Cidr::compile(range, context))
    };
    ranges.iter().enumerate().map(compile).collect()
}

fn client_address(
    config: &proto::HttpConnectionManager,
    values: Values,
    context: &mut CompileContext<'_>,
) -> Result<ClientAddress, FieldError> {
    let use_remote_address = wrapped_bool(config.use_remote_address.as_ref(), false);
    let mut detection = Vec::new();
    for (index, extension) in config.original_ip_detection_extensions.iter().enumerate() {
        detection.push(context.within_item("original_ip_detection_extensions", index, |context| {
            let Some(config) = &extension.typed_config else {
                return Err(context.error("a typed_config is required"));
            };
            context.within("typed_config", |context| original_ip(config, context))
        })?);
    }
    if use_remote_address && !detection.is_empty() {
        let reason = "Original IP detection extensions and use_remote_address may not be mixed";
        return Err(context.error_at("original_ip_detection_extensions", reason));
    }
    let internal = match &config.internal_address_config {
        Some(internal) => context
            .within("internal_address_config", |context| cidr_list("cidr_ranges", &internal.cidr_ranges, context))?,
        None => CidrList::default(),
    };
    Ok(ClientAddress {
        use_remote_address,
        xff_num_trusted_hops: config.xff_num_trusted_hops,
        skip_xff_append: config.skip_xff_append,
        append_x_forwarded_port: config.append_x_forwarded_port,
        // Hops that somebody counted are a statement about whom to believe; so is a set `use_remote_address`.
        trust_xff: values.trust_xff || config.xff_num_trusted_hops > 0 || config.use_remote_address.is_some(),
        internal,
        internal_unix_sockets: config.internal_address_config.as_ref().is_some_and(|internal| internal.unix_sockets),
        detection,
    })
}

fn original_ip(config: &Any, context: &mut CompileContext<'_>) -> Result<OriginalIp, FieldError> {
    match any::type_name(&config.type_url) {
        Some("envoy.extensions.http.original_ip_detection.xff.v3.XffConfig") => {
            let xff: detection::xff::v3::XffConfig = any::unpack(config, &context.path)?;
            let trusted = match &xff.xff_trusted_cidrs {
                Some(trusted) => {
                    Some(context.within("xff_trusted_cidrs", |context| cidr_list("cidrs", &trusted.cidrs, context))?)
                }
                None => None,
            };
            let skip_append = wrapped_bool(xff.skip_xff_append.as_ref(), true);
            Ok(OriginalIp::Xff { hops: xff.xff_num_trusted_hops, trusted, skip_append })
        }
        Some("envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig") => {
            let custom: detection::custom_header::v3::CustomHeaderConfig = any::unpack(config, &context.path)?;
            let header = HeaderName::from_bytes(custom.header_name.as_bytes())
                .map_err(|_| context.error_at("header_name", "not a header name"))?;
            let reject_with = custom.reject_with_status.as_ref().map(|status| {
                u16::try_from(status.code)
                    .ok()
                    .and_then(|code| StatusCode::from_u16(code).ok())
                    .filter(|status| status.as_u16() >= 400)
                    .unwrap_or(StatusCode::FORBIDDEN)
            });
            Ok(OriginalIp::CustomHeader {
                header,
                reject_with,
                trusted: custom.allow_extension_to_set_address_as_trusted,
            })
        }
        _ => Err(context.error(format!("not supported yet: {}", config.type_url))),
    }
}

fn early_mutations(
    compiler: &Compiler,
    config: &proto::HttpConnectionManager,
    context: &mut CompileContext<'_>,
) -> Result<Vec<HeaderEdits>, FieldError> {
    let mut compiled = Vec::new();
    for (index, extension) in config.early_header_mutation_extensions.iter().enumerate() {
        compiled.push(context.within_item("early_header_mutation_extensions", index, |context| {
            let Some(config) = &extension.typed_config else {
                return Err(context.error("a typed_config is required"));
            };
            context.within("typed_config", |context| compiler.early_header_mutation(config, context))
        })?);
    }
    Ok(compiled)
}

fn local_replies(
    compiler: &Compiler,
    config: Option<&proto::LocalReplyConfig>,
    context: &mut CompileContext<'_>,
) -> Result<LocalReplyRules, FieldError> {
    let Some(config) = config else { return Ok(LocalReplyRules::default()) };
    context.within("local_reply_config", |context| {
        let mut mappers = Vec::new();
        for (index, mapper) in config.mappers.iter().enumerate() {
            mappers.push(context.within_item("mappers", index, |context| compile_mapper(compiler, mapper, context))?);
        }
        let format = compiler.body_format("body_format", config.body_format.as_ref(), context)?;
        Ok(LocalReplyRules { mappers, format })
    })
}

fn compile_mapper(
    compiler: &Compiler,
    mapper: &proto::ResponseMapper,
    context: &mut CompileContext<'_>,
) -> Result<Mapper, FieldError> {
    let Some(filter) = &mapper.filter else { return Err(context.error_at("filter", "a filter is required")) };
    let body: Option<Bytes> = match &mapper.body {
        Some(source) => Some(context.within("body", |context| super::data_source(source, context))?),
        None => None,
    };
    let status = mapper.status_code.as_ref().and_then(|code| u16::try_from(code.value).ok());
    Ok(Mapper {
        filter: context.within("filter", |context| compiler.access_log_filter(filter, context))?,
        status: status.and_then(|code| StatusCode::from_u16(code).ok()),
        body,
        headers: compiler.headers_to_add("headers_to_add", &mapper.headers_to_add, context)?,
        format: compiler.body_format("body_format_override", mapper.body_format_override.as_ref(), context)?,
    })
}

/// For `check`: safe defaults that change what this connection manager does.
pub(crate) fn changed_defaults(config: &proto::HttpConnectionManager, defaults: Defaults) -> Vec<&'static str> {
    if defaults == Defaults::Envoy {
        return Vec::new();
    }
    let mut changed = Vec::new();
    if config.normalize_path.is_none() {
        changed.push("normalize_path: paths are normalised");
    }
    if config.path_with_escaped_slashes_action == 0 {
        changed.push("path_with_escaped_slashes_action: a dot segment behind %2f, %5c or %2e is a 400");
    }
    let detects = !config.original_ip_detection_extensions.is_empty();
    if config.use_remote_address.is_none() && config.xff_num_trusted_hops == 0 && !detects {
        changed.push("use_remote_address: x-forwarded-for is not believed");
    }
    if config.request_headers_timeout.is_none() {
        changed.push("request_headers_timeout: 10 s");
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_jitter_is_of_its_own_time() {
        let percent = |value| Some(Percent { value });
        let config = proto::HttpConnectionManager { drain_timeout_jitter: percent(25.0), ..Default::default() };
        let common = core::HttpProtocolOptions { max_connection_duration_jitter: percent(50.0), ..Default::default() };
        let compiled = timeouts(&config, &common, Values::of(Defaults::Envoy));
        assert_eq!((compiled.drain_jitter_percent, compiled.max_connection_duration_jitter_percent), (25.0, 50.0));
    }
}
