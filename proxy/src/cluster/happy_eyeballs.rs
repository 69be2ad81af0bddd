//! Connects to whichever of several addresses answers first (RFC 8305 section 5, as Envoy's `HappyEyeballsConnectionImpl`).
//! It must not know what a connection is.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// How long an attempt is alone before the next one joins it.
const DELAY: Duration = Duration::from_millis(300);

/// Tries the addresses in their order, each once the one before has failed or taken its time. The first success wins and
/// ends the others; without any it is the last failure, and `None` without addresses.
pub(crate) async fn race<T, E, F: Future<Output = Result<T, E>>>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> Option<Result<T, E>> {
    let mut addresses = addresses.into_iter().peekable();
    let mut running = FuturesUnordered::new();
    let mut failure = None;
    loop {
        match addresses.next() {
            Some(address) => running.push(connect(address)),
            None if running.is_empty() => return failure,
            None => {}
        }
        let patience = tokio::time::sleep(DELAY);
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(connection) => return Some(Ok(connection)),
                Err(error) => failure = Some(Err(error)),
            },
            () = patience, if addresses.peek().is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Connects to port 80 after its last number in milliseconds; fails on every other port after as long.
    async fn connect(address: SocketAddr) -> Result<SocketAddr, u16> {
        let SocketAddr::V4(v4) = address else { return Err(0) };
        sleep(Duration::from_millis(u64::from(v4.ip().octets()[3]) * 10)).await;
        if address.port() == 80 { Ok(address) } else { Err(address.port()) }
    }

    async fn run(addresses: &[&str]) -> (Option<Result<String, u16>>, u64) {
        let start = Instant::now();
        let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let result = race(addresses, connect).await;
        let result = result.map(|result| result.map(|address| address.to_string()));
        (result, start.elapsed().as_millis() as u64)
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_joins_a_slow_one_and_follows_a_failed_one() {
        assert_eq!(run(&[]).await, (None, 0));
        assert_eq!(run(&["1.1.1.1:80", "1.1.1.2:80"]).await, (Some(Ok("1.1.1.1:80".into())), 10));
        assert_eq!(run(&["1.1.1.200:80", "1.1.1.1:80"]).await, (Some(Ok("1.1.1.1:80".into())), 310));
        assert_eq!(run(&["1.1.1.5:81", "1.1.1.1:80"]).await, (Some(Ok("1.1.1.1:80".into())), 60));
        // A slow one may still win.
        assert_eq!(run(&["1.1.1.40:80", "1.1.1.90:80"]).await, (Some(Ok("1.1.1.40:80".into())), 400));
        assert_eq!(run(&["1.1.1.1:81", "1.1.1.1:82"]).await, (Some(Err(82)), 20));
    }
}
