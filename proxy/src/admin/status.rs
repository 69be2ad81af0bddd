//! `/status`: a process in a few lines, for who looks at it first: its state, whether its control planes are there, which
//! versions act, and what was refused, why and since when. Not one of Envoy's.
//! It must not know where configuration comes from.

use std::fmt::Write;
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::Call;
use super::reply::Reply;
use super::state::Rejected;

pub(super) fn show(call: &Call<'_>) -> Reply {
    call.state.before_stats();
    let status = Status::of(call);
    match call.query.filled("format") {
        None | Some("text") => Reply::ok(status.text()),
        Some("json") => Reply::json(&status.json()),
        Some(other) => Reply::bad_request(format!("format: '{other}' is neither text nor json\n")),
    }
}

struct Status {
    state: &'static str,
    uptime_seconds: u64,
    /// Where a stream to one is counted, whether it is open, and who answers.
    control_planes: Vec<(String, bool, String)>,
    clusters: u64,
    warming_clusters: u64,
    listeners: usize,
    /// Of what all clusters and all listeners came with, where it said one.
    versions: Vec<(String, String)>,
    rejected: Vec<Rejected>,
    kept: Option<SystemTime>,
}

/// What every stream counts, below the place of its own.
const CONNECTED: &str = "control_plane.connected_state";
const IDENTIFIER: &str = "control_plane.identifier";
const VERSION: &str = ".version_text";

impl Status {
    fn of(call: &Call<'_>) -> Self {
        let stats = call.state.stats();
        let manager = |name: &str| name.starts_with("cluster_manager.") || name.starts_with("listener_manager.");
        let gauges = stats.gauges_if(|name, _| name.ends_with(CONNECTED) || manager(name));
        let texts = stats.text_readouts_if(|name, _| name.ends_with(IDENTIFIER) || manager(name));
        let gauge = |name: &str| gauges.iter().find(|gauge| gauge.name == name).map_or(0, |gauge| gauge.value);
        let identifier = |place: &str| {
            let name = format!("{place}{IDENTIFIER}");
            texts.iter().find(|text| text.name == name).map(|text| text.text.clone()).unwrap_or_default()
        };
        let streams = gauges.iter().filter_map(|gauge| Some((gauge.name.strip_suffix(CONNECTED)?, gauge.value > 0)));
        let versions = texts.iter().filter(|text| !text.text.is_empty());
        let versions = versions.filter_map(|text| Some((text.name.strip_suffix(VERSION)?, text.text.clone())));
        Self {
            state: call.state.server_state().name(),
            uptime_seconds: call.state.server_info().uptime.as_secs(),
            control_planes: streams.map(|(place, open)| (place.to_owned(), open, identifier(place))).collect(),
            clusters: gauge("cluster_manager.active_clusters"),
            warming_clusters: gauge("cluster_manager.warming_clusters"),
            listeners: call.state.listeners().len(),
            versions: versions.map(|(name, version)| (name.to_owned(), version)).collect(),
            rejected: call.state.rejected(),
            kept: call.state.serves_kept(),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: &str| {
            // Writing into a string does not fail.
            let _ = writeln!(text, "{what:<16}{value}");
        };
        line("state", &format!("{}, up {} s", self.state, self.uptime_seconds));
        for (place, open, identifier) in &self.control_planes {
            let place = if place.is_empty() { "ads" } else { place.trim_end_matches('.') };
            let state = if *open { "connected" } else { "NOT CONNECTED: what came last serves on" };
            let identifier = if identifier.is_empty() { String::new() } else { format!(", {identifier}") };
            line("control plane", &format!("{place} {state}{identifier}"));
        }
        if let Some(at) = self.kept {
            line("resources", &format!("KEPT ON DISK at {}: no control plane has answered yet", timestamp(at)));
        }
        line("clusters", &format!("{} ({} warming)", self.clusters, self.warming_clusters));
        line("listeners", &self.listeners.to_string());
        for (name, version) in &self.versions {
            line("version", &format!("{name} {version}"));
        }
        line("rejected", &self.rejected.len().to_string());
        for one in &self.rejected {
            let serves = match &one.acting_version {
                Some(version) if version.is_empty() => "the one before serves on".to_owned(),
                Some(version) => format!("version {version} serves on"),
                None => "nothing of this name serves".to_owned(),
            };
            let version = if one.version.is_empty() { String::new() } else { format!(" version {}", one.version) };
            let since = timestamp(one.since);
            let _ = writeln!(text, "  {} '{}'{version}, since {since}; {serves}", one.kind(), one.name);
            let _ = writeln!(text, "    {}", one.reason);
        }
        text
    }

    fn json(&self) -> Value {
        let streams = self.control_planes.iter().map(|(place, open, identifier)| {
            let place = if place.is_empty() { "ads" } else { place.trim_end_matches('.') };
            json!({ "subscription": place, "connected": open, "identifier": identifier })
        });
        let versions: serde_json::Map<String, Value> =
            self.versions.iter().map(|(name, version)| (name.clone(), version.as_str().into())).collect();
        json!({
            "state": self.state,
            "uptime_seconds": self.uptime_seconds,
            "control_planes": streams.collect::<Vec<_>>(),
            "clusters": self.clusters,
            "warming_clusters": self.warming_clusters,
            "listeners": self.listeners,
            "versions": versions,
            "kept_at": self.kept.map(timestamp),
            "rejected": self.rejected.iter().map(rejected).collect::<Vec<_>>(),
        })
    }
}

fn rejected(one: &Rejected) -> Value {
    json!({
        "type_url": one.type_url,
        "name": &*one.name,
        "version_info": &*one.version,
        "reason": one.reason,
        "since": timestamp(one.since),
        "last_attempt": timestamp(one.last_attempt),
        "acting_version_info": one.acting_version.as_deref(),
    })
}

/// RFC 3339, to the second.
fn timestamp(at: SystemTime) -> String {
    DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get};

    #[test]
    fn what_was_refused_is_told_with_its_reason() {
        let text = get(&Fake::default(), "/status").text().to_owned();
        assert!(text.starts_with("state           LIVE, up "), "{text}");
        assert!(
            text.contains(
                "rejected        1\n  Cluster 'bad' version 2, since 1970-01-01T00:00:07Z; version 1 serves on\n    lb_policy: no\n"
            ),
            "{text}"
        );
        let json = get(&Fake::default(), "/status?format=json").parsed();
        assert_eq!(json["rejected"][0]["name"], "bad");
        assert_eq!(json["rejected"][0]["acting_version_info"], "1");
        assert_eq!(get(&Fake::default(), "/status?format=xml").status.as_u16(), 400);
    }
}
