//! Route configurations of listeners that name them (RDS).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;

use super::{Kind, Placed, Store};

impl Store {
    /// New route configurations, by name.
    pub(crate) fn update_routes(&mut self, routes: Vec<Placed<RouteConfiguration>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut good = Vec::new();
        for placed in routes {
            let name: Arc<str> = placed.resource.name.as_str().into();
            match self.compile_routes(&placed) {
                Ok(compiled) => {
                    let table = self.need_hosts(&name, compiled);
                    tracing::debug!("rds: loaded route configuration '{name}'");
                    self.ledger.takes(Kind::Route, &name, placed.text, false);
                    self.ledger.acts(Kind::Route, &name);
                    good.push((name, Arc::new(table)));
                }
                Err(error) => {
                    self.refuse(Kind::Route, &name, placed, &error);
                    errors.push(error);
                }
            }
        }
        if !good.is_empty() {
            let names: Vec<_> = good.iter().map(|(name, _)| Arc::clone(name)).collect();
            self.publish(|snapshot| snapshot.routes.extend(good));
            names.iter().for_each(|name| self.waiting.tell(name, true));
            self.publish_warm_listeners();
        }
        errors
    }

    /// A route configuration does not come: listeners that wait for it serve without.
    pub(super) fn go_on_without_routes(&mut self, name: &str) {
        self.route_needs.give_up(name);
        self.publish_warm_listeners();
    }

    /// Forgets what no listener has named for so long that every chain that used it has drained.
    pub(crate) fn forget_drained(&mut self, drained_after: Duration, now: Instant) {
        self.ledger.forget_drained(drained_after, now);
        let mut over = Vec::new();
        while let Some((since, ..)) = self.leaving.front()
            && now.saturating_duration_since(*since) > drained_after
        {
            over.extend(self.leaving.pop_front().map(|(_, kind, name)| (kind, name)));
        }
        self.forget(over);
    }

    /// Forgets what no owner names and no chain that drains may use.
    pub(super) fn forget(&mut self, mut over: Vec<(Kind, Arc<str>)>) {
        let Self { leaving, route_needs, extension_needs, scope_needs, lined, .. } = self;
        over.retain(|(kind, name)| {
            if leaving.iter().any(|(_, other, later)| (other, later) == (kind, name)) {
                return false;
            }
            match kind {
                Kind::Route => route_needs.forget(name) || lined.forget(name),
                Kind::Scope => scope_needs.forget(name),
                _ => extension_needs.forget(name),
            }
        });
        let mut routes = Vec::new();
        for (kind, name) in over {
            match kind {
                Kind::Route => {
                    self.end_routes(&name);
                    routes.push(name);
                }
                Kind::Scope => self.forget_scopes(&name),
                _ => self.ledger.remove(kind, &name),
            }
        }
        if !routes.is_empty() {
            self.publish(|snapshot| routes.iter().for_each(|name| drop(snapshot.routes.remove(name))));
        }
    }

    /// Nobody uses a route configuration any more: what waits for it goes on without, and its hosts go with it.
    pub(super) fn end_routes(&mut self, name: &Arc<str>) {
        self.ledger.remove(Kind::Route, name);
        self.waiting.tell(name, false);
        self.drop_hosts(name);
    }
}
