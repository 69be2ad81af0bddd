//! Keeps sockets in step with the snapshot: binds what is new, swaps what changed in place, drains what went.
//! It must not know what a filter chain does.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::Socket;
use tokio::task::JoinSet;

use super::drain::Drain;
use super::filter_chain::FilterChain;
use super::load::Load;
use super::{ListenAddress, ListenSocket, Listener, socket};
use crate::snapshot::Names;
use crate::stats::listener::ListenerManagerStats;
use crate::worker::{Command, Current, ListeningSocket, Worker};

/// How long and in which manner connections are asked to leave.
#[derive(Debug, Clone, Copy)]
pub struct DrainPlan {
    pub lasts: Duration,
    pub immediate: bool,
}

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("error adding listener '{address}': {cause}")]
pub struct BindError {
    pub listener: Arc<str>,
    pub address: String,
    pub cause: io::Error,
}

struct Active {
    current: Current,
    /// Its sockets, kept beside the workers' own: an update that wants the same takes them over.
    bound: Vec<Bound>,
    /// It accepts no more, and stays known.
    stopped: bool,
}

/// One address that is listened on.
struct Bound {
    wanted: ListenSocket,
    /// With port 0 replaced by the one that was given.
    address: ListenAddress,
    /// One for each worker; none once it was stopped.
    sockets: Vec<Socket>,
}

impl Bound {
    /// Whether its sockets can be what is wanted.
    fn serves(&self, wanted: &ListenSocket) -> bool {
        let ListenSocket { address, settings } = &self.wanted;
        !self.sockets.is_empty() && *address == wanted.address && settings.same_but_backlog(&wanted.settings)
    }

    /// The same sockets, with the backlog that is wanted now.
    fn for_settings(&self, wanted: &ListenSocket) -> io::Result<Self> {
        let sockets: Vec<Socket> = self.sockets.iter().map(Socket::try_clone).collect::<Result<_, _>>()?;
        if wanted.settings.backlog != self.wanted.settings.backlog {
            for socket in &sockets {
                socket.listen(wanted.settings.backlog)?;
            }
        }
        Ok(Self { wanted: wanted.clone(), address: self.address.clone(), sockets })
    }
}

/// The listeners that have sockets, and the workers that accept on them.
pub(crate) struct ListenerManager {
    active: HashMap<Arc<str>, Active>,
    workers: Vec<Worker>,
    plan: DrainPlan,
    stats: ListenerManagerStats,
    /// All listeners were told to stop, or (true) only the inbound ones.
    stopped: Option<bool>,
    /// Who waits for the end of what was replaced.
    waiting: JoinSet<()>,
}

impl ListenerManager {
    pub(crate) fn new(workers: Vec<Worker>, plan: DrainPlan, stats: ListenerManagerStats) -> Self {
        stats.workers_started().set(0);
        Self { active: HashMap::new(), workers, plan, stats, stopped: None, waiting: JoinSet::new() }
    }

    /// The first listeners have their sockets: from now on the workers serve.
    pub(crate) fn started(&self) {
        self.stats.workers_started().set(1);
    }

    /// So many listeners wait for what they need. At a start Envoy counts them among the active ones.
    pub(crate) fn show_warming(&self, listeners: usize) {
        self.stats.total_listeners_warming().set(listeners as u64);
    }

    /// Brings the sockets to `listeners`. What cannot be bound is reported and left out; the rest serves.
    pub(crate) fn apply(&mut self, listeners: &Names<Listener>) -> Vec<BindError> {
        let gone: Vec<_> = self.active.keys().filter(|name| !listeners.contains_key(*name)).cloned().collect();
        for name in gone {
            self.remove(&name);
            self.stats.listener_removed().inc();
        }
        while self.waiting.try_join_next().is_some() {}
        let mut errors = Vec::new();
        let mut listeners: Vec<_> = listeners.into_iter().collect();
        listeners.sort_unstable_by_key(|(_, listener)| listener.position);
        for (name, listener) in listeners {
            if self.stopped.is_some_and(|inbound_only| listener.inbound || !inbound_only) {
                // As in Envoy: what was told to stop neither changes nor comes again.
                continue;
            }
            if let Err(error) = self.add_or_update(name, listener) {
                self.stats.listener_create_failure().inc();
                errors.push(error);
            }
        }
        self.stats.total_listeners_active().set(self.active.len() as u64);
        errors
    }

