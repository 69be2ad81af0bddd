//! What has been counted since the last report, by cluster, locality and endpoint (Envoy's `LoadStatsReporterImpl`). It must
//! not know how a report travels.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_filters::stream_info::{Address, Locality};
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::endpoint::v3::cluster_stats::DroppedRequests;
use tidegate_xds::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamEndpointStats, UpstreamLocalityStats};
use tidegate_xds::pb::google::protobuf::Duration as DurationProto;

use crate::cluster::Cluster;
use crate::cluster::host::{Host, HostCounter};
use crate::cluster::options::Discovery;
use crate::snapshot::Snapshot;

/// The clusters that are reported.
#[derive(Default)]
pub(super) struct Tally(BTreeMap<Arc<str>, Tracked>);

/// What had been counted when a cluster was last reported.
struct Tracked {
    since: Instant,
    hosts: HashMap<(u32, Address), Counts>,
    dropped: u64,
    drop_overload: u64,
}

/// Of one host, or the sum of a locality's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    issued: u64,
    successful: u64,
    failed: u64,
}

impl Counts {
    fn of(host: &Host) -> Self {
        Self {
            issued: host.state.counted(HostCounter::Requests),
            successful: host.state.counted(HostCounter::RequestSuccess),
            failed: host.state.counted(HostCounter::RequestError),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            issued: since(self.issued, before.issued),
            successful: since(self.successful, before.successful),
            failed: since(self.failed, before.failed),
        }
    }

    fn add(&mut self, other: Self) {
        self.issued += other.issued;
        self.successful += other.successful;
        self.failed += other.failed;
    }

    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// A counter that is smaller than it was is another one, which began at nothing.
fn since(now: u64, before: u64) -> u64 {
    if now < before { now } else { now - before }
}

impl Tracked {
    /// From now on: what was counted before does not count.
    fn new(cluster: &Cluster, now: Instant) -> Self {
        let (dropped, drop_overload) = cluster.dropped();
        let hosts = cluster.hosts();
        let hosts = hosts.hosts().map(|host| (key(host), Counts::of(host))).collect();
        Self { since: now, hosts, dropped, drop_overload }
    }
}

fn key(host: &Host) -> (u32, Address) {
    (host.priority, host.address.clone())
}

impl Tally {
    /// From now on these are reported, of those that there are. One that was before goes on.
    pub(super) fn follow<'a>(&mut self, names: impl Iterator<Item = &'a str>, snapshot: &Snapshot, now: Instant) {
        let mut followed = BTreeMap::new();
        for cluster in names.filter_map(|name| snapshot.clusters.get(name)) {
            let known = self.0.remove(cluster.name());
            followed.insert(Arc::clone(cluster.name()), known.unwrap_or_else(|| Tracked::new(cluster, now)));
        }
        self.0 = followed;
    }

    /// What was counted since the last time, `by_endpoint` where that was asked for.
    pub(super) fn report(&mut self, snapshot: &Snapshot, by_endpoint: bool, now: Instant) -> Vec<ClusterStats> {
        let clusters = self.0.iter_mut();
        let here = clusters.filter_map(|(name, tracked)| Some((snapshot.clusters.get(&**name)?, tracked)));
        here.map(|(cluster, tracked)| report_one(cluster, tracked, by_endpoint, now)).collect()
    }
}

