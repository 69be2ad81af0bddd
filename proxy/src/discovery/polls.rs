//! xDS over REST: who is polled for what, and when (Envoy's `RestApiFetcher`). Each name has a poll of its own, as in Envoy.
//! It must not know what resources mean.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use prost::Message as _;
use tidegate_control::client::Rest;
use tidegate_filters::context::RestControlPlane;
use tidegate_filters::http::filter::CallError;
use tidegate_filters::http::{Body, Request, RequestHead};
use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::DiscoveryRequest;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Kind, Report, channel};
use crate::app::Shared;
use crate::config::origin::name_of;
use crate::http::headers::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS;
use crate::services;

/// No control plane says more at once; what is longer is a failure.
const MOST_BYTES: usize = 32 << 20;

impl Kind {
    /// Where this type is polled for.
    pub(super) fn rest_path(self) -> &'static str {
        match self {
            Self::Cluster => "/v3/discovery:clusters",
            Self::Endpoints => "/v3/discovery:endpoints",
            Self::Listener => "/v3/discovery:listeners",
            Self::Route => "/v3/discovery:routes",
            Self::Secret => "/v3/discovery:secrets",
            Self::Runtime => "/v3/discovery:runtime",
            Self::Extension => "/v3/discovery:extension_configs",
            Self::Scope => "/v3/discovery:scoped-routes",
            Self::VirtualHost => "/v3/discovery:virtual-hosts",
        }
    }
}

/// What happened to a poll.
pub(crate) struct Polled {
    pub(super) kind: Kind,
    pub(super) name: Arc<str>,
    /// Of the poll: one that was replaced is not listened to.
    number: u64,
    pub(super) what: What,
}

pub(super) enum What {
    /// It asks: the request goes this way.
    Asks(oneshot::Sender<DiscoveryRequest>),
    /// This came, in JSON.
    Came(Bytes),
    /// There is nothing new.
    Unchanged,
    /// Nothing came; it asks again by itself.
    Failed(String),
}

/// Everything that is polled for.
pub(super) struct Polls {
    shared: Weak<Shared>,
    node: Node,
    reports: mpsc::Sender<Report>,
    running: HashMap<(Kind, Arc<str>), Poll>,
    /// Of the poll that begins next.
    next_number: u64,
}

