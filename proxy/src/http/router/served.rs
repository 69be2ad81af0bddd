//! What is owed once a response has begun: codes at its head, its time and gRPC's verdict at its end.
//! It must not know how the response reaches the client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use tidegate_filters::http::{Body, ResponseHead};

use super::Shared;
use super::charge::Account;
use super::idle::Watched;
use super::measure::record_budget;
use crate::cluster::Cluster;
use crate::cluster::host::{Host, HostCounter};
use crate::http::headers::GRPC_STATUS;
use crate::http::progress::Progress;

/// The try whose response the client gets.
pub(crate) struct Served {
    account: Account,
    host: Arc<Host>,
    canary: bool,
    started: Instant,
    /// How long the whole may take.
    limit: Option<Duration>,
    progress: Option<Arc<Progress>>,
    grpc: bool,
    /// Its success is known with its trailers.
    deferred: bool,
}

impl Served {
    pub(super) fn new(shared: &Shared<'_>, account: Account, host: Arc<Host>, canary: bool) -> Self {
        Self {
            account,
            host,
            canary,
            started: shared.started,
            limit: shared.timeouts.global,
            progress: shared.progress.clone(),
            grpc: shared.options.grpc,
            deferred: false,
        }
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.account.cluster
    }

    /// The response's head goes to the client.
    pub(super) fn begin(&mut self, head: &ResponseHead, end: bool) {
        self.account.code(head.status, self.canary, Some(&self.host));
        if head.status.is_server_error() {
            return;
        }
        if !self.grpc {
            self.host.state.count(HostCounter::RequestSuccess);
        } else if end {
            self.count_grpc(&head.headers);
        } else {
            self.deferred = true;
        }
    }

    /// A body that ends when the host says nothing for so long.
    pub(super) fn watch(&self, body: Body, limit: Duration) -> Body {
        Body::stream(Watched::new(
            body,
            limit,
            Arc::clone(&self.account.cluster),
            Arc::clone(&self.host),
            self.progress.clone(),
        ))
    }

    /// Whether the end of the response must be told with its trailers.
    pub(crate) fn wants_trailers(&self) -> bool {
        self.deferred
    }

    /// All of the response came.
    pub(crate) fn complete(&mut self, trailers: Option<&HeaderMap>) {
        if std::mem::take(&mut self.deferred) {
            match trailers {
                Some(trailers) => self.count_grpc(trailers),
                None => self.host.state.count(HostCounter::RequestError),
            }
        }
        let complete = self.progress.as_ref().is_none_or(|progress| progress.is_done());
        if complete {
            let since = self.request_end();
            record_budget(&self.account.cluster, since, self.limit);
            let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.account.time(millis, self.canary, &self.host);
        }
    }

    /// When the last of the request came.
    fn request_end(&self) -> Instant {
        self.progress.as_ref().map_or(self.started, |progress| progress.last().max(self.started))
    }

    /// The route's timeout ended it.
    pub(crate) fn time_out(&mut self) {
        self.account.time_out(&self.host);
        record_budget(&self.account.cluster, self.request_end(), self.limit);
    }

    /// The host broke it off. True when that makes a failure of a call that had begun well.
    pub(crate) fn cut(&mut self) -> bool {
        let deferred = std::mem::take(&mut self.deferred);
        if deferred {
            self.host.state.count(HostCounter::RequestError);
        }
        deferred
    }

    fn count_grpc(&self, headers: &HeaderMap) {
        let status = headers.get(&GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse().ok());
        let good = status.is_some_and(|status| !http_status(status).is_server_error());
        self.host.state.count(if good { HostCounter::RequestSuccess } else { HostCounter::RequestError });
    }
}

/// gRPC's mapping to HTTP status (Envoy's `Grpc::Utility::grpcToHttpStatus`).
fn http_status(status: u32) -> StatusCode {
    match status {
        0 => StatusCode::OK,
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        4 => StatusCode::GATEWAY_TIMEOUT,
        16 => StatusCode::UNAUTHORIZED,
        1 => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
