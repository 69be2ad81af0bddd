//! The filters of an exchange, in order with the request and in reverse with the response; local replies pass them too.
//! It must not know any filter, nor who answers in the end.

use std::sync::Arc;

use tidegate_filters::http::filter::Verdict;
use tidegate_filters::http::{HttpFilter, LocalReply, Override, Overrides, Step};

use super::{Exchange, Produced};
use crate::http::local_reply;
use crate::http::relay::while_pumping;

impl Exchange<'_> {
    pub(super) async fn filter_request(&mut self) -> Result<(), Box<LocalReply>> {
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
    pub(super) fn make_filter(&self, index: usize) -> Option<Box<dyn HttpFilter>> {
        let slot = &self.chain[index];
        let over: Option<&Override> = self.outcome.route().and_then(|route| route.override_of(&slot.name));
        let disabled = over.and_then(|over| over.disabled).unwrap_or(slot.disabled && over.is_none());
        if disabled { None } else { Arc::clone(&slot.config).new_stream(Overrides(over)) }
    }

    /// Response filters, in reverse order, while the request still goes up.
    pub(super) async fn filter_response(&mut self, mut produced: Produced) -> Produced {
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
    pub(super) async fn produce_reply(&mut self, reply: LocalReply) -> Produced {
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
}
