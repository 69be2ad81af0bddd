//! The terminal filter: where a request goes, how long it may take, how often it is tried (Envoy's router).
//! It must not know how hosts are connected to; one `attempt` is one try.

mod attempt;
mod failure;
mod mirror;
mod redirect;
mod replay;
mod retry;
mod upstream_filters;
pub(crate) mod upstream_log;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, StatusCode};
use tidegate_filters::http::{Body, LocalReply, Request, RequestHead, Response, StreamContext};
use tidegate_filters::stream_info::ResponseFlags;

use self::attempt::Failure;
use self::replay::Replay;
use self::retry::{Decision, Retries};
pub(crate) use self::upstream_filters::UpstreamFilters;
use super::access_logs::Periodic;
use super::exchange::Connection;
use super::headers::{
    X_ENVOY_ATTEMPT_COUNT, X_ENVOY_IS_TIMEOUT_RETRY, X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
    X_ENVOY_UPSTREAM_SERVICE_TIME,
};
use super::progress::Progress;
use crate::cluster::Cluster;
use crate::cluster::host::{Host, HostCounter};
pub(crate) use crate::cluster::pool::Pump;
use crate::cluster::pool::{Begun, Informational};
use crate::route::{Action, ClusterSelector, ForwardAction, RequestTimeouts, Route, RouteInput, TimeoutOptions};
use crate::route::{RedirectHistory, RedirectTarget};
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
}

/// A response that has begun.
pub(crate) struct Forwarded {
    pub response: Response,
    pub pump: Option<Pump>,
    /// When the route's timeout ends the response.
    pub deadline: Option<Instant>,
    /// The host agreed to leave HTTP.
    pub upgraded: bool,
    /// The response is a redirect that the proxy may follow itself.
    pub redirect: Option<Box<Redirected>>,
}

/// A redirect that may be followed, if its route agrees.
pub(crate) struct Redirected {
    pub target: RedirectTarget,
    /// The request's body from its beginning.
    pub body: Body,
    pub cluster: Arc<Cluster>,
}

/// What every attempt of a request shares.
struct Shared<'a> {
    connection: &'a Arc<Connection>,
    route: &'a Route,
    action: &'a ForwardAction,
    cluster: Arc<Cluster>,
    informational: Informational,
    upstream_filters: &'a UpstreamFilters,
    tunnel: bool,
    hash: Option<u64>,
    timeouts: RequestTimeouts,
    options: TimeoutOptions,
    progress: Option<Arc<Progress>>,
    periodic: Option<Arc<Periodic>>,
    started: Instant,
}

/// Forwards a request as its route says.
pub(crate) async fn forward(
    mut job: Job<'_>,
    request: &mut Request,
    stream: &mut StreamContext,
) -> Result<Forwarded, Box<LocalReply>> {
    let hcm = &job.connection.hcm;
    hcm.router_stats.rq_total().inc();
    let keep_original = !hcm.router.suppress_envoy_headers;
    if let Some(reply) = job.route.local_reply(&mut request.head, &stream.info, keep_original) {
        match job.route.entry.action {
            Action::Redirect(_) => hcm.router_stats.rq_redirect().inc(),
            _ => hcm.router_stats.rq_direct_response().inc(),
        }
        return Err(Box::new(reply));
    }
    let route = Arc::clone(&job.route);
    let Some(action) = route.forward() else {
        return Err(Box::new(LocalReply::new(StatusCode::NOT_FOUND, "route_not_found")));
    };
    let snapshot = std::mem::take(&mut job.snapshot);
    let cluster = find_cluster(&job, action, stream)?;
    let cookies = choose_hash(&job, action, request, stream);
    let shared = prepare(&job, action, cluster, cookies.0, request, stream);
    let (body, replay) = keep_for_replay(&shared, request, stream);
    mirror::send_all(&snapshot, &shared, &request.head, replay.as_ref(), stream);
    drop(snapshot);
    let (begun, upgraded) = run(&shared, body, replay.clone(), request, stream).await?;
    let redirect = redirect::target(&shared, &begun.response.head, &request.head, replay.as_ref(), &job.redirects);
    Ok(Forwarded { redirect, ..finish(&shared, begun, upgraded, cookies.1, request, stream) })
}

