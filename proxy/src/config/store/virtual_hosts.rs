//! Virtual hosts that are discovered (VHDS): those of each route configuration, all of them at first and one by one as requests
//! ask for them, made one table with those that the route configuration has itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_filters::context::{Needs, RouteSubscription};
use tidegate_xds::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use tidegate_xds::{FieldError, FieldPath, any};
use tokio::sync::oneshot;

use super::needs::Owner;
use super::{Kind, Placed, Store};
use crate::config::route::Common;
use crate::config::{RouteOrigin, virtual_hosts};
use crate::route::{DiscoveredHost, RouteTable};

/// At most so many hosts that are not there are remembered for a route configuration: names are clients' to choose.
const MOST_ABSENT: usize = 1000;

/// At most so many hosts are waited for at once.
const MOST_PENDING: usize = 10_000;

/// The virtual hosts of one route configuration.
pub(super) struct HostSet {
    /// The route configuration as it came, without the virtual hosts that it has itself.
    base: RouteConfiguration,
    common: Common,
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

/// Hosts that came.
type Named = Vec<(Arc<str>, DiscoveredHost)>;

type Hosts = BTreeMap<Arc<str>, DiscoveredHost>;

/// A route configuration that came.
pub(super) struct Compiled {
    pub(super) table: RouteTable,
    /// None: it has all its hosts itself.
    discovers: Option<Box<Discovers>>,
}

struct Discovers {
    from: RouteSubscription,
    base: RouteConfiguration,
    /// What hosts are compiled with, and those that are here; none where both stay as they were.
    anew: Option<(Common, Hosts)>,
}

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
    /// A route configuration with the hosts that it has and those that came. Those are compiled anew only where what they are
    /// compiled with has changed.
    pub(super) fn compile_routes(&self, placed: &Placed<RouteConfiguration>) -> Result<Compiled, FieldError> {
        self.compile_of(placed, RouteOrigin::Discovered)
    }

    /// The same for one that stands in a listener.
    pub(super) fn compile_lined_routes(&self, placed: &Placed<RouteConfiguration>) -> Result<Compiled, FieldError> {
        self.compile_of(placed, RouteOrigin::Inline)
    }

    fn compile_of(&self, placed: &Placed<RouteConfiguration>, origin: RouteOrigin) -> Result<Compiled, FieldError> {
        let proto = &placed.resource;
        let mut needs = Needs::default();
        let mut context = self.compiler.context(&proto.name, placed.path.clone(), &mut needs);
        if proto.vhds.is_none() {
            let table = self.compiler.route_table(proto, origin, &mut context)?;
            return Ok(Compiled { table, discovers: None });
        }
        let overrides = self.compiler.route_overrides();
        let base = RouteConfiguration { virtual_hosts: Vec::new(), ..proto.clone() };
        let set = self.virtual_hosts.get(proto.name.as_str());
        let (own, hosts, mut anew);
        anew = None;
        if let Some(set) = set.filter(|set| set.base == base) {
            own = set.common.table(proto, &overrides, &mut context)?;
            hosts = &set.hosts;
        } else {
            let common = Common::compile(proto, origin == RouteOrigin::Inline, &overrides, &mut context)?;
            own = common.table(proto, &overrides, &mut context)?;
            let names = set.into_iter().flat_map(|set| set.hosts.keys());
            let again = names.map(|name| Ok((Arc::clone(name), self.compile_again(name, &common)?)));
            let again = again.collect::<Result<_, FieldError>>()?;
            hosts = &anew.insert((common, again)).1;
        }
        let table = own.with_discovered([], hosts.values()).map_err(|taken| {
            let name = hosts.keys().nth(taken.host).map_or("", |name| &**name);
            let path = placed.path.clone().field("virtual_hosts").key(name).field("domains").index(taken.domain);
            FieldError::new(path, taken.error.to_string()).in_resource(&proto.name)
        })?;
        let from = self.hosts_source(placed)?;
        Ok(Compiled { table, discovers: from.map(|from| Box::new(Discovers { from, base, anew })) })
    }

    /// A host that acts, once more.
    fn compile_again(&self, name: &Arc<str>, common: &Common) -> Result<DiscoveredHost, FieldError> {
        let text = self.ledger.acting(Kind::VirtualHost, name).unwrap_or_default();
        self.compile_host(name, &any::decode(&text, &FieldPath::root())?, common)
    }

    fn compile_host(&self, name: &str, proto: &VirtualHost, common: &Common) -> Result<DiscoveredHost, FieldError> {
        let mut needs = Needs::default();
        let mut context = self.compiler.context(name, FieldPath::root(), &mut needs);
        common.discovered(proto, &self.compiler.route_overrides(), &mut context)
    }

