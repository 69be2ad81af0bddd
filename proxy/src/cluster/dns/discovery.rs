//! Keeps a cluster's hosts at what its names resolve to: one loop for each name, all in one task.
//! It must not know how queries are made.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tidegate_filters::runtime::Runtime;
use tidegate_filters::stream_info::Address;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::lookup::lookup;
use super::{Answer, DnsOptions, Resolve};
use crate::cluster::Cluster;
use crate::cluster::endpoint::{Assignment, Endpoint, LocalityEndpoints, Name};
use crate::cluster::options::{Discovery, Dns};

/// The running discovery of one DNS cluster. It ends when this is dropped.
pub struct DnsDiscovery {
    task: JoinHandle<()>,
    resolved: watch::Receiver<bool>,
}

impl DnsDiscovery {
    /// Starts resolving on the current runtime; `None` for clusters that are not of DNS. `seed` is random.
    pub fn start(
        cluster: &Arc<Cluster>,
        resolver: Arc<dyn Resolve>,
        runtime: Arc<dyn Runtime>,
        seed: u64,
    ) -> Option<Self> {
        let (dns, single_host) = match &cluster.config().discovery {
            Discovery::StrictDns(dns) => (dns, false),
            Discovery::LogicalDns(dns) => (dns, true),
            Discovery::Static(_) | Discovery::Eds(_) => return None,
        };
        let targets = targets(dns);
        // Without names there is nothing to wait for.
        let (sender, resolved) = watch::channel(targets.is_empty());
        let following = Following {
            answers: Mutex::new(vec![Vec::new(); targets.len()]),
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            failures: Mutex::new(Backoff::new(&dns.options)),
            resolved: sender,
            cluster: Arc::clone(cluster),
            resolver,
            runtime,
            single_host,
        };
        let task = tokio::spawn(async move {
            let loops = targets.iter().enumerate().map(|(index, name)| following.follow(index, name));
            join_all(loops).await;
        });
        Some(Self { task, resolved })
    }

    /// Waits until a name was resolved for the first time, or has failed to; as in Envoy any one of them.
    pub async fn first_resolution(&self) {
        // The sender goes only with the task; then nothing more will come.
        let _ = self.resolved.clone().wait_for(|resolved| *resolved).await;
    }

    /// Waits until there is nothing to follow any more: the cluster was retired, or it has no names.
    pub async fn ended(&self) {
        let mut resolved = self.resolved.clone();
        while resolved.changed().await.is_ok() {}
    }
}

impl Drop for DnsDiscovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The names in the order of the assignment's endpoints.
fn targets(dns: &Dns) -> Vec<Name> {
    let endpoints = dns.targets.localities.iter().flat_map(|locality| &locality.endpoints);
    endpoints.map(|endpoint| endpoint.address.clone()).collect()
}

struct Following {
    /// The last good addresses of each name.
    answers: Mutex<Vec<Vec<IpAddr>>>,
    random: Mutex<SmallRng>,
    /// One back-off for all names, as in Envoy.
    failures: Mutex<Backoff>,
    resolved: watch::Sender<bool>,
    cluster: Arc<Cluster>,
    resolver: Arc<dyn Resolve>,
    runtime: Arc<dyn Runtime>,
    single_host: bool,
}

impl Following {
    async fn follow(&self, index: usize, name: &Name) {
        let Some(options) = self.dns().map(|dns| &dns.options) else {
            return;
        };
        loop {
            let stats = &self.cluster.stats().updates;
            stats.update_attempt().inc();
            let last = self.answers.lock()[index].clone();
            let cluster = self.cluster.name();
            tracing::trace!("resolving '{}' for cluster '{cluster}'", name.host);
            let wait = match lookup(&*self.resolver, &name.host, options.family, &last).await {
                Answer::Addresses { addresses, ttl } => {
                    tracing::debug!("cluster '{cluster}': '{}' resolved to {addresses:?}, ttl {ttl:?}", name.host);
                    self.take(index, addresses);
                    self.after_success(options, ttl)
                }
                // An empty answer is an answer where it may not take hosts away: there are none.
                Answer::NoRecords if !self.single_host && (options.empty_on_no_records || last.is_empty()) => {
                    self.take(index, Vec::new());
                    self.after_success(options, Duration::ZERO)
                }
                Answer::NoRecords | Answer::Failed => {
                    tracing::debug!("cluster '{cluster}': resolving '{}' failed", name.host);
                    stats.update_failure().inc();
                    self.failures.lock().next(&mut self.random.lock())
                }
            };
            self.resolved.send_if_modified(|resolved| !std::mem::replace(resolved, true));
            tokio::time::sleep(wait).await;
            if self.cluster.is_retired() {
                return;
            }
        }
    }