fn find_cluster(
    job: &Job<'_>,
    action: &ForwardAction,
    stream: &StreamContext,
) -> Result<Arc<Cluster>, Box<LocalReply>> {
    let hcm = &job.connection.hcm;
    let Some(cluster) = job.cluster.clone() else {
        hcm.router_stats.no_cluster().inc();
        // A header that names no cluster is always a 503.
        let unnamed = job.route.cluster.as_deref().unwrap_or_default().is_empty();
        let status = if unnamed && !matches!(action.cluster, ClusterSelector::Tree(_)) {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            action.cluster_not_found
        };
        return Err(Box::new(LocalReply::new(status, "cluster_not_found").flag(ResponseFlags::NO_CLUSTER_FOUND)));
    };
    let runtime = job.connection.shared.runtime();
    if cluster.drops(runtime, stream.random) {
        let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "drop_overload")
            .body("drop overload")
            .flag(ResponseFlags::DROP_OVERLOAD);
        return Err(Box::new(reply));
    }
    let maintenance = runtime.integer(&format!("upstream.maintenance_mode.{}", cluster.name()));
    if maintenance.is_some_and(|percent| stream.random % 100 < percent) {
        cluster.stats().traffic.upstream_rq_maintenance_mode().inc();
        let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "maintenance_mode")
            .body("maintenance mode")
            .flag(ResponseFlags::UPSTREAM_OVERFLOW)
            .header(super::headers::X_ENVOY_OVERLOADED, HeaderValue::from_static("true"));
        return Err(Box::new(reply));
    }
    Ok(cluster)
}

/// The hash for hashing balancers, and cookies to set for it.
fn choose_hash(
    job: &Job<'_>,
    action: &ForwardAction,
    request: &Request,
    stream: &StreamContext,
) -> (Option<u64>, Vec<HeaderValue>) {
    if action.hash.is_empty() {
        return (None, Vec::new());
    }
    let input = RouteInput {
        head: &request.head,
        connection: &job.connection.info,
        remote: &stream.info.downstream_remote,
        metadata: &stream.info.dynamic_metadata,
        filter_state: &stream.info.filter_state,
        runtime: job.connection.shared.runtime(),
        random: stream.random,
    };
    let hashed = crate::route::hash(&action.hash, &input);
    (hashed.hash, hashed.cookies)
}

/// Fixes the timeouts and makes the upstream's head of the client's.
fn prepare<'a>(
    job: &'a Job<'_>,
    action: &'a ForwardAction,
    cluster: Arc<Cluster>,
    hash: Option<u64>,
    request: &mut Request,
    stream: &mut StreamContext,
) -> Shared<'a> {
    let router = job.connection.hcm.router;
    let head = &mut request.head;
    let options = TimeoutOptions {
        insert_expected: !router.suppress_envoy_headers,
        respect_expected: router.respect_expected_timeout,
        grpc: head.is_grpc(),
        hedge_on_per_try_timeout: action.hedge.of_request(&mut head.headers),
    };
    let policy = &action.retry;
    let per_try = (policy.per_try_timeout, policy.per_try_idle_timeout);
    let timeouts = action.timeouts.of_request(per_try, &mut head.headers, options);
    if job.route.entry.virtual_host.attempts.count_upstream {
        head.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from_static("1"));
    }
    job.route.finalize_request(head, &stream.info, !router.suppress_envoy_headers);
    let tunnel = super::request_headers::is_upgrade(&head.headers) || head.method == Method::CONNECT;
    Shared {
        connection: job.connection,
        route: &job.route,
        action,
        cluster,
        informational: job.informational.clone(),
        upstream_filters: job.upstream_filters,
        tunnel,
        hash,
        timeouts,
        options,
        progress: job.progress.clone(),
        periodic: job.periodic.clone(),
        started: Instant::now(),
    }
}

/// Keeps the body for whoever may read it again; without such a reader it goes straight up.
fn keep_for_replay(shared: &Shared<'_>, request: &mut Request, stream: &StreamContext) -> (Body, Option<Replay>) {
    let body = request.body.take();
    let again = !shared.action.retry.on.is_never()
        || super::headers::asks_for_retries(&request.head.headers)
        || !shared.action.mirrors.is_empty()
        || shared.action.internal_redirect.is_some();
    if body.is_end() || shared.tunnel || !again {
        return (body, None);
    }
    let _ = stream;
    let connection_limit = shared.connection.hcm.buffer_limit_bytes as u64;
    let limit = shared.route.entry.buffer_limit.of_connection(connection_limit);
    (Body::Empty, Some(Replay::new(body, usize::try_from(limit).unwrap_or(usize::MAX))))
}