    /// Where the hosts of a route configuration come from; none for one that has them all.
    fn hosts_source(&self, placed: &Placed<RouteConfiguration>) -> Result<Option<RouteSubscription>, FieldError> {
        let Some(vhds) = &placed.resource.vhds else { return Ok(None) };
        let name = &placed.resource.name;
        let mut needs = Needs::default();
        let mut context = self.compiler.context(name, placed.path.clone(), &mut needs);
        let source = virtual_hosts::source(vhds, &self.compiler.known, &mut context)?;
        // Those in line count at the root, as in Envoy.
        let discovered = self.route_needs.subscription(name);
        let stats_prefix = discovered.map_or_else(String::new, |wanted| format!("{}rds.", wanted.stats_prefix));
        Ok(Some(RouteSubscription { source, stats_prefix }))
    }

    /// A route configuration acts: its hosts are needed from there from now on, or none any more. Returns its table.
    pub(super) fn need_hosts(&mut self, name: &Arc<str>, compiled: Compiled) -> RouteTable {
        let Compiled { table, discovers } = compiled;
        let Some(discovers) = discovers else {
            self.drop_hosts(name);
            return table;
        };
        let Discovers { from, base, anew } = *discovers;
        self.host_needs.set(&Owner::Routes(Arc::clone(name)), &BTreeMap::from([(name.to_string(), from)]));
        let Some((common, hosts)) = anew else { return table };
        match self.virtual_hosts.get_mut(name) {
            Some(set) => (set.base, set.common, set.hosts) = (base, common, hosts),
            None => {
                let (asked, absent) = (HashMap::new(), VecDeque::new());
                let set = HostSet { base, common, hosts, came: false, asked, pending: 0, absent };
                self.virtual_hosts.insert(Arc::clone(name), set);
            }
        }
        table
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
        let gone = removed.iter().filter(|name| set.hosts.contains_key(*name)).count();
        let changed = gone > 0 || !added.is_empty();
        let mut come = Vec::new();
        if changed {
            match self.changed_hosts(routes, set, &added, &removed) {
                Ok((table, compiled)) => {
                    come = compiled;
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
            removed.iter().for_each(|name| drop(set.hosts.remove(name)));
            set.hosts.extend(come);
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

    /// The table with these changes, and the hosts that are other than before, compiled.
    fn changed_hosts(
        &self,
        routes: &Arc<str>,
        set: &HostSet,
        added: &[(Arc<str>, Placed<VirtualHost>)],
        removed: &[Arc<str>],
    ) -> Result<(RouteTable, Named), FieldError> {
        let acts = |name: &Arc<str>, placed: &Placed<VirtualHost>| {
            set.hosts.contains_key(name) && self.ledger.is_latest(Kind::VirtualHost, name, &placed.text.bytes)
        };
        let others = added.iter().filter(|(name, placed)| !acts(name, placed));
        let compile = |(name, placed): &(Arc<str>, Placed<VirtualHost>)| {
            Ok((self.ledger.name(Kind::VirtualHost, name), self.compile_host(name, &placed.resource, &set.common)?))
        };
        let come: Vec<_> = others.map(compile).collect::<Result<_, FieldError>>()?;
        let gone = removed.iter().chain(come.iter().map(|(name, _)| name)).filter_map(|name| set.hosts.get(name));
        let before = self.shared.snapshot().routes.get(routes).cloned().unwrap_or_default();
        let table = before.with_discovered(gone, come.iter().map(|(_, host)| host)).map_err(|taken| {
            let path = FieldPath::root().field("domains").index(taken.domain);
            let error = FieldError::new(path, taken.error.to_string());
            come.get(taken.host).map_or(error.clone(), |(name, _)| error.in_resource(name))
        })?;
        Ok((table, come))
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

#[cfg(test)]
mod tests {
    use tidegate_xds::pb::envoy::config::core::v3::{AggregatedConfigSource, ApiVersion, ConfigSource, config_source};
    use tidegate_xds::pb::envoy::config::route::v3::{
        DirectResponseAction, Route, RouteMatch, Vhds, route, route_match,
    };

    use super::*;
    use crate::config::store::testing::store;
    use crate::route::allocations::allocations;
    use crate::route::testing::{World, get};
    use crate::route::{Outcome, route};

    fn host(name: &str, domain: &str, routes: usize) -> VirtualHost {
        let route = |index| Route {
            name: format!("{name}/{index}"),
            r#match: Some(RouteMatch {
                path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
                ..RouteMatch::default()
            }),
            action: Some(route::Action::DirectResponse(DirectResponseAction { status: 200, ..Default::default() })),
            ..Route::default()
        };
        let routes = (0..routes).map(route).collect();
        VirtualHost { name: name.to_owned(), domains: vec![domain.to_owned()], routes, ..VirtualHost::default() }
    }

    fn routes(own: &str) -> RouteConfiguration {
        let ads = config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
        let version = ApiVersion::V3.into();
        let source =
            ConfigSource { config_source_specifier: Some(ads), resource_api_version: version, ..Default::default() };
        RouteConfiguration {
            name: "r".to_owned(),
            virtual_hosts: vec![host("own", own, 1)],
            vhds: Some(Vhds { config_source: Some(source) }),
            ..RouteConfiguration::default()
        }
    }

    fn take_routes(store: &mut Store, routes: RouteConfiguration) -> Vec<String> {
        let placed = Placed::encoded(routes, FieldPath::root(), &"1".into());
        store.update_routes(vec![placed]).iter().map(ToString::to_string).collect()
    }

    fn take_hosts(store: &mut Store, added: Vec<VirtualHost>, removed: &[&str]) -> Result<(), String> {
        let placed = |host: VirtualHost| {
            (format!("r/{}", host.name).into(), Placed::encoded(host, FieldPath::root(), &"1".into()))
        };
        let added = added.into_iter().map(placed).collect();
        let removed = removed.iter().map(|name| (*name).into()).collect();
        let update = HostUpdate { added, removed, found: Vec::new() };
        store.update_hosts(&"r".into(), &"1".into(), update).map(drop).map_err(|error| error.to_string())
    }

    /// The virtual host that takes a request, to be told from others.
    fn taker(store: &Store, domain: &str) -> Option<Arc<crate::route::VirtualHost>> {
        let table = store.shared.snapshot().routes.get("r").cloned()?;
        match route(&table, &World::new().input(&get(domain, "/")), None) {
            Outcome::Route(route) => Some(Arc::clone(&route.entry.virtual_host)),
            _ => None,
        }
    }

    #[test]
    fn an_update_leaves_the_hosts_that_it_does_not_name_as_they_are() {
        let mut store = store();
        assert_eq!(take_routes(&mut store, routes("own.com")), [""; 0]);
        take_hosts(&mut store, vec![host("a", "a.com", 1), host("b", "b.com", 1)], &[]).unwrap();
        let before = [taker(&store, "own.com"), taker(&store, "a.com"), taker(&store, "b.com")].map(Option::unwrap);
        let same = |store: &Store, at: usize, domain: &str| Arc::ptr_eq(&before[at], &taker(store, domain).unwrap());
        take_hosts(&mut store, vec![host("b", "b.com", 2)], &[]).unwrap();
        assert!(same(&store, 0, "own.com") && same(&store, 1, "a.com") && !same(&store, 2, "b.com"));
        // The same again is as it was, and what is refused changes nothing.
        take_hosts(&mut store, vec![host("a", "a.com", 1)], &[]).unwrap();
        let taken = take_hosts(&mut store, vec![host("c", "c.com", 1), host("d", "A.com", 1)], &["r/b"]).unwrap_err();
        let duplicate = "domains[0]: a domain may occur only once in a route configuration, whatever its case";
        assert!(taken.ends_with(duplicate), "{taken}");
        assert!(same(&store, 1, "a.com") && taker(&store, "c.com").is_none() && taker(&store, "b.com").is_some());
        // A domain goes from one host to another at once.
        take_hosts(&mut store, vec![host("c", "b.com", 1)], &["r/b"]).unwrap();
        assert_eq!(&*taker(&store, "b.com").unwrap().name, "c");
        // Other hosts of its own leave those that were discovered; what those inherit does not.
        assert!(take_routes(&mut store, routes("other.com")).is_empty());
        assert!(same(&store, 1, "a.com") && taker(&store, "own.com").is_none() && taker(&store, "other.com").is_some());
        let refused = take_routes(&mut store, routes("a.com"));
        assert!(refused[0].contains(r#"virtual_hosts["r/a"].domains[0]: a domain may occur only once"#), "{refused:?}");
        let inherits = RouteConfiguration { most_specific_header_mutations_wins: true, ..routes("own.com") };
        assert!(take_routes(&mut store, inherits).is_empty());
        assert!(
            !same(&store, 1, "a.com") && taker(&store, "a.com").unwrap().config.most_specific_header_mutations_wins
        );
    }

    /// One host among 5,000: what is allocated does not grow with them.
    #[test]
    fn an_update_costs_what_it_changes() {
        let cost = |hosts: usize| {
            let mut store = store();
            assert_eq!(take_routes(&mut store, routes("own.com")), [""; 0]);
            let all = (0..hosts).map(|at| host(&at.to_string(), &format!("{at}.com"), 5)).collect();
            take_hosts(&mut store, all, &[]).unwrap();
            let changed = vec![host("1", "1.com", 6)];
            let used = allocations(|| take_hosts(&mut store, changed, &[]).unwrap());
            assert!(taker(&store, "1.com").is_some());
            used
        };
        let (few, many) = (cost(2), cost(5_000));
        assert!(many < few + 500, "{few} {many}");
    }
}
