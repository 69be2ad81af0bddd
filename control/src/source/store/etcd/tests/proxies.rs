//! Whole control planes over one etcd, and a proxy that goes from one to another.

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tidegate_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;
use crate::run::{self, Listen};
use crate::server::testing::{CDS, EDS};
use crate::source::{Registries, Store};

struct Plane {
    store: Arc<Store>,
    address: String,
    task: JoinHandle<Result<(), run::RunError>>,
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Plane {
    async fn start(url: EtcdUrl) -> Self {
        let store = within(Store::connect(url, Access::default(), [], Registries::default())).await.unwrap();
        let clients = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", clients.local_addr().unwrap());
        let listen = Listen { clients, admin: None, tokens: Vec::new(), tls: None, store: Some(store.clone()) };
        let task = tokio::spawn(run::run(store.source(), listen, std::future::pending()));
        Self { store, address, task }
    }
}

struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Proxy {
    /// Asks for all clusters and some endpoints, with what it has from before.
    async fn come(plane: &Plane, has: &[DeltaDiscoveryResponse]) -> Self {
        let mut client = within(AggregatedDiscoveryServiceClient::connect(plane.address.clone())).await.unwrap();
        let (requests, receiver) = mpsc::channel(16);
        for type_url in [CDS, EDS] {
            let of_type = has.iter().filter(|response| response.type_url == type_url);
            let request = DeltaDiscoveryRequest {
                node: Some(Node { id: "n".to_owned(), ..Node::default() }),
                type_url: type_url.to_owned(),
                resource_names_subscribe: if type_url == EDS { vec!["e".to_owned()] } else { Vec::new() },
                initial_resource_versions: of_type
                    .flat_map(|response| &response.resources)
                    .map(|resource| (resource.name.clone(), resource.version.clone()))
                    .collect(),
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(request).await.unwrap();
        }
        let responses = within(client.delta_aggregated_resources(ReceiverStream::new(receiver))).await.unwrap();
        Self { requests, responses: responses.into_inner() }
    }

    async fn hear(&mut self) -> DeltaDiscoveryResponse {
        let response = within(self.responses.message()).await.unwrap().unwrap();
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.unwrap();
        response
    }
}

#[tokio::test]
async fn a_proxy_that_moves_to_another_replica_is_told_nothing_that_it_has() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", "x"), cluster("b", ""), endpoints("e", "y")]);
    let member = fake.member().await;
    let (one, other) = (Plane::start(url(&[&member])).await, Plane::start(url(&[&member])).await);
    // Through one of them, so that the other reads what it wrote.
    within(one.store.change(put(cluster("b", "z"), None), false)).await.unwrap();
    until(|| other.store.set().version() == one.store.set().version()).await;
    let mut proxy = Proxy::come(&one, &[]).await;
    let has = [proxy.hear().await, proxy.hear().await];
    assert_eq!(has.iter().map(|response| response.resources.len()).collect::<Vec<_>>(), [2, 1]);
    drop((proxy, one));

    let mut proxy = Proxy::come(&other, &has).await;
    // What it is told first is what changes afterwards, or names nothing: it had the rest.
    within(other.store.change(put(cluster("c", ""), None), false)).await.unwrap();
    let told = loop {
        let response = proxy.hear().await;
        assert!(response.removed_resources.is_empty(), "{response:?}");
        if !response.resources.is_empty() {
            break response;
        }
    };
    let names: Vec<&str> = told.resources.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!((told.type_url.as_str(), names), (CDS, vec!["c"]));
}

#[tokio::test]
async fn what_etcd_has_against_a_change_is_told_over_http() {
    let fake = Fake::new();
    let member = fake.member().await;
    let store = within(Store::connect(url(&[&member]), Access::default(), [], Registries::default())).await.unwrap();
    let clients = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = admin.local_addr().unwrap();
    let listen = Listen { clients, admin: Some(admin), tokens: Vec::new(), tls: None, store: Some(store.clone()) };
    let running = tokio::spawn(run::run(store.source(), listen, std::future::pending()));
    let said = async |method: &str, path: &str, headers: &str, body: &str| {
        let headers = format!("content-type: application/yaml\r\n{headers}");
        let (head, body) = within(run::tests::ask(address, method, path, &headers, body)).await;
        (head.split(' ').nth(1).unwrap().to_owned(), body)
    };
    let one = "'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\n";
    let path = "/resources/Cluster/a";
    assert_eq!(said("PUT", path, "if-none-match: *\r\n", one).await.0, "200");
    assert_eq!(said("PUT", path, "if-none-match: *\r\n", one).await.0, "412");
    let status: serde_json::Value = serde_json::from_str(&said("GET", "/status", "", "").await.1).unwrap();
    assert_eq!(status["store"]["etcd"], member.address.to_string());
    assert_eq!((&status["store"]["revision"], &status["store"]["fault"]), (&2.into(), &serde_json::Value::Null));
    let many: String = (0..200)
        .map(|number| format!("- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: c{number}\n"))
        .collect();
    let (code, reason) = said("POST", "/resources", "", &format!("resources:\n{many}")).await;
    assert!(code == "413" && reason.contains("too many operations"), "{code} {reason}");
    fake.make(|state| state.leader = false);
    until(|| store.link().unwrap().fault.is_some()).await;
    let (code, reason) = said("DELETE", path, "", "").await;
    assert!(code == "503" && reason.contains("nothing was changed"), "{code} {reason}");
    let status: serde_json::Value = serde_json::from_str(&said("GET", "/status", "", "").await.1).unwrap();
    assert!(status["store"]["fault"]["reason"].as_str().is_some_and(|reason| reason.contains("no leader")), "{status}");
    assert_eq!(said("GET", path, "", "").await.0, "200");
    running.abort();
}
