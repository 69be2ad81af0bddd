//! DNS: the SRV records of a name (RFC 2782), and the addresses of their targets. Asked again when the first of the records
//! has outlived its time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::instance::{Instance, Place};
use super::{Answer, Fault};

/// How often a name is asked for at least and at most, whatever its records say.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// How long one query may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A resolver: the system's, or of one server.
#[derive(Debug)]
pub(super) struct Dns {
    resolver: TokioResolver,
    shortest: Duration,
}

impl Dns {
    /// `server`: `ADDRESS[:PORT]`; empty for the system's.
    pub(super) fn new(server: &str) -> Result<Self, String> {
        let server = server.trim_end_matches('/');
        let builder = if server.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| format!("the system's resolver cannot be read: {error}"))?
        } else {
            let address = server
                .parse::<SocketAddr>()
                .or_else(|_| server.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)));
            let address = address.map_err(|_| "expected ADDRESS or ADDRESS:PORT after dns://".to_owned())?;
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (address.port(), address.port());
            let server = NameServerConfig::new(address.ip(), true, vec![udp, tcp]);
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(ResolverOpts::default())
        };
        let mut builder = builder;
        let options = builder.options_mut();
        // Asking again is ours: a cache below would show old answers.
        options.cache_size = 0;
        options.timeout = LIMIT;
        let resolver = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { resolver, shortest: SHORTEST })
    }

    /// For tests, which do not want to wait.
    #[cfg(test)]
    pub(super) fn impatient(mut self) -> Self {
        self.shortest = Duration::from_millis(20);
        self
    }

    pub(super) async fn ask(&self, service: &str) -> Result<Answer, Fault> {
        let mut name = Name::from_str_relaxed(service).map_err(Fault::new)?;
        name.set_fqdn(true);
        let (records, mut ttl) = self.lookup(name, RecordType::SRV).await?;
        let records: Vec<SRV> = records
            .into_iter()
            .filter_map(|data| match data {
                // A target of `.` says that the service is decidedly not there.
                RData::SRV(srv) if !srv.target.is_root() => Some(srv),
                _ => None,
            })
            .collect();
        let mut found = Vec::new();
        let mut addresses: BTreeMap<Name, Vec<IpAddr>> = BTreeMap::new();
        let priorities: BTreeSet<u16> = records.iter().map(|record| record.priority).collect();
        for record in records {
            if !addresses.contains_key(&record.target) {
                let (known, holds) = self.addresses(&record.target).await?;
                ttl = ttl.min(holds);
                addresses.insert(record.target.clone(), known);
            }
            // Envoy's priorities have no gaps.
            let priority = priorities.iter().take_while(|priority| **priority < record.priority).count();
            found.extend(addresses[&record.target].iter().map(|address| Instance {
                priority: priority as u32,
                place: Place::default(),
                address: *address,
                port: record.port,
                weight: u32::from(record.weight).max(1),
                healthy: true,
                labels: BTreeMap::new(),
            }));
        }
        let holds = Duration::from_secs(ttl.into()).clamp(self.shortest, LONGEST);
        Ok(Answer::of(found, Some, holds))
    }

    /// A and AAAA, and how many seconds they hold.
    async fn addresses(&self, target: &Name) -> Result<(Vec<IpAddr>, u32), Fault> {
        let (four, six) =
            tokio::join!(self.lookup(target.clone(), RecordType::A), self.lookup(target.clone(), RecordType::AAAA));
        let ((four, one), (six, other)) = (four?, six?);
        Ok((four.into_iter().chain(six).filter_map(|data| data.ip_addr()).collect(), one.min(other)))
    }

    /// The records of a name, none where there are none, and how many seconds they hold.
    async fn lookup(&self, name: Name, kind: RecordType) -> Result<(Vec<RData>, u32), Fault> {
        match self.resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => {
                let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
                Ok((lookup.answers().iter().map(|record| record.data.clone()).collect(), ttl))
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                Ok((Vec::new(), none.negative_ttl.unwrap_or(u32::MAX)))
            }
            Err(error) => Err(Fault::new(format!("{kind} {name}: {error}"))),
        }
    }
}
