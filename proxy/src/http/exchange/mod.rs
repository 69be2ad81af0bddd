//! One request and its response, read from top to bottom: sanitise, route, filters, forward, filters, send, account.
//! It must not know framing, pools or protos.

mod account;
mod admit;
mod chain;
mod interrupt;
mod lazy_routes;
mod redirect;
mod routing;
mod send;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, StatusCode, Version};
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::format::Costly;
use tidegate_filters::http::{Body, HttpFilter, LocalReply, Request, RequestHead, Response, StreamContext};
use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};

use self::account::count_informational;
use self::chain::Stop;
use self::interrupt::{Interrupt, bad_body};
use self::routing::Snapped;
use super::access_logs::Periodic;
use super::downstream::{Downstream, Gone};
use super::limits::Limits;
use super::local_reply::{self, Asked};
use super::options::{FilterSlot, HttpConnectionManager};
use super::progress::{Counted, Progress};
use super::router::{self, Answer, Forwarded, Pump, Served, UpstreamFilters};
use super::stats::ListenerHttpStats;
use super::timers::Timers;
use super::wire_bytes::WireBytes;
use crate::app::Shared;
use crate::application_log::levels::ROUTER;
use crate::application_log::shown::{RequestHeaders, Tags};
use crate::cluster::Cluster;
use crate::cluster::pool::Informational;
use crate::listener::FilterChain;
use crate::route::{Outcome, RedirectHistory, RouteInput, tls_location};

/// What all exchanges of one connection share.
pub(crate) struct Connection {
    pub shared: Arc<Shared>,
    pub hcm: Arc<HttpConnectionManager>,
    pub info: Arc<ConnectionInfo>,
    pub listener_stats: ListenerHttpStats,
    /// Where it came in.
    pub chain: Arc<FilterChain>,
}

impl Connection {
    /// What routes of a request on it are chosen by.
    pub(crate) fn route_input<'i>(&'i self, head: &'i RequestHead, stream: &'i StreamContext) -> RouteInput<'i> {
        RouteInput {
            head,
            connection: &self.info,
            remote: &stream.info.downstream_remote,
            metadata: &stream.info.dynamic_metadata,
            filter_state: &stream.info.filter_state,
            stream: Some(&stream.info),
            runtime: self.shared.runtime(),
            random: stream.random,
        }
    }
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

/// A response on its way, and what still runs upwards.
struct Produced {
    response: Response,
    pump: Option<Pump>,
    /// How long the whole may take from the end of the request on, which is not before this moment.
    limit: Option<(Instant, Duration)>,
    upgraded: bool,
    /// What is owed for an upstream's response.
    served: Option<Served>,
}

impl Produced {
    /// One that the proxy made.
    fn local(response: Response) -> Self {
        Self { response, pump: None, limit: None, upgraded: false, served: None }
    }
}

impl From<Forwarded> for Produced {
    fn from(forwarded: Forwarded) -> Self {
        let Forwarded { response, pump, limit, upgraded, served, over: _ } = forwarded;
        Self { response, pump, limit, upgraded, served: Some(served) }
    }
}

/// Why an exchange goes its way once more.
enum Anew {
    /// An upstream's redirect is followed.
    Redirected,
    /// A filter asked for it.
    Recreated,
}