/// What one try came to.
enum Tried {
    Response(Box<Begun>, Arc<Host>),
    Failed(Failure, Option<Arc<Host>>),
    /// The route's timeout has passed.
    TimedOut(Option<Arc<Host>>),
}

/// Tries until there is a response to hand on, or nothing more to try.
async fn run(
    shared: &Shared<'_>,
    body: Body,
    replay: Option<Replay>,
    request: &mut Request,
    stream: &mut StreamContext,
) -> Result<(Begun, bool), Box<LocalReply>> {
    let alternative = request.head.headers.contains_key(&X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE);
    let runtime = shared.connection.shared.runtime();
    let policy = &shared.action.retry;
    let retries = policy.of_request(&mut request.head);
    let priority = shared.action.priority;
    let mut retries = retries.map(|request| Retries::new(policy, request, &shared.cluster, priority, runtime));
    let mut global = pin!(expires(shared.timeouts.global, shared.progress.as_deref()));
    let mut body = Some(body);
    let mut tried: Vec<Arc<Host>> = Vec::new();
    loop {
        let this_body = match &replay {
            Some(replay) => replay.reader().unwrap_or_default(),
            None => body.take().unwrap_or_default(),
        };
        let outcome = attempt::attempt(shared, &mut request.head, this_body, &tried, global.as_mut(), stream).await;
        let again = replay.as_ref().is_none_or(Replay::is_whole) && (replay.is_some() || shared.progress.is_none());
        let decision = match (&outcome, &mut retries) {
            (Tried::TimedOut(_) | Tried::Failed(Failure::Replied(_), _), _) | (_, None) => Decision::Final,
            _ if !again => {
                shared.cluster.stats().traffic.retry_or_shadow_abandoned().inc();
                Decision::Final
            }
            (Tried::Response(begun, _), Some(retries)) => retries.after_response(&begun.response.head, rand::random()),
            (Tried::Failed(failure, host), Some(retries)) => {
                retries.after_failure(failure, host.is_some(), rand::random())
            }
        };
        match decision {
            Decision::Again(wait) => {
                log_attempt(shared, &request.head, &outcome, stream);
                count_retried(shared, &outcome);
                tried.extend(host_of(outcome));
                let waited = tokio::select! {
                    biased;
                    () = global.as_mut() => false,
                    () = tokio::time::sleep(wait), if !wait.is_zero() => true,
                    () = std::future::ready(()), if wait.is_zero() => true,
                };
                if !waited {
                    return Err(timed_out(shared, alternative));
                }
                next_try(shared, request, stream);
                continue;
            }
            Decision::Exhausted => stream.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED,
            Decision::Overflow => stream.info.flags |= ResponseFlags::UPSTREAM_OVERFLOW,
            Decision::Final => {}
        }
        if !matches!(outcome, Tried::Response(..)) {
            log_attempt(shared, &request.head, &outcome, stream);
        }
        return match outcome {
            Tried::Response(begun, _) => {
                let status = begun.response.head.status;
                let upgraded = shared.tunnel
                    && (status == StatusCode::SWITCHING_PROTOCOLS
                        || request.head.method == Method::CONNECT && status.is_success());
                Ok((*begun, upgraded))
            }
            Tried::Failed(Failure::Replied(reply), _) => Err(reply),
            Tried::Failed(failure, _) => Err(give_up(shared, &failure, alternative, stream)),
            Tried::TimedOut(host) => {
                if let Some(host) = host {
                    host.state.count(HostCounter::RequestTimeout);
                }
                Err(timed_out(shared, alternative))
            }
        };
    }
}

/// Headers that say which try this is and how long is left.
fn next_try(shared: &Shared<'_>, request: &mut Request, stream: &StreamContext) {
    let attempts = shared.route.entry.virtual_host.attempts;
    let headers = &mut request.head.headers;
    if attempts.count_upstream {
        headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(stream.info.upstream.attempts + 1));
    }
    if attempts.timeout_retry {
        headers.insert(X_ENVOY_IS_TIMEOUT_RETRY, HeaderValue::from_static("false"));
    }
    let elapsed = shared.started.elapsed();
    shared.action.timeouts.announce(&shared.timeouts, elapsed, headers, shared.options);
}

