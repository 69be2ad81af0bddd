//! Internal redirects: the same exchange begun anew where an upstream sends it, with a log line for each hop.
//! It must not know which responses are redirects (the router's) nor what a policy allows (the route's).

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::Version;
use tidegate_filters::format::AccessLogType;
use tidegate_filters::http::ResponseHead;
use tidegate_filters::stream_info::{ResponseFlags, UpstreamInfo};

use super::Exchange;
use super::routing::Snapped;
use crate::http::access_logs::{self, Heads};
use crate::http::redirect;
use crate::http::router::{Forwarded, Redirected};
use crate::route::RedirectRefusal;

impl Exchange<'_> {
    /// Begins anew where an upstream's redirect leads, if the route wants that and nothing speaks against it; else the
    /// response goes to the client as it is.
    pub(super) fn follow_redirect(&mut self, redirected: Redirected) -> Option<Forwarded> {
        let Redirected { target, body, unfinished } = redirected;
        let from = self.outcome.route().map(Arc::clone);
        let before = std::mem::replace(&mut self.request.head, target.head.clone());
        self.configuration = Some(Snapped::load(self.connection));
        self.choose_route();
        let to = self.outcome.route().map(|route| Arc::clone(&route.entry.name));
        let policy =
            from.as_ref().and_then(|route| route.forward()?.internal_redirect.as_ref().map(|policy| (route, policy)));
        let accepted = match policy {
            Some((route, policy)) => policy.accepts(&route.entry.name, to.as_ref(), &target, &mut self.redirects),
            None => Err(RedirectRefusal::NoRoute),
        };
        if let Err(refusal) = accepted {
            unfinished.count_redirect(false);
            redirect::count_refusal(&self.connection.hcm.router_stats, refusal);
            self.request.head = before;
            self.configuration = None;
            return Some(unfinished.finish(&self.request.head, &mut self.stream));
        }
        unfinished.count_redirect(true);
        self.log_hop(unfinished.head());
        self.request.body = body;
        self.complete_filters();
        self.chain = Arc::clone(&self.connection.hcm.filters);
        self.begin_anew(target.drop_body);
        None
    }

    /// Each redirect that is followed has a log line of its own; as in Envoy it already says where it leads.
    fn log_hop(&mut self, response: &ResponseHead) {
        let info = &mut self.stream.info;
        info.details = Some("internal_redirect".into());
        info.response_code = Some(response.status);
        info.end = Some(Instant::now());
        if let Some(progress) = &self.progress {
            info.bytes.body_received = progress.bytes() + self.resent_bytes;
        }
        let heads = Heads {
            request: Some(&self.request.head),
            response: Some(response),
            route: self.stream.route.as_deref(),
            ..Heads::default()
        };
        access_logs::write(self.connection, AccessLogType::DownstreamEnd, &self.stream.info, heads);
    }

    /// To the connection manager it is a new stream with the bytes of the old one.
    fn begin_anew(&mut self, body_dropped: bool) {
        let stats = &self.connection.hcm.stats;
        stats.downstream_rq_total().inc();
        match self.stream.info.protocol {
            Some(Version::HTTP_2) => stats.downstream_rq_http2_total().inc(),
            _ => stats.downstream_rq_http1_total().inc(),
        }
        if let Some(progress) = self.progress.as_ref().filter(|_| !body_dropped) {
            self.resent_bytes += progress.bytes();
        }
        let info = &mut self.stream.info;
        (info.start, info.start_time) = (Instant::now(), SystemTime::now());
        info.upstream = UpstreamInfo::default();
        info.flags = ResponseFlags::empty();
        (info.details, info.response_code, info.end) = (None, None, None);
    }
}
