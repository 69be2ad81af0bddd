//! Bytes both ways between two transports, half closes kept, with never more than a buffer in between.
//! It must not know whom they belong to.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Transport;

/// Why a pipe ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both directions, the named side last.
    Done(Side),
    Idle,
    /// Bytes came from downstream while the pipe was to leave.
    Leaving,
    /// A side failed.
    Failed(Side, io::ErrorKind),
}

/// One end of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Down,
    Up,
}

/// Both directions of one connection.
pub(super) struct Pipe {
    down: Transport,
    up: Transport,
    upward: Copy,
    downward: Copy,
    last: Instant,
    first_to_end: Option<Side>,
}

/// Bytes that were moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) read: u64,
    pub(super) written: u64,
}

impl Pipe {
    /// `early` was read from downstream already and goes up first.
    pub(super) fn new(down: Transport, up: Transport, early: Vec<u8>) -> Self {
        let upward = Copy {
            end: early.len(),
            moved: Moved { read: early.len() as u64, written: 0 },
            buffer: early,
            ..Copy::default()
        };
        Self { down, up, upward, downward: Copy::default(), last: Instant::now(), first_to_end: None }
    }

    /// Closes both sides with a reset.
    pub(super) fn abort(self) {
        self.down.abort();
        self.up.abort();
    }

    /// From downstream to the host, and back.
    pub(super) fn moved(&self) -> (Moved, Moved) {
        (self.upward.moved, self.downward.moved)
    }

    /// Moves bytes until both directions have ended, a side has failed, nothing has moved for `idle`, or bytes have while
    /// `leaves` says so.
    pub(super) async fn run(&mut self, idle: Option<Duration>, leaves: &(dyn Fn() -> bool + Sync)) -> Ended {
        loop {
            let last = self.last;
            let moving = std::future::poll_fn(|cx| self.poll(leaves, cx));
            let Some(idle) = idle else { return moving.await };
            tokio::select! {
                biased;
                ended = moving => return ended,
                () = tokio::time::sleep_until((last + idle).into()) => {}
            }
            if self.last == last {
                return Ended::Idle;
            }
        }
    }

    fn poll(&mut self, leaves: &(dyn Fn() -> bool + Sync), cx: &mut Context<'_>) -> Poll<Ended> {
        let before = (self.upward.moved, self.downward.moved);
        let upward = self.upward.poll(&mut self.down, &mut self.up, cx);
        if before.0 != self.upward.moved && leaves() {
            return Poll::Ready(Ended::Leaving);
        }
        let downward = self.downward.poll(&mut self.up, &mut self.down, cx);
        if before != (self.upward.moved, self.downward.moved) {
            self.last = Instant::now();
        }
        if before.1 != self.downward.moved && leaves() {
            return Poll::Ready(Ended::Leaving);
        }
        let failed = |side: Side, error: Failure| match error {
            Failure::Read(kind) => Ended::Failed(side, kind),
            Failure::Write(kind) => Ended::Failed(side.other(), kind),
        };
        // Of both, the host's failure says more.
        if let Poll::Ready(Err(error)) = downward {
            return Poll::Ready(failed(Side::Up, error));
        }
        if let Poll::Ready(Err(error)) = upward {
            return Poll::Ready(failed(Side::Down, error));
        }
        match (upward.is_ready(), downward.is_ready()) {
            (true, true) => Poll::Ready(Ended::Done(self.first_to_end.unwrap_or(Side::Down).other())),
            (up, down) => {
                if self.first_to_end.is_none() {
                    self.first_to_end = up.then_some(Side::Down).or(down.then_some(Side::Up));
                }
                Poll::Pending
            }
        }
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Down => Self::Up,
            Self::Up => Self::Down,
        }
    }
}

const BUFFER_BYTES: usize = 16 << 10;

#[derive(Debug)]
enum Failure {
    Read(io::ErrorKind),
    Write(io::ErrorKind),
}

/// One direction: what was read is written before more is read, which is all the backpressure there needs to be.
#[derive(Default)]
struct Copy {
    /// Only there while bytes are on their way.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    moved: Moved,
    ended: bool,
    closed: bool,
}

impl Copy {
    fn poll(&mut self, from: &mut Transport, to: &mut Transport, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let writing = |error: io::Error| Failure::Write(error.kind());
        loop {
            while self.start < self.end {
                let write = Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..self.end]);
                let n = ready!(write).map_err(writing)?;
                if n == 0 {
                    return Poll::Ready(Err(Failure::Write(io::ErrorKind::WriteZero)));
                }
                self.start += n;
                self.moved.written += n as u64;
            }
            if self.ended {
                if !self.closed {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(writing)?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            if self.buffer.len() < BUFFER_BYTES {
                self.buffer.resize(BUFFER_BYTES, 0);
            }
            let mut read = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                Poll::Ready(result) => {
                    let n = read.filled().len();
                    result.map_err(|error| Failure::Read(error.kind()))?;
                    (self.start, self.end) = (0, n);
                    self.moved.read += n as u64;
                    self.ended = n == 0;
                }
                Poll::Pending => {
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(writing)?;
                    self.buffer = Vec::new();
                    return Poll::Pending;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    fn pair() -> (Transport, UnixStream) {
        let (inside, outside) = UnixStream::pair().unwrap();
        (Transport::Unix(inside), outside)
    }

    #[tokio::test]
    async fn early_bytes_go_first_and_who_ends_last_is_told() {
        let ((down, mut client), (up, mut host)) = (pair(), pair());
        let running = tokio::spawn(async move {
            let mut pipe = Pipe::new(down, up, b"early ".to_vec());
            let ended = pipe.run(None, &|| false).await;
            (ended, pipe.moved())
        });
        client.write_all(b"late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut read = Vec::new();
        host.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"early late");
        host.write_all(b"bye").await.unwrap();
        drop(host);
        let (ended, moved) = running.await.unwrap();
        assert!(matches!(ended, Ended::Done(Side::Up)), "{ended:?}");
        assert_eq!(moved, (Moved { read: 10, written: 10 }, Moved { read: 3, written: 3 }));
    }

    #[tokio::test]
    async fn who_leaves_does_so_after_the_next_bytes() {
        let ((down, mut client), (up, mut host)) = (pair(), pair());
        let mut pipe = Pipe::new(down, up, Vec::new());
        client.write_all(b"last").await.unwrap();
        assert!(matches!(pipe.run(None, &|| true).await, Ended::Leaving));
        drop(pipe);
        let mut read = Vec::new();
        host.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"last");
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_bounds_what_is_taken() {
        let ((down, mut client), (up, _host)) = (pair(), pair());
        let mut pipe = Pipe::new(down, up, Vec::new());
        let piece = vec![0; 64 << 10];
        let writing = async {
            loop {
                client.write_all(&piece).await.unwrap();
            }
        };
        // Both sockets' buffers fill, and then nothing moves any more: the pipe is idle with a writer that waits.
        tokio::select! {
            ended = pipe.run(Some(Duration::from_millis(50)), &|| false) => assert!(matches!(ended, Ended::Idle), "{ended:?}"),
            () = writing => unreachable!(),
        }
        let (upward, _) = pipe.moved();
        assert!(upward.read - upward.written <= BUFFER_BYTES as u64, "{upward:?}");
    }
}
