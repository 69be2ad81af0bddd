//! Takes virtual hosts (VHDS) to the store: each belongs to the route configuration that its name begins with.
//! It must not know how the answer travels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_control::client::{Resource, Update};

use super::resources::{Apply, joined};
use crate::config::store::{HostUpdate, Kind, routes_of};
use crate::stats::subscription::Update as Outcome;

impl Apply<'_> {
    /// All hosts of one route configuration act, or none; what is of no route configuration that is asked for is left out.
    pub(super) fn virtual_hosts(&mut self, update: &Update) -> Result<(), String> {
        let by_routes = match self.read_hosts(update) {
            Ok(by_routes) => by_routes,
            Err(reason) => {
                self.refuse_carried(Kind::VirtualHost);
                return Err(reason);
            }
        };
        let (version, mut wrong) = (update.version.as_str().into(), Vec::new());
        for (routes, hosts) in by_routes {
            self.waits.came(Kind::VirtualHost, &routes);
            let now = SystemTime::now();
            match self.store.update_hosts(&routes, &version, hosts) {
                Ok(reloads) => {
                    let stats = reloads.iter().filter_map(|kind| self.subscriptions.of(*kind, &routes));
                    stats.for_each(|stats| stats.reloaded(now));
                    let outcome = Outcome::Success(update.version.clone());
                    self.subscriptions.count(Kind::VirtualHost, &routes, &outcome, self.store, now);
                }
                Err(error) => {
                    self.count_again(Kind::VirtualHost, &routes, update);
                    self.refuse_one(Kind::VirtualHost, &routes);
                    wrong.push(error);
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(joined("", &wrong)) }
    }

    /// # Errors
    /// What cannot be read: nothing of the response acts.
    fn read_hosts(&self, update: &Update) -> Result<BTreeMap<Arc<str>, HostUpdate>, String> {
        let mut by_routes: BTreeMap<Arc<str>, HostUpdate> = BTreeMap::new();
        let carried = |name: &str| self.carried.find(Kind::VirtualHost, routes_of(name)?).cloned();
        let whole: Arc<str> = update.version.as_str().into();
        for resource in &update.resources {
            let Resource { name, aliases, body, .. } = resource;
            let Some(routes) = carried(name) else { continue };
            let hosts = by_routes.entry(routes).or_default();
            let names = aliases.iter().chain([name]).map(|name| (name.as_str().into(), body.is_some()));
            hosts.found.extend(names);
            let Some(body) = body else { continue };
            let read = self.read_placed(Kind::VirtualHost, name, resource, body, &whole);
            hosts.added.push((name.as_str().into(), read.map_err(|unread| joined(name, &unread.errors))?));
        }
        for name in &update.removed {
            if let Some(routes) = carried(name) {
                by_routes.entry(routes).or_default().removed.push(name.as_str().into());
            }
        }
        Ok(by_routes)
    }
}
