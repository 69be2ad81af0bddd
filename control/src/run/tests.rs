//! A whole control plane with a source of the tests'.

use std::net::SocketAddr;

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient;
use tidegate_xds::pb::envoy::service::discovery::v3::DiscoveryRequest;
use tidegate_xds::pb::google::rpc::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::server::testing::{cluster, set};

struct Given(mpsc::Receiver<Result<Arc<Sets>, Refused>>);

impl Source for Given {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        match self.0.recv().await {
            Some(next) => next,
            None => std::future::pending().await,
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> (String, serde_json::Value) {
    let (head, body) = ask(address, "GET", path, "", "").await;
    (head, serde_json::from_str(&body).unwrap_or_default())
}

/// A request over HTTP/1, with its whole answer.
pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (String, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

async fn status(address: SocketAddr, holds: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let start = Instant::now();
    loop {
        let (_, status) = get(address, "/status").await;
        if holds(&status) {
            return status;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "never: {status:#}");
    }
}

fn serving(names: &[&str]) -> Arc<Sets> {
    Arc::new(Sets { rest: set(names.iter().map(|name| cluster(name, ""))), groups: Vec::new() })
}

#[tokio::test]
async fn it_serves_tells_and_ends() {
    let (give, given) = mpsc::channel(4);
    give.send(Ok(serving(&["a"]))).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, admin_address) = (listener.local_addr().unwrap(), admin.local_addr().unwrap());
    let (end, ended) = oneshot::channel::<()>();
    let listen = Listen { clients: listener, admin: Some(admin), tokens: Vec::new(), tls: None, store: None };
    let running = tokio::spawn(run(Given(given), listen, async { drop(ended.await) }));

    let mut client = ClusterDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
    let (requests, receiver) = mpsc::channel(4);
    let node = Some(Node { id: "n".to_owned(), ..Node::default() });
    requests.send(DiscoveryRequest { node, ..DiscoveryRequest::default() }).await.unwrap();
    let mut responses = client.stream_clusters(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let first = responses.message().await.unwrap().unwrap();
    let error_detail = Some(Status { code: 13, message: "no".to_owned(), details: Vec::new() });
    let refuses = DiscoveryRequest { response_nonce: first.nonce, error_detail, ..DiscoveryRequest::default() };
    requests.send(refuses).await.unwrap();
    let told = status(admin_address, |status| status["clients"][0]["resources"]["refused"] == 1).await;
    let client = &told["clients"][0];
    assert_eq!((&client["node"], &client["types"][0]["refusal"]["reason"]), (&"n".into(), &"no".into()));
    assert_eq!(told["groups"][0]["resources"]["Cluster"], 1);

    give.send(Err(Refused { faults: vec!["a.yaml:1: no".to_owned()] })).await.unwrap();
    let told = status(admin_address, |status| status["source"]["refused"]["faults"][0] == "a.yaml:1: no").await;
    assert_eq!(told["groups"][0]["resources"]["Cluster"], 1);
    give.send(Ok(serving(&["a", "b"]))).await.unwrap();
    assert_eq!(responses.message().await.unwrap().unwrap().resources.len(), 2);
    status(admin_address, |status| status["source"]["refused"].is_null()).await;

    assert_eq!(get(admin_address, "/resources").await.1[0]["resources"][1]["name"], "b");
    let (head, one) = get(admin_address, "/resources/Cluster/b").await;
    assert_eq!((&one["name"], head.contains("etag: \"")), (&"b".into(), true));
    assert!(ask(admin_address, "DELETE", "/resources/Cluster/b", "", "").await.0.starts_with("HTTP/1.1 405"));
    assert_eq!(get(admin_address, "/loads").await.1, serde_json::json!([]));
    assert!(get(admin_address, "/ready").await.0.starts_with("HTTP/1.1 200"));
    assert!(get(admin_address, "/nothing").await.0.starts_with("HTTP/1.1 404"));
    end.send(()).unwrap();
    assert!(responses.message().await.is_err());
    drop((responses, requests));
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_wrong_at_the_start_ends_it() {
    let (give, given) = mpsc::channel(1);
    give.send(Err(Refused { faults: vec!["a.yaml:1: no".to_owned()] })).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = Listen { clients: listener, admin: None, tokens: Vec::new(), tls: None, store: None };
    let failed = run(Given(given), listen, std::future::pending()).await.unwrap_err();
    assert_eq!(failed.to_string(), "a.yaml:1: no");
}

#[tokio::test]
async fn resources_are_changed_over_http() {
    let directory = std::env::temp_dir().join(format!("tidegate-run-{}", std::process::id()));
    let store = Store::open(&directory, [], crate::source::Registries::default()).unwrap();
    let clients = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (served, address) = (clients.local_addr().unwrap(), admin.local_addr().unwrap());
    let listen =
        Listen { clients, admin: Some(admin), tokens: vec!["t".to_owned()], tls: None, store: Some(store.clone()) };
    let running = tokio::spawn(run(store.source(), listen, std::future::pending()));
    let token = "authorization: Bearer t\r\ncontent-type: application/yaml\r\n";
    let said = async |method: &str, path: &str, headers: &str, body: &str| {
        let (head, body) = ask(address, method, path, &format!("{token}{headers}"), body).await;
        (head.split(' ').nth(1).unwrap().to_owned(), body)
    };
    let body = |alt: &str| {
        format!("'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a|b\nalt_stat_name: '{alt}'\n")
    };
    let path = "/resources/Cluster/a%7Cb";
    for (method, path) in [("PUT", path), ("GET", "/resources"), ("GET", "/status"), ("GET", "/loads"), ("GET", "/")] {
        assert!(ask(address, method, path, "", &body("")).await.0.starts_with("HTTP/1.1 401"), "{method} {path}");
    }
    assert!(ask(address, "GET", "/ready", "", "").await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(said("PUT", path, "if-none-match: *\r\n", &body("x")).await.0, "200");
    assert_eq!(said("PUT", path, "if-none-match: *\r\n", &body("y")).await.0, "412");
    for wrong in ["origin: http://a.example\r\n", "origin: null\r\n", "sec-fetch-site: cross-site\r\n"] {
        assert_eq!(said("PUT", path, wrong, &body("x")).await.0, "403", "{wrong}");
        assert_eq!(said("GET", "/status", wrong, "").await.0, "403", "{wrong}");
    }
    let (head, _) = ask(address, "PUT", path, "authorization: Bearer t\r\n", &body("x")).await;
    assert!(head.starts_with("HTTP/1.1 415"), "{head}");
    let version = store.set().kind(crate::server::ResourceType::CLUSTER).get("a|b").unwrap().version.to_string();
    let matches = format!("if-match: \"{version}\"\r\n");
    assert_eq!(said("PUT", path, &matches, &body("y")).await.0, "200");
    let (code, reason) = said("PUT", path, &matches, &body("z")).await;
    assert!(code == "412" && reason.starts_with("Cluster 'a|b': found version "), "{code} {reason}");
    assert_eq!(said("PUT", path, "", "name: x").await.0, "422");
    assert_eq!(said("PUT", "/resources/Cluster/other", "", &body("z")).await.0, "422");
    let together = "resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: c\n  connect_timeout: 0s\n";
    let (code, reason) = said("POST", "/resources", "", together).await;
    assert!(code == "422" && reason.starts_with("body:4: resource 'c': "), "{code} {reason}");
    let together = together.replace("0s", "1s");
    let (code, told) = said("POST", "/resources?dry_run", "", &together).await;
    assert!(code == "200" && told.contains("\"name\": \"c\"") && store.set().len() == 1, "{told}");
    assert_eq!(said("POST", "/resources", "if-match: \"0\"\r\n", &together).await.0, "412");
    assert_eq!(said("POST", "/resources", "", &together).await.0, "200");
    assert_eq!(said("GET", &format!("{path}?group=default"), "", "").await.0, "200");
    let (code, reason) = said("GET", &format!("{path}?group=other"), "", "").await;
    assert!(code == "404" && reason == "there is no group 'other'\n", "{code} {reason}");
    assert_eq!(said("GET", &format!("{path}?groups=default"), "", "").await.0, "400");
    for query in ["?dry-run", "?dry_run=yes", "?x", "?dry_run&force"] {
        assert_eq!(said("POST", &format!("/resources{query}"), "", &together).await.0, "400", "{query}");
        assert_eq!(said("GET", &format!("/resources{query}"), "", "").await.0, "400", "{query}");
    }
    assert_eq!(said("POST", "/resources?dry_run=true", "", &together).await.0, "200");
    for (body, reason) in [
        ("[]", "found a list"),
        ("- name: x", "found a list"),
        ("", "found none"),
        ("resources: []", "found none"),
        (
            &format!("{together}{}", together.split_once('\n').unwrap().1),
            "body:5: there is a Cluster 'c' already, at body:2",
        ),
    ] {
        let (code, told) = said("POST", "/resources", "", body).await;
        assert!(code == "422" && told.contains(reason), "{body}: {code} {told}");
    }
    // Of JSON not all is YAML.
    let smiling = r#"{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a|b", "alt_stat_name": "\ud83d\ude00"}"#;
    let (code, told) = said("PUT", path, "", smiling).await;
    assert!(code == "200" && told.contains("😀"), "{told}");
    let mut client = ClusterDiscoveryServiceClient::connect(format!("http://{served}")).await.unwrap();
    let mut fetch = tonic::Request::new(DiscoveryRequest::default());
    fetch.metadata_mut().insert("authorization", "Bearer t".parse().unwrap());
    assert_eq!(client.fetch_clusters(fetch).await.unwrap().into_inner().resources.len(), 2);
    assert_eq!(said("DELETE", path, &matches, "").await.0, "412");
    assert_eq!(said("DELETE", path, "", "").await.0, "200");
    assert_eq!(said("DELETE", path, "", "").await.0, "404");
    assert_eq!(said("DELETE", "/resources/Nothing/x", "", "").await.0, "404");
    assert_eq!(said("PATCH", path, "", "").await.0, "405");
    // Bodies that do not come to their end take the places.
    let mut slow = Vec::new();
    for _ in 0..resources::MOST_BODIES {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("POST /resources HTTP/1.1\r\nhost: x\r\n{token}content-length: 9\r\n\r\nhalf");
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let start = Instant::now();
    let (head, _) = loop {
        let answer = ask(address, "POST", "/resources", token, "name: x").await;
        if answer.0.starts_with("HTTP/1.1 503") {
            break answer;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "never: {}", answer.0);
    };
    assert!(head.contains("retry-after: 1"), "{head}");
    drop(slow);
    while !said("POST", "/resources", "", "name: x").await.0.starts_with("422") {
        assert!(start.elapsed() < Duration::from_secs(20), "their places are free again");
    }
    running.abort();
    std::fs::remove_dir_all(directory).unwrap();
}
