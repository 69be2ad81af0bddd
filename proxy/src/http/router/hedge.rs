//! Tries beside one another (`hedge_on_per_try_timeout`): one that takes too long is not given up but joined by another,
//! and the first good response wins. All go to one cluster, whatever `refresh_cluster_on_retry` says, as in Envoy.
//! It must not know which conditions ask for another try.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tidegate_filters::http::{Body, LocalReply, RequestHead, StreamContext};
use tidegate_filters::stream_info::StreamInfo;
use tokio::time::Sleep;

use super::attempt::{Attempt, Failure, attempt};
use super::deadline::Deadline;
use super::tries::{Course, Next, Won};
use super::{Shared, UpstreamFilters, failure, host};
use crate::cluster::host::{Host, HostCounter};
use crate::cluster::pool::Begun;

type Outcome = (Result<Begun, Failure>, StreamInfo);

/// One try among others.
struct Try<'s> {
    host: Arc<Host>,
    running: Pin<Box<dyn Future<Output = Outcome> + Send + 's>>,
    connected: Arc<OnceLock<Instant>>,
    patience: Option<Pin<Box<Sleep>>>,
    /// It has taken too long.
    slow: bool,
    /// Another was started because of it.
    joined: bool,
}

/// The tries that run, and when the next begins.
struct Race<'s> {
    shared: &'s Shared<'s>,
    /// In the order they began.
    tries: Vec<Try<'s>>,
    /// The next try, and whether slowness is why.
    due: Option<(Pin<Box<Sleep>>, bool)>,
}

enum Event<'s> {
    Ended(Try<'s>, Box<Outcome>),
    /// The try at this place has taken too long.
    Slow(usize),
    Due {
        after_timeout: bool,
    },
    OutOfTime,
}

/// Tries until there is a response to hand on, or nothing that could still bring one.
pub(super) async fn run<'s>(
    course: &mut Course<'s>,
    body: Body,
    head: &mut RequestHead,
    mut global: Pin<&mut (impl Deadline + ?Sized)>,
    stream: &mut StreamContext,
) -> Result<Won, Box<LocalReply>> {
    let mut race = Race { shared: course.shared, tries: Vec::new(), due: None };
    let mut first = Some(body);
    race.start(course, course.body(&mut first), head, stream)?;
    loop {
        match std::future::poll_fn(|cx| race.poll(global.as_mut(), cx)).await {
            Event::Ended(this, outcome) => {
                if let Some(end) = race.ended(course, this, *outcome, head, stream) {
                    return end;
                }
            }
            Event::Slow(place) => race.slow(place, course, stream),
            Event::Due { after_timeout } => {
                course.announce(head, after_timeout, stream);
                race.start(course, course.body(&mut first), head, stream)?;
            }
            Event::OutOfTime => return Err(race.time_out(stream)),
        }
    }
}

impl<'s> Race<'s> {
    fn start(
        &mut self,
        course: &Course<'s>,
        body: Body,
        head: &RequestHead,
        stream: &mut StreamContext,
    ) -> Result<(), Box<LocalReply>> {
        let host = course.next_host(stream)?;
        let connected = Arc::new(OnceLock::new());
        let mut head = head.clone();
        let mut own = StreamContext::new(stream.info.clone(), stream.random, Arc::clone(&stream.services));
        own.route.clone_from(&stream.route);
        let (shared, its_host, its_connected) = (self.shared, Arc::clone(&host), Arc::clone(&connected));
        let running = Box::pin(async move {
            let filters = UpstreamFilters::default();
            let attempt_it =
                Attempt { host: &its_host, head: &mut head, body, connected: Some(&its_connected), filters: &filters };
            let result = attempt(shared, attempt_it, &mut own).await;
            filters.complete(&mut own);
            (result, own.info)
        });
        self.tries.push(Try { host, running, connected, patience: None, slow: false, joined: false });
        Ok(())
    }

