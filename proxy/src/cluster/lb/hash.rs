//! What the consistent hashing policies share: keys of hosts, normalised weights, hash functions, bounded loads.
//! It must not know how a table is laid out.

use std::borrow::Cow;
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use super::{Draws, Loads};
use crate::cluster::host::Host;
use crate::cluster::host_set::PriorityHosts;

/// `hash_function`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashFunction {
    #[default]
    XxHash,
    /// MurmurHash64A with the seed of GNU libstdc++'s `std::hash`.
    Murmur2,
}

impl HashFunction {
    pub(super) fn hash(self, bytes: &[u8]) -> u64 {
        match self {
            Self::XxHash => xxh64(bytes, 0),
            Self::Murmur2 => murmur2(bytes, 0xc70f_6907),
        }
    }
}

/// What stands for a host in the table, unless its metadata has `envoy.lb: {hash_key: …}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashKey {
    #[default]
    Address,
    /// `use_hostname_for_hashing`.
    Hostname,
}

/// Options that ring hash and maglev share (`consistent_hashing_lb_config`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashOptions {
    pub key: HashKey,
    /// `hash_balance_factor`, in percent, at least 100: no host gets more than this share of the average load.
    pub balance_factor: Option<u32>,
}

impl HashOptions {
    pub(super) fn key(self, host: &Host) -> Cow<'_, str> {
        let own = host.metadata.get("envoy.lb", ["hash_key"]).and_then(|value| value.as_str());
        match own {
            Some(key) if !key.is_empty() => Cow::Borrowed(key),
            _ if self.key == HashKey::Hostname => Cow::Borrowed(&*host.hostname),
            _ => Cow::Owned(host.address.to_string()),
        }
    }

    /// The host itself, or when it has more than its share, another one; the same others in the same order for a hash.
    pub(super) fn bound<'a>(
        self,
        members: &'a Members,
        first: usize,
        hash: u64,
        loads: &dyn Loads,
    ) -> Option<&'a Arc<Host>> {
        let factor = match self.balance_factor {
            None => return members.host(first),
            Some(factor) => u64::from(factor),
        };
        let slots = ((loads.cluster_requests() + 1) * factor).div_ceil(100);
        let overload = |index: usize| {
            let (host, weight) = &members.0[index];
            f64::from(loads.requests(host)) / (slots as f64 * weight).ceil().max(1.0)
        };
        let mut best = (first, overload(first));
        if best.1 <= 1.0 {
            return members.host(first);
        }
        let mut order: Vec<usize> = (0..members.0.len()).collect();
        let mut draws = Draws(hash);
        for place in 0..order.len() {
            let other = place + draws.below(order.len() - place);
            order.swap(place, other);
            let index = order[place];
            let load = overload(index);
            if load <= 1.0 {
                return members.host(index);
            }
            if load < best.1 {
                best = (index, load);
            }
        }
        members.host(best.0)
    }
}

/// The hosts of a table with their weights, which sum to 1.
pub(super) struct Members(pub(super) Vec<(Arc<Host>, f64)>);

impl Members {
    /// The healthy hosts, or all in panic; weighted by locality where localities are weighted.
    pub(super) fn of(priority: &PriorityHosts) -> Self {
        let mut members = Vec::new();
        match &priority.localities {
            None => {
                let group = if priority.panic { &priority.hosts } else { &priority.healthy };
                normalize(&group.hosts, 1.0, &mut members);
            }
            Some(localities) => {
                let sum: f64 = localities.list.iter().map(|locality| f64::from(locality.weight)).sum();
                for locality in localities.list.iter().filter(|locality| locality.weight > 0) {
                    let group = if priority.panic { &locality.hosts } else { &locality.healthy };
                    normalize(&group.hosts, f64::from(locality.weight) / sum, &mut members);
                }
            }
        }
        Self(members)
    }

    pub(super) fn host(&self, index: usize) -> Option<&Arc<Host>> {
        self.0.get(index).map(|(host, _)| host)
    }
}

fn normalize(hosts: &[Arc<Host>], share: f64, into: &mut Vec<(Arc<Host>, f64)>) {
    let sum: u64 = hosts.iter().map(|host| u64::from(host.weight)).sum();
    into.extend(hosts.iter().map(|host| (Arc::clone(host), f64::from(host.weight) * share / sum as f64)));
}

/// MurmurHash64A, by Austin Appleby (public domain).
fn murmur2(bytes: &[u8], seed: u64) -> u64 {
    const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let mut words = bytes.chunks_exact(8);
    for word in words.by_ref() {
        let mut buffer = [0; 8];
        buffer.copy_from_slice(word);
        let mixed = mix(u64::from_le_bytes(buffer).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
        hash = (hash ^ mixed).wrapping_mul(MULTIPLIER);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let mut buffer = [0; 8];
        buffer[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(buffer)).wrapping_mul(MULTIPLIER);
    }
    mix(mix(hash).wrapping_mul(MULTIPLIER))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `std::hash<std::string>` in GNU libstdc++.
    #[test]
    fn murmur_is_that_of_libstdcxx() {
        assert_eq!(HashFunction::Murmur2.hash(b""), 6_142_509_188_972_423_790);
        assert_eq!(HashFunction::Murmur2.hash(b"a"), 4_993_892_634_952_068_459);
        assert_eq!(HashFunction::Murmur2.hash(b"hello world"), 5_577_293_430_985_752_569);
        assert_eq!(HashFunction::Murmur2.hash(b"exactly8"), 13_580_205_909_952_649_287);
    }
}
