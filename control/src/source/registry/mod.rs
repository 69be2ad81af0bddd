//! Endpoints out of service registries. An EDS cluster whose service is called `NAME/SERVICE` gets what the registry NAME says of
//! SERVICE; everything else is as the source behind it says. What a registry said last is served on while it cannot be asked.
//! It must not know how a registry is asked.

mod client;
mod consul;
mod dns;
mod follow;
mod instance;
mod json;
mod nacos;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use self::consul::Consul;
use self::dns::Dns;
use self::follow::Found;
use self::instance::Instance;
use self::nacos::Nacos;
use self::turns::Turns;
use super::{Refused, Source};
use crate::server::resource_set::Reference;
use crate::server::{Group, Resource, ResourceSet, ResourceType, Sets};

/// How long what is new waits for the endpoints that it names: proxies are to get clusters that they can use. A service that
/// was waited for once is not waited for again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a registry cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("registry '{name}': {reason}")]
pub struct RegistryError {
    /// Of the registry; its URL is not told, since there may be a secret in it.
    pub name: String,
    pub reason: String,
}

/// A service registry, and the name that clusters call it by.
#[derive(Debug)]
pub struct Registry {
    pub(crate) name: Arc<str>,
    kind: Kind,
    turns: Turns,
}

#[derive(Debug)]
enum Kind {
    Consul(Consul),
    Nacos(Nacos),
    Dns(Dns),
}

/// Where a follower of one service stands: what the registry gave to tell the newer from the older; 0: nothing yet.
type Cursor = u64;

/// What a registry answered.
#[derive(Debug)]
struct Answer {
    /// None: nothing is new.
    told: Option<Told>,
    /// How long it holds: then it is asked again.
    holds: Duration,
    /// Whether it says that it is of a time to come.
    ahead: bool,
}

/// What a registry says of a service.
#[derive(Debug)]
struct Told {
    instances: Vec<Instance>,
    /// How many there were that cannot be reached: without an IP address and a port.
    left_out: usize,
}

impl Answer {
    fn unchanged(holds: Duration) -> Self {
        Self { told: None, holds, ahead: false }
    }

    /// `read`: none for what cannot be reached.
    fn of<T>(found: impl IntoIterator<Item = T>, read: impl Fn(T) -> Option<Instance>, holds: Duration) -> Self {
        let (mut instances, mut left_out) = (Vec::new(), 0);
        for found in found {
            match read(found) {
                Some(instance) => instances.push(instance),
                None => left_out += 1,
            }
        }
        Self { told: Some(Told { instances, left_out }), holds, ahead: false }
    }
}

/// Why a registry did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct Fault(String);

impl Fault {
    fn new(what: impl std::fmt::Display) -> Self {
        Self(what.to_string())
    }
}

impl Registry {
    /// From `NAME=URL`, or from a URL, whose scheme is the name then: `consul://HOST[:PORT][?dc=…&tag=…&stale=true]`,
    /// `nacos://HOST[:PORT][/CONTEXT][?namespace=…&clusters=…]`, `dns://[SERVER[:PORT]]`. `token`: what a registry is to be
    /// shown.
    ///
    /// # Errors
    /// What is no such URL.
    pub fn parse(text: &str, token: Option<&str>) -> Result<Self, RegistryError> {
        let refused = |reason: String| RegistryError { name: name_of(text).to_owned(), reason };
        let (name, url) = parts(text);
        let (scheme, rest) = url.split_once("://").ok_or_else(|| refused("expected SCHEME://HOST".to_owned()))?;
        let name = name.unwrap_or(scheme);
        if name.is_empty() || name.contains('/') {
            return Err(refused("a name without '/' is required".to_owned()));
        }
        if rest.contains('#') {
            return Err(refused("nothing can be done with what follows the '#'".to_owned()));
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            let reason = "no user and no password can stand before the host; --registry-token-file has a token";
            return Err(refused(reason.to_owned()));
        }
        let uri = || format!("http://{rest}").parse::<Uri>().map_err(|error| refused(error.to_string()));
        let kind = match scheme {
            "consul" => Consul::new(&uri()?, token).map(Kind::Consul),
            "nacos" => Nacos::new(&uri()?, token).map(Kind::Nacos),
            "dns" => Dns::new(rest).map(Kind::Dns),
            other => Err(format!("'{other}' is no kind of registry; there are consul, nacos and dns")),
        };
        Ok(Self { name: name.into(), kind: kind.map_err(refused)?, turns: Turns::default() })
    }

