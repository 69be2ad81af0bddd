//! A transport whose bytes network filters look at before the last filter sees them.
//! It must not know what a filter decides by.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::network::{NetworkFilter, NetworkStep};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::app::Shared;
use crate::io::Transport;

/// Lets `filters` see every byte that is read from `inner`.
pub(crate) fn filtered(
    inner: Transport,
    filters: Vec<Box<dyn NetworkFilter>>,
    info: &ConnectionInfo,
    shared: &Arc<Shared>,
) -> Transport {
    Transport::Other(Box::new(Filtered {
        inner,
        filters: Mutex::new(filters),
        info: info.clone(),
        shared: Arc::clone(shared),
    }))
}

struct Filtered {
    inner: Transport,
    /// Never contended: pingora's stream trait wants what it boxes to be shareable.
    filters: Mutex<Vec<Box<dyn NetworkFilter>>>,
    info: ConnectionInfo,
    shared: Arc<Shared>,
}

impl AsyncRead for Filtered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let this = &mut *self;
        for filter in this.filters.get_mut().iter_mut().filter(|filter| filter.reads_data()) {
            let step = filter.on_data(&buf.filled()[before..], &this.info, this.shared.runtime());
            if let NetworkStep::Close(details) = step {
                tracing::debug!(%details, "network filter closed a connection");
                buf.set_filled(before);
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Filtered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl std::fmt::Debug for Filtered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filtered").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl UniqueID for Filtered {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

#[async_trait]
impl Shutdown for Filtered {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl Ssl for Filtered {}
impl Peek for Filtered {}

impl GetTimingDigest for Filtered {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Filtered {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Filtered {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}
