//! What a client says before there is a host: waited for, or read beside the connecting.
//! It must not know who the host is.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;

use super::proxy::{TcpProxy, until};
use crate::io::Transport;

/// One read's worth: the rest is read when there is a host.
const EARLY_READ: usize = 16 << 10;

/// What a client is like that is to speak first.
pub(super) enum First {
    Bytes(Vec<u8>),
    Gone,
    /// It has said nothing for too long.
    Idle,
}

/// The client's first bytes (`ON_DOWNSTREAM_DATA`). One without any is connected to nothing, as in Envoy; here the idle
/// timeout ends it.
pub(super) async fn wait(proxy: &TcpProxy, idle: Option<Duration>, transport: &mut Transport) -> First {
    let mut early = vec![0; proxy.early_bytes.unwrap_or(0).clamp(1, EARLY_READ)];
    let idle = || until(idle.map(|idle| Instant::now() + idle));
    let n = tokio::select! {
        // Who is gone is not waited for.
        read = transport.read(&mut early) => match read {
            Ok(n) => n,
            Err(_) => return First::Gone,
        },
        () = idle() => return First::Idle,
    };
    proxy.stats.early_data_received_count_total().inc();
    if n == 0 {
        idle().await;
        return First::Idle;
    }
    early.truncate(n);
    First::Bytes(early)
}

/// Reads up to `most` bytes in all while something else goes on (`max_early_data_bytes`).
pub(super) async fn beside<T>(
    proxy: &TcpProxy,
    connecting: impl Future<Output = T>,
    transport: &mut Transport,
    early: &mut Vec<u8>,
    most: usize,
) -> T {
    let mut connecting = std::pin::pin!(connecting);
    let mut counted = !early.is_empty();
    let mut piece = Vec::new();
    while early.len() < most {
        piece.resize((most - early.len()).min(EARLY_READ), 0);
        tokio::select! {
            biased;
            read = transport.read(&mut piece) => {
                // The end shows again once there is a host, and so does a failure.
                let Ok(n @ 1..) = read else { break };
                early.extend_from_slice(&piece[..n]);
                if !std::mem::replace(&mut counted, true) {
                    proxy.stats.early_data_received_count_total().inc();
                }
            }
            done = &mut connecting => return done,
        }
    }
    connecting.await
}