    /// Asks once, and waits a while for something new where the registry lets one.
    async fn ask(&self, service: &str, cursor: &mut Cursor) -> Result<Answer, Fault> {
        // Who knows nothing yet has nothing to wait for.
        let knows = matches!(self.kind, Kind::Consul(_)) && *cursor > 0;
        let turn = if knows { self.turns.any().await } else { self.turns.short().await };
        let mut answer = match &self.kind {
            Kind::Consul(consul) => consul.ask(service, cursor, turn.waits).await?,
            Kind::Nacos(nacos) => nacos.ask(service, cursor).await?,
            Kind::Dns(dns) => dns.ask(service).await?,
        };
        if knows && !turn.waits {
            answer.holds = answer.holds.max(self.turns.rotation());
        }
        Ok(answer)
    }
}

/// The name, where there is one, and the URL.
fn parts(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        // An equals sign may also stand in what follows the question mark.
        Some((name, url)) if !name.contains([':', '/', '?']) => (Some(name), url),
        _ => (None, text),
    }
}

/// What a registry is called by its `NAME=URL` or URL.
pub fn name_of(text: &str) -> &str {
    let (name, url) = parts(text);
    name.unwrap_or_else(|| url.split([':', '/', '?', '#', '@']).next().unwrap_or_default())
}

/// Reads a token: a file's first line.
///
/// # Errors
/// It cannot be read, or there is none in it.
pub fn token(path: &Path) -> Result<String, String> {
    first_line(path, "token")
}

/// Reads a secret: a file's first line. `what` it is called in errors.
pub(super) fn first_line(path: &Path, what: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let first = text.lines().next().map(str::trim).unwrap_or_default();
    if first.is_empty() { Err(format!("there is no {what} in {}", path.display())) } else { Ok(first.to_owned()) }
}

/// The registries by name.
#[derive(Debug, Clone, Default)]
pub struct Registries(BTreeMap<Arc<str>, Arc<Registry>>);

impl Registries {
    /// # Errors
    /// Two of one name.
    pub fn new(registries: Vec<Registry>) -> Result<Self, RegistryError> {
        let mut all = BTreeMap::new();
        for registry in registries {
            let name = Arc::clone(&registry.name);
            if all.insert(Arc::clone(&name), Arc::new(registry)).is_some() {
                let reason = "there is another one of this name; name it with NAME=URL".to_owned();
                return Err(RegistryError { name: name.to_string(), reason });
            }
        }
        Ok(Self(all))
    }

    /// Whether a reference is to endpoints that one of these has.
    pub(super) fn have(&self, reference: &Reference) -> bool {
        reference.to == ResourceType::ENDPOINTS && self.of(&reference.name).is_some()
    }

    /// The registry of a service, and what it is called there.
    fn of<'a>(&self, service: &'a str) -> Option<(&Arc<Registry>, &'a str)> {
        let (name, service) = service.split_once('/')?;
        self.0.get(name).map(|registry| (registry, service)).filter(|_| !service.is_empty())
    }
}

/// A source with the endpoints of registries beside what it gives.
#[derive(Debug)]
pub struct Registered {
    /// What the source behind gives. It has a task of its own: what registries say must not begin its waiting anew.
    given_behind: mpsc::Receiver<Result<Arc<Sets>, Refused>>,
    behind: JoinHandle<()>,
    registries: Registries,
    /// What the source behind gave last.
    base: Option<Arc<Sets>>,
    services: HashMap<Arc<str>, Service>,
    found: mpsc::Receiver<Found>,
    finding: mpsc::Sender<Found>,
    /// What was given last.
    given: Option<Arc<Sets>>,
    /// The source behind refused something before what it has now, which is news even where it is the same as before that.
    mended: bool,
    refused: bool,
    /// Until when everything waits for endpoints; the moment does not move while it waits.
    waits_until: Option<Instant>,
}

/// A service that is followed.
#[derive(Debug)]
struct Service {
    task: JoinHandle<()>,
    endpoints: Endpoints,
}

