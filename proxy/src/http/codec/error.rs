//! Why bytes are no HTTP/1 message, and what the peer who sent them is told, in Envoy's words.
//! It must not know connections: whoever reads decides what is still to be answered.

use http::StatusCode;
use tidegate_filters::http::LocalReply;
use tidegate_filters::stream_info::ResponseFlags;

/// A message that cannot be accepted. The connection it came on is of no more use.
///
/// From an upstream each of them means a protocol error (502, `UPE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{details}")]
pub(crate) struct CodecError {
    /// What to answer, when it was a request.
    pub status: StatusCode,
    /// Envoy's response code details.
    pub details: &'static str,
    /// The body of the answer.
    pub body: &'static str,
}

impl CodecError {
    /// Not the grammar of RFC 9112: start line, field line, `content-length`, chunk.
    pub(crate) const MALFORMED: Self = Self::bad("http1.codec_error");
    /// Control characters in a head or in trailers.
    pub(crate) const INVALID_CHARACTERS: Self = Self::bad("http1.invalid_characters");
    pub(crate) const INVALID_URL: Self = Self::bad("http1.invalid_url");
    /// A request target with a scheme other than `http` and `https`.
    pub(crate) const INVALID_SCHEME: Self = Self::bad("http1.invalid_scheme");
    /// `host` with bytes that no host has, with user information, or more than one of it.
    pub(crate) const INVALID_AUTHORITY: Self = Self::bad("http.invalid_authority");
    /// `https://` asked for on a connection without TLS.
    pub(crate) const HTTPS_ON_PLAINTEXT: Self =
        Self { status: StatusCode::FORBIDDEN, details: "http1.https_url_on_plaintext_connection", body: "Forbidden" };
    pub(crate) const UNEXPECTED_UNDERSCORE: Self = Self::bad("http1.unexpected_underscore");
    pub(crate) const HEADERS_TOO_LARGE: Self = Self::too_large("http1.headers_too_large");
    pub(crate) const TOO_MANY_HEADERS: Self = Self::too_large("http1.too_many_headers");
    /// HTTP/1.0 where it is not configured, HTTP/0.9, HTTP/2.0 in HTTP/1's clothes.
    pub(crate) const LOW_VERSION: Self =
        Self { status: StatusCode::UPGRADE_REQUIRED, details: "low_version", body: "Upgrade Required" };
    /// `connection` nominates too many fields, or one that must not be removed.
    pub(crate) const CONNECTION_HEADER_REJECTED: Self = Self::bad("http1.connection_header_rejected");
    /// A transfer coding other than exactly `chunked`.
    pub(crate) const INVALID_TRANSFER_ENCODING: Self = Self::not_implemented("http1.invalid_transfer_encoding");
    /// `transfer-encoding` where none may be: HTTP/1.0 requests, 1xx and 204.
    pub(crate) const TRANSFER_ENCODING_NOT_ALLOWED: Self = Self::bad("http1.transfer_encoding_not_allowed");
    pub(crate) const CONTENT_LENGTH_AND_CHUNKED: Self = Self::bad("http1.content_length_and_chunked_not_allowed");
    /// `content-length` on 1xx and 204.
    pub(crate) const CONTENT_LENGTH_NOT_ALLOWED: Self = Self::bad("http1.content_length_not_allowed");
    /// A body on CONNECT or on an upgrade.
    pub(crate) const BODY_DISALLOWED: Self = Self::bad("http1.body_disallowed");
    /// 101 that nobody asked for.
    pub(crate) const UNASKED_UPGRADE: Self = Self::bad("http1.unexpected_101");

    const fn bad(details: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, details, body: "Bad Request" }
    }

    const fn too_large(details: &'static str) -> Self {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Self { status, details, body: "Request Header Fields Too Large" }
    }

    const fn not_implemented(details: &'static str) -> Self {
        Self { status: StatusCode::NOT_IMPLEMENTED, details, body: "Not Implemented" }
    }

    /// The reply to a request that it was found in; the connection closes after it.
    pub(crate) fn into_reply(self) -> LocalReply {
        LocalReply::new(self.status, self.details)
            .body(self.body)
            .flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR)
            .close()
    }
}
