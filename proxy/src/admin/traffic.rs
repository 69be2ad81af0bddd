//! What the admin interface counts of its own connections and requests: `listener.admin.*` and `http.admin.*`, under Envoy's
//! names. It must not know what is asked.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{StatusCode, Version};
use tidegate_stats::Scope;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::stats::{HttpStats, ListenerHttpStats};
use crate::stats::listener::{AdminListenerStats, WorkerListenerStats};

/// The stats of the admin interface.
pub struct Traffic {
    listener: AdminListenerStats,
    /// It is the main thread that serves.
    thread: WorkerListenerStats,
    listener_http: ListenerHttpStats,
    http: HttpStats,
}

impl Traffic {
    /// `root` is the scope without a prefix.
    pub fn new(root: &Scope) -> Arc<Self> {
        Arc::new(Self {
            listener: AdminListenerStats::new(&root.scope("listener.admin.")),
            thread: WorkerListenerStats::new(&root.scope("listener.admin.main_thread.")),
            listener_http: ListenerHttpStats::new(&root.scope("listener.admin.http.admin.")),
            http: HttpStats::new(&root.scope("http.admin.")),
        })
    }

    /// A request begins; it ends when what is returned is dropped.
    pub(super) fn request(self: &Arc<Self>, version: Version) -> Request {
        let http = &self.http;
        http.downstream_rq_total().inc();
        http.downstream_rq_active().inc();
        match version {
            Version::HTTP_2 => http.downstream_rq_http2_total().inc(),
            _ => http.downstream_rq_http1_total().inc(),
        }
        Request { traffic: Arc::clone(self), started: Instant::now() }
    }

    fn opened(&self) {
        // No listener filter looks at it: the wait for its chain is over at once.
        self.listener.downstream_pre_cx_active().inc();
        self.listener.downstream_pre_cx_active().dec();
        self.listener.downstream_cx_total().inc();
        self.listener.downstream_cx_active().inc();
        self.listener.connections_accepted_per_socket_event().record(1);
        self.thread.downstream_cx_total().inc();
        self.thread.downstream_cx_active().inc();
        self.http.downstream_cx_total().inc();
        self.http.downstream_cx_active().inc();
    }

    fn closed(&self, since: Instant, by_peer: bool) {
        let lasted = millis(since);
        self.listener.downstream_cx_destroy().inc();
        self.listener.downstream_cx_active().dec();
        self.listener.downstream_cx_length_ms().record(lasted);
        self.thread.downstream_cx_active().dec();
        self.http.downstream_cx_destroy().inc();
        self.http.downstream_cx_active().dec();
        self.http.downstream_cx_length_ms().record(lasted);
        if by_peer {
            self.http.downstream_cx_destroy_remote().inc();
        } else {
            self.http.downstream_cx_destroy_local().inc();
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A request that is being answered.
pub(super) struct Request {
    traffic: Arc<Traffic>,
    started: Instant,
}

impl Request {
    pub(super) fn answered(&self, status: StatusCode) {
        let http = &self.traffic.http;
        http.downstream_rq_completed().inc();
        http.count_response(status);
        self.traffic.listener_http.count_response(status);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.traffic.http.downstream_rq_active().dec();
        self.traffic.http.downstream_rq_time().record(millis(self.started));
    }
}

/// A listening socket whose connections are counted.
pub(super) struct Counting<L> {
    pub(super) inner: L,
    pub(super) traffic: Arc<Traffic>,
}

impl<L: axum::serve::Listener> axum::serve::Listener for Counting<L> {
    type Io = Counted<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (inner, address) = self.inner.accept().await;
        self.traffic.opened();
        let counted =
            Counted { inner, traffic: Arc::clone(&self.traffic), since: Instant::now(), protocol: None, ended: false };
        (counted, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

/// A connection that is counted.
pub(super) struct Counted<I> {
    pub(super) inner: I,
    traffic: Arc<Traffic>,
    since: Instant,
    /// Told by the first byte.
    protocol: Option<Protocol>,
    /// The peer sends no more.
    ended: bool,
}

impl<I> Counted<I> {
    fn received(&mut self, bytes: &[u8]) {
        let http = &self.traffic.http;
        http.downstream_cx_rx_bytes_total().add(bytes.len() as u64);
        if self.protocol.is_some() {
            return;
        }
        // HTTP/2 begins with `PRI`, and no other method does.
        let protocol = if bytes.starts_with(b"PRI") { Protocol::Http2 } else { Protocol::Http1 };
        match protocol {
            Protocol::Http1 => {
                http.downstream_cx_http1_total().inc();
                http.downstream_cx_http1_active().inc();
            }
            Protocol::Http2 => {
                http.downstream_cx_http2_total().inc();
                http.downstream_cx_http2_active().inc();
            }
        }
        self.protocol = Some(protocol);
    }
}

impl<I> Drop for Counted<I> {
    fn drop(&mut self) {
        match self.protocol {
            Some(Protocol::Http1) => self.traffic.http.downstream_cx_http1_active().dec(),
            Some(Protocol::Http2) => self.traffic.http.downstream_cx_http2_active().dec(),
            None => {}
        }
        self.traffic.closed(self.since, self.ended);
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        let came = &buf.filled()[before..];
        if came.is_empty() || read.is_err() {
            self.ended = true;
        } else {
            self.received(came);
        }
        Poll::Ready(read)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.traffic.http.downstream_cx_tx_bytes_total().add(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        self.traffic.http.downstream_cx_tx_bytes_total().add(written as u64);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
