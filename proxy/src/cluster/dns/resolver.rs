//! The resolver of the real world, over hickory: servers and search domains of the system or of a configuration, and the
//! hosts file before them. It must not know clusters.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig as Servers, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use parking_lot::Mutex;

use super::hosts_file::HostsFile;
use super::{Answer, Family, Resolve, ResolverConfig};

/// Resolvers by what they are configured with: clusters that ask alike share one.
#[derive(Default)]
pub struct Resolvers(Mutex<HashMap<ResolverConfig, Arc<SystemResolver>>>);

impl Resolvers {
    /// The resolver for a configuration.
    pub fn get(&self, config: &ResolverConfig) -> Arc<dyn Resolve> {
        let mut resolvers = self.0.lock();
        match resolvers.get(config) {
            Some(resolver) => Arc::clone(resolver) as Arc<dyn Resolve>,
            None => {
                let resolver = Arc::new(SystemResolver::new(config));
                resolvers.insert(config.clone(), Arc::clone(&resolver));
                resolver
            }
        }
    }
}

/// A resolver over hickory. It is used on the runtime on which it makes its first query.
pub struct SystemResolver {
    hosts: HostsFile,
    /// One for each server: hickory's own list gives all of them together no longer than one, so a first that is silent would
    /// hide the second.
    servers: Vec<TokioResolver>,
    /// How often the list is gone through.
    tries: u32,
    /// Where the next query begins, when servers take turns.
    turn: Option<AtomicUsize>,
    search: Vec<Name>,
    ndots: usize,
    ttl: Option<Duration>,
}

impl SystemResolver {
    /// Reads the system's configuration as far as `config` leaves things to it.
    pub fn new(config: &ResolverConfig) -> Self {
        let (system, mut options) = read_system_conf().unwrap_or_else(|error| {
            tracing::debug!(%error, "no system resolver configuration; asking 127.0.0.1");
            let local = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
            (Servers::from_parts(None, Vec::new(), vec![local]), ResolverOpts::default())
        });
        let search = if config.no_search_domain { Vec::new() } else { system.search().to_vec() };
        let ndots = options.ndots;
        // Refreshing is ours: a cache below it makes it see old answers, which must be asked for.
        options.cache_size = config.cache.map_or(0, |cache| cache.size);
        options.positive_max_ttl = config.cache.map(|cache| cache.longest);
        options.negative_max_ttl = config.cache.map(|cache| cache.longest);
        options.edns0 = true;
        options.use_hosts_file = ResolveHosts::Never;
        options.num_concurrent_reqs = 1;
        options.timeout = config.timeout;
        options.attempts = 0;
        let servers = name_servers(config, &system).into_iter().filter_map(|server| one_server(server, &options));
        Self {
            hosts: HostsFile::system(),
            servers: servers.collect(),
            tries: config.tries,
            turn: config.rotate.then(AtomicUsize::default),
            search,
            ndots,
            ttl: config.ttl,
        }
    }

    /// The absolute names to ask for, in order (`search` and `ndots` of resolv.conf(5)).
    fn candidates(&self, name: &str) -> Vec<Name> {
        let Ok(mut absolute) = Name::from_str_relaxed(name) else {
            return Vec::new();
        };
        if absolute.is_fqdn() {
            return vec![absolute];
        }
        let searched = self.search.iter().filter_map(|domain| absolute.clone().append_domain(domain).ok());
        let mut names: Vec<Name> = searched.collect();
        let dots = usize::from(absolute.num_labels()).saturating_sub(1);
        absolute.set_fqdn(true);
        names.insert(if dots >= self.ndots { 0 } else { names.len() }, absolute);
        names
    }

    /// A failure ends the search: what a later name says must not pass for the answer to an earlier one.
    async fn search(&self, name: &str, family: Family) -> Answer {
        for candidate in self.candidates(name) {
            match self.ask_in_turn(&candidate, family).await {
                Answer::NoRecords => {}
                Answer::Addresses { addresses, ttl } => {
                    return Answer::Addresses { addresses, ttl: self.ttl.unwrap_or(ttl) };
                }
                answer => return answer,
            }
        }
        Answer::NoRecords
    }

    /// Asks one server after another until one knows.
    async fn ask_in_turn(&self, name: &Name, family: Family) -> Answer {
        let first = self.turn.as_ref().map_or(0, |turn| turn.fetch_add(1, Relaxed));
        for at in 0..self.servers.len() * self.tries.max(1) as usize {
            let server = &self.servers[first.wrapping_add(at) % self.servers.len()];
            match ask(server, name.clone(), family).await {
                Answer::Failed => {}
                answer => return answer,
            }
        }
        Answer::Failed
    }
}

impl Resolve for SystemResolver {
    fn query(&self, name: &str, family: Family) -> BoxFuture<'_, Answer> {
        match self.hosts.lookup(name, family) {
            Some(addresses) if addresses.is_empty() => Box::pin(async { Answer::NoRecords }),
            Some(addresses) => {
                let ttl = self.ttl.unwrap_or_default();
                Box::pin(async move { Answer::Addresses { addresses, ttl } })
            }
            None => {
                let name = name.to_owned();
                Box::pin(async move { self.search(&name, family).await })
            }
        }
    }
}

/// `None` where hickory refuses the configuration.
fn one_server(server: NameServerConfig, options: &ResolverOpts) -> Option<TokioResolver> {
    let servers = Servers::from_parts(None, Vec::new(), vec![server]);
    TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default())
        .with_options(options.clone())
        .build()
        .inspect_err(|error| tracing::error!(%error, "cannot make a DNS resolver"))
        .ok()
}

