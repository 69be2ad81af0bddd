//! CONNECT requests that send data before they are answered, which some upstreams take amiss
//! (`reject_connect_request_early_data`). It must not know tries.

use std::future::Future;
use std::pin::Pin;

use http::{Method, StatusCode};
use tidegate_filters::http::{LocalReply, Request};

use super::Shared;
use super::replay::Replay;

/// What tells whether data came, where that matters; the request's body goes through it from now on.
pub(super) fn watch(shared: &Shared<'_>, request: &mut Request) -> Option<Replay> {
    let refused = shared.connection.hcm.router.reject_early_connect_data;
    if !refused || request.head.method != Method::CONNECT || request.body.is_end() {
        return None;
    }
    let watched = Replay::new(request.body.take(), shared.buffer_limit());
    request.body = watched.reader()?;
    Some(watched)
}

/// Refuses the request when data comes before `answer`.
pub(super) async fn none_while<T>(
    early: &Replay,
    mut answer: Pin<&mut impl Future<Output = Result<T, Box<LocalReply>>>>,
) -> Result<T, Box<LocalReply>> {
    let mut ahead = early.reader().unwrap_or_default();
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        Some(Ok(_)) = ahead.frame() => {
            Err(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "early_connect_data").close()))
        }
    }
}
