//! Decodes a response's head. It must not know pools or requests beyond the method that decides about a body.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version};
use tidegate_filters::http::ResponseHead;

use super::Framing;
use super::fields::{FIELDS_ON_STACK, FieldRules, Fields, HeadEnd, HeadLimits, TransferEncoding, refused};
use crate::http::codec::CodecError;
use crate::http::protocol::Underscores;

/// A decoded head.
#[derive(Debug)]
pub(crate) struct DecodedResponse {
    pub head: ResponseHead,
    pub framing: Framing,
    /// Whether the connection may carry another request after this response (if nothing is left in the buffer then).
    pub keep_alive: bool,
    /// Of the fields alone, as Envoy counts them.
    pub field_bytes: usize,
}

/// Decodes one head from the front of `buffer`; `None` when it is not whole yet. `end` remembers what was looked at.
/// `tunnel` says that the request asked to leave HTTP. Heads of informational responses come as they are, one by one.
pub(crate) fn decode(
    buffer: &mut BytesMut,
    end: &mut HeadEnd,
    method: &Method,
    tunnel: bool,
    limits: &HeadLimits,
) -> Result<Option<DecodedResponse>, CodecError> {
    if buffer.first().is_some_and(|first| *first != b'H') {
        return Err(CodecError::MALFORMED);
    }
    let Some(length) = end.find(buffer, limits.max_bytes, |_| Ok(()))? else { return Ok(None) };
    let head = &buffer[..length];
    let decoded = if limits.max_headers <= FIELDS_ON_STACK {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
        parse(head, method, tunnel, limits, &mut fields[..limits.max_headers])?
    } else {
        // A field takes at least four bytes, so this is bounded by the head.
        let mut fields = vec![MaybeUninit::uninit(); limits.max_headers.min(head.len() / 4)];
        parse(head, method, tunnel, limits, &mut fields)?
    };
    buffer.advance(length);
    Ok(Some(decoded))
}

fn parse<'a>(
    head: &'a [u8],
    method: &Method,
    tunnel: bool,
    limits: &HeadLimits,
    fields: &mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<DecodedResponse, CodecError> {
    let mut parsed = httparse::Response::new(&mut []);
    let outcome = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, fields);
    match outcome {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(CodecError::MALFORMED),
        Err(error) => return Err(refused(error, head)),
    }
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else { return Err(CodecError::MALFORMED) };
    let status = StatusCode::from_u16(code).ok().filter(|_| code < 600).ok_or(CodecError::MALFORMED)?;
    let version = if minor == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let rules = FieldRules { request: false, underscores: Underscores::Allow, keep_spelling: limits.keep_spelling };
    let mut fields = Fields::collect(parsed.headers, &rules)?;
    let framing = framing(status, method, tunnel, &mut fields, limits)?;
    let persistent = match version {
        // The chunked coding is not HTTP/1.0's (RFC 9112 §6.1): it is believed once.
        Version::HTTP_10 => fields.connection.keep_alive && fields.transfer_encoding == TransferEncoding::Absent,
        _ => !fields.proxy_close,
    };
    let keep_alive = persistent && !fields.connection.close && framing != Framing::UntilClose;
    let mut response = ResponseHead::new(status);
    response.version = version;
    response.headers = fields.headers;
    response.spelling = fields.spelling;
    if let Some(spelling) = response.spelling.as_mut().filter(|_| limits.keep_spelling.is_some_and(|keep| keep.reason))
    {
        let reason = parsed.reason.filter(|reason| !reason.is_empty());
        spelling.reason = reason.map(|reason| Bytes::copy_from_slice(reason.as_bytes()));
    }
    Ok(DecodedResponse { head: response, framing, keep_alive, field_bytes: fields.bytes })
}

/// RFC 9112 §6.3, with what Envoy refuses: framing on 1xx and 204. An unasked 101 is refused too.
fn framing(
    status: StatusCode,
    method: &Method,
    tunnel: bool,
    fields: &mut Fields,
    limits: &HeadLimits,
) -> Result<Framing, CodecError> {
    let encoding = fields.transfer_encoding;
    if encoding != TransferEncoding::Absent && fields.content_length.is_some() {
        if encoding != TransferEncoding::Chunked || !limits.allow_chunked_length {
            return Err(CodecError::CONTENT_LENGTH_AND_CHUNKED);
        }
        fields.forget_length();
    }
    if encoding == TransferEncoding::Unsupported {
        return Err(CodecError::INVALID_TRANSFER_ENCODING);
    }
    let connected = *method == Method::CONNECT && status.is_success();
    if connected {
        // What they say of a body that CONNECT does not have is ignored (RFC 9110 §9.3.6).
        fields.forget_length();
        return Ok(Framing::UntilClose);
    }
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        if encoding != TransferEncoding::Absent {
            return Err(CodecError::TRANSFER_ENCODING_NOT_ALLOWED);
        }
        if fields.content_length.is_some_and(|length| length > 0) {
            return Err(CodecError::CONTENT_LENGTH_NOT_ALLOWED);
        }
        fields.forget_length();
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let asked = tunnel && *method != Method::CONNECT;
        return if asked { Ok(Framing::UntilClose) } else { Err(CodecError::UNASKED_UPGRADE) };
    }
    let bodyless = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || *method == Method::HEAD;
    Ok(match (bodyless, encoding, fields.content_length) {
        (true, ..) | (_, TransferEncoding::Absent, Some(0)) => Framing::None,
        (_, TransferEncoding::Absent, Some(length)) => Framing::Length(length),
        (_, TransferEncoding::Absent, None) => Framing::UntilClose,
        _ => Framing::Chunked,
    })
}
