//! Endpoints: the input from which hosts are made, as a configuration, an EDS answer or a DNS answer gives it.
//! It must not know hosts, their health at run time nor who sent it.

use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_filters::metadata::Metadata;
use tidegate_filters::runtime::Fraction;
use tidegate_filters::stream_info::{Address, Locality};

use super::host::HealthStatus;

/// A compiled `ClusterLoadAssignment`. `A` is an [`Address`], or a [`Name`] that must be resolved first.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment<A = Address> {
    pub localities: Vec<LocalityEndpoints<A>>,
    /// Percent; Envoy's default is 140.
    pub overprovisioning_factor: u32,
    pub weighted_priority_health: bool,
    /// Endpoints of an address that was there before do not count. So it is in EDS; elsewhere each is a host of its own.
    pub unique_addresses: bool,
    /// The share of requests to drop (`drop_overloads`), with its category.
    pub drop_overload: Option<Arc<DropOverload>>,
}

impl<A> Default for Assignment<A> {
    fn default() -> Self {
        Self {
            localities: Vec::new(),
            overprovisioning_factor: 140,
            weighted_priority_health: false,
            unique_addresses: false,
            drop_overload: None,
        }
    }
}

/// `policy.drop_overloads`: a share of requests answered 503 with flag `DO` before a host is picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropOverload {
    pub category: Arc<str>,
    pub fraction: Fraction,
}

/// The endpoints of one locality at one priority.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalityEndpoints<A = Address> {
    pub locality: Arc<Locality>,
    pub metadata: Arc<Metadata>,
    pub priority: u32,
    /// 0 when not set: with locality weights, such a locality gets no load.
    pub weight: u32,
    pub endpoints: Vec<Endpoint<A>>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint<A = Address> {
    pub address: A,
    pub more_addresses: Vec<SocketAddr>,
    pub hostname: Arc<str>,
    /// At least 1.
    pub weight: u32,
    pub health_status: HealthStatus,
    pub canary: bool,
    pub metadata: Arc<Metadata>,
}

/// A name and port that DNS turns into addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    pub host: Arc<str>,
    pub port: u16,
}
