//! A compiled route (`RouteEntry`), and the same with its cluster chosen for a request (`Route`).
//! It must not know how it was found.

use std::sync::Arc;

use http::HeaderValue;
use serde_json::{Map, Value};
use tidegate_filters::format::FormatContext;
use tidegate_filters::http::filter::RouteView;
use tidegate_filters::http::rate_limit::RateLimit;
use tidegate_filters::http::{HeaderMutations, LocalReply, Override, RequestHead, ResponseHead};
use tidegate_filters::metadata::Metadata;
use tidegate_filters::stream_info::StreamInfo;

use super::forward::{ForwardAction, MetadataMatch, WeightedCluster};
use super::redirect::{DirectResponse, Redirect};
use super::rewrite::{self, HostRewrite};
use super::tally::Tally;
use super::{RouteMatch, VirtualHost};

/// One route of a virtual host, everything in it compiled.
pub struct RouteEntry {
    /// May be empty.
    pub name: Arc<str>,
    pub virtual_host: Arc<VirtualHost>,
    pub matching: RouteMatch,
    pub action: Action,
    pub metadata: Metadata,
    pub request_headers: HeaderMutations,
    pub response_headers: HeaderMutations,
    pub buffer_limit: BufferLimit,
    /// `stat_prefix`: counts under `vhost.<virtual host>.route.<stat_prefix>`.
    pub tally: Option<Arc<Tally>>,
    pub rate_limits: Box<[RateLimit]>,
    pub include_virtual_host_rate_limits: bool,
    /// Of this route, its virtual host and its route configuration, merged.
    pub overrides: Arc<Overrides>,
}

/// What a route does.
pub enum Action {
    Forward(Box<ForwardAction>),
    Redirect(Box<Redirect>),
    DirectResponse(Box<DirectResponse>),
}

/// How much of a request is kept for retries and mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BufferLimit {
    /// `request_body_buffer_limit`, bytes: takes the place of the connection's limit.
    pub body: Option<u64>,
    /// The deprecated `per_request_buffer_limit_bytes`: at most this, where `body` is not set.
    pub per_request: Option<u32>,
}

impl BufferLimit {
    /// Bytes, for a connection that buffers `connection`.
    pub fn of_connection(self, connection: u64) -> u64 {
        self.body.unwrap_or_else(|| self.per_request.map_or(connection, |limit| connection.min(u64::from(limit))))
    }
}

/// `typed_per_filter_config` by the name of the filter.
#[derive(Default)]
pub struct Overrides(pub(crate) Box<[(Arc<str>, Override)]>);

impl Overrides {
    pub fn get(&self, name: &str) -> Option<&Override> {
        self.0.iter().find(|(other, _)| **other == *name).map(|(_, config)| config)
    }
}

/// The route of one request: an entry, and the cluster that was drawn for it.
#[derive(Clone)]
pub struct Route {
    pub entry: Arc<RouteEntry>,
    /// `None` when the route does not forward; empty when a `cluster_header` named none.
    pub cluster: Option<Arc<str>>,
    /// The entry of `weighted_clusters` that was drawn.
    pub weighted: Option<Arc<WeightedCluster>>,
}

impl Route {
    pub fn forward(&self) -> Option<&ForwardAction> {
        match &self.entry.action {
            Action::Forward(action) => Some(action),
            Action::Redirect(_) | Action::DirectResponse(_) => None,
        }
    }

    /// The route's name, if it has one.
    pub fn name_shared(&self) -> Option<Arc<str>> {
        if self.entry.name.is_empty() { None } else { Some(Arc::clone(&self.entry.name)) }
    }

    pub fn virtual_host_shared(&self) -> Arc<str> {
        Arc::clone(&self.entry.virtual_host.name)
    }

    /// The merged override of a filter, weighted cluster included.
    pub fn override_of(&self, name: &str) -> Option<&Override> {
        let overrides = self.weighted.as_ref().map_or(&self.entry.overrides, |weighted| &weighted.overrides);
        overrides.get(name)
    }

    /// Whether the route lets this upgrade through; `None` leaves it to the connection manager. `kind` is lower case.
    pub fn upgrade_enabled(&self, kind: &[u8]) -> Option<bool> {
        self.forward()?.upgrades.iter().find(|upgrade| *upgrade.kind == *kind).map(|upgrade| upgrade.enabled)
    }

    /// What hosts must have in their metadata.
    pub fn metadata_match(&self) -> Option<&Arc<MetadataMatch>> {
        let weighted = self.weighted.as_ref().and_then(|weighted| weighted.metadata_match.as_ref());
        weighted.or_else(|| self.forward()?.metadata_match.as_ref())
    }

