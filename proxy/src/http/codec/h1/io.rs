//! Reading and writing for HTTP/1 connections: buffers that exist only while there are bytes, and writes that coalesce.
//! It must not know heads or bodies.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::fields::HeadEnd;

const SCRATCH_BYTES: usize = 16 << 10;
const BULK_BYTES: usize = 64 << 10;
/// Pieces up to this size are copied together; larger ones are written where they are.
const COPY_BYTES: usize = 4 << 10;
const SLICES: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    io: R,
    pub(crate) buffer: BytesMut,
    /// How far the head that is being read was looked at.
    pub(crate) scanned: HeadEnd,
    pub(crate) ended: bool,
    pub(crate) read_bytes: u64,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new(), scanned: HeadEnd::default(), ended: false, read_bytes: 0 }
    }

    /// Reads once: how many bytes came, 0 at the end. While nothing is buffered, no buffer is held.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            let filled = read.filled();
            self.buffer.extend_from_slice(filled);
            Poll::Ready(io::Result::Ok(filled.len()))
        }))?;
        Poll::Ready(Ok(self.took(n)))
    }

    /// Reads once, for a body of which much is to come: into a large buffer that is handed on without copying.
    pub(crate) fn poll_fill_bulk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.buffer.capacity() - self.buffer.len() < SCRATCH_BYTES {
            self.buffer.reserve(BULK_BYTES);
        }
        let n = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buffer))?;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(self.took(n)))
    }

    fn took(&mut self, n: usize) -> usize {
        self.ended |= n == 0;
        self.read_bytes += n as u64;
        n
    }

    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Gives the buffer's memory back when nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

/// The writing side of a connection.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    io: W,
    queue: VecDeque<Bytes>,
    /// Small pieces, after everything in `queue`.
    tail: BytesMut,
    queued: usize,
    limit: usize,
    pub(crate) written_bytes: u64,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// `limit` is how many bytes may wait before `poll_ready` holds back.
    pub(crate) fn new(io: W, limit: usize) -> Self {
        Self { io, queue: VecDeque::new(), tail: BytesMut::new(), queued: 0, limit: limit.max(1), written_bytes: 0 }
    }

    /// Where heads and framing are written.
    pub(crate) fn encode(&mut self, write: impl FnOnce(&mut BytesMut)) -> usize {
        if self.tail.capacity() == 0 {
            self.tail = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(COPY_BYTES));
        }
        let before = self.tail.len();
        write(&mut self.tail);
        let n = self.tail.len() - before;
        self.queued += n;
        n
    }

    pub(crate) fn push(&mut self, data: Bytes) {
        if data.len() <= COPY_BYTES {
            self.encode(|tail| tail.extend_from_slice(&data));
            return;
        }
        self.queued += data.len();
        if !self.tail.is_empty() {
            let small = std::mem::take(&mut self.tail).freeze();
            self.queue.push_back(small);
        }
        self.queue.push_back(data);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Ready while fewer bytes wait than the limit.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.queued < self.limit {
            return Poll::Ready(Ok(()));
        }
        while self.queued >= self.limit {
            ready!(self.poll_write_some(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when nothing waits any more.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.queued > 0 {
            ready!(self.poll_write_some(cx))?;
        }
        self.release();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    #[cfg(test)]
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    #[cfg(test)]
    pub(crate) fn into_io(self) -> W {
        self.io
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let n = if self.queue.is_empty() {
            ready!(Pin::new(&mut self.io).poll_write(cx, &self.tail))?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for piece in self.queue.iter().map(Bytes::as_ref).chain([self.tail.as_ref()]).take(SLICES) {
                slices[count] = IoSlice::new(piece);
                count += 1;
            }
            ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]))?
        };
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written_bytes += n as u64;
        self.queued -= n;
        self.advance(n);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut n: usize) {
        while let Some(front) = self.queue.front_mut() {
            if n < front.len() {
                front.advance(n);
                return;
            }
            n -= front.len();
            self.queue.pop_front();
        }
        self.tail.advance(n);
    }

    fn release(&mut self) {
        let mut tail = std::mem::take(&mut self.tail);
        tail.clear();
        if tail.capacity() > 0 && tail.capacity() <= SCRATCH_BYTES && tail.try_reclaim(COPY_BYTES / 2) {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < 64 {
                    spare.push(tail);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn small_and_large_pieces_arrive_in_order() {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let mut writer = Writer::new(client, 1 << 20);
        writer.encode(|out| out.extend_from_slice(b"head "));
        writer.push(Bytes::from(vec![b'x'; 10_000]));
        writer.push(Bytes::from_static(b" tail"));
        std::future::poll_fn(|cx| writer.poll_flush(cx)).await.unwrap();
        assert!(writer.is_empty());
        drop(writer);
        let mut read = String::new();
        server.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, format!("head {} tail", "x".repeat(10_000)));
    }

    #[tokio::test]
    async fn a_full_writer_holds_back() {
        let (client, _server) = tokio::io::duplex(16);
        let mut writer = Writer::new(client, 64);
        writer.push(Bytes::from(vec![0; 100]));
        let ready = std::future::poll_fn(|cx| Poll::Ready(writer.poll_ready(cx).is_ready())).await;
        assert!(!ready);
    }
}
