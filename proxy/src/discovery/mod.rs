//! xDS: which streams and polls there are, what each is asked for, and when answers are held back (make before break).
//! What resources mean is the store's; what the protocol says is `tidegate_control::client`'s.

mod asking;
mod carried;
pub(crate) mod channel;
mod gate;
mod hosts;
pub(crate) mod kept;
mod mux;
mod polls;
mod resources;
mod stream;
mod subscriptions;
mod waits;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::uri::PathAndQuery;
use tidegate_control::client::Interest;
use tidegate_filters::context::{ConfigSource, ControlPlane, RestControlPlane, Wait};
use tidegate_stats::{Scope, Store as StatsStore};
use tidegate_xds::pb::envoy::config::core::v3::Node;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::carried::Carried;
use self::channel::Channel;
use self::gate::Gate;
use self::kept::Kept;
use self::mux::Mux;
use self::polls::{Polled, Polls, What};
use self::resources::Apply;
use self::stream::{Event, Happened};
use self::subscriptions::Subscriptions;
use self::waits::Waits;
use crate::app::Shared;
use crate::config::bootstrap::Bootstrap;
use crate::config::files::UnknownDynamicFields;
use crate::config::origin::{Origin, name_of};
use crate::config::store::{Kind, Store};
use crate::config::unknown_fields::UnknownRule;
use crate::demand::{Demand, MOST as MOST_DEMANDS};
use crate::stats::control_plane::ControlPlaneStats;
use crate::stats::subscription::Update as Outcome;

impl Kind {
    /// The method of a stream that carries this type alone.
    fn method(self, delta: bool) -> PathAndQuery {
        PathAndQuery::from_static(match (self, delta) {
            (Self::Cluster, false) => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
            (Self::Cluster, true) => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
            (Self::Endpoints, false) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            (Self::Endpoints, true) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            (Self::Listener, false) => "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
            (Self::Listener, true) => "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
            (Self::Route, false) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            (Self::Route, true) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            (Self::Extension, false) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
            }
            (Self::Extension, true) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
            }
            (Self::Scope, false) => "/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes",
            (Self::Scope, true) => "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
            (Self::VirtualHost, _) => "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts",
            (Self::Runtime, false) => "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
            (Self::Secret, true) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
            (Self::Secret, false) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            (Self::Runtime, true) => "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
        })
    }
}

fn ads_method(delta: bool) -> PathAndQuery {
    PathAndQuery::from_static(if delta {
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    } else {
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
    })
}

/// What happened, and to which stream or poll.
pub(crate) enum Report {
    Stream(usize, Happened),
    Poll(Polled),
    /// An exchange waits for something.
    Demand(Demand),
}

/// All streams and polls of a process.
pub(crate) struct Discovery {
    shared: Arc<Shared>,
    node: Node,
    root: Scope,
    streams: BTreeMap<usize, Stream>,
    /// The number of the next stream: none is given twice.
    next_stream: usize,
    polls: Polls,
    reports: mpsc::Receiver<Report>,
    reporting: mpsc::Sender<Report>,
    /// None: another one listens there.
    demands: Option<mpsc::Receiver<Demand>>,
    ads: Option<usize>,
    clusters: Option<ConfigSource>,
    listeners: Option<ConfigSource>,
    /// Asked for in place of all of a kind.
    collections: BTreeMap<Kind, Arc<str>>,
    /// Clusters are asked for once the runtime is there.
    clusters_begun: bool,
    /// Listeners are asked for once clusters are there.
    listeners_begun: bool,
    subscriptions: Subscriptions,
    unknown: UnknownRule,
    waits: Waits,
    /// The answer to the last clusters waits until they are warm.
    held: Option<usize>,
    /// A control plane has answered.
    heard: bool,
    /// Answers until then.
    kept: Option<Kept>,
}

