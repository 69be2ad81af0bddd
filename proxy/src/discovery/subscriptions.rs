//! What is counted of what control planes are asked for, a subscription each. It must not know what comes, nor how.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_control::client::Update;
use tidegate_stats::Scope;

use crate::config::origin::name_of;
use crate::config::store::{Absent, Kind, Store, routes_of};
use crate::stats::subscription::{Subscription, Update as Outcome};

/// What is counted of each subscription, and the names that came without being asked for by name.
pub(super) struct Subscriptions {
    root: Scope,
    pub(super) clusters: Option<Subscription>,
    listeners: Option<Subscription>,
    /// Of what is asked for by name, but endpoints: clusters count those.
    named: HashMap<(Kind, Arc<str>), Subscription>,
    pub(super) cluster_names: BTreeSet<Arc<str>>,
    pub(super) listener_names: BTreeSet<Arc<str>>,
    /// What is polled for: a poll is an attempt. On a stream, the answer to what came asks for more.
    polled: HashSet<(Kind, Arc<str>)>,
}

impl Subscriptions {
    pub(super) fn new(root: &Scope) -> Self {
        Self {
            root: root.clone(),
            clusters: None,
            listeners: None,
            named: HashMap::new(),
            cluster_names: BTreeSet::new(),
            listener_names: BTreeSet::new(),
            polled: HashSet::new(),
        }
    }

    /// A subscription begins.
    pub(super) fn begin(&mut self, kind: Kind, name: &Arc<str>, store: &Store) {
        match kind {
            Kind::Cluster => {
                self.clusters = Some(Subscription::with_reloads(&self.root.scope("cluster_manager.cds.")));
            }
            Kind::Listener => self.listeners = Some(Subscription::new(&self.root.scope("listener_manager.lds."))),
            Kind::Route | Kind::Runtime | Kind::Extension | Kind::Scope | Kind::VirtualHost | Kind::Secret => {
                let stats = store.subscription_stats(kind, name);
                self.named.extend(stats.map(|stats| ((kind, Arc::clone(name)), stats)));
            }
            Kind::Endpoints => {}
        }
        if !kind.is_whole() {
            store.ledger().asks(kind, name);
        }
        self.asked_on_stream(kind, name, store);
    }

    /// Whether it is polled for from now on.
    pub(super) fn set_polled(&mut self, kind: Kind, name: &str, polled: bool) {
        if polled {
            self.polled.insert((kind, name.into()));
        } else if !self.polled.is_empty() {
            self.polled.remove(&(kind, name.into()));
        }
    }

    /// It is asked for.
    pub(super) fn asked(&self, kind: Kind, name: &str, store: &Store) {
        match self.of(kind, name) {
            Some(stats) => stats.asked(),
            None if kind == Kind::Endpoints => store.asked_assignment(name),
            None => {}
        }
    }

    pub(super) fn asked_on_stream(&self, kind: Kind, name: &str, store: &Store) {
        if !self.is_polled(kind, name) {
            self.asked(kind, name, store);
        }
    }

    fn is_polled(&self, kind: Kind, name: &str) -> bool {
        !self.polled.is_empty() && self.polled.contains(&(kind, Arc::from(name)))
    }

    pub(super) fn of(&self, kind: Kind, name: &str) -> Option<&Subscription> {
        match kind {
            Kind::Cluster => self.clusters.as_ref(),
            Kind::Listener => self.listeners.as_ref(),
            Kind::Endpoints => None,
            Kind::Route | Kind::Runtime | Kind::Extension | Kind::Scope | Kind::VirtualHost | Kind::Secret => {
                self.named.get(&(kind, name.into()))
            }
        }
    }

    pub(super) fn count(&self, kind: Kind, name: &str, outcome: &Outcome, store: &Store, now: SystemTime) {
        self.asked_on_stream(kind, name, store);
        if kind == Kind::Endpoints {
            store.count_assignment(name, outcome, now);
        } else if let Some(stats) = self.of(kind, name) {
            stats.count(outcome, now);
        }
    }

    /// An update took so long to take in.
    pub(super) fn took(&self, kind: Kind, update: &Update, scopes: Option<&str>, time: Duration, store: &Store) {
        // Polls do not measure it, as in Envoy.
        let names = names_of(update).into_iter().filter(|name| !self.is_polled(kind, name));
        match kind {
            Kind::Cluster | Kind::Listener if self.is_polled(kind, "") => {}
            Kind::Cluster | Kind::Listener => {
                if let Some(stats) = self.of(kind, "") {
                    stats.took(time);
                }
            }
            Kind::Scope => {
                let stats =
                    scopes.filter(|source| !self.is_polled(kind, source)).and_then(|source| self.of(kind, source));
                stats.into_iter().for_each(|stats| stats.took(time));
            }
            Kind::VirtualHost => {
                let routes: BTreeSet<&str> = names.filter_map(routes_of).collect();
                routes.into_iter().filter_map(|name| self.of(kind, name)).for_each(|stats| stats.took(time));
            }
            Kind::Endpoints => names.for_each(|name| store.assignment_took(name, time)),
            Kind::Route | Kind::Runtime | Kind::Extension | Kind::Secret => {
                names.filter_map(|name| self.of(kind, name)).for_each(|stats| stats.took(time))
            }
        }
    }

    /// Counts what became of everything that a stream carries.
    pub(super) fn count_all(&self, all: &[(Kind, Arc<str>)], outcome: &Outcome, store: &Store, now: SystemTime) {
        all.iter().for_each(|(kind, name)| self.count(*kind, name, outcome, store, now));
    }

    /// Sets that were filled in order are half empty.
    pub(super) fn compact(&mut self) {
        for names in [&mut self.cluster_names, &mut self.listener_names] {
            *names = std::mem::take(names).into_iter().collect();
        }
    }

    /// What nobody asks for any more is not counted any more.
    pub(super) fn forget(&mut self, kind: Kind, name: &str) {
        self.set_polled(kind, name, false);
        self.named.remove(&(kind, name.into()));
    }

    /// What was asked for did not come in time: what waits for it goes on without.
    pub(super) fn timed_out(&self, kind: Kind, name: &str, store: &mut Store) {
        tracing::warn!(?kind, name = name_of(name), "gave up waiting for the first answer");
        self.asked_on_stream(kind, name, store);
        match self.of(kind, name) {
            Some(stats) => stats.fetch_timed_out(),
            None => store.assignment_timed_out(name),
        }
        store.ledger().lacks(kind, name, Absent::TimedOut);
        store.go_on_without(kind, name);
    }
}

/// The names in an update, each once.
pub(super) fn names_of(update: &Update) -> BTreeSet<&str> {
    update.resources.iter().map(|resource| resource.name.as_str()).collect()
}
