//! PINGs on an HTTP/2 connection, of either side (Envoy's `connection_keepalive`).
//! It must not know what becomes of a connection whose peer does not answer.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::sync::Notify;

use crate::http::protocol::Keepalive;

/// PINGs the peer by the rules; returns when it does not answer in time. `opened` tells of a stream that was opened after the
/// connection had been idle for `idle_interval`.
pub(crate) async fn watch(ping: Option<PingPong>, rules: Option<Keepalive>, opened: &Notify) {
    let (Some(mut ping), Some(rules)) = (ping, rules) else { return std::future::pending().await };
    loop {
        tokio::select! {
            () = next(&rules) => {}
            () = opened.notified() => {}
        }
        let answer = tokio::time::timeout(rules.timeout.max(Duration::from_millis(1)), ping.ping(Ping::opaque()));
        if !matches!(answer.await, Ok(Ok(_))) {
            return;
        }
    }
}

/// The time until the next PING: the interval, and up to so many percent more.
async fn next(rules: &Keepalive) {
    let Some(interval) = rules.interval else { return std::future::pending().await };
    let jitter = interval.mul_f64(rules.jitter_percent / 100.0 * rand::random::<f64>());
    tokio::time::sleep(interval + jitter).await;
}