    fn add_or_update(&mut self, name: &Arc<str>, listener: &Arc<Listener>) -> Result<(), BindError> {
        if let Some(active) = self.active.get(name) {
            let before = active.current.load_full();
            if Arc::ptr_eq(&before, listener) {
                return Ok(());
            }
            if before.shares_sockets_with(listener) {
                active.current.store(Arc::clone(listener));
                self.drain_replaced(&before, Some(listener));
                self.stats.listener_in_place_updated().inc();
                self.stats.listener_create_success().add(self.workers.len() as u64);
                self.stats.listener_modified().inc();
                return Ok(());
            }
            // What cannot be bound leaves the old one as it is.
            let bound = self.bind(name, listener, &active.bound)?;
            self.remove(name);
            self.stats.listener_modified().inc();
            return self.listen(name, listener, bound);
        }
        self.stats.listener_added().inc();
        let bound = self.bind(name, listener, &[])?;
        self.listen(name, listener, bound)
    }

    /// Sockets for every address; those of `before` where they are what is wanted.
    fn bind(&self, name: &Arc<str>, listener: &Listener, before: &[Bound]) -> Result<Vec<Bound>, BindError> {
        let wanted = listener.sockets.iter().filter(|_| listener.bind_to_port);
        let bind = |wanted: &ListenSocket| {
            let bound = match before.iter().find(|bound| bound.serves(wanted)) {
                Some(same) => same.for_settings(wanted),
                None => bind_address(wanted, self.workers.len()),
            };
            let address = wanted.address.to_string();
            bound.map_err(|cause| BindError { listener: Arc::clone(name), address, cause })
        };
        wanted.map(bind).collect()
    }

