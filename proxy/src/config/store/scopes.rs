//! Scopes of routes that are discovered (SRDS): a set for each source, and the route configurations that its scopes name, which
//! are needed for as long as they do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_filters::context::{Needs, RouteSubscription, ScopesSubscription};
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::route::v3::ScopedRouteConfiguration;
use tokio::sync::oneshot;

use super::ledger::ScopeSource;
use super::needs::Owner;
use super::{Kind, Placed, Store};
use crate::config::scoped_routes::{Leads, key, leads_to};
use crate::route::{Scope as Target, ScopeTable};
use crate::stats::scoped_routes::ScopedRoutesStats;

/// The scopes of one source.
pub(super) struct ScopeSet {
    stats: ScopedRoutesStats,
    by_name: BTreeMap<Arc<str>, Scope>,
    by_key: HashMap<Arc<[u8]>, Arc<str>, ahash::RandomState>,
    /// Whether listeners may serve: it came, or was given up, and so are the routes of what came first.
    first: First,
}

/// What became of what came first.
enum First {
    Awaited,
    /// It came; these routes have not.
    Lacks(BTreeSet<Arc<str>>),
    There,
}

struct Scope {
    key: Arc<[u8]>,
    /// The route configuration that it names; none for one that has its own.
    names: Option<Arc<str>>,
    on_demand: bool,
    /// What it names is needed.
    active: bool,
}

/// A scope that came.
pub(crate) enum ScopeCame {
    New(Box<Placed<ScopedRouteConfiguration>>),
    /// This one acts already ([`Store::has_scope`]).
    Same(Arc<str>),
}

impl ScopeCame {
    fn name(&self) -> &str {
        match self {
            Self::New(placed) => &placed.resource.name,
            Self::Same(name) => name,
        }
    }
}

/// What a ledger calls a scope of this source.
pub(crate) fn scope_entry(source: &str, name: &str) -> String {
    format!("{source}/{name}")
}

/// What a source calls the scope that a ledger calls so; none for one of another source.
pub(crate) fn scope_of<'a>(source: &str, entry: &'a str) -> Option<&'a str> {
    entry.strip_prefix(source)?.strip_prefix('/')
}

/// A response whose scopes cannot stand beside one another.
fn conflict(reason: String) -> FieldError {
    FieldError::new(tidegate_xds::FieldPath::root(), format!("Error adding/updating scoped route(s): {reason}"))
}

impl Store {
    /// Sources that listeners name from now on have a set.
    pub(super) fn open_scopes(&mut self, needs: &Needs) {
        for (source, subscription) in &needs.scopes {
            let scope = self.compiler.stats.scope(&subscription.stats_prefix);
            self.scopes.entry(source.as_str().into()).or_insert_with(|| ScopeSet {
                stats: ScopedRoutesStats::at(&scope.scope(&format!("scoped_rds.{}.", subscription.name))),
                by_name: BTreeMap::new(),
                by_key: HashMap::default(),
                first: First::Awaited,
            });
        }
    }

