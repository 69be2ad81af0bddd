//! The filters of an exchange, in order with the request and in reverse with the response; local replies pass them too.
//! It must not know any filter, nor who answers in the end.

use std::sync::Arc;

use http::StatusCode;
use tidegate_filters::http::filter::Verdict;
use tidegate_filters::http::local_reply::{REQUEST_TOO_LARGE, RESPONSE_TOO_LARGE};
use tidegate_filters::http::{Body, HttpFilter, LocalReply, Override, Overrides, Step};

use super::{Exchange, Produced};
use crate::application_log::shown::Tags;
use crate::http::local_reply::{self, Asked};
use crate::http::progress::Watched;
use crate::http::relay::while_pumping;

/// A filter may make a stream begin anew this often; then it goes on as it is.
const MOST_RECREATED: u32 = 5;

/// Why a request does not go on to the next filter.
pub(super) enum Stop {
    Reply(Box<LocalReply>),
    Recreate,
}

impl Exchange<'_> {
    pub(super) async fn filter_request(&mut self) -> Result<(), Stop> {
        for index in 0..self.chain.len() {
            let Some(filter) = self.make_filter(index) else { continue };
            self.filters.push((index, filter));
            let Some((_, filter)) = self.filters.last_mut() else { continue };
            let verdict = match filter.on_request(&mut self.request, &mut self.stream) {
                Step::Continue => Verdict::Continue,
                Step::Wait(wait) => wait.await,
                Step::Reply(reply) => Verdict::Reply(reply),
            };
            tracing::trace!("{} decode headers called: filter={}", self.tags(), self.chain[index].name);
            if let Verdict::Reply(reply) = verdict {
                tracing::debug!("{} filter {} answers the request", self.tags(), self.chain[index].name);
                self.count_too_large(&reply);
                return Err(Stop::Reply(reply));
            }
            if self.wants_anew() {
                return Err(Stop::Recreate);
            }
            if self.stream.asks.clear_route {
                self.choose_route();
            }
        }
        self.watch_body();
        Ok(())
    }

    /// Whether a filter asked to begin anew, and may.
    fn wants_anew(&mut self) -> bool {
        std::mem::take(&mut self.stream.asks.recreate) && self.recreated < MOST_RECREATED
    }

    /// Begins anew: the filters of the stream so far are over.
    pub(super) fn recreate(&mut self) {
        self.recreated += 1;
        self.configuration = None;
        self.complete_filters();
        self.responding = false;
        self.chain = Arc::clone(&self.connection.hcm.filters);
    }

    /// Tells the filters that their stream is over, those of the attempt first.
    pub(super) fn complete_filters(&mut self) {
        self.upstream_filters.complete(&mut self.stream);
        for (_, mut filter) in self.filters.drain(..) {
            filter.on_complete(&mut self.stream);
        }
    }

    /// A filter that finds fault with the body while it goes up is heard.
    fn watch_body(&mut self) {
        let Some(progress) = &self.progress else { return };
        if !self.filters.is_empty() && !self.request.body.is_end() {
            self.request.body = Body::stream(Watched::new(self.request.body.take(), Arc::clone(progress)));
        }
    }

    /// The filter at `index` for this stream, unless it is disabled or has nothing to do.
    pub(super) fn make_filter(&self, index: usize) -> Option<Box<dyn HttpFilter>> {
        let slot = &self.chain[index];
        let named = |name: &str| self.outcome.route().and_then(|route| route.override_of(name));
        let over: Option<&Override> = named(&slot.name).or_else(|| named(slot.legacy_name?));
        let disabled = over.and_then(|over| over.disabled).unwrap_or(slot.disabled && over.is_none());
        if disabled { None } else { Arc::clone(&slot.config).new_stream(Overrides(over)) }
    }

    /// Response filters, in reverse order, while the request still goes up. `None` when one wants the stream anew.
    pub(super) async fn filter_response(&mut self, mut produced: Produced) -> Option<Produced> {
        self.responding = true;
        self.stream.info.response_code = Some(produced.response.head.status);
        let mut reply = None;
        for (index, filter) in self.filters.iter_mut().rev() {
            let name = &self.chain[*index].name;
            tracing::trace!("{} encode headers called: filter={name}", Tags::stream(&self.stream));
            let step = filter.on_response(&mut produced.response, &mut self.stream);
            let verdict = match step {
                Step::Continue => Verdict::Continue,
                Step::Wait(wait) => while_pumping(&mut produced.pump, wait).await,
                Step::Reply(reply) => Verdict::Reply(reply),
            };
            if let Verdict::Reply(new) = verdict {
                reply = Some(new);
                break;
            }
        }
        if let Some(reply) = reply {
            self.count_too_large(&reply);
            return Some(self.reply_directly(*reply));
        }
        if self.progress.is_none() && self.wants_anew() { None } else { Some(produced) }
    }

    /// A local reply, through the response filters as Envoy's: also those that never saw the request. Once the response
    /// was with the filters, it goes past them.
    pub(super) async fn produce_reply(&mut self, reply: LocalReply) -> Produced {
        if self.responding {
            return self.reply_directly(reply);
        }
        let seen = self.filters.last().map_or(0, |(index, _)| index + 1);
        if self.configuration.is_some() || seen > 0 {
            for index in seen..self.chain.len() {
                if let Some(filter) = self.make_filter(index) {
                    self.filters.push((index, filter));
                }
            }
        }
        let produced = self.reply_directly(reply);
        // A reply is an end: it does not begin anew.
        self.recreated = MOST_RECREATED;
        match self.filter_response(produced).await {
            Some(produced) => produced,
            None => self.reply_directly(LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "recreated_too_often")),
        }
    }

    /// Counts what one of this chain's filters could not hold.
    fn count_too_large(&self, reply: &LocalReply) {
        let stats = &self.connection.hcm.stats;
        match &*reply.details {
            REQUEST_TOO_LARGE => stats.downstream_rq_too_large().inc(),
            RESPONSE_TOO_LARGE => stats.rs_too_large().inc(),
            _ => {}
        }
    }

    fn reply_directly(&mut self, reply: LocalReply) -> Produced {
        tracing::debug!("{} Sending local reply with details {}", self.tags(), reply.details);
        self.closes |= reply.close;
        let rules = &self.connection.hcm.local_replies;
        let route = self.outcome.route().map(|route| &**route);
        let asked = Asked { request: Some(&self.request.head), grpc: self.grpc, route };
        let response = local_reply::respond(rules, reply, asked, &mut self.stream.info);
        Produced::local(response)
    }
}