    fn dns(&self) -> Option<&Dns> {
        match &self.cluster.config().discovery {
            Discovery::StrictDns(dns) | Discovery::LogicalDns(dns) => Some(dns),
            Discovery::Static(_) | Discovery::Eds(_) => None,
        }
    }

    /// Makes an answer the cluster's hosts, if it is not what they were.
    fn take(&self, index: usize, addresses: Vec<IpAddr>) {
        let stats = &self.cluster.stats().updates;
        stats.update_success().inc();
        let mut answers = self.answers.lock();
        if same(&answers[index], &addresses, self.single_host) {
            stats.update_no_rebuild().inc();
            return;
        }
        answers[index] = addresses;
        if let Some(dns) = self.dns() {
            let assignment = assign(&dns.targets, &answers, self.single_host);
            self.cluster.update_hosts(&assignment, &*self.runtime);
        }
    }

    fn after_success(&self, options: &DnsOptions, ttl: Duration) -> Duration {
        self.failures.lock().reset();
        let respected = options.respect_ttl && !ttl.is_zero();
        let rate = if respected { ttl.max(options.min_refresh_rate) } else { options.refresh_rate };
        let jitter = options.jitter.as_millis() as u64;
        let jitter = if jitter == 0 { 0 } else { self.random.lock().random_range(0..jitter) };
        rate + Duration::from_millis(jitter)
    }
}

/// Whether two answers make the same hosts. Servers rotate their answers: order counts only where the first address is the
/// host's own.
fn same(old: &[IpAddr], new: &[IpAddr], ordered: bool) -> bool {
    if ordered {
        return old == new;
    }
    old.iter().all(|address| new.contains(address)) && new.iter().all(|address| old.contains(address))
}

/// Replaces names by what they resolve to.
fn assign(targets: &Assignment<Name>, answers: &[Vec<IpAddr>], single_host: bool) -> Assignment {
    let mut answers = answers.iter();
    let localities = targets.localities.iter().map(|locality| {
        let endpoints = locality.endpoints.iter().flat_map(|endpoint| {
            let addresses = answers.next().map(Vec::as_slice).unwrap_or_default();
            resolved(endpoint, addresses, single_host)
        });
        LocalityEndpoints {
            endpoints: endpoints.collect(),
            locality: Arc::clone(&locality.locality),
            metadata: Arc::clone(&locality.metadata),
            // Envoy does the same: one host has nothing to fail over from.
            priority: if single_host { 0 } else { locality.priority },
            weight: locality.weight,
        }
    });
    Assignment {
        localities: localities.collect(),
        overprovisioning_factor: targets.overprovisioning_factor,
        weighted_priority_health: targets.weighted_priority_health,
        unique_addresses: false,
        drop_overload: targets.drop_overload.clone(),
    }
}

