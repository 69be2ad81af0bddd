//! `envoy.extensions.filters.http.grpc_web.v3.GrpcWeb`: lets browsers speak gRPC: trailers travel at the end of the body, and all
//! of it as base64 where the client asks for text.
//!
//! It has no fields.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use tidegate_xds::pb::envoy::extensions::filters::http::grpc_web::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::Verdict;
use super::grpc_calls::{CallCounters, Calls, GRPC_STATUS, service_and_method};
use super::head::has_grpc_content_type;
use super::{
    Body, BodyError, FilterFactory, Frame, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Response,
    ResponseHead, Step, StreamContext, base64,
};
use crate::context::CompileContext;

const MESSAGE: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TEXT: [&str; 2] = ["application/grpc-web-text", "application/grpc-web-text+proto"];
const BINARY: [&str; 2] = ["application/grpc-web", "application/grpc-web+proto"];
/// Marks a frame of trailers.
const TRAILERS: u8 = 0x80;
/// More of a body that is no gRPC does not become `grpc-message`.
const LONGEST_MESSAGE_BYTES: usize = 16384;

struct Config {
    calls: Calls,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, _: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter { config: self, answers: None, counters: None }))
    }
}

struct Filter {
    config: Arc<Config>,
    /// Where the call is counted.
    counters: Option<Arc<CallCounters>>,
    /// How the answer is written, once the request is known to be gRPC-Web.
    answers: Option<Encoding>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Binary,
    Text,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let headers = &mut request.head.headers;
        let is =
            |value: Option<&HeaderValue>, known: &[&str]| value.is_some_and(|value| known.iter().any(|k| value == k));
        let text = is(headers.get(CONTENT_TYPE), &TEXT);
        if !text && !is(headers.get(CONTENT_TYPE), &BINARY) {
            return Step::Continue;
        }
        self.answers = Some(if is(headers.get(ACCEPT), &TEXT) { Encoding::Text } else { Encoding::Binary });
        let cluster = stream.route.as_ref().and_then(|route| route.cluster());
        let cluster = cluster.and_then(|cluster| stream.services.cluster_stat_name(cluster));
        self.counters = cluster
            .zip(service_and_method(request.head.path_only()))
            .and_then(|(cluster, method)| self.config.calls.counters(&cluster, Some(method)));
        let headers = &mut request.head.headers;
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.entry(GRPC_ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
        if text && !request.body.is_end() {
            request.body = Body::stream(Decoded { body: request.body.take(), rest: BytesMut::new() });
        }
        Step::Continue
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        let Some(encoding) = self.answers else { return Step::Continue };
        let end = response.body.is_end();
        let grpc = is_grpc(&response.head, end);
        let headers = &mut response.head.headers;
        headers.remove(CONTENT_LENGTH);
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(match encoding {
                Encoding::Binary => "application/grpc-web+proto",
                Encoding::Text => "application/grpc-web-text+proto",
            }),
        );
        // Also where a body follows, whose trailers may tell another.
        if let Some(counters) = &self.counters {
            counters.count_status(&response.head.headers);
        }
        if end {
            return Step::Continue;
        }
        if grpc {
            let (body, counters) = (response.body.take(), self.counters.take());
            response.body = Body::stream(Encoded { body, encoding, counters, rest: BytesMut::new(), last: None });
            return Step::Continue;
        }
        Step::wait(async move {
            let message = read_message(&mut response.body).await;
            response.body = Body::Empty;
            let headers = &mut response.head.headers;
            headers.insert(GRPC_MESSAGE, message);
            headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(response.head.status)));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
            Verdict::Continue
        })
    }
}

/// Whether a response is gRPC, or gRPC-Web already.
fn is_grpc(head: &ResponseHead, end: bool) -> bool {
    let web = || {
        let value = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = value.split(';').next().unwrap_or_default().trim_end();
        BINARY.iter().any(|known| kind.eq_ignore_ascii_case(known))
    };
    let grpc = if end { head.headers.contains_key(GRPC_STATUS) } else { has_grpc_content_type(&head.headers) };
    grpc || head.status == StatusCode::OK && web()
}

