//! For tests of filters: a stream without a proxy around it, and a filter from a configuration's text.
//! It must not know any filter.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tidegate_stats::Store;
use tidegate_xds::{Coverage, CoverageSource, FieldError, FieldPath, Format, UnknownFields};

use super::filter::{CallError, OverrideConfig, RouteView, ServiceCall, Services, Verdict};
use super::rate_limit::RateLimit;
use super::{
    Body, BodyError, FilterFactory, HttpFilter, HttpFilterConfig, LocalReply, Override, Overrides, Request,
    RequestHead, Response, ResponseHead, Step, StreamContext,
};
use crate::connection::ConnectionInfo;
use crate::context::{CompileContext, Defaults, Needs};
use crate::runtime::Runtime;
use crate::stream_info::{Address, StreamInfo};

/// A filter's factory under test, with the stats that it counts in.
pub(crate) struct Bench {
    pub store: Arc<Store>,
    factory: &'static dyn FilterFactory,
}

impl Bench {
    pub(crate) fn new(factory: &'static dyn FilterFactory) -> Self {
        Self { store: Store::new(), factory }
    }

    /// Compiles a configuration as the proxy does: decoded, validated and audited first.
    pub(crate) fn compile(&self, yaml: &str) -> Result<Arc<dyn HttpFilterConfig>, String> {
        let bytes = checked(self.factory.message(), yaml, self.factory.coverage())?;
        self.with_context(|context| self.factory.compile(&bytes, context)).map_err(|error| show(&error))
    }

    pub(crate) fn compile_override(&self, yaml: &str) -> Result<OverrideConfig, String> {
        let message = self.factory.override_message().ok_or("takes no override")?;
        let bytes = checked(message, yaml, self.factory.coverage())?;
        self.with_context(|context| self.factory.compile_override(&bytes, context)).map_err(|error| show(&error))
    }

    fn with_context<T>(&self, compile: impl FnOnce(&mut CompileContext<'_>) -> T) -> T {
        let mut needs = Needs::default();
        compile(&mut CompileContext {
            resource: "r",
            path: FieldPath::root(),
            defaults: Defaults::Envoy,
            stats: self.store.root().scope("http.test."),
            needs: &mut needs,
        })
    }

    /// A filter for one stream; `None` when it is inert there.
    pub(crate) fn filter(&self, yaml: &str) -> Option<Box<dyn HttpFilter>> {
        self.compile(yaml).unwrap().new_stream(Overrides::default())
    }

    /// The same with overrides, least specific first.
    pub(crate) fn filter_with(&self, yaml: &str, levels: &[&str]) -> Option<Box<dyn HttpFilter>> {
        let levels: Vec<_> = levels.iter().map(|level| self.compile_override(level).unwrap()).collect();
        let merged = Override { disabled: None, config: self.factory.merge(&levels), levels };
        self.compile(yaml).unwrap().new_stream(Overrides(Some(&merged)))
    }

    /// The counters and gauges that are not 0.
    pub(crate) fn counted(&self) -> Vec<String> {
        counted(&self.store)
    }
}

/// The counters and gauges that are not 0.
pub(crate) fn counted(store: &Arc<Store>) -> Vec<String> {
    let gauges = store.gauges().into_iter().map(|gauge| (gauge.name, gauge.value));
    let all = store.counters().into_iter().map(|counter| (counter.name, counter.value)).chain(gauges);
    all.filter(|(_, value)| *value != 0).map(|(name, value)| format!("{name}: {value}")).collect()
}

/// What the proxy knows by itself.
const EXTENSIONS: &[Coverage] = &[Coverage {
    message: "envoy.config.core.v3.TypedExtensionConfig",
    enforced: &["name", "typed_config"],
    listed: &[],
}];

/// The bytes of a text, checked as the proxy checks it.
pub(crate) fn checked(message: &str, yaml: &str, coverage: &[Coverage]) -> Result<Vec<u8>, String> {
    struct Source<'a>(&'a [Coverage]);
    impl CoverageSource for Source<'_> {
        fn of(&self, message: &str) -> Option<&Coverage> {
            let shared = [
                EXTENSIONS,
                crate::format::COVERAGE,
                crate::matching::COVERAGE,
                crate::runtime::COVERAGE,
                super::header_options::COVERAGE,
            ];
            self.0.iter().chain(shared.into_iter().flatten()).find(|coverage| coverage.message == message)
        }
    }
    let decoded = tidegate_xds::decode(message, yaml.as_bytes(), Format::Yaml, UnknownFields::Reject)
        .map_err(|errors| errors.iter().map(show).collect::<Vec<_>>().join("; "))?;
    tidegate_xds::validate(message, &decoded.bytes)
        .map_err(|errors| errors.iter().map(show).collect::<Vec<_>>().join("; "))?;
    match tidegate_xds::audit(message, &decoded.bytes, &Source(coverage)).unsupported.as_slice() {
        [] => Ok(decoded.bytes),
        refused => Err(refused.iter().map(show).collect::<Vec<_>>().join("; ")),
    }
}

fn show(error: &FieldError) -> String {
    format!("{}: {}", error.path, error.reason)
}

/// A proxy that does for filters what a test says.
#[derive(Default)]
pub(crate) struct FakeServices {
    pub failing: bool,
    pub members: BTreeMap<&'static str, (u64, u64)>,
    pub runtime: FakeRuntime,
}