    /// The reply of a redirect or a direct response; `None` when the route forwards. Its headers are mutated already.
    /// `keep_original` is off with the router's `suppress_envoy_headers`.
    pub fn local_reply(&self, head: &mut RequestHead, info: &StreamInfo, keep_original: bool) -> Option<LocalReply> {
        let mut reply = match &self.entry.action {
            Action::Forward(_) => return None,
            Action::Redirect(redirect) => redirect.reply(&self.entry.matching.path, head, info, keep_original),
            Action::DirectResponse(response) => response.reply(head, info),
        };
        let mut response = ResponseHead::new(reply.status);
        response.headers = std::mem::take(&mut reply.headers);
        self.finalize_response(&mut response, Some(head), info);
        if let Action::DirectResponse(direct) = &self.entry.action
            && let Some((name, value)) = direct.content_type()
        {
            response.headers.insert(name, value);
        }
        reply.headers = response.headers;
        Some(reply)
    }

    /// Makes the upstream's head of the client's: header mutations first, then the host, then the path, which may come
    /// from headers that were just set. Envoy: `finalizeRequestHeaders`.
    pub fn finalize_request(&self, head: &mut RequestHead, info: &StreamInfo, keep_original: bool) {
        let Some(action) = self.forward() else { return };
        let facts = FormatContext { route: Some(self), ..FormatContext::of(info) };
        if let Some(weighted) = &self.weighted {
            weighted.request_headers.apply_request(head, facts);
            if let Some(host) = &weighted.host_rewrite {
                head.authority = host.clone();
            }
        }
        for level in
            self.levels(|entry| &entry.request_headers, |host| &host.request_headers, |config| &config.request_headers)
        {
            level.apply_request(head, facts);
        }
        if let Some(host) = action.host_rewrite.apply(head, info) {
            rewrite::set_host(head, host, action.append_x_forwarded_host, keep_original);
        }
        if let Some(rewrite) = &action.path_rewrite
            && let Some(path) = rewrite.apply(&self.entry.matching.path, head, info)
        {
            rewrite::set_path(head, path, keep_original);
        }
    }

    /// `auto_host_rewrite`, once the endpoint is chosen: its host name, if it has one, is the host.
    pub fn finalize_host(&self, head: &mut RequestHead, host_name: &str, keep_original: bool) {
        let Some(action) = self.forward() else { return };
        if matches!(action.host_rewrite, HostRewrite::Auto)
            && !host_name.is_empty()
            && let Ok(host) = HeaderValue::from_str(host_name)
        {
            rewrite::set_host(head, host, action.append_x_forwarded_host, keep_original);
        }
    }

    /// Mutates a response's headers. Envoy: `finalizeResponseHeaders`.
    pub fn finalize_response(&self, head: &mut ResponseHead, request: Option<&RequestHead>, info: &StreamInfo) {
        let facts = FormatContext { route: Some(self), ..FormatContext::of(info) };
        if let Some(weighted) = &self.weighted {
            weighted.response_headers.apply_response(head, request, facts);
        }
        for level in self.levels(
            |entry| &entry.response_headers,
            |host| &host.response_headers,
            |config| &config.response_headers,
        ) {
            level.apply_response(head, request, facts);
        }
    }

    /// Route, virtual host, route configuration; the other way round where the most specific wins, which goes last then.
    fn levels<'a>(
        &'a self,
        route: impl Fn(&'a RouteEntry) -> &'a HeaderMutations,
        host: impl Fn(&'a VirtualHost) -> &'a HeaderMutations,
        config: impl Fn(&'a super::RouteConfig) -> &'a HeaderMutations,
    ) -> [&'a HeaderMutations; 3] {
        let virtual_host = &*self.entry.virtual_host;
        let mut levels = [route(&self.entry), host(virtual_host), config(&virtual_host.config)];
        if virtual_host.config.most_specific_header_mutations_wins {
            levels.reverse();
        }
        levels
    }
}

impl RouteView for Route {
    fn name(&self) -> &str {
        &self.entry.name
    }

    fn virtual_host(&self) -> &str {
        &self.entry.virtual_host.name
    }

    fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    fn metadata(&self, namespace: &str) -> Option<&Map<String, Value>> {
        self.entry.metadata.namespace(namespace)
    }

    fn filter_override(&self, name: &str) -> Option<&Override> {
        self.override_of(name)
    }

    fn rate_limits(&self) -> &[RateLimit] {
        &self.entry.rate_limits
    }

    fn virtual_host_rate_limits(&self) -> &[RateLimit] {
        &self.entry.virtual_host.rate_limits
    }

    fn include_virtual_host_rate_limits(&self) -> bool {
        self.entry.include_virtual_host_rate_limits
    }
}