struct Exchange<'a> {
    connection: &'a Arc<Connection>,
    /// From what it must be by any configuration until the router has it.
    configuration: Option<Snapped>,
    stream: StreamContext,
    request: Request,
    outcome: Outcome,
    /// The route's cluster, if there is one of that name; at last the one that answers, where it limits how long.
    cluster: Option<Arc<Cluster>>,
    redirects: RedirectHistory,
    filters: Vec<(usize, Box<dyn HttpFilter>)>,
    chain: Arc<[FilterSlot]>,
    /// Those of the attempt.
    upstream_filters: UpstreamFilters,
    progress: Option<Arc<Progress>>,
    periodic: Option<Arc<Periodic>>,
    informational: Informational,
    limits: &'a Limits,
    /// The bytes never became a request: there is nothing of it to log.
    undecoded: bool,
    /// It came as gRPC, whatever filters made of it: then local replies are gRPC too.
    grpc: bool,
    /// It asks to leave HTTP, and may.
    upgrade: bool,
    /// An HTTP/1 connection closes after it.
    closes: bool,
    /// The response is with the filters, or past them.
    responding: bool,
    /// How often a filter made it begin anew.
    recreated: u32,
    /// The informational response that the client got last.
    informed: Option<StatusCode>,
    /// The response's, kept for the logs.
    trailers: Option<http::HeaderMap>,
    /// Bytes of the request's body that internal redirects sent again: Envoy takes them for received anew.
    resent_bytes: u64,
    /// Of the request's head, on the wire.
    head_bytes: u64,
    /// Those of its tries, where somebody asks.
    upstream_bytes: Option<Arc<WireBytes>>,
}

