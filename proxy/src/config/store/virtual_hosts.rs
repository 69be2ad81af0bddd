//! Virtual hosts that are discovered (VHDS): those of each route configuration, all of them at first and one by one as requests
//! ask for them, made one table with those that the route configuration has itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_filters::context::{Needs, RouteSubscription};
use tidegate_xds::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use tidegate_xds::{FieldError, FieldPath};
use tokio::sync::oneshot;

use super::needs::Owner;
use super::{Kind, Placed, Store};
use crate::config::{RouteOrigin, virtual_hosts};
use crate::route::RouteTable;

/// At most so many hosts that are not there are remembered for a route configuration: names are clients' to choose.
const MOST_ABSENT: usize = 1000;

/// At most so many hosts are waited for at once.
const MOST_PENDING: usize = 10_000;

/// The virtual hosts of one route configuration.
pub(super) struct HostSet {
    /// The route configuration as it came.
    base: RouteConfiguration,
    /// By the names of their resources. (Envoy goes by the names that they have themselves: one that has another stays although
    /// its resource is removed.)
    hosts: Hosts,
    /// They came, or were waited for long enough.
    came: bool,
    asked: HashMap<Arc<str>, Asked>,
    pending: usize,
    /// Those that are not there, the oldest first.
    absent: VecDeque<Arc<str>>,
}

type Hosts = BTreeMap<Arc<str>, Arc<VirtualHost>>;

/// What became of a host that a request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Pending,
    Found,
    Absent,
}

/// A host that a stream is to ask for, or no longer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AskedHost {
    pub routes: Arc<str>,
    pub name: Arc<str>,
    pub asks: bool,
}

/// What an update brought of one route configuration.
#[derive(Default)]
pub(crate) struct HostUpdate {
    /// Each with the name of its resource.
    pub added: Vec<(Arc<str>, Placed<VirtualHost>)>,
    pub removed: Vec<Arc<str>>,
    /// Names and aliases, and whether there is such a host.
    pub found: Vec<(Arc<str>, bool)>,
}

/// The route configuration that a virtual host belongs to, by the name of its resource.
pub(crate) fn routes_of(name: &str) -> Option<&str> {
    name.rsplit_once('/').map(|(routes, _)| routes)
}

impl Store {
    /// A route configuration with the hosts that it has and those that came.
    pub(super) fn compile_routes(&self, placed: &Placed<RouteConfiguration>) -> Result<RouteTable, FieldError> {
        match self.virtual_hosts.get(placed.resource.name.as_str()).filter(|_| placed.resource.vhds.is_some()) {
            Some(set) => self.compile_with(&placed.resource, &set.hosts, placed.path.clone()),
            None => self.compile_with(&placed.resource, &Hosts::new(), placed.path.clone()),
        }
    }

    fn compile_with(
        &self,
        routes: &RouteConfiguration,
        hosts: &Hosts,
        path: FieldPath,
    ) -> Result<RouteTable, FieldError> {
        let whole;
        let routes = if hosts.is_empty() {
            routes
        } else {
            let discovered = hosts.values().map(|host| VirtualHost::clone(host));
            let mut with_hosts = routes.clone();
            with_hosts.virtual_hosts.extend(discovered);
            whole = with_hosts;
            &whole
        };
        let mut needs = Needs::default();
        let mut context = self.compiler.context(&routes.name, path, &mut needs);
        self.compiler.route_table(routes, RouteOrigin::Discovered, &mut context)
    }

    /// Where the hosts of a route configuration come from; none for one that has them all.
    pub(super) fn hosts_source(
        &self,
        placed: &Placed<RouteConfiguration>,
    ) -> Result<Option<RouteSubscription>, FieldError> {
        let Some(vhds) = &placed.resource.vhds else { return Ok(None) };
        let name = &placed.resource.name;
        let mut needs = Needs::default();
        let mut context = self.compiler.context(name, placed.path.clone(), &mut needs);
        let source = virtual_hosts::source(vhds, &self.compiler.known, &mut context)?;
        let prefix = self.route_needs.subscription(name).map_or("", |wanted| &wanted.stats_prefix);
        Ok(Some(RouteSubscription { source, stats_prefix: format!("{prefix}rds.") }))
    }

    /// A route configuration acts: its hosts are needed from there from now on, or none any more.
    pub(super) fn need_hosts(&mut self, base: &RouteConfiguration, from: Option<RouteSubscription>) {
        let name: Arc<str> = base.name.as_str().into();
        let Some(subscription) = from else { return self.drop_hosts(&name) };
        self.host_needs.set(&Owner::Routes(Arc::clone(&name)), &BTreeMap::from([(base.name.clone(), subscription)]));
        let set = self.virtual_hosts.entry(name).or_insert_with(|| HostSet {
            base: RouteConfiguration::default(),
            hosts: Hosts::new(),
            came: false,
            asked: HashMap::new(),
            pending: 0,
            absent: VecDeque::new(),
        });
        set.base = base.clone();
    }

    /// The hosts of a route configuration are needed no more.
    pub(super) fn drop_hosts(&mut self, routes: &Arc<str>) {
        let Some(set) = self.virtual_hosts.remove(routes) else { return };
        self.host_needs.set(&Owner::Routes(Arc::clone(routes)), &BTreeMap::new());
        self.host_needs.forget(routes);
        set.asked.keys().for_each(|name| self.waiting_hosts.tell(name, false));
        set.hosts.keys().for_each(|name| self.ledger.remove(Kind::VirtualHost, name));
        self.asked_hosts.retain(|asked| asked.routes != *routes);
        self.ledger.forget_hosts(routes);
    }

