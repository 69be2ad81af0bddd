//! What a route does, and everything a forwarding one says. It must not know what it is matched by, but for its path.

use std::sync::Arc;

use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::{RoutingPriority as PriorityProto, proxy_protocol_config};
use tidegate_xds::pb::envoy::config::route::v3::route::Action as ActionProto;
use tidegate_xds::pb::envoy::config::route::v3::route_action::{ClusterNotFoundResponseCode, UpgradeConfig};
use tidegate_xds::pb::envoy::config::route::v3::{Route, RouteAction};

use super::overrides::Level;
use super::virtual_host::Host;
use super::{cluster, hash, local, mirror, redirect_policy, retry, rewrite, values};
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::config::values::wrapped_bool;
use crate::proxy_header::ProxyVersion;
use crate::route::{
    Action, ClusterSelector, ConnectConfig, ForwardAction, GrpcTimeout, Limit, PathMatch, RetryPolicy, StreamDuration,
    Timeouts, Upgrade,
};

/// Compiles a route's action.
pub(super) fn compile(
    proto: &Route,
    matched: &PathMatch,
    host: &Host<'_>,
    levels: &[&Level; 3],
    validate_clusters: bool,
    context: &mut CompileContext<'_>,
) -> Result<Action, FieldError> {
    match &proto.action {
        Some(ActionProto::Route(action)) => context.within("route", |context| {
            let forward = forward(action, matched, host, levels, validate_clusters, context)?;
            Ok(Action::Forward(Box::new(forward)))
        }),
        Some(ActionProto::Redirect(redirect)) => context
            .within("redirect", |context| local::redirect(redirect, context))
            .map(|redirect| Action::Redirect(Box::new(redirect))),
        Some(ActionProto::DirectResponse(response)) => {
            let limit = host.table.common.direct_response_bytes;
            let compiled = context.within("direct_response", |context| local::direct(response, limit, context))?;
            Ok(Action::DirectResponse(Box::new(compiled)))
        }
        // Envoy forwards such a request to the cluster with the empty name, which there is not: 503.
        Some(ActionProto::NonForwardingAction(_) | ActionProto::FilterAction(_)) => {
            Ok(Action::Forward(Box::new(ForwardAction::to(ClusterSelector::Named(Arc::from(""))))))
        }
        None => Err(context.error("an action is required")),
    }
}

fn forward(
    proto: &RouteAction,
    matched: &PathMatch,
    host: &Host<'_>,
    levels: &[&Level; 3],
    validate_clusters: bool,
    context: &mut CompileContext<'_>,
) -> Result<ForwardAction, FieldError> {
    let metadata_match = cluster::metadata_match(proto.metadata_match.as_ref(), None);
    let mirrors = mirror::policies(&proto.request_mirror_policies, validate_clusters, context)?;
    let retry = match &proto.retry_policy {
        Some(policy) => Some(context.within("retry_policy", |context| retry::policy(policy, context))?.into()),
        None => host.retry.clone(),
    };
    let retry = retry.unwrap_or_else(RetryPolicy::never);
    let hedge = proto.hedge_policy.as_ref().map(retry::hedge).or(host.hedge).unwrap_or_default();
    let cluster = cluster::selector(proto, metadata_match.as_ref(), host, levels, validate_clusters, context)?;
    Ok(ForwardAction {
        cluster,
        cluster_not_found: match ClusterNotFoundResponseCode::try_from(proto.cluster_not_found_response_code) {
            Ok(ClusterNotFoundResponseCode::NotFound) => http::StatusCode::NOT_FOUND,
            Ok(ClusterNotFoundResponseCode::InternalServerError) => http::StatusCode::INTERNAL_SERVER_ERROR,
            Ok(ClusterNotFoundResponseCode::ServiceUnavailable) | Err(_) => http::StatusCode::SERVICE_UNAVAILABLE,
        },
        metadata_match,
        path_rewrite: rewrite::path(proto, matched, context)?.map(Box::new),
        host_rewrite: rewrite::host(proto, context)?,
        append_x_forwarded_host: proto.append_x_forwarded_host,
        timeouts: timeouts(proto, context)?,
        retry,
        hedge,
        mirrors: if mirrors.is_empty() { Arc::clone(&host.mirrors) } else { mirrors.into() },
        hash: hash::policies(&proto.hash_policy, context)?.into(),
        priority: match PriorityProto::try_from(proto.priority) {
            Ok(PriorityProto::High) => RoutingPriority::High,
            Ok(PriorityProto::Default) | Err(_) => RoutingPriority::Default,
        },
        upgrades: upgrades(&proto.upgrade_configs, context)?.into(),
        connect: connect(&proto.upgrade_configs, context)?,
        internal_redirect: redirect_policy::compile(proto, context)?.map(Box::new),
    })
}