    /// Hands the sockets to the workers.
    fn listen(&mut self, name: &Arc<str>, listener: &Arc<Listener>, bound: Vec<Bound>) -> Result<(), BindError> {
        let current = Arc::new(ArcSwap::from(Arc::clone(listener)));
        let load = Arc::new(Load::new(&listener.scope, self.workers.iter().map(Worker::commands)));
        for (index, worker) in self.workers.iter().enumerate() {
            let own = |bound: &Bound| match bound.sockets.get(index) {
                Some(socket) => Ok(into_listening(socket.try_clone()?, &bound.address)),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            let failed = |cause| BindError { listener: Arc::clone(name), address: listener.main_address(), cause };
            let sockets = bound.iter().map(own).collect::<io::Result<_>>().map_err(failed)?;
            self.stats.listener_create_success().inc();
            let (current, load) = (Arc::clone(&current), Arc::clone(&load));
            worker.tell(Command::Listen { listener: Arc::clone(name), current, load, sockets });
        }
        self.active.insert(Arc::clone(name), Active { current, bound, stopped: false });
        Ok(())
    }

    fn remove(&mut self, name: &Arc<str>) {
        let Some(Active { current, bound, .. }) = self.active.remove(name) else { return };
        // A socket closes with the last that holds it: the worker, once it has emptied the queue.
        drop(bound);
        self.stop_accepting(name);
        self.drain_replaced(&current.load(), None);
    }

    fn stop_accepting(&self, name: &Arc<str>) {
        for worker in &self.workers {
            worker.tell(Command::Stop { listener: Arc::clone(name) });
        }
    }

    /// Drains the chains of `before` that do not live on in `after`. As in Envoy they count as draining for the whole drain
    /// time, however soon the last connection leaves.
    fn drain_replaced(&mut self, before: &Listener, after: Option<&Arc<Listener>>) {
        tracing::debug!("draining listener '{}', in place: {}", before.name, after.is_some());
        let plan = self.plan;
        let mut replaced = 0;
        for chain in all_chains(before) {
            let kept =
                after.is_some_and(|after| all_chains(after).any(|other| Arc::ptr_eq(&other.drain, &chain.drain)));
            if kept {
                continue;
            }
            replaced += 1;
            chain.drain.begin(plan.lasts, plan.immediate);
            let drain = Arc::clone(&chain.drain);
            self.waiting.spawn(async move {
                tokio::select! {
                    () = drain.until_idle() => {}
                    () = tokio::time::sleep(plan.lasts) => drain.cut(),
                }
            });
        }
        let (listeners, chains) = if after.is_some() { (0, replaced) } else { (1, 0) };
        self.stats.total_listeners_draining().add(listeners);
        self.stats.total_filter_chains_draining().add(chains);
        let stats = self.stats.clone();
        self.waiting.spawn(async move {
            tokio::time::sleep(plan.lasts).await;
            stats.total_listeners_draining().add(-listeners);
            stats.total_filter_chains_draining().add(-chains);
        });
    }

    /// Asks the connections of all (or only the inbound) listeners to leave, without closing any socket.
    pub(crate) fn begin_drain(&self, inbound_only: bool, plan: DrainPlan) {
        for active in self.active.values() {
            let listener = active.current.load();
            if listener.inbound || !inbound_only {
                all_chains(&listener).for_each(|chain| chain.drain.begin(plan.lasts, plan.immediate));
            }
        }
    }

    /// Closes the sockets of all (or only the inbound) listeners; connections go on.
    pub(crate) fn stop_listeners(&mut self, inbound_only: bool) {
        self.stopped = Some(inbound_only && self.stopped.unwrap_or(true));
        let mut stopped = Vec::new();
        for (name, active) in &mut self.active {
            if !active.stopped && (active.current.load().inbound || !inbound_only) {
                active.bound.iter_mut().for_each(|bound| bound.sockets.clear());
                active.stopped = true;
                stopped.push(Arc::clone(name));
            }
        }
        for name in stopped {
            self.stop_accepting(&name);
            self.stats.listener_stopped().inc();
        }
    }

    /// Ends every connection that is still there.
    pub(crate) fn cut(&self) {
        self.drains().iter().for_each(|drain| drain.cut());
    }

    fn drains(&self) -> Vec<Arc<Drain>> {
        let chains = |active: &Active| {
            let listener = active.current.load();
            all_chains(&listener).map(|chain| Arc::clone(&chain.drain)).collect::<Vec<_>>()
        };
        self.active.values().flat_map(chains).collect()
    }

    /// Waits until every connection of the chains that are there now has ended.
    pub(crate) fn idle(&self) -> impl Future<Output = ()> + use<> {
        let drains = self.drains();
        async move {
            for drain in &drains {
                drain.until_idle().await;
            }
        }
    }

    /// Tells the workers that the process leaves.
    pub(crate) fn leave(&self) {
        self.workers.iter().for_each(|worker| worker.tell(Command::Leave));
    }

    /// Ends the workers.
    pub(crate) fn shut_down(&mut self) {
        for worker in &self.workers {
            worker.tell(Command::Shutdown);
        }
        self.workers.iter_mut().for_each(Worker::join);
    }

    /// Where each listener really listens, in the order in which they came.
    pub(crate) fn bound(&self) -> Vec<(Arc<str>, Vec<ListenAddress>)> {
        self.in_order(|active| active.bound.iter().map(|bound| bound.address.clone()).collect())
    }

    /// The same, and the addresses that stand for listeners which do not bind.
    pub(crate) fn addresses(&self) -> Vec<(Arc<str>, Vec<ListenAddress>)> {
        self.in_order(|active| {
            let listener = active.current.load();
            match listener.bind_to_port {
                true => active.bound.iter().map(|bound| bound.address.clone()).collect(),
                false => listener.sockets.iter().map(|socket| socket.address.clone()).collect(),
            }
        })
    }

    fn in_order(&self, addresses: impl Fn(&Active) -> Vec<ListenAddress>) -> Vec<(Arc<str>, Vec<ListenAddress>)> {
        let mut all: Vec<_> = self.active.iter().collect();
        all.sort_unstable_by_key(|(_, active)| active.current.load().position);
        all.into_iter().map(|(name, active)| (Arc::clone(name), addresses(active))).collect()
    }
}

fn all_chains(listener: &Listener) -> impl Iterator<Item = &Arc<FilterChain>> {
    listener.chains.all.iter().chain(&listener.chains.default)
}

/// Binds one address for every worker.
fn bind_address(wanted: &ListenSocket, workers: usize) -> io::Result<Bound> {
    let ListenSocket { address, settings } = wanted;
    let first = socket::listen(address, settings)?;
    let bound = match address {
        ListenAddress::Ip { ipv4_compat, .. } => {
            let address = first.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))?;
            ListenAddress::Ip { address, ipv4_compat: *ipv4_compat }
        }
        pipe @ ListenAddress::Pipe { .. } => pipe.clone(),
    };
    let shares_port = settings.reuse_port && matches!(address, ListenAddress::Ip { .. });
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(if shares_port { socket::listen(&bound, settings)? } else { first.try_clone()? });
    }
    sockets.push(first);
    Ok(Bound { wanted: wanted.clone(), address: bound, sockets })
}

fn into_listening(socket: Socket, address: &ListenAddress) -> ListeningSocket {
    match address {
        ListenAddress::Ip { .. } => ListeningSocket::Tcp(socket.into()),
        ListenAddress::Pipe { .. } => ListeningSocket::Unix(socket.into()),
    }
}
