//! One try after another until there is a response to hand on, or nothing more to try.
//! It must not know connections, nor which conditions ask for another try.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode};
use tidegate_filters::http::{Body, LocalReply, Request, RequestHead, ResponseHead, StreamContext};
use tidegate_filters::stream_info::ResponseFlags;

use super::attempt::{Attempt, Failure, attempt};
use super::charge::Account;
use super::deadline::{Deadline, expires};
use super::refresh::{Elsewhere, elsewhere};
use super::replay::Replay;
use super::retry::{Decision, Retries};
use super::{Shared, failure, hedge, host};
use crate::application_log::shown::Tags;
use crate::cluster::host::{Host, HostCounter};
use crate::cluster::pool::Begun;
use crate::http::headers::{X_ENVOY_ATTEMPT_COUNT, X_ENVOY_IS_TIMEOUT_RETRY};

/// The response that counts.
pub(super) struct Won {
    pub begun: Begun,
    pub host: Arc<Host>,
    /// To whose account it goes.
    pub account: Account,
    /// The host agreed to leave HTTP.
    pub upgraded: bool,
}

/// What becomes of a try that has come to an end.
pub(super) enum Next {
    /// Another one, after this long.
    Again(Duration),
    /// It stands.
    Stands,
    /// It would have been repeated, but must not be: anything better is welcome.
    LastResort,
}

/// Tries, and what is known from those before.
pub(super) struct Course<'s> {
    pub shared: &'s Shared<'s>,
    retries: Option<Retries<'s>>,
    replay: Option<Replay>,
    abandoned: bool,
    pub tried: Vec<Arc<Host>>,
    /// Some try has sent the request.
    sent: bool,
}

/// Tries until there is a response to hand on, or nothing more to try.
pub(super) async fn run(
    shared: &Shared<'_>,
    body: Body,
    replay: Option<Replay>,
    request: &mut Request,
    stream: &mut StreamContext,
) -> Result<Won, Box<LocalReply>> {
    let mut course = Course::new(shared, replay, &mut request.head);
    let global = pin!(expires(shared.timeouts.global, shared.progress.as_deref()));
    if shared.options.hedge_on_per_try_timeout {
        return hedge::run(&mut course, body, &mut request.head, global, stream).await;
    }
    one_by_one(&mut course, body, &mut request.head, global, stream).await
}

async fn one_by_one(
    course: &mut Course<'_>,
    body: Body,
    head: &mut RequestHead,
    mut global: Pin<&mut (impl Deadline + ?Sized)>,
    stream: &mut StreamContext,
) -> Result<Won, Box<LocalReply>> {
    let shared = course.shared;
    let mut body = Some(body);
    loop {
        let host = course.next_host(stream)?;
        let this_body = course.body(&mut body);
        let trying = attempt(
            shared,
            Attempt { host: &host, head, body: this_body, connected: None, filters: shared.upstream_filters },
            stream,
        );
        let outcome = tokio::select! {
            biased;
            outcome = trying => outcome,
            () = global.as_mut() => {
                failure::charge_timeout(shared, &host);
                return Err(failure::timed_out(shared, stream));
            }
        };
        let elsewhere = course.may_go_on(&outcome).then(|| elsewhere(shared, head, stream)).flatten();
        if let (Some(Elsewhere::There(cluster)), Some(retries)) = (&elsewhere, &mut course.retries) {
            retries.go_to(cluster);
        }
        let (next, timeout) = match &outcome {
            Ok(begun) => (course.after_response(&begun.response.head, &host, stream), false),
            Err(failure) => (course.after_failure(failure, &host, stream), failure.is_timeout()),
        };
        let wait = match (next, outcome) {
            (Next::Again(wait), outcome) => {
                drop(outcome);
                wait
            }
            (_, Ok(begun)) => return Ok(course.won(begun, host, &head.method)),
            (_, Err(failure)) => {
                failure::charge(shared, &failure, &host);
                return Err(failure::reply(shared, &failure, stream));
            }
        };
        if failure_in_time(wait, global.as_mut()).await {
            return Err(failure::timed_out(shared, stream));
        }
        if let Some(elsewhere) = elsewhere {
            let Elsewhere::There(cluster) = elsewhere else { return Err(failure::no_healthy_host(shared, stream)) };
            let shared = shared.towards(cluster, stream);
            let mut course = course.go_on(&shared);
            course.announce(head, timeout, stream);
            return Box::pin(one_by_one(&mut course, body.take().unwrap_or_default(), head, global, stream)).await;
        }
        course.announce(head, timeout, stream);
    }
}

/// Waits; true when the whole request's time runs down meanwhile.
async fn failure_in_time(wait: Duration, global: Pin<&mut (impl Deadline + ?Sized)>) -> bool {
    if wait.is_zero() {
        return false;
    }
    tokio::select! {
        biased;
        () = global => true,
        () = tokio::time::sleep(wait) => false,
    }
}

impl<'s> Course<'s> {
    fn new(shared: &'s Shared<'s>, replay: Option<Replay>, head: &mut RequestHead) -> Self {
        let runtime = shared.connection.shared.runtime();
        let policy = shared.retry();
        let retries = policy.of_request(head);
        let retries =
            retries.map(|request| Retries::new(policy, request, &shared.account, shared.action.priority, runtime));
        Self { shared, retries, replay, abandoned: false, tried: Vec::new(), sent: false }
    }

