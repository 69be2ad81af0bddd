//! Responses of a stream as gRPC's frames. Each is encoded into a buffer of its own, which is freed once it is sent: tonic's own
//! encoder keeps one as long as the longest response for as long as the stream lasts, which for a proxy is for ever.
//! It must not know what a response says.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::Frame;
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::discovery::Responses;

/// The length of what stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The answer to a call whose responses are these.
pub(super) fn respond<T: prost::Message + 'static>(responses: Responses<T>) -> http::Response<tonic::body::Body> {
    let mut response = http::Response::new(tonic::body::Body::new(Frames { responses, ended: false }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

struct Frames<T> {
    responses: Responses<T>,
    ended: bool,
}

impl<T: prost::Message> http_body::Body for Frames<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(Pin::new(&mut self.responses).poll_next(context));
        Poll::Ready(Some(match next {
            Some(Ok(message)) => frame(&message),
            Some(Err(status)) => self.end(&status),
            None => self.end(&Status::new(Code::Ok, "")),
        }))
    }
}

impl<T> Frames<T> {
    fn end(&mut self, status: &Status) -> Result<Frame<Bytes>, Status> {
        self.ended = true;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Ok(Frame::trailers(trailers))
    }
}

fn frame(message: &impl prost::Message) -> Result<Frame<Bytes>, Status> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).map_err(|_| Status::internal("a response of more than 4 GiB"))?;
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(prefix);
    message.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Frame::data(bytes.freeze()))
}
