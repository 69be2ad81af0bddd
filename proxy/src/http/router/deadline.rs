//! The clocks of a request: they begin when the request is whole. They must not know what happens when one has run down.

use std::future::Future;
use std::time::{Duration, Instant};

use super::Shared;
use crate::http::progress::Progress;

/// A future that may be awaited again and again.
pub(super) trait Deadline: Future<Output = ()> + Send {}
impl<T: Future<Output = ()> + Send> Deadline for T {}

/// Waits for the end of the request, and then as long as the limit says.
pub(super) async fn expires(limit: Option<Duration>, progress: Option<&Progress>) {
    let Some(limit) = limit else { return std::future::pending().await };
    if let Some(progress) = progress {
        progress.done().await;
    }
    tokio::time::sleep(limit).await;
}

/// Waits until the host has said nothing for as long as the limit says, counted from the end of the request.
pub(super) async fn falls_silent(limit: Option<Duration>, shared: &Shared<'_>) {
    let Some(limit) = limit else { return std::future::pending().await };
    if let Some(progress) = &shared.progress {
        progress.done().await;
    }
    let mut since = Instant::now();
    loop {
        tokio::time::sleep_until((since + limit).into()).await;
        match shared.last_informational() {
            Some(last) if last > since => since = last,
            _ => return,
        }
    }
}
