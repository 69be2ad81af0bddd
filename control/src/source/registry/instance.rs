//! What registries say of a service, as endpoints. It must not know which registry said it.

use std::collections::BTreeMap;

use prost::{Message, Name};
use tidegate_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use tidegate_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use tidegate_xds::pb::envoy::config::core::v3::{Address, HealthStatus, Locality, Metadata, SocketAddress};
use tidegate_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use tidegate_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use tidegate_xds::pb::google::protobuf::value::Kind as ValueKind;
use tidegate_xds::pb::google::protobuf::{Any, Struct, UInt32Value, Value};

use crate::server::{Resource, ResourceType};

/// Where Envoy's balancers look for what tells hosts apart.
const LB: &str = "envoy.lb";

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Instance {
    /// From 0 on: those of the next are used as these fail.
    pub(super) priority: u32,
    pub(super) place: Place,
    /// An IP address.
    pub(super) address: std::net::IpAddr,
    pub(super) port: u16,
    /// At least 1.
    pub(super) weight: u32,
    pub(super) healthy: bool,
    /// What tells it apart (`envoy.lb` metadata).
    pub(super) labels: BTreeMap<String, String>,
}

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place {
    pub(super) region: String,
    pub(super) zone: String,
}

/// The endpoints of a service; instances in order.
///
/// # Errors
/// What breaks the schema's rules.
pub(super) fn assignment(name: &str, instances: &[Instance]) -> Result<Resource, String> {
    let mut localities: BTreeMap<(u32, &Place), Vec<LbEndpoint>> = BTreeMap::new();
    for instance in instances {
        localities.entry((instance.priority, &instance.place)).or_default().push(endpoint(instance));
    }
    let endpoints = localities.into_iter().map(|((priority, place), lb_endpoints)| LocalityLbEndpoints {
        priority,
        locality: (*place != Place::default()).then(|| Locality {
            region: place.region.clone(),
            zone: place.zone.clone(),
            sub_zone: String::new(),
        }),
        lb_endpoints,
        ..LocalityLbEndpoints::default()
    });
    let message = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: endpoints.collect(),
        ..ClusterLoadAssignment::default()
    };
    debug_assert_eq!(ResourceType::ENDPOINTS.message(), ClusterLoadAssignment::full_name());
    let body = Any { type_url: ResourceType::ENDPOINTS.url(), value: message.encode_to_vec() };
    Resource::read(body).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

fn endpoint(instance: &Instance) -> LbEndpoint {
    let address = SocketAddress {
        address: instance.address.to_string(),
        port_specifier: Some(PortSpecifier::PortValue(instance.port.into())),
        ..SocketAddress::default()
    };
    let address = Address { address: Some(AddressKind::SocketAddress(address)) };
    let text = |text: &String| Value { kind: Some(ValueKind::StringValue(text.clone())) };
    let labels = Struct { fields: instance.labels.iter().map(|(key, value)| (key.clone(), text(value))).collect() };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint { address: Some(address), ..Endpoint::default() })),
        load_balancing_weight: Some(UInt32Value { value: instance.weight.max(1) }),
        health_status: if instance.healthy { HealthStatus::Unknown } else { HealthStatus::Unhealthy } as i32,
        metadata: (!instance.labels.is_empty())
            .then(|| Metadata { filter_metadata: [(LB.to_owned(), labels)].into(), ..Metadata::default() }),
    }
}
