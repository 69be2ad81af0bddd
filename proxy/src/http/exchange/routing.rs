//! Which route an exchange takes, which limits and which filter chain come with it.
//! It must not know how a table is searched, nor what is done with the route.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Version};
use tidegate_filters::format::Costly;
use tidegate_filters::http::{LocalReply, RequestHead};

use super::{Connection, Exchange};
use crate::http::options::RouteSource;
use crate::http::request_headers::is_upgrade;
use crate::route::{Outcome, RouteTable};
use crate::snapshot::Snapshot;

/// The configuration that an exchange sees, loaded once.
pub(super) struct Snapped {
    pub(super) snapshot: Arc<Snapshot>,
    /// Its routes, where they are the same for all requests.
    table: Option<Arc<RouteTable>>,
}

impl Snapped {
    pub(super) fn load(connection: &Connection) -> Self {
        let snapshot = connection.shared.snapshot();
        let table = match &connection.hcm.routes {
            RouteSource::Inline(table) => Some(Arc::clone(table)),
            RouteSource::Rds(name) => snapshot.routes.get(name).cloned(),
            RouteSource::Scoped(_) => None,
        };
        Self { snapshot, table }
    }

    /// The routes of a request. Those of its scope are looked up anew each time, as in Envoy: what makes the scope's key may
    /// have been changed or taken out since.
    pub(super) fn table(&self, connection: &Connection, head: &RequestHead) -> Option<Arc<RouteTable>> {
        match &connection.hcm.routes {
            RouteSource::Scoped(scoped) => scoped.table(head, &self.snapshot),
            RouteSource::Inline(_) | RouteSource::Rds(_) => self.table.clone(),
        }
    }
}

impl Exchange<'_> {
    /// Chooses the route; runs again when a filter cleared it.
    pub(super) fn choose_route(&mut self) {
        self.stream.asks.clear_route = false;
        self.stream.info.route_resolutions += 1;
        let began = Costly::RouteTime.is_asked_for().then(Instant::now);
        let snapped = self.configuration.as_ref();
        let table = snapped.and_then(|snapped| snapped.table(self.connection, &self.request.head));
        let outcome = match &table {
            None => Outcome::NoVirtualHost,
            Some(table) => {
                let input = self.connection.route_input(&self.request.head, &self.stream);
                crate::route::route(table, &input, None)
            }
        };
        if let Some(began) = began {
            *self.stream.info.route_resolution_time.get_or_insert_default() += began.elapsed();
        }
        let info = &mut self.stream.info;
        info.route_name = outcome.route().and_then(|route| route.name_shared());
        info.virtual_cluster = None;
        info.virtual_host = outcome.virtual_host().map(|host| Arc::clone(&host.name));
        info.virtual_host_metadata = outcome.virtual_host().and_then(|host| host.metadata.clone());
        self.stream.route = outcome.route().map(|route| Arc::clone(route) as _);
        self.stream.lazy_routes = self.lazy_routes(&outcome, table.as_deref());
        self.outcome = outcome;
        self.note_cluster();
        self.limit_by_route();
    }

    /// The cluster of the route, as logs and filters see it from now on.
    fn note_cluster(&mut self) {
        let name = self.outcome.route().and_then(|route| route.cluster.as_deref());
        self.cluster = name.and_then(|name| self.configuration.as_ref()?.snapshot.clusters.get(name)).map(Arc::clone);
        let upstream = &mut self.stream.info.upstream;
        match &self.cluster {
            Some(cluster) => cluster.name_in(upstream),
            None => (upstream.cluster, upstream.observability_name, upstream.cluster_metadata) = (None, None, None),
        }
    }

    /// The route's bounds on the stream, in place of the connection manager's.
    pub(super) fn limit_by_route(&mut self) {
        let timeouts = &self.connection.hcm.timeouts;
        let Some(route) = self.outcome.route().and_then(|route| route.forward()).map(|forward| &forward.timeouts)
        else {
            return self.limits.set(timeouts.stream_idle, timeouts.max_stream_duration);
        };
        let head = &mut self.request.head;
        let grpc = route.stream.is_some() && head.is_grpc();
        let duration = route.of_stream(timeouts.max_stream_duration, grpc, &mut head.headers);
        self.limits.set(route.idle.unwrap_or(timeouts.stream_idle), duration);
    }

    /// How long a client may take for what is left of a response that is whole here. Whatever its documentation says, Envoy
    /// does not look at the route's idle timeout; below HTTP/2 the connection is idle to it from here on.
    pub(super) fn flush_timeout(&self, version: Version) -> Option<Duration> {
        let timeouts = &self.connection.hcm.timeouts;
        if version < Version::HTTP_2 {
            return timeouts.connection_idle;
        }
        let route = self.outcome.route().and_then(|route| route.forward()).and_then(|forward| forward.timeouts.flush);
        route.or(timeouts.stream_flush).unwrap_or(timeouts.stream_idle)
    }

    /// The filter chain: the connection manager's, or that of the upgrade which the request asks for.
    pub(super) fn choose_chain(&mut self) -> Result<(), Box<LocalReply>> {
        let head = &self.request.head;
        let connect = head.method == Method::CONNECT;
        if !connect && !is_upgrade(&head.headers) {
            return Ok(());
        }
        let kind: Vec<u8> = match (&head.protocol, connect) {
            (Some(protocol), true) => protocol.as_bytes().to_ascii_lowercase(),
            (None, true) => b"connect".to_vec(),
            _ => head
                .headers
                .get(http::header::UPGRADE)
                .map(|value| value.as_bytes().to_ascii_lowercase())
                .unwrap_or_default(),
        };
        let configured = self.connection.hcm.upgrades.iter().find(|upgrade| upgrade.kind.as_bytes() == kind);
        let by_route = self.outcome.route().and_then(|route| route.upgrade_enabled(&kind));
        let enabled = by_route.unwrap_or_else(|| configured.is_some_and(|upgrade| upgrade.enabled));
        if !enabled {
            // Without a route the request goes the way of any other, to be told so.
            if self.outcome.route().is_none() {
                return Ok(());
            }
            self.connection.hcm.stats.downstream_rq_ws_on_non_ws_route().inc();
            return Err(Box::new(LocalReply::new(StatusCode::FORBIDDEN, "upgrade_failed")));
        }
        if let Some(chain) = configured.and_then(|upgrade| upgrade.filters.as_ref()) {
            self.chain = Arc::clone(chain);
        }
        if !std::mem::replace(&mut self.upgrade, true) {
            self.connection.hcm.stats.downstream_cx_upgrades_total().inc();
            self.connection.hcm.stats.downstream_cx_upgrades_active().inc();
        }
        Ok(())
    }
}