    /// Whether a route configuration is there, with its first hosts.
    pub(super) fn has_route(&self, name: &str) -> bool {
        self.shared.snapshot().routes.contains_key(name) && self.virtual_hosts.get(name).is_none_or(|set| set.came)
    }

    /// They do not come, or what came is not good: listeners serve without.
    pub(super) fn go_on_without_hosts(&mut self, routes: &str) {
        if let Some(set) = self.virtual_hosts.get_mut(routes) {
            set.came = true;
        }
        self.publish_warm_listeners();
    }

    /// Takes hosts that came or went, all or none. Returns whose reloads that counts as, as in Envoy: one that only says that
    /// something is not there does, too, and the first hosts are part of their route configuration's first table.
    ///
    /// # Errors
    /// What is wrong with the table that they make.
    pub(crate) fn update_hosts(
        &mut self,
        routes: &Arc<str>,
        version: &Arc<str>,
        update: HostUpdate,
    ) -> Result<&'static [Kind], FieldError> {
        let Some(set) = self.virtual_hosts.get(routes) else { return Ok(&[]) };
        let is_first = !set.came;
        let HostUpdate { added, removed, found } = update;
        let mut hosts = set.hosts.clone();
        let gone = removed.iter().filter(|name| hosts.remove(*name).is_some()).count();
        hosts.extend(added.iter().map(|(name, placed)| (Arc::clone(name), Arc::new(placed.resource.clone()))));
        let changed = gone > 0 || !added.is_empty();
        if changed {
            match self.compile_with(&set.base, &hosts, FieldPath::root()) {
                Ok(table) => {
                    self.publish(|snapshot| {
                        snapshot.routes.insert(Arc::clone(routes), Arc::new(table));
                    });
                }
                Err(error) => {
                    for (name, placed) in added {
                        self.refuse(Kind::VirtualHost, &name, placed, &error);
                    }
                    self.answered(routes, found.into_iter().map(|(name, _)| (name, false)));
                    return Err(error);
                }
            }
        }
        for (name, placed) in added {
            let name = self.ledger.name(Kind::VirtualHost, &name);
            self.ledger.takes(Kind::VirtualHost, &name, placed.text, false);
            self.ledger.acts(Kind::VirtualHost, &name);
        }
        removed.iter().for_each(|name| self.ledger.remove(Kind::VirtualHost, name));
        if changed {
            self.ledger.loads_hosts(routes, version, SystemTime::now());
        }
        if let Some(set) = self.virtual_hosts.get_mut(routes) {
            set.hosts = hosts;
            set.came = true;
        }
        let answers = !found.is_empty();
        self.answered(routes, found.into_iter().chain(removed.into_iter().map(|name| (name, false))));
        self.publish_warm_listeners();
        Ok(match (gone > 0 || answers, is_first) {
            (false, _) => &[],
            (true, true) => &[Kind::VirtualHost],
            (true, false) => &[Kind::VirtualHost, Kind::Route],
        })
    }

    /// Hosts that requests asked for are there, or are not.
    fn answered(&mut self, routes: &Arc<str>, found: impl Iterator<Item = (Arc<str>, bool)>) {
        let Some(set) = self.virtual_hosts.get_mut(routes) else { return };
        for (name, there) in found {
            let Some(asked) = set.asked.get_mut(&name) else { continue };
            let before = std::mem::replace(asked, if there { Asked::Found } else { Asked::Absent });
            if before == Asked::Pending {
                set.pending -= 1;
                self.waiting_hosts.tell(&name, there);
            }
            if !there && before != Asked::Absent {
                set.absent.push_back(name);
            }
        }
        while set.absent.len() > MOST_ABSENT
            && let Some(oldest) = set.absent.pop_front()
        {
            if set.asked.get(&oldest) == Some(&Asked::Absent) {
                set.asked.remove(&oldest);
                self.asked_hosts.push(AskedHost { routes: Arc::clone(routes), name: oldest, asks: false });
            }
        }
    }

    /// An exchange found no route for this host: it is asked for once, and waited for.
    pub(super) fn demand_host(&mut self, routes: &Arc<str>, host: &str, seen: u64, done: oneshot::Sender<bool>) {
        let Some(set) = self.virtual_hosts.get_mut(routes) else { return };
        let name: Arc<str> = format!("{routes}/{host}").into();
        match set.asked.get(&name) {
            Some(Asked::Pending) => self.waiting_hosts.join(&name, done),
            Some(Asked::Found | Asked::Absent) => {
                // Whoever is gone need not know.
                let _ = done.send(self.shared.snapshot().version > seen);
            }
            None if set.pending >= MOST_PENDING => {}
            None => {
                set.asked.insert(Arc::clone(&name), Asked::Pending);
                set.pending += 1;
                self.waiting_hosts.join(&name, done);
                self.asked_hosts.push(AskedHost { routes: Arc::clone(routes), name, asks: true });
            }
        }
    }

    /// What streams are to ask for, or no longer, since this was last asked.
    pub(crate) fn take_asked_hosts(&mut self) -> Vec<AskedHost> {
        std::mem::take(&mut self.asked_hosts)
    }
}
