//! `/clusters`: each cluster's limits and hosts, as lines or as `envoy.admin.v3.Clusters`.
//! It must not know how clusters work.

use std::fmt::Write;

use regex::Regex;
use serde_json::Value;
use tidegate_filters::stream_info::Address;

use super::Call;
use super::json::Object;
use super::number;
use super::reply::Reply;
use super::state::{ClusterStatus, HostHealth, HostStatus, OutlierStatus};
use crate::cluster::host::HealthStatus;
use crate::cluster::status::{HostCounts, Limits};

pub(super) fn show(call: &Call<'_>) -> Reply {
    let mut clusters = call.state.clusters();
    if let Some(filter) = call.query.filled("filter") {
        match Regex::new(filter) {
            Ok(filter) => clusters.retain(|cluster| filter.is_match(&cluster.name)),
            Err(_) => return Reply::bad_request("Invalid re2 regex"),
        }
    }
    if call.query.get("format") == Some("json") {
        let statuses: Vec<Value> = clusters.iter().map(to_json).collect();
        return Reply::json(&Object::default().set("cluster_statuses", statuses).into());
    }
    let mut text = String::new();
    for cluster in &clusters {
        // Writing to text cannot fail.
        let _ = write_text(&mut text, cluster);
    }
    Reply::ok(text)
}

const PRIORITIES: [&str; 2] = ["default", "high"];

fn limits(limits: &Limits) -> [(&'static str, u64); 4] {
    [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending_requests),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ]
}

