//! Virtual hosts and their routes. It must not know what a route does.

use std::sync::Arc;

use tidegate_filters::context::CompileContext;
use tidegate_filters::http::rate_limit::RateLimit;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use tidegate_xds::pb::envoy::config::route::v3::{
    Route as RouteProto, VirtualCluster as ClusterProto, VirtualHost as HostProto, route,
};

use super::{Table, action, headers, legacy_cors, matching, mirror, overrides, retry, tree, values};
use crate::config::values::wrapped_bool;
use crate::route::{
    AttemptHeaders, BufferLimit, HedgePolicy, MirrorPolicy, RetryPolicy, RouteEntry, RouteList, RouteTable, Routes,
    TableBuilder, Tally, TlsRequirement, VirtualCluster, VirtualHost,
};

/// What every route of one virtual host is compiled with.
pub(super) struct Host<'a> {
    pub(super) table: &'a Table<'a>,
    pub(super) host: Arc<VirtualHost>,
    pub(super) overrides: overrides::Level,
    pub(super) retry: Option<Arc<RetryPolicy>>,
    pub(super) hedge: Option<HedgePolicy>,
    pub(super) mirrors: Arc<[MirrorPolicy]>,
    buffer_limit: BufferLimit,
}

/// Compiles all virtual hosts into a table.
pub(super) fn compile_all(
    hosts: &[HostProto],
    table: &Table<'_>,
    context: &mut CompileContext<'_>,
) -> Result<RouteTable, FieldError> {
    let mut builder = TableBuilder::new(Arc::clone(&table.common.config));
    for (index, proto) in hosts.iter().enumerate() {
        context.within_item("virtual_hosts", index, |context| {
            let (host, routes) = compile(proto, table, context)?;
            builder.begin_host(host, routes);
            for (index, domain) in proto.domains.iter().enumerate() {
                let added = builder.add_domain(domain);
                added.map_err(|error| {
                    context.within_item("domains", index, |context| context.error(error.to_string()))
                })?;
            }
            Ok(())
        })?;
    }
    Ok(builder.finish())
}

/// Compiles one virtual host and its routes.
pub(super) fn compile(
    proto: &HostProto,
    table: &Table<'_>,
    context: &mut CompileContext<'_>,
) -> Result<(Arc<VirtualHost>, Routes), FieldError> {
    let host = host(proto, table, context)?;
    let routes = match &proto.matcher {
        None => Routes::List(list(&proto.routes, &host, table.common.validate_clusters, context)?),
        Some(_) if !proto.routes.is_empty() => return Err(context.error("matcher and routes cannot both be set")),
        Some(matcher) => Routes::Tree(context.within("matcher", |context| tree::compile(matcher, &host, context))?),
    };
    Ok((host.host, routes))
}

#[expect(deprecated, reason = "Envoy takes per_request_buffer_limit_bytes too")]
fn host<'a>(proto: &HostProto, table: &'a Table<'a>, context: &mut CompileContext<'_>) -> Result<Host<'a>, FieldError> {
    let mirrors = mirror::policies(&proto.request_mirror_policies, table.common.validate_clusters, context)?;
    let retry = match &proto.retry_policy {
        Some(policy) => Some(context.within("retry_policy", |context| retry::policy(policy, context))?.into()),
        None => None,
    };
    let mut level = overrides::level(&proto.typed_per_filter_config, table.factories, context)?;
    legacy_cors::add(proto.cors.as_ref(), &mut level, table.factories, context)?;
    Ok(Host {
        table,
        host: Arc::new(shared(proto, table, context)?),
        overrides: level,
        retry,
        hedge: proto.hedge_policy.as_ref().map(retry::hedge),
        mirrors: if mirrors.is_empty() { Arc::clone(&table.common.mirrors) } else { mirrors.into() },
        buffer_limit: BufferLimit {
            body: proto.request_body_buffer_limit.as_ref().map(|limit| limit.value),
            per_request: proto.per_request_buffer_limit_bytes.as_ref().map(|limit| limit.value),
        },
    })
}

