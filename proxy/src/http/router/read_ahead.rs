//! A request's body read while its try waits for a connection, up to a limit: a client that has said all is not kept
//! waiting to say it, and the time for the answer begins. It must not know what is waited for.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tidegate_filters::http::{Body, BodyError, Frame};

/// A body, and what was read of it.
pub(super) struct ReadAhead {
    body: Body,
    read: VecDeque<Result<Frame, BodyError>>,
    bytes: usize,
    limit_bytes: usize,
}

impl ReadAhead {
    pub(super) fn new(body: Body, limit_bytes: usize) -> Self {
        Self { body, read: VecDeque::new(), bytes: 0, limit_bytes }
    }

    /// Reads as long as `wait` is not ready.
    pub(super) async fn while_waiting<T>(&mut self, mut wait: Pin<&mut impl Future<Output = T>>) -> T {
        std::future::poll_fn(|cx| {
            let polled = wait.as_mut().poll(cx);
            if polled.is_pending() {
                self.read(cx);
            }
            polled
        })
        .await
    }

    fn read(&mut self, cx: &mut Context<'_>) {
        while self.bytes < self.limit_bytes && matches!(self.body, Body::Stream(_)) && !self.body.is_end() {
            match self.body.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.bytes += frame.data_ref().map_or(0, Bytes::len);
                    self.read.push_back(Ok(frame));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.read.push_back(Err(error));
                    self.body = Body::Empty;
                }
                Poll::Ready(None) => self.body = Body::Empty,
                Poll::Pending => return,
            }
        }
    }

    /// The body from its beginning.
    pub(super) fn into_body(self) -> Body {
        if self.read.is_empty() { self.body } else { Body::stream(self) }
    }
}

impl http_body::Body for ReadAhead {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.body.is_end()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tidegate_filters::http::body;

    use super::*;

    #[tokio::test]
    async fn what_was_read_while_waiting_comes_first() {
        let mut ahead = ReadAhead::new(body::whole("hello".into(), Some(http::HeaderMap::new())), 3);
        let mut polls = 0;
        let ready = std::future::poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls > 1 { Poll::Ready(7) } else { Poll::Pending }
        });
        assert_eq!(ahead.while_waiting(pin!(ready)).await, 7);
        assert_eq!((ahead.bytes, ahead.read.len()), (5, 1));
        let mut body = ahead.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        assert!(body.frame().await.unwrap().unwrap().is_trailers());
        assert!(body.is_end());
    }

    #[tokio::test]
    async fn a_body_that_nobody_waited_with_stays_what_it_is() {
        let mut ahead = ReadAhead::new(Body::full("hello"), 3);
        ahead.while_waiting(pin!(std::future::ready(()))).await;
        assert_eq!(ahead.into_body().exact_len(), Some(5));
    }
}
