//! The terminal filter: where a request goes, how long it may take, how often it is tried (Envoy's router).
//! It must not know how hosts are connected to; one `attempt` is one try.

mod answer;
mod attempt;
mod body_begin;
mod charge;
mod cluster;
mod deadline;
mod early_data;
mod failure;
mod handshake;
mod hedge;
mod host;
mod idle;
mod lasting;
mod measure;
mod mirror;
mod observed;
mod read_ahead;
mod redirect;
mod refresh;
mod replay;
mod retry;
mod served;
mod strict;
mod tries;
mod upstream_filters;
mod upstream_log;

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use tidegate_filters::http::{Body, LocalReply, Request, ResponseHead, StreamContext};

pub(crate) use self::answer::{Answer, Forwarded, Unfinished};
use self::charge::Account;
pub(crate) use self::lasting::{count_max_stream_duration, max_stream_duration_reply};
pub(crate) use self::redirect::Redirected;
use self::replay::Replay;
pub(crate) use self::served::Served;
pub(crate) use self::upstream_filters::UpstreamFilters;
use super::access_logs::Periodic;
use super::exchange::Connection;
use super::headers::{X_ENVOY_ATTEMPT_COUNT, X_ENVOY_UPSTREAM_ALT_STAT_NAME, X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE};
use super::progress::Progress;
use super::wire_bytes::WireBytes;
use crate::application_log::shown::{RequestHeaders, Tags};
use crate::cluster::Cluster;
pub(crate) use crate::cluster::pool::Pump;
use crate::cluster::pool::{Informational, OnInformational, StreamReset};
use crate::route::{
    ForwardAction, MirrorPolicy, RedirectHistory, RequestTimeouts, RetryPolicy, Route, Tallies, TimeoutOptions,
};
use crate::snapshot::Snapshot;

/// One request to forward.
pub(crate) struct Job<'a> {
    pub connection: &'a Arc<Connection>,
    pub snapshot: Arc<Snapshot>,
    pub route: Arc<Route>,
    /// The route's cluster, if there is one of that name.
    pub cluster: Option<Arc<Cluster>>,
    /// How far the request's body has come; `None` when there is none.
    pub progress: Option<Arc<Progress>>,
    pub informational: Informational,
    pub redirects: RedirectHistory,
    pub upstream_filters: &'a UpstreamFilters,
    pub periodic: Option<Arc<Periodic>>,
    /// Where the bytes of all tries are counted, if anybody asks.
    pub upstream_bytes: Option<Arc<WireBytes>>,
}

/// What every attempt of a request shares.
struct Shared<'a> {
    connection: &'a Arc<Connection>,
    route: &'a Arc<Route>,
    action: &'a ForwardAction,
    cluster: Arc<Cluster>,
    account: Account,
    informational: Informational,
    upstream_filters: &'a UpstreamFilters,
    /// When the last informational response went to the client: after the first, no try is repeated.
    informed: Mutex<Option<Instant>>,
    tunnel: bool,
    hash: Option<u64>,
    timeouts: RequestTimeouts,
    /// 504, or what the client wants in its place.
    timeout_status: StatusCode,
    options: TimeoutOptions,
    progress: Option<Arc<Progress>>,
    periodic: Option<Arc<Periodic>>,
    bytes: Option<Arc<WireBytes>>,
    started: Instant,
}

