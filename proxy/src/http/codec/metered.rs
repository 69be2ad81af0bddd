//! A transport that counts an HTTP/2 connection's frames as they pass, and stops reading at a flood.
//! It must not know what is done about one: that is for who waits in `Meter::flooded`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use parking_lot::Mutex;
use tidegate_filters::format::Costly;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::h2_frames::{Flood, FrameMeter};
use super::stream_bytes::StreamBytes;
use crate::http::protocol::FloodLimits;
use crate::http::wire_bytes::WireBytes;

/// A RST_STREAM frame.
const RST_STREAM_BYTES: u64 = 13;

/// What the transport and the connection's owner share.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    flood: Mutex<Option<Flood>>,
    told: Notify,
    /// Absent where nobody asks for the bytes of streams.
    streams: Option<Mutex<StreamBytes>>,
}

/// A stream whose bytes are counted until this is dropped.
#[derive(Debug)]
pub(crate) struct CountedStream {
    meter: Arc<Meter>,
    stream: u32,
    pub(crate) bytes: Arc<WireBytes>,
}

impl CountedStream {
    /// The proxy gives the stream up: the frame that says so will go out when nobody counts any more.
    pub(crate) fn reset(&self) {
        self.bytes.add_sent(0, RST_STREAM_BYTES);
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        if let Some(streams) = &self.meter.streams {
            streams.lock().forget(self.stream);
        }
    }
}

impl Meter {
    /// Counts a stream that the peer has begun, if anybody asks.
    pub(crate) fn adopt(self: &Arc<Self>, stream: u32) -> Option<CountedStream> {
        let bytes = self.streams.as_ref()?.lock().adopt(stream);
        Some(CountedStream { meter: Arc::clone(self), stream, bytes })
    }

    /// Counts a stream that the proxy has begun.
    pub(crate) fn begin(self: &Arc<Self>, stream: u32, bytes: &Arc<WireBytes>) -> Option<CountedStream> {
        self.streams.as_ref()?.lock().begin(stream, Arc::clone(bytes));
        Some(CountedStream { meter: Arc::clone(self), stream, bytes: Arc::clone(bytes) })
    }

    /// Waits until there was too much of something; nothing is read after that.
    pub(crate) async fn flooded(&self) -> Flood {
        loop {
            let told = self.told.notified();
            if let Some(flood) = *self.flood.lock() {
                return flood;
            }
            told.await;
        }
    }
}

/// The transport.
pub(crate) struct Metered<T> {
    inner: T,
    frames: FrameMeter,
    /// There was too much of something: nothing is read any more.
    flooded: bool,
    meter: Arc<Meter>,
}

impl<T> Metered<T> {
    /// `client` says that the peer is the connection's client.
    pub(crate) fn new(inner: T, limits: FloodLimits, client: bool) -> (Self, Arc<Meter>) {
        let streams = Costly::WireBytes.is_asked_for().then(Mutex::default);
        let meter = Arc::new(Meter { streams, ..Meter::default() });
        let frames = FrameMeter::new(limits, client, Instant::now());
        (Self { inner, frames, flooded: false, meter: Arc::clone(&meter) }, meter)
    }

    fn sent(&mut self, buf: &[u8]) {
        let mut streams = self.meter.streams.as_ref().map(Mutex::lock);
        self.frames.sent(buf, streams.as_deref_mut());
    }
}

impl<T> Drop for Metered<T> {
    fn drop(&mut self) {
        if let Some(streams) = &self.meter.streams {
            streams.lock().close();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.flooded {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let came = &buf.filled()[before..];
        let mut streams = this.meter.streams.as_ref().map(Mutex::lock);
        let counted = this.frames.received(came, Instant::now, streams.as_deref_mut());
        drop(streams);
        match counted {
            Ok(()) => Poll::Ready(Ok(())),
            Err(flood) => {
                // None of it reaches the codec.
                buf.set_filled(before);
                this.flooded = true;
                *this.meter.flood.lock() = Some(flood);
                this.meter.told.notify_one();
                Poll::Pending
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.sent(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let n = left.min(buf.len());
            self.sent(&buf[..n]);
            left -= n;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
