//! The last network filters that are not HTTP: TCP proxy, echo, direct response.
//! They must not know heads or routes.

mod filtered;
mod proxy;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) use filtered::filtered;
pub(crate) use proxy::serve;
pub use proxy::{TcpCluster, TcpProxy, TcpStats};

use crate::listener::accept::Chosen;

/// `envoy.filters.network.echo`: sends back what comes.
pub(crate) async fn echo(chosen: Chosen) {
    let Chosen { mut transport, chain, .. } = chosen;
    let mut buffer = vec![0; 16 << 10];
    let echoing = async {
        while let Ok(n) = transport.read(&mut buffer).await {
            if n == 0 || transport.write_all(&buffer[..n]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = echoing => {}
        () = chain.drain.until_cut() => {}
    }
}

/// `envoy.filters.network.direct_response`: sends fixed bytes and closes.
pub(crate) async fn direct_response(chosen: Chosen, bytes: Bytes) {
    let mut transport = chosen.transport;
    if transport.write_all(&bytes).await.is_ok() {
        // The client may have closed already.
        let _ = transport.shutdown().await;
    }
}
