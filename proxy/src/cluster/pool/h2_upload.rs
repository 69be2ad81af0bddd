//! A request's body on its way up an HTTP/2 stream, as the host's window allows.
//! It must not know who reads the response.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use tidegate_filters::http::Body;

use crate::http::codec::h2::fields_bytes;
use crate::http::wire_bytes::WireBytes;

/// The request's body on its way up.
pub(super) struct Upload {
    pub(super) body: Body,
    pub(super) sending: SendStream<Bytes>,
    /// Read from the body, not yet within the host's window.
    pub(super) chunk: Bytes,
    pub(super) last: bool,
    /// The body ended with an error.
    pub(super) broken: bool,
    /// Set once all is with the connection.
    pub(super) uploaded: Arc<AtomicBool>,
    /// Where its bytes are counted, if anybody asks.
    pub(super) bytes: Option<Arc<WireBytes>>,
}

impl Upload {
    /// Ready when all is with the host, or it takes no more.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.broken {
            return Poll::Pending;
        }
        loop {
            if !self.chunk.is_empty() {
                self.sending.reserve_capacity(self.chunk.len());
                match ready!(self.sending.poll_capacity(cx)) {
                    Some(Ok(room)) => {
                        let piece = self.chunk.split_to(room.min(self.chunk.len()));
                        let end = self.last && self.chunk.is_empty();
                        if self.sending.send_data(piece, end).is_err() || end {
                            self.uploaded.store(end, Relaxed);
                            return Poll::Ready(());
                        }
                    }
                    _ => return Poll::Ready(()),
                }
                continue;
            }
            if let Poll::Ready(Ok(_)) | Poll::Ready(Err(_)) = self.sending.poll_reset(cx) {
                return Poll::Ready(());
            }
            match ready!(self.body.poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.last = self.body.is_end();
                        if data.is_empty() && self.last {
                            let _ = self.sending.send_data(data, true);
                            self.uploaded.store(true, Relaxed);
                            return Poll::Ready(());
                        }
                        self.chunk = data;
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            if let Some(bytes) = &self.bytes {
                                bytes.add_sent_fields(fields_bytes(&trailers) as u64);
                            }
                            let _ = self.sending.send_trailers(trailers);
                        }
                        self.uploaded.store(true, Relaxed);
                        return Poll::Ready(());
                    }
                },
                // Whoever reads the body learns of that too, and gives the stream up: it is no failure of the host's.
                Some(Err(_)) => {
                    self.broken = true;
                    return Poll::Pending;
                }
                None => {
                    let _ = self.sending.send_data(Bytes::new(), true);
                    self.uploaded.store(true, Relaxed);
                    return Poll::Ready(());
                }
            }
        }
    }
}
