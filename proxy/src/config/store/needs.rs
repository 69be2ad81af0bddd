//! Which resources others need by name, where those come from, and which of these needs have begun or ended since somebody
//! last asked: an update costs what it changed. It must not know what the resources hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use smallvec::SmallVec;
use tidegate_filters::context::{ConfigSource, ExtensionSubscription, RouteSubscription, ScopesSubscription};

use crate::cluster::Cluster;
use crate::config::bootstrap::file_of;

/// A need that has begun, changed or ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub name: Arc<str>,
    /// None: nobody needs it any more.
    pub source: Option<ConfigSource>,
    /// Whoever needs it begins anew: it is asked for once more.
    pub again: bool,
}

/// Names that moved; `true`: they are to be asked for again.
type Moves = BTreeMap<Arc<str>, bool>;

fn taken(moves: &mut Moves, source: impl Fn(&str) -> Option<ConfigSource>) -> Vec<Moved> {
    let moves = std::mem::take(moves).into_iter();
    moves.map(|(name, again)| Moved { source: source(&name), name, again }).collect()
}

/// The files among sources, by name.
type Files = BTreeMap<String, PathBuf>;

fn note_file(files: &mut Files, name: &str, source: Option<&ConfigSource>) {
    match source.and_then(file_of) {
        Some(file) => {
            files.insert(name.to_owned(), file);
        }
        None => {
            files.remove(name);
        }
    }
}

/// The services whose endpoints clusters need (EDS).
#[derive(Default)]
pub(crate) struct Services {
    by_name: HashMap<Arc<str>, Service>,
    /// Where the last one came from: most come from one place.
    last_source: Option<Arc<ConfigSource>>,
    moves: Moves,
    files: Files,
}

struct Service {
    source: Arc<ConfigSource>,
    /// Those that serve and those that warm.
    users: SmallVec<[Arc<Cluster>; 1]>,
}

impl Service {
    /// Whether a cluster of this name uses it.
    fn has(&self, cluster: &Cluster) -> bool {
        self.users.iter().any(|user| user.name() == cluster.name())
    }
}

impl Services {
    /// Whether clusters of other names have it from somewhere else: there is one of a name so far.
    pub(super) fn is_from_elsewhere(&self, name: &str, source: &ConfigSource, cluster: &str) -> bool {
        let known = self.by_name.get(name).filter(|service| !same(&service.source, source));
        known.is_some_and(|service| service.users.iter().any(|user| &**user.name() != cluster))
    }

    /// A cluster needs it from there.
    pub(super) fn enter(&mut self, name: &Arc<str>, source: ConfigSource, cluster: &Arc<Cluster>) {
        let is_new = self.by_name.get(name).is_none_or(|service| *service.source != source);
        if is_new {
            note_file(&mut self.files, name, Some(&source));
            self.moves.entry(Arc::clone(name)).or_default();
        }
        let source = match &self.last_source {
            Some(last) if **last == source => Arc::clone(last),
            _ => Arc::clone(self.last_source.insert(Arc::new(source))),
        };
        let service = self
            .by_name
            .entry(Arc::clone(name))
            .or_insert_with(|| Service { source: Arc::clone(&source), users: SmallVec::new() });
        service.source = source;
        if !service.has(cluster) {
            self.moves.entry(Arc::clone(name)).or_default();
        }
        service.users.push(Arc::clone(cluster));
    }

    /// It begins to wait for it: it is asked for again where it was before.
    pub(super) fn begin_again(&mut self, name: &Arc<str>) {
        self.moves.insert(Arc::clone(name), true);
    }

    /// A cluster needs it no more; true when it was the last one.
    pub(super) fn leave(&mut self, name: &str, cluster: &Arc<Cluster>) -> bool {
        let Some(service) = self.by_name.get_mut(name) else { return false };
        service.users.retain(|user| !Arc::ptr_eq(user, cluster));
        if !service.users.is_empty() {
            if !service.has(cluster) {
                self.moves.entry(name.into()).or_default();
            }
            return false;
        }
        if let Some((name, _)) = self.by_name.remove_entry(name) {
            self.moves.insert(name, false);
        }
        note_file(&mut self.files, name, None);
        true
    }