/// One stream, open or not.
struct Stream {
    control_plane: Arc<ControlPlane>,
    /// None: all types (ADS).
    kind: Option<Kind>,
    mux: Mux,
    gate: Gate,
    asked: BTreeMap<Kind, Interest>,
    /// Of what it brings, where names alone do not tell.
    origin: Origin,
    /// What it carries everything of.
    carried: Carried,
    stats: ControlPlaneStats,
    task: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Discovery {
    /// Needs a runtime: the aggregated stream is opened at once.
    pub(crate) fn new(
        bootstrap: &Bootstrap,
        shared: &Arc<Shared>,
        stats: &Arc<StatsStore>,
        unknown: UnknownDynamicFields,
    ) -> Self {
        let (reporting, reports) = mpsc::channel(1);
        let dynamic = |source: &Option<ConfigSource>| {
            source.clone().filter(|source| !matches!(source, ConfigSource::File { .. }))
        };
        let mut discovery = Self {
            shared: Arc::clone(shared),
            node: bootstrap.node_message(),
            root: stats.root(),
            streams: BTreeMap::new(),
            next_stream: 0,
            polls: Polls::new(shared, bootstrap.node_message(), reporting.clone()),
            reports,
            reporting,
            demands: shared.demands().take(),
            ads: None,
            clusters: dynamic(&bootstrap.cds),
            listeners: dynamic(&bootstrap.lds),
            collections: [(Kind::Cluster, &bootstrap.cds_collection), (Kind::Listener, &bootstrap.lds_collection)]
                .into_iter()
                .filter_map(|(kind, name)| Some((kind, name.clone()?)))
                .collect(),
            clusters_begun: false,
            listeners_begun: false,
            subscriptions: Subscriptions::new(&stats.root()),
            unknown: UnknownRule::new(unknown, &stats.root()),
            waits: Waits::default(),
            held: None,
            heard: false,
            kept: None,
        };
        if let Some(ads) = &bootstrap.ads {
            discovery.ads = Some(discovery.open(Arc::new(ads.clone()), None));
        }
        discovery
    }

    /// The node, as it is told to control planes.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// Whether a control plane has answered.
    pub(crate) fn has_heard(&self) -> bool {
        self.heard
    }

    /// Whether nothing comes from control planes.
    pub(crate) fn is_idle(&self) -> bool {
        self.streams.is_empty() && self.polls.is_empty() && self.clusters.is_none() && self.listeners.is_none()
    }

    /// Whether the layers of the runtime came, or were waited for long enough.
    fn has_runtime(&self, store: &Store) -> bool {
        let in_file = |name: &str| store.runtime_needs.files().contains_key(name);
        store.runtime_needs.names().all(|name| in_file(name) || self.waits.is_over(Kind::Runtime, name))
    }

    /// Asks for what comes next at a start, as in Envoy: the runtime, then clusters, then listeners.
    pub(crate) fn go_on(&mut self, store: &mut Store) {
        if !self.clusters_begun && self.has_runtime(store) {
            self.clusters_begun = true;
            self.sync(store);
        }
        if self.clusters_begun && !self.listeners_begun && self.has_clusters() && !store.is_warming_clusters() {
            self.listeners_begun = true;
            self.sync(store);
        }
    }

    /// Whether listeners are asked for: what they need is there.
    pub(crate) fn asks_for_listeners(&self) -> bool {
        self.listeners_begun
    }

    /// Whether clusters came, or were waited for long enough.
    fn has_clusters(&self) -> bool {
        self.clusters.is_none() || self.waits.is_over(Kind::Cluster, "")
    }

    /// Whether listeners came, or were waited for long enough.
    pub(crate) fn has_listeners(&self) -> bool {
        self.listeners.is_none() || self.waits.is_over(Kind::Listener, "")
    }

    /// Waits until something happens to a stream; `None`: time has passed for something.
    pub(crate) async fn next(&mut self) -> Option<Report> {
        let expiry = self.streams.values().flat_map(|stream| [stream.mux.next_expiry(), stream.gate.opens_at()]);
        let expiry = expiry.flatten().chain(self.waits.next()).min();
        let due = async {
            match expiry {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let mut room: FuturesUnordered<_> = self.streams.values().filter_map(|stream| stream.mux.room()).collect();
        tokio::select! {
            report = self.reports.recv() => report,
            Some(()) = room.next() => None,
            Some(demand) = next_demand(&mut self.demands) => Some(Report::Demand(demand)),
            () = due => None,
        }
    }

    /// Takes what has happened.
    pub(crate) fn handle(&mut self, report: Option<Report>, store: &mut Store) {
        let now = Instant::now();
        match report {
            Some(Report::Stream(place, happened)) => {
                if happened.is_response() {
                    self.note_answer();
                }
                self.happened(place, happened, store, now);
            }
            Some(Report::Poll(polled)) => self.polled(polled, store),
            Some(Report::Demand(demand)) => self.demanded(demand, store),
            None => self.time_passed(store, now),
        }
        self.sync(store);
        self.answer_from_kept(store);
    }

    /// What others want meanwhile is asked for in the same request.
    fn demanded(&mut self, first: Demand, store: &mut Store) {
        store.demand(first);
        let more = std::iter::from_fn(|| self.demands.as_mut()?.try_recv().ok());
        more.take(MOST_DEMANDS).for_each(|demand| store.demand(demand));
    }

    fn happened(&mut self, place: usize, happened: Happened, store: &mut Store, now: Instant) {
        let Some(stream) = self.streams.get_mut(&place) else { return };
        let type_url = match &happened {
            Happened::Sotw(Event::Received(response)) => response.type_url.clone(),
            Happened::Delta(Event::Received(response)) => response.type_url.clone(),
            Happened::Sotw(Event::Connected(_)) | Happened::Delta(Event::Connected(_)) => {
                tracing::debug!("gRPC bidi stream to '{}' begins", stream.control_plane.service.cluster);
                stream.stats.connected();
                stream.mux.connected(happened);
                return;
            }
            Happened::Sotw(Event::Closed(status)) | Happened::Delta(Event::Closed(status)) => {
                stream.stats.disconnected();
                stream.mux.disconnected();
                tracing::warn!(
                    cluster = stream.control_plane.service.cluster,
                    code = status.code() as i32,
                    message = status.message(),
                    "the stream to the control plane closed"
                );
                let all = stream.subscriptions();
                self.subscriptions.count_all(&all, &Outcome::Failure, store, SystemTime::now());
                return;
            }
        };
        let identifier = match &happened {
            Happened::Sotw(Event::Received(response)) => response.control_plane.as_ref(),
            Happened::Delta(Event::Received(response)) => response.control_plane.as_ref(),
            _ => None,
        };
        if let Some(identifier) = identifier {
            stream.stats.identified(&identifier.identifier);
        }
        stream.mux.pause(&type_url);
        let (subscriptions, waits, unknown) = (&mut self.subscriptions, &mut self.waits, &self.unknown);
        let (carried, asked, origin) = (&stream.carried, &stream.asked, &stream.origin);
        let mut apply = Apply { store, subscriptions, waits, unknown, carried, asked, origin };
        stream.mux.receive(happened, &mut apply, now);
        // What the update needs is asked for before it is answered, and so is what it lets begin.
        self.sync(store);
        self.go_on(store);
        let Some(stream) = self.streams.get_mut(&place) else { return };
        if Kind::of(&type_url) == Some(Kind::Cluster)
            && self.held.is_none()
            && self.listeners_begun
            && store.is_warming_clusters()
        {
            self.held = Some(place);
        } else {
            stream.mux.resume(&type_url);
        }
    }

    /// A control plane has answered: what was kept on disk is of the past.
    fn note_answer(&mut self) {
        self.heard = true;
        self.kept = None;
    }

    fn polled(&mut self, polled: Polled, store: &mut Store) {
        if !self.polls.is_current(&polled) {
            return;
        }
        if matches!(polled.what, What::Came(_) | What::Unchanged) {
            self.note_answer();
        }
        let Some(rest) = self.polls.of(polled.kind, &polled.name) else { return };
        let (kind, name) = (polled.kind, &*polled.name);
        match polled.what {
            What::Asks(sender) => {
                self.subscriptions.asked(kind, name, store);
                // Whoever does not wait for it any more has been stopped.
                let _ = sender.send(rest.request().clone());
            }
            What::Unchanged => {}
            What::Failed(reason) => {
                tracing::warn!(path = kind.rest_path(), name, reason, "a poll failed");
                self.subscriptions.count(kind, name, &Outcome::Failure, store, SystemTime::now());
            }
            What::Came(body) => {
                let carried = Carried::polled(kind, &polled.name);
                let (subscriptions, waits, unknown) = (&mut self.subscriptions, &mut self.waits, &self.unknown);
                let (carried, asked, origin) = (&carried, &BTreeMap::new(), &Origin::of_called(name));
                let mut apply = Apply { store, subscriptions, waits, unknown, carried, asked, origin };
                apply.polled(kind, name, &body, rest);
            }
        }
    }

    fn time_passed(&mut self, store: &mut Store, now: Instant) {
        for stream in self.streams.values_mut() {
            let (subscriptions, waits, unknown) = (&mut self.subscriptions, &mut self.waits, &self.unknown);
            let (carried, asked, origin) = (&stream.carried, &stream.asked, &stream.origin);
            let mut apply = Apply { store, subscriptions, waits, unknown, carried, asked, origin };
            stream.mux.expire(&mut apply, now);
        }
        for (kind, name) in self.waits.overdue(now) {
            self.subscriptions.timed_out(kind, &name, store);
        }
    }

    /// Asks for what the store needs now, and sends what is due.
    pub(crate) fn sync(&mut self, store: &mut Store) {
        self.sync_named(Kind::Runtime, store);
        if let Some(source) = self.clusters.clone().filter(|_| self.clusters_begun) {
            self.ask_for_all(Kind::Cluster, &source, store);
        }
        self.sync_named(Kind::Endpoints, store);
        if let Some(source) = self.listeners.clone().filter(|_| self.listeners_begun) {
            self.ask_for_all(Kind::Listener, &source, store);
        }
        self.sync_named(Kind::Secret, store);
        self.sync_named(Kind::Extension, store);
        self.sync_named(Kind::Scope, store);
        self.sync_named(Kind::Route, store);
        self.sync_named(Kind::VirtualHost, store);
        self.sync_asked_hosts(store);
        self.send();
        if let Some(place) = self.held
            && !store.is_warming_clusters()
        {
            self.held = None;
            if let Some(stream) = self.streams.get_mut(&place) {
                stream.mux.resume(Kind::Cluster.type_url());
            }
            self.send();
        }
    }

    /// Everything of a type, or of the collection that is named for it.
    fn ask_for_all(&mut self, kind: Kind, source: &ConfigSource, store: &Store) {
        let Some(wait) = source.wait() else { return };
        let polled = polled_from(Some(source));
        self.subscriptions.set_polled(kind, "", polled.is_some());
        let all: Arc<str> = "".into();
        if self.waits.begin(kind, &all, wait, Instant::now()) {
            self.subscriptions.begin(kind, &all, store);
        }
        if let Some(place) = self.place_of(kind, source)
            && let Some(stream) = self.streams.get_mut(&place)
        {
            let collection = self.collections.get(&kind);
            stream.ask(kind, collection.map_or_else(Interest::everything, |name| Interest::names([Arc::clone(name)])));
        }
        self.polls.set(kind, &all, polled, false);
    }

    /// The stream that carries a type from there; none for a file, and for what is polled.
    fn place_of(&mut self, kind: Kind, source: &ConfigSource) -> Option<usize> {
        match source {
            ConfigSource::File { .. } | ConfigSource::Rest(..) => None,
            ConfigSource::Ads(_) => self.ads,
            ConfigSource::Stream(control_plane, _) => Some(self.stream_of(kind, control_plane)),
        }
    }

    /// Types do not share a stream, names do. (Envoy opens one for each name, so as many as there are clusters over EDS.)
    fn stream_of(&mut self, kind: Kind, control_plane: &Arc<ControlPlane>) -> usize {
        let same = |stream: &Stream| stream.kind == Some(kind) && stream.control_plane == *control_plane;
        match self.streams.iter().find(|(_, stream)| same(stream)) {
            Some((place, _)) => *place,
            None => self.open(Arc::clone(control_plane), Some(kind)),
        }
    }

    fn open(&mut self, control_plane: Arc<ControlPlane>, kind: Option<Kind>) -> usize {
        let place = self.next_stream;
        self.next_stream += 1;
        let delta = control_plane.delta;
        let channel = Channel::new(&self.shared, control_plane.service.clone());
        let method = kind.map_or_else(|| ads_method(delta), |kind| kind.method(delta));
        // What is asked for by name counts with the names.
        let stats = match kind {
            None => ControlPlaneStats::at(&self.root),
            Some(Kind::Cluster) => ControlPlaneStats::at(&self.root.scope("cluster_manager.cds.")),
            Some(Kind::Listener) => ControlPlaneStats::at(&self.root.scope("listener_manager.lds.")),
            Some(_) => ControlPlaneStats::of_subscriptions(),
        };
        let origin = match kind {
            Some(Kind::Secret) => Origin::of(&ConfigSource::Stream(Arc::clone(&control_plane), Wait(None))),
            _ => Origin::default(),
        };
        let stream = Stream {
            origin,
            mux: Mux::new(&control_plane, self.node.clone()),
            gate: Gate::new(control_plane.rate_limit, Instant::now()),
            stats,
            task: tokio::spawn(stream::run(place, Arc::clone(&control_plane), channel, method, self.reporting.clone())),
            asked: BTreeMap::new(),
            carried: Carried::default(),
            control_plane,
            kind,
        };
        self.streams.insert(place, stream);
        place
    }

    /// Closes streams of one type that nobody needs any more.
    fn close_unneeded(&mut self) {
        self.streams.retain(|_, stream| {
            let is_needed = stream.kind.is_none() || stream.asked.values().any(|interest| !interest.is_empty());
            if !is_needed {
                stream.stats.disconnected();
            }
            is_needed
        });
    }

    /// Takes as little room as it can, once nothing comes for a while.
    pub(crate) fn compact(&mut self) {
        for stream in self.streams.values_mut() {
            stream.asked.values_mut().for_each(Interest::compact);
            stream.mux.compact();
        }
        self.subscriptions.compact();
    }

    fn send(&mut self) {
        let now = Instant::now();
        for Stream { mux, gate, stats, .. } in self.streams.values_mut() {
            mux.send(gate, now, stats);
        }
    }
}

async fn next_demand(demands: &mut Option<mpsc::Receiver<Demand>>) -> Option<Demand> {
    match demands {
        Some(demands) => demands.recv().await,
        None => std::future::pending().await,
    }
}

/// Where a source is polled.
fn polled_from(source: Option<&ConfigSource>) -> Option<&Arc<RestControlPlane>> {
    match source {
        Some(ConfigSource::Rest(control_plane, _)) => Some(control_plane),
        _ => None,
    }
}

impl Stream {
    /// Asks for something else than before; what was never asked for and is not now needs no word.
    fn ask(&mut self, kind: Kind, interest: Interest) {
        let before = self.asked.get(&kind);
        if before == Some(&interest) || (before.is_none() && interest == Interest::default()) {
            return;
        }
        self.mux.ask(kind.type_url(), interest.clone());
        self.asked.insert(kind, interest);
    }

    /// Asks for some names more and some less than before.
    fn change(&mut self, kind: Kind, more: &[Arc<str>], less: &[Arc<str>]) {
        if more.is_empty() && less.is_empty() {
            return;
        }
        let asked = self.asked.entry(kind).or_default();
        more.iter().for_each(|name| asked.insert(name));
        less.iter().for_each(|name| asked.remove(name));
        self.mux.change(kind.type_url(), asked, more, less);
    }

    /// Asks once more for names that were asked for before: whoever needs them begins anew.
    fn ask_again(&mut self, kind: Kind, names: &[Arc<str>]) {
        if !names.is_empty()
            && let Some(asked) = self.asked.get(&kind)
        {
            self.mux.ask_again(kind.type_url(), asked, names);
        }
    }

    fn asks(&self, kind: Kind, name: &str) -> bool {
        if kind.is_whole() {
            return self.carried.has(kind, name);
        }
        let asked = self.asked.get(&kind).filter(|_| self.origin.is_of(name));
        asked.is_some_and(|asked| asked.names_asked().contains(name_of(name)))
    }

    /// Everything that is counted of what comes this way.
    fn subscriptions(&self) -> Vec<(Kind, Arc<str>)> {
        let asked = self.asked.iter().filter(|(_, interest)| !interest.is_empty());
        let named = asked.flat_map(|(kind, interest)| {
            let names: Vec<Arc<str>> = match kind {
                Kind::Cluster | Kind::Listener => vec!["".into()],
                Kind::Scope | Kind::VirtualHost => self.carried.of(*kind).cloned().collect(),
                _ => interest.names_asked().iter().map(|name| self.origin.call(name).into()).collect(),
            };
            names.into_iter().map(|name| (*kind, name))
        });
        named.collect()
    }
}
