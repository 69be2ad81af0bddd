//! A byte stream within TLS. It must not know protocols.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose handshake is over, either side.
#[derive(Debug)]
pub struct TlsStream<IO>(pub(crate) tokio_rustls::TlsStream<Began<IO>>);

impl<IO> TlsStream<IO> {
    /// What carries it.
    pub fn inner(&self) -> &IO {
        &self.0.get_ref().0.io
    }

    /// What carries it, its own bytes given up.
    pub fn into_inner(self) -> IO {
        match self.0 {
            tokio_rustls::TlsStream::Client(stream) => stream.into_inner().0.io,
            tokio_rustls::TlsStream::Server(stream) => stream.into_inner().0.io,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(cx, buf) {
            // Closed without a word of farewell: the end, as for Envoy. Who needs to know where a message ends counts its bytes.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// How many of a peer's first bytes are remembered: what tells HTTP from other things that are no TLS.
const FIRST: usize = 5;

/// So much is remembered at most of how a peer began: rustls takes no longer hello.
const MOST_REMEMBERED: usize = 64 << 10;

/// A transport, and how the peer began to speak on it, as long as somebody may ask.
#[derive(Debug)]
pub(crate) struct Began<IO> {
    io: IO,
    /// `None`: nobody will.
    heard: Option<Vec<u8>>,
}

impl<IO> Began<IO> {
    /// What is heard on it will not be asked for.
    pub(crate) fn new(io: IO) -> Self {
        Self { io, heard: None }
    }

    pub(crate) fn remembering(io: IO) -> Self {
        Self { io, heard: Some(Vec::new()) }
    }

    /// The first bytes that came, at most five.
    pub(crate) fn first(&self) -> &[u8] {
        let heard = self.heard.as_deref().unwrap_or_default();
        &heard[..heard.len().min(FIRST)]
    }

    /// All that came until now. From here on nothing is remembered.
    pub(crate) fn take_heard(&mut self) -> Vec<u8> {
        self.heard.take().unwrap_or_default()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Began<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Some(heard) = &mut self.heard {
            let new = &buf.filled()[before..];
            heard.extend_from_slice(&new[..new.len().min(MOST_REMEMBERED - heard.len())]);
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Began<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