impl Services for FakeServices {
    fn call(&self, _: ServiceCall) -> Pin<Box<dyn Future<Output = Result<Response, CallError>> + Send>> {
        Box::pin(std::future::ready(Err(CallError::NoCluster)))
    }
    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }
    fn health_check_failing(&self) -> bool {
        self.failing
    }
    fn cluster_members(&self, cluster: &str) -> Option<(u64, u64)> {
        self.members.get(cluster).copied()
    }
}

/// Runtime values by key, all integers.
#[derive(Default)]
pub(crate) struct FakeRuntime(pub BTreeMap<&'static str, u64>);

impl Runtime for FakeRuntime {
    fn integer(&self, key: &str) -> Option<u64> {
        self.0.get(key).copied()
    }
    fn double(&self, key: &str) -> Option<f64> {
        self.integer(key).map(|value| value as f64)
    }
    fn boolean(&self, key: &str) -> Option<bool> {
        self.integer(key).map(|value| value != 0)
    }
    fn string(&self, _: &str) -> Option<String> {
        None
    }
    fn fraction(&self, _: &str) -> Option<(u64, u64)> {
        None
    }
}

/// A route of a cluster.
#[derive(Default)]
pub(crate) struct FakeRoute {
    pub cluster: Option<&'static str>,
    pub metadata: serde_json::Map<String, serde_json::Value>,
    pub rate_limits: Vec<RateLimit>,
    pub of_virtual_host: Vec<RateLimit>,
}

impl FakeRoute {
    pub(crate) fn to(cluster: &'static str) -> Self {
        Self { cluster: Some(cluster), ..Self::default() }
    }
}

impl RouteView for FakeRoute {
    fn name(&self) -> &str {
        "route"
    }
    fn virtual_host(&self) -> &str {
        "host"
    }
    fn cluster(&self) -> Option<&str> {
        self.cluster
    }
    fn metadata(&self, namespace: &str) -> Option<&serde_json::Map<String, serde_json::Value>> {
        self.metadata.get(namespace)?.as_object()
    }
    fn filter_override(&self, _: &str) -> Option<&Override> {
        None
    }
    fn rate_limits(&self) -> &[RateLimit] {
        &self.rate_limits
    }
    fn virtual_host_rate_limits(&self) -> &[RateLimit] {
        &self.of_virtual_host
    }
}

/// A connection from 10.0.0.1:1234 to 10.0.0.2:80.
pub(crate) fn connection() -> ConnectionInfo {
    let address = |text: &str| Address::Ip(text.parse().unwrap());
    ConnectionInfo::new(1, address("10.0.0.1:1234"), address("10.0.0.2:80"), Instant::now())
}

pub(crate) fn stream() -> StreamContext {
    stream_with(connection(), FakeServices::default())
}

pub(crate) fn stream_with(connection: ConnectionInfo, services: FakeServices) -> StreamContext {
    let info = StreamInfo::new(Arc::new(connection), Instant::now(), SystemTime::now());
    let mut stream = StreamContext::new(info, 7, Arc::new(services));
    stream.route = Some(Arc::new(FakeRoute::to("service")));
    stream
}

/// `GET path` with headers and no body.
pub(crate) fn get(path: &'static str, headers: &[(&'static str, &'static str)]) -> Request {
    request(Method::GET, path, headers, Body::Empty)
}

pub(crate) fn request(
    method: Method,
    path: &'static str,
    headers: &[(&'static str, &'static str)],
    body: Body,
) -> Request {
    let mut head = RequestHead::new(method, HeaderValue::from_static("test.host"), HeaderValue::from_static(path));
    head.headers = header_map(headers);
    Request { head, body }
}

pub(crate) fn response(status: u16, headers: &[(&'static str, &'static str)], body: Body) -> Response {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
    head.headers = header_map(headers);
    Response { head, body }
}

pub(crate) fn header_map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair =
        |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    headers.iter().map(pair).collect()
}

/// `name: value` lines, sorted.
pub(crate) fn lines(headers: &HeaderMap) -> Vec<String> {
    let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
    let mut lines: Vec<_> = headers.iter().map(line).collect();
    lines.sort();
    lines
}

/// Runs a request hook to its end.
pub(crate) async fn on_request(
    filter: &mut dyn HttpFilter,
    request: &mut Request,
    stream: &mut StreamContext,
) -> Option<LocalReply> {
    finish(filter.on_request(request, stream)).await
}

/// Runs a response hook to its end.
pub(crate) async fn on_response(
    filter: &mut dyn HttpFilter,
    response: &mut Response,
    stream: &mut StreamContext,
) -> Option<LocalReply> {
    finish(filter.on_response(response, stream)).await
}

async fn finish(step: Step<'_>) -> Option<LocalReply> {
    let verdict = match step {
        Step::Continue => Verdict::Continue,
        Step::Reply(reply) => Verdict::Reply(reply),
        Step::Wait(wait) => wait.await,
    };
    match verdict {
        Verdict::Continue => None,
        Verdict::Reply(reply) => Some(*reply),
    }
}

/// The result of a hook that must not wait.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("waits"),
    }
}

/// All that is left of a body: its bytes and its trailers.
pub(crate) async fn drain(body: &mut Body) -> Result<(Vec<u8>, HeaderMap), BodyError> {
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok((data, trailers))
}