async fn ask(resolver: &TokioResolver, name: Name, family: Family) -> Answer {
    let kind = match family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    };
    match resolver.lookup(name, kind).await {
        Ok(lookup) => {
            let records = lookup.answers().iter().filter_map(|record| Some((record.data.ip_addr()?, record.ttl)));
            let (mut addresses, mut ttl) = (Vec::new(), u32::MAX);
            for (address, seconds) in records.filter(|(address, _)| address.is_ipv4() == (family == Family::V4)) {
                addresses.push(address);
                ttl = ttl.min(seconds);
            }
            if addresses.is_empty() {
                return Answer::NoRecords;
            }
            Answer::Addresses { addresses, ttl: Duration::from_secs(u64::from(ttl)) }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(_))) => Answer::NoRecords,
        Err(error) => {
            tracing::debug!(%error, "DNS query failed");
            Answer::Failed
        }
    }
}

fn name_servers(config: &ResolverConfig, system: &Servers) -> Vec<NameServerConfig> {
    let of_system = config.servers_are_fallback && !system.name_servers().is_empty();
    if config.servers.is_empty() || of_system {
        let mut servers = system.name_servers().to_vec();
        if config.use_tcp {
            for server in &mut servers {
                server.connections = vec![ConnectionConfig::tcp()];
            }
        }
        return servers;
    }
    let servers = config.servers.iter().map(|address| {
        let mut tcp = ConnectionConfig::tcp();
        let mut udp = ConnectionConfig::udp();
        tcp.port = address.port();
        udp.port = address.port();
        let connections = if config.use_tcp { vec![tcp] } else { vec![udp, tcp] };
        NameServerConfig::new(address.ip(), true, connections)
    });
    servers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
    use hickory_resolver::proto::rr::{RData, Record};
    use tokio::net::UdpSocket;

    /// Answers `ok.test` and `ok.ns.test`, fails for `fail.*`, and knows nothing else.
    async fn serve(socket: UdpSocket) {
        let mut buffer = [0; 512];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            let mut message = Message::from_vec(&buffer[..length]).unwrap();
            let query = message.queries[0].clone();
            let name = query.name().to_ascii();
            message.metadata.message_type = MessageType::Response;
            message.metadata.response_code = match name.as_str() {
                "ok.test." | "ok.ns.test." => ResponseCode::NoError,
                _ if name.starts_with("fail.") => ResponseCode::ServFail,
                _ => ResponseCode::NXDomain,
            };
            if query.query_type() == RecordType::A && message.metadata.response_code == ResponseCode::NoError {
                let address = RData::A("10.0.0.1".parse().unwrap());
                message.answers.push(Record::from_rdata(query.name().clone(), 7, address));
            }
            socket.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let config = ResolverConfig {
            servers: vec![socket.local_addr().unwrap()],
            timeout: Duration::from_secs(5),
            tries: 1,
            ..ResolverConfig::default()
        };
        let server = tokio::spawn(serve(socket));
        let mut resolver = SystemResolver::new(&config);
        resolver.search = vec![Name::from_ascii("ns.test.").unwrap()];
        resolver.ndots = 1;
        let found = Answer::Addresses { addresses: vec![IpAddr::from([10, 0, 0, 1])], ttl: Duration::from_secs(7) };
        assert_eq!(resolver.query("ok.test", Family::V4).await, found);
        assert_eq!(resolver.query("ok", Family::V4).await, found);
        assert_eq!(resolver.query("ok.test", Family::V6).await, Answer::NoRecords);
        assert_eq!(resolver.query("none.test", Family::V4).await, Answer::NoRecords);
        assert_eq!(resolver.query("fail.test", Family::V4).await, Answer::Failed);
        let local = resolver.query("localhost", Family::V4).await;
        assert!(matches!(local, Answer::Addresses { addresses, .. } if addresses[0].is_loopback()));
        server.abort();
    }

    #[tokio::test]
    async fn a_server_that_is_silent_or_fails_leaves_the_word_to_the_next() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let known = socket.local_addr().unwrap();
        let server = tokio::spawn(serve(socket));
        let resolver = |rotate| {
            SystemResolver::new(&ResolverConfig {
                servers: vec![silent.local_addr().unwrap(), known],
                timeout: Duration::from_millis(50),
                tries: 2,
                rotate,
                no_search_domain: true,
                ..ResolverConfig::default()
            })
        };
        let found = |answer| matches!(answer, Answer::Addresses { .. });
        assert!(found(resolver(false).query("ok.test", Family::V4).await));
        assert_eq!(resolver(false).query("fail.test", Family::V4).await, Answer::Failed);
        let turns = resolver(true);
        assert!(found(turns.query("ok.test", Family::V4).await) && found(turns.query("ok.test", Family::V4).await));
        assert_eq!(turns.turn.unwrap().load(Relaxed), 2);
        server.abort();
    }

    #[test]
    fn short_names_are_searched_first_and_long_ones_last() {
        let resolver = SystemResolver {
            hosts: HostsFile::system(),
            servers: Vec::new(),
            tries: 1,
            turn: None,
            search: vec![Name::from_ascii("ns.svc.").unwrap(), Name::from_ascii("svc.").unwrap()],
            ndots: 2,
            ttl: None,
        };
        let names = |name: &str| -> Vec<String> { resolver.candidates(name).iter().map(ToString::to_string).collect() };
        assert_eq!(names("a"), ["a.ns.svc.", "a.svc.", "a."]);
        assert_eq!(names("a.b.c"), ["a.b.c.", "a.b.c.ns.svc.", "a.b.c.svc."]);
        assert_eq!(names("a.b."), ["a.b."]);
        assert_eq!(names(&"x".repeat(300)), Vec::<String>::new());
    }
}
