//! One request and its response, read from top to bottom: sanitise, route, filters, forward, filters, send, account.
//! It must not know framing, pools or protos.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, StatusCode, Version};
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::http::filter::Verdict;
use tidegate_filters::http::{
    Body, BodyError, HttpFilter, LocalReply, Override, Overrides, Request, RequestHead, Response, ResponseHead, Step,
    StreamContext,
};
use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};

use super::downstream::{BodyLength, Downstream, Gone, ResetReason};
use super::limits::Limits;
use super::options::{FilterSlot, HttpConnectionManager, RouteSource};
use super::path::{self, Normalized};
use super::progress::{Counted, Progress};
use super::relay::{Cut, relay, while_pumping};
use super::request_headers::{self, is_upgrade};
use super::router::{self, Pump, Redirected};
use super::stats::ListenerHttpStats;
use super::timers::{Limit, Timers};
use super::{local_reply, response_headers};
use crate::app::Shared;
use crate::cluster::pool::Informational;
use crate::listener::drain::Drain;
use crate::route::{ClusterSelector, Outcome, RouteInput, RouteTable, tls_location};
use crate::route::{RedirectHistory, RedirectRefusal};
use crate::snapshot::Snapshot;

/// How long a client may take for what is left of a response that was cut.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Unset or true, a path with a fragment is refused; false, the fragment is cut off.
const REJECT_FRAGMENT: &str = "envoy.reloadable_features.http_reject_path_with_fragment";

/// gRPC's DEADLINE_EXCEEDED.
const GRPC_DEADLINE_EXCEEDED: u32 = 4;

/// What all exchanges of one connection share.
pub(crate) struct Connection {
    pub shared: Arc<Shared>,
    pub hcm: Arc<HttpConnectionManager>,
    pub info: Arc<ConnectionInfo>,
    pub listener_stats: ListenerHttpStats,
    pub drain: Arc<Drain>,
}

/// What the codec must know once an exchange is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    /// The response is complete.
    Complete,
    /// The client left before it was complete.
    Left,
    /// It was cut; the connection (HTTP/1) or stream (HTTP/2) is of no more use.
    Cut,
}

/// Why the way to a response was left early.
enum Interrupt {
    Gone(Gone),
    /// The request's body will never be whole.
    Body(BodyError),
    TimedOut(Limit),
}

/// A response on its way, and what still runs upwards.
struct Produced {
    response: Response,
    pump: Option<Pump>,
    /// When the route's timeout ends the response.
    deadline: Option<Instant>,
    upgraded: bool,
    /// The upstream redirects, and the route says that we may follow.
    redirect: Option<Box<Redirected>>,
}

struct Exchange<'a> {
    connection: &'a Arc<Connection>,
    snapshot: Option<Arc<Snapshot>>,
    stream: StreamContext,
    request: Request,
    outcome: Outcome,
    redirects: RedirectHistory,
    filters: Vec<(usize, Box<dyn HttpFilter>)>,
    chain: Arc<[FilterSlot]>,
    progress: Option<Arc<Progress>>,
    informational: Informational,
    limits: &'a Limits,
    /// The bytes never became a request: there is nothing of it to log.
    undecoded: bool,
    /// It asks to leave HTTP, and may.
    upgrade: bool,
    /// An HTTP/1 connection closes after it.
    closes: bool,
    /// The response's, kept for the logs.
    trailers: Option<http::HeaderMap>,
}

