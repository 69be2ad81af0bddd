//! Filters that run once an attempt, between the router and the codec (Envoy's upstream filter chain).
//! It must not know how attempts are sent, nor whether there will be another.

use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_filters::http::filter::Verdict;
use tidegate_filters::http::{HttpFilter, LocalReply, Overrides, Request, Step, StreamContext};

use crate::cluster::pool::Begun;
use crate::http::options::{FilterChain, FilterSlot};
use crate::http::relay::while_pumping;
use crate::route::Route;

/// The filters of the attempt that is under way; they outlive it when its future is dropped, to be told of the end.
#[derive(Default)]
pub(crate) struct UpstreamFilters(Mutex<Vec<Box<dyn HttpFilter>>>);

impl UpstreamFilters {
    /// The attempt is over.
    pub(crate) fn complete(&self, stream: &mut StreamContext) {
        for mut filter in std::mem::take(&mut *self.0.lock()) {
            filter.on_complete(stream);
        }
    }

    /// Takes the filters out for as long as one of them is busy.
    fn busy(&self) -> Busy<'_> {
        Busy { filters: std::mem::take(&mut *self.0.lock()), home: self }
    }

    /// Makes the filters of a new attempt and leads the request through them.
    pub(super) async fn on_request(
        &self,
        chain: &FilterChain,
        route: &Route,
        request: &mut Request,
        stream: &mut StreamContext,
    ) -> Result<(), Box<LocalReply>> {
        self.complete(stream);
        let mut busy = self.busy();
        for slot in &*chain.0 {
            busy.filters.extend(make(slot, route));
            let Some(filter) = busy.filters.last_mut() else { continue };
            let verdict = match filter.on_request(request, stream) {
                Step::Continue => Verdict::Continue,
                Step::Wait(wait) => wait.await,
                Step::Reply(reply) => Verdict::Reply(reply),
            };
            if let Verdict::Reply(reply) = verdict {
                return Err(reply);
            }
        }
        Ok(())
    }

    /// Leads the response back, in reverse, while the request still goes up.
    pub(super) async fn on_response(
        &self,
        begun: &mut Begun,
        stream: &mut StreamContext,
    ) -> Result<(), Box<LocalReply>> {
        let mut busy = self.busy();
        for filter in busy.filters.iter_mut().rev() {
            let verdict = match filter.on_response(&mut begun.response, stream) {
                Step::Continue => Verdict::Continue,
                Step::Wait(wait) => while_pumping(&mut begun.pump, wait).await,
                Step::Reply(reply) => Verdict::Reply(reply),
            };
            if let Verdict::Reply(reply) = verdict {
                return Err(reply);
            }
        }
        Ok(())
    }
}

/// Filters in use; they go back however that ends.
struct Busy<'a> {
    filters: Vec<Box<dyn HttpFilter>>,
    home: &'a UpstreamFilters,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.home.0.lock() = std::mem::take(&mut self.filters);
    }
}

/// A filter for this attempt; the route's overrides act on upstream filters too.
fn make(slot: &FilterSlot, route: &Route) -> Option<Box<dyn HttpFilter>> {
    let over = route.override_of(&slot.name);
    let disabled = over.and_then(|over| over.disabled).unwrap_or(slot.disabled && over.is_none());
    if disabled { None } else { Arc::clone(&slot.config).new_stream(Overrides(over)) }
}