/// A body's text as a `grpc-message`: percent-encoded.
async fn read_message(body: &mut Body) -> HeaderValue {
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { break };
        let room = LONGEST_MESSAGE_BYTES - text.len();
        text.extend_from_slice(&data[..data.len().min(room)]);
        if text.len() == LONGEST_MESSAGE_BYTES {
            break;
        }
    }
    let mut message = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..=b'}' if byte != b'%' => message.push(char::from(byte)),
            _ => message.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(message).unwrap_or(HeaderValue::from_static(""))
}

/// The gRPC status that an HTTP status stands for.
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// A request's body out of base64.
struct Decoded {
    body: Body,
    rest: BytesMut,
}

fn bad_base64(details: &'static str) -> BodyError {
    let reply = LocalReply::new(StatusCode::BAD_REQUEST, details);
    BodyError::Reply(Box::new(reply.body("Bad gRPC-web request, invalid base64 data.")))
}

impl http_body::Body for Decoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            let data = match ready!(self.body.poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                None if !self.rest.is_empty() => {
                    self.rest.clear();
                    return Poll::Ready(Some(Err(bad_base64("grpc_base_64_decode_failed_bad_size"))));
                }
                end => return Poll::Ready(end),
            };
            self.rest.extend_from_slice(&data);
            let whole = self.rest.len() / 4 * 4;
            let text = self.rest.split_to(whole);
            // What comes at once may be padded at its end only, as in Envoy.
            let padded_within = text[..whole.saturating_sub(4)].contains(&b'=');
            match base64::decode(&text).filter(|_| !padded_within) {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes.into())))),
                None => return Poll::Ready(Some(Err(bad_base64("grpc_base_64_decode_failed")))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end()
    }
}

/// A response's body with its trailers in a last frame, each frame in base64 if the answer is text.
struct Encoded {
    body: Body,
    encoding: Encoding,
    counters: Option<Arc<CallCounters>>,
    rest: BytesMut,
    last: Option<Bytes>,
}

impl Encoded {
    /// What of the bytes so far can be sent: for text, whole frames.
    fn take(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while let [_, a, b, c, d, ..] = self.rest[..] {
            let length = 5usize.saturating_add(u32::from_be_bytes([a, b, c, d]) as usize);
            if self.rest.len() < length {
                break;
            }
            out.extend(base64::encode(&self.rest.split_to(length)));
        }
        out
    }
}

/// The trailers as a frame of the body.
fn trailers_frame(trailers: &HeaderMap, encoding: Encoding) -> Bytes {
    let mut text = Vec::new();
    for (name, value) in trailers {
        text.extend_from_slice(&[name.as_str().as_bytes(), b":", value.as_bytes(), b"\r\n"].concat());
    }
    let mut frame = BytesMut::with_capacity(5 + text.len());
    frame.put_u8(TRAILERS);
    frame.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    frame.put_slice(&text);
    match encoding {
        Encoding::Binary => frame.freeze(),
        Encoding::Text => base64::encode(&frame).into(),
    }
}

