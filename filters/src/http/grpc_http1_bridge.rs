//! `envoy.extensions.filters.http.grpc_http1_bridge.v3.Config`: lets HTTP/1 clients make unary gRPC calls: the answer is held
//! until its trailers are there, which then stand among the headers; a call that failed is a 503.
//!
//! Acts: all fields. A protobuf body that is upgraded is held until it is whole, to be framed; its answer loses the frame.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{StatusCode, Version};
use tidegate_xds::pb::envoy::extensions::filters::http::grpc_http1_bridge::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::body::{read_whole, whole};
use super::filter::Verdict;
use super::{
    Body, BodyError, FilterFactory, Frame, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Response,
    Step, StreamContext,
};
use crate::context::CompileContext;

const MESSAGE: &str = "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PROTOBUF: [&str; 2] = ["application/x-protobuf", "application/protobuf"];
/// Before each message: whether it is compressed, and its length.
const FRAME_HEADER_BYTES: usize = 5;
/// A longer answer is a 500, as when Envoy's buffer overflows.
const MOST_BYTES: usize = 1 << 20;

struct Config {
    upgrade: bool,
    ignore_query: bool,
}

struct Filter {
    config: Arc<Config>,
    bridges: bool,
    /// The client speaks of messages without frames.
    frames: bool,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, _: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter { config: self, bridges: false, frames: false }))
    }
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let head = &mut request.head;
        let old = stream.info.protocol.is_some_and(|version| version < Version::HTTP_2);
        let protobuf = |value: &HeaderValue| PROTOBUF.iter().any(|kind| value == kind);
        self.frames = self.config.upgrade && head.headers.get(CONTENT_TYPE).is_some_and(protobuf);
        if self.frames {
            head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            head.headers.remove(CONTENT_LENGTH);
        }
        self.bridges = old && (self.frames || head.is_grpc());
        if self.bridges && self.config.ignore_query && head.path_only().len() < head.path.len() {
            head.path = HeaderValue::from_bytes(head.path_only()).unwrap_or_else(|_| head.path.clone());
        }
        if !self.bridges || !self.frames || request.body.is_end() {
            return Step::Continue;
        }
        Step::wait(frame(request))
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        if !self.bridges || response.body.is_end() {
            return Step::Continue;
        }
        Step::wait(bridge(response, self.frames))
    }
}

/// Makes one gRPC message of a body.
async fn frame(request: &mut Request) -> Verdict {
    let (data, trailers) = match read_whole(&mut request.body, MOST_BYTES).await {
        Ok(Some(body)) => body,
        Ok(None) => return Verdict::Reply(Box::new(LocalReply::request_too_large())),
        Err(BodyError::Reply(reply)) => return Verdict::Reply(reply),
        Err(_) => return Verdict::Reply(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "request_body_cut"))),
    };
    let mut framed = BytesMut::with_capacity(FRAME_HEADER_BYTES + data.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    framed.put_slice(&data);
    request.body = whole(framed.freeze(), trailers);
    Verdict::Continue
}

async fn bridge(response: &mut Response, frames: bool) -> Verdict {
    let (mut data, trailers) = match read_whole(&mut response.body, MOST_BYTES).await {
        Ok(Some(body)) => body,
        Ok(None) => return Verdict::Reply(Box::new(LocalReply::response_too_large())),
        Err(_) => {
            let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "upstream_reset_before_response_started");
            return Verdict::Reply(Box::new(reply));
        }
    };
    // What ends together with its data is left as it is, as in Envoy: over HTTP/1 nothing does.
    if frames && (trailers.is_some() || response.head.version < Version::HTTP_2) {
        data = data.slice(FRAME_HEADER_BYTES.min(data.len())..);
    }
    let Some(trailers) = trailers else {
        response.body = Body::stream(Unmeasured(Some(data)));
        return Verdict::Continue;
    };
    let head = &mut response.head;
    if let Some(status) = trailers.get(GRPC_STATUS) {
        if status != "0" {
            head.status = StatusCode::SERVICE_UNAVAILABLE;
        }
        head.headers.insert(GRPC_STATUS, status.clone());
    }
    if let Some(message) = trailers.get(GRPC_MESSAGE) {
        head.headers.insert(GRPC_MESSAGE, message.clone());
    }
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(data.len()));
    response.body = if data.is_empty() { Body::Empty } else { whole(data, None) };
    Verdict::Continue
}

