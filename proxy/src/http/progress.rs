//! How far a request's body has come: bytes, when the last ones arrived, whether all did.
//! Shared between whoever pulls the body and the stream's timers and logs; it must not know either.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tidegate_filters::http::{Body, BodyError, LocalReply};
use tokio::sync::Notify;

/// What has arrived of a body.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    last_nanos: AtomicU64,
    bytes: AtomicU64,
    done: AtomicBool,
    failure: Mutex<Option<BodyError>>,
    failed: AtomicBool,
    finished: Notify,
}

impl Progress {
    pub(crate) fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self {
            start,
            last_nanos: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            done: AtomicBool::new(false),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
            finished: Notify::new(),
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(crate) fn last(&self) -> Instant {
        self.start + Duration::from_nanos(self.last_nanos.load(Relaxed))
    }

    /// Whether the body has arrived whole.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Relaxed)
    }

    /// Why the body will never arrive whole; told once.
    pub(crate) fn take_failure(&self) -> Option<BodyError> {
        if self.failed.load(Relaxed) { self.failure.lock().take() } else { None }
    }

    /// What a filter has answered a body with that it found fault with; told once.
    pub(crate) fn take_reply(&self) -> Option<Box<LocalReply>> {
        if !self.failed.load(Relaxed) {
            return None;
        }
        let mut failure = self.failure.lock();
        match failure.take() {
            Some(BodyError::Reply(reply)) => Some(reply),
            other => {
                *failure = other;
                None
            }
        }
    }

    /// Someone on the body's way ended it: the first reason counts.
    fn fail(&self, error: BodyError) {
        *self.failure.lock() = Some(error);
        self.failed.store(true, Relaxed);
    }

    /// Waits until the body has arrived whole.
    pub(crate) async fn done(&self) {
        loop {
            let finished = self.finished.notified();
            if self.is_done() {
                return;
            }
            finished.await;
        }
    }

    fn arrived(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.last_nanos.store(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn finish(&self) {
        if !self.done.swap(true, Relaxed) {
            self.finished.notify_waiters();
        }
    }
}

/// A body that tells its progress.
pub(crate) struct Counted {
    inner: Body,
    progress: Arc<Progress>,
}

impl Counted {
    pub(crate) fn new(inner: Body, progress: Arc<Progress>) -> Self {
        Self { inner, progress }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = std::task::ready!(self.inner.poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => self.progress.arrived(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(error)) => {
                // It is at its end, but not whole.
                self.progress.fail(error.clone());
                return Poll::Ready(polled);
            }
            None => self.progress.finish(),
        }
        if self.inner.is_end() {
            self.progress.finish();
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.inner)
    }
}

/// A body that filters have wrapped: a reply that one of them ends it with is told to the stream.
pub(crate) struct Watched {
    inner: Body,
    progress: Arc<Progress>,
}

impl Watched {
    pub(crate) fn new(inner: Body, progress: Arc<Progress>) -> Self {
        Self { inner, progress }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = std::task::ready!(self.inner.poll_frame(cx));
        if let Some(Err(error @ BodyError::Reply(_))) = &polled {
            self.progress.fail(error.clone());
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.inner)
    }
}
