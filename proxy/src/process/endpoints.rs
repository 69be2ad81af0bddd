//! The endpoints of a configuration dump, read off the hosts of the clusters that no discovery fills.
//! It must not know where hosts come from.

use std::sync::Arc;

use serde_json::{Value, json};
use tidegate_filters::stream_info::{Address, Locality};

use crate::cluster::host::HealthStatus;
use crate::cluster::status::{ClusterStatus, HostStatus};

/// The elements of `static_endpoint_configs`.
pub(super) fn static_endpoints<'a>(clusters: impl Iterator<Item = &'a ClusterStatus>) -> Vec<Value> {
    let fixed = clusters.filter(|cluster| cluster.eds_service_name.is_none());
    fixed.map(|cluster| json!({ "endpoint_config": assignment(cluster) })).collect()
}

/// Priority and locality.
type Place<'a> = (u32, &'a Arc<Locality>);

fn assignment(cluster: &ClusterStatus) -> Value {
    let mut groups: Vec<(Place<'_>, Vec<Value>)> = Vec::new();
    for status in &cluster.hosts {
        let key = (status.host.priority, &status.host.locality);
        let endpoint = lb_endpoint(status);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => groups.push((key, vec![endpoint])),
        }
    }
    let mut assignment = json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": &*cluster.name,
    });
    if !groups.is_empty() {
        assignment["endpoints"] =
            groups.into_iter().map(|((priority, locality), list)| group(priority, locality, list)).collect();
    }
    assignment["policy"] = json!({ "overprovisioning_factor": 140 });
    assignment
}

fn group(priority: u32, locality: &Locality, endpoints: Vec<Value>) -> Value {
    let mut place = json!({});
    for (field, value) in [("region", &locality.region), ("zone", &locality.zone), ("sub_zone", &locality.sub_zone)] {
        if !value.is_empty() {
            place[field] = value.as_str().into();
        }
    }
    let mut group = json!({ "locality": place, "lb_endpoints": endpoints });
    if priority > 0 {
        group["priority"] = priority.into();
    }
    group
}

fn lb_endpoint(status: &HostStatus) -> Value {
    let host = &status.host;
    let mut endpoint = json!({ "address": address(&host.address), "health_check_config": {} });
    if !host.hostname.is_empty() {
        endpoint["hostname"] = (*host.hostname).into();
    }
    let health = match host.health_status {
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => "UNHEALTHY",
        HealthStatus::Healthy | HealthStatus::Unknown => "HEALTHY",
    };
    json!({ "endpoint": endpoint, "health_status": health, "load_balancing_weight": host.weight })
}

fn address(address: &Address) -> Value {
    match address {
        Address::Ip(ip) => json!({ "socket_address": { "address": ip.ip().to_string(), "port_value": ip.port() } }),
        Address::Pipe(path) => json!({ "pipe": { "path": &**path } }),
        Address::Internal(name) => json!({ "envoy_internal_address": { "server_listener_name": &**name } }),
    }
}
