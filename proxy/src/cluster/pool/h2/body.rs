//! The body of a response over HTTP/2, read as the client takes it. It must not know heads.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use tidegate_filters::http::BodyError;

use super::stream::StreamGuard;
use crate::cluster::pool::StreamReset;
use crate::http::codec::h2::body_error;
use crate::http::codec::h2::fields_bytes;

/// A response's body: dropped before its end, the stream is reset.
pub(super) struct ResponseBody {
    pub(super) receiving: RecvStream,
    pub(super) stream: StreamGuard,
    pub(super) data_done: bool,
}

impl ResponseBody {
    fn failed(&mut self, error: &h2::Error) -> BodyError {
        let reset = self.stream.reset_of(error);
        self.stream.failed(error);
        match reset {
            StreamReset::Protocol => BodyError::Malformed("http2.protocol_error"),
            _ => body_error(error),
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        if !self.data_done {
            match ready!(self.receiving.poll_data(cx)) {
                Some(Ok(data)) => {
                    // What was handed on is no more the connection's: let the host send as much again.
                    let _ = self.receiving.flow_control().release_capacity(data.len());
                    self.stream.over = self.receiving.is_end_stream();
                    return Poll::Ready(Some(Ok(http_body::Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.failed(&error)))),
                None => self.data_done = true,
            }
        }
        match ready!(self.receiving.poll_trailers(cx)) {
            Ok(trailers) => {
                self.stream.over = true;
                if let (Some(trailers), Some(counted)) = (&trailers, &self.stream.counted) {
                    counted.bytes.add_received_fields(fields_bytes(trailers) as u64);
                }
                Poll::Ready(trailers.map(|trailers| Ok(http_body::Frame::trailers(trailers))))
            }
            Err(error) => Poll::Ready(Some(Err(self.failed(&error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.receiving.is_end_stream()
    }
}
