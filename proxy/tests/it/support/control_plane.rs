//! A control plane on a script: what a proxy asks is read by the test, and what it gets is what the test sends.

use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_xds::pb::envoy::config::core::v3::ControlPlane as Identifier;
use tidegate_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tidegate_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use tidegate_xds::pb::envoy::service::endpoint::v3::endpoint_discovery_service_server::{
    EndpointDiscoveryService, EndpointDiscoveryServiceServer,
};
use tidegate_xds::pb::envoy::service::route::v3::route_discovery_service_server::{
    RouteDiscoveryService, RouteDiscoveryServiceServer,
};
use tidegate_xds::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use tidegate_xds::pb::google::protobuf::Any;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::Stream;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream, UnixListenerStream};
use tonic::metadata::MetadataMap;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::gateway::Directory;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a proxy asked, in either dialect.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
    /// It opened a stream.
    Connected,
    /// A stream of route configurations alone is over.
    Closed,
}

impl Asked {
    /// In short: the type's last word, version, nonce, names, and `!` where it is a rejection.
    pub fn short(&self) -> String {
        let word = |url: &str| url.rsplit('.').next().unwrap_or_default().to_owned();
        match self {
            Self::Sotw(asked) => {
                let bad = if asked.error_detail.is_some() { " !" } else { "" };
                let names = asked.resource_names.join(",");
                format!("{} v{} n{} [{names}]{bad}", word(&asked.type_url), asked.version_info, asked.response_nonce)
            }
            Self::Delta(asked) => {
                let bad = if asked.error_detail.is_some() { " !" } else { "" };
                let plus = asked.resource_names_subscribe.join(",");
                let minus = asked.resource_names_unsubscribe.join(",");
                let mut here: Vec<_> = asked.initial_resource_versions.iter().collect();
                here.sort();
                let here: Vec<_> = here.iter().map(|(name, version)| format!("{name}@{version}")).collect();
                let here = here.join(",");
                format!("{} n{} +[{plus}] -[{minus}] has[{here}]{bad}", word(&asked.type_url), asked.response_nonce)
            }
            Self::Connected => "connected".to_owned(),
            Self::Closed => "closed".to_owned(),
        }
    }
}

type Out<T> = Mutex<Option<UnboundedSender<Result<T, Status>>>>;

struct Service {
    asked: Mutex<Sender<Asked>>,
    /// Of the aggregated stream that was opened last.
    headers: Mutex<MetadataMap>,
    sotw: Out<DiscoveryResponse>,
    delta: Out<DeltaDiscoveryResponse>,
}

impl Service {
    fn follow<T: Send + 'static>(&self, mut incoming: Streaming<T>, wrap: fn(T) -> Asked) {
        let asked = self.asked.lock().unwrap().clone();
        let _ = asked.send(Asked::Connected);
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let _ = asked.send(wrap(message));
            }
        });
    }
}

impl Service {
    /// A stream of one type, whose end is told.
    fn follow_own(&self, request: Request<Streaming<DiscoveryRequest>>) -> Response<Answers<DiscoveryResponse>> {
        let (sender, receiver) = unbounded_channel();
        let asked = self.asked.lock().unwrap().clone();
        let watched = sender.clone();
        tokio::spawn(async move {
            watched.closed().await;
            let _ = asked.send(Asked::Closed);
        });
        *self.sotw.lock().unwrap() = Some(sender);
        self.follow(request.into_inner(), Asked::Sotw);
        Response::new(Box::pin(UnboundedReceiverStream::new(receiver)))
    }
}