fn host_of(outcome: Tried) -> Option<Arc<Host>> {
    match outcome {
        Tried::Response(_, host) => Some(host),
        Tried::Failed(_, host) | Tried::TimedOut(host) => host,
    }
}

/// The upstream log's line of an attempt; that of the response which goes to the client is written at its end.
fn log_attempt(shared: &Shared<'_>, request: &RequestHead, outcome: &Tried, stream: &StreamContext) {
    let outcome = match outcome {
        Tried::Response(begun, _) => upstream_log::Outcome::Response(&begun.response.head),
        Tried::Failed(_, None) => return,
        Tried::Failed(failure, Some(_)) => upstream_log::Outcome::Failure(failure),
        Tried::TimedOut(_) => upstream_log::Outcome::TimedOut,
    };
    upstream_log::write(shared.connection, request, &outcome, stream);
}

fn count_retried(shared: &Shared<'_>, outcome: &Tried) {
    if let Tried::Response(begun, host) = outcome {
        host.state.count(HostCounter::RequestError);
        shared.cluster.stats().retry_codes.count(begun.response.head.status);
    }
}

fn give_up(shared: &Shared<'_>, failure: &Failure, alternative: bool, stream: &mut StreamContext) -> Box<LocalReply> {
    if matches!(failure, Failure::PerTryTimeout) {
        let mut reply = timed_out(shared, alternative);
        reply.details = "upstream_per_try_timeout".into();
        return reply;
    }
    let reply = failure::reply(failure, &mut stream.info);
    let cluster = shared.cluster.stats();
    if !matches!(failure, Failure::NoHealthyHost) && counts_codes(shared, stream) {
        cluster.traffic.upstream_rq_completed().inc();
        cluster.codes.count(reply.status, stream.info.internal_request);
    }
    Box::new(reply)
}

/// Whether responses are counted by code: `dynamic_stats`, and never those to health checks.
fn counts_codes(shared: &Shared<'_>, stream: &StreamContext) -> bool {
    shared.connection.hcm.router.dynamic_stats && !stream.info.health_check_request
}

fn timed_out(shared: &Shared<'_>, alternative: bool) -> Box<LocalReply> {
    shared.cluster.stats().traffic.upstream_rq_timeout().inc();
    let flag = ResponseFlags::UPSTREAM_REQUEST_TIMEOUT;
    if alternative {
        return Box::new(LocalReply::new(StatusCode::NO_CONTENT, "response_timeout").flag(flag));
    }
    let reply = LocalReply::new(StatusCode::GATEWAY_TIMEOUT, "response_timeout").body("upstream request timeout");
    Box::new(reply.flag(flag))
}

/// Waits for the end of the request, and then as long as the limit says.
async fn expires(limit: Option<Duration>, progress: Option<&Progress>) {
    let Some(limit) = limit else { return std::future::pending().await };
    if let Some(progress) = progress {
        progress.done().await;
    }
    tokio::time::sleep(limit).await;
}

fn finish(
    shared: &Shared<'_>,
    begun: Begun,
    upgraded: bool,
    cookies: Vec<HeaderValue>,
    request: &Request,
    stream: &mut StreamContext,
) -> Forwarded {
    let Begun { mut response, pump } = begun;
    let hcm = &shared.connection.hcm;
    stream.info.details = Some("via_upstream".into());
    let head = &mut response.head;
    let millis = u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let stats = shared.cluster.stats();
    if counts_codes(shared, stream) {
        stats.traffic.upstream_rq_completed().inc();
        stats.codes.count(head.status, stream.info.internal_request);
        stats.codes.record_time(millis, stream.info.internal_request);
    }
    if !hcm.router.suppress_envoy_headers {
        head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, HeaderValue::from(millis));
    }
    if shared.route.entry.virtual_host.attempts.count_downstream {
        head.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(stream.info.upstream.attempts));
    }
    for cookie in cookies {
        head.headers.append(http::header::SET_COOKIE, cookie);
    }
    shared.route.finalize_response(head, Some(&request.head), &stream.info);
    let complete = shared.progress.as_ref().is_none_or(|progress| progress.is_done());
    let deadline = shared.timeouts.global.filter(|_| complete && !upgraded).map(|limit| shared.started + limit);
    Forwarded { response, pump, deadline, upgraded, redirect: None }
}

/// A future that may be awaited again and again.
trait Deadline: Future<Output = ()> + Send {}
impl<T: Future<Output = ()> + Send> Deadline for T {}
