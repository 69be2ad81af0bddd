//! `envoy.extensions.filters.http.buffer.v3.Buffer`: holds a request back until its body is whole; one that is too long is
//! answered 413.
//!
//! Acts: all fields; a route replaces the limit or disables the filter.

use std::sync::Arc;

use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use tidegate_xds::pb::envoy::extensions::filters::http::buffer::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::body::{read_whole, whole};
use super::filter::{OverrideConfig, Verdict};
use super::{
    BodyError, FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Step, StreamContext,
};
use crate::context::CompileContext;

const MESSAGE: &str = "envoy.extensions.filters.http.buffer.v3.Buffer";
const PER_ROUTE: &str = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";

struct Config {
    most_bytes: usize,
}

/// What a route says.
enum OfRoute {
    Disabled,
    Limit(usize),
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let most_bytes = match overrides.get() {
            Some(OfRoute::Disabled) => return None,
            Some(OfRoute::Limit(bytes)) => *bytes,
            None => self.most_bytes,
        };
        Some(Box::new(Filter { most_bytes }))
    }
}

struct Filter {
    most_bytes: usize,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, _: &'a mut StreamContext) -> Step<'a> {
        if request.body.is_end() {
            return Step::Continue;
        }
        let most_bytes = self.most_bytes;
        Step::wait(async move {
            let reply = match read_whole(&mut request.body, most_bytes).await {
                Ok(Some((data, trailers))) => {
                    // The length is known now; Envoy says it to the upstream.
                    if trailers.is_none() && !request.head.headers.contains_key(CONTENT_LENGTH) {
                        request.head.headers.remove(TRANSFER_ENCODING);
                        request.head.headers.insert(CONTENT_LENGTH, HeaderValue::from(data.len()));
                    }
                    request.body = whole(data, trailers);
                    return Verdict::Continue;
                }
                Ok(None) => LocalReply::request_too_large(),
                Err(BodyError::Reply(reply)) => *reply,
                Err(_) => LocalReply::new(StatusCode::BAD_REQUEST, "request_body_cut"),
            };
            Verdict::Reply(Box::new(reply))
        })
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(PER_ROUTE)
    }

    fn works_upstream(&self) -> bool {
        true
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        Ok(Arc::new(Config { most_bytes: most_bytes(&context.decode(config)?) }))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        let config: pb::BufferPerRoute = context.decode(config)?;
        Ok(Arc::new(match config.r#override {
            Some(pb::buffer_per_route::Override::Buffer(buffer)) => OfRoute::Limit(most_bytes(&buffer)),
            Some(pb::buffer_per_route::Override::Disabled(_)) | None => OfRoute::Disabled,
        }))
    }
}

fn most_bytes(config: &pb::Buffer) -> usize {
    config.max_request_bytes.map_or(usize::MAX, |bytes| usize::try_from(bytes.value).unwrap_or(usize::MAX))
}

const COVERAGE: &[Coverage] = &[
    Coverage { message: MESSAGE, enforced: &["max_request_bytes"], listed: &[] },
    Coverage { message: PER_ROUTE, enforced: &["disabled", "buffer"], listed: &[] },
];

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::http::testing::*;

    #[test]
    fn a_body_is_whole_or_too_large() {
        let bench = Bench::new(&Factory);
        let pass = |levels: &[&str], body: &'static str| {
            let mut filter = bench.filter_with("max_request_bytes: 5", levels)?;
            let trailers = header_map(&[("t", "1")]);
            let mut request = request(Method::POST, "/", &[], whole(body.into(), Some(trailers)));
            let reply = now(on_request(&mut *filter, &mut request, &mut stream()));
            let reply = reply.map(|reply| (reply.status.as_u16(), reply.details, reply.body));
            Some((reply, now(drain(&mut request.body)).ok()))
        };
        let kept = |body: &str| Some((None, Some((body.as_bytes().to_vec(), header_map(&[("t", "1")])))));
        assert_eq!(pass(&[], "12345"), kept("12345"));
        let (reply, _) = pass(&[], "123456").unwrap();
        assert_eq!(reply, Some((413, "request_payload_too_large".into(), "Payload Too Large".into())));
        assert_eq!(pass(&["buffer: {max_request_bytes: 6}"], "123456"), kept("123456"));
        assert_eq!(pass(&["disabled: true"], "123456"), None);
    }
}
