//! Upstreams to clusters and their endpoints. It must not know who sends requests to them.

use serde_json::{Value, json};

use super::{CONNECTION_BUFFER_BYTES, aggregated, duration, typed};
use crate::short::form::{Balance, Discovery, Endpoint, Protocol, Upstream, UpstreamLimits};
use crate::short::scalars::Host;
use crate::short::shape::{Or, Word};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Whether a route's hash decides.
pub(super) fn asks_for_hash(upstream: &Upstream) -> bool {
    matches!(upstream.balance, Balance::RingHash | Balance::Maglev)
}

/// A cluster; where addresses are what is written, its endpoints by themselves, so that a change of them is no change of it.
pub(super) fn resources(name: &str, upstream: &Upstream) -> Vec<Value> {
    let mut cluster = json!({
        "name": name,
        "connect_timeout": duration(upstream.connect_timeout.0),
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "lb_policy": upstream.balance.word().to_ascii_uppercase(),
    });
    if let Some(options) = http_options(upstream.protocol) {
        cluster["typed_extension_protocol_options"] = json!({HTTP_OPTIONS: typed(HTTP_OPTIONS, options)});
    }
    if let Some(UpstreamLimits { connections, pending, requests, retries }) = &upstream.limits {
        cluster["circuit_breakers"] = json!({"thresholds": [{
            "max_connections": connections.0,
            "max_pending_requests": pending.0,
            "max_requests": requests.0,
            "max_retries": retries.0,
        }]});
    }
    let endpoints = assignment(name, &upstream.endpoints);
    match upstream.discovery {
        Discovery::Static => {
            cluster["type"] = json!("EDS");
            cluster["eds_cluster_config"] = json!({"eds_config": aggregated()});
            let endpoints = typed("envoy.config.endpoint.v3.ClusterLoadAssignment", endpoints);
            vec![typed("envoy.config.cluster.v3.Cluster", cluster), endpoints]
        }
        Discovery::Dns => {
            let dns = json!({"dns_lookup_family": "V4_PREFERRED", "respect_dns_ttl": true});
            let dns = typed("envoy.extensions.clusters.dns.v3.DnsCluster", dns);
            cluster["cluster_type"] = json!({"name": "envoy.cluster.dns", "typed_config": dns});
            cluster["load_assignment"] = endpoints;
            vec![typed("envoy.config.cluster.v3.Cluster", cluster)]
        }
    }
}

fn http_options(protocol: Protocol) -> Option<Value> {
    match protocol {
        Protocol::Http1 => None,
        Protocol::Http2 => Some(json!({"explicit_http_config": {"http2_protocol_options": {}}})),
        Protocol::Same => {
            let both = json!({"http_protocol_options": {}, "http2_protocol_options": {}});
            Some(json!({"use_downstream_protocol_config": both}))
        }
    }
}

/// Endpoints by zone, in the order in which zones occur.
fn assignment(name: &str, endpoints: &[Or<Endpoint>]) -> Value {
    let mut zones: Vec<(Option<&str>, Vec<Value>)> = Vec::new();
    for Or(Endpoint { address, weight, zone }) in endpoints {
        let (host, port) = &address.0;
        let host = match host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.clone(),
        };
        let mut endpoint = json!({"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}});
        if weight.0 != 1 {
            endpoint["load_balancing_weight"] = json!(weight.0);
        }
        let zone = zone.as_ref().map(|zone| zone.0.as_str());
        match zones.iter_mut().find(|(known, _)| *known == zone) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => zones.push((zone, vec![endpoint])),
        }
    }
    let localities = zones.into_iter().map(|(zone, endpoints)| match zone {
        Some(zone) => json!({"locality": {"zone": zone}, "lb_endpoints": endpoints}),
        None => json!({"lb_endpoints": endpoints}),
    });
    json!({"cluster_name": name, "endpoints": localities.collect::<Vec<_>>()})
}
