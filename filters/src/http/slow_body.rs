//! A body at a limited speed: so many bytes a second, let through every 50 ms, as Envoy's `StreamRateLimiter` does.
//! It must not know why it is slow.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use super::{Body, BodyError, Frame};

const INTERVAL: Duration = Duration::from_millis(50);

pub(super) struct SlowBody {
    body: Body,
    bytes_per_second: f64,
    /// Bytes that may pass: those of one second at most, at first those of one interval.
    allowed: f64,
    counted: Instant,
    /// Of the piece that is passing.
    rest: Bytes,
    pause: Option<Pin<Box<Sleep>>>,
}

impl SlowBody {
    pub(super) fn wrap(body: Body, kib_per_second: u64) -> Body {
        if body.is_end() {
            return body;
        }
        let bytes_per_second = kib_per_second as f64 * 1024.0;
        let allowed = bytes_per_second * INTERVAL.as_secs_f64();
        let (counted, rest) = (Instant::now(), Bytes::new());
        Body::stream(Self { body, bytes_per_second, allowed, counted, rest, pause: None })
    }

    /// How many of the rest may pass now.
    fn take(&mut self) -> usize {
        let now = Instant::now();
        let more = (now - self.counted).as_secs_f64() * self.bytes_per_second;
        self.allowed = (self.allowed + more).min(self.bytes_per_second);
        self.counted = now;
        let taken = self.rest.len().min(self.allowed as usize);
        self.allowed -= taken as f64;
        taken
    }
}

impl http_body::Body for SlowBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            if self.rest.is_empty() {
                match ready!(self.body.poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => self.rest = data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                    end => return Poll::Ready(end),
                }
            }
            let taken = self.take();
            let passing = self.rest.split_to(taken);
            if !self.rest.is_empty() {
                self.pause = Some(Box::pin(tokio::time::sleep(INTERVAL)));
            }
            if !passing.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passing))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self.body.exact_len() {
            Some(length) => http_body::SizeHint::with_exact(length + self.rest.len() as u64),
            None => http_body::SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::whole;
    use crate::http::testing::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_as_fast_as_they_may() {
        let start = Instant::now();
        let trailers = header_map(&[("t", "1")]);
        let mut body = SlowBody::wrap(whole(vec![b'x'; 3000].into(), Some(trailers.clone())), 2);
        let (data, told) = drain(&mut body).await.unwrap();
        assert_eq!((data.len(), told), (3000, trailers));
        // 102 bytes at once, then 102.4 every 50 ms.
        assert_eq!(start.elapsed().as_millis() / 50, 29);
        assert!(SlowBody::wrap(Body::Empty, 1).is_end());
    }
}
