//! Bodies that somebody looks at as they pass. It must not know what for.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::SizeHint;
use tidegate_filters::http::{Body, BodyError, Frame};

/// Who looks at a body; it goes with the body and is dropped with it.
pub(super) trait Observe: Send {
    /// The next frame is asked for.
    fn before(&mut self, _: &mut Context<'_>) {}

    fn frame(&mut self, frame: &Frame);
}

/// A body that goes past `observer`. One that is at its end needs none.
pub(super) fn observe<O: Observe + 'static>(body: Body, observer: Box<O>) -> Body {
    if body.is_end() { body } else { Body::stream(Observed { body, observer }) }
}

/// A body whose bytes are counted.
pub(super) fn count(body: Body, bytes: &Arc<AtomicU64>) -> Body {
    if body.is_end() { body } else { observe(body, Box::new(Counter(Arc::clone(bytes)))) }
}

/// How much of a body a frame is.
pub(super) fn data_bytes(frame: &Frame) -> u64 {
    frame.data_ref().map_or(0, Bytes::len) as u64
}

struct Counter(Arc<AtomicU64>);

impl Observe for Counter {
    fn frame(&mut self, frame: &Frame) {
        self.0.fetch_add(data_bytes(frame), Relaxed);
    }
}

struct Observed<O> {
    body: Body,
    observer: Box<O>,
}

impl<O: Observe> http_body::Body for Observed<O> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        self.observer.before(cx);
        let polled = self.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.observer.frame(frame);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_counted_as_they_pass() {
        let bytes = Arc::<AtomicU64>::default();
        let mut body = count(Body::full(Bytes::from_static(b"abc")), &bytes);
        assert_eq!(bytes.load(Relaxed), 0);
        while body.frame().await.is_some() {}
        assert_eq!(bytes.load(Relaxed), 3);
        assert!(matches!(count(Body::Empty, &bytes), Body::Empty));
    }
}
