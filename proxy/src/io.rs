//! The transport of a connection, downstream or upstream: a socket, TLS on one, or whatever speaks pingora's stream traits.
//! It must not know protocols; bytes that an inspector consumed too early are put back in front.

mod counted;

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream as PingoraStream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tidegate_tls::TlsStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

pub use counted::{CountBytes, Counted};

/// The next connection's number, downstream or upstream.
pub(crate) fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// Bytes of one read of what nobody wants any more, and of all of them on a connection that is refused.
const UNWANTED_BYTES: usize = 4 << 10;
const MOST_UNWANTED_BYTES: u64 = 1 << 20;

/// Reads away once what nobody wants any more: how much it was, 0 when there is no more to come.
pub(crate) fn poll_read_away<R: AsyncRead + Unpin>(from: &mut R, cx: &mut Context<'_>) -> Poll<usize> {
    let mut unwanted = [0; UNWANTED_BYTES];
    let mut read = ReadBuf::new(&mut unwanted);
    let polled = Pin::new(from).poll_read(cx, &mut read);
    polled.map(|result| if result.is_ok() { read.filled().len() } else { 0 })
}

/// Throws away what has come already, `most` bytes of it: a socket that is closed with bytes unread is reset. Tells how much
/// it was.
pub(crate) fn empty<R: AsyncRead + Unpin>(from: &mut R, most: u64) -> u64 {
    let mut cx = Context::from_waker(Waker::noop());
    let mut bytes = 0;
    while bytes + UNWANTED_BYTES as u64 <= most {
        match poll_read_away(from, &mut cx) {
            Poll::Ready(read) if read > 0 => bytes += read as u64,
            Poll::Ready(_) | Poll::Pending => break,
        }
    }
    bytes
}

/// A byte stream both ways. Sockets and TLS are matched directly, which keeps the hot path free of virtual calls; everything
/// else (in-memory pipes) is a boxed pingora stream.
#[derive(Debug)]
pub enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<Transport>>),
    Other(PingoraStream),
    /// Bytes read ahead, then the rest.
    Rewound(Bytes, Box<Transport>),
    /// Somebody counts its bytes.
    Counted(Box<Counted>),
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self {
            Transport::Tcp($stream) => $call,
            Transport::Unix($stream) => $call,
            Transport::Tls($stream) => $call,
            Transport::Other($stream) => $call,
            Transport::Rewound(_, $stream) => $call,
            Transport::Counted($stream) => $call,
        }
    };
}

impl Transport {
    /// Puts bytes back: they are read first.
    pub fn rewind(self, bytes: Bytes) -> Self {
        if bytes.is_empty() { self } else { Self::Rewound(bytes, Box::new(self)) }
    }

    /// Tells `count` of every byte from now on.
    pub fn counted(self, count: Box<dyn CountBytes>) -> Self {
        Self::Counted(Box::new(Counted { inner: self, count }))
    }

    /// Throws away what has come already, a bounded part of it, and tells how much it was.
    pub fn empty(&mut self) -> u64 {
        empty(self, MOST_UNWANTED_BYTES)
    }

    /// Closes with a reset instead of a FIN, where the transport can (`SO_LINGER` 0).
    pub fn abort(self) {
        match self {
            Self::Tcp(stream) => {
                // A socket that is gone already cannot be reset; closing it is all that is left.
                let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
            }
            Self::Tls(stream) => stream.into_inner().abort(),
            Self::Rewound(_, inner) => inner.abort(),
            Self::Counted(counted) => counted.inner.abort(),
            Self::Unix(_) | Self::Other(_) => {}
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Self::Rewound(ahead, _) = &mut *self
            && ahead.has_remaining()
        {
            let n = ahead.len().min(buf.remaining());
            buf.put_slice(&ahead.split_to(n));
            return Poll::Ready(Ok(()));
        }
        each!(&mut *self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }
}

impl UniqueID for Transport {
    fn id(&self) -> UniqueIDType {
        match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tls(stream) => stream.inner().id(),
            Self::Other(stream) => stream.id(),
            Self::Rewound(_, stream) => stream.id(),
            Self::Counted(counted) => counted.inner.id(),
        }
    }
}

#[async_trait::async_trait]
impl Shutdown for Transport {
    async fn shutdown(&mut self) {
        // The peer may be gone; then there is nobody left to tell.
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

impl Ssl for Transport {}
impl Peek for Transport {}

impl GetTimingDigest for Transport {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Transport {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Transport {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::new(SocketDigest::from_raw_fd(self.id())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn rewound_bytes_are_read_first() {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"world").await.unwrap();
        let mut transport = Transport::Unix(a).rewind(Bytes::from_static(b"hello "));
        let mut read = [0; 11];
        transport.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello world");
    }

    #[tokio::test]
    async fn what_nobody_wants_is_read_away_within_a_bound() {
        let (mut own, mut peer) = tokio::io::duplex(64 << 10);
        peer.write_all(&[0; 10_000]).await.unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(empty(&mut own, 8 << 10), 8 << 10);
        assert_eq!(empty(&mut own, 8 << 10), 10_000 - (8 << 10));
        assert!(poll_read_away(&mut own, &mut cx).is_pending());
        drop(peer);
        assert_eq!(poll_read_away(&mut own, &mut cx), Poll::Ready(0));
    }
}