/// What is known of a service.
#[derive(Debug)]
enum Endpoints {
    /// Nothing yet: what names it waits.
    Awaited,
    /// Nothing within its time: it counts as one that is not there.
    Absent,
    Known(Arc<Resource>),
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
            base: None,
            services: HashMap::new(),
            found,
            finding,
            given: None,
            mended: false,
            refused: false,
            waits_until: None,
        }
    }

    /// Follows what is named now, and nothing else.
    fn follow(&mut self, base: Arc<Sets>) {
        let needed: BTreeSet<Arc<str>> = base.all().flat_map(|(_, set)| needed(set, &self.registries)).collect();
        self.services.retain(|name, _| needed.contains(name));
        for name in needed {
            let Some((registry, service)) = self.registries.of(&name) else { continue };
            let (registry, service, finding) = (Arc::clone(registry), service.to_owned(), self.finding.clone());
            self.services.entry(Arc::clone(&name)).or_insert_with(|| Service {
                task: tokio::spawn(follow::run(registry, service, name, finding)),
                endpoints: Endpoints::Awaited,
            });
        }
        self.base = Some(base);
        self.waits_until = self.waits_until.or(Some(Instant::now() + PATIENCE));
    }

    /// Waits no longer for those that have not been told of.
    fn give_up(&mut self) {
        self.waits_until = None;
        let awaited = |(_, service): &(&Arc<str>, &mut Service)| matches!(service.endpoints, Endpoints::Awaited);
        for (name, service) in self.services.iter_mut().filter(awaited) {
            tracing::warn!(service = %name, "its registry has not told of it yet: served without it");
            service.endpoints = Endpoints::Absent;
        }
    }

    fn take(&mut self, Found { name, instances }: Found) {
        // What nobody needs any more may still have been under way.
        let Some(service) = self.services.get_mut(&name) else { return };
        match instance::assignment(&name, &instances) {
            Ok(resource) => service.endpoints = Endpoints::Known(Arc::new(resource)),
            Err(reason) => tracing::error!(service = %name, reason, "what the registry says cannot be served"),
        }
    }

    fn waits(&self) -> bool {
        self.services.values().any(|service| matches!(service.endpoints, Endpoints::Awaited))
    }

    /// All together, if that is other than what was given last.
    fn assemble(&mut self) -> Option<Arc<Sets>> {
        if self.waits() {
            return None;
        }
        self.waits_until = None;
        let base = self.base.as_ref()?;
        let nothing = Arc::default();
        let before = self.given.as_ref().unwrap_or(&nothing);
        let whole = |set: &Arc<ResourceSet>, before: Option<&Arc<ResourceSet>>| {
            let endpoints =
                needed(set, &self.registries).filter_map(|name| match &self.services.get(&name)?.endpoints {
                    Endpoints::Known(endpoints) => Some(Arc::clone(endpoints)),
                    Endpoints::Awaited | Endpoints::Absent => None,
                });
            let mut whole = ResourceSet::clone(set);
            endpoints.for_each(|endpoints| whole.insert(endpoints));
            match before {
                Some(before) if before.version() == whole.version() => Arc::clone(before),
                _ => Arc::new(whole),
            }
        };
        let rest = whole(&base.rest, Some(&before.rest));
        let groups = base.groups.iter().map(|group| {
            let before = before.groups.iter().find(|other| other.name == group.name).map(|group| &group.set);
            Group { set: whole(&group.set, before), ..group.clone() }
        });
        let sets = Sets { rest, groups: groups.collect() };
        // The first are given although they are empty.
        if !std::mem::take(&mut self.mended) && self.given.as_ref().is_some_and(|given| same(&sets, given)) {
            return None;
        }
        let sets = Arc::new(sets);
        self.given = Some(Arc::clone(&sets));
        Some(sets)
    }
}

/// The services of registries that a set names and does not hold itself.
fn needed<'a>(set: &'a ResourceSet, registries: &'a Registries) -> impl Iterator<Item = Arc<str>> + 'a {
    let references = set.kind(ResourceType::CLUSTER).iter().flat_map(|cluster| &cluster.references);
    let ours = references.filter(|reference| registries.have(reference));
    let held = |name: &str| set.kind(ResourceType::ENDPOINTS).get(name).is_some();
    ours.map(|reference| Arc::clone(&reference.name)).filter(move |name| !held(name))
}

fn same(one: &Sets, other: &Sets) -> bool {
    let groups =
        |sets: &Sets| sets.groups.iter().map(|group| (group.name.clone(), group.pattern.clone())).collect::<Vec<_>>();
    let sets = |sets: &Sets| sets.all().map(|(_, set)| set.version()).collect::<Vec<_>>();
    sets(one) == sets(other) && groups(one) == groups(other)
}

impl Source for Registered {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        loop {
            let waits_until = self.waits_until.filter(|_| self.waits());
            let given_up = async {
                match waits_until {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(sets) = self.given_behind.recv() => {
                    self.mended |= std::mem::replace(&mut self.refused, sets.is_err());
                    self.follow(sets?);
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
            if let Some(sets) = self.assemble() {
                return Ok(sets);
            }
        }
    }
}
