//! A source with the endpoints of registries beside what it gives: who is followed, and how long what is new waits for them. It
//! must not know how a registry is asked.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::follow::{self, Found};
use super::whole::Whole;
use super::{Registries, instance};
use crate::server::{Resource, Sets};
use crate::source::{Refused, Source};

/// How long what is new waits for the endpoints that it names: proxies are to get clusters that they can use. A service that
/// was waited for once is not waited for again.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A source with the endpoints of registries beside what it gives.
#[derive(Debug)]
pub struct Registered {
    /// What the source behind gives. It has a task of its own: what registries say must not begin its waiting anew.
    given_behind: mpsc::Receiver<Result<Arc<Sets>, Refused>>,
    behind: JoinHandle<()>,
    registries: Registries,
    /// What the source behind gave last, with the endpoints that are known.
    whole: Option<Whole>,
    services: HashMap<Arc<str>, Service>,
    /// Those that everything waits for.
    awaited: BTreeSet<Arc<str>>,
    /// Until when; the moment does not move while there are any.
    waits_until: Option<Instant>,
    pub(super) found: mpsc::Receiver<Found>,
    pub(super) finding: mpsc::Sender<Found>,
    /// What was given last.
    given: Option<Arc<Sets>>,
    /// The source behind refused something before what it has now, which is news even where it is the same as before that.
    mended: bool,
    refused: bool,
}

/// A service that is followed.
#[derive(Debug)]
struct Service {
    task: JoinHandle<()>,
    endpoints: Option<Arc<Resource>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.behind.abort();
    }
}

impl Registered {
    /// `behind` has to let its resources name services of these registries; it runs in a task, so this needs a runtime.
    pub fn new(mut behind: impl Source + 'static, registries: Registries) -> Self {
        let (finding, found) = mpsc::channel(64);
        let (giving, given_behind) = mpsc::channel(1);
        let behind = tokio::spawn(async move { while giving.send(behind.next().await).await.is_ok() {} });
        Self {
            given_behind,
            behind,
            registries,
            whole: None,
            services: HashMap::new(),
            awaited: BTreeSet::new(),
            waits_until: None,
            found,
            finding,
            given: None,
            mended: false,
            refused: false,
        }
    }

    /// Whether nobody needs any service.
    #[cfg(test)]
    pub(super) fn follows_nothing(&self) -> bool {
        self.services.is_empty()
    }

    /// Follows what is named now, and nothing else.
    fn follow(&mut self, base: &Sets) {
        let mut whole = Whole::new(base, &self.registries);
        self.services.retain(|name, _| whole.names(name));
        self.awaited.retain(|name| whole.names(name));
        for endpoints in self.services.values().filter_map(|service| service.endpoints.as_ref()) {
            whole.insert(endpoints);
        }
        let new = whole.services().filter(|name| !self.services.contains_key(*name));
        for name in new.cloned().collect::<Vec<_>>() {
            let Some((registry, service)) = self.registries.of(&name) else { continue };
            let (registry, service, finding) = (Arc::clone(registry), service.to_owned(), self.finding.clone());
            let task = tokio::spawn(follow::run(registry, service, Arc::clone(&name), finding));
            self.awaited.insert(Arc::clone(&name));
            self.services.insert(name, Service { task, endpoints: None });
        }
        self.whole = Some(whole);
        self.waits_until = self.waits_until.or(Some(Instant::now() + PATIENCE));
    }

    fn take(&mut self, Found { name, instances }: Found) {
        // What nobody needs any more may still have been under way.
        let Some(service) = self.services.get_mut(&name) else { return };
        match instance::assignment(&name, &instances) {
            Ok(resource) => {
                let resource = Arc::new(resource);
                if let Some(whole) = &mut self.whole {
                    whole.insert(&resource);
                }
                service.endpoints = Some(resource);
                self.awaited.remove(&name);
            }
            Err(reason) => tracing::error!(service = %name, reason, "what the registry says cannot be served"),
        }
    }

    /// Waits no longer for those that have not been told of.
    fn give_up(&mut self) {
        for name in std::mem::take(&mut self.awaited) {
            tracing::warn!(service = %name, "its registry has not told of it yet: served without it");
        }
    }

    /// All together, if that is other than what was given last, and nothing is waited for.
    fn give(&mut self) -> Option<Arc<Sets>> {
        if !self.awaited.is_empty() {
            return None;
        }
        self.waits_until = None;
        let sets = self.whole.as_mut()?.since(self.given.as_deref());
        // The first are given although they are empty.
        if !std::mem::take(&mut self.mended) && self.given.as_ref().is_some_and(|given| same(sets, given)) {
            return None;
        }
        let sets = Arc::new(sets.clone());
        self.given = Some(Arc::clone(&sets));
        Some(sets)
    }
}

fn same(one: &Sets, other: &Sets) -> bool {
    let groups = || one.groups.iter().zip(&other.groups);
    one.groups.len() == other.groups.len()
        && groups().all(|(one, other)| one.name == other.name && one.pattern == other.pattern)
        && one.all().zip(other.all()).all(|((_, one), (_, other))| one.version() == other.version())
}

impl Source for Registered {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        loop {
            let waits_until = self.waits_until.filter(|_| !self.awaited.is_empty());
            let given_up = async {
                match waits_until {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(told) = self.given_behind.recv() => {
                    self.mended |= std::mem::replace(&mut self.refused, told.is_err());
                    let sets = told?;
                    self.follow(&sets);
                }
                Some(found) = self.found.recv() => {
                    self.take(found);
                    // Several often come at once.
                    while let Ok(found) = self.found.try_recv() {
                        self.take(found);
                    }
                }
                () = given_up => self.give_up(),
            }
            if let Some(sets) = self.give() {
                return Ok(sets);
            }
        }
    }
}
