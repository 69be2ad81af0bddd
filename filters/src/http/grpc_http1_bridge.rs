//! `envoy.extensions.filters.http.grpc_http1_bridge.v3.Config`: lets HTTP/1 clients make unary gRPC calls: the answer is held
//! until its trailers are there, which then stand among the headers; a call that failed is a 503.
//!
//! Not done: `upgrade_protobuf_to_grpc` and `ignore_query_parameters`, which are refused, and the filter's cluster counters.

use std::sync::Arc;

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{StatusCode, Version};
use tidegate_xds::pb::envoy::extensions::filters::http::grpc_http1_bridge::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::body::whole;
use super::filter::Verdict;
use super::{
    Body, FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Response, Step, StreamContext,
};
use crate::context::CompileContext;

const MESSAGE: &str = "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// A longer answer is a 500, as when Envoy's buffer overflows.
const MOST_BYTES: usize = 1 << 20;

struct Config;

struct Filter {
    bridges: bool,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, _: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter { bridges: false }))
    }
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let old = stream.info.protocol.is_some_and(|version| version < Version::HTTP_2);
        self.bridges = old && request.head.is_grpc();
        Step::Continue
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        if !self.bridges || response.body.is_end() {
            return Step::Continue;
        }
        Step::wait(bridge(response))
    }
}

async fn bridge(response: &mut Response) -> Verdict {
    let (mut data, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = response.body.frame().await {
        let Ok(frame) = frame else {
            let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "upstream_reset_before_response_started");
            return Verdict::Reply(Box::new(reply));
        };
        match frame.into_data() {
            Ok(piece) if data.len() + piece.len() > MOST_BYTES => {
                let reply = LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "response_payload_too_large");
                return Verdict::Reply(Box::new(reply.body("Internal Server Error")));
            }
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    if let Some(trailers) = &trailers {
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
    }
    response.body = if data.is_empty() { Body::Empty } else { whole(data.freeze(), None) };
    Verdict::Continue
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
        let _: pb::Config = context.decode(config)?;
        Ok(Arc::new(Config))
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
}
