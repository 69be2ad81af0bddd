//! The contract between a stream and its HTTP filters, downstream and upstream alike.
//! It must not know the router, snapshots or sockets; what a filter needs of the proxy is a narrow trait here.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tidegate_xds::{Coverage, FieldError};

use super::rate_limit::RateLimit;
use super::{Body, LocalReply, RequestHead, ResponseHead};
use crate::context::CompileContext;
use crate::runtime::Fraction;
use crate::stream_info::StreamInfo;

/// A request on its way through the filters.
#[derive(Debug)]
pub struct Request {
    pub head: RequestHead,
    pub body: Body,
}

/// A response on its way back.
#[derive(Debug)]
pub struct Response {
    pub head: ResponseHead,
    pub body: Body,
}

/// What a header hook answers. Nothing is allocated when it is ready at once.
pub enum Step<'a> {
    Continue,
    /// Waits; other streams and the other direction go on.
    Wait(Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>),
    /// Ends the exchange with a reply that the proxy makes.
    Reply(Box<LocalReply>),
}

/// What a wait ends in.
pub enum Verdict {
    Continue,
    Reply(Box<LocalReply>),
}

impl<'a> Step<'a> {
    pub fn wait(future: impl Future<Output = Verdict> + Send + 'a) -> Self {
        Self::Wait(Box::pin(future))
    }

    pub fn reply(reply: LocalReply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// One filter of one stream. Request hooks run in the chain's order, response hooks in reverse.
///
/// A body is changed by wrapping it (`request.body = Body::stream(Mine::new(request.body.take()))`): the wrapper is
/// pulled while the other direction runs, may emit after its input has ended and may add trailers. A hook that must see
/// the whole body first waits, reads it up to its limit, and puts back a whole one.
pub trait HttpFilter: Send {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let _ = (request, stream);
        Step::Continue
    }

    /// Runs for local replies too, as Envoy's encoder filters do.
    fn on_response<'a>(&'a mut self, response: &'a mut Response, stream: &'a mut StreamContext) -> Step<'a> {
        let _ = (response, stream);
        Step::Continue
    }

    /// An informational response (100, 102, 103) on its way down, while the request may still go up.
    fn on_informational(&mut self, head: &mut ResponseHead) {
        let _ = head;
    }

    /// Always runs, once, last; also when the stream was cut.
    fn on_complete(&mut self, stream: &mut StreamContext) {
        let _ = stream;
    }
}

/// A filter's compiled configuration: shared by all its streams.
pub trait HttpFilterConfig: Send + Sync {
    /// A filter for one stream, or `None` when it has nothing to do on it and is left out.
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>>;
}

/// A compiled `typed_per_filter_config` of one filter on one level.
pub type OverrideConfig = Arc<dyn Any + Send + Sync>;

/// What one filter's entries in `typed_per_filter_config` say, all levels merged by the filter's own rule.
#[derive(Clone, Default)]
pub struct Override {
    /// From the `FilterConfig` wrapper; most specific level wins.
    pub disabled: Option<bool>,
    pub config: Option<OverrideConfig>,
    /// All levels: what one counts in is there although a more specific one acts.
    pub levels: Vec<OverrideConfig>,
}

/// The override for the filter that is being made, if its route has one.
#[derive(Clone, Copy, Default)]
pub struct Overrides<'a>(pub Option<&'a Override>);

impl<'a> Overrides<'a> {
    /// The override's configuration as the filter's own type.
    pub fn get<T: 'static>(&self) -> Option<&'a T> {
        self.0?.config.as_ref()?.downcast_ref()
    }

    /// The same, shared.
    pub fn shared<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        Arc::clone(self.0?.config.as_ref()?).downcast().ok()
    }
}

/// Makes a filter's configuration from its proto: one per type URL, registered in one sorted list.
pub trait FilterFactory: Send + Sync {
    /// The full name of the configuration's message, e.g. `envoy.extensions.filters.http.cors.v3.Cors`.
    fn message(&self) -> &'static str;

    /// The message of its `typed_per_filter_config`, when it takes one.
    fn override_message(&self) -> Option<&'static str> {
        None
    }

    /// Whether it may stand in a chain that runs once an attempt, as in Envoy.
    fn works_upstream(&self) -> bool {
        false
    }

    /// Which fields act, for every message that the configuration may hold (its own, and those below it).
    fn coverage(&self) -> &'static [Coverage];

    /// Pure: any bytes give a configuration or an error that names the field.
    fn compile(&self, config: &[u8], context: &mut CompileContext<'_>)
    -> Result<Arc<dyn HttpFilterConfig>, FieldError>;

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        let _ = config;
        Err(context.error("this filter takes no per-route configuration"))
    }

    /// Merges the levels, least specific first. Most filters take the most specific, as here.
    fn merge(&self, levels: &[OverrideConfig]) -> Option<OverrideConfig> {
        levels.last().cloned()
    }
}

/// What a filter sees of its stream, and may ask for.
pub struct StreamContext {
    pub info: StreamInfo,
    /// Request headers as the access log will see them are the router's; this is what the filter asked for.
    pub asks: Asks,
    /// The route that was chosen, when one was; cleared by `clear_route_cache`.
    pub route: Option<Arc<dyn RouteView>>,
    /// Where the request found no route, and one may come.
    pub lazy_routes: Option<Lacking>,
    /// Randomness of this stream, the same for every look at its route; filters [`StreamContext::draw`] theirs.
    pub random: u64,
    pub services: Arc<dyn Services>,
    draws: u64,
}

