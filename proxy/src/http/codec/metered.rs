//! A transport that counts an HTTP/2 connection's frames as they pass, stops reading at a flood, and gives the peer time to
//! close first. It must not know what is done about a flood: that is for who waits in `Meter::flooded`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_filters::format::Costly;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

use super::h2_frames::{Flood, FrameMeter};
use super::stream_bytes::StreamBytes;
use crate::http::protocol::FloodLimits;
use crate::http::wire_bytes::WireBytes;
use crate::io::poll_read_away;

/// A RST_STREAM frame.
const RST_STREAM_BYTES: u64 = 13;

/// What the transport and the connection's owner share.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    flood: Mutex<Option<Flood>>,
    told: Notify,
    /// The request's head of which not all has come: its stream, and since when.
    head: Mutex<Option<(u32, Instant)>>,
    head_told: Notify,
    /// The codec has said its last.
    closing: AtomicBool,
    /// The peer has broken the protocol of the connection.
    broken: AtomicBool,
    /// The peer has closed.
    left: AtomicBool,
    /// The peer did not close in the time that it was given.
    late: AtomicBool,
    /// The peer is given no time.
    hurried: AtomicBool,
    /// Requests that are under way.
    active: AtomicUsize,
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

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Active(Arc<Meter>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

impl Meter {
    /// A request begins.
    pub(crate) fn activate(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Relaxed);
        Active(Arc::clone(self))
    }

    /// Whether requests are under way.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Relaxed) > 0
    }

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

    /// Whether the codec has said its last.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// The peer has broken the protocol: what its streams end by is no reset of its own.
    pub(crate) fn note_broken(&self) {
        self.broken.store(true, Relaxed);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Whether the peer has closed.
    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Relaxed)
    }

    /// Whether the peer did not close in the time that it was given.
    pub(crate) fn is_late(&self) -> bool {
        self.late.load(Relaxed)
    }

    /// Gives the peer no time to close.
    pub(crate) fn hurry(&self) {
        self.hurried.store(true, Relaxed);
    }

    /// Whether there was too much of something.
    pub(crate) fn is_flooded(&self) -> bool {
        self.flood.lock().is_some()
    }

    /// Waits until a request's head has taken longer than that; without a limit it may take any time.
    pub(crate) async fn late_head(&self, limit: Option<Duration>) {
        loop {
            let told = self.head_told.notified();
            let over = self.head.lock().and_then(|(_, since)| since.checked_add(limit?));
            match over {
                Some(over) if over <= Instant::now() => return,
                // Either way it is looked at again.
                Some(over) => tokio::time::timeout_at(over.into(), told).await.unwrap_or_default(),
                None => told.await,
            }
        }
    }

    fn note_head(&self, stream: Option<u32>) {
        let mut head = self.head.lock();
        if head.map(|(stream, _)| stream) != stream {
            *head = stream.map(|stream| (stream, Instant::now()));
            drop(head);
            self.head_told.notify_one();
        }
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
    /// Of which stream the shared state says that its head is not whole.
    told_head: Option<u32>,
    /// How long the peer is given to close once all is sent (Envoy's `delayed_close_timeout`).
    patience: Option<Duration>,
    waiting: Option<Pin<Box<Sleep>>>,
    meter: Arc<Meter>,
}

impl<T> Metered<T> {
    /// `client` says that the peer is the connection's client.
    pub(crate) fn new(inner: T, limits: FloodLimits, client: bool, patience: Option<Duration>) -> (Self, Arc<Meter>) {
        let streams = Costly::WireBytes.is_asked_for().then(Mutex::default);
        let meter = Arc::new(Meter { streams, ..Meter::default() });
        let frames = FrameMeter::new(limits, client, Instant::now());
        let metered =
            Self { inner, frames, flooded: false, told_head: None, patience, waiting: None, meter: Arc::clone(&meter) };
        (metered, meter)
    }

    /// The peer has ended a connection that can be written no more, as much as one that can be read no more.
    fn wrote(&self, written: io::Result<usize>) -> io::Result<usize> {
        if written.is_err() {
            self.meter.left.store(true, Relaxed);
        }
        written
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
        let read = ready!(Pin::new(&mut this.inner).poll_read(cx, buf));
        let came = &buf.filled()[before..];
        if came.is_empty() {
            this.meter.left.store(true, Relaxed);
        }
        read?;
        let mut streams = this.meter.streams.as_ref().map(Mutex::lock);
        let counted = this.frames.received(came, Instant::now, streams.as_deref_mut());
        drop(streams);
        let head = this.frames.part_of_head();
        if head != this.told_head {
            this.told_head = head;
            this.meter.note_head(head);
        }
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

/// Ready when the peer has closed; what it still says is read away.
fn poll_left<T: AsyncRead + Unpin>(transport: &mut T, cx: &mut Context<'_>) -> Poll<()> {
    while ready!(poll_read_away(transport, cx)) > 0 {}
    Poll::Ready(())
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf));
        let written = self.wrote(written)?;
        self.sent(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs));
        let written = self.wrote(written)?;
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
        let this = &mut *self;
        this.meter.closing.store(true, Relaxed);
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        if let Some(patience) = this.patience.filter(|_| !this.meter.hurried.load(Relaxed)) {
            let waiting = this.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
            let left = poll_left(&mut this.inner, cx).is_ready();
            if !left {
                ready!(waiting.as_mut().poll(cx));
            }
            let how = if left { &this.meter.left } else { &this.meter.late };
            how.store(true, Relaxed);
            this.patience = None;
        }
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_peer_whose_reset_a_write_sees_first_has_left() {
        let mut cx = Context::from_waker(Waker::noop());
        let frame = b"\0\0\0\x04\0\0\0\0\0";
        type Write = fn(Pin<&mut Metered<tokio::io::DuplexStream>>, &mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>;
        let vectored: Write = |metered, cx, frame| metered.poll_write_vectored(cx, &[IoSlice::new(frame)]);
        for write in [Metered::poll_write as Write, vectored] {
            let (own, peer) = tokio::io::duplex(64);
            let (mut metered, meter) = Metered::new(own, FloodLimits::default(), true, None);
            assert!(matches!(write(Pin::new(&mut metered), &mut cx, frame), Poll::Ready(Ok(9))));
            assert!(!meter.is_left());
            drop(peer);
            assert!(matches!(write(Pin::new(&mut metered), &mut cx, frame), Poll::Ready(Err(_))));
            assert!(meter.is_left());
        }
    }
}