/// Endpoints, on a stream of their own.
#[tonic::async_trait]
impl EndpointDiscoveryService for Service {
    type StreamEndpointsStream = Answers<DiscoveryResponse>;
    type DeltaEndpointsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_endpoints(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamEndpointsStream>, Status> {
        Ok(self.follow_own(request))
    }

    async fn delta_endpoints(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaEndpointsStream>, Status> {
        Err(Status::unimplemented("only state of the world"))
    }

    async fn fetch_endpoints(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("no REST"))
    }
}

/// Route configurations, on a stream of their own.
#[tonic::async_trait]
impl RouteDiscoveryService for Service {
    type StreamRoutesStream = Answers<DiscoveryResponse>;
    type DeltaRoutesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_routes(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamRoutesStream>, Status> {
        Ok(self.follow_own(request))
    }

    async fn delta_routes(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaRoutesStream>, Status> {
        Err(Status::unimplemented("only state of the world"))
    }

    async fn fetch_routes(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("no REST"))
    }
}

/// Secrets, on a stream of their own.
#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(self.follow_own(request))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("only state of the world"))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("no REST"))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (sender, receiver) = unbounded_channel();
        *self.sotw.lock().unwrap() = Some(sender);
        *self.headers.lock().unwrap() = request.metadata().clone();
        self.follow(request.into_inner(), Asked::Sotw);
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (sender, receiver) = unbounded_channel();
        *self.delta.lock().unwrap() = Some(sender);
        self.follow(request.into_inner(), Asked::Delta);
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

pub struct ControlPlane {
    pub port: u16,
    asked: Receiver<Asked>,
    service: Arc<Service>,
}

impl ControlPlane {
    pub fn start() -> Self {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let port = socket.local_addr().unwrap().port();
        Self::serve(port, || TcpListenerStream::new(tokio::net::TcpListener::from_std(socket).unwrap()))
    }

    /// One behind a unix socket; its `port` means nothing.
    pub fn start_at(path: &std::path::Path) -> Self {
        let socket = std::os::unix::net::UnixListener::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self::serve(1, || UnixListenerStream::new(tokio::net::UnixListener::from_std(socket).unwrap()))
    }