fn resolved(endpoint: &Endpoint<Name>, addresses: &[IpAddr], single_host: bool) -> Vec<Endpoint> {
    let name = &endpoint.address;
    let hostname = if endpoint.hostname.is_empty() { &name.host } else { &endpoint.hostname };
    let host = |address: SocketAddr, more_addresses: Vec<SocketAddr>| Endpoint {
        address: Address::Ip(address),
        more_addresses,
        hostname: Arc::clone(hostname),
        weight: endpoint.weight,
        health_status: endpoint.health_status,
        canary: endpoint.canary,
        metadata: Arc::clone(&endpoint.metadata),
    };
    let mut unique: Vec<SocketAddr> = Vec::with_capacity(addresses.len());
    for address in addresses {
        let address = SocketAddr::new(*address, name.port);
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    match (single_host, unique.split_first()) {
        (true, Some((first, more))) => vec![host(*first, more.to_vec())],
        _ => unique.into_iter().map(|address| host(address, Vec::new())).collect(),
    }
}

/// Waits between failures.
struct Backoff {
    base: Duration,
    max: Duration,
    window: Duration,
    /// Always the same wait when no failure rate is configured.
    fixed: bool,
}

impl Backoff {
    fn new(options: &DnsOptions) -> Self {
        match options.failure_refresh {
            Some((base, max)) => Self { base, max, window: base, fixed: false },
            None => Self {
                base: options.refresh_rate,
                max: options.refresh_rate,
                window: options.refresh_rate,
                fixed: true,
            },
        }
    }

    /// A random part of a window that doubles.
    fn next(&mut self, random: &mut SmallRng) -> Duration {
        if self.fixed {
            return self.base;
        }
        let window = self.window.as_millis().max(1) as u64;
        self.window = (self.window * 2).min(self.max);
        Duration::from_millis(random.random_range(0..window).max(1))
    }

    fn reset(&mut self) {
        self.window = self.base;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use futures_util::future::BoxFuture;
    use tidegate_filters::runtime::NoRuntime;
    use tidegate_stats::Store;
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::cluster::dns::Family;
    use crate::config::cluster::testing::cluster;

    /// Answers by name and family; what is not there does not exist.
    #[derive(Default)]
    struct Fake {
        answers: Mutex<HashMap<(String, Family), Answer>>,
        asked: Mutex<Vec<(String, Duration)>>,
        start: Mutex<Option<Instant>>,
    }

    impl Fake {
        fn set(&self, name: &str, family: Family, answer: Answer) {
            self.answers.lock().insert((name.to_owned(), family), answer);
        }

        fn v4(&self, name: &str, list: &[&str], ttl: u64) {
            let addresses = list.iter().map(|text| text.parse().unwrap()).collect();
            self.set(name, Family::V4, Answer::Addresses { addresses, ttl: Duration::from_secs(ttl) });
        }

        fn times(&self) -> Vec<u64> {
            self.asked.lock().iter().map(|(_, at)| at.as_millis() as u64).collect()
        }
    }

    impl Resolve for Fake {
        fn query(&self, name: &str, family: Family) -> BoxFuture<'_, Answer> {
            let start = *self.start.lock().get_or_insert_with(Instant::now);
            self.asked.lock().push((name.to_owned(), start.elapsed()));
            let answer = self.answers.lock().get(&(name.to_owned(), family)).cloned().unwrap_or(Answer::NoRecords);
            Box::pin(async move { answer })
        }
    }

    fn dns_cluster(kind: &str, names: &[&str], rest: &str) -> Arc<Cluster> {
        let endpoint =
            |name: &&str| format!("{{endpoint: {{address: {{socket_address: {{address: {name}, port_value: 80}}}}}}}}");
        let endpoints = names.iter().map(endpoint).collect::<Vec<_>>().join(", ");
        let text = format!(
            "{{name: a, type: {kind}, dns_lookup_family: V4_ONLY, \
             load_assignment: {{cluster_name: a, endpoints: [{{priority: 0, lb_endpoints: [{endpoints}]}}]}}{rest}}}"
        );
        let mut config = cluster(&text).config;
        if let Discovery::StrictDns(dns) | Discovery::LogicalDns(dns) = &mut config.discovery {
            dns.options.empty_on_no_records = false;
        }
        Cluster::new(config, None, &Store::new().root(), &NoRuntime, 1)
    }

    fn hosts(cluster: &Cluster) -> Vec<String> {
        cluster.hosts().hosts().map(|host| host.address.to_string()).collect()
    }

    fn start(cluster: &Arc<Cluster>, fake: &Arc<Fake>) -> DnsDiscovery {
        DnsDiscovery::start(cluster, Arc::clone(fake) as Arc<dyn Resolve>, Arc::new(NoRuntime), 1).unwrap()
    }

    /// Lets everything that is due happen.
    async fn pass(time: u64) {
        advance(Duration::from_millis(time)).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_follow_the_names() {
        let fake = Arc::new(Fake::default());
        fake.v4("x", &["1.1.1.1", "1.1.1.2", "1.1.1.1"], 0);
        fake.v4("z", &["2.2.2.2"], 0);
        let cluster = dns_cluster("STRICT_DNS", &["x", "z"], "");
        let discovery = start(&cluster, &fake);
        discovery.first_resolution().await;
        pass(0).await;
        assert_eq!(hosts(&cluster), ["1.1.1.1:80", "1.1.1.2:80", "2.2.2.2:80"]);
        let kept = cluster.hosts().hosts().next().cloned().unwrap();
        assert_eq!(&*kept.hostname, "x");

        fake.v4("x", &["1.1.1.3", "1.1.1.1"], 0);
        pass(5000).await;
        assert_eq!(hosts(&cluster), ["1.1.1.3:80", "1.1.1.1:80", "2.2.2.2:80"]);
        assert!(cluster.hosts().hosts().any(|host| Arc::ptr_eq(host, &kept)));
        // Another order of the same addresses is no change.
        fake.v4("x", &["1.1.1.1", "1.1.1.3"], 0);
        pass(5000).await;
        assert_eq!(hosts(&cluster), ["1.1.1.3:80", "1.1.1.1:80", "2.2.2.2:80"]);
        let stats = &cluster.stats().updates;
        assert_eq!((stats.update_attempt().value(), stats.update_success().value()), (6, 6));
        assert_eq!(stats.update_no_rebuild().value(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_stays() {
        let fake = Arc::new(Fake::default());
        fake.v4("x", &["1.1.1.1"], 0);
        let rates = ", dns_failure_refresh_rate: {base_interval: 0.1s, max_interval: 0.4s}";
        for answer in [Answer::Failed, Answer::NoRecords] {
            let cluster = dns_cluster("STRICT_DNS", &["x"], rates);
            fake.v4("x", &["1.1.1.1"], 0);
            let _discovery = start(&cluster, &fake);
            pass(0).await;
            fake.set("x", Family::V4, answer);
            for _ in 0..10 {
                pass(1000).await;
            }
            assert_eq!(hosts(&cluster), ["1.1.1.1:80"]);
            assert!(cluster.stats().updates.update_failure().value() >= 4);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_never_was_resolves_to_no_hosts() {
        let fake = Arc::new(Fake::default());
        let cluster = dns_cluster("STRICT_DNS", &["x"], "");
        let discovery = start(&cluster, &fake);
        discovery.first_resolution().await;
        assert!(hosts(&cluster).is_empty());
        let logical = dns_cluster("LOGICAL_DNS", &["x"], "");
        let discovery = start(&logical, &fake);
        discovery.first_resolution().await;
        assert_eq!(logical.stats().updates.update_failure().value(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_logical_host_has_all_addresses() {
        let fake = Arc::new(Fake::default());
        fake.v4("x", &["1.1.1.1", "1.1.1.2"], 0);
        let cluster = dns_cluster("LOGICAL_DNS", &["x"], "");
        let _discovery = start(&cluster, &fake);
        pass(0).await;
        let host = cluster.hosts().hosts().next().cloned().unwrap();
        assert_eq!((hosts(&cluster).len(), host.more_addresses.len()), (1, 1));
        fake.v4("x", &["1.1.1.2"], 0);
        pass(5000).await;
        assert_eq!(hosts(&cluster), ["1.1.1.2:80"]);
        assert!(host.state.is_removed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_to_live_is_waited_for_and_none_is_the_refresh_rate() {
        let fake = Arc::new(Fake::default());
        let cluster = dns_cluster("STRICT_DNS", &["x"], ", respect_dns_ttl: true, dns_refresh_rate: 10s");
        fake.v4("x", &["1.1.1.1"], 3);
        let discovery = start(&cluster, &fake);
        pass(0).await;
        fake.v4("x", &["1.1.1.1"], 0);
        for _ in 0..20 {
            pass(1000).await;
        }
        assert_eq!(fake.times(), [0, 3000, 13_000]);
        drop(discovery);
        for _ in 0..20 {
            pass(1000).await;
        }
        assert_eq!(fake.times().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_makes_waits_longer_each_by_another_time() {
        let fake = Arc::new(Fake::default());
        let cluster = dns_cluster("STRICT_DNS", &["x"], ", dns_refresh_rate: 10s, dns_jitter: 4s");
        fake.v4("x", &["1.1.1.1"], 0);
        let _discovery = start(&cluster, &fake);
        for _ in 0..4000 {
            pass(10).await;
        }
        let times = fake.times();
        let waits: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.len() >= 2 && waits.iter().all(|wait| (10_000..14_000).contains(wait)), "{waits:?}");
        assert!(waits.windows(2).all(|pair| pair[0] != pair[1]), "{waits:?}");
    }
}