/// Serves one request to its end. `request.head` is what the codec decoded; nothing of it has been trusted yet.
pub(crate) async fn run<D: Downstream>(connection: &Arc<Connection>, request: Request, down: &mut D) -> Finished {
    let hcm = &connection.hcm;
    hcm.stats.downstream_rq_total().inc();
    hcm.stats.downstream_rq_active().inc();
    let limits = Limits::of(hcm);
    let mut exchange = Exchange::new(connection, &limits, request, down.version());
    (exchange.stream.info.bytes.header_received, exchange.stream.info.bytes.wire_received) = down.received_bytes();
    let mut timers = exchange.timers();
    let produced = {
        let informational = exchange.informational.clone();
        let progress = exchange.progress.clone();
        let mut produce = pin!(exchange.produce());
        std::future::poll_fn(|cx| {
            let polled = produce.as_mut().poll(cx);
            for head in informational.take() {
                if head.status == StatusCode::CONTINUE && hcm.proxy_100_continue {
                    count_informational(connection);
                }
                down.send_informational(&head);
            }
            if let Poll::Ready(produced) = polled {
                return Poll::Ready(Ok(produced));
            }
            if let Some(error) = progress.as_ref().and_then(|progress| progress.take_failure()) {
                return Poll::Ready(Err(Interrupt::Body(error)));
            }
            if let Poll::Ready(gone) = down.poll_gone(cx) {
                return Poll::Ready(Err(Interrupt::Gone(gone)));
            }
            timers.poll(cx).map(|limit| Err(Interrupt::TimedOut(limit)))
        })
        .await
    };
    let produced = match produced {
        Ok(produced) => produced,
        Err(Interrupt::Gone(gone)) => return exchange.abandon(gone, None),
        Err(Interrupt::Body(error)) => match bad_body(error) {
            Ok(reply) => {
                exchange.closes = true;
                exchange.produce_reply(reply).await
            }
            Err(gone) => return exchange.abandon(gone, None),
        },
        Err(Interrupt::TimedOut(limit)) => {
            let reply = exchange.timed_out(limit);
            exchange.produce_reply(reply).await
        }
    };
    if exchange.closes && down.version() < Version::HTTP_2 {
        down.close_after();
    }
    exchange.send(produced, timers, down).await
}

/// A 100 counts as a response too.
pub(crate) fn count_informational(connection: &Connection) {
    connection.hcm.stats.downstream_rq_completed().inc();
    connection.hcm.stats.count_response(StatusCode::CONTINUE);
    connection.listener_stats.count_response(StatusCode::CONTINUE);
}

/// What a request is told whose body will never be whole; `Err` when nobody is there to be told.
fn bad_body(error: BodyError) -> Result<LocalReply, Gone> {
    match error {
        BodyError::Reply(reply) => Ok(*reply),
        BodyError::Malformed(details) => {
            let reply = LocalReply::new(StatusCode::BAD_REQUEST, details).body("Bad Request").close();
            Ok(reply.flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR))
        }
        BodyError::Reset(_) => Err(Gone::Reset),
        BodyError::Closed | BodyError::TimedOut => Err(Gone::Closed),
    }
}

/// Answers bytes that never became a request: the codec's own error.
pub(crate) async fn reply_to_bad_request<D: Downstream>(
    connection: &Arc<Connection>,
    reply: LocalReply,
    down: &mut D,
) -> Finished {
    let limits = Limits::of(&connection.hcm);
    let mut exchange = Exchange::undecoded(connection, &limits, Version::HTTP_11);
    // Envoy learns that it was the protocol only after the reply was formatted.
    let flags = reply.flags;
    let reply = LocalReply { flags: ResponseFlags::empty(), ..reply };
    let response = local_reply::respond(&connection.hcm.local_replies, reply, None, &mut exchange.stream.info);
    exchange.stream.info.flags |= flags;
    let produced = Produced { response, pump: None, deadline: None, upgraded: false, redirect: None };
    let timers = exchange.timers();
    down.close_after();
    exchange.send(produced, timers, down).await
}

/// Accounts for an HTTP/2 stream whose head was refused; it has been reset.
pub(crate) fn note_refused_stream(connection: &Arc<Connection>, details: &'static str) {
    let limits = Limits::of(&connection.hcm);
    let mut exchange = Exchange::undecoded(connection, &limits, Version::HTTP_2);
    connection.hcm.stats.downstream_rq_rx_reset().inc();
    exchange.stream.info.flags |= ResponseFlags::DOWNSTREAM_REMOTE_RESET;
    exchange.stream.info.details = Some(details.into());
    exchange.complete(None);
}

impl<'a> Exchange<'a> {
    fn undecoded(connection: &'a Arc<Connection>, limits: &'a Limits, version: Version) -> Self {
        let nothing = http::HeaderValue::from_static("");
        let head = RequestHead::new(Method::GET, nothing.clone(), nothing);
        connection.hcm.stats.downstream_rq_total().inc();
        connection.hcm.stats.downstream_rq_active().inc();
        let request = Request { head, body: Body::Empty };
        Self { undecoded: true, ..Self::new(connection, limits, request, version) }
    }