/// A body that goes on without telling its length, as it came.
struct Unmeasured(Option<Bytes>);

impl http_body::Body for Unmeasured {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        &[Coverage {
            message: MESSAGE,
            enforced: &["upgrade_protobuf_to_grpc", "ignore_query_parameters"],
            listed: &[],
        }]
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let config: pb::Config = context.decode(config)?;
        let (upgrade, ignore_query) = (config.upgrade_protobuf_to_grpc, config.ignore_query_parameters);
        Ok(Arc::new(Config { upgrade, ignore_query }))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::http::testing::*;

    #[test]
    fn trailers_become_headers_for_old_clients() {
        let pass = |version: Version, status: &'static str| {
            let mut filter = Bench::new(&Factory).filter("{}").unwrap();
            let mut stream = stream();
            stream.info.protocol = Some(version);
            let grpc = [("content-type", "application/grpc")];
            now(on_request(&mut *filter, &mut request(Method::POST, "/s/m", &grpc, Body::full("x")), &mut stream));
            let trailers = header_map(&[("grpc-status", status), ("grpc-message", "m")]);
            let mut out = response(200, &[], whole("abc".into(), Some(trailers)));
            now(on_response(&mut *filter, &mut out, &mut stream));
            (out.head.status.as_u16(), lines(&out.head.headers).join(","))
        };
        let told = |status: &str| format!("content-length: 3,grpc-message: m,grpc-status: {status}");
        assert_eq!(pass(Version::HTTP_11, "0"), (200, told("0")));
        assert_eq!(pass(Version::HTTP_11, "5"), (503, told("5")));
        assert_eq!(pass(Version::HTTP_2, "5"), (200, String::new()));
    }

    #[test]
    fn over_http_1_what_has_no_trailers_loses_its_frame_too() {
        let answer = |version: Version, body: &'static str| {
            let mut filter = Bench::new(&Factory).filter("{upgrade_protobuf_to_grpc: true}").unwrap();
            let mut stream = stream();
            stream.info.protocol = Some(Version::HTTP_11);
            let headers = [("content-type", "application/x-protobuf")];
            now(on_request(&mut *filter, &mut request(Method::POST, "/s/m", &headers, Body::full("x")), &mut stream));
            let mut out = response(200, &[], Body::full(body));
            out.head.version = version;
            now(on_response(&mut *filter, &mut out, &mut stream));
            now(drain(&mut out.body)).unwrap().0
        };
        assert_eq!(answer(Version::HTTP_11, "a"), b"");
        assert_eq!(answer(Version::HTTP_11, "\0\0\0\0\x04pong"), b"pong");
        assert_eq!(answer(Version::HTTP_2, "\0\0\0\0\x04pong"), b"\0\0\0\0\x04pong");
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn protobuf_is_framed_upwards_and_unframed_downwards() {
        let config = "{upgrade_protobuf_to_grpc: true, ignore_query_parameters: true}";
        let mut filter = Bench::new(&Factory).filter(config).unwrap();
        let mut stream = stream();
        stream.info.protocol = Some(Version::HTTP_11);
        let headers = [("content-type", "application/x-protobuf"), ("content-length", "4")];
        let mut asked = request(Method::POST, "/s/m?q=1", &headers, Body::full("ping"));
        now(on_request(&mut *filter, &mut asked, &mut stream));
        assert_eq!(asked.head.path, "/s/m");
        assert_eq!(lines(&asked.head.headers), ["content-type: application/grpc"]);
        assert_eq!(now(drain(&mut asked.body)).unwrap().0, b"\0\0\0\0\x04ping");
        let answered = whole("\0\0\0\0\x04pong".into(), Some(header_map(&[("grpc-status", "0")])));
        let mut out = response(200, &[], answered);
        now(on_response(&mut *filter, &mut out, &mut stream));
        assert_eq!(now(drain(&mut out.body)).unwrap().0, b"pong");
        assert_eq!(lines(&out.head.headers), ["content-length: 4", "grpc-status: 0"]);
    }
}