    pub(crate) fn is_needed(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The clusters that use it.
    pub(super) fn users(&self, name: &str) -> &[Arc<Cluster>] {
        self.by_name.get(name).map_or(&[], |service| &service.users)
    }

    /// Those that come from files.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// What has moved since this was last asked.
    pub(super) fn take_moved(&mut self) -> Vec<Moved> {
        let Self { by_name, moves, .. } = self;
        taken(moves, |name| by_name.get(name).map(|service| (*service.source).clone()))
    }
}

fn same(one: &ConfigSource, other: &ConfigSource) -> bool {
    one == other || one.clone().without_wait() == other.clone().without_wait()
}

/// What is said of something that is asked for by name.
pub(crate) trait Subscription: Clone {
    fn source(&self) -> &ConfigSource;
}

impl Subscription for ConfigSource {
    fn source(&self) -> &ConfigSource {
        self
    }
}

impl Subscription for ExtensionSubscription {
    fn source(&self) -> &ConfigSource {
        &self.source
    }
}

impl Subscription for RouteSubscription {
    fn source(&self) -> &ConfigSource {
        &self.source
    }
}

impl Subscription for ScopesSubscription {
    fn source(&self) -> &ConfigSource {
        &self.source
    }
}

/// Who needs something by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Bootstrap,
    Listener(Arc<str>),
    /// The listener that takes the place of the one of this name once it is warm.
    NextListener(Arc<str>),
    Cluster(Arc<str>),
    /// The cluster that takes the place of the one of this name once it is warm.
    NextCluster(Arc<str>),
    /// A scope of routes, of a source.
    Scope(Arc<str>, Arc<str>),
    /// A route configuration.
    Routes(Arc<str>),
}

/// Resources of one kind that owners name: route configurations, filters' configurations, layers of the runtime.
pub(crate) struct Wanted<S> {
    by_name: HashMap<Arc<str>, Want<S>>,
    by_owner: HashMap<Owner, BTreeSet<Arc<str>>>,
    moves: Moves,
    files: Files,
}

struct Want<S> {
    subscription: S,
    owners: usize,
    /// It was waited for long enough.
    given_up: bool,
}

impl<S> Default for Wanted<S> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), by_owner: HashMap::new(), moves: Moves::new(), files: Files::new() }
    }
}

impl<S: Subscription> Wanted<S> {
    /// What an owner needs from now on; returns what no owner names any more. That is followed until it is forgotten: chains
    /// that drain still use it.
    pub(super) fn set(&mut self, owner: &Owner, needs: &BTreeMap<String, S>) -> Vec<Arc<str>> {
        let now: BTreeSet<Arc<str>> = needs.keys().map(|name| name.as_str().into()).collect();
        let before =
            if now.is_empty() { self.by_owner.remove(owner) } else { self.by_owner.insert(owner.clone(), now.clone()) };
        let before = before.unwrap_or_default();
        for (name, subscription) in needs {
            self.begin(name, subscription, !before.contains(name.as_str()));
        }
        let ended = before.difference(&now).filter(|name| self.end(name));
        ended.cloned().collect::<Vec<_>>()
    }

    /// What one owner needs is another's need from now on; returns what no owner names any more.
    pub(super) fn pass(&mut self, from: &Owner, to: Owner) -> Vec<Arc<str>> {
        let now = self.by_owner.remove(from).unwrap_or_default();
        let before = if now.is_empty() { self.by_owner.remove(&to) } else { self.by_owner.insert(to, now) };
        before.into_iter().flatten().filter(|name| self.end(name)).collect()
    }

    /// A name that others than these owners have from somewhere else: there is one of a name so far.
    pub(super) fn had_from_elsewhere<'a>(&self, needs: &'a BTreeMap<String, S>, owners: &[Owner]) -> Option<&'a str> {
        let is_others = |name: &str| {
            let mut others = self.by_owner.iter().filter(|(owner, _)| !owners.contains(owner));
            others.any(|(_, names)| names.contains(name))
        };
        let mut elsewhere = needs.iter().filter(|(name, subscription)| {
            let known = self.by_name.get(name.as_str());
            known.is_some_and(|known| !same(known.subscription.source(), subscription.source())) && is_others(name)
        });
        elsewhere.next().map(|(name, _)| name.as_str())
    }

    fn begin(&mut self, name: &str, subscription: &S, one_more: bool) {
        let known = self.by_name.get_mut(name);
        let is_new = known.as_ref().is_none_or(|need| need.subscription.source() != subscription.source());
        if is_new {
            note_file(&mut self.files, name, Some(subscription.source()));
            self.moves.entry(name.into()).or_default();
        }
        match known {
            Some(need) => {
                need.subscription = subscription.clone();
                need.owners += usize::from(one_more);
            }
            None => {
                let need = Want { subscription: subscription.clone(), owners: 1, given_up: false };
                self.by_name.insert(name.into(), need);
            }
        }
    }

    /// One owner less names it; true when it was the last one.
    fn end(&mut self, name: &str) -> bool {
        let Some(need) = self.by_name.get_mut(name) else { return false };
        need.owners = need.owners.saturating_sub(1);
        need.owners == 0
    }

    /// The chains that used it have drained; false where an owner has named it since.
    pub(super) fn forget(&mut self, name: &Arc<str>) -> bool {
        if self.by_name.get(name).is_none_or(|need| need.owners > 0) {
            return false;
        }
        self.by_name.remove(name);
        note_file(&mut self.files, name, None);
        self.moves.insert(Arc::clone(name), false);
        true
    }

    pub(crate) fn is_needed(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// What its owners say of it.
    pub(crate) fn subscription(&self, name: &str) -> Option<&S> {
        self.by_name.get(name).map(|need| &need.subscription)
    }

    /// Nobody waits for it any longer.
    pub(super) fn give_up(&mut self, name: &str) {
        if let Some(need) = self.by_name.get_mut(name) {
            need.given_up = true;
        }
    }

    pub(super) fn is_given_up(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|need| need.given_up)
    }

    /// Everything that is needed.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    /// Those that come from files.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// What has moved since this was last asked.
    pub(super) fn take_moved(&mut self) -> Vec<Moved> {
        let Self { by_name, moves, .. } = self;
        taken(moves, |name| by_name.get(name).map(|need| need.subscription.source().clone()))
    }
}