type Named = (&'static str, u64);

/// A host's counters, sorted by name.
fn counters(counts: &HostCounts) -> [Named; 6] {
    [
        ("cx_connect_fail", counts.connect_failures),
        ("cx_total", counts.connections),
        ("rq_error", counts.request_errors),
        ("rq_success", counts.request_successes),
        ("rq_timeout", counts.request_timeouts),
        ("rq_total", counts.requests),
    ]
}

/// A host's gauges, sorted by name.
fn gauges(counts: &HostCounts) -> [Named; 3] {
    [
        ("cx_active", counts.connections_active),
        ("rq_active", counts.requests_active),
        ("rq_pending_active", counts.requests_pending),
    ]
}

fn rates(outlier: &OutlierStatus) -> [(&'static str, Option<f64>); 4] {
    [
        ("success_rate_average", outlier.success_rate_average),
        ("success_rate_ejection_threshold", outlier.success_rate_ejection_threshold),
        ("local_origin_success_rate_average", outlier.local_origin_success_rate_average),
        ("local_origin_success_rate_ejection_threshold", outlier.local_origin_success_rate_ejection_threshold),
    ]
}

fn write_text(out: &mut String, cluster: &ClusterStatus) -> std::fmt::Result {
    let name = &cluster.name;
    writeln!(out, "{name}::observability_name::{}", cluster.observability_name)?;
    for (rate, value) in cluster.outlier.iter().flat_map(rates) {
        writeln!(out, "{name}::outlier::{rate}::{}", number::general(value.unwrap_or(-1.0), 6))?;
    }
    for (priority, set) in PRIORITIES.iter().zip(&cluster.limits) {
        for (limit, value) in limits(set) {
            writeln!(out, "{name}::{priority}_priority::{limit}::{value}")?;
        }
    }
    writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api)?;
    if let Some(service) = &cluster.eds_service_name {
        writeln!(out, "{name}::eds_service_name::{service}")?;
    }
    cluster.hosts.iter().try_for_each(|host| write_host(out, name, host))
}

fn write_host(out: &mut String, cluster: &str, host: &HostStatus) -> std::fmt::Result {
    let address = &host.address;
    let mut counts: Vec<Named> = counters(&host.counts).into_iter().chain(gauges(&host.counts)).collect();
    counts.sort_unstable();
    for (stat, value) in counts {
        writeln!(out, "{cluster}::{address}::{stat}::{value}")?;
    }
    let rate = |rate: Option<f64>| number::display(rate.unwrap_or(-1.0));
    let facts: [(&str, &dyn std::fmt::Display); 10] = [
        ("hostname", &host.hostname),
        ("health_flags", &host.health.flags()),
        ("weight", &host.weight),
        ("region", &host.locality.region),
        ("zone", &host.locality.zone),
        ("sub_zone", &host.locality.sub_zone),
        ("canary", &host.canary),
        ("priority", &host.priority),
        ("success_rate", &rate(host.success_rate)),
        ("local_origin_success_rate", &rate(host.local_origin_success_rate)),
    ];
    facts.into_iter().try_for_each(|(fact, value)| writeln!(out, "{cluster}::{address}::{fact}::{value}"))
}

impl HostHealth {
    /// `healthy`, or every reason why not.
    fn flags(&self) -> String {
        let flags = [
            ("/failed_active_hc", self.failed_active_health_check),
            ("/failed_outlier_check", self.failed_outlier_check),
            ("/failed_eds_health", matches!(self.discovered, HealthStatus::Unhealthy | HealthStatus::Timeout)),
            ("/degraded_active_hc", self.failed_active_degraded_check),
            ("/degraded_eds_health", self.discovered == HealthStatus::Degraded),
            ("/pending_dynamic_removal", self.pending_dynamic_removal),
            ("/pending_active_hc", self.pending_active_health_check),
            ("/excluded_via_immediate_hc_fail", self.excluded_via_immediate_failure),
            ("/active_hc_timeout", self.active_health_check_timeout),
            ("/eds_status_draining", self.discovered == HealthStatus::Draining),
        ];
        let text: String = flags.iter().filter(|(_, set)| *set).map(|(flag, _)| *flag).collect();
        if text.is_empty() { "healthy".to_owned() } else { text }
    }

    fn to_json(self) -> Value {
        let discovered = match self.discovered {
            HealthStatus::Timeout => HealthStatus::Unhealthy,
            HealthStatus::Unknown => HealthStatus::Healthy,
            told => told,
        };
        Object::default()
            .set("failed_active_health_check", self.failed_active_health_check)
            .set("failed_outlier_check", self.failed_outlier_check)
            .set("eds_health_status", discovered.name())
            .set("failed_active_degraded_check", self.failed_active_degraded_check)
            .set("pending_dynamic_removal", self.pending_dynamic_removal)
            .set("pending_active_hc", self.pending_active_health_check)
            .set("excluded_via_immediate_hc_fail", self.excluded_via_immediate_failure)
            .set("active_hc_timeout", self.active_health_check_timeout)
            .into()
    }
}

fn to_json(cluster: &ClusterStatus) -> Value {
    let thresholds = |(priority, set): (&str, &Limits)| {
        let object = Object::default().set("priority", priority);
        Value::from(limits(set).into_iter().fold(object, |object, (limit, value)| object.always(limit, value)))
    };
    let breakers: Vec<Value> = ["", "HIGH"].into_iter().zip(&cluster.limits).map(thresholds).collect();
    let threshold = |of: fn(&OutlierStatus) -> Option<f64>| percent(cluster.outlier.as_ref().and_then(of));
    let local = |outlier: &OutlierStatus| outlier.local_origin_success_rate_ejection_threshold;
    Object::default()
        .set("name", &*cluster.name)
        .set("added_via_api", cluster.added_via_api)
        .set("success_rate_ejection_threshold", threshold(|outlier| outlier.success_rate_ejection_threshold))
        .set("host_statuses", cluster.hosts.iter().map(host_to_json).collect::<Vec<_>>())
        .set("local_origin_success_rate_ejection_threshold", threshold(local))
        .set("circuit_breakers", Object::default().set("thresholds", breakers))
        .set("observability_name", &*cluster.observability_name)
        .set("eds_service_name", cluster.eds_service_name.as_deref().unwrap_or_default())
        .into()
}

fn host_to_json(host: &HostStatus) -> Value {
    let metric = |kind: &'static str| {
        move |(name, value)| Value::from(Object::default().set("type", kind).set_u64("value", value).set("name", name))
    };
    let counters = counters(&host.counts).into_iter().map(metric(""));
    let stats: Vec<Value> = counters.chain(gauges(&host.counts).into_iter().map(metric("GAUGE"))).collect();
    let locality = Object::default()
        .set("region", host.locality.region.as_str())
        .set("zone", host.locality.zone.as_str())
        .set("sub_zone", host.locality.sub_zone.as_str());
    Object::default()
        .set("address", address(&host.address))
        .set("stats", stats)
        .set("health_status", host.health.to_json())
        .set("success_rate", percent(host.success_rate))
        .set("weight", host.weight)
        .set("hostname", &*host.hostname)
        .set("priority", host.priority)
        .set("local_origin_success_rate", percent(host.local_origin_success_rate))
        .set("locality", locality)
        .into()
}

