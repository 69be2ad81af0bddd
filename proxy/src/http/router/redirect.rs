//! Redirects of an upstream that the proxy may follow itself (`internal_redirect_policy`), up to the choice of a route.
//! It must not know how an exchange begins anew.

use http::header::LOCATION;
use tidegate_filters::http::{Body, RequestHead, ResponseHead};

use super::replay::Replay;
use super::{Shared, Unfinished};
use crate::http::redirect::count_refusal;
use crate::route::{RedirectHistory, RedirectTarget};

/// A redirect that may be followed, if its route agrees.
pub(crate) struct Redirected {
    pub target: RedirectTarget,
    /// The request's body from its beginning.
    pub body: Body,
    /// The response that redirects, for when it is not followed.
    pub unfinished: Unfinished,
}

/// The next request, if this response is a redirect to follow and the request can be sent again.
pub(super) fn target(
    shared: &Shared<'_>,
    response: &ResponseHead,
    request: &RequestHead,
    body: Option<&Replay>,
    history: &RedirectHistory,
) -> Option<(RedirectTarget, Body)> {
    let policy = shared.action.internal_redirect.as_ref()?;
    if !policy.follows(response.status) {
        return None;
    }
    let found = if response.headers.contains_key(LOCATION) {
        from_the_beginning(shared, body).and_then(|body| {
            let secure = shared.connection.info.tls.is_some();
            match policy.target(request, secure, response.status, &response.headers, history) {
                Ok(target) => Some((target, body)),
                Err(refusal) => {
                    count_refusal(&shared.connection.hcm.router_stats, refusal);
                    None
                }
            }
        })
    } else {
        None
    };
    match found {
        Some((target, body)) => {
            let body = if target.drop_body { Body::Empty } else { body };
            Some((target, body))
        }
        None => {
            // It goes to the client after all.
            shared.cluster.stats().traffic.upstream_internal_redirect_failed_total().inc();
            None
        }
    }
}

/// The request's body, if it is whole and was kept.
fn from_the_beginning(shared: &Shared<'_>, body: Option<&Replay>) -> Option<Body> {
    match (body, &shared.progress) {
        (_, None) => Some(Body::Empty),
        (Some(body), Some(progress)) if progress.is_done() => body.reader(),
        _ => None,
    }
}
