//! A message body as a bounded pipe that is pulled: whoever wants bytes polls, and nothing runs ahead of the reader.
//! It must not know which codec fills it; a filter changes a body by wrapping it in another one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::LocalReply;

/// A piece of a body: data or, last, trailers.
pub type Frame = http_body::Frame<Bytes>;

/// What reads as a body. Dropping it before its end resets the stream it comes from.
pub type BoxBody = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError> + Send>>;

/// The body of a request or a response.
#[derive(Default)]
pub enum Body {
    /// No body: END_STREAM on the headers, or no framing at all.
    #[default]
    Empty,
    /// A body that is whole; `None` once it was read.
    Full(Option<Bytes>),
    /// A body that arrives while it is read.
    Stream(BoxBody),
}

impl Body {
    /// A whole body; empty bytes make an empty body.
    pub fn full(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        if data.is_empty() { Self::Empty } else { Self::Full(Some(data)) }
    }

    /// A body that is produced while it is read.
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }

    /// Takes the body out, leaving an empty one: how a filter wraps it.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Whether nothing more will come. False may still turn out to be an empty stream.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty | Self::Full(None) => true,
            Self::Full(Some(_)) => false,
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    /// The length in bytes when it is known ahead.
    pub fn exact_len(&self) -> Option<u64> {
        match self {
            Self::Empty | Self::Full(None) => Some(0),
            Self::Full(Some(data)) => Some(data.len() as u64),
            Self::Stream(body) => body.size_hint().exact(),
        }
    }

    /// The next piece; `None` at the end.
    pub async fn frame(&mut self) -> Option<Result<Frame, BodyError>> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// The next piece, polled.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(data) => Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Self::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        Body::poll_frame(&mut self, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_end()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Stream(body) => body.size_hint(),
            known => http_body::SizeHint::with_exact(known.exact_len().unwrap_or(0)),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(data) => write!(f, "Full({})", data.as_ref().map_or(0, Bytes::len)),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// What is left of a body: its data and its trailers; `None` when there is more than the limit.
///
/// # Errors
/// The body ends before its end.
pub async fn read_whole(body: &mut Body, most_bytes: usize) -> Result<Option<(Bytes, Option<HeaderMap>)>, BodyError> {
    let mut data = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(piece) if data.len() + piece.len() > most_bytes => return Ok(None),
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => return Ok(Some((data.freeze(), frame.into_trailers().ok()))),
        }
    }
    Ok(Some((data.freeze(), None)))
}

/// Reads up to `most_bytes` ahead until something else is over; the body then begins with what was read.
pub async fn read_ahead(body: &mut Body, most_bytes: usize, until: impl Future<Output = ()>) {
    let mut until = std::pin::pin!(until);
    let mut read = VecDeque::new();
    let (mut bytes, mut ended) = (0, body.is_end());
    while !ended && bytes < most_bytes {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut until => break,
        };
        ended = !matches!(&frame, Some(Ok(frame)) if !frame.is_trailers()) || body.is_end();
        bytes += frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        read.extend(frame);
    }
    if ended || bytes >= most_bytes {
        until.await;
    }
    if !read.is_empty() {
        *body = Body::stream(Ahead { read, rest: if ended { Body::Empty } else { body.take() } });
    }
}

struct Ahead {
    read: VecDeque<Result<Frame, BodyError>>,
    rest: Body,
}

impl http_body::Body for Ahead {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.rest.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end()
    }
}

/// Reads a body to its end and drops it.
///
/// # Errors
/// The body ends before its end.
pub async fn discard(body: &mut Body) -> Result<(), BodyError> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

/// A whole body with its trailers.
pub fn whole(data: Bytes, trailers: Option<HeaderMap>) -> Body {
    match trailers {
        None => Body::full(data),
        Some(trailers) => {
            Body::stream(Whole { data: Some(data).filter(|data| !data.is_empty()), trailers: Some(trailers) })
        }
    }
}

struct Whole {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let data = self.data.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }
}

/// Why a body ended before its end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BodyError {
    /// The peer that sends it closed its connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer that sends it reset the stream (HTTP/2 error code).
    #[error("the peer reset the stream with code {0}")]
    Reset(u32),
    /// The bytes are not a body; the text is Envoy's response code detail.
    #[error("malformed body: {0}")]
    Malformed(&'static str),
    /// Nothing arrived for too long.
    #[error("timed out")]
    TimedOut,
    /// A filter ends the exchange with this reply (while response headers are not sent; then it is a reset).
    #[error("ended by a filter: {0:?}")]
    Reply(Box<LocalReply>),
}

/// Trailers, when a frame carries them.
pub fn into_trailers(frame: Frame) -> Option<HeaderMap> {
    frame.into_trailers().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::{drain, header_map};

    #[tokio::test(start_paused = true)]
    async fn what_was_read_ahead_is_not_lost() {
        let start = tokio::time::Instant::now();
        let trailers = header_map(&[("t", "1")]);
        for most in [1, 100] {
            let mut body = whole(Bytes::from_static(b"abc"), Some(trailers.clone()));
            let second = std::time::Duration::from_secs(1);
            read_ahead(&mut body, most, tokio::time::sleep(second)).await;
            assert_eq!(drain(&mut body).await.unwrap(), (b"abc".to_vec(), trailers.clone()));
        }
        assert_eq!(start.elapsed().as_secs(), 2);
    }
}