    /// The scopes of a source that are not among these names; refused ones of other names are forgotten.
    pub(crate) fn scopes_beside<'a>(&self, source: &str, named: impl Iterator<Item = &'a str>) -> Vec<Arc<str>> {
        let named: BTreeSet<&str> = named.collect();
        let is_named = |shown: &str| scope_of(source, shown).is_none_or(|name| named.contains(name));
        self.ledger.forget_refused(Kind::Scope, is_named);
        let all = self.scopes.get(source).into_iter().flat_map(|set| set.by_name.keys());
        all.filter(|name| !named.contains(&***name)).cloned().collect()
    }

    /// Whether this very scope acts already.
    pub(crate) fn has_scope(&self, source: &str, name: &str, bytes: &[u8]) -> bool {
        self.scopes.get(source).is_some_and(|set| set.by_name.contains_key(name))
            && self.keeps(Kind::Scope, &scope_entry(source, name), bytes)
    }

    /// Takes scopes that came, and lets go of those that went, as Envoy does: what conflicts changes nothing; else what is gone
    /// goes first, and the first scope that cannot act ends it, while those before it act. (In Envoy one of those that has routes
    /// of its own is known from then on, and serves only once it changes.)
    ///
    /// # Errors
    /// The conflict, or what is wrong with that scope.
    pub(crate) fn update_scopes(
        &mut self,
        source: &str,
        version: &Arc<str>,
        scopes: Vec<ScopeCame>,
        gone: &[Arc<str>],
    ) -> Result<(), FieldError> {
        let Some(subscription) = self.scope_needs.subscription(source).cloned() else { return Ok(()) };
        self.check_scopes(source, &scopes, gone)?;
        let mut change = Change::default();
        let named: BTreeSet<&str> = scopes.iter().map(ScopeCame::name).collect();
        for name in gone.iter().filter(|name| !named.contains(&***name)) {
            self.remove_scope(source, name, &mut change);
        }
        let mut taken = Ok(());
        for scope in scopes {
            let ScopeCame::New(placed) = scope else { continue };
            taken = self.take_scope(source, &subscription, *placed, &mut change);
            if taken.is_err() {
                break;
            }
        }
        if taken.is_ok() {
            self.note_first_scopes(source);
        }
        let changed = !change.targets.is_empty();
        self.publish_scopes(source, change);
        if let Some(set) = self.scopes.get(source).filter(|_| taken.is_ok()) {
            let now = SystemTime::now();
            set.stats.loaded(set.by_name.len(), now);
            if changed {
                let version = Arc::clone(version);
                self.ledger.loads_scopes(source, ScopeSource { name: subscription.name, version, at: now });
            }
        }
        self.publish_warm_listeners();
        taken
    }

    /// # Errors
    /// Two scopes of one name, or of one key.
    fn check_scopes(&self, source: &str, scopes: &[ScopeCame], gone: &[Arc<str>]) -> Result<(), FieldError> {
        let Some(set) = self.scopes.get(source) else { return Ok(()) };
        let coming = scopes.iter().map(ScopeCame::name);
        let moving: BTreeSet<&str> = gone.iter().map(|name| &**name).chain(coming).collect();
        let stays = |name: &Arc<str>| !moving.contains(&**name);
        let (mut names, mut keys) = (BTreeSet::new(), HashMap::new());
        for scope in scopes {
            let name = scope.name();
            if !names.insert(name) {
                return Err(conflict(format!("duplicate scoped route configuration '{name}' found")));
            }
            let key: Arc<[u8]> = match scope {
                ScopeCame::New(placed) => Arc::from(&*key(&placed.resource)),
                ScopeCame::Same(name) => match set.by_name.get(name) {
                    Some(scope) => Arc::clone(&scope.key),
                    None => continue,
                },
            };
            let before = set.by_key.get(&key).filter(|before| stays(before)).map(|before| &**before);
            if let Some(first) = before.or(keys.insert(key, name)) {
                let reason = format!("scope key conflict found, first scope is '{first}', second scope is '{name}'");
                return Err(conflict(reason));
            }
        }
        Ok(())
    }

    fn take_scope(
        &mut self,
        source: &str,
        subscription: &ScopesSubscription,
        placed: Placed<ScopedRouteConfiguration>,
        change: &mut Change,
    ) -> Result<(), FieldError> {
        let name: Arc<str> = placed.resource.name.as_str().into();
        let shown = self.ledger.name(Kind::Scope, &scope_entry(source, &name));
        if self.ledger.is_latest(Kind::Scope, &shown, &placed.text.bytes) {
            self.ledger.is_good(Kind::Scope, &shown);
            return Ok(());
        }
        let leads = match self.compile_scope(subscription, &placed) {
            Ok(leads) => leads,
            Err(error) => {
                self.refuse(Kind::Scope, &shown, placed, &error);
                return Err(error);
            }
        };
        let key: Arc<[u8]> = Arc::from(&*key(&placed.resource));
        let on_demand = placed.resource.on_demand && matches!(leads, Leads::Named(_));
        self.ledger.takes(Kind::Scope, &shown, placed.text, false);
        self.ledger.acts(Kind::Scope, &shown);
        let (target, names) = match leads {
            Leads::Inline(table) => (Target::Inline(Arc::new(table)), None),
            Leads::Named(_) if on_demand => {
                (Target::Asleep, Some(placed.resource.route_configuration_name.as_str().into()))
            }
            Leads::Named(routes) => (Target::Named(Arc::clone(&routes)), Some(routes)),
        };
        let active = names.is_some() && !on_demand;
        let scope = Scope { key: Arc::clone(&key), names: names.clone(), on_demand, active };
        self.need_routes(source, &name, names.filter(|_| active).as_deref(), change);
        let Some(set) = self.scopes.get_mut(source) else { return Ok(()) };
        set.stats.appears(on_demand, active);
        if let Some(before) = set.by_name.insert(Arc::clone(&name), scope) {
            set.stats.vanishes(before.on_demand, before.active);
            // Another scope may have taken its key meanwhile.
            if set.by_key.get(&before.key) == Some(&name) && before.key != key {
                set.by_key.remove(&before.key);
                change.targets.push((before.key, None));
            }
        }
        set.by_key.insert(Arc::clone(&key), name);
        change.targets.push((key, Some(target)));
        Ok(())
    }

    fn compile_scope(
        &self,
        subscription: &ScopesSubscription,
        placed: &Placed<ScopedRouteConfiguration>,
    ) -> Result<Leads, FieldError> {
        let mut needs = Needs::default();
        let mut context = self.compiler.context(&placed.resource.name, placed.path.clone(), &mut needs);
        context.stats = context.stats.scope(&subscription.stats_prefix);
        let leads = leads_to(&self.compiler, &placed.resource, &mut context)?;
        if matches!(leads, Leads::Named(_)) && subscription.routes.is_none() {
            return Err(context.error("Missing config source specifier in envoy::config::core::v3::ConfigSource"));
        }
        match self.unknown_cluster(&needs) {
            Some(error) => Err(error.in_resource(&placed.resource.name)),
            None => Ok(leads),
        }
    }

    fn remove_scope(&mut self, source: &str, name: &Arc<str>, change: &mut Change) {
        self.need_routes(source, name, None, change);
        self.ledger.remove(Kind::Scope, &scope_entry(source, name));
        let Some(set) = self.scopes.get_mut(source) else { return };
        let Some(scope) = set.by_name.remove(name) else { return };
        set.stats.vanishes(scope.on_demand, scope.active);
        set.by_key.remove(&scope.key);
        change.targets.push((scope.key, None));
    }

    /// A scope needs this route configuration from now on, and no other.
    fn need_routes(&mut self, source: &str, scope: &Arc<str>, routes: Option<&str>, change: &mut Change) {
        let subscription = self.scope_needs.subscription(source);
        let from = subscription.and_then(|of| Some((of.routes.clone()?, of.stats_prefix.clone())));
        let needs = routes
            .zip(from)
            .map(|(name, (source, stats_prefix))| (name.to_owned(), RouteSubscription { source, stats_prefix }));
        let owner = Owner::Scope(source.into(), Arc::clone(scope));
        change.released.extend(self.route_needs.set(&owner, &needs.into_iter().collect()));
    }

    /// The routes of what came first are waited for, and of nothing that comes later.
    fn note_first_scopes(&mut self, source: &str) {
        let Some(set) = self.scopes.get(source).filter(|set| matches!(set.first, First::Awaited)) else { return };
        let active = set.by_name.values().filter(|scope| scope.active).filter_map(|scope| scope.names.clone());
        let lacks = First::Lacks(active.filter(|name| !self.has_route(name)).collect());
        if let Some(set) = self.scopes.get_mut(source) {
            set.first = lacks;
        }
    }

    fn publish_scopes(&mut self, source: &str, change: Change) {
        let Change { targets, released } = change;
        // A chain that drains may use what no scope names any more.
        let over: Vec<Arc<str>> = released
            .into_iter()
            .filter(|name| !self.leaving.iter().any(|(_, kind, left)| *kind == Kind::Route && left == name))
            .filter(|name| self.route_needs.forget(name))
            .collect();
        over.iter().for_each(|name| self.end_routes(name));
        if targets.is_empty() && over.is_empty() {
            return;
        }
        self.publish(|snapshot| {
            let mut table: ScopeTable = snapshot.scopes.get(source).map(|table| (**table).clone()).unwrap_or_default();
            for (key, target) in targets {
                match target {
                    Some(target) => table.insert(key, target),
                    None => table.remove(&key),
                }
            }
            snapshot.scopes.insert(source.into(), Arc::new(table));
            over.iter().for_each(|name| {
                snapshot.routes.remove(name);
            });
        });
    }

    /// An exchange found no route in the scope of this key: its routes are asked for where they were not, and waited for.
    pub(super) fn demand_scope(&mut self, source: &Arc<str>, key: &[u8], seen: u64, done: oneshot::Sender<bool>) {
        let Some(set) = self.scopes.get_mut(source) else { return };
        let Some((name, scope)) = set.by_key.get(key).and_then(|name| Some((name, set.by_name.get_mut(name)?))) else {
            return;
        };
        let Some(routes) = scope.names.clone() else { return };
        if !std::mem::replace(&mut scope.active, true) {
            set.stats.wakes();
            let (name, key, mut change) = (Arc::clone(name), Arc::clone(&scope.key), Change::default());
            self.need_routes(source, &name, Some(&routes), &mut change);
            change.targets.push((key, Some(Target::Named(Arc::clone(&routes)))));
            self.publish_scopes(source, change);
        }
        let snapshot = self.shared.snapshot();
        if snapshot.routes.contains_key(&routes) {
            // Whoever is gone need not know.
            let _ = done.send(snapshot.version > seen);
        } else {
            self.waiting.join(&routes, done);
        }
    }

    /// They do not come, or what came is not good: listeners serve without.
    pub(super) fn go_on_without_scopes(&mut self, source: &str) {
        self.scope_needs.give_up(source);
        self.publish_warm_listeners();
    }

    /// Whether the scopes that these needs name came, with the routes of what came first.
    pub(super) fn has_scopes(&self, needs: &Needs) -> bool {
        let there = |name: &Arc<str>| self.has_route(name) || self.route_needs.is_given_up(name);
        needs.scopes.keys().all(|source| {
            self.scope_needs.is_given_up(source)
                || self.scopes.get(source.as_str()).is_some_and(|set| match &set.first {
                    First::Awaited => false,
                    First::Lacks(routes) => routes.iter().all(there),
                    First::There => true,
                })
        })
    }

    /// What listeners have been told to be there is there: nobody waits for it again.
    pub(super) fn settle_scopes(&mut self, needs: &Needs) {
        for source in needs.scopes.keys() {
            if let Some(set) = self.scopes.get_mut(source.as_str())
                && matches!(set.first, First::Lacks(_))
            {
                set.first = First::There;
            }
        }
    }

    /// The chains that used a source's scopes have drained.
    pub(super) fn forget_scopes(&mut self, source: &Arc<str>) {
        let mut change = Change::default();
        for name in self.scopes_beside(source, std::iter::empty()) {
            self.remove_scope(source, &name, &mut change);
        }
        self.publish_scopes(source, change);
        if let Some(set) = self.scopes.remove(source) {
            set.stats.ends();
        }
        self.ledger.forget_scopes(source);
        self.publish(|snapshot| {
            snapshot.scopes.remove(source);
        });
    }
}

