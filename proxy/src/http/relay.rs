//! Moves a response's body to the client while what is left of the request goes up.
//! It must not know routes, filters or logs.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

use http::Version;
use tidegate_filters::http::{Body, BodyError};

use super::downstream::{Downstream, Gone};
use super::router::Pump;
use super::timers::{Limit, Timers};
use super::watermark::{Watch, Watermark};
use crate::cluster::Cluster;

/// Why a response was cut while it was sent.
pub(super) enum Cut {
    Gone(Gone),
    TimedOut(Limit),
    Body(BodyError),
}

/// The client broke off its request while it was answered.
fn gone_by(error: &BodyError) -> Gone {
    match error {
        BodyError::Malformed(details) => Gone::ProtocolError(details),
        BodyError::Reset(_) => Gone::Reset,
        BodyError::Closed | BodyError::TimedOut | BodyError::Reply(_) => Gone::Closed,
    }
}

/// Runs `wait` while the pump moves.
pub(super) async fn while_pumping<T>(pump: &mut Option<Pump>, wait: impl Future<Output = T>) -> T {
    let mut wait = pin!(wait);
    std::future::poll_fn(|cx| {
        poll_pump(pump, cx);
        wait.as_mut().poll(cx)
    })
    .await
}

/// Moves the request upwards. How it ends shows in the response, or in nothing.
fn poll_pump(pump: &mut Option<Pump>, cx: &mut Context<'_>) {
    if let Some(running) = pump
        && running.as_mut().poll(cx).is_ready()
    {
        *pump = None;
    }
}

/// Counts when an HTTP/1 client takes no more of a host's response, and the host is not read from until it does. Over HTTP/2
/// no such buffer fills: a stream waits for its client's window with little in hand.
struct Reading<'c>(Option<&'c Cluster>);

impl Watch for Reading<'_> {
    fn full(&self) {
        if let Some(cluster) = self.0 {
            cluster.stats().traffic.upstream_flow_control_paused_reading_total().inc();
        }
    }

    fn drained(&self) {
        if let Some(cluster) = self.0 {
            cluster.stats().traffic.upstream_flow_control_resumed_reading_total().inc();
        }
    }
}

/// Relays a response body to the client, and what is left of the request to the upstream.
pub(super) async fn relay<D: Downstream>(
    body: &mut Body,
    pump: &mut Option<Pump>,
    down: &mut D,
    timers: &mut Timers<'_>,
    mut kept_trailers: Option<&mut Option<http::HeaderMap>>,
    cluster: Option<&Cluster>,
) -> Result<(), Cut> {
    let mut client = Watermark::new(Reading(cluster.filter(|_| down.version() < Version::HTTP_2)));
    std::future::poll_fn(|cx| {
        poll_pump(pump, cx);
        if let Some(error) = timers.progress.as_ref().and_then(|progress| progress.take_failure()) {
            return Poll::Ready(Err(match error {
                BodyError::Reply(_) => Cut::Body(error),
                _ => Cut::Gone(gone_by(&error)),
            }));
        }
        loop {
            match down.poll_ready(cx) {
                Poll::Ready(Ok(())) => client.set(false),
                Poll::Ready(Err(gone)) => return Poll::Ready(Err(Cut::Gone(gone))),
                Poll::Pending => {
                    client.set(true);
                    break;
                }
            }
            match body.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    timers.touch();
                    match frame.into_data() {
                        Ok(data) => {
                            let end = body.is_end();
                            timers.sent(data.len());
                            down.send_data(data, end);
                            if end {
                                return Poll::Ready(Ok(()));
                            }
                        }
                        Err(frame) => {
                            if let Ok(trailers) = frame.into_trailers() {
                                if let Some(kept) = kept_trailers.as_deref_mut() {
                                    *kept = Some(trailers.clone());
                                }
                                down.send_trailers(trailers);
                            }
                            return Poll::Ready(Ok(()));
                        }
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Cut::Body(error))),
                Poll::Ready(None) => {
                    down.send_end();
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => {
                    if let Poll::Ready(Err(gone)) = down.poll_flush(cx) {
                        return Poll::Ready(Err(Cut::Gone(gone)));
                    }
                    break;
                }
            }
        }
        if let Poll::Ready(gone) = down.poll_gone(cx) {
            return Poll::Ready(Err(Cut::Gone(gone)));
        }
        timers.poll(cx).map(|limit| Err(Cut::TimedOut(limit)))
    })
    .await
}
