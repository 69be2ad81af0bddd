//! A response that the proxy itself makes. It must not know how replies are rewritten or mapped to gRPC:
//! that is the connection manager's.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::stream_info::ResponseFlags;

/// The details of a request that is longer than may be held.
pub const REQUEST_TOO_LARGE: &str = "request_payload_too_large";

/// The details of a response that is longer than may be held.
pub const RESPONSE_TOO_LARGE: &str = "response_payload_too_large";

/// A local reply, as a filter or the router asks for it (Envoy's `sendLocalReply`).
#[derive(Debug, Clone)]
pub struct LocalReply {
    pub status: StatusCode,
    /// Sent as `text/plain` unless `headers` says otherwise; becomes `grpc-message` for a gRPC request.
    pub body: Bytes,
    pub headers: HeaderMap,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    pub flags: ResponseFlags,
    /// Overrides the mapping from the HTTP status for gRPC requests.
    pub grpc_status: Option<u32>,
    /// Close the downstream connection after it.
    pub close: bool,
    /// A response of a filter's own: neither rewritten by `local_reply_config` nor mapped to gRPC.
    pub as_is: bool,
}

impl LocalReply {
    pub fn new(status: StatusCode, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            body: Bytes::new(),
            headers: HeaderMap::new(),
            details: details.into(),
            flags: ResponseFlags::empty(),
            grpc_status: None,
            close: false,
            as_is: false,
        }
    }

    /// What a client is told whose request is longer than a filter may hold.
    pub fn request_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, REQUEST_TOO_LARGE).body("Payload Too Large").close()
    }

    /// What a client is told when a response is longer than a filter may hold.
    pub fn response_too_large() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, RESPONSE_TOO_LARGE).body("Internal Server Error")
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub fn flag(mut self, flags: ResponseFlags) -> Self {
        self.flags |= flags;
        self
    }

    pub fn header(mut self, name: http::HeaderName, value: http::HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    pub fn grpc(mut self, status: u32) -> Self {
        self.grpc_status = Some(status);
        self
    }

    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    pub fn as_is(mut self) -> Self {
        self.as_is = true;
        self
    }
}
