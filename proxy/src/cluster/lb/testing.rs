//! Host sets for tests of balancing.

use std::sync::Arc;

use tidegate_filters::metadata::Metadata;
use tidegate_filters::runtime::NoRuntime;
use tidegate_filters::stream_info::{Address, Locality};

use super::{Balancing, Loads, PickContext, Picked, Policy, Scheduler, pick};
use crate::cluster::endpoint::{Assignment, Endpoint, LocalityEndpoints};
use crate::cluster::host::{HealthStatus, Host};
use crate::cluster::host_set::HostSet;

/// Endpoints at 10.0.0.1, 10.0.0.2, … of the given weights, all healthy.
pub(crate) fn endpoints(first: u8, weights: &[u32]) -> Vec<Endpoint> {
    let endpoint = |(index, &weight): (usize, &u32)| Endpoint {
        address: Address::Ip(([10, 0, 0, first + index as u8], 80).into()),
        more_addresses: Vec::new(),
        hostname: Arc::from(""),
        weight,
        health_status: HealthStatus::Unknown,
        canary: false,
        metadata: Arc::new(Metadata::default()),
    };
    weights.iter().enumerate().map(endpoint).collect()
}

pub(crate) fn locality(zone: &str, priority: u32, weight: u32, endpoints: Vec<Endpoint>) -> LocalityEndpoints {
    LocalityEndpoints {
        locality: Arc::new(Locality { zone: zone.to_owned(), ..Locality::default() }),
        metadata: Arc::default(),
        priority,
        weight,
        endpoints,
    }
}

pub(crate) fn assignment(localities: Vec<LocalityEndpoints>) -> Assignment {
    Assignment { localities, ..Assignment::default() }
}

pub(crate) fn set(assignment: &Assignment, balancing: &Balancing) -> HostSet {
    HostSet::build(assignment, balancing, balancing.tuning(&NoRuntime), None, None).0
}

/// A set of hosts of one locality.
pub(crate) fn flat(weights: &[u32], balancing: &Balancing) -> HostSet {
    set(&assignment(vec![locality("", 0, 0, endpoints(1, weights))]), balancing)
}

pub(crate) fn policy(policy: Policy) -> Balancing {
    Balancing { policy, ..Balancing::default() }
}

/// Loads that stay what they are.
#[derive(Default)]
pub(crate) struct FixedLoads(pub(crate) Vec<u32>);

impl Loads for FixedLoads {
    fn requests(&self, host: &Host) -> u32 {
        self.0.get(number(host) - 1).copied().unwrap_or(0)
    }

    fn cluster_requests(&self) -> u64 {
        self.0.iter().map(|&requests| u64::from(requests)).sum()
    }
}

/// The last number of a host's address.
pub(crate) fn number(host: &Host) -> usize {
    match host.address.ip().map(|address| address.ip()) {
        Some(std::net::IpAddr::V4(ip)) => usize::from(ip.octets()[3]),
        _ => 0,
    }
}

/// How often each host is picked in `picks` picks; index 0 counts those without a host.
pub(crate) fn counts(set: &HostSet, balancing: &Balancing, loads: &dyn Loads, picks: u64) -> Vec<f64> {
    let mut scheduler = Scheduler::default();
    let mut counts = vec![0.0; 40];
    for sequence in 0..picks {
        let context = PickContext::new(sequence, sequence.wrapping_mul(0x9e37_79b9));
        let picked = pick(set, balancing, loads, &context, &mut scheduler, None);
        counts[picked.map_or(0, |Picked { host, .. }| number(&host))] += 1.0;
    }
    while counts.len() > 1 && counts.last() == Some(&0.0) {
        counts.pop();
    }
    counts
}

/// Whether counts fit expected shares by Pearson's test at p = 0.001, for up to ten degrees of freedom.
pub(crate) fn fits(counts: &[f64], shares: &[f64]) -> bool {
    const CRITICAL: [f64; 11] = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59];
    let total: f64 = counts.iter().sum();
    let sum: f64 = shares.iter().sum();
    let statistic: f64 = counts
        .iter()
        .zip(shares)
        .filter(|(_, share)| **share > 0.0)
        .map(|(count, share)| {
            let expected = total * share / sum;
            (count - expected).powi(2) / expected
        })
        .sum();
    let none = counts.iter().zip(shares).all(|(count, share)| *share > 0.0 || *count == 0.0);
    let freedom = shares.iter().filter(|share| **share > 0.0).count() - 1;
    none && counts.len() <= shares.len() && statistic <= CRITICAL[freedom]
}