    fn poll(&mut self, global: Pin<&mut (impl Deadline + ?Sized)>, cx: &mut Context<'_>) -> Poll<Event<'s>> {
        for place in 0..self.tries.len() {
            if let Poll::Ready(outcome) = self.tries[place].running.as_mut().poll(cx) {
                return Poll::Ready(Event::Ended(self.tries.remove(place), Box::new(outcome)));
            }
        }
        let limits = &self.shared.timeouts;
        let limit = [limits.per_try, limits.per_try_idle].into_iter().flatten().min();
        if let Some(limit) = limit.filter(|_| self.shared.request_complete().is_some()) {
            for (place, this) in self.tries.iter_mut().enumerate() {
                if this.poll_slow(limit, cx) {
                    return Poll::Ready(Event::Slow(place));
                }
            }
        }
        if let Some((sleep, after_timeout)) = &mut self.due
            && sleep.as_mut().poll(cx).is_ready()
        {
            let after_timeout = *after_timeout;
            self.due = None;
            return Poll::Ready(Event::Due { after_timeout });
        }
        global.poll(cx).map(|()| Event::OutOfTime)
    }

    /// A try has ended: what that makes of the request, unless another may do better.
    fn ended(
        &mut self,
        course: &mut Course<'s>,
        this: Try<'s>,
        (result, info): Outcome,
        head: &RequestHead,
        stream: &mut StreamContext,
    ) -> Option<Result<Won, Box<LocalReply>>> {
        let Try { host, joined, .. } = this;
        let next = match &result {
            Ok(begun) if joined => course.judge(&begun.response.head),
            Ok(begun) => course.after_response(&begun.response.head, &host, stream),
            Err(_) if joined => Next::Stands,
            Err(failure) => course.after_failure(failure, &host, stream),
        };
        if let Next::Again(wait) = next {
            self.due = Some((Box::pin(tokio::time::sleep(wait)), false));
            return None;
        }
        let others = !self.tries.is_empty() || self.due.is_some();
        match result {
            Ok(_) if others && matches!(next, Next::LastResort) => {
                host.state.count(HostCounter::RequestError);
                None
            }
            Ok(begun) => {
                self.tries.clear();
                take(stream, info);
                Some(Ok(course.won(begun, host, &head.method)))
            }
            Err(Failure::Replied(reply)) => Some(Err(reply)),
            Err(failure) => {
                failure::charge(self.shared, &failure, &host);
                if others {
                    return None;
                }
                take(stream, info);
                Some(Err(failure::reply(self.shared, &failure, stream)))
            }
        }
    }

    fn slow(&mut self, place: usize, course: &mut Course<'s>, stream: &mut StreamContext) {
        let this = &mut self.tries[place];
        if let Next::Again(wait) = course.after_slowness(&this.host, stream) {
            this.joined = true;
            self.due = Some((Box::pin(tokio::time::sleep(wait)), true));
        }
    }

    fn time_out(&self, stream: &mut StreamContext) -> Box<LocalReply> {
        for this in &self.tries {
            failure::charge_timeout(self.shared, &this.host);
            host::note(&this.host, &mut stream.info.upstream);
        }
        failure::timed_out(self.shared, stream)
    }
}

impl Try<'_> {
    /// Whether it takes too long from now on; told once.
    fn poll_slow(&mut self, limit: Duration, cx: &mut Context<'_>) -> bool {
        if self.slow || self.connected.get().is_none() {
            return false;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        self.slow = patience.as_mut().poll(cx).is_ready();
        self.slow
    }
}

/// The stream's upstream is that of the try which counts.
fn take(stream: &mut StreamContext, info: StreamInfo) {
    let attempts = stream.info.upstream.attempts;
    stream.info.upstream = info.upstream;
    stream.info.upstream.attempts = attempts;
    let downstream = stream.info.timings;
    stream.info.timings = info.timings;
    stream.info.timings.last_downstream_rx = downstream.last_downstream_rx;
}