impl http_body::Body for Encoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            if let Some(last) = self.last.take() {
                return Poll::Ready(Some(Ok(Frame::data(last))));
            }
            let frame = match ready!(self.body.poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) if self.encoding == Encoding::Binary => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(data) => {
                    self.rest.extend_from_slice(&data);
                    let out = self.take();
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    if let Some(counters) = &self.counters {
                        counters.count_status(&trailers);
                    }
                    self.last = Some(trailers_frame(&trailers, self.encoding));
                    self.body = Body::Empty;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end()
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        &[Coverage { message: MESSAGE, enforced: &[], listed: &[] }]
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let pb::GrpcWeb {} = context.decode(config)?;
        Ok(Arc::new(Config { calls: Calls::new(context.stats.root(), "grpc-web", false) }))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::http::body::whole;
    use crate::http::testing::*;

    fn call(kind: &'static str, accept: &'static str, body: &'static str, answer: Response) -> (Request, Response) {
        let mut filter = Bench::new(&Factory).filter("{}").unwrap();
        let headers = [("content-type", kind), ("accept", accept), ("content-length", "9")];
        let mut request = request(Method::POST, "/s/m", &headers, Body::full(body));
        let mut answer = answer;
        assert!(now(on_request(&mut *filter, &mut request, &mut stream())).is_none());
        assert!(now(on_response(&mut *filter, &mut answer, &mut stream())).is_none());
        (request, answer)
    }

    fn grpc_answer() -> Response {
        let trailers = header_map(&[("grpc-status", "0")]);
        let body = whole(Bytes::from_static(b"\0\0\0\0\x02ok"), Some(trailers));
        response(200, &[("content-type", "application/grpc")], body)
    }

    #[test]
    fn a_call_in_text_is_decoded_and_answered_in_text() {
        let (mut request, mut answer) = call(TEXT[0], TEXT[1], "AAAAAAFh", grpc_answer());
        assert_eq!(now(drain(&mut request.body)).unwrap().0, b"\0\0\0\0\x01a");
        let sent = ["content-type: application/grpc", "grpc-accept-encoding: identity", "te: trailers"];
        assert_eq!(lines(&request.head.headers)[1..], sent);
        let (body, trailers) = now(drain(&mut answer.body)).unwrap();
        let frames = [base64::encode(b"\0\0\0\0\x02ok"), base64::encode(b"\x80\0\0\0\x0fgrpc-status:0\r\n")];
        assert_eq!((body, trailers.len()), (frames.concat(), 0));
        assert_eq!(lines(&answer.head.headers), ["content-type: application/grpc-web-text+proto"]);
        let (mut request, _) = call(TEXT[0], "", "AAAAA", grpc_answer());
        assert!(matches!(now(drain(&mut request.body)), Err(BodyError::Reply(reply)) if reply.status == 400));
    }

    #[test]
    fn a_binary_call_only_moves_the_trailers() {
        let (mut request, mut answer) = call(BINARY[1], "", "abc", grpc_answer());
        assert_eq!(now(drain(&mut request.body)).unwrap().0, b"abc");
        let body = now(drain(&mut answer.body)).unwrap().0;
        assert_eq!(body, b"\0\0\0\0\x02ok\x80\0\0\0\x0fgrpc-status:0\r\n");
    }

    #[test]
    fn what_is_no_grpc_becomes_a_message() {
        let plain = || response(503, &[("content-type", "text/plain")], Body::full("no 100%"));
        let (_, mut answer) = call(BINARY[0], "", "abc", plain());
        assert_eq!(
            lines(&answer.head.headers),
            [
                "content-length: 0",
                "content-type: application/grpc-web+proto",
                "grpc-message: no 100%25",
                "grpc-status: 14"
            ]
        );
        assert!(now(drain(&mut answer.body)).unwrap().0.is_empty());
        let (request, answer) = call("application/json", "", "abc", plain());
        assert_eq!(lines(&answer.head.headers), ["content-type: text/plain"]);
        assert!(request.head.headers.contains_key("content-length"));
    }

    #[test]
    fn padding_within_what_comes_at_once_is_refused() {
        let outcome = |text: &'static str| {
            let mut body = Body::stream(Decoded { body: Body::full(text), rest: BytesMut::new() });
            now(body.frame()).unwrap().map(|frame| frame.into_data().unwrap()).map_err(|error| match error {
                BodyError::Reply(reply) => reply.details,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(outcome("AAAAAAE=").unwrap(), b"\0\0\0\0\x01"[..]);
        assert_eq!(outcome("AAAAAAE=AAAAAARwaW5n").unwrap_err(), "grpc_base_64_decode_failed");
    }
}
