//! `envoy.extensions.filters.http.grpc_stats.v3.FilterConfig`: counts gRPC calls and their messages under the cluster, by method
//! where the configuration says so, and tells logs the number of messages.
//!
//! Acts: all fields. An upstream's time is that from the end of the request to the trailers.

use std::any::Any;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tidegate_xds::pb::envoy::extensions::filters::http::grpc_stats::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::grpc_calls::{CallCounters, Calls, service_and_method};
use super::head::has_grpc_content_type;
use super::{
    Body, BodyError, FilterFactory, Frame, HttpFilter, HttpFilterConfig, Overrides, Request, Response, Step,
    StreamContext,
};
use crate::context::CompileContext;
use crate::metadata::{Sharing, StateObject};

const MESSAGE: &str = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";
const STATE: &str = "envoy.filters.http.grpc_stats";

struct Config {
    calls: Calls,
    methods: Methods,
    emit_filter_state: bool,
    times: bool,
}

/// Which methods have counters of their own; the rest share the cluster's.
enum Methods {
    These(Vec<(String, Vec<String>)>),
    All,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, _: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter { config: self, call: None }))
    }
}

struct Filter {
    config: Arc<Config>,
    call: Option<Arc<Call>>,
}

/// One gRPC call.
struct Call {
    /// `None` where it is not counted: no cluster, or no method.
    counters: Option<Arc<CallCounters>>,
    messages: Arc<Messages>,
    /// When all of the request had gone up; kept where the time counts.
    sent: Option<OnceLock<Instant>>,
}

/// How many messages were seen, as filter state.
#[derive(Default)]
struct Messages {
    requests: AtomicU64,
    responses: AtomicU64,
}