    /// The same course on its way to another cluster.
    fn go_on<'n>(&mut self, shared: &'n Shared<'n>) -> Course<'n>
    where
        's: 'n,
    {
        Course {
            shared,
            retries: self.retries.take(),
            replay: self.replay.clone(),
            abandoned: self.abandoned,
            tried: std::mem::take(&mut self.tried),
            sent: self.sent,
        }
    }

    /// Whether another try may follow one that came to this.
    fn may_go_on(&self, outcome: &Result<Begun, Failure>) -> bool {
        self.retries.as_ref().is_some_and(|retries| match outcome {
            Ok(begun) => retries.wants_response(&begun.response.head),
            Err(_) => true,
        })
    }

    /// The host of the next try.
    pub(super) fn next_host(&self, stream: &mut StreamContext) -> Result<Arc<Host>, Box<LocalReply>> {
        let Some(host) = host::choose(self.shared, &self.tried) else {
            return Err(failure::no_healthy_host(self.shared, stream));
        };
        host::forget(&mut stream.info.upstream);
        Ok(host)
    }

    /// The request's body for the next try.
    pub(super) fn body(&self, first: &mut Option<Body>) -> Body {
        match &self.replay {
            Some(replay) => replay.reader().unwrap_or_default(),
            None => first.take().unwrap_or_default(),
        }
    }

    /// Forgets about retries where the request cannot be sent again, or the client has heard of this try already.
    fn check_replay(&mut self) {
        let whole = self.replay.as_ref().is_none_or(Replay::is_whole);
        if !whole && !std::mem::replace(&mut self.abandoned, true) {
            self.shared.cluster.stats().traffic.retry_or_shadow_abandoned().inc();
        }
        let again = whole && (self.replay.is_some() || self.shared.progress.is_none());
        if !again || self.shared.last_informational().is_some() {
            self.retries = None;
        }
    }

    pub(super) fn after_response(&mut self, head: &ResponseHead, host: &Arc<Host>, stream: &mut StreamContext) -> Next {
        self.check_replay();
        let Some(retries) = &mut self.retries else { return Next::Stands };
        let decision = retries.after_response(head, rand::random());
        let next = self.follow(decision, host, stream);
        if matches!(next, Next::Again(_)) {
            self.shared.account.retried(head.status, host);
        }
        next
    }

    /// A response to a try that another was started beside: good, or for want of a better one.
    pub(super) fn judge(&self, head: &ResponseHead) -> Next {
        let wanted = self.retries.as_ref().is_some_and(|retries| retries.wants_response(head));
        if wanted { Next::LastResort } else { Next::Stands }
    }

    /// A try takes too long: another may begin beside it.
    pub(super) fn after_slowness(&mut self, host: &Arc<Host>, stream: &mut StreamContext) -> Next {
        self.check_replay();
        let Some(retries) = &mut self.retries else { return Next::Stands };
        let decision = retries.after_slowness(rand::random());
        self.follow(decision, host, stream)
    }

    pub(super) fn after_failure(&mut self, failure: &Failure, host: &Arc<Host>, stream: &mut StreamContext) -> Next {
        let transport = || stream.info.upstream.transport_failure_reason.as_deref().unwrap_or_default();
        tracing::debug!(
            "{} upstream reset: reset reason: {}, transport failure reason: {}",
            Tags::stream(stream),
            failure::reason_of(failure),
            transport()
        );
        if matches!(failure, Failure::Replied(_)) {
            return Next::Stands;
        }
        self.check_replay();
        self.sent |= failure.was_sent();
        let Some(retries) = &mut self.retries else { return Next::Stands };
        let decision = retries.after_failure(failure, self.sent, rand::random());
        let next = self.follow(decision, host, stream);
        if matches!(next, Next::Again(_)) && failure.names_host() {
            host.state.count(HostCounter::RequestError);
        }
        next
    }

    fn follow(&mut self, decision: Decision, host: &Arc<Host>, stream: &mut StreamContext) -> Next {
        match decision {
            Decision::Again(wait) => {
                self.tried.push(Arc::clone(host));
                Next::Again(wait)
            }
            Decision::Exhausted => {
                tracing::debug!("{} retry limit exceeded", Tags::stream(stream));
                stream.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
                Next::LastResort
            }
            Decision::Overflow => {
                tracing::debug!("{} no retry: the cluster's breaker of retries is open", Tags::stream(stream));
                stream.info.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
                Next::LastResort
            }
            Decision::Final => Next::Stands,
        }
    }

    /// Says upstream which try this is, and how long is left.
    pub(super) fn announce(&self, head: &mut RequestHead, after_timeout: bool, stream: &mut StreamContext) {
        let shared = self.shared;
        stream.info.upstream.attempts += 1;
        tracing::debug!("{} performing retry", Tags::stream(stream));
        let attempts = shared.route.entry.virtual_host.attempts;
        let headers = &mut head.headers;
        if attempts.count_upstream {
            headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(stream.info.upstream.attempts));
        }
        if attempts.timeout_retry {
            let value = if after_timeout { "true" } else { "false" };
            headers.insert(X_ENVOY_IS_TIMEOUT_RETRY, HeaderValue::from_static(value));
        }
        let elapsed = shared.request_complete().map(|complete| complete.elapsed()).unwrap_or_default();
        shared.action.timeouts.announce(&shared.timeouts, elapsed, headers, shared.options);
    }

    pub(super) fn won(&self, begun: Begun, host: Arc<Host>, method: &Method) -> Won {
        let status = begun.response.head.status;
        let agreed = status == StatusCode::SWITCHING_PROTOCOLS || *method == Method::CONNECT && status.is_success();
        Won { begun, host, account: self.shared.account.clone(), upgraded: self.shared.tunnel && agreed }
    }
}