fn limit(duration: std::time::Duration) -> Limit {
    if duration.is_zero() { None } else { Some(duration) }
}

#[expect(deprecated, reason = "Envoy takes max_grpc_timeout and grpc_timeout_offset too")]
fn timeouts(proto: &RouteAction, context: &mut CompileContext<'_>) -> Result<Timeouts, FieldError> {
    let set = |value, field| values::duration(value, field, context);
    let max_grpc = set(proto.max_grpc_timeout.as_ref(), "max_grpc_timeout")?;
    let grpc_offset = set(proto.grpc_timeout_offset.as_ref(), "grpc_timeout_offset")?;
    let stream = match &proto.max_stream_duration {
        None => None,
        Some(stream) => Some(Box::new(StreamDuration {
            max: set(stream.max_stream_duration.as_ref(), "max_stream_duration.max_stream_duration")?.map(limit),
            grpc_header_max: set(
                stream.grpc_timeout_header_max.as_ref(),
                "max_stream_duration.grpc_timeout_header_max",
            )?
            .map(limit),
            grpc_header_offset: set(
                stream.grpc_timeout_header_offset.as_ref(),
                "max_stream_duration.grpc_timeout_header_offset",
            )?,
        })),
    };
    Ok(Timeouts {
        request: limit(set(proto.timeout.as_ref(), "timeout")?.unwrap_or(Timeouts::DEFAULT_REQUEST)),
        idle: set(proto.idle_timeout.as_ref(), "idle_timeout")?.map(limit),
        flush: set(proto.flush_timeout.as_ref(), "flush_timeout")?.map(limit),
        stream,
        grpc: max_grpc.map(|max| Box::new(GrpcTimeout { max: limit(max), offset: grpc_offset })),
    })
}

fn upgrades(configs: &[UpgradeConfig], context: &mut CompileContext<'_>) -> Result<Vec<Upgrade>, FieldError> {
    let mut upgrades: Vec<Upgrade> = Vec::with_capacity(configs.len());
    for (index, config) in configs.iter().enumerate() {
        let upgrade = context.within_item("upgrade_configs", index, |context| {
            let kind: Box<[u8]> = config.upgrade_type.to_ascii_lowercase().into_bytes().into();
            if upgrades.iter().any(|other| other.kind == kind) {
                return Err(context.error_at("upgrade_type", format!("duplicate upgrade {}", config.upgrade_type)));
            }
            let tunnel = matches!(&*kind, b"connect" | b"connect-udp");
            if config.connect_config.is_some() && !tunnel {
                return Err(context.error_at("connect_config", "only CONNECT and CONNECT-UDP take it"));
            }
            Ok(Upgrade { kind, enabled: wrapped_bool(config.enabled.as_ref(), true) })
        })?;
        upgrades.push(upgrade);
    }
    Ok(upgrades)
}

