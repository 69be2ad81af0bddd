//! Makes a response of a local reply: rewritten by `local_reply_config`, mapped to gRPC for gRPC requests
//! (Envoy's `Utility::prepareLocalReply`). It must not know who asked for the reply nor how it is sent.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tidegate_filters::access_log::Filter;
use tidegate_filters::format::{FormatContext, SubstitutionFormat};
use tidegate_filters::http::{Body, LocalReply, RequestHead, Response, ResponseHead};
use tidegate_filters::stream_info::StreamInfo;

use super::headers::{GRPC_MESSAGE, GRPC_STATUS};
use crate::route::{HeaderMutations, Route};

/// `local_reply_config`, compiled.
#[derive(Default)]
pub struct LocalReplyRules {
    pub mappers: Vec<Mapper>,
    /// `body_format`: the body and its content type.
    pub format: Option<BodyFormat>,
}

/// One `ResponseMapper`: the first whose filter matches acts.
pub struct Mapper {
    pub filter: Filter,
    pub status: Option<StatusCode>,
    pub body: Option<Bytes>,
    pub headers: HeaderMutations,
    pub format: Option<BodyFormat>,
}

/// A body format with the content type that it makes.
pub struct BodyFormat {
    pub format: SubstitutionFormat,
    pub content_type: HeaderValue,
}

/// What a local reply is the answer to.
#[derive(Default)]
pub(crate) struct Asked<'a> {
    /// None where bytes never became a request.
    pub request: Option<&'a RequestHead>,
    /// It came as gRPC: so does the reply.
    pub grpc: bool,
    /// What it adds to responses is added to the reply.
    pub route: Option<&'a Route>,
}

/// The response that a local reply becomes. Sets code, details and flags on `info`.
pub(crate) fn respond(rules: &LocalReplyRules, reply: LocalReply, asked: Asked<'_>, info: &mut StreamInfo) -> Response {
    let Asked { request, grpc: is_grpc, route } = asked;
    info.flags |= reply.flags;
    info.details = Some(reply.details.clone());
    info.response_code = None;
    let mut head = ResponseHead::new(reply.status);
    // A route that answers by itself has its headers already.
    if let Some(route) = route.filter(|route| !reply.as_is && route.forward().is_some()) {
        route.finalize_response(&mut head, request, info);
    }
    info.response_code = Some(reply.status);
    replace(&mut head.headers, reply.headers);
    let mut body = reply.body;
    let mut content_type = None;
    if !reply.as_is {
        rewrite(rules, request, info, &mut head, &mut body, &mut content_type);
    }
    info.response_code = Some(head.status);

    let is_head = request.is_some_and(|request| request.method == Method::HEAD);
    if !reply.as_is && is_grpc {
        return grpc(head, &body, reply.grpc_status);
    }
    if body.is_empty() {
        head.headers.remove(CONTENT_TYPE);
        return Response { head, body: Body::Empty };
    }
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    match content_type {
        Some(content_type) => {
            head.headers.insert(CONTENT_TYPE, content_type);
        }
        None => {
            head.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
        }
    }
    let body = if is_head { Body::Empty } else { Body::full(body) };
    Response { head, body }
}

/// What a reply says of itself goes before what its route says.
fn replace(headers: &mut HeaderMap, own: HeaderMap) {
    if headers.is_empty() {
        *headers = own;
    } else {
        headers.extend(own);
    }
}

fn rewrite(
    rules: &LocalReplyRules,
    request: Option<&RequestHead>,
    info: &mut StreamInfo,
    head: &mut ResponseHead,
    body: &mut Bytes,
    content_type: &mut Option<HeaderValue>,
) {
    if rules.mappers.is_empty() && rules.format.is_none() {
        return;
    }
    let mapper = {
        let context = FormatContext { request, response: Some(head), ..FormatContext::of(info) };
        rules.mappers.iter().find(|mapper| mapper.filter.matches(&context))
    };
    let mut format = rules.format.as_ref();
    if let Some(mapper) = mapper {
        if let Some(replacement) = &mapper.body {
            body.clone_from(replacement);
            // Whatever the content was that it replaces.
            *content_type = Some(HeaderValue::from_static("text/plain"));
        }
        // Its headers see the code that it replaces, its body the new one, as in Envoy.
        mapper.headers.apply_response(head, request, &*info);
        if let Some(status) = mapper.status {
            head.status = status;
            info.response_code = Some(status);
        }
        format = mapper.format.as_ref().or(format);
    }
    let Some(format) = format else { return };
    let mut rendered = Vec::new();
    let text = String::from_utf8_lossy(body).into_owned();
    let context =
        FormatContext { request, response: Some(head), local_reply_body: Some(&text), ..FormatContext::of(info) };
    format.format.render(&context, &mut rendered);
    *body = rendered.into();
    *content_type = Some(format.content_type.clone());
}

/// A gRPC request gets its error as trailers-only.
fn grpc(from: ResponseHead, body: &Bytes, status: Option<u32>) -> Response {
    let code = status.unwrap_or_else(|| grpc_status(from.status));
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers = from.headers;
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(GRPC_STATUS, HeaderValue::from(code));
    if !body.is_empty()
        && let Ok(message) = HeaderValue::from_maybe_shared(Bytes::from(percent_encode(body)))
    {
        head.headers.insert(GRPC_MESSAGE, message);
    }
    Response { head, body: Body::Empty }
}

/// gRPC's mapping from HTTP status (`http-grpc-status-mapping.md`).
pub(crate) fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// `grpc-message`'s percent encoding: everything but printable ASCII, and `%`.
fn percent_encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(percent_encode("a%b\n".as_bytes()), b"a%25b%0A");
    }
}