fn shared(proto: &HostProto, table: &Table<'_>, context: &mut CompileContext<'_>) -> Result<VirtualHost, FieldError> {
    Ok(VirtualHost {
        name: proto.name.as_str().into(),
        config: Arc::clone(&table.common.config),
        require_tls: match TlsRequirementType::try_from(proto.require_tls) {
            Ok(TlsRequirementType::ExternalOnly) => TlsRequirement::External,
            Ok(TlsRequirementType::All) => TlsRequirement::All,
            Ok(TlsRequirementType::None) | Err(_) => TlsRequirement::None,
        },
        request_headers: headers::request(&proto.request_headers_to_add, &proto.request_headers_to_remove, context)?,
        response_headers: headers::response(
            &proto.response_headers_to_add,
            &proto.response_headers_to_remove,
            context,
        )?,
        metadata: proto.metadata.as_ref().map(|metadata| Arc::new(values::metadata(Some(metadata)))),
        attempts: AttemptHeaders {
            count_upstream: proto.include_request_attempt_count,
            count_downstream: proto.include_attempt_count_in_response,
            timeout_retry: proto.include_is_timeout_retry_header,
        },
        virtual_clusters: virtual_clusters(&proto.name, &proto.virtual_clusters, context)?,
        rate_limits: RateLimit::compile_all("rate_limits", &proto.rate_limits, context)?,
    })
}

/// The virtual clusters of a host, and `other` after them.
fn virtual_clusters(
    host: &str,
    clusters: &[ClusterProto],
    context: &mut CompileContext<'_>,
) -> Result<Vec<VirtualCluster>, FieldError> {
    let compile = |(index, cluster): (usize, &ClusterProto)| {
        context.within_item("virtual_clusters", index, |context| {
            if cluster.headers.is_empty() {
                return Err(context.error_at("headers", "a virtual cluster must define headers"));
            }
            let headers = matching::headers("headers", &cluster.headers, context)?;
            let tally = Tally::of_virtual_cluster(&context.stats, host, &cluster.name);
            Ok(VirtualCluster { name: Some(cluster.name.as_str().into()), headers, tally: tally.into() })
        })
    };
    let mut compiled: Vec<_> = clusters.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
    if !compiled.is_empty() {
        let tally = Tally::of_virtual_cluster(&context.stats, host, "other");
        compiled.push(VirtualCluster { name: None, headers: Vec::new(), tally: tally.into() });
    }
    Ok(compiled)
}

/// Compiles the routes of one list.
pub(super) fn list(
    routes: &[RouteProto],
    host: &Host<'_>,
    validate_clusters: bool,
    context: &mut CompileContext<'_>,
) -> Result<RouteList, FieldError> {
    let compile = |(index, proto): (usize, &RouteProto)| {
        context.within_item("routes", index, |context| route(proto, host, validate_clusters, context)).map(Arc::new)
    };
    Ok(RouteList::new(routes.iter().enumerate().map(compile).collect::<Result<_, _>>()?))
}

#[expect(deprecated, reason = "Envoy takes deprecated fields too")]
pub(super) fn route(
    proto: &RouteProto,
    host: &Host<'_>,
    validate_clusters: bool,
    context: &mut CompileContext<'_>,
) -> Result<RouteEntry, FieldError> {
    let Some(matching) = &proto.r#match else { return Err(context.error_at("match", "a match is required")) };
    let matching = context.within("match", |context| matching::compile(matching, context))?;
    let mut level = overrides::level(&proto.typed_per_filter_config, host.table.factories, context)?;
    if let Some(route::Action::Route(action)) = &proto.action {
        let factories = host.table.factories;
        context.within("route", |context| legacy_cors::add(action.cors.as_ref(), &mut level, factories, context))?;
    }
    let levels = [&host.table.common.overrides, &host.overrides, &level];
    Ok(RouteEntry {
        name: proto.name.as_str().into(),
        virtual_host: Arc::clone(&host.host),
        action: action::compile(proto, &matching.path, host, &levels, validate_clusters, context)?,
        matching,
        metadata: values::metadata(proto.metadata.as_ref()),
        request_headers: headers::request(&proto.request_headers_to_add, &proto.request_headers_to_remove, context)?,
        response_headers: headers::response(
            &proto.response_headers_to_add,
            &proto.response_headers_to_remove,
            context,
        )?,
        buffer_limit: BufferLimit {
            body: proto.request_body_buffer_limit.as_ref().map(|limit| limit.value).or(host.buffer_limit.body),
            per_request: proto
                .per_request_buffer_limit_bytes
                .as_ref()
                .map(|limit| limit.value)
                .or(host.buffer_limit.per_request),
        },
        rate_limits: match &proto.action {
            Some(route::Action::Route(action)) => context
                .within("route", |context| RateLimit::compile_all("rate_limits", &action.rate_limits, context))?
                .into(),
            _ => Box::default(),
        },
        include_virtual_host_rate_limits: match &proto.action {
            Some(route::Action::Route(action)) => wrapped_bool(action.include_vh_rate_limits.as_ref(), false),
            _ => false,
        },
        tally: (!proto.stat_prefix.is_empty())
            .then(|| Arc::new(Tally::of_route(&context.stats, &host.host.name, &proto.stat_prefix))),
        overrides: overrides::merge(&levels),
    })
}
