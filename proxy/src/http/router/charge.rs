//! What a cluster, a host and the code stats are charged for a response (Envoy's `Filter::chargeUpstreamCode`).
//! It must not know why a response is the one that counts.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::cluster::Cluster;
use crate::cluster::codes::{CodeStats, Sides};
use crate::cluster::host::{Host, HostCounter};
use crate::http::headers::X_ENVOY_UPSTREAM_CANARY;
use crate::route::Tallies;

/// To whose account the responses of one request go.
#[derive(Clone)]
pub(super) struct Account {
    pub(super) cluster: Arc<Cluster>,
    /// The router's `dynamic_stats`, and the request is no health check.
    pub(super) counts: bool,
    pub(super) internal: bool,
    /// Failures of gRPC are its own filter's to count (`suppress_grpc_request_failure_code_stats`).
    pub(super) without_codes: bool,
    /// `x-envoy-upstream-alt-stat-name`: counters beside the cluster's own.
    pub(super) alternative: Option<Box<str>>,
    /// Virtual cluster and route.
    pub(super) tallies: Tallies,
}

impl Account {
    /// A response or what stands in for one. `host` is absent where none was reached.
    pub(super) fn code(&self, status: StatusCode, canary: bool, host: Option<&Host>) {
        if !self.counts {
            return;
        }
        self.cluster.stats().traffic.upstream_rq_completed().inc();
        self.each(canary, host, |codes, sides| codes.count(status, sides));
        self.tallies.each(|tally| tally.code(status));
        if let Some(host) = host.filter(|_| status.is_server_error()) {
            host.state.count(HostCounter::RequestError);
        }
    }

    /// A try that was given up before its response began.
    pub(super) fn abort(&self, status: StatusCode, host: Option<&Host>) {
        self.code(status, host.is_some_and(|host| host.canary), host);
        if let Some(host) = host.filter(|_| !status.is_server_error()) {
            host.state.count(HostCounter::RequestError);
        }
    }

    /// The route's timeout struck while a try ran.
    pub(super) fn time_out(&self, host: &Host) {
        self.cluster.stats().traffic.upstream_rq_timeout().inc();
        self.tallies.each(|tally| tally.requests.upstream_rq_timeout().inc());
        host.state.count(HostCounter::RequestTimeout);
    }

    /// How long it took from the end of the request to the end of the response.
    pub(super) fn time(&self, millis: u64, canary: bool, host: &Host) {
        if self.counts {
            self.each(canary, Some(host), |codes, sides| codes.record_time(millis, sides));
            self.tallies.each(|tally| tally.time(millis));
        }
    }

    /// A response that is thrown away for another try.
    pub(super) fn retried(&self, status: StatusCode, host: &Host) {
        host.state.count(HostCounter::RequestError);
        self.cluster.stats().retry_codes.count(status, self.without_codes);
    }

    fn each(&self, canary: bool, host: Option<&Host>, act: impl Fn(&CodeStats, Sides<'_>)) {
        let zone = host.map_or("", |host| &host.locality.zone);
        let sides = Sides { internal: self.internal, canary, zone, without_codes: self.without_codes };
        let codes = &self.cluster.stats().codes;
        act(codes, sides);
        if let Some(alternative) = self.alternative.as_deref().and_then(|name| codes.alternative(name)) {
            act(&alternative, sides);
        }
    }
}

/// Whether a canary gave this response, by its own word or by the host's metadata.
pub(super) fn is_canary(headers: &HeaderMap, host: &Host) -> bool {
    host.canary || headers.get(&X_ENVOY_UPSTREAM_CANARY).is_some_and(|value| value == "true")
}