fn report_one(cluster: &Cluster, tracked: &mut Tracked, by_endpoint: bool, now: Instant) -> ClusterStats {
    let set = cluster.hosts();
    let mut localities: BTreeMap<(u32, [&str; 3]), Part> = BTreeMap::new();
    let mut hosts = HashMap::with_capacity(tracked.hosts.len());
    for host in set.hosts() {
        let key = key(host);
        let counted = Counts::of(host);
        let counts = counted.since(tracked.hosts.get(&key).copied().unwrap_or_default());
        let locality = &*host.locality;
        let names = [locality.region.as_str(), &locality.zone, &locality.sub_zone];
        let part = localities.entry((host.priority, names)).or_default();
        part.add(host, counts, by_endpoint);
        part.locality = Some(locality);
        hosts.insert(key, counted);
    }
    tracked.hosts = hosts;
    let (dropped, drop_overload) = cluster.dropped();
    let shed = since(drop_overload, tracked.drop_overload);
    let category = || set.drop_overload.as_ref().map(|drop| drop.category.to_string()).unwrap_or_default();
    let shed = (shed > 0).then(|| DroppedRequests { category: category(), dropped_count: shed });
    let stats = ClusterStats {
        cluster_name: cluster.name().to_string(),
        cluster_service_name: match &cluster.config().discovery {
            Discovery::Eds(eds) if eds.service_name != *cluster.name() => eds.service_name.to_string(),
            _ => String::new(),
        },
        upstream_locality_stats: localities
            .into_iter()
            .filter(|(_, part)| part.active > 0 || !part.counts.is_none())
            .map(|((priority, _), part)| part.into_stats(priority))
            .collect(),
        total_dropped_requests: since(dropped, tracked.dropped),
        dropped_requests: shed.into_iter().collect(),
        load_report_interval: Some(interval(now.saturating_duration_since(tracked.since))),
    };
    (tracked.since, tracked.dropped, tracked.drop_overload) = (now, dropped, drop_overload);
    stats
}

/// One locality at one priority.
#[derive(Default)]
struct Part<'a> {
    locality: Option<&'a Locality>,
    counts: Counts,
    active: u64,
    endpoints: Vec<UpstreamEndpointStats>,
}

impl Part<'_> {
    fn add(&mut self, host: &Host, counts: Counts, by_endpoint: bool) {
        let active = u64::from(host.state.requests_active());
        self.counts.add(counts);
        self.active += active;
        if by_endpoint && (active > 0 || !counts.is_none()) {
            self.endpoints.push(UpstreamEndpointStats {
                address: Some(address(&host.address)),
                total_successful_requests: counts.successful,
                total_requests_in_progress: active,
                total_error_requests: counts.failed,
                total_issued_requests: counts.issued,
                ..UpstreamEndpointStats::default()
            });
        }
    }

    fn into_stats(self, priority: u32) -> UpstreamLocalityStats {
        let locality = self.locality.cloned().unwrap_or_default();
        UpstreamLocalityStats {
            locality: Some(core::Locality {
                region: locality.region,
                zone: locality.zone,
                sub_zone: locality.sub_zone,
            }),
            total_successful_requests: self.counts.successful,
            total_requests_in_progress: self.active,
            total_error_requests: self.counts.failed,
            total_issued_requests: self.counts.issued,
            upstream_endpoint_stats: self.endpoints,
            priority,
            ..UpstreamLocalityStats::default()
        }
    }
}

fn address(address: &Address) -> core::Address {
    use core::address::Address as Kind;
    use core::envoy_internal_address::AddressNameSpecifier;
    use core::socket_address::PortSpecifier;
    let kind = match address {
        Address::Ip(ip) => Kind::SocketAddress(core::SocketAddress {
            address: ip.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(ip.port()))),
            ..core::SocketAddress::default()
        }),
        Address::Pipe(path) => Kind::Pipe(core::Pipe { path: path.to_string(), ..core::Pipe::default() }),
        Address::Internal(name) => Kind::EnvoyInternalAddress(core::EnvoyInternalAddress {
            address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(name.to_string())),
            ..core::EnvoyInternalAddress::default()
        }),
    };
    core::Address { address: Some(kind) }
}

/// In microseconds, as Envoy measures.
fn interval(measured: Duration) -> DurationProto {
    let seconds = i64::try_from(measured.as_secs()).unwrap_or(i64::MAX);
    let micros = i32::try_from(measured.subsec_micros()).unwrap_or_default();
    DurationProto { seconds, nanos: micros * 1000 }
}