impl StateObject for Messages {
    fn text(&self) -> Option<String> {
        Some(format!("{},{}", self.requests.load(Relaxed), self.responses.load(Relaxed)))
    }
    fn json(&self) -> Option<serde_json::Value> {
        // A message as JSON: what is 0 is left out.
        let counts = [("requestMessageCount", &self.requests), ("responseMessageCount", &self.responses)];
        let counts = counts.map(|(name, count)| (name.to_owned(), count.load(Relaxed)));
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        Some(counts.map(|(name, count)| (name, serde_json::Value::from(count.to_string()))).collect())
    }
    fn field(&self, name: &str) -> Option<String> {
        match name {
            "request_message_count" => Some(self.requests.load(Relaxed).to_string()),
            "response_message_count" => Some(self.responses.load(Relaxed).to_string()),
            _ => None,
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        if !request.head.is_grpc() {
            return Step::Continue;
        }
        let cluster = stream.route.as_ref().and_then(|route| route.cluster());
        let name = cluster.and_then(|cluster| stream.services.cluster_stat_name(cluster));
        let counters = name.and_then(|name| self.config.counters(&name, request.head.path_only()));
        let sent = self.config.times.then(OnceLock::new);
        let call = Arc::new(Call { counters, messages: Arc::default(), sent });
        if request.body.is_end() {
            call.note_sent();
        }
        if self.config.emit_filter_state {
            stream.info.filter_state.set(STATE, Arc::clone(&call.messages) as _, false, Sharing::None);
        }
        request.body = Counted::wrap(request.body.take(), Arc::clone(&call), Side::Request);
        self.call = Some(call);
        Step::Continue
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, _: &'a mut StreamContext) -> Step<'a> {
        if let Some(call) = &self.call {
            call.count_status(&response.head.headers);
            if response.body.is_end() {
                call.count_time();
            }
            if response.head.status == StatusCode::OK && has_grpc_content_type(&response.head.headers) {
                response.body = Counted::wrap(response.body.take(), Arc::clone(call), Side::Response);
            }
        }
        Step::Continue
    }
}

impl Config {
    /// Where a call is counted; `None` when the path names no method.
    fn counters(&self, cluster: &str, path: &[u8]) -> Option<Arc<CallCounters>> {
        let (service, method) = service_and_method(path)?;
        let own = match &self.methods {
            Methods::All => true,
            Methods::These(these) => {
                these.iter().any(|(name, methods)| name == service && methods.iter().any(|known| known == method))
            }
        };
        self.calls.counters(cluster, own.then_some((service, method)))
    }
}

impl Call {
    fn count_status(&self, headers: &HeaderMap) {
        if let Some(counters) = &self.counters {
            counters.count_status(headers);
        }
    }

    fn note_sent(&self) {
        if let Some(sent) = &self.sent {
            // It ends once.
            let _ = sent.set(Instant::now());
        }
    }

    fn count_time(&self) {
        let sent = self.sent.as_ref().and_then(OnceLock::get);
        if let (Some(counters), Some(sent)) = (&self.counters, sent) {
            let millis = u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX);
            counters.record_time(millis);
        }
    }

    fn count_messages(&self, side: Side, count: u64) {
        let messages = match side {
            Side::Request => &self.messages.requests,
            Side::Response => &self.messages.responses,
        };
        messages.fetch_add(count, Relaxed);
        match (&self.counters, side) {
            (Some(counters), Side::Request) => counters.count_requests(count),
            (Some(counters), Side::Response) => counters.count_responses(count),
            (None, _) => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// A body whose messages are counted as they begin.
struct Counted {
    body: Body,
    call: Arc<Call>,
    side: Side,
    frames: Frames,
}

impl Counted {
    fn wrap(body: Body, call: Arc<Call>, side: Side) -> Body {
        if body.is_end() { body } else { Body::stream(Self { body, call, side, frames: Frames::default() }) }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let frame = ready!(self.body.poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                let begun = self.frames.inspect(data);
                if begun > 0 {
                    self.call.count_messages(self.side, begun);
                }
            } else if let (Some(trailers), Side::Response) = (frame.trailers_ref(), self.side) {
                self.call.count_status(trailers);
                self.call.count_time();
            }
        }
        if self.side == Side::Request && (frame.is_none() || self.body.is_end()) {
            self.call.note_sent();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}

/// Where in the frames of gRPC a body stands.
#[derive(Default)]
struct Frames {
    /// Bytes of the present frame's five of head that were seen.
    head: usize,
    length: u32,
    /// Bytes of its message that are still to come.
    rest: usize,
}

impl Frames {
    /// How many frames begin in these bytes.
    fn inspect(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        while let [byte, after @ ..] = data {
            if self.rest > 0 {
                let skipped = self.rest.min(data.len());
                self.rest -= skipped;
                data = &data[skipped..];
                continue;
            }
            if self.head == 0 {
                begun += 1;
                self.length = 0;
            } else {
                self.length = self.length << 8 | u32::from(*byte);
            }
            self.head += 1;
            if self.head == 5 {
                self.head = 0;
                self.rest = self.length as usize;
            }
            data = after;
        }
        begun
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        use pb::filter_config::PerMethodStatSpecifier as Specifier;
        let config: pb::FilterConfig = context.decode(config)?;
        let methods = match config.per_method_stat_specifier {
            Some(Specifier::StatsForAllMethods(all)) if all.value => Methods::All,
            Some(Specifier::IndividualMethodStatsAllowlist(list)) => {
                Methods::These(list.services.into_iter().map(|service| (service.name, service.method_names)).collect())
            }
            Some(Specifier::StatsForAllMethods(_)) | None => Methods::These(Vec::new()),
        };
        Ok(Arc::new(Config {
            calls: Calls::new(context.stats.root(), "grpc", config.replace_dots_in_grpc_service_name),
            methods,
            emit_filter_state: config.emit_filter_state,
            times: config.enable_upstream_stats,
        }))
    }
}

const COVERAGE: &[Coverage] = &[
    Coverage {
        message: MESSAGE,
        enforced: &[
            "emit_filter_state",
            "individual_method_stats_allowlist",
            "stats_for_all_methods",
            "replace_dots_in_grpc_service_name",
            "enable_upstream_stats",
        ],
        listed: &[],
    },
    Coverage { message: "envoy.config.core.v3.GrpcMethodList", enforced: &["services"], listed: &[] },
    Coverage {
        message: "envoy.config.core.v3.GrpcMethodList.Service",
        enforced: &["name", "method_names"],
        listed: &[],
    },
];

#[cfg(test)]
mod tests {
    use http::Method;

    use tidegate_stats::Scope;

    use super::*;
    use crate::http::body::whole;
    use crate::http::testing::*;

    fn call(bench: &Bench, config: &str, status: &'static str) -> Option<String> {
        let mut filter = bench.filter(config).unwrap();
        let mut stream = stream();
        let grpc = [("content-type", "application/grpc")];
        let body = Body::full(&b"\0\0\0\0\x01a\0\0\0\0\0"[..]);
        let mut request = request(Method::POST, "/a.S/M", &grpc, body);
        now(on_request(&mut *filter, &mut request, &mut stream));
        now(drain(&mut request.body)).unwrap();
        let body = whole(Bytes::from_static(b"\0\0\0\0\x02ok"), Some(header_map(&[("grpc-status", status)])));
        let mut answer = response(200, &grpc, body);
        now(on_response(&mut *filter, &mut answer, &mut stream));
        now(drain(&mut answer.body)).unwrap();
        stream.info.filter_state.get(STATE).and_then(|object| object.text())
    }

    #[test]
    fn calls_and_messages_are_counted() {
        let bench = Bench::new(&Factory);
        // The counters of a filter go with it.
        let keep = bench.store.root().scope("cluster.service.grpc.");
        let method = keep.scope("a_S.M.");
        assert_eq!(call(&bench, "{emit_filter_state: true}", "0").as_deref(), Some("2,1"));
        let all = "{stats_for_all_methods: true, replace_dots_in_grpc_service_name: true}";
        assert_eq!(call(&bench, all, "14"), None);
        let counted =
            |scope: &Scope, names: &[&str]| names.iter().map(|name| scope.counter(name).value()).collect::<Vec<_>>();
        let names = ["0", "14", "success", "failure", "total", "request_message_count", "response_message_count"];
        assert_eq!(counted(&keep, &names), [1, 0, 1, 0, 1, 2, 1]);
        assert_eq!(counted(&method, &names), [0, 1, 0, 1, 1, 2, 1]);
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let bytes = b"\0\0\0\0\x03abc\0\0\0\0\0\x01\0\0\0\x01z";
        for cut in 0..bytes.len() {
            let mut frames = Frames::default();
            assert_eq!(frames.inspect(&bytes[..cut]) + frames.inspect(&bytes[cut..]), 3, "{cut}");
        }
    }
}
