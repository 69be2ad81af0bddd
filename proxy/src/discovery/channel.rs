//! gRPC through a cluster: its hosts, balancing, breakers and stats carry the calls (`envoy_grpc`).
//! It must not know which service is called.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Version};
use tidegate_filters::context::GrpcService;
use tidegate_filters::http::body::{BodyError, Frame};
use tidegate_filters::http::filter::CallError;
use tidegate_filters::http::{Body, Request, RequestHead};

use crate::app::Shared;
use crate::cluster::pool::Pump;
use crate::http::headers::{X_ENVOY_INTERNAL, X_FORWARDED_FOR};
use crate::services;

/// Calls of one service; what `tonic` sends its messages through.
#[derive(Clone)]
pub(crate) struct Channel {
    shared: Weak<Shared>,
    service: Arc<GrpcService>,
}

impl Channel {
    pub(crate) fn new(shared: &Arc<Shared>, service: GrpcService) -> Self {
        Self { shared: Arc::downgrade(shared), service: Arc::new(service) }
    }

    pub(crate) fn max_message_bytes(&self) -> usize {
        self.service.max_message_bytes
    }

    fn head(&self, shared: &Shared, request: &http::request::Parts) -> RequestHead {
        let path = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let path = HeaderValue::from_str(path).unwrap_or_else(|_| HeaderValue::from_static("/"));
        let mut head = RequestHead::new(request.method.clone(), self.service.authority.clone(), path);
        head.version = Version::HTTP_2;
        head.headers = request.headers.clone();
        // The words of a library are not the proxy's.
        head.headers.remove(http::header::USER_AGENT);
        if self.service.envoy_headers {
            say_who(&mut head, shared);
        }
        for (name, value) in &self.service.metadata {
            head.headers.append(name, value.clone());
        }
        head
    }

    async fn send(self, request: http::Request<tonic::body::Body>) -> Result<http::Response<Driven>, CallError> {
        let (parts, body) = request.into_parts();
        let (cluster, head) = {
            let shared = self.shared.upgrade().ok_or(CallError::NoCluster)?;
            let cluster = shared.snapshot().clusters.get(self.service.cluster.as_str()).cloned();
            (cluster.ok_or(CallError::NoCluster)?, self.head(&shared, &parts))
        };
        let request = Request { head, body: Body::stream(Messages(body)) };
        let begun = services::begin(&cluster, request).await?;
        let mut response = http::Response::new(Driven { body: begun.response.body, pump: begun.pump });
        *response.status_mut() = begun.response.head.status;
        *response.headers_mut() = begun.response.head.headers;
        Ok(response)
    }
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<Driven>;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, CallError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// What Envoy adds to its own requests.
pub(super) fn say_who(head: &mut RequestHead, shared: &Shared) {
    head.headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    if let Some(value) = shared.node_address().and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok()) {
        head.headers.insert(X_FORWARDED_FOR, value);
    }
}

/// Messages on their way to the service.
struct Messages(tonic::body::Body);

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(|_| BodyError::Closed)))
    }
}

/// A response's body; whoever reads it also moves what is left of the request.
pub(crate) struct Driven {
    body: Body,
    pump: Option<Pump>,
}

impl http_body::Body for Driven {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Some(pump) = &mut self.pump
            && pump.as_mut().poll(cx).is_ready()
        {
            self.pump = None;
        }
        self.body.poll_frame(cx)
    }
}
