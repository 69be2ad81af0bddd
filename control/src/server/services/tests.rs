//! All services over real sockets, by clients of ours and in JSON.

use std::time::Instant;

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterStats;
use tidegate_xds::pb::envoy::service::cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient;
use tidegate_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tidegate_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tidegate_xds::pb::envoy::service::load_stats::v3::LoadStatsRequest;
use tidegate_xds::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use tidegate_xds::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use tidegate_xds::pb::envoy::service::status::v3::{ClientStatusRequest, ConfigStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::*;
use crate::server::resource_set::ResourceSet;
use crate::server::testing::{CDS, EDS, cluster, endpoints, set};
use crate::server::{Group, ResourceType, State};

struct Running {
    address: SocketAddr,
    sets: watch::Sender<Arc<Sets>>,
    server: Arc<Server>,
    end: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Running {
    async fn start(sets: Sets) -> Self {
        Self::start_with(sets, Vec::new()).await
    }

    async fn start_with(sets: Sets, tokens: Vec<String>) -> Self {
        let (sender, receiver) = watch::channel(Arc::new(sets));
        let options = Options { identifier: "me".to_owned(), load_interval: Duration::from_secs(1), tokens, tls: None };
        let server = Arc::new(Server::new(receiver, options));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let running = server.clone();
        let task = tokio::spawn(async move { running.run(listener, async { drop(ended.await) }).await });
        Self { address, sets: sender, server, end: Some(end), task }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    fn serve(&self, set: Arc<ResourceSet>) {
        self.sets.send_replace(Arc::new(Sets { rest: set, groups: Vec::new() }));
    }

    async fn http(&self, method: &str, path: &str, body: &str) -> String {
        self.http_with(method, path, "", body).await
    }

    async fn http_with(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn node(id: &str) -> Option<Node> {
    Some(Node { id: id.to_owned(), ..Node::default() })
}

fn world(names: &[&str]) -> Sets {
    Sets { rest: set(names.iter().map(|name| cluster(name, ""))), groups: Vec::new() }
}

/// Waits for something that a server does by itself.
async fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(30), "it never happens");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_aggregated_delta_stream_follows_the_set_and_ends_with_the_server() {
    let mut running = Running::start(world(&["a"])).await;
    let (requests, receiver) = mpsc::channel(4);
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let request = DeltaDiscoveryRequest { node: node("n"), type_url: CDS.to_owned(), ..Default::default() };
    requests.send(request.clone()).await.unwrap();
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let first = responses.message().await.unwrap().unwrap();
    assert_eq!((first.resources[0].name.as_str(), first.control_plane.unwrap().identifier.as_str()), ("a", "me"));
    running.serve(set([cluster("a", ""), cluster("b", "")]));
    let second = responses.message().await.unwrap().unwrap();
    assert_eq!((second.resources.len(), second.resources[0].name.as_str()), (1, "b"));
    for response_nonce in [first.nonce, second.nonce] {
        requests.send(DeltaDiscoveryRequest { response_nonce, node: None, ..request.clone() }).await.unwrap();
    }
    let clients = running.server.clients();
    until(|| clients.all()[0].resources().iter().all(|status| status.state == State::Synced)).await;
    assert_eq!(clients.all()[0].node.id, "n");
    running.end.take().unwrap().send(()).unwrap();
    let ended = responses.message().await.unwrap_err();
    assert_eq!((ended.code(), ended.message()), (tonic::Code::Unavailable, "the control plane ends"));
    drop((responses, client, requests));
    running.task.await.unwrap().unwrap();
    assert!(clients.all().is_empty());
}

/// Its stream broke, and meanwhile a cluster went.
#[tokio::test]
async fn who_comes_back_has_the_clusters_of_its_version() {
    let running = Running::start(world(&["a"])).await;
    let ask = async |version_info: String| {
        let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
        let request = DiscoveryRequest { type_url: CDS.to_owned(), version_info, ..DiscoveryRequest::default() };
        let (requests, receiver) = mpsc::channel(1);
        requests.send(request).await.unwrap();
        let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
        responses.into_inner().message().await.unwrap().unwrap()
    };
    let mut version = ask(String::new()).await.version_info;
    for (now, told) in [("b", 2), ("c", 2)] {
        running.serve(set([cluster(now, "")]));
        // Once it is noticed, who has nothing is told of the newest alone.
        until(|| {
            running.server.context.past.find(&set([cluster(now, "")]).kind(ResourceType::CLUSTER).version()).is_some()
        })
        .await;
        assert_eq!(ask(version.clone()).await.resources.len(), told);
        version = ask(String::new()).await.version_info;
    }
}

#[tokio::test]
async fn services_of_one_type_know_it_and_no_other() {
    let running = Running::start(world(&["a"])).await;
    let mut client = ClusterDiscoveryServiceClient::new(running.channel().await);
    let ask = |type_url: &str| DiscoveryRequest { type_url: type_url.to_owned(), ..DiscoveryRequest::default() };
    let (requests, receiver) = mpsc::channel(4);
    requests.send(ask("")).await.unwrap();
    let mut responses = client.stream_clusters(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let first = responses.message().await.unwrap().unwrap();
    assert_eq!((first.resources.len(), first.type_url.as_str()), (1, CDS));
    requests.send(ask(EDS)).await.unwrap();
    let refused = responses.message().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let fetched = client.fetch_clusters(ask("")).await.unwrap().into_inner();
    assert_eq!((fetched.resources, fetched.version_info), (first.resources, first.version_info));
    let mut aggregated = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let untyped = tokio_stream::iter([ask("")]);
    let refused = aggregated.stream_aggregated_resources(untyped).await.unwrap().into_inner().message().await;
    assert_eq!(refused.unwrap_err().message(), "type URL is required for ADS");
}

#[tokio::test]
async fn each_group_has_its_own_set() {
    let group = Group { name: "edge".into(), pattern: node("edge-*").unwrap(), set: set([cluster("for-edge", "")]) };
    let running = Running::start(Sets { rest: set([cluster("for-all", "")]), groups: vec![group] }).await;
    for (id, expected) in [("edge-1", "for-edge"), ("n", "for-all")] {
        let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
        let request = DeltaDiscoveryRequest { node: node(id), type_url: CDS.to_owned(), ..Default::default() };
        let (requests, receiver) = mpsc::channel(1);
        requests.send(request).await.unwrap();
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
        let response = responses.into_inner().message().await.unwrap().unwrap();
        assert_eq!(response.resources[0].name, expected);
    }
}

#[tokio::test]
async fn rest_is_polled_in_json() {
    let running = Running::start(Sets { rest: set([endpoints("a", "")]), groups: Vec::new() }).await;
    let path = "/v3/discovery:endpoints";
    let answer = running.http("POST", path, r#"{"node": {"id": "n"}, "resource_names": ["a"]}"#).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("content-type: application/json"), "{answer}");
    let json: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(json["resources"][0]["@type"], EDS);
    assert_eq!(json["resources"][0]["cluster_name"], "a");
    let version = json["version_info"].as_str().unwrap();
    let again = format!(r#"{{"resource_names": ["a"], "version_info": "{version}"}}"#);
    assert!(running.http("POST", path, &again).await.starts_with("HTTP/1.1 304"));
    assert!(running.http("POST", path, "[").await.starts_with("HTTP/1.1 400"));
    assert!(running.http("GET", path, "").await.starts_with("HTTP/1.1 405"));
    assert!(running.http("POST", "/v3/discovery:nothing", "").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn client_status_and_load_reports_are_services_too() {
    let running = Running::start(world(&["a"])).await;
    let mut ads = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let (requests, receiver) = mpsc::channel(1);
    let request = DiscoveryRequest { node: node("n"), type_url: CDS.to_owned(), ..DiscoveryRequest::default() };
    requests.send(request).await.unwrap();
    let mut responses = ads.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    responses.message().await.unwrap().unwrap();
    let mut status = ClientStatusDiscoveryServiceClient::new(running.channel().await);
    let shown = status.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(shown.config[0].generic_xds_configs[0].config_status(), ConfigStatus::Stale);
    let stream = status.stream_client_status(tokio_stream::iter([ClientStatusRequest::default()])).await.unwrap();
    assert_eq!(stream.into_inner().message().await.unwrap().unwrap(), shown);

    let mut lrs = LoadReportingServiceClient::new(running.channel().await);
    let (reports, receiver) = mpsc::channel(1);
    reports.send(LoadStatsRequest { node: node("n"), cluster_stats: Vec::new() }).await.unwrap();
    let mut wishes = lrs.stream_load_stats(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let wish = wishes.message().await.unwrap().unwrap();
    assert_eq!((wish.clusters, wish.send_all_clusters), (vec!["a".to_owned()], false));
    assert_eq!(wish.load_reporting_interval.unwrap().seconds, 1);
    let stats = ClusterStats { cluster_name: "a".to_owned(), total_dropped_requests: 7, ..ClusterStats::default() };
    reports.send(LoadStatsRequest { node: None, cluster_stats: vec![stats] }).await.unwrap();
    let loads = running.server.loads();
    until(|| loads.all().first().is_some_and(|load| load.stats.total_dropped_requests == 7)).await;
}

#[tokio::test]
async fn a_client_that_does_not_listen_is_told_the_newest_only() {
    let running = Running::start(world(&[])).await;
    let big = "x".repeat(300_000);
    let mut client = ClusterDiscoveryServiceClient::new(running.channel().await);
    let (requests, receiver) = mpsc::channel(1);
    requests.send(DiscoveryRequest::default()).await.unwrap();
    let mut responses = client.stream_clusters(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    responses.message().await.unwrap().unwrap();
    let changes = 200;
    let mut version = String::new();
    for change in 0..changes {
        let set = set([cluster("a", &format!("{change}{big}"))]);
        version = set.kind(crate::server::ResourceType::CLUSTER).version();
        running.serve(set);
        // Lets the server send as much as it can.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    let mut heard = 0;
    loop {
        heard += 1;
        if responses.message().await.unwrap().unwrap().version_info == version {
            break;
        }
    }
    assert!(heard < changes / 2, "{heard} responses were kept for a client that did not listen");
}

#[tokio::test]
async fn a_stream_holds_no_more_names_than_it_may() {
    let running = Running::start(world(&["a"])).await;
    let ask = async |names: Vec<Vec<String>>| {
        let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
        let requests = names.into_iter().map(|resource_names_subscribe| DeltaDiscoveryRequest {
            type_url: EDS.to_owned(),
            resource_names_subscribe,
            ..Default::default()
        });
        // It stays open: only a refusal ends it.
        let requests = tokio_stream::StreamExt::chain(tokio_stream::iter(requests), tokio_stream::pending());
        let mut responses = client.delta_aggregated_resources(requests).await.unwrap().into_inner();
        loop {
            if let Err(status) = responses.message().await {
                return (status.code(), status.message().to_owned());
            }
        }
    };
    let (code, reason) = ask(vec![vec!["x".repeat(5000)]]).await;
    assert_eq!((code, reason.as_str()), (tonic::Code::ResourceExhausted, "a name may have 4096 bytes"));
    let names = |from: usize| (from..from + 300).map(|number| format!("{number:04000}")).collect::<Vec<_>>();
    let (code, reason) = ask((0..10).map(|part| names(part * 300)).collect()).await;
    assert_eq!(code, tonic::Code::ResourceExhausted);
    assert_eq!(reason, "the names that one stream asks for may have 8388608 bytes together");
}

#[tokio::test]
async fn who_has_no_token_is_turned_away() {
    let running = Running::start_with(world(&["a"]), vec!["secret".to_owned()]).await;
    let mut client = ClusterDiscoveryServiceClient::new(running.channel().await);
    let refused = client.fetch_clusters(DiscoveryRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let mut request = tonic::Request::new(DiscoveryRequest::default());
    request.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(client.fetch_clusters(request).await.unwrap().into_inner().resources.len(), 1);
    assert!(running.http("POST", "/v3/discovery:clusters", "{}").await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn what_grpc_cannot_read_is_refused_in_its_words() {
    let running = Running::start(world(&["a"])).await;
    let grpc = "content-type: application/grpc\r\n";
    let path = "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters";
    let compressed = running.http_with("POST", path, &format!("{grpc}grpc-encoding: gzip\r\n"), "").await;
    assert!(compressed.contains("grpc-status: 12"), "{compressed}");
    let unknown = running.http_with("POST", "/envoy.service.none/Stream", grpc, "").await;
    assert!(unknown.contains("grpc-status: 12"), "{unknown}");
}
