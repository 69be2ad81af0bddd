//! The last network filters that are not HTTP: TCP proxy, echo, direct response.
//! They must not know heads or routes.

mod connect;
mod early;
mod filtered;
mod per_connection;
mod pipe;
mod proxy;
mod tlvs;
mod tunnel;

use bytes::Bytes;
use tidegate_filters::network::Closing;
use tidegate_filters::stream_info::StreamInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use connect::BackOff;
pub(crate) use filtered::{Seen, filtered};
pub use per_connection::TcpHash;
pub use proxy::{LogOptions, TcpCluster, TcpProxy, TcpStats};
pub(crate) use proxy::{count_refused, serve};
pub use tlvs::{MergeTlvs, TcpTlvs};
pub use tunnel::{RequestId, Tunnel};

use crate::application_log::shown::Tags;
use crate::listener::accept::Chosen;

/// Notes that a network filter closed the connection, and why.
pub(crate) fn note_closing(stream: &mut StreamInfo, closing: Closing) {
    tracing::debug!("{} a network filter closes: {}", Tags::connection(stream.connection.id), closing.reason);
    stream.flags |= closing.flags;
    stream.local_close_reason = Some(closing.reason);
    if closing.details.is_some() {
        stream.connection_termination_details = closing.details;
    }
}

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
