//! Internal redirects: the same exchange begun anew where an upstream sends it, with a log line for each hop.
//! It must not know which responses are redirects (the router's) nor what a policy allows (the route's).

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use tidegate_filters::format::AccessLogType;
use tidegate_filters::http::{Body, RequestHead, Response, ResponseHead};
use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};

use super::{Exchange, Produced};
use crate::http::access_logs::{self, Heads};
use crate::http::redirect;
use crate::http::router::{Redirected, upstream_log};
use crate::route::{Outcome, RedirectRefusal};

impl Exchange<'_> {
    /// Begins anew where an upstream's redirect leads, if the route wants that and nothing speaks against it; else the
    /// response goes to the client as it is.
    pub(super) fn follow_redirect(&mut self, mut produced: Produced) -> Result<(), Box<Produced>> {
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
            redirect::count_refusal(&self.connection.hcm.router_stats, refusal);
            self.request.head = before;
            if let Some(route) = from {
                self.outcome = Outcome::Route(route);
            }
            self.stream.info = hop;
            produced.response = response;
            return Err(Box::new(produced));
        }
        traffic.upstream_internal_redirect_succeeded_total().inc();
        if let Some(head) = self.answered.take() {
            upstream_log::write_last(self.connection, &before, &head, &self.stream);
        }
        self.log_hop(hop, &before, &response.head);
        let _ = target.drop_body;
        self.request.body = body;
        self.complete_filters();
        self.chain = Arc::clone(&self.connection.hcm.filters);
        Ok(())
    }

    /// Each redirect that is followed has a log line of its own.
    pub(super) fn log_hop(&mut self, mut hop: StreamInfo, request: &RequestHead, response: &ResponseHead) {
        hop.details = Some("internal_redirect".into());
        hop.response_code = Some(response.status);
        hop.end = Some(Instant::now());
        let heads = Heads { request: Some(request), response: Some(response), ..Heads::default() };
        access_logs::write(self.connection, AccessLogType::DownstreamEnd, &hop, heads);
        let info = &mut self.stream.info;
        info.upstream = Default::default();
        info.flags = ResponseFlags::empty();
        info.details = None;
    }
}