/// What an update does to a set.
#[derive(Default)]
struct Change {
    /// Keys, and what they lead to now.
    targets: Vec<(Arc<[u8]>, Option<Target>)>,
    /// Route configurations that one scope less names.
    released: Vec<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use tidegate_filters::context::{ConfigSource, Wait};
    use tidegate_xds::FieldPath;
    use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
    use tidegate_xds::pb::envoy::config::route::v3::scoped_route_configuration::Key;
    use tidegate_xds::pb::envoy::config::route::v3::scoped_route_configuration::key::{Fragment, fragment};

    use super::*;
    use crate::config::store::testing::store;

    fn scope(name: &str, key: &str) -> Placed<ScopedRouteConfiguration> {
        let part = Fragment { r#type: Some(fragment::Type::StringKey(key.to_owned())) };
        let scope = ScopedRouteConfiguration {
            name: name.to_owned(),
            key: Some(Key { fragments: vec![part] }),
            route_configuration: Some(RouteConfiguration::default()),
            ..ScopedRouteConfiguration::default()
        };
        Placed::encoded(scope, FieldPath::root(), &"1".into())
    }

    fn new(name: &str, key: &str) -> ScopeCame {
        ScopeCame::New(Box::new(scope(name, key)))
    }

    /// A whole answer names every scope again: those that act are not read, and stand beside the others all the same.
    #[test]
    fn scopes_that_act_are_named_and_not_read_again() {
        let mut store = store();
        let ads = ConfigSource::Ads(Wait(None));
        let subscription =
            ScopesSubscription { name: "n".to_owned(), source: ads, routes: None, stats_prefix: String::new() };
        let mut needs = Needs::default();
        needs.scopes.insert("source".to_owned(), subscription);
        store.open_scopes(&needs);
        store.scope_needs.set(&Owner::Bootstrap, &needs.scopes);
        let mut update = |scopes: Vec<ScopeCame>| {
            let taken = store.update_scopes("source", &"1".into(), scopes, &[]).map_err(|error| error.reason);
            let acts = |name: &str, key: &str| store.has_scope("source", name, &scope(name, key).text.bytes);
            (taken, [acts("a", "1"), acts("b", "2"), acts("c", "3")])
        };
        let (a, b) = (|| ScopeCame::Same("a".into()), || new("b", "2"));
        assert_eq!(update(vec![new("a", "1"), b()]), (Ok(()), [true, true, false]));
        assert_eq!(update(vec![a(), new("c", "3")]), (Ok(()), [true, true, true]));
        let conflict = |scopes, first: &str, second: &str| {
            let reason = format!(
                "Error adding/updating scoped route(s): scope key conflict found, first scope is '{first}', second scope is '{second}'"
            );
            assert_eq!(update(scopes), (Err(reason), [true, true, true]));
        };
        let mut conflict = conflict;
        conflict(vec![a(), new("d", "1")], "a", "d");
        conflict(vec![new("d", "3"), new("e", "3")], "c", "d");
        let twice = update(vec![a(), a()]).0.unwrap_err();
        assert!(twice.ends_with("duplicate scoped route configuration 'a' found"), "{twice}");
    }
}
