//! `ClusterLoadAssignment` as endpoints: for static clusters, DNS clusters and EDS alike.
//! It must not know where the message came from.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use tidegate_filters::context::CompileContext;
use tidegate_filters::stream_info::{Address, Locality};
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::{Address as AddressProto, HealthStatus as HealthStatusProto};
use tidegate_xds::pb::envoy::config::endpoint::v3::cluster_load_assignment::policy::DropOverload as DropOverloadProto;
use tidegate_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use tidegate_xds::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EndpointProto, LbEndpoint, LocalityLbEndpoints,
};

use super::address;
use super::values::{fraction, shared_metadata};
use crate::cluster::endpoint::{Assignment, DropOverload, Endpoint, LocalityEndpoints, Name};
use crate::cluster::host::HealthStatus;

/// Compiles an EDS answer.
///
/// # Errors
/// What Envoy refuses in it, and what is not supported yet.
pub fn compile_assignment(
    proto: &ClusterLoadAssignment,
    context: &mut CompileContext<'_>,
) -> Result<Assignment<Address>, FieldError> {
    Ok(Assignment { unique_addresses: true, ..compile(proto, context)? })
}

/// Compiles endpoints that have addresses.
pub(super) fn compile(
    proto: &ClusterLoadAssignment,
    context: &mut CompileContext<'_>,
) -> Result<Assignment<Address>, FieldError> {
    compile_with(proto, context, address::resolved)
}

/// Compiles endpoints that have names: of DNS clusters.
pub(super) fn compile_names(
    proto: &ClusterLoadAssignment,
    context: &mut CompileContext<'_>,
) -> Result<Assignment<Name>, FieldError> {
    let assignment = compile_with(proto, context, address::name)?;
    let mut endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    if endpoints.any(|endpoint| !endpoint.more_addresses.is_empty()) {
        return Err(context.error("additional_addresses are for STATIC and EDS clusters only"));
    }
    Ok(assignment)
}

/// How the address at a field is read.
type Read<A> = fn(Option<&AddressProto>, &str, &mut CompileContext<'_>) -> Result<A, FieldError>;

fn compile_with<A>(
    proto: &ClusterLoadAssignment,
    context: &mut CompileContext<'_>,
    read: Read<A>,
) -> Result<Assignment<A>, FieldError> {
    let mut assignment = Assignment::default();
    if let Some(policy) = &proto.policy {
        let factor = policy.overprovisioning_factor;
        assignment.overprovisioning_factor = factor.map_or(assignment.overprovisioning_factor, |factor| factor.value);
        assignment.weighted_priority_health = policy.weighted_priority_health;
        assignment.drop_overload =
            context.within("policy", |context| drop_overload(&policy.drop_overloads, context))?.map(Arc::new);
    }
    assignment.localities.reserve_exact(proto.endpoints.len());
    for (index, endpoints) in proto.endpoints.iter().enumerate() {
        let endpoints = context.within_item("endpoints", index, |context| locality(endpoints, context, read))?;
        assignment.localities.push(endpoints);
    }
    Ok(assignment)
}

fn drop_overload(
    drops: &[DropOverloadProto],
    context: &CompileContext<'_>,
) -> Result<Option<DropOverload>, FieldError> {
    let drop = match drops {
        [] => return Ok(None),
        [drop] => drop,
        many => {
            let reason = format!("has {} categories, at most one is supported", many.len());
            return Err(context.error_at("drop_overloads", reason));
        }
    };
    let Some(percentage) = &drop.drop_percentage else {
        return Ok(None);
    };
    let fraction = fraction(percentage);
    if fraction.numerator > fraction.denominator {
        return Err(context.error_at("drop_overloads[0].drop_percentage", "must be between 0 and 1"));
    }
    Ok(Some(DropOverload { category: drop.category.as_str().into(), fraction }))
}

fn locality<A>(
    proto: &LocalityLbEndpoints,
    context: &mut CompileContext<'_>,
    read: Read<A>,
) -> Result<LocalityEndpoints<A>, FieldError> {
    let locality = proto.locality.clone().unwrap_or_default();
    let mut endpoints = Vec::with_capacity(proto.lb_endpoints.len());
    for (index, proto) in proto.lb_endpoints.iter().enumerate() {
        endpoints.push(context.within_item("lb_endpoints", index, |context| endpoint(proto, context, read))?);
    }
    Ok(LocalityEndpoints {
        locality: shared(Locality { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone }),
        metadata: shared_metadata(proto.metadata.as_ref()),
        priority: proto.priority,
        weight: proto.load_balancing_weight.map_or(0, |weight| weight.value),
        endpoints,
    })
}

/// Many endpoints are nowhere.
fn shared(locality: Locality) -> Arc<Locality> {
    static NOWHERE: LazyLock<Arc<Locality>> = LazyLock::new(Arc::default);
    if locality == **NOWHERE { Arc::clone(&NOWHERE) } else { Arc::new(locality) }
}

fn endpoint<A>(proto: &LbEndpoint, context: &mut CompileContext<'_>, read: Read<A>) -> Result<Endpoint<A>, FieldError> {
    let Some(HostIdentifier::Endpoint(endpoint)) = &proto.host_identifier else {
        return Err(context.error_at("endpoint", "address must be set"));
    };
    let metadata = shared_metadata(proto.metadata.as_ref());
    let canary = metadata.get("envoy.lb", ["canary"]).and_then(|canary| canary.as_bool()).unwrap_or(false);
    context.within("endpoint", |context| {
        Ok(Endpoint {
            address: read(endpoint.address.as_ref(), "address", context)?,
            more_addresses: more_addresses(endpoint, context)?,
            hostname: if endpoint.hostname.is_empty() { Arc::default() } else { endpoint.hostname.as_str().into() },
            weight: proto.load_balancing_weight.map_or(1, |weight| weight.value.max(1)),
            health_status: health_status(proto.health_status),
            canary,
            metadata,
        })
    })
}

fn more_addresses(proto: &EndpointProto, context: &mut CompileContext<'_>) -> Result<Vec<SocketAddr>, FieldError> {
    let mut addresses = Vec::with_capacity(proto.additional_addresses.len());
    for (index, additional) in proto.additional_addresses.iter().enumerate() {
        let address = context.within_item("additional_addresses", index, |context| {
            address::resolved(additional.address.as_ref(), "address", context)?.ip().ok_or_else(|| {
                context.error_at("address", "not supported yet: an additional address that is no IP address")
            })
        })?;
        addresses.push(address);
    }
    Ok(addresses)
}

fn health_status(status: i32) -> HealthStatus {
    match HealthStatusProto::try_from(status) {
        Ok(HealthStatusProto::Healthy) => HealthStatus::Healthy,
        Ok(HealthStatusProto::Unhealthy) => HealthStatus::Unhealthy,
        Ok(HealthStatusProto::Draining) => HealthStatus::Draining,
        Ok(HealthStatusProto::Timeout) => HealthStatus::Timeout,
        Ok(HealthStatusProto::Degraded) => HealthStatus::Degraded,
        Ok(HealthStatusProto::Unknown) | Err(_) => HealthStatus::Unknown,
    }
}
