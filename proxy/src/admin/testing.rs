//! A process that only pretends, for the tests of the endpoints. It must not know any endpoint.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tidegate_filters::stream_info::{Address, Locality};
use tidegate_stats::Store;

use super::reply::Reply;
use super::state::*;
use super::{AdminState, Call, answer};
use crate::cluster::host::HealthStatus;
use crate::cluster::status::{HostCounts, Limits};
use crate::config::runtime::read_value;
use crate::runtime::{Layer, LayerSource, Layers};

pub(super) struct Fake {
    pub(super) stats: Arc<Store>,
    pub(super) runtime: Layers,
    pub(super) server_state: ServerState,
    pub(super) levels: Mutex<Vec<(String, LogLevel)>>,
    /// What was asked for.
    pub(super) asked: Mutex<Vec<String>>,
}

impl Fake {
    pub(super) fn with_stats(stats: Arc<Store>) -> Self {
        let values = [("a.b".into(), read_value("5").unwrap())].into_iter().collect();
        let layers = vec![
            Layer { name: "base".into(), source: LayerSource::Static(Arc::new(values)) },
            Layer { name: "admin".into(), source: LayerSource::Admin },
        ];
        Self {
            // The layers count elsewhere: tests look at their own stats.
            runtime: Layers::new(layers, &Store::new()),
            stats,
            server_state: ServerState::Live,
            levels: Mutex::new(vec![("http".into(), LogLevel::Info), ("main".into(), LogLevel::Info)]),
            asked: Mutex::default(),
        }
    }
}

impl Default for Fake {
    fn default() -> Self {
        Self::with_stats(Store::new())
    }
}

pub(super) fn get(state: &Fake, target: &str) -> Reply {
    send(state, Method::GET, target, HeaderMap::new(), "")
}

pub(super) fn post(state: &Fake, target: &str) -> Reply {
    send(state, Method::POST, target, HeaderMap::new(), "")
}

pub(super) fn post_form(state: &Fake, target: &str, form: &'static str) -> Reply {
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    send(state, Method::POST, target, HeaderMap::from_iter([(header::CONTENT_TYPE, form_type)]), form)
}

fn send(state: &Fake, method: Method, target: &str, headers: HeaderMap, body: &'static str) -> Reply {
    let uri: Uri = target.parse().unwrap();
    answer(&Call::new(state, &method, &uri, &headers, Bytes::from_static(body.as_bytes())))
}

impl AdminState for Fake {
    fn stats(&self) -> &Store {
        &self.stats
    }

    fn runtime(&self) -> &Layers {
        &self.runtime
    }

    fn server_state(&self) -> ServerState {
        self.server_state
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo { uptime: Duration::from_millis(61_500), options: CommandLine::default(), node: json!({"id": "n1"}) }
    }

    fn memory(&self) -> Memory {
        Memory { allocated: 1, heap_size: 2, physical: 3 }
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        let limits = Limits { max_connections: 7, max_pending_requests: 1024, max_requests: 1024, max_retries: 3 };
        let locality = Locality { region: "r".into(), zone: String::new(), sub_zone: String::new() };
        let host = HostStatus {
            address: Address::Ip(([127, 0, 0, 1], 80).into()),
            hostname: "h1".into(),
            locality: Arc::new(locality),
            weight: 2,
            priority: 1,
            canary: true,
            health: HostHealth {
                failed_outlier_check: true,
                discovered: HealthStatus::Draining,
                ..HostHealth::default()
            },
            counts: HostCounts { connections_active: 1, connections: 3, requests: 5, ..HostCounts::default() },
            success_rate: None,
            local_origin_success_rate: None,
        };
        vec![ClusterStatus {
            name: "web".into(),
            observability_name: "web".into(),
            added_via_api: false,
            eds_service_name: Some("web-v1".into()),
            limits: [limits, Limits { max_connections: 1024, ..limits }],
            outlier: Some(OutlierStatus { local_origin_success_rate_average: Some(99.5), ..OutlierStatus::default() }),
            hosts: vec![host],
        }]
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        vec![
            ListenerStatus {
                name: "l1".into(),
                address: Address::Ip(([127, 0, 0, 1], 80).into()),
                more_addresses: vec![Address::Ip((std::net::Ipv6Addr::LOCALHOST, 80).into())],
            },
            ListenerStatus { name: "l2".into(), address: Address::Pipe("@admin".into()), more_addresses: vec![] },
        ]
    }

    fn config_dump(&self, include_endpoints: bool) -> Vec<Value> {
        let cluster = |name: &str| {
            json!({"cluster": {
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": name, "connect_timeout": "1s",
            }})
        };
        let listener = json!({"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "dyn"});
        let mut sections = vec![
            json!({
                "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
                "bootstrap": {"node": {"id": "n1", "cluster": "c1"}, "admin": {}},
            }),
            json!({
                "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
                "static_clusters": [cluster("eds"), cluster("web")],
            }),
            json!({
                "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
                "dynamic_listeners": [{"name": "dyn", "active_state": {"listener": listener}}],
            }),
        ];
        if include_endpoints {
            let kind = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
            sections.push(json!({
                "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
                "static_endpoint_configs": [{"endpoint_config": {"@type": kind, "cluster_name": "eds"}}],
            }));
        }
        sections
    }

    fn rejected(&self) -> Vec<Rejected> {
        let at = UNIX_EPOCH + Duration::from_secs(7);
        vec![Rejected {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            name: "bad".into(),
            version: "2".into(),
            reason: "lb_policy: no".to_owned(),
            since: at,
            last_attempt: at,
            acting_version: Some("1".into()),
        }]
    }

    fn drain_listeners(&self, drain: DrainListeners) {
        let DrainListeners { graceful, skip_exit, inbound_only } = drain;
        let asked = format!("drain graceful={graceful} skip_exit={skip_exit} inbound_only={inbound_only}");
        self.asked.lock().push(asked);
    }

    fn set_health_check_failing(&self, failing: bool) {
        self.asked.lock().push(format!("failing {failing}"));
    }

    fn quit(&self) {
        self.asked.lock().push("quit".into());
    }

    fn reopen_logs(&self) {
        self.asked.lock().push("reopen logs".into());
    }

    fn loggers(&self) -> Vec<(String, LogLevel)> {
        self.levels.lock().clone()
    }

    fn change_log_levels(&self, change: &LogChange) -> Result<(), &'static str> {
        let mut levels = self.levels.lock();
        match change {
            LogChange::All(level) => levels.iter_mut().for_each(|(_, current)| *current = *level),
            LogChange::Named(named) if named.iter().any(|(name, _)| levels.iter().all(|(known, _)| known != name)) => {
                return Err("unknown logger name");
            }
            LogChange::Named(named) => levels.iter_mut().for_each(|(known, current)| {
                *current = named.iter().find(|(name, _)| name == known).map_or(*current, |(_, level)| *level);
            }),
            LogChange::Group(..) => return Err("group parameter requires fine-grain logging to be enabled"),
        }
        Ok(())
    }
}