#[cfg(test)]
mod tests {
    use tidegate_filters::context::Wait;
    use tidegate_filters::runtime::NoRuntime;

    use super::*;
    use crate::config::cluster::testing::cluster as compiled;

    fn moved(name: &str, source: Option<ConfigSource>, again: bool) -> Moved {
        Moved { name: name.into(), source, again }
    }

    #[test]
    fn a_service_is_needed_while_a_cluster_uses_it() {
        let stats = tidegate_stats::Store::new().root();
        let cluster = || Cluster::new(compiled("{name: a}").config, None, &stats, &NoRuntime, 7);
        let (first, second, name, ads) = (cluster(), cluster(), Arc::from("s"), ConfigSource::Ads(Wait(None)));
        let mut services = Services::default();
        services.enter(&name, ads.clone(), &first);
        assert_eq!(services.take_moved(), [moved("s", Some(ads.clone()), false)]);
        services.enter(&name, ads.clone(), &second);
        assert_eq!(services.take_moved(), []);
        services.begin_again(&name);
        assert_eq!(services.take_moved(), [moved("s", Some(ads), true)]);
        assert!(!services.leave("s", &first) && services.users("s").len() == 1);
        assert!(services.leave("s", &second) && !services.is_needed("s"));
        assert_eq!(services.take_moved(), [moved("s", None, false)]);
    }

    #[test]
    fn routes_are_needed_while_a_listener_names_them() {
        let file = ConfigSource::File { path: "r.yaml".into(), watched_directory: None };
        let needs = |names: &[&str]| {
            let subscription = RouteSubscription { source: file.clone(), stats_prefix: String::new() };
            names.iter().map(|name| ((*name).to_owned(), subscription.clone())).collect::<BTreeMap<_, _>>()
        };
        let (one, other) = (Owner::Listener("one".into()), Owner::Scope("one".into(), "other".into()));
        let mut routes = Wanted::default();
        assert!(routes.set(&one, &needs(&["a", "b"])).is_empty());
        assert!(routes.set(&other, &needs(&["b"])).is_empty());
        assert_eq!(routes.take_moved().len(), 2);
        assert_eq!(routes.set(&one, &needs(&["b"])), [Arc::from("a")]);
        assert!(routes.take_moved().is_empty() && routes.is_needed("a") && !routes.forget(&"b".into()));
        assert!(routes.forget(&"a".into()));
        assert_eq!(routes.take_moved(), [moved("a", None, false)]);
        assert_eq!(routes.files().keys().collect::<Vec<_>>(), ["b"]);
        assert!(routes.set(&one, &needs(&[])).is_empty());
        routes.give_up("b");
        assert!(routes.is_given_up("b"));
        // Another's of that name, from somewhere else, would be taken for it.
        let ads = RouteSubscription { source: ConfigSource::Ads(Wait(None)), stats_prefix: String::new() };
        let elsewhere = BTreeMap::from([("b".to_owned(), ads)]);
        assert_eq!(routes.had_from_elsewhere(&elsewhere, std::slice::from_ref(&other)), None);
        assert_eq!(routes.had_from_elsewhere(&elsewhere, std::slice::from_ref(&one)), Some("b"));
        assert_eq!(routes.had_from_elsewhere(&needs(&["b"]), std::slice::from_ref(&one)), None);
        assert_eq!(routes.set(&other, &needs(&[])), [Arc::from("b")]);
        // What is to come is needed beside what is there, until it takes its place.
        let (now, next) = (Owner::Cluster("c".into()), Owner::NextCluster("c".into()));
        assert!(routes.set(&now, &needs(&["d", "e"])).is_empty() && routes.set(&next, &needs(&["e", "f"])).is_empty());
        assert_eq!(routes.pass(&next, now.clone()), [Arc::from("d")]);
        assert!(routes.pass(&next, now.clone()).len() == 2, "nothing takes its place");
        assert!(routes.forget(&"b".into()));
        assert!(!routes.is_needed("b") && !routes.is_given_up("b"));
    }
}
