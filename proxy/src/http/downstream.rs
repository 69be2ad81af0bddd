//! What an exchange needs of the codec that its request came through: one narrow trait, two implementations.
//! It must not know routes or upstreams.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Version};
use tidegate_filters::http::ResponseHead;

/// Why the client's side ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The connection was closed or cut.
    Closed,
    /// The client reset the stream.
    Reset,
    /// The client broke the protocol while it sent the body.
    ProtocolError(&'static str),
    /// The client broke the protocol of the connection that it shares with other requests.
    Broken,
    /// The connection's time is over (drain, overload).
    Cut,
}

/// How a response's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyLength {
    /// Headers end the response.
    None,
    /// `content-length` says; it is in the headers.
    Known(u64),
    Unknown,
    /// A tunnel: bytes as they are, until either side closes.
    Tunnel,
}

/// The client's side of one exchange. Sending queues; `poll_flush` moves bytes, and `poll_ready` holds back whoever sends
/// faster than the client reads.
pub(crate) trait Downstream: Send {
    fn version(&self) -> Version;

    /// Tells a client that waits for it to send its body.
    fn send_continue(&mut self);

    /// An informational response (never 101).
    fn send_informational(&mut self, head: &ResponseHead);

    /// The response's head. With `BodyLength::None` the response is complete. What it says of the connection, if it does.
    fn send_head(&mut self, head: &ResponseHead, length: BodyLength) -> Option<&'static str>;

    /// A piece of the body; `end` completes the response.
    fn send_data(&mut self, data: Bytes, end: bool);

    /// Completes the response with trailers (dropped where the client cannot take them).
    fn send_trailers(&mut self, trailers: HeaderMap);

    /// Completes a response whose body ended without a last piece.
    fn send_end(&mut self);

    /// Ready when more may be queued.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;

    /// Ready when all that was queued is with the transport.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;

    /// Ready when the client has gone; polled while nothing else would notice.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone>;

    /// Cuts the response short so that the client can tell.
    fn reset(&mut self, reason: ResetReason);

    /// Asks that the connection close (HTTP/1) or go away (HTTP/2) after this response.
    fn close_after(&mut self);

    /// Bytes of the request as they came: of its fields, and all on the wire but for a body that somebody still reads.
    fn received_bytes(&self) -> (u64, u64);

    /// Bytes of fields before any compression: those of the request, and those sent.
    fn field_bytes(&self) -> (u64, u64);

    /// Body bytes sent as the access log counts them, those of fields, and all bytes on the wire.
    fn sent_bytes(&self) -> (u64, u64, u64);
}

/// Why a response is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResetReason {
    Internal,
    /// The upstream's stream was reset or its connection cut.
    UpstreamReset,
}