/// As in Envoy a route has one, whichever kind of tunnel it stands with, and the last goes.
///
/// # Errors
/// More than a version is wanted of a PROXY header: Envoy takes it and does nothing of it.
fn connect(configs: &[UpgradeConfig], context: &CompileContext<'_>) -> Result<Option<ConnectConfig>, FieldError> {
    for (index, config) in configs.iter().enumerate() {
        let header = config.connect_config.as_ref().and_then(|connect| connect.proxy_protocol_config.as_ref());
        if header.is_some_and(|header| header.pass_through_tlvs.is_some() || !header.added_tlvs.is_empty()) {
            let field = format!("upgrade_configs[{index}].connect_config.proxy_protocol_config");
            return Err(context.error_at(&field, "not supported yet: TLVs here, of which Envoy makes nothing"));
        }
    }
    let Some(last) = configs.iter().rev().find_map(|config| config.connect_config.as_ref()) else { return Ok(None) };
    Ok(Some(ConnectConfig {
        allow_post: last.allow_post,
        proxy_protocol: last.proxy_protocol_config.as_ref().map(|config| match config.version() {
            proxy_protocol_config::Version::V1 => ProxyVersion::V1,
            proxy_protocol_config::Version::V2 => ProxyVersion::V2,
        }),
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::route::testing::{chosen, get, route_error, routes, table};
    use crate::route::{BufferLimit, RetryOn, Route, Timeouts};

    fn forward(action: &str) -> std::sync::Arc<Route> {
        chosen(&routes(&format!("[{{match: {{prefix: /}}, route: {{cluster: c, {action}}}}}]")), &get("/", &[]))
    }

    #[test]
    fn a_timeout_of_zero_is_none() {
        let timeouts = |action| forward(action).forward().unwrap().timeouts.clone();
        let second = Some(Duration::from_secs(1));
        assert_eq!(timeouts(""), Timeouts::default());
        assert_eq!(timeouts("timeout: 0s, idle_timeout: 0s, flush_timeout: 1s").idle, Some(None));
        assert_eq!((timeouts("timeout: 0s").request, timeouts("timeout: 1s").request), (None, second));
        let stream = timeouts("max_stream_duration: {grpc_timeout_header_max: 0s}").stream.unwrap();
        assert_eq!((stream.max, stream.grpc_header_max, stream.grpc_header_offset), (None, Some(None), None));
    }

    #[test]
    fn policies_of_the_virtual_host_stand_in_for_the_routes() {
        let table = table(
            "request_mirror_policies: [{cluster: config}]\nvirtual_hosts: [{name: v, domains: ['*'], \
             retry_policy: {retry_on: 5xx}, hedge_policy: {hedge_on_per_try_timeout: true}, request_body_buffer_limit: 7, routes: [\
             {match: {prefix: /own}, request_body_buffer_limit: 8, route: {cluster: c, retry_policy: {retry_on: reset}, \
               hedge_policy: {}, request_mirror_policies: [{cluster: m}, {cluster: m2}]}}, \
             {match: {prefix: /}, per_request_buffer_limit_bytes: 9, route: {cluster: c}}]}]",
        );
        let facts = |path| {
            let route = chosen(&table, &get(path, &[]));
            let action = route.forward().unwrap();
            (action.retry.on, action.hedge.on_per_try_timeout, action.mirrors.len(), route.entry.buffer_limit)
        };
        assert_eq!(facts("/own"), (RetryOn::RESET, false, 2, BufferLimit { body: Some(8), per_request: None }));
        assert_eq!(facts("/"), (RetryOn::ERROR_5XX, true, 1, BufferLimit { body: Some(7), per_request: Some(9) }));
    }

    #[test]
    fn upgrades_are_named_once() {
        let route = forward(
            "upgrade_configs: [{upgrade_type: WebSocket, enabled: false}, {upgrade_type: CONNECT, connect_config: {}}]",
        );
        assert_eq!((route.upgrade_enabled(b"websocket"), route.upgrade_enabled(b"connect")), (Some(false), Some(true)));
        assert_eq!(route.upgrade_enabled(b"other"), None);
        assert!(route.forward().unwrap().connect.is_some());
        let route = forward(
            "upgrade_configs: [{upgrade_type: CONNECT-UDP, connect_config: {}}, \
             {upgrade_type: CONNECT, connect_config: {allow_post: true}}]",
        );
        assert!(route.forward().unwrap().connect.unwrap().allow_post, "the last goes");
        assert_eq!(forward("upgrade_configs: [{upgrade_type: CONNECT}]").forward().unwrap().connect, None);
        let refused = |configs: &str| {
            route_error(&format!("[{{match: {{prefix: /}}, route: {{cluster: c, upgrade_configs: [{configs}]}}}}]"))
        };
        assert_eq!(
            refused("{upgrade_type: a}, {upgrade_type: A}"),
            "routes[0].route.upgrade_configs[1].upgrade_type: duplicate upgrade A"
        );
        assert_eq!(
            refused("{upgrade_type: a, connect_config: {}}"),
            "routes[0].route.upgrade_configs[0].connect_config: only CONNECT and CONNECT-UDP take it"
        );
    }

    #[test]
    fn a_non_forwarding_route_has_no_cluster() {
        let table = routes("[{match: {prefix: /}, non_forwarding_action: {}}]");
        assert_eq!(chosen(&table, &get("/", &[])).cluster.as_deref(), Some(""));
    }
}
