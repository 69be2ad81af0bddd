//! A transport whose bytes somebody counts. It must not know what becomes of the numbers.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;

/// Who is told what a transport reads and writes.
pub trait CountBytes: std::fmt::Debug + Send + Sync {
    /// So many bytes came with one read.
    fn read(&mut self, bytes: usize);

    /// So many bytes went with one write, and so many that it was given stay behind.
    fn wrote(&mut self, bytes: usize, left: usize);
}

/// A transport, and who counts its bytes.
#[derive(Debug)]
pub struct Counted {
    pub(super) inner: Transport,
    pub(super) count: Box<dyn CountBytes>,
}

impl Counted {
    fn note(&mut self, written: Poll<io::Result<usize>>, given: usize) -> Poll<io::Result<usize>> {
        let bytes = match &written {
            Poll::Ready(Ok(bytes)) => *bytes,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        self.count.wrote(bytes, given - bytes);
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.count.read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(written, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note(written, bufs.iter().map(|buf| buf.len()).sum())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[derive(Debug, Default, Clone)]
    struct Told(Arc<Mutex<(usize, usize, usize)>>);

    impl CountBytes for Told {
        fn read(&mut self, bytes: usize) {
            self.0.lock().0 += bytes;
        }

        fn wrote(&mut self, bytes: usize, left: usize) {
            let mut told = self.0.lock();
            told.1 += bytes;
            told.2 = left;
        }
    }

    #[tokio::test]
    async fn bytes_are_told_as_they_pass_and_those_that_stay_behind() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let told = Told::default();
        let mut transport = Transport::Unix(ours).counted(Box::new(told.clone()));
        theirs.write_all(b"abc").await.unwrap();
        let mut read = [0; 3];
        transport.read_exact(&mut read).await.unwrap();
        transport.write_all(b"hello").await.unwrap();
        assert_eq!(*told.0.lock(), (3, 5, 0));
        // Nobody reads: the socket is full at last.
        let filling = tokio::time::timeout(std::time::Duration::from_millis(50), async {
            loop {
                transport.write_all(&[0; 4096]).await.unwrap();
            }
        });
        filling.await.unwrap_err();
        assert!((1..=4096).contains(&told.0.lock().2), "{told:?}");
    }
}
