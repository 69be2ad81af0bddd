//! Wires a process together: bootstrap, store, workers, listeners, admin, signals, drain.
//! It must not know how any of them works.

mod drain;
pub(crate) mod signals;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tidegate_filters::context::Defaults;
use tidegate_filters::runtime::Runtime;
use tidegate_stats::Store as StatsStore;
use tidegate_xds::{FieldError, FieldPath};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Interval;

use self::signals::{Leave, Signals};
use crate::admin::state::{CommandLine, DrainListeners};
use crate::admin::{AdminState, Traffic};
use crate::allocator;
use crate::app::Shared;
use crate::cluster::dns::Discoveries;
use crate::config::Compiler;
use crate::config::bootstrap::Bootstrap;
use crate::config::files::{self, UnknownDynamicFields};
use crate::config::store::{Placed, Store};
use crate::discovery::Discovery;
use crate::discovery::channel::Channel;
use crate::discovery::kept::Keeper;
use crate::listener::manager::{DrainPlan, ListenerManager};
use crate::listener::{ListenAddress, SocketOption, SocketSettings, socket};
use crate::load_reports::LoadReports;
use crate::process::{Asked, Process};
use crate::resident;
use crate::runtime::Layers;
use crate::sources::Sources;
use crate::stats::listener::ListenerManagerStats;
use crate::stats::server::ServerGauges;
use crate::worker::Worker;