fn percent(value: Option<f64>) -> Value {
    value.map_or(Value::Null, |value| Object::default().set("value", value).into())
}

/// An address as `envoy.config.core.v3.Address`.
pub(super) fn address(address: &Address) -> Value {
    match address {
        Address::Ip(address) => {
            let socket =
                Object::default().set("address", address.ip().to_string()).always("port_value", address.port());
            Object::default().set("socket_address", socket).into()
        }
        Address::Pipe(path) => Object::default().set("pipe", Object::default().set("path", &**path)).into(),
        Address::Internal(name) => {
            let internal = Object::default().set("server_listener_name", &**name);
            Object::default().set("envoy_internal_address", internal).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get};

    #[test]
    fn a_cluster_is_told_in_lines() {
        let text = get(&Fake::default(), "/clusters").body;
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..6],
            [
                "web::observability_name::web",
                "web::outlier::success_rate_average::-1",
                "web::outlier::success_rate_ejection_threshold::-1",
                "web::outlier::local_origin_success_rate_average::99.5",
                "web::outlier::local_origin_success_rate_ejection_threshold::-1",
                "web::default_priority::max_connections::7",
            ]
        );
        let rest = lines.iter().skip_while(|line| !line.contains("added_via_api")).copied().collect::<Vec<_>>();
        assert_eq!(
            rest,
            [
                "web::added_via_api::false",
                "web::eds_service_name::web-v1",
                "web::127.0.0.1:80::cx_active::1",
                "web::127.0.0.1:80::cx_connect_fail::0",
                "web::127.0.0.1:80::cx_total::3",
                "web::127.0.0.1:80::rq_active::0",
                "web::127.0.0.1:80::rq_error::0",
                "web::127.0.0.1:80::rq_pending_active::0",
                "web::127.0.0.1:80::rq_success::0",
                "web::127.0.0.1:80::rq_timeout::0",
                "web::127.0.0.1:80::rq_total::5",
                "web::127.0.0.1:80::hostname::h1",
                "web::127.0.0.1:80::health_flags::/failed_outlier_check/eds_status_draining",
                "web::127.0.0.1:80::weight::2",
                "web::127.0.0.1:80::region::r",
                "web::127.0.0.1:80::zone::",
                "web::127.0.0.1:80::sub_zone::",
                "web::127.0.0.1:80::canary::true",
                "web::127.0.0.1:80::priority::1",
                "web::127.0.0.1:80::success_rate::-1",
                "web::127.0.0.1:80::local_origin_success_rate::-1",
            ]
        );
    }

    #[test]
    fn a_cluster_is_told_as_json() {
        let json = get(&Fake::default(), "/clusters?format=json").parsed();
        let cluster = &json["cluster_statuses"][0];
        assert_eq!(cluster["eds_service_name"], "web-v1");
        assert_eq!(cluster["circuit_breakers"]["thresholds"][0]["max_connections"], 7);
        assert_eq!(cluster["circuit_breakers"]["thresholds"][1]["priority"], "HIGH");
        let host = &cluster["host_statuses"][0];
        assert_eq!(host["address"], serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": 80}}));
        assert_eq!(host["stats"][0], serde_json::json!({"name": "cx_connect_fail"}));
        assert_eq!(host["stats"][1], serde_json::json!({"value": "3", "name": "cx_total"}));
        assert_eq!(host["stats"][6], serde_json::json!({"type": "GAUGE", "value": "1", "name": "cx_active"}));
        assert_eq!(host["health_status"]["eds_health_status"], "DRAINING");
        assert_eq!(host["health_status"]["failed_outlier_check"], true);
    }

    #[test]
    fn clusters_are_filtered_by_name() {
        let state = Fake::default();
        assert_eq!(get(&state, "/clusters?filter=^nothing").text(), "");
        assert!(get(&state, "/clusters?filter=w.b").text().starts_with("web::"));
        assert_eq!(get(&state, "/clusters?filter=(").text(), "Invalid re2 regex");
    }
}