    fn new(connection: &'a Arc<Connection>, limits: &'a Limits, mut request: Request, version: Version) -> Self {
        let mut info = StreamInfo::new(Arc::clone(&connection.info), Instant::now(), SystemTime::now());
        info.protocol = Some(version);
        info.dynamic_metadata = connection.info.metadata.clone();
        info.filter_state = connection.info.filter_state.clone();
        let progress = (!request.body.is_end()).then(|| {
            let progress = Progress::new(info.start);
            request.body = Body::stream(Counted::new(request.body.take(), Arc::clone(&progress)));
            progress
        });
        if progress.is_none() {
            info.timings.last_downstream_rx = Some(info.start);
        }
        let random = rand::random();
        let services = connection.shared.services();
        let stream = StreamContext::new(info, random, services);
        let chain = Arc::clone(&connection.hcm.filters);
        Self {
            connection,
            snapshot: None,
            stream,
            request,
            outcome: Outcome::NoVirtualHost,
            redirects: RedirectHistory::default(),
            filters: Vec::new(),
            chain,
            progress,
            informational: Informational::default(),
            limits,
            undecoded: false,
            upgrade: false,
            closes: false,
            trailers: None,
        }
    }

    /// What watches this stream's limits.
    fn timers(&self) -> Timers<'a> {
        Timers::new(&self.connection.hcm, self.limits, self.stream.info.start, self.progress.clone())
    }

    /// The way to a response. Dropping the future cancels everything below it.
    async fn produce(&mut self) -> Produced {
        if let Err(reply) = self.admit() {
            // A bad request says that the client and we disagree about the message.
            self.closes = reply.status == StatusCode::BAD_REQUEST;
            return self.produce_reply(*reply).await;
        }
        loop {
            let produced = self.produce_once().await;
            match self.follow_redirect(produced) {
                Ok(()) => {}
                Err(produced) => return *produced,
            }
        }
    }

    /// From the configuration to a response; again for each internal redirect.
    async fn produce_once(&mut self) -> Produced {
        self.snapshot = Some(self.connection.shared.snapshot());
        self.choose_route();
        if let Err(reply) = self.choose_chain() {
            return self.produce_reply(*reply).await;
        }
        match self.filter_request().await {
            Ok(()) => {}
            Err(reply) => return self.produce_reply(*reply).await,
        }
        match self.forward().await {
            Ok(produced) if produced.redirect.is_some() => produced,
            Ok(produced) => self.filter_response(produced).await,
            Err(reply) => self.produce_reply(*reply).await,
        }
    }

    /// Everything before the route: what a request must be, whom it comes from, which path it is for.
    fn admit(&mut self) -> Result<(), Box<LocalReply>> {
        let hcm = &self.connection.hcm;
        let head = &mut self.request.head;
        if head.authority.is_empty() {
            return Err(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "missing_host_header")));
        }
        let connect = head.method == Method::CONNECT;
        if !connect && head.path.as_bytes().first() != Some(&b'/') {
            hcm.stats.downstream_rq_non_relative_path().inc();
            let details = if head.path.is_empty() { "missing_path_rejected" } else { "absolute_path_rejected" };
            return Err(Box::new(LocalReply::new(StatusCode::NOT_FOUND, details)));
        }
        if let Some(fragment) = head.path.as_bytes().iter().position(|byte| *byte == b'#') {
            let strip = self.connection.shared.runtime().boolean(REJECT_FRAGMENT) == Some(false);
            let path = http::HeaderValue::from_bytes(&head.path.as_bytes()[..fragment]);
            if strip && let Ok(path) = path {
                head.path = path;
            }
        }
        if head.path.as_bytes().contains(&b'#') {
            hcm.stats.downstream_rq_failed_path_normalization().inc();
            return Err(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "path_normalization_failed")));
        }
        if !head.path.is_empty() {
            match path::normalize(&head.path, hcm.path) {
                Normalized::Same => {}
                Normalized::Changed(path) => head.path = path,
                Normalized::Redirect(path) => {
                    hcm.stats.downstream_rq_redirected_with_normalized_path().inc();
                    let reply = LocalReply::new(StatusCode::TEMPORARY_REDIRECT, "path_normalization_failed");
                    head.path = path.clone();
                    return Err(Box::new(reply.header(http::header::LOCATION, path)));
                }
                Normalized::Rejected => {
                    hcm.stats.downstream_rq_failed_path_normalization().inc();
                    return Err(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "path_normalization_failed")));
                }
            }
        }
        super::host::normalize(hcm, &self.connection.info, head);
        for mutation in &hcm.early_mutations {
            mutation.apply_request(head, &self.stream.info);
        }
        let internal_only = self.internal_only_headers();
        let node = self.connection.shared.node_address();
        let head = &mut self.request.head;
        match request_headers::sanitize(hcm, &self.connection.info, &internal_only, node, head) {
            Ok(client) => {
                self.stream.info.downstream_remote = client.remote;
                self.stream.info.internal_request = client.internal;
                self.stream.info.request_id = head.headers.get(&super::headers::X_REQUEST_ID).cloned();
                Ok(())
            }
            Err(status) => {
                hcm.stats.downstream_rq_rejected_via_ip_detection().inc();
                Err(Box::new(LocalReply::new(status, "rejecting_because_detection_failed")))
            }
        }
    }

    fn internal_only_headers(&self) -> Vec<http::HeaderName> {
        self.table().map(|table| table.config.internal_only_headers.clone()).unwrap_or_default()
    }

    fn table(&self) -> Option<Arc<RouteTable>> {
        match &self.connection.hcm.routes {
            RouteSource::Inline(table) => Some(Arc::clone(table)),
            RouteSource::Rds(name) => match &self.snapshot {
                Some(snapshot) => snapshot.routes.get(name).cloned(),
                None => self.connection.shared.snapshot().routes.get(name).cloned(),
            },
        }
    }

    /// Chooses the route; runs again when a filter cleared it.
    fn choose_route(&mut self) {
        self.stream.asks.clear_route = false;
        let outcome = match self.table() {
            None => Outcome::NoVirtualHost,
            Some(table) => {
                let input = RouteInput {
                    head: &self.request.head,
                    connection: &self.connection.info,
                    remote: &self.stream.info.downstream_remote,
                    metadata: &self.stream.info.dynamic_metadata,
                    filter_state: &self.stream.info.filter_state,
                    runtime: self.connection.shared.runtime(),
                    random: self.stream.random,
                };
                crate::route::route(&table, &input, None)
            }
        };
        let info = &mut self.stream.info;
        info.route_name = outcome.route().and_then(|route| route.name_shared());
        info.virtual_host = outcome.virtual_host().map(|host| Arc::clone(&host.name));
        self.stream.route = outcome.route().map(|route| Arc::clone(route) as _);
        self.outcome = outcome;
        self.limit_by_route();
    }

    /// The route's bounds on the stream, in place of the connection manager's.
    fn limit_by_route(&mut self) {
        let timeouts = &self.connection.hcm.timeouts;
        let Some(route) = self.outcome.route().and_then(|route| route.forward()).map(|forward| &forward.timeouts)
        else {
            return self.limits.set(timeouts.stream_idle, timeouts.max_stream_duration);
        };
        let head = &mut self.request.head;
        let grpc = route.stream.is_some() && head.is_grpc();
        let duration = route.of_stream(timeouts.max_stream_duration, grpc, &mut head.headers);
        self.limits.set(route.idle.unwrap_or(timeouts.stream_idle), duration);
    }

    /// The filter chain: the connection manager's, or that of the upgrade which the request asks for.
    fn choose_chain(&mut self) -> Result<(), Box<LocalReply>> {
        let head = &self.request.head;
        let connect = head.method == Method::CONNECT;
        if !connect && !is_upgrade(&head.headers) {
            return Ok(());
        }
        let kind: Vec<u8> = match (&head.protocol, connect) {
            (Some(protocol), true) => protocol.as_bytes().to_ascii_lowercase(),
            (None, true) => b"connect".to_vec(),
            _ => head
                .headers
                .get(http::header::UPGRADE)
                .map(|value| value.as_bytes().to_ascii_lowercase())
                .unwrap_or_default(),
        };
        let configured = self.connection.hcm.upgrades.iter().find(|upgrade| upgrade.kind.as_bytes() == kind);
        let by_route = self.outcome.route().and_then(|route| route.upgrade_enabled(&kind));
        let enabled = by_route.unwrap_or_else(|| configured.is_some_and(|upgrade| upgrade.enabled));
        if !enabled {
            // Without a route the request goes the way of any other, to be told so.
            let Some(route) = self.outcome.route() else { return Ok(()) };
            if let Some(ClusterSelector::Named(cluster)) = route.forward().map(|forward| &forward.cluster) {
                self.stream.info.upstream.cluster = Some(Arc::clone(cluster));
            }
            self.connection.hcm.stats.downstream_rq_ws_on_non_ws_route().inc();
            return Err(Box::new(LocalReply::new(StatusCode::FORBIDDEN, "upgrade_failed")));
        }
        if let Some(chain) = configured.and_then(|upgrade| upgrade.filters.as_ref()) {
            self.chain = Arc::clone(chain);
        }
        if !std::mem::replace(&mut self.upgrade, true) {
            self.connection.hcm.stats.downstream_cx_upgrades_total().inc();
            self.connection.hcm.stats.downstream_cx_upgrades_active().inc();
        }
        Ok(())
    }

    async fn filter_request(&mut self) -> Result<(), Box<LocalReply>> {
        for index in 0..self.chain.len() {
            let Some(filter) = self.make_filter(index) else { continue };
            self.filters.push((index, filter));
            let Some((_, filter)) = self.filters.last_mut() else { continue };
            let verdict = match filter.on_request(&mut self.request, &mut self.stream) {
                Step::Continue => Verdict::Continue,
                Step::Wait(wait) => wait.await,
                Step::Reply(reply) => Verdict::Reply(reply),
            };
            if let Verdict::Reply(reply) = verdict {
                return Err(reply);
            }
            if self.stream.asks.clear_route {
                self.choose_route();
            }
        }
        Ok(())
    }

    /// The filter at `index` for this stream, unless it is disabled or has nothing to do.
    fn make_filter(&self, index: usize) -> Option<Box<dyn HttpFilter>> {
        let slot = &self.chain[index];
        let over: Option<&Override> = self.outcome.route().and_then(|route| route.override_of(&slot.name));
        let disabled = over.and_then(|over| over.disabled).unwrap_or(slot.disabled && over.is_none());
        if disabled { None } else { Arc::clone(&slot.config).new_stream(Overrides(over)) }
    }

    async fn forward(&mut self) -> Result<Produced, Box<LocalReply>> {
        let Some(snapshot) = self.snapshot.take() else {
            return Err(Box::new(LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "no_configuration")));
        };
        let route = match &self.outcome {
            Outcome::Route(route) => Arc::clone(route),
            Outcome::RequireTls(_) => {
                self.connection.hcm.stats.rq_total().inc();
                self.connection.hcm.stats.rq_direct_response().inc();
                let reply = LocalReply::new(StatusCode::MOVED_PERMANENTLY, "direct_response");
                let location = tls_location(&self.request.head);
                return Err(Box::new(match location {
                    Some(location) => reply.header(http::header::LOCATION, location),
                    None => reply,
                }));
            }
            Outcome::NoRoute(_) | Outcome::NoVirtualHost => {
                self.connection.hcm.stats.rq_total().inc();
                self.connection.hcm.stats.no_route().inc();
                let reply = LocalReply::new(StatusCode::NOT_FOUND, "route_not_found");
                return Err(Box::new(reply.flag(ResponseFlags::NO_ROUTE_FOUND)));
            }
        };
        let job = router::Job {
            connection: self.connection,
            snapshot,
            route,
            progress: self.progress.clone(),
            informational: self.informational.clone(),
            redirects: self.redirects.clone(),
        };
        let forwarded = router::forward(job, &mut self.request, &mut self.stream).await?;
        Ok(Produced {
            response: forwarded.response,
            pump: forwarded.pump,
            deadline: forwarded.deadline,
            upgraded: forwarded.upgraded,
            redirect: forwarded.redirect,
        })
    }

    /// Begins anew where an upstream's redirect leads, if the route wants that and nothing speaks against it; else the
    /// response goes to the client as it is.
    fn follow_redirect(&mut self, mut produced: Produced) -> Result<(), Box<Produced>> {
        let Some(Redirected { target, body, cluster }) = produced.redirect.take().map(|redirect| *redirect) else {
            return Err(Box::new(produced));
        };
        let from = self.outcome.route().map(Arc::clone);
        let response = std::mem::replace(
            &mut produced.response,
            Response { head: ResponseHead::new(StatusCode::OK), body: Body::Empty },
        );
        let hop = self.stream.info.clone();
        let before = std::mem::replace(&mut self.request.head, target.head.clone());
        self.snapshot = Some(self.connection.shared.snapshot());
        self.choose_route();
        let to = self.outcome.route().map(|route| Arc::clone(&route.entry.name));
        let policy =
            from.as_ref().and_then(|route| route.forward()?.internal_redirect.as_ref().map(|policy| (route, policy)));
        let accepted = match policy {
            Some((route, policy)) => policy.accepts(&route.entry.name, to.as_ref(), &target, &mut self.redirects),
            None => Err(RedirectRefusal::NoRoute),
        };
        let traffic = &cluster.stats().traffic;
        if let Err(refusal) = accepted {
            traffic.upstream_internal_redirect_failed_total().inc();
            super::redirect::count_refusal(&self.connection.hcm.stats, refusal);
            self.request.head = before;
            if let Some(route) = from {
                self.outcome = Outcome::Route(route);
            }
            self.stream.info = hop;
            produced.response = response;
            return Err(Box::new(produced));
        }
        traffic.upstream_internal_redirect_succeeded_total().inc();
        self.log_hop(hop, &before, &response.head);
        let _ = target.drop_body;
        self.request.body = body;
        self.filters.clear();
        self.chain = Arc::clone(&self.connection.hcm.filters);
        Ok(())
    }

    /// Each redirect that is followed has a log line of its own.
    fn log_hop(&mut self, mut hop: StreamInfo, request: &RequestHead, response: &ResponseHead) {
        hop.details = Some("internal_redirect".into());
        hop.response_code = Some(response.status);
        hop.end = Some(Instant::now());
        let context = FormatContext {
            request: Some(request),
            response: Some(response),
            access_log_type: AccessLogType::DownstreamEnd,
            runtime: self.connection.shared.runtime(),
            ..FormatContext::of(&hop)
        };
        for log in &self.connection.hcm.access_logs {
            log.log(&context);
        }
        let info = &mut self.stream.info;
        info.upstream = Default::default();
        info.flags = ResponseFlags::empty();
        info.details = None;
    }

    /// Response filters, in reverse order, while the request still goes up.
    async fn filter_response(&mut self, mut produced: Produced) -> Produced {
        let mut filters = std::mem::take(&mut self.filters);
        let mut pump = produced.pump.take();
        let mut reply = None;
        for (_, filter) in filters.iter_mut().rev() {
            let step = filter.on_response(&mut produced.response, &mut self.stream);
            let verdict = match step {
                Step::Continue => Verdict::Continue,
                Step::Wait(wait) => while_pumping(&mut pump, wait).await,
                Step::Reply(reply) => Verdict::Reply(reply),
            };
            if let Verdict::Reply(new) = verdict {
                reply = Some(new);
                break;
            }
        }
        self.filters = filters;
        produced.pump = pump;
        match reply {
            Some(reply) => {
                let info = &mut self.stream.info;
                let rules = &self.connection.hcm.local_replies;
                produced.response = local_reply::respond(rules, *reply, Some(&self.request.head), info);
                produced.pump = None;
                produced
            }
            None => produced,
        }
    }

    /// A local reply, through the response filters as Envoy's: also those that never saw the request.
    async fn produce_reply(&mut self, reply: LocalReply) -> Produced {
        let seen = self.filters.last().map_or(0, |(index, _)| index + 1);
        if self.snapshot.is_some() || seen > 0 {
            for index in seen..self.chain.len() {
                if let Some(filter) = self.make_filter(index) {
                    self.filters.push((index, filter));
                }
            }
        }
        let rules = &self.connection.hcm.local_replies;
        let response = local_reply::respond(rules, reply, Some(&self.request.head), &mut self.stream.info);
        let produced = Produced { response, pump: None, deadline: None, upgraded: false, redirect: None };
        self.filter_response(produced).await
    }

    fn timed_out(&mut self, limit: Limit) -> LocalReply {
        let stats = &self.connection.hcm.stats;
        // Who did not say all that he wanted is at fault himself.
        let status = if self.is_received() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
        match limit {
            Limit::StreamIdle => {
                stats.downstream_rq_idle_timeout().inc();
                LocalReply::new(status, "stream_idle_timeout")
                    .body("stream timeout")
                    .flag(ResponseFlags::STREAM_IDLE_TIMEOUT)
            }
            Limit::Request => {
                stats.downstream_rq_timeout().inc();
                LocalReply::new(StatusCode::REQUEST_TIMEOUT, "request_overall_timeout").body("request timeout")
            }
            Limit::Duration => {
                stats.downstream_rq_max_duration_reached().inc();
                LocalReply::new(status, "max_duration_timeout")
                    .body("downstream duration timeout")
                    .grpc(GRPC_DEADLINE_EXCEEDED)
            }
            Limit::Response => LocalReply::new(StatusCode::GATEWAY_TIMEOUT, "response_timeout")
                .body("upstream request timeout")
                .flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        }
    }

    /// Sends the response while the rest of the request goes up, then accounts for both.
    async fn send<D: Downstream>(mut self, mut produced: Produced, mut timers: Timers<'_>, down: &mut D) -> Finished {
        let connection = Arc::clone(self.connection);
        let hcm = &connection.hcm;
        response_headers::finish(hcm, Some(&self.request.head), &mut produced.response.head);
        self.decide_keep_alive(&produced, down);
        let head = &produced.response.head;
        self.stream.info.response_code = Some(head.status);
        self.stream.info.timings.first_downstream_tx = Some(Instant::now());
        let length = body_length(&self.request.head, head, &produced);
        down.send_head(head, length);
        timers.set_response_deadline(produced.deadline);
        let mut pump = produced.pump.take();
        let mut body = std::mem::take(&mut produced.response.body);
        let result = if length == BodyLength::None {
            body = Body::Empty;
            Ok(())
        } else {
            let kept = (!hcm.access_logs.is_empty()).then_some(&mut self.trailers);
            relay(&mut body, &mut pump, down, &mut timers, kept).await
        };
        let result = match result {
            Ok(()) => std::future::poll_fn(|cx| down.poll_flush(cx)).await.map_err(Cut::Gone),
            Err(cut) => Err(cut),
        };
        drop(body);
        self.count_sent(down);
        match result {
            Ok(()) => {
                if !self.is_received() {
                    hcm.stats.downstream_rq_rx_reset().inc();
                }
                self.complete(Some(produced.response.head));
                Finished::Complete
            }
            Err(Cut::Gone(gone)) => self.abandon(gone, Some(produced.response.head)),
            Err(Cut::TimedOut(limit)) => {
                let reply = self.timed_out(limit);
                self.stream.info.flags |= reply.flags;
                self.stream.info.details = Some(reply.details);
                down.reset(ResetReason::Internal);
                hcm.stats.downstream_rq_tx_reset().inc();
                hcm.stats.downstream_rq_rx_reset().inc();
                self.complete(Some(produced.response.head));
                Finished::Cut
            }
            Err(Cut::Body(error)) => {
                self.note_body_error(&error);
                hcm.stats.downstream_rq_tx_reset().inc();
                hcm.stats.downstream_rq_rx_reset().inc();
                // What came before the cut is the client's; one that does not take it in time goes without.
                let flush = std::future::poll_fn(|cx| down.poll_flush(cx));
                let _ = tokio::time::timeout(LAST_WORDS, flush).await;
                down.reset(ResetReason::UpstreamReset);
                self.complete(Some(produced.response.head));
                Finished::Cut
            }
        }
    }

    /// Whether the connection is to close after this response.
    fn decide_keep_alive<D: Downstream>(&self, produced: &Produced, down: &mut D) {
        let connection = self.connection;
        if connection.drain.should_close(self.stream.random) {
            connection.hcm.stats.downstream_cx_drain_close().inc();
            down.close_after();
        }
        if !self.is_received() {
            connection.hcm.stats.downstream_rq_response_before_rq_complete().inc();
            if !produced.upgraded && down.version() < Version::HTTP_2 {
                down.close_after();
            }
        }
    }

    /// Whether the request has arrived whole.
    fn is_received(&self) -> bool {
        !self.undecoded && self.progress.as_ref().is_none_or(|progress| progress.is_done())
    }

    fn note_body_error(&mut self, error: &BodyError) {
        let info = &mut self.stream.info;
        match error {
            BodyError::Reply(reply) => {
                info.flags |= reply.flags;
                info.details = Some(reply.details.clone());
            }
            BodyError::TimedOut => info.flags |= ResponseFlags::STREAM_IDLE_TIMEOUT,
            BodyError::Malformed(_) => {
                info.flags |= ResponseFlags::UPSTREAM_PROTOCOL_ERROR;
                info.details = Some("upstream_reset_after_response_started{protocol_error}".into());
            }
            BodyError::Closed => {
                info.flags |= ResponseFlags::UPSTREAM_CONNECTION_TERMINATION;
                info.details = Some("upstream_reset_after_response_started{connection_termination}".into());
            }
            BodyError::Reset(_) => {
                info.flags |= ResponseFlags::UPSTREAM_REMOTE_RESET;
                info.details = Some("upstream_reset_after_response_started{remote_reset}".into());
            }
        }
    }

    /// The client has gone.
    fn abandon(mut self, gone: Gone, response: Option<ResponseHead>) -> Finished {
        let stats = &self.connection.hcm.stats;
        stats.downstream_rq_rx_reset().inc();
        let info = &mut self.stream.info;
        match gone {
            Gone::Closed => {
                info.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                info.details = Some("downstream_remote_disconnect".into());
            }
            Gone::Reset => {
                info.flags |= ResponseFlags::DOWNSTREAM_REMOTE_RESET;
                info.details = Some("http2.remote_reset".into());
            }
            Gone::ProtocolError(details) => {
                info.flags |= ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
                info.details = Some(details.into());
            }
            Gone::Cut => {
                info.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                info.details = Some("downstream_local_disconnect(drained)".into());
            }
        }
        self.complete(response);
        if gone == Gone::Closed { Finished::Left } else { Finished::Cut }
    }

    fn count_sent<D: Downstream>(&mut self, down: &D) {
        let (body, header, wire) = down.sent_bytes();
        let bytes = &mut self.stream.info.bytes;
        (bytes.body_sent, bytes.header_sent, bytes.wire_sent) = (body, header, wire);
        self.stream.info.timings.last_downstream_tx = Some(Instant::now());
    }

    /// Stats, filters, logs: always, once, last.
    fn complete(&mut self, response: Option<ResponseHead>) {
        let hcm = &self.connection.hcm;
        let now = Instant::now();
        let info = &mut self.stream.info;
        info.end = Some(now);
        if let Some(progress) = &self.progress {
            info.bytes.body_received = progress.bytes();
            info.bytes.wire_received += progress.bytes();
            info.timings.last_downstream_rx = Some(progress.last());
        }
        if self.upgrade {
            hcm.stats.downstream_cx_upgrades_active().dec();
        }
        hcm.stats.downstream_rq_active().dec();
        hcm.stats.downstream_rq_time().record(u64::try_from((now - info.start).as_millis()).unwrap_or(u64::MAX));
        if let Some(status) = info.response_code {
            hcm.stats.downstream_rq_completed().inc();
            hcm.stats.count_response(status);
            self.connection.listener_stats.count_response(status);
        }
        for (_, filter) in &mut self.filters {
            filter.on_complete(&mut self.stream);
        }
        if !hcm.access_logs.is_empty() {
            let context = FormatContext {
                request: if self.undecoded { None } else { Some(&self.request.head) },
                response: response.as_ref(),
                response_trailers: self.trailers.as_ref(),
                access_log_type: AccessLogType::DownstreamEnd,
                route: self.stream.route.as_deref(),
                runtime: self.connection.shared.runtime(),
                ..FormatContext::of(&self.stream.info)
            };
            for log in &hcm.access_logs {
                log.log(&context);
            }
        }
    }
}

/// How the body of a response is delimited for the client.
fn body_length(request: &RequestHead, head: &ResponseHead, produced: &Produced) -> BodyLength {
    if produced.upgraded {
        return BodyLength::Tunnel;
    }
    if response_headers::is_bodyless(&request.method, head.status) || produced.response.body.is_end() {
        return BodyLength::None;
    }
    let declared = head.headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    declared.or_else(|| produced.response.body.exact_len()).map_or(BodyLength::Unknown, BodyLength::Known)
}