struct Poll {
    control_plane: Arc<RestControlPlane>,
    rest: Rest,
    number: u64,
    task: JoinHandle<()>,
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Polls {
    pub(super) fn new(shared: &Arc<Shared>, node: Node, reports: mpsc::Sender<Report>) -> Self {
        Self { shared: Arc::downgrade(shared), node, reports, running: HashMap::new(), next_number: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// From now on it is polled for there, or nowhere; `again`: whoever needs it begins anew, so does the poll. The name of
    /// everything of a type is empty, and that of scopes their source's.
    pub(super) fn set(&mut self, kind: Kind, name: &Arc<str>, from: Option<&Arc<RestControlPlane>>, again: bool) {
        let Some(control_plane) = from else {
            if !self.running.is_empty() {
                self.running.remove(&(kind, Arc::clone(name)));
            }
            return;
        };
        let key = (kind, Arc::clone(name));
        if !again && self.running.get(&key).is_some_and(|poll| poll.control_plane == *control_plane) {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        let asked = Some(name_of(name)).filter(|_| !kind.is_whole());
        let rest = Rest::new(self.node.clone(), kind.type_url(), asked);
        let poller = Poller {
            shared: Weak::clone(&self.shared),
            control_plane: Arc::clone(control_plane),
            reports: self.reports.clone(),
            kind,
            name: Arc::clone(name),
            number,
        };
        let task = tokio::spawn(poller.run());
        self.running.insert(key, Poll { control_plane: Arc::clone(control_plane), rest, number, task });
    }

    /// Whether the poll that this happened to still runs.
    pub(super) fn is_current(&self, polled: &Polled) -> bool {
        let poll = self.running.get(&(polled.kind, Arc::clone(&polled.name)));
        poll.is_some_and(|poll| poll.number == polled.number)
    }

    /// The state of the poll for this.
    pub(super) fn of(&mut self, kind: Kind, name: &Arc<str>) -> Option<&mut Rest> {
        self.running.get_mut(&(kind, Arc::clone(name))).map(|poll| &mut poll.rest)
    }

    /// What is polled for.
    pub(super) fn asked(&self) -> impl Iterator<Item = &(Kind, Arc<str>)> {
        self.running.keys()
    }
}

/// Asks again and again.
struct Poller {
    shared: Weak<Shared>,
    control_plane: Arc<RestControlPlane>,
    reports: mpsc::Sender<Report>,
    kind: Kind,
    name: Arc<str>,
    number: u64,
}

impl Poller {
    /// Until nobody listens.
    async fn run(self) {
        while self.once().await.is_some() {
            tokio::time::sleep(delay(self.control_plane.refresh_delay, rand::random())).await;
        }
    }

    /// One request and what becomes of it; none when nobody listens any more.
    async fn once(&self) -> Option<()> {
        let (sender, request) = oneshot::channel();
        self.tell(What::Asks(sender)).await?;
        let request = request.await.ok()?;
        match self.ask(&request).await {
            Ok(Some(body)) => self.tell(What::Came(body)).await,
            Ok(None) => self.tell(What::Unchanged).await,
            Err(reason) => self.tell(What::Failed(reason)).await,
        }
    }

    async fn tell(&self, what: What) -> Option<()> {
        let polled = Polled { kind: self.kind, name: Arc::clone(&self.name), number: self.number, what };
        self.reports.send(Report::Poll(polled)).await.ok()
    }

    /// The response's body; none where nothing has changed.
    async fn ask(&self, request: &DiscoveryRequest) -> Result<Option<Bytes>, String> {
        let (cluster, request) = {
            let shared = self.shared.upgrade().ok_or_else(|| CallError::NoCluster.to_string())?;
            let cluster = shared.snapshot().clusters.get(self.control_plane.cluster.as_str()).cloned();
            (cluster.ok_or_else(|| CallError::NoCluster.to_string())?, self.request(&shared, request))
        };
        let timeout = self.control_plane.request_timeout;
        let response = services::within(timeout, &cluster, services::fetch(&cluster, request, MOST_BYTES)).await;
        let (head, body) = response.map_err(|error| error.to_string())?;
        match head.status {
            StatusCode::OK => Ok(Some(body)),
            StatusCode::NOT_MODIFIED => Ok(None),
            status => Err(format!("status {}", status.as_u16())),
        }
    }

    fn request(&self, shared: &Shared, asked: &DiscoveryRequest) -> Request {
        let json = tidegate_xds::to_json("envoy.service.discovery.v3.DiscoveryRequest", &asked.encode_to_vec());
        let authority =
            HeaderValue::from_str(&self.control_plane.cluster).unwrap_or_else(|_| HeaderValue::from_static(""));
        let mut head = RequestHead::new(Method::POST, authority, HeaderValue::from_static(self.kind.rest_path()));
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        channel::say_who(&mut head, shared);
        let timeout = u64::try_from(self.control_plane.request_timeout.as_millis()).unwrap_or(u64::MAX);
        head.headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, timeout.into());
        Request { head, body: Body::full(json.to_string()) }
    }
}

/// How long to wait between two polls: once to twice as long as was configured, as in Envoy.
fn delay(refresh: Duration, random: u64) -> Duration {
    let millis = u64::try_from(refresh.as_millis()).unwrap_or(u64::MAX).max(1);
    refresh.saturating_add(Duration::from_millis(random % millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_are_spread_over_as_long_again() {
        let second = Duration::from_secs(1);
        assert_eq!(delay(second, 0), second);
        assert_eq!(delay(second, 999), Duration::from_millis(1999));
        assert_eq!(delay(second, 1000), second);
        assert_eq!(delay(Duration::from_millis(1), u64::MAX), Duration::from_millis(1));
    }
}