/// Forwards a request as its route says.
pub(crate) async fn forward(
    mut job: Job<'_>,
    request: &mut Request,
    stream: &mut StreamContext,
) -> Result<Answer, Box<LocalReply>> {
    let hcm = &job.connection.hcm;
    hcm.router_stats.rq_total().inc();
    let keep_original = !hcm.router.suppress_envoy_headers;
    if job.route.forward().is_none() {
        // What it adds to the response may say so.
        stream.info.details = Some("direct_response".into());
    }
    if let Some(reply) = job.route.local_reply(&mut request.head, &stream.info, keep_original) {
        // Redirects too: Envoy counts nothing as `rq_redirect`.
        hcm.router_stats.rq_direct_response().inc();
        return Err(Box::new(reply));
    }
    let route = Arc::clone(&job.route);
    let Some(action) = route.forward() else {
        return Err(Box::new(LocalReply::new(StatusCode::NOT_FOUND, "route_not_found")));
    };
    let snapshot = std::mem::take(&mut job.snapshot);
    let router = &hcm.router;
    let cluster = job.cluster.take().ok_or_else(|| {
        tracing::debug!("{} unknown cluster", Tags::stream(stream));
        cluster::not_found(&job, action)
    })?;
    let path = || String::from_utf8_lossy(request.head.path.as_bytes());
    tracing::debug!("{} cluster '{}' match for URL '{}'", Tags::stream(stream), cluster.name(), path());
    let tallies = find_tallies(&job, request, stream);
    strict::check(&router.strict_headers, &request.head)?;
    let account = open_account(&job, cluster, tallies, request, stream);
    cluster::admit(&job, &account, stream)?;
    let cookies = choose_hash(&job, action, &account.cluster, request, stream);
    stream.info.upstream.attempts = 1;
    let shared = prepare(&job, action, account, cookies.0, request, stream);
    tracing::debug!("{} router decoding headers:\n{}", Tags::stream(stream), RequestHeaders(&request.head));
    let early = early_data::watch(&shared, request);
    let (body, replay) = keep_for_replay(&shared, request);
    mirror::send_all(&snapshot, &shared, &request.head, replay.as_ref(), stream);
    drop(snapshot);
    let won = {
        let mut won = pin!(tries::run(&shared, body, replay.clone(), request, stream));
        match &early {
            Some(early) => early_data::none_while(early, won).await,
            None => won.as_mut().await,
        }
    }?;
    let redirect = redirect::target(&shared, &won.begun.response.head, &request.head, replay.as_ref(), &job.redirects);
    let unfinished = Unfinished::new(&shared, won, cookies.1);
    Ok(match redirect {
        Some((target, body)) => Answer::Redirect(Box::new(Redirected { target, body, unfinished })),
        None => Answer::Response(unfinished.finish(&request.head, stream)),
    })
}

/// Who counts a request beside its cluster. Logs name its virtual cluster.
fn find_tallies(job: &Job<'_>, request: &Request, stream: &mut StreamContext) -> Tallies {
    let entry = &job.route.entry;
    let virtual_cluster = entry.virtual_host.virtual_cluster(&job.connection.route_input(&request.head, stream));
    stream.info.virtual_cluster = virtual_cluster.and_then(|found| found.name.clone());
    Tallies { virtual_cluster: virtual_cluster.map(|found| Arc::clone(&found.tally)), route: entry.tally.clone() }
}

/// Takes what a request says about its stats.
fn open_account(
    job: &Job<'_>,
    cluster: Arc<Cluster>,
    tallies: Tallies,
    request: &mut Request,
    stream: &StreamContext,
) -> Account {
    let router = &job.connection.hcm.router;
    let alternative = request.head.headers.remove(&X_ENVOY_UPSTREAM_ALT_STAT_NAME);
    let alternative = alternative.as_ref().and_then(|name| name.to_str().ok()).filter(|name| !name.is_empty());
    Account {
        cluster,
        counts: router.dynamic_stats && !stream.info.health_check_request,
        internal: stream.info.internal_request,
        without_codes: router.suppress_grpc_codes && request.head.is_grpc(),
        alternative: alternative.map(Box::from),
        tallies,
    }
}

/// The hash for hashing balancers, and cookies to set for it.
fn choose_hash(
    job: &Job<'_>,
    action: &ForwardAction,
    cluster: &Cluster,
    request: &Request,
    stream: &StreamContext,
) -> (Option<u64>, Vec<HeaderValue>) {
    let own = &cluster.config().http.policies.hash;
    let policies = if own.is_empty() { &action.hash[..] } else { own };
    if policies.is_empty() {
        return (None, Vec::new());
    }
    let hashed = crate::route::hash(policies, &job.connection.route_input(&request.head, stream));
    (hashed.hash, hashed.cookies)
}

