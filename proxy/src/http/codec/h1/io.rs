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
use crate::io::empty;

const SCRATCH_BYTES: usize = 16 << 10;
const BULK_BYTES: usize = 64 << 10;
/// Pieces up to this size are copied together; larger ones are written where they are.
const COPY_BYTES: usize = 4 << 10;
const SLICES: usize = 16;
/// So much is read away of a connection that is closed.
const MOST_UNWANTED_BYTES: u64 = 128 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static SPARE_BULK: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Spare buffers of a thread: small ones, and bulk ones.
const SPARES: usize = 64;
const BULK_SPARES: usize = 4;

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

    /// Reads once, for a body of which much is to come: into a large buffer that is handed on without copying. While it
    /// waits for bytes, the connection does not hold that buffer.
    pub(crate) fn poll_fill_bulk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.buffer.capacity() - self.buffer.len() < SCRATCH_BYTES {
            self.grow();
        }
        let filled = tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buffer);
        if self.buffer.is_empty() {
            self.lend();
        }
        let n = ready!(filled)?;
        Poll::Ready(Ok(self.took(n)))
    }

    /// Makes room for a bulk read.
    fn grow(&mut self) {
        let spare = if self.buffer.is_empty() { SPARE_BULK.with_borrow_mut(Vec::pop) } else { None };
        match spare {
            Some(spare) => self.buffer = spare,
            None => self.buffer.reserve(BULK_BYTES),
        }
    }

    /// Leaves an empty buffer to whoever reads next on this thread.
    fn lend(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.try_reclaim(BULK_BYTES) || buffer.capacity() >= SCRATCH_BYTES {
            SPARE_BULK.with_borrow_mut(|spare| {
                if spare.len() < BULK_SPARES {
                    spare.push(buffer);
                }
            });
        }
    }

    fn took(&mut self, n: usize) -> usize {
        self.ended |= n == 0;
        self.read_bytes += n as u64;
        n
    }

    /// What was read, but for what nobody has taken out of the buffer yet.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.read_bytes - self.buffer.len() as u64
    }

    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Throws away what has come already, a little of it: a socket that is closed with bytes unread is reset.
    pub(crate) fn empty_socket(&mut self) {
        if !self.ended {
            self.read_bytes += empty(&mut self.io, MOST_UNWANTED_BYTES);
        }
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
            // What is left of the buffer takes the small pieces that follow.
            self.queue.push_back(self.tail.split().freeze());
        }
        self.queue.push_back(data);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// All that was given to be written, also what still waits.
    pub(crate) fn accepted_bytes(&self) -> u64 {
        self.written_bytes + self.queued as u64
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
                if spare.len() < SPARES {
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

    /// Counts the calls that would be system calls.
    #[derive(Debug, Default)]
    struct Counting {
        input: VecDeque<&'static [u8]>,
        reads: usize,
        writes: usize,
        written: Vec<u8>,
        /// How much one write takes.
        most: usize,
    }

    impl AsyncRead for Counting {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.reads += 1;
            let Some(piece) = self.input.pop_front() else { return Poll::Pending };
            read.put_slice(piece);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.writes += 1;
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let n = all.len().min(self.most);
            self.written.extend_from_slice(&all[..n]);
            Poll::Ready(Ok(n))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn noop() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    #[test]
    fn head_and_body_go_out_in_one_write() {
        for body in [vec![b'x'; 100], vec![b'x'; 100_000]] {
            let mut writer = Writer::new(Counting { most: usize::MAX, ..Default::default() }, 1 << 20);
            writer.encode(|out| out.extend_from_slice(b"head "));
            writer.push(Bytes::from(body.clone()));
            writer.encode(|out| out.extend_from_slice(b" tail"));
            assert!(writer.poll_flush(&mut noop()).is_ready() && writer.is_empty());
            assert_eq!(writer.io.writes, 1);
            assert_eq!(writer.io.written, [&b"head "[..], &body, b" tail"].concat());
        }
    }

    #[test]
    fn short_writes_lose_nothing() {
        let mut writer = Writer::new(Counting { most: 7, ..Default::default() }, 1 << 20);
        let mut expected = Vec::new();
        for length in [10, 5000, 3, 0, 4096, 4097, 1] {
            let piece = vec![u8::try_from(length % 251).unwrap(); length];
            expected.extend_from_slice(&piece);
            writer.push(Bytes::from(piece));
            assert!(writer.poll_flush(&mut noop()).is_ready());
        }
        for length in [4097, 2, 9000] {
            expected.extend_from_slice(&vec![b'y'; length]);
            writer.push(Bytes::from(vec![b'y'; length]));
        }
        assert!(writer.poll_flush(&mut noop()).is_ready());
        assert_eq!(writer.io.written, expected);
        assert_eq!(writer.written_bytes, expected.len() as u64);
    }

    #[test]
    fn a_message_is_read_in_one_read_and_nothing_is_held_between() {
        let mut reader = Reader::new(Counting { input: [&b"GET / HTTP/1.1"[..]].into(), ..Default::default() });
        assert_eq!(reader.buffer.capacity(), 0);
        assert!(matches!(reader.poll_fill(&mut noop()), Poll::Ready(Ok(14))));
        assert_eq!(reader.io.reads, 1);
        reader.buffer.clear();
        reader.release();
        assert!(reader.poll_fill(&mut noop()).is_pending());
        assert_eq!(reader.buffer.capacity(), 0);
    }

    #[test]
    fn a_body_that_is_waited_for_holds_no_buffer() {
        let mut reader = Reader::new(Counting { input: [&b"abc"[..]].into(), ..Default::default() });
        assert!(matches!(reader.poll_fill_bulk(&mut noop()), Poll::Ready(Ok(3))));
        assert!(reader.buffer.capacity() >= BULK_BYTES);
        let first = reader.buffer.split().freeze();
        assert!(reader.poll_fill_bulk(&mut noop()).is_pending());
        assert_eq!(reader.buffer.capacity(), 0);
        // What was handed on is not written over by the next user of the buffer.
        let mut other = Reader::new(Counting { input: [&b"xyz"[..]].into(), ..Default::default() });
        assert!(matches!(other.poll_fill_bulk(&mut noop()), Poll::Ready(Ok(3))));
        assert_eq!((&first[..], &other.buffer[..]), (&b"abc"[..], &b"xyz"[..]));
    }

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
