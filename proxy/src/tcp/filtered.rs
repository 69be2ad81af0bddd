//! A transport whose bytes network filters look at before the last filter sees them, and which counts them.
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
use tidegate_filters::metadata::Metadata;
use tidegate_filters::network::{Arrival, Closing, NetworkFilter};
use tidegate_filters::stream_info::{CloseType, StreamInfo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::app::Shared;
use crate::io::Transport;

/// What was seen of a connection's bytes, and which filter ended it.
#[derive(Clone)]
pub(crate) struct Seen(Arc<Mutex<Facts>>);

#[derive(Default)]
struct Facts {
    received: u64,
    sent: u64,
    closing: Option<Closing>,
    /// What a filter has closed the connection over: the last filter never got it.
    refused: u64,
    /// The client has reset the connection.
    reset: bool,
    metadata: Metadata,
}

impl Seen {
    /// How many bytes a filter kept from the last one as it closed the connection, if it did so over any.
    pub(crate) fn refused(&self) -> Option<u64> {
        let facts = self.0.lock();
        Some(facts.refused).filter(|refused| *refused > 0)
    }

    /// Adds it to what is known of the connection.
    pub(crate) fn note(&self, stream: &mut StreamInfo) {
        let mut facts = self.0.lock();
        stream.bytes.body_received = facts.received;
        stream.bytes.body_sent = facts.sent;
        if facts.reset {
            stream.close_type = CloseType::RemoteReset;
        }
        for (namespace, values) in facts.metadata.iter() {
            if let Some(values) = values.as_object() {
                stream.dynamic_metadata.merge(namespace, values.clone());
            }
        }
        if let Some(closing) = facts.closing.take() {
            super::note_closing(stream, closing);
        }
    }
}

/// Lets `filters` see every byte that is read from `inner`.
pub(crate) fn filtered(
    inner: Transport,
    filters: Vec<Box<dyn NetworkFilter>>,
    connection: &Arc<ConnectionInfo>,
    shared: &Arc<Shared>,
) -> (Transport, Seen) {
    let seen = Seen(Arc::default());
    let filtered = Filtered {
        inner,
        filters: Mutex::new(filters),
        connection: Arc::clone(connection),
        shared: Arc::clone(shared),
        seen: seen.clone(),
        ended: false,
        delay: None,
    };
    (Transport::Other(Box::new(filtered)), seen)
}

struct Filtered {
    inner: Transport,
    /// Never contended: pingora's stream trait wants what it boxes to be shareable.
    filters: Mutex<Vec<Box<dyn NetworkFilter>>>,
    connection: Arc<ConnectionInfo>,
    shared: Arc<Shared>,
    seen: Seen,
    /// The client sends no more.
    ended: bool,
    /// A filter has closed the connection, and it waits for its end.
    delay: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Filtered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(delay) = &mut this.delay {
            ready!(delay.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf)).inspect_err(|error| {
            this.seen.0.lock().reset |= error.kind() == io::ErrorKind::ConnectionReset;
        })?;
        let data = &buf.filled()[before..];
        // Filters are told of the end once.
        if data.is_empty() && std::mem::replace(&mut this.ended, true) {
            return Poll::Ready(Ok(()));
        }
        let mut facts = this.seen.0.lock();
        let Facts { received, metadata, .. } = &mut *facts;
        *received += data.len() as u64;
        let mut arrival = Arrival {
            data,
            received: *received,
            connection: &this.connection,
            metadata,
            runtime: this.shared.runtime(),
        };
        let mut filters = this.filters.get_mut().iter_mut().filter(|filter| filter.reads_data());
        if let Some(closing) = filters.find_map(|filter| filter.on_data(&mut arrival)) {
            let refused = data.len() as u64;
            buf.set_filled(before);
            let more = this.inner.empty();
            facts.received += more;
            facts.refused = refused + more;
            let mut delay = Box::pin(tokio::time::sleep(closing.delay));
            facts.closing = Some(closing);
            drop(facts);
            let over = delay.as_mut().poll(cx).is_ready();
            this.delay = Some(delay);
            return if over { Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())) } else { Poll::Pending };
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Filtered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.seen.0.lock().sent += written as u64;
        Poll::Ready(Ok(written))
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