/// Serves one request to its end. `request.head` is what the codec decoded; nothing of it has been trusted yet. `continues`
/// says that the client waits to be told to go on.
pub(crate) async fn run<D: Downstream>(
    connection: &Arc<Connection>,
    request: Request,
    continues: bool,
    down: &mut D,
) -> Finished {
    let hcm = &connection.hcm;
    hcm.stats.downstream_rq_total().inc();
    hcm.stats.downstream_rq_active().inc();
    let limits = Limits::of(hcm);
    let mut exchange = Exchange::new(connection, &limits, request, down.version());
    tracing::debug!(
        "{} request headers complete (end_stream={}):\n{}",
        exchange.tags(),
        exchange.progress.is_none(),
        RequestHeaders(&exchange.request.head)
    );
    if continues {
        exchange.note_informational(StatusCode::CONTINUE);
        down.send_continue();
    }
    exchange.count_received(down);
    exchange.head_bytes = exchange.stream.info.bytes.wire_received;
    let mut timers = exchange.timers();
    let mut informed = None;
    let produced = {
        let informational = exchange.informational.clone();
        let progress = exchange.progress.clone();
        let mut produce = pin!(exchange.produce());
        std::future::poll_fn(|cx| {
            let polled = produce.as_mut().poll(cx);
            for head in informational.take() {
                if hcm.proxy_100_continue {
                    count_informational(connection);
                }
                informed = Some(head.status);
                down.send_informational(&head);
            }
            // What is wrong with the request goes before what became of it.
            if let Some(error) = progress.as_ref().and_then(|progress| progress.take_failure()) {
                return Poll::Ready(Err(Interrupt::Body(error)));
            }
            if let Poll::Ready(produced) = polled {
                return Poll::Ready(Ok(produced));
            }
            if let Poll::Ready(gone) = down.poll_gone(cx) {
                return Poll::Ready(Err(Interrupt::Gone(gone)));
            }
            timers.poll(cx).map(|limit| Err(Interrupt::TimedOut(limit)))
        })
        .await
    };
    exchange.informed = informed.or(exchange.informed);
    let produced = match produced {
        Ok(produced) => produced,
        Err(Interrupt::Gone(gone)) => {
            exchange.count_received(down);
            return exchange.abandon(gone, None);
        }
        Err(Interrupt::Body(error)) => match bad_body(error) {
            Ok(reply) => {
                if reply.flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
                    hcm.stats.downstream_cx_protocol_error().inc();
                }
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

/// Answers bytes that never became a request: the codec's own error.
pub(crate) async fn reply_to_bad_request<D: Downstream>(
    connection: &Arc<Connection>,
    reply: LocalReply,
    down: &mut D,
) -> Finished {
    let limits = Limits::of(&connection.hcm);
    let mut exchange = Exchange::undecoded(connection, &limits, Version::HTTP_11);
    tracing::debug!("{} Sending local reply with details {}", exchange.tags(), reply.details);
    // Envoy learns that it was the protocol only after the reply was formatted.
    let flags = reply.flags;
    let reply = LocalReply { flags: ResponseFlags::empty(), ..reply };
    let response =
        local_reply::respond(&connection.hcm.local_replies, reply, Asked::default(), &mut exchange.stream.info);
    exchange.stream.info.flags |= flags;
    let produced = Produced::local(response);
    let timers = exchange.timers();
    down.close_after();
    exchange.send(produced, timers, down).await
}

/// Accounts for a client that left within the head of a request.
pub(crate) fn note_part_of_head(connection: &Arc<Connection>) {
    let limits = Limits::of(&connection.hcm);
    let exchange = Exchange::undecoded(connection, &limits, Version::HTTP_11);
    exchange.abandon(Gone::Closed, None);
}

/// Accounts for an HTTP/2 stream whose head was refused; it has been reset.
pub(crate) fn note_refused_stream(connection: &Arc<Connection>, details: &'static str) {
    let limits = Limits::of(&connection.hcm);
    let mut exchange = Exchange::undecoded(connection, &limits, Version::HTTP_2);
    connection.hcm.stats.downstream_rq_rx_reset().inc();
    exchange.stream.info.flags |= ResponseFlags::DOWNSTREAM_REMOTE_RESET;
    tracing::debug!("{} stream refused: {details}", exchange.tags());
    exchange.stream.info.details = Some(details.into());
    exchange.complete(None);
}

/// Accounts for a request over HTTP/2 whose head did not come in time; its connection is closed.
pub(crate) fn note_late_head(connection: &Arc<Connection>) {
    let limits = Limits::of(&connection.hcm);
    let mut exchange = Exchange::undecoded(connection, &limits, Version::HTTP_2);
    connection.hcm.stats.downstream_rq_header_timeout().inc();
    connection.hcm.stats.downstream_rq_rx_reset().inc();
    tracing::debug!("{} request header timeout", exchange.tags());
    exchange.stream.info.details = Some("request_header_timeout".into());
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
        info.filter_state = connection.info.filter_state_now().into_owned();
        let progress = (!request.body.is_end()).then(|| {
            let progress = Progress::new(info.start);
            request.body = Body::stream(Counted::new(request.body.take(), Arc::clone(&progress)));
            progress
        });
        if progress.is_none() {
            info.timings.last_downstream_rx = Some(info.start);
        }
        let grpc = request.head.is_grpc();
        let random = rand::random();
        let services = connection.shared.services();
        let stream = StreamContext::new(info, random, services);
        let chain = Arc::clone(&connection.hcm.filters);
        let periodic = Periodic::of(connection, &stream, progress.as_ref());
        Self {
            connection,
            configuration: None,
            stream,
            request,
            outcome: Outcome::NoVirtualHost,
            cluster: None,
            redirects: RedirectHistory::default(),
            filters: Vec::new(),
            chain,
            upstream_filters: UpstreamFilters::default(),
            progress,
            periodic,
            informational: Informational::default(),
            limits,
            undecoded: false,
            grpc,
            upgrade: false,
            closes: false,
            responding: false,
            recreated: 0,
            informed: None,
            trailers: None,
            resent_bytes: 0,
            head_bytes: 0,
            upstream_bytes: Costly::WireBytes.is_asked_for().then(Arc::default),
        }
    }

    fn tags(&self) -> Tags {
        Tags::stream(&self.stream)
    }

    /// What watches this stream's limits.
    fn timers(&self) -> Timers<'a> {
        let (progress, periodic) = (self.progress.clone(), self.periodic.clone());
        Timers::new(&self.connection.hcm, self.limits, self.stream.info.start, progress, periodic)
    }

    /// The way to a response. Dropping the future cancels everything below it.
    async fn produce(&mut self) -> Produced {
        if let Err(reply) = self.admit() {
            // A bad request says that the client and we disagree about the message.
            self.closes = reply.status == StatusCode::BAD_REQUEST;
            return self.produce_reply(*reply).await;
        }
        loop {
            match self.produce_once().await {
                Ok(produced) => return produced,
                Err(Anew::Redirected) => {}
                Err(Anew::Recreated) => self.recreate(),
            }
        }
    }

    /// From the configuration to a response; again for each internal redirect that is followed, and when a filter wants
    /// it anew.
    async fn produce_once(&mut self) -> Result<Produced, Anew> {
        if self.configuration.is_none() {
            self.configuration = Some(Snapped::load(self.connection));
        }
        self.choose_route();
        self.log_beginning();
        if let Err(reply) = self.choose_chain() {
            return Ok(self.produce_reply(*reply).await);
        }
        match self.filter_request().await {
            Ok(()) => {}
            Err(Stop::Recreate) => return Err(Anew::Recreated),
            Err(Stop::Reply(reply)) => return Ok(self.produce_reply(*reply).await),
        }
        let forwarded = match self.forward().await {
            Ok(Answer::Response(forwarded)) => forwarded,
            Ok(Answer::Redirect(redirected)) => self.follow_redirect(*redirected).ok_or(Anew::Redirected)?,
            Err(reply) => return Ok(self.produce_reply(*reply).await),
        };
        // A filter has refused the body meanwhile: nobody has seen the upstream's answer, and nobody shall.
        if let Some(reply) = self.progress.as_ref().and_then(|progress| progress.take_reply()) {
            return Ok(self.produce_reply(*reply).await);
        }
        if let Some(over) = &forwarded.over {
            self.cluster = Some(Arc::clone(forwarded.served.cluster()));
            self.limits.set_answer(over.clone());
        }
        self.filter_response(forwarded.into()).await.ok_or(Anew::Recreated)
    }

    async fn forward(&mut self) -> Result<Answer, Box<LocalReply>> {
        let Some(Snapped { snapshot, .. }) = self.configuration.take() else {
            return Err(Box::new(LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "no_configuration")));
        };
        let route = match &self.outcome {
            Outcome::Route(route) => Arc::clone(route),
            Outcome::RequireTls(_) => {
                self.connection.hcm.router_stats.rq_total().inc();
                self.connection.hcm.router_stats.rq_direct_response().inc();
                let reply = LocalReply::new(StatusCode::MOVED_PERMANENTLY, "direct_response");
                let location = tls_location(&self.request.head);
                return Err(Box::new(match location {
                    Some(location) => reply.header(http::header::LOCATION, location),
                    None => reply,
                }));
            }
            Outcome::NoRoute(_) | Outcome::NoVirtualHost => {
                self.connection.hcm.router_stats.rq_total().inc();
                self.connection.hcm.router_stats.no_route().inc();
                let path = self.request.head.path.as_bytes();
                tracing::debug!(
                    target: ROUTER,
                    "{} no route match for URL '{}'",
                    self.tags(),
                    String::from_utf8_lossy(path)
                );
                let reply = LocalReply::new(StatusCode::NOT_FOUND, "route_not_found");
                return Err(Box::new(reply.flag(ResponseFlags::NO_ROUTE_FOUND)));
            }
        };
        let job = router::Job {
            connection: self.connection,
            snapshot,
            route,
            cluster: self.cluster.take(),
            progress: self.progress.clone(),
            informational: self.informational.clone(),
            redirects: self.redirects.clone(),
            upstream_filters: &self.upstream_filters,
            periodic: self.periodic.clone(),
            upstream_bytes: self.upstream_bytes.clone(),
        };
        let (filters, informational) = (&mut self.filters, &self.informational);
        let mut forward = pin!(router::forward(job, &mut self.request, &mut self.stream));
        std::future::poll_fn(|cx| {
            let polled = forward.as_mut().poll(cx);
            informational.pass(|head| {
                filters.iter_mut().rev().for_each(|(_, filter)| filter.on_informational(head));
            });
            polled
        })
        .await
    }

    /// Whether the request has arrived whole.
    fn is_received(&self) -> bool {
        !self.undecoded && self.progress.as_ref().is_none_or(|progress| progress.is_done())
    }
}
