//! Redirects of an upstream that the proxy may follow itself (`internal_redirect_policy`), up to the choice of a route.
//! It must not know how an exchange begins anew.

use std::sync::Arc;

use http::header::LOCATION;
use tidegate_filters::http::{Body, RequestHead, ResponseHead};

use super::replay::Replay;
use super::{Redirected, Shared};
use crate::http::redirect::count_refusal;
use crate::route::RedirectHistory;

/// The next request, if this response is a redirect to follow and the request can be sent again.
pub(super) fn target(
    shared: &Shared<'_>,
    response: &ResponseHead,
    request: &RequestHead,
    body: Option<&Replay>,
    history: &RedirectHistory,
) -> Option<Box<Redirected>> {
    let policy = shared.action.internal_redirect.as_ref()?;
    if !policy.follows(response.status) || !response.headers.contains_key(LOCATION) {
        return None;
    }
    let traffic = &shared.cluster.stats().traffic;
    let complete = shared.progress.as_ref().is_none_or(|progress| progress.is_done());
    let body = match (body, complete) {
        (Some(body), true) => body.reader(),
        (None, true) if shared.progress.is_none() => Some(Body::Empty),
        _ => None,
    };
    let Some(body) = body else {
        traffic.upstream_internal_redirect_failed_total().inc();
        return None;
    };
    let secure = shared.connection.info.tls.is_some();
    match policy.target(request, secure, response.status, &response.headers, history) {
        Ok(target) => {
            let body = if target.drop_body { Body::Empty } else { body };
            Some(Box::new(Redirected { target, body, cluster: Arc::clone(&shared.cluster) }))
        }
        Err(refusal) => {
            traffic.upstream_internal_redirect_failed_total().inc();
            count_refusal(&shared.connection.hcm.router_stats, refusal);
            None
        }
    }
}