    fn serve<S, C>(port: u16, incoming: impl FnOnce() -> S + Send + 'static) -> Self
    where
        S: Stream<Item = std::io::Result<C>>,
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let (sender, asked) = channel();
        let service = Arc::new(Service {
            asked: Mutex::new(sender),
            headers: Mutex::default(),
            sotw: Mutex::default(),
            delta: Mutex::default(),
        });
        let all = AggregatedDiscoveryServiceServer::from_arc(Arc::clone(&service));
        let routes = RouteDiscoveryServiceServer::from_arc(Arc::clone(&service));
        let endpoints = EndpointDiscoveryServiceServer::from_arc(Arc::clone(&service));
        let secrets = SecretDiscoveryServiceServer::from_arc(Arc::clone(&service));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut server = tonic::transport::Server::builder();
                let server = server.add_service(all).add_service(routes).add_service(endpoints).add_service(secrets);
                server.serve_with_incoming(incoming()).await.unwrap();
            });
        });
        Self { port, asked, service }
    }

    /// A bootstrap that asks here for everything.
    pub fn bootstrap(&self, dialect: &str) -> String {
        bootstrap_of(self.port, dialect)
    }

    /// What is asked next.
    pub fn next(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).expect("nothing was asked")
    }

    /// The same, in short.
    pub fn asked(&self) -> String {
        self.next().short()
    }

    /// What came with the stream that was opened last, under a name.
    pub fn headers(&self, name: &str) -> Vec<String> {
        let headers = self.service.headers.lock().unwrap();
        headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    /// Answers on the stream that was opened last. Resources are YAML with their `@type`.
    pub fn answer(&self, version: &str, nonce: &str, resources: &[String]) {
        let resources: Vec<Any> = resources.iter().map(|text| any(text)).collect();
        let type_url = resources.first().map(|any| any.type_url.clone()).unwrap_or_default();
        self.answer_as(&type_url, version, nonce, resources);
    }

    pub fn answer_as(&self, type_url: &str, version: &str, nonce: &str, resources: Vec<Any>) {
        self.send(type_url, version, nonce, resources, None);
    }

    /// The same as somebody of this name.
    pub fn answer_by(&self, identifier: &str, version: &str, nonce: &str, resources: &[String]) {
        let resources: Vec<Any> = resources.iter().map(|text| any(text)).collect();
        let type_url = resources.first().map(|any| any.type_url.clone()).unwrap_or_default();
        self.send(&type_url, version, nonce, resources, Some(Identifier { identifier: identifier.to_owned() }));
    }

    fn send(&self, type_url: &str, version: &str, nonce: &str, resources: Vec<Any>, control_plane: Option<Identifier>) {
        let response = DiscoveryResponse {
            version_info: version.to_owned(),
            resources,
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            control_plane,
            ..DiscoveryResponse::default()
        };
        self.service.sotw.lock().unwrap().as_ref().unwrap().send(Ok(response)).unwrap();
    }

    /// Answers a delta stream with virtual hosts: each with its name, version and aliases; none where there is no such host.
    pub fn find(&self, nonce: &str, hosts: &[(&str, &str, &[&str], Option<String>)]) {
        let resources = hosts.iter().map(|(name, version, aliases, text)| Resource {
            name: (*name).to_owned(),
            version: (*version).to_owned(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            resource: text.as_ref().map(|text| any(text)),
            ..Resource::default()
        });
        let response = DeltaDiscoveryResponse {
            system_version_info: nonce.to_owned(),
            resources: resources.collect(),
            type_url: "type.googleapis.com/envoy.config.route.v3.VirtualHost".to_owned(),
            nonce: nonce.to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        self.service.delta.lock().unwrap().as_ref().unwrap().send(Ok(response)).unwrap();
    }

    /// Answers a delta stream: resources with names and versions, and names of what is gone.
    pub fn change(&self, type_url: &str, nonce: &str, came: &[(&str, &str, String)], gone: &[&str]) {
        let resources = came.iter().map(|(name, version, text)| Resource {
            name: (*name).to_owned(),
            version: (*version).to_owned(),
            resource: Some(any(text)),
            ..Resource::default()
        });
        let response = DeltaDiscoveryResponse {
            resources: resources.collect(),
            type_url: type_url.to_owned(),
            removed_resources: gone.iter().map(|name| (*name).to_owned()).collect(),
            nonce: nonce.to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        self.service.delta.lock().unwrap().as_ref().unwrap().send(Ok(response)).unwrap();
    }

    /// Ends the streams.
    pub fn hang_up(&self) {
        self.service.sotw.lock().unwrap().take();
        self.service.delta.lock().unwrap().take();
    }
}

/// A bootstrap that asks the control plane at `port` for everything: `dialect` is GRPC or DELTA_GRPC.
pub fn bootstrap_of(port: u16, dialect: &str) -> String {
    format!(
            "node: {{ id: node, cluster: test }}
dynamic_resources:
  ads_config:
    api_type: {dialect}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{ envoy_grpc: {{ cluster_name: xds }} }}]
  cds_config: {{ ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s }}
  lds_config: {{ ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s }}
static_resources:
  clusters:
  - name: xds
    connect_timeout: 1s
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: xds
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}]
"
    )
}

/// A resource from YAML with its `@type`.
pub fn any(text: &str) -> Any {
    let decoded = tidegate_xds::decode(
        "google.protobuf.Any",
        text.as_bytes(),
        tidegate_xds::Format::Yaml,
        tidegate_xds::UnknownFields::Reject,
    )
    .unwrap();
    tidegate_xds::any::decode(&decoded.bytes, &tidegate_xds::FieldPath::root()).unwrap()
}

/// `tidegate control` on a directory of one file; killed when dropped.
pub struct Own(std::process::Child);

impl Own {
    pub fn start(directory: &Directory, port: u16, resources: &[String]) -> Self {
        std::fs::create_dir_all(directory.0.join("source")).unwrap();
        let indented: Vec<_> = resources.iter().map(|resource| format!("- {resource}\n")).collect();
        std::fs::write(directory.0.join("source/all.yaml"), format!("resources:\n{}", indented.concat())).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("control").arg("--source").arg(directory.0.join("source"));
        command.args(["--listen", &format!("127.0.0.1:{port}")]).stderr(std::process::Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
