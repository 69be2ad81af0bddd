//! The body of a response over HTTP/1: it holds the connection until its end. It must not know heads.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tidegate_filters::http::BodyError;

use super::{BULK_BYTES, Lease, SharedWriter};
use crate::http::codec::CodecError;
use crate::http::codec::h1::body::{BodyDecoder, Piece};
use crate::http::codec::h1::fields::trailer_bytes;
use crate::http::wire_bytes::WireBytes;

/// Whether it left HTTP: then the host ends it only together with its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tunnel {
    None,
    Upgrade,
    Connect,
}

/// A response's body. The connection goes back to its pool at the end; dropped before, it is closed.
pub(super) struct ResponseBody {
    pub(super) lease: Option<Lease>,
    pub(super) decoder: BodyDecoder,
    pub(super) keep_alive: bool,
    pub(super) tunnel: Tunnel,
    /// Not all of the request will go up: the connection ends with it under way.
    pub(super) unsent: bool,
    pub(super) trailers: bool,
    /// Where the pump leaves the writing half, if it has it.
    pub(super) writer: Option<SharedWriter>,
    /// Where its bytes are counted, if anybody asks.
    pub(super) bytes: Option<Arc<WireBytes>>,
}

impl ResponseBody {
    fn finish(&mut self) {
        let Some(mut lease) = self.lease.take() else { return };
        let mut reusable = self.keep_alive;
        if let Some(connection) = &mut lease.connection {
            reusable &= connection.reader.buffer.is_empty();
            connection.open.unfinished = self.unsent;
            if let Some(shared) = &self.writer {
                match shared.lock().take() {
                    Some(writer) => connection.writer = writer,
                    None => (reusable, connection.open.unfinished) = (false, true),
                }
            }
        }
        lease.finish(reusable);
    }

    /// The host sends no more: what is wrong with that, if something is. `orderly` says that it was no reset, which is never
    /// the end of a body. Envoy takes a body that breaks off for a protocol error.
    fn cut(&mut self, orderly: bool) -> Option<BodyError> {
        let endless = matches!(self.decoder, BodyDecoder::UntilClose);
        let connection = self.lease.as_mut().and_then(|lease| lease.connection.as_mut())?;
        // Like Envoy the proxy is who ends a CONNECT, once the host has nothing more to say.
        connection.open.remote = self.tunnel != Tunnel::Connect || !orderly;
        if orderly && self.tunnel == Tunnel::None && self.decoder.end_of_input() {
            return None;
        }
        if endless {
            return Some(BodyError::Closed);
        }
        connection.open.cluster.stats().traffic.upstream_cx_protocol_error().inc();
        Some(BodyError::Malformed(CodecError::MALFORMED.details))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        let Some(connection) = self.lease.as_mut().and_then(|lease| lease.connection.as_mut()) else {
            return Poll::Ready(None);
        };
        loop {
            let buffered = connection.reader.buffer.len();
            let decoded = self.decoder.decode(&mut connection.reader.buffer);
            if let Some(bytes) = &self.bytes {
                bytes.add_received(0, (buffered - connection.reader.buffer.len()) as u64);
            }
            match decoded {
                Ok(Some(piece)) => {
                    if let (Piece::End(Some(trailers)), Some(bytes)) = (&piece, &self.bytes) {
                        bytes.add_received(trailer_bytes(trailers), 0);
                    }
                    return Poll::Ready(Some(Ok(piece)));
                }
                Ok(None) => {}
                Err(error) => {
                    connection.open.cluster.stats().traffic.upstream_cx_protocol_error().inc();
                    return Poll::Ready(Some(Err(BodyError::Malformed(error.details))));
                }
            }
            let filled = match self.decoder.remaining() {
                Some(left) if left < BULK_BYTES => connection.reader.poll_fill(cx),
                _ => connection.reader.poll_fill_bulk(cx),
            };
            match ready!(filled) {
                Ok(n) if n > 0 => {}
                outcome => return Poll::Ready(self.cut(outcome.is_ok()).map(Err)),
            }
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
        let frame = match ready!(self.poll_piece(cx)) {
            Some(Ok(Piece::Data(data))) => Some(Ok(http_body::Frame::data(data))),
            Some(Ok(Piece::End(Some(trailers)))) if self.trailers => Some(Ok(http_body::Frame::trailers(trailers))),
            Some(Ok(Piece::End(_))) | None => None,
            Some(Err(error)) => {
                self.lease = None;
                return Poll::Ready(Some(Err(error)));
            }
        };
        if frame.is_none() || self.decoder.is_done() {
            self.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.lease.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self.decoder.remaining() {
            Some(left) => http_body::SizeHint::with_exact(left),
            None => http_body::SizeHint::default(),
        }
    }
}