/// Fixes the timeouts and makes the upstream's head of the client's.
fn prepare<'a>(
    job: &'a Job<'_>,
    action: &'a ForwardAction,
    account: Account,
    hash: Option<u64>,
    request: &mut Request,
    stream: &mut StreamContext,
) -> Shared<'a> {
    let router = &job.connection.hcm.router;
    let head = &mut request.head;
    let route = &job.route;
    let options = TimeoutOptions {
        insert_expected: !router.suppress_envoy_headers,
        respect_expected: router.respect_expected_timeout,
        grpc: head.is_grpc(),
        hedge_on_per_try_timeout: action.hedge.of_request(&mut head.headers),
    };
    let policy = account.cluster.config().http.policies.retry.as_ref().unwrap_or(&action.retry);
    let per_try = (policy.per_try_timeout, policy.per_try_idle_timeout);
    let timeouts = action.timeouts.of_request(per_try, &mut head.headers, options);
    let alternative = head.headers.remove(&X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE).is_some();
    if route.entry.virtual_host.attempts.count_upstream {
        head.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from_static("1"));
    }
    route.finalize_request(head, &stream.info, !router.suppress_envoy_headers);
    let tunnel = super::request_headers::is_upgrade(&head.headers) || head.method == Method::CONNECT;
    Shared {
        connection: job.connection,
        route,
        action,
        cluster: Arc::clone(&account.cluster),
        account,
        informational: job.informational.clone(),
        upstream_filters: job.upstream_filters,
        informed: Mutex::new(None),
        tunnel,
        hash,
        timeouts,
        timeout_status: if alternative { StatusCode::NO_CONTENT } else { StatusCode::GATEWAY_TIMEOUT },
        options,
        progress: job.progress.clone(),
        periodic: job.periodic.clone(),
        bytes: job.upstream_bytes.clone(),
        started: Instant::now(),
    }
}

/// Keeps the body for whoever may read it again; without such a reader it goes straight up.
fn keep_for_replay(shared: &Shared<'_>, request: &mut Request) -> (Body, Option<Replay>) {
    let body = request.body.take();
    let again = !shared.retry().on.is_never()
        || super::headers::asks_for_retries(&request.head.headers)
        || !shared.mirrors().is_empty()
        || shared.action.internal_redirect.is_some();
    if body.is_end() || shared.tunnel || !again {
        return (body, None);
    }
    (Body::Empty, Some(Replay::new(body, shared.buffer_limit())))
}

impl Shared<'_> {
    /// The cluster's retry policy goes before the route's.
    fn retry(&self) -> &RetryPolicy {
        self.cluster.config().http.policies.retry.as_ref().unwrap_or(&self.action.retry)
    }

    /// The cluster's mirrors go before the route's.
    fn mirrors(&self) -> &[MirrorPolicy] {
        let own = &self.cluster.config().http.policies.mirrors;
        if own.is_empty() { &self.action.mirrors } else { own }
    }

    /// How much of the request's body is kept, bytes.
    fn buffer_limit(&self) -> usize {
        let connection_limit = self.connection.hcm.buffer_limit_bytes as u64;
        let limit = self.route.entry.buffer_limit.of_connection(connection_limit);
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    fn last_informational(&self) -> Option<Instant> {
        *self.informed.lock()
    }

    /// Since when the request is whole; `None` while it is not.
    fn request_complete(&self) -> Option<Instant> {
        match &self.progress {
            None => Some(self.started),
            Some(progress) => progress.is_done().then(|| progress.last().max(self.started)),
        }
    }
}

/// The first informational response counts like others; all go on to the client.
impl OnInformational for Shared<'_> {
    fn informational(&self, head: ResponseHead) -> Result<(), StreamReset> {
        if self.informed.lock().replace(Instant::now()).is_none() {
            self.account.code(head.status, false, None);
        }
        self.informational.informational(head)
    }
}