/// What filters asked of the connection manager since it last looked.
#[derive(Debug, Default, Clone)]
pub struct Asks {
    /// Choose the route again before the next filter.
    pub clear_route: bool,
    /// Run the exchange again from its configuration on, with the request as it is now.
    pub recreate: bool,
}

impl StreamContext {
    pub fn new(info: StreamInfo, random: u64, services: Arc<dyn Services>) -> Self {
        Self { info, asks: Asks::default(), route: None, lazy_routes: None, random, services, draws: 0 }
    }

    /// A random number that nobody else on this stream sees: two shares drawn one after the other are independent.
    pub fn draw(&mut self) -> u64 {
        self.draws += 1;
        // SplitMix64, seeded by the stream.
        let mut z = self.random.wrapping_add(self.draws.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether this stream is in a share that is drawn for it alone.
    pub fn is_in(&mut self, fraction: &Fraction) -> bool {
        let random = self.draw();
        fraction.holds(self.services.runtime(), random)
    }

    /// Choose the route again: something that routes depend on has changed.
    pub fn clear_route_cache(&mut self) {
        self.asks.clear_route = true;
    }

    /// Begin anew (Envoy's `recreateStream`): another snapshot, another route, filters from the first one on. Acts when
    /// the hook returns `Continue`; from the response side only while the request had no body. What filters did to
    /// the request stays. A stream is begun anew a few times at most.
    pub fn recreate_stream(&mut self) {
        self.asks.recreate = true;
    }
}

/// A chosen route, as far as filters may look at it.
pub trait RouteView: Send + Sync {
    fn name(&self) -> &str;
    fn virtual_host(&self) -> &str;
    /// `None` for redirects and direct responses.
    fn cluster(&self) -> Option<&str>;
    /// `metadata.filter_metadata[namespace]` of the route.
    fn metadata(&self, namespace: &str) -> Option<&serde_json::Map<String, serde_json::Value>>;
    /// Merged overrides of the filter that is configured under this name.
    fn filter_override(&self, name: &str) -> Option<&Override>;
    /// `rate_limits` of the route itself.
    fn rate_limits(&self) -> &[RateLimit] {
        &[]
    }
    /// `rate_limits` of its virtual host.
    fn virtual_host_rate_limits(&self) -> &[RateLimit] {
        &[]
    }
    /// The deprecated `include_vh_rate_limits`: both lists count, not the virtual host's only where the route has none.
    fn include_virtual_host_rate_limits(&self) -> bool {
        false
    }
}

/// What a stream without a route may still ask for.
pub struct Lacking {
    pub routes: Arc<dyn LazyRoutes>,
    /// The version of the configuration that had no route for it.
    pub seen: u64,
}

impl Lacking {
    /// See [`LazyRoutes::ask`].
    pub fn ask(&self, head: &RequestHead) -> Option<Asking> {
        self.routes.ask(head, self.seen)
    }
}

/// Ends in whether something has come that a stream which begins anew will find.
pub type Asking = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Routes that come when they are asked for.
pub trait LazyRoutes: Send + Sync {
    /// Asks for what this request lacks in the configuration of the version `seen`; none where there is nothing that could come.
    fn ask(&self, head: &RequestHead, seen: u64) -> Option<Asking>;
}

/// What the proxy does for filters.
pub trait Services: Send + Sync {
    /// Sends a request through a cluster and returns the response with its body whole.
    fn call(&self, call: ServiceCall) -> Pin<Box<dyn Future<Output = Result<Response, CallError>> + Send>>;
    fn runtime(&self) -> &dyn crate::runtime::Runtime;
    /// The cluster that this node belongs to (`--service-cluster`).
    fn node_cluster(&self) -> &str {
        ""
    }
    /// Whether `/healthcheck/fail` was asked for.
    fn health_check_failing(&self) -> bool;
    /// What a cluster is called among the stats: its name or `alt_stat_name`; `None` when there is no such cluster.
    fn cluster_stat_name(&self, cluster: &str) -> Option<String> {
        Some(cluster.to_owned())
    }
    /// Hosts of a cluster that are healthy or degraded, and all of them; `None` when there is no such cluster.
    fn cluster_members(&self, cluster: &str) -> Option<(u64, u64)>;
}

/// A call to a service, by the name of its cluster.
pub struct ServiceCall {
    pub cluster: String,
    pub request: Request,
    /// For all of it, connecting included.
    pub timeout: Duration,
    /// A response whose body is longer fails the call.
    pub max_body_bytes: usize,
}

/// Why a service call through a cluster gave no response.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no such cluster")]
    NoCluster,
    #[error("no host of the cluster can take it")]
    NoHost,
    #[error("the call timed out")]
    TimedOut,
    #[error("the response is longer than {0} bytes")]
    TooLong(usize),
    #[error("no response: {0}")]
    Reset(String),
}

/// Adds every value of `from` to `to`.
pub fn append_all(to: &mut HeaderMap, from: &HeaderMap) {
    for (name, value) in from {
        to.append(name.clone(), value.clone());
    }
}
