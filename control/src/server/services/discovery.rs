//! The discovery services: one table of paths, one way in for all of them. It must not know what is served.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tidegate_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::Codec;
use tonic::server::{Grpc, UnaryService};
use tonic::{Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::frames;
use crate::server::fetch::fetch;
use crate::server::resource_set::ResourceType;
use crate::server::stream::{self, Call, Context, Request};
use crate::server::{Delta, Dialect, Sotw};

/// The longest request that is read: a client that comes back says the version of each resource that it has.
const MAX_REQUEST_BYTES: usize = 32 << 20;

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Sotw,
    Delta,
    /// One request over gRPC.
    Fetch,
    /// One request in JSON.
    Rest,
}

/// Path, method, and the only type of the service.
const PATHS: &[(&str, Method, Option<ResourceType>)] = {
    use Method::{Delta, Fetch, Rest, Sotw};
    use ResourceType as T;
    &[
        ("/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources", Sotw, None),
        ("/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", Delta, None),
        ("/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters", Sotw, Some(T::CLUSTER)),
        ("/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters", Delta, Some(T::CLUSTER)),
        ("/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters", Fetch, Some(T::CLUSTER)),
        ("/v3/discovery:clusters", Rest, Some(T::CLUSTER)),
        ("/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints", Sotw, Some(T::ENDPOINTS)),
        ("/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints", Delta, Some(T::ENDPOINTS)),
        ("/envoy.service.endpoint.v3.EndpointDiscoveryService/FetchEndpoints", Fetch, Some(T::ENDPOINTS)),
        ("/v3/discovery:endpoints", Rest, Some(T::ENDPOINTS)),
        ("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", Sotw, Some(T::SECRET)),
        ("/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets", Delta, Some(T::SECRET)),
        ("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", Fetch, Some(T::SECRET)),
        ("/v3/discovery:secrets", Rest, Some(T::SECRET)),
        ("/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners", Sotw, Some(T::LISTENER)),
        ("/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners", Delta, Some(T::LISTENER)),
        ("/envoy.service.listener.v3.ListenerDiscoveryService/FetchListeners", Fetch, Some(T::LISTENER)),
        ("/v3/discovery:listeners", Rest, Some(T::LISTENER)),
        ("/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes", Sotw, Some(T::SCOPED_ROUTES)),
        ("/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes", Delta, Some(T::SCOPED_ROUTES)),
        ("/envoy.service.route.v3.ScopedRoutesDiscoveryService/FetchScopedRoutes", Fetch, Some(T::SCOPED_ROUTES)),
        ("/v3/discovery:scoped-routes", Rest, Some(T::SCOPED_ROUTES)),
        ("/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes", Sotw, Some(T::ROUTES)),
        ("/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes", Delta, Some(T::ROUTES)),
        ("/envoy.service.route.v3.RouteDiscoveryService/FetchRoutes", Fetch, Some(T::ROUTES)),
        ("/v3/discovery:routes", Rest, Some(T::ROUTES)),
        ("/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts", Delta, Some(T::VIRTUAL_HOST)),
        (
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
            Sotw,
            Some(T::EXTENSION),
        ),
        (
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
            Delta,
            Some(T::EXTENSION),
        ),
        (
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/FetchExtensionConfigs",
            Fetch,
            Some(T::EXTENSION),
        ),
        ("/v3/discovery:extension_configs", Rest, Some(T::EXTENSION)),
        ("/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime", Sotw, Some(T::RUNTIME)),
        ("/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime", Delta, Some(T::RUNTIME)),
        ("/envoy.service.runtime.v3.RuntimeDiscoveryService/FetchRuntime", Fetch, Some(T::RUNTIME)),
        ("/v3/discovery:runtime", Rest, Some(T::RUNTIME)),
    ]
};

/// What a path asks for, if it is one of discovery.
pub(super) fn find(path: &str, peer: Option<SocketAddr>) -> Option<(Method, Call)> {
    let (service, method, kind) = *PATHS.iter().find(|(known, ..)| *known == path)?;
    Some((method, Call { peer, service, kind }))
}

/// Answers a call of gRPC.
pub(super) async fn grpc(
    context: Arc<Context>,
    method: Method,
    call: Call,
    request: http::Request<tonic::body::Body>,
) -> http::Response<tonic::body::Body> {
    match method {
        Method::Delta => streaming::<Delta>(context, call, request).await,
        Method::Fetch | Method::Rest => {
            let codec = ProstCodec::<DiscoveryResponse, DiscoveryRequest>::default();
            Grpc::new(codec)
                .max_decoding_message_size(MAX_REQUEST_BYTES)
                .unary(Fetching { context, call }, request)
                .await
        }
        Method::Sotw => streaming::<Sotw>(context, call, request).await,
    }
}

async fn streaming<D: Dialect>(
    context: Arc<Context>,
    call: Call,
    request: http::Request<tonic::body::Body>,
) -> http::Response<tonic::body::Body>
where
    D::Request: Request + prost::Message + Default,
    D::Response: prost::Message,
{
    let encoding = request.headers().get("grpc-encoding");
    if encoding.is_some_and(|encoding| encoding != "identity") {
        return Status::unimplemented("requests must not be compressed").into_http();
    }
    let decoder = ProstCodec::<D::Response, D::Request>::default().decoder();
    let requests = Streaming::new_request(decoder, request.into_body(), None, Some(MAX_REQUEST_BYTES));
    let (sender, receiver) = mpsc::channel(1);
    let task = tokio::spawn(stream::serve::<D>(context, call, requests, sender));
    frames::respond(Responses::new(receiver, task))
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// The responses of a stream; whoever drops them ends the task that makes them.
pub(super) struct Responses<T> {
    receiver: ReceiverStream<Result<T, Status>>,
    task: tokio::task::JoinHandle<()>,
}

impl<T> tokio_stream::Stream for Responses<T> {
    type Item = Result<T, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        Pin::new(&mut self.receiver).poll_next(context)
    }
}

impl<T> Drop for Responses<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T> Responses<T> {
    pub(super) fn new(receiver: mpsc::Receiver<Result<T, Status>>, task: tokio::task::JoinHandle<()>) -> Self {
        Self { receiver: ReceiverStream::new(receiver), task }
    }
}

struct Fetching {
    context: Arc<Context>,
    call: Call,
}

impl UnaryService<DiscoveryRequest> for Fetching {
    type Response = DiscoveryResponse;
    type Future = Answer<DiscoveryResponse>;

    fn call(&mut self, request: tonic::Request<DiscoveryRequest>) -> Self::Future {
        // gRPC has no word for "as before".
        let request = DiscoveryRequest { version_info: String::new(), ..request.into_inner() };
        let answer = answer(&self.context, &self.call, &request);
        Box::pin(async move {
            answer.map(Response::new).ok_or_else(|| Status::invalid_argument("this service has no such type"))
        })
    }
}

/// The answer to a single request; none where the client has it already.
pub(super) fn answer(context: &Context, call: &Call, request: &DiscoveryRequest) -> Option<DiscoveryResponse> {
    let kind = call.kind?;
    let node = request.node.clone().unwrap_or_default();
    let set = context.sets.borrow().of(&node).1.clone();
    fetch(&set, kind, request, &context.control_plane)
}
