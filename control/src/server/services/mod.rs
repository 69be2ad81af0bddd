//! The way in: all services of a control plane behind one port, over HTTP/2 and, for REST, HTTP/1. It must not know what is
//! served.

mod client_status;
mod discovery;
mod frames;
mod load_reporting;
mod rest;
#[cfg(test)]
mod tests;
pub(crate) mod token;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use client_status::ClientStatus;
use discovery::Method;
use http::{Request, Response, StatusCode};
use load_reporting::LoadReporting;
use tidegate_xds::pb::envoy::config::core::v3::ControlPlane;
use tidegate_xds::pb::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingServiceServer;
use tidegate_xds::pb::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryServiceServer;
use token::Tokens;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::body::Body;
use tower_service::Service;

use super::clients::Clients;
use super::connections::{Asked, Caller, Incoming, Limits};
use super::groups::Sets;
use super::loads::Loads;
use super::past::Past;
use super::stream::Context;
use super::tls::Tls;

/// Connections that say nothing are asked whether they are still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long they may take to answer: long, since a thousand of them that come back at once have much to read first.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// What clients' connections may do. A stream is a request for as long as it lasts, so that what comes to its end here has none.
const CONNECTIONS: Limits = Limits { most: 20_000, head: Duration::from_secs(10), idle: Duration::from_secs(300) };

/// How a server answers.
#[derive(Debug, Clone)]
pub struct Options {
    /// `control_plane.identifier` of each response.
    pub identifier: String,
    /// How often clients are to report their load.
    pub load_interval: Duration,
    /// One of these is to come with each call (`authorization: Bearer ...`); with none, anybody may call.
    pub tokens: Vec<String>,
    /// None: clients are spoken to in the clear.
    pub tls: Option<Arc<Tls>>,
}

/// A control plane's server.
#[derive(Debug)]
pub struct Server {
    context: Arc<Context>,
    loads: Arc<Loads>,
    load_interval: Duration,
    tokens: Arc<Tokens>,
    tls: Option<Arc<Tls>>,
    end: watch::Sender<bool>,
}

impl Server {
    /// Serves what `sets` holds, the newest as it changes.
    pub fn new(sets: watch::Receiver<Arc<Sets>>, options: Options) -> Self {
        let (end, ending) = watch::channel(false);
        let control_plane = ControlPlane { identifier: options.identifier };
        let past = Arc::new(Past::default());
        past.keep(&sets.borrow());
        let context = Context { sets, clients: Arc::default(), control_plane, past, ending };
        Self {
            context: Arc::new(context),
            loads: Arc::default(),
            load_interval: options.load_interval,
            tokens: Arc::new(Tokens::new(options.tokens)),
            tls: options.tls,
            end,
        }
    }

    /// The streams that are open.
    pub fn clients(&self) -> Arc<Clients> {
        self.context.clients.clone()
    }

    /// What clients reported last.
    pub fn loads(&self) -> Arc<Loads> {
        self.loads.clone()
    }

    /// Accepts until `end` is there; then all streams are told and ended.
    ///
    /// # Errors
    /// What makes it impossible to accept.
    pub async fn run(
        &self,
        listener: TcpListener,
        end: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let status = ClientStatusDiscoveryServiceServer::new(ClientStatus(self.clients()));
        let reporting =
            LoadReporting { context: self.context.clone(), loads: self.loads.clone(), interval: self.load_interval };
        let entrance = Entrance {
            context: self.context.clone(),
            tokens: self.tokens.clone(),
            status,
            reporting: LoadReportingServiceServer::new(reporting),
        };
        let incoming = Incoming::new(listener, CONNECTIONS, self.tls.clone());
        let ended = async {
            end.await;
            self.end.send_replace(true);
        };
        let following = async {
            match self.tls.clone() {
                Some(tls) => tls.follow().await,
                None => std::future::pending().await,
            }
        };
        let serving = tonic::transport::Server::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(1024)
            .serve_with_incoming_shutdown(entrance, incoming, ended);
        tokio::select! {
            served = serving => served,
            never = following => match never {},
            never = self.remember() => match never {},
        }
    }

    /// Keeps what was served for those who come back with it.
    async fn remember(&self) -> Infallible {
        let mut sets = self.context.sets.clone();
        while sets.changed().await.is_ok() {
            let newest = sets.borrow_and_update().clone();
            self.context.past.keep(&newest);
        }
        // There is nothing new any more.
        std::future::pending().await
    }
}

/// Finds the service of a path.
#[derive(Clone)]
struct Entrance {
    context: Arc<Context>,
    tokens: Arc<Tokens>,
    status: ClientStatusDiscoveryServiceServer<ClientStatus>,
    reporting: LoadReportingServiceServer<LoadReporting>,
}

impl Service<Request<Body>> for Entrance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut entrance = self.clone();
        let asked = Asked::new(&request);
        Box::pin(async move { entrance.route(request).await.map(|response| asked.answered(response)) })
    }
}

impl Entrance {
    async fn route(&mut self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path();
        let is_grpc = |kind: &http::HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
        let is_grpc = request.headers().get(http::header::CONTENT_TYPE).is_some_and(is_grpc);
        if !self.tokens.admit(request.headers()) {
            tracing::warn!(peer = ?peer(&request), path, "a call without a token that is known");
            return Ok(if is_grpc {
                tonic::Status::unauthenticated("a token is needed").into_http()
            } else {
                rest::text(StatusCode::UNAUTHORIZED, "a token is needed\n")
            });
        }
        if let Some((method, call)) = discovery::find(path, peer(&request)) {
            return Ok(match method {
                Method::Rest => rest::serve(&self.context, &call, request).await,
                method => discovery::grpc(self.context.clone(), method, call, request).await,
            });
        }
        if path.starts_with("/envoy.service.status.v3.ClientStatusDiscoveryService/") {
            return self.status.call(request).await;
        }
        if path.starts_with("/envoy.service.load_stats.v3.LoadReportingService/") {
            return self.reporting.call(request).await;
        }
        if is_grpc {
            return Ok(tonic::Status::unimplemented(format!("there is no {path}")).into_http());
        }
        Ok(rest::text(StatusCode::NOT_FOUND, "there is nothing here\n"))
    }
}

fn peer(request: &Request<Body>) -> Option<SocketAddr> {
    Caller::of(request).map(|caller| caller.peer)
}