/// How a process runs, from its command line.
#[derive(Debug, Clone)]
pub struct Options {
    pub concurrency: usize,
    pub defaults: Defaults,
    pub drain_time: Duration,
    pub drain_immediately: bool,
    pub parent_shutdown_time: Duration,
    pub file_flush_interval: Duration,
    pub node_address: Option<std::net::IpAddr>,
    pub admin_address_path: Option<PathBuf>,
    pub unknown_dynamic_fields: UnknownDynamicFields,
    /// Where what control planes said last is kept.
    pub snapshot_directory: Option<PathBuf>,
    /// As `/server_info` shows it.
    pub command_line: CommandLine,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{}", join(.0))]
    Configuration(Vec<FieldError>),
    #[error("{0}")]
    Listen(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn join(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Longer than any process runs.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How long no update may have come before memory is given back.
const QUIET: Duration = Duration::from_secs(1);

/// How long control planes are waited for before what was kept on disk is served.
const AWAY: Duration = Duration::from_millis(500);

/// How many connections may wait for the admin interface.
const ADMIN_BACKLOG: i32 = 128;

/// How long what must be fetched before serving is waited for (`initial_fetch_timeout`).
const INITIAL_FETCH: Duration = Duration::from_secs(15);

/// A compiled configuration that does not serve: what `--mode validate` and `check` ask for.
///
/// # Errors
/// Everything that a server would refuse to start with.
pub fn validate(bootstrap: &Bootstrap, defaults: Defaults) -> Result<(), Vec<FieldError>> {
    let stats = StatsStore::new();
    let layers = Arc::new(Layers::new(bootstrap.runtime_layers.clone(), &stats));
    let (mut store, _) = make_store(bootstrap, defaults, &stats, layers, None);
    let mut errors = load_static(bootstrap, &mut store);
    errors.extend(store.admin(&bootstrap.admin_message()).err());
    errors.extend(bootstrap.open_outlier_event_log().err());
    bootstrap.place(&mut errors);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

pub(crate) fn make_store(
    bootstrap: &Bootstrap,
    defaults: Defaults,
    stats: &Arc<StatsStore>,
    layers: Arc<Layers>,
    node_address: Option<std::net::IpAddr>,
) -> (Store, Arc<Shared>) {
    let (root, cluster) = (stats.root(), &bootstrap.node.cluster);
    let shared =
        Shared::new(Arc::clone(&layers) as Arc<dyn Runtime>, node_address, cluster, bootstrap.connection_limit, &root);
    let compiler = Compiler {
        registry: bootstrap.registry,
        defaults,
        stats: stats.root(),
        node: bootstrap.node.clone(),
        known: bootstrap.known.clone(),
        discovered: Default::default(),
        buffer_limit_bytes: 1 << 20,
        cluster_defaults: bootstrap.cluster_defaults.clone(),
    };
    (Store::new(compiler, Arc::clone(&shared), layers), shared)
}

fn load_static(bootstrap: &Bootstrap, store: &mut Store) -> Vec<FieldError> {
    let root = FieldPath::root().field("static_resources");
    let unversioned: Arc<str> = "".into();
    let secrets = bootstrap.secrets().iter().enumerate().map(|(index, secret)| {
        Placed::encoded(secret.clone(), root.clone().field("secrets").index(index), &unversioned)
    });
    let mut errors = store.fix_secrets(secrets.collect());
    let clusters = bootstrap.clusters().iter().enumerate().map(|(index, cluster)| {
        Placed::encoded(cluster.clone(), root.clone().field("clusters").index(index), &unversioned)
    });
    errors.extend(store.update_clusters(clusters.collect()));
    for (path, cluster) in bootstrap.service_clusters() {
        if !bootstrap.known.primary.contains(cluster) {
            errors.push(FieldError::new(path, format!("Unknown gRPC client cluster '{cluster}'")));
        }
    }
    let listeners = bootstrap.listeners().iter().enumerate().map(|(index, listener)| {
        Placed::encoded(listener.clone(), root.clone().field("listeners").index(index), &unversioned)
    });
    errors.extend(store.update_listeners(listeners.collect()));
    errors
}

/// Runs until told to stop. Returns once everything that ran has ended.
///
/// # Errors
/// When the configuration cannot be used or an address cannot be bound.
pub async fn run(mut bootstrap: Bootstrap, options: Options) -> Result<(), StartError> {
    let signals = Signals::register()?;
    tidegate_stats::reserve_workers(options.concurrency);
    tidegate_filters::access_log::set_flush_interval(options.file_flush_interval);
    let min_kilobytes = usize::try_from(options.command_line.file_flush_min_size_kb).unwrap_or(usize::MAX);
    tidegate_filters::access_log::set_flush_min_size(min_kilobytes.saturating_mul(1 << 10));
    for warning in std::mem::take(&mut bootstrap.warnings) {
        tracing::warn!("{warning}");
    }
    let stats = StatsStore::with_rules(std::mem::take(&mut bootstrap.stats_rules));
    let gauges = ServerGauges::new(&stats, options.concurrency, Instant::now());
    gauges.stats().static_unknown_fields().add(bootstrap.with_unknown_fields);
    if let Some(version) = bootstrap.version_override() {
        gauges.stats().version().set(version);
    }
    let layers = Arc::new(Layers::new(bootstrap.runtime_layers.clone(), &stats));
    let (mut store, shared) =
        make_store(&bootstrap, options.defaults, &stats, Arc::clone(&layers), options.node_address);
    let mut errors = load_static(&bootstrap, &mut store);
    let admin_options = store.admin(&bootstrap.admin_message()).map_err(|error| errors.push(error)).unwrap_or_default();
    errors.extend(bootstrap.open_outlier_event_log().err());
    if !errors.is_empty() {
        bootstrap.place(&mut errors);
        return Err(StartError::Configuration(errors));
    }
    if bootstrap.drains_from_the_start() {
        tracing::info!("starting server in drain mode");
        shared.set_health_check_failing(true);
    }
    store.started = true;
    bootstrap.forget_static_resources();
    let workers = (0..options.concurrency)
        .map(|index| Worker::start(index, Arc::clone(&shared)))
        .collect::<Result<Vec<_>, _>>()?;
    let plan = DrainPlan { lasts: options.drain_time, immediate: options.drain_immediately };
    let manager_stats = ListenerManagerStats::new(&stats.root().scope("listener_manager."));
    let (sender, resolved) = mpsc::unbounded_channel();
    let (asking, asked) = mpsc::unbounded_channel();
    let mut server = Server {
        manager: ListenerManager::new(workers, plan, manager_stats),
        discoveries: Discoveries::new(shared.runtime_shared(), sender),
        resolved,
        sources: Sources::new(&bootstrap, &stats, options.unknown_dynamic_fields),
        discovery: Discovery::new(&bootstrap, &shared, &stats, options.unknown_dynamic_fields),
        process: Arc::new(Process {
            shared: Arc::clone(&shared),
            stats,
            layers,
            gauges,
            options: options.command_line.clone(),
            bootstrap: std::mem::take(&mut bootstrap.bytes),
            node: bootstrap.node_json(),
            ledger: Arc::clone(store.ledger()),
            bound: Mutex::default(),
            serves_kept: Mutex::default(),
            initializing: AtomicBool::new(false),
            serving: AtomicBool::new(false),
            started: SystemTime::now(),
            asked: asking,
            admin: admin_options,
            flush_on_admin: bootstrap.stats_flush_interval.is_none(),
            defers_clusters: bootstrap.defers_clusters(),
        }),
        asked,
        store,
        shared,
        plan,
        draining: false,
        applied: 0,
        untidy: None,
        keeper: None,
        tasks: JoinSet::new(),
    };
    let node = server.discovery.node().clone();
    // Told from the start, and until the end.
    let _load_reports = bootstrap.load_reports.take().map(|service| {
        let channel = Channel::new(&server.shared, service);
        LoadReports::start(&server.shared, channel, node.clone(), &server.process.stats.root())
    });
    server.keeper = options.snapshot_directory.clone().map(|directory| Keeper::new(directory, node));
    let admin = match &bootstrap.admin {
        Some(address) => Some(serve_admin(address, bootstrap.admin_socket_options(), &options, &server.process)?),
        None => None,
    };
    let (quit, mut quitting) = watch::channel(Leave::WhenIdle);
    let signals = tokio::spawn(signals.listen(quit));
    let mut leave = Leave::WhenIdle;
    let flush_every = bootstrap.stats_flush_interval.unwrap_or(NEVER);
    let mut rhythm = Rhythm {
        look: tokio::time::interval(files::LOOK_EVERY),
        flush: tokio::time::interval_at(tokio::time::Instant::now() + flush_every, flush_every),
    };
    server.process.refresh_stats();
    if server.warm_up(&mut rhythm, &mut quitting).await {
        server.start_listening()?;
        server.process.gauges.initialized(Instant::now());
        server.process.refresh_stats();
        allocator::give_back();
        // What control planes said was decoded on the runtime's own thread: its heap gives back once it is quiet.
        server.untidy = Some(Instant::now());
        resident::forget_start();
        leave = server.serve(&mut rhythm, &mut quitting).await;
    }
    server.drain(leave, options.drain_time, &mut rhythm, &mut quitting).await;
    if let Some(keeper) = &mut server.keeper
        && server.discovery.has_heard()
    {
        keeper.finish(server.store.ledger()).await;
    }
    tidegate_filters::access_log::flush_all();
    signals.abort();
    if let Some(admin) = admin {
        admin.abort();
    }
    Ok(())
}

struct Server {
    manager: ListenerManager,
    discoveries: Discoveries,
    /// Names of DNS clusters that were resolved for the first time.
    resolved: mpsc::UnboundedReceiver<Arc<str>>,
    sources: Sources,
    discovery: Discovery,
    process: Arc<Process>,
    /// What the admin interface asks for.
    asked: mpsc::UnboundedReceiver<Asked>,
    store: Store,
    shared: Arc<Shared>,
    plan: DrainPlan,
    /// `/drain_listeners` has begun to ask connections to leave.
    draining: bool,
    /// The version of the snapshot that the sockets are at.
    applied: u64,
    /// When the last update left memory behind.
    untidy: Option<Instant>,
    keeper: Option<Keeper>,
    /// What it does by and by; it ends with this.
    tasks: JoinSet<()>,
}

impl Server {
    /// Fetches what the configuration points at and waits until clusters, then listeners are warm. False: told to leave before.
    async fn warm_up(&mut self, rhythm: &mut Rhythm, quitting: &mut watch::Receiver<Leave>) -> bool {
        let deadline = tokio::time::Instant::now() + INITIAL_FETCH;
        let mut given_up = false;
        let away = tokio::time::Instant::now() + AWAY;
        let mut waits_for_answer = self.keeper.is_some();
        loop {
            self.sources.read(&mut self.store);
            self.start_resolving();
            self.discovery.sync(&mut self.store);
            self.discovery.answer_from_kept(&mut self.store);
            self.discovery.go_on(&mut self.store);
            if self.discovery.asks_for_listeners() {
                self.process.initializing.store(true, Relaxed);
                let settled = !self.store.is_warming() && self.sources.is_settled(&self.store);
                if settled && self.discovery.has_listeners() {
                    return true;
                }
            }
            tokio::select! {
                _ = quitting.changed() => return false,
                Some(name) = self.resolved.recv() => self.store.cluster_is_warm(&name),
                report = self.discovery.next() => self.discovery.handle(report, &mut self.store),
                _ = rhythm.flush.tick() => self.process.flush_stats(),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
                () = tokio::time::sleep_until(away), if waits_for_answer => {
                    waits_for_answer = false;
                    self.serve_kept();
                }
                // Whatever comes from a control plane has times of its own.
                () = tokio::time::sleep_until(deadline), if !given_up && self.discovery.is_idle() => {
                    given_up = true;
                    tracing::warn!("gave up waiting for resources that were to be fetched first");
                    self.store.stop_waiting();
                }
            }
        }
    }

    /// No control plane has answered in time: what was kept is served until one does.
    fn serve_kept(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        if !self.discovery.is_idle() && self.discovery.begin_kept(keeper.read()) {
            tracing::warn!("no control plane answers: what was kept on disk is served until one does");
            self.note_kept();
        }
    }

    fn note_kept(&self) {
        *self.process.serves_kept.lock() = self.discovery.serves_kept();
    }

    fn start_resolving(&mut self) {
        for cluster in self.store.resolving() {
            self.discoveries.follow(&cluster, rand::random());
        }
    }

    fn start_listening(&mut self) -> Result<(), StartError> {
        let snapshot = self.shared.snapshot();
        self.applied = snapshot.version;
        let errors = self.manager.apply(&snapshot.listeners);
        match errors.first() {
            Some(error) => Err(StartError::Listen(error.to_string())),
            None => {
                self.manager.started();
                self.note_bound();
                self.process.serving.store(true, Relaxed);
                for (name, addresses) in self.manager.bound() {
                    for address in addresses {
                        tracing::info!(listener = %name, %address, "listening");
                    }
                }
                Ok(())
            }
        }
    }

    fn note_bound(&self) {
        *self.process.bound.lock() = self.manager.addresses();
    }

    /// Follows what comes, with the sockets too, until it is time to leave.
    async fn serve(&mut self, rhythm: &mut Rhythm, quitting: &mut watch::Receiver<Leave>) -> Leave {
        loop {
            let came = tokio::select! {
                _ = quitting.changed() => return *quitting.borrow(),
                came = self.follow(rhythm) => came,
            };
            match came {
                Came::Nothing => {}
                Came::Update => self.apply(),
                Came::Quit => return Leave::WhenIdle,
            }
        }
    }

    /// Waits for one thing of all that moves a process, and takes it: control planes, files, resolutions, the admin interface.
    /// What it waits for may be dropped.
    async fn follow(&mut self, rhythm: &mut Rhythm) -> Came {
        tokio::select! {
            Some(asked) = self.asked.recv() => match asked {
                Asked::Quit => return Came::Quit,
                Asked::Drain(drain) => self.drain_listeners(drain),
            },
            _ = rhythm.flush.tick() => {
                self.process.flush_stats();
                return Came::Nothing;
            }
            Some(name) = self.resolved.recv() => self.store.cluster_is_warm(&name),
            report = self.discovery.next() => {
                self.discovery.handle(report, &mut self.store);
                self.start_resolving();
            }
            _ = rhythm.look.tick() => {
                self.tidy();
                self.process.layers.reload_if_moved();
                let secrets = self.store.reread_secrets();
                if !self.sources.read(&mut self.store) && !secrets {
                    // What has drained is needed no more.
                    self.discovery.sync(&mut self.store);
                    return Came::Nothing;
                }
                self.start_resolving();
            }
        }
        self.discovery.sync(&mut self.store);
        self.untidy = Some(Instant::now());
        Came::Update
    }

    /// Brings sockets to the snapshot where that has moved.
    fn apply(&mut self) {
        self.manager.show_warming(self.store.warming_listeners());
        let snapshot = self.shared.snapshot();
        if std::mem::replace(&mut self.applied, snapshot.version) == snapshot.version {
            return;
        }
        for error in self.manager.apply(&snapshot.listeners) {
            tracing::error!(%error, "a listener could not be bound");
        }
        self.note_bound();
    }

    /// Gives back what updates have left behind, once no more follow: that takes longer than an update.
    fn tidy(&mut self) {
        self.store.sweep();
        self.store.forget_drained(self.plan.lasts, Instant::now());
        if let Some(keeper) = &mut self.keeper
            && self.discovery.has_heard()
        {
            keeper.keep(self.store.ledger());
            *self.process.serves_kept.lock() = None;
        }
        while self.tasks.try_join_next().is_some() {}
        if self.untidy.is_some_and(|since| since.elapsed() > QUIET) {
            self.untidy = None;
            self.store.ledger().compact();
            self.discovery.compact();
            allocator::give_back();
            // Messages were decoded on the runtime's own thread, which has a heap of its own.
            self.tasks.spawn(async { allocator::give_back() });
        }
    }

    /// `/drain_listeners`: at once their sockets close; gracefully their connections are asked to leave for the drain time
    /// first, and with `skip_exit` that is all.
    fn drain_listeners(&mut self, drain: DrainListeners) {
        if !drain.graceful && !drain.skip_exit {
            return self.manager.stop_listeners(drain.inbound_only);
        }
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        self.manager.begin_drain(drain.inbound_only, self.plan);
        if !drain.skip_exit {
            let (asked, lasts) = (self.process.asked.clone(), self.plan.lasts);
            let then = DrainListeners { graceful: false, ..drain };
            self.tasks.spawn(async move {
                tokio::time::sleep(lasts).await;
                // Nobody is there to be told only when the process ends.
                let _ = asked.send(Asked::Drain(then));
            });
        }
    }
}

/// What `Server::follow` took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Nothing,
    /// The configuration may have moved.
    Update,
    Quit,
}

/// What happens again and again.
struct Rhythm {
    /// Files are looked at.
    look: Interval,
    /// Stats are flushed.
    flush: Interval,
}

/// Binds the admin interface and serves it on the control runtime.
fn serve_admin(
    address: &ListenAddress,
    socket_options: Vec<SocketOption>,
    options: &Options,
    process: &Arc<Process>,
) -> Result<JoinHandle<()>, StartError> {
    let failed = |cause: std::io::Error| StartError::Listen(format!("cannot bind admin address '{address}': {cause}"));
    let state: Arc<dyn AdminState> = Arc::clone(process) as _;
    let traffic = Traffic::new(&process.stats.root());
    let settings = SocketSettings { options: socket_options, backlog: ADMIN_BACKLOG, ..SocketSettings::default() };
    let socket = socket::listen(address, &settings).map_err(failed)?;
    let bound = match address {
        ListenAddress::Ip { .. } => socket.local_addr().map_err(failed)?.as_socket().map(|bound| bound.to_string()),
        ListenAddress::Pipe { .. } => None,
    };
    let bound = bound.unwrap_or_else(|| address.to_string());
    // Like Envoy, a process serves although it could not tell where.
    if let Some(path) = &options.admin_address_path
        && let Err(error) = std::fs::write(path, &bound)
    {
        tracing::error!("cannot open admin address output file {} for writing: {error}", path.display());
    }
    tracing::info!(%bound, "admin interface");
    // It serves until it is aborted.
    Ok(match address {
        ListenAddress::Ip { .. } => {
            let socket = tokio::net::TcpListener::from_std(socket.into()).map_err(failed)?;
            tokio::spawn(async move {
                let _ = crate::admin::serve(socket, state, traffic).await;
            })
        }
        ListenAddress::Pipe { .. } => {
            let socket = tokio::net::UnixListener::from_std(socket.into()).map_err(failed)?;
            tokio::spawn(async move {
                let _ = crate::admin::serve(socket, state, traffic).await;
            })
        }
    })
}
