//! A WebSocket handshake that the host answers otherwise over HTTP/1: a response that is neither agreement nor error goes on
//! without its body, as in Envoy (RFC 6455, 4.1). It must not know how attempts are sent.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, StatusCode, Version};
use tidegate_filters::http::{LocalReply, RequestHead};

use super::attempt::Failure;
use crate::cluster::pool::Begun;

/// Takes a response as it is, or as the reply that is made of it.
pub(super) fn check(tunnel: bool, request: &RequestHead, begun: Begun) -> Result<Begun, Failure> {
    let status = begun.response.head.status;
    let agreed = status == StatusCode::SWITCHING_PROTOCOLS;
    let http1 = begun.response.head.version < Version::HTTP_2;
    if !tunnel || !http1 || agreed || status.as_u16() >= 400 || !is_websocket(&request.headers) {
        return Ok(begun);
    }
    let mut reply = LocalReply::new(status, "websocket_handshake_unsuccessful");
    reply.headers = begun.response.head.headers;
    for framing in [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, UPGRADE] {
        reply.headers.remove(framing);
    }
    Err(Failure::Replied(Box::new(reply)))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}
