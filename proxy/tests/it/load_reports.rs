//! What a control plane is told of loads (LRS): from when on, of which clusters, how it is divided.

use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterStats;
use tidegate_xds::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use tidegate_xds::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use tidegate_xds::pb::google::protobuf::Duration as DurationProto;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::support::gateway::{eventually, free_port};
use crate::support::upstream::{Answer, ok};
use crate::support::{Client, Gateway, Upstream, http_bootstrap};

/// Reads reports, and says what it wants when the test does.
struct Server {
    port: u16,
    told: Receiver<LoadStatsRequest>,
    service: Arc<Service>,
}

struct Service {
    told: Mutex<Sender<LoadStatsRequest>>,
    wishes: Mutex<Option<UnboundedSender<Result<LoadStatsResponse, Status>>>>,
}

#[tonic::async_trait]
impl LoadReportingService for Service {
    type StreamLoadStatsStream = Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let (sender, receiver) = unbounded_channel();
        *self.wishes.lock().unwrap() = Some(sender);
        let (told, mut incoming) = (self.told.lock().unwrap().clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let _ = told.send(message);
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

impl Server {
    fn start() -> Self {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (sender, told) = channel();
        let service = Arc::new(Service { told: Mutex::new(sender), wishes: Mutex::default() });
        let server = LoadReportingServiceServer::from_arc(Arc::clone(&service));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = tokio::net::TcpListener::from_std(socket).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(socket);
                tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming).await.unwrap();
            });
        });
        Self { port, told, service }
    }

    fn next(&self) -> LoadStatsRequest {
        self.told.recv_timeout(Duration::from_secs(20)).expect("a report")
    }

    fn wish(&self, wish: LoadStatsResponse) {
        let interval = DurationProto { seconds: 0, nanos: 50_000_000 };
        let wish = LoadStatsResponse { load_reporting_interval: Some(interval), ..wish };
        self.service.wishes.lock().unwrap().as_ref().unwrap().send(Ok(wish)).unwrap();
    }

    /// All that is told of a cluster until `enough`.
    fn until(&self, cluster: &str, enough: impl Fn(&Sum) -> bool) -> Sum {
        let mut sum = Sum::default();
        for _ in 0..400 {
            let report = self.next();
            report.cluster_stats.iter().filter(|stats| stats.cluster_name == cluster).for_each(|stats| sum.add(stats));
            if enough(&sum) {
                return sum;
            }
        }
        panic!("never enough of {cluster}: {sum:?}");
    }

    /// The next report that speaks of these clusters.
    fn speaks_of(&self, names: &[&str]) -> Vec<ClusterStats> {
        for _ in 0..400 {
            let mut stats = self.next().cluster_stats;
            stats.sort_by(|one, other| one.cluster_name.cmp(&other.cluster_name));
            if stats.iter().map(|stats| stats.cluster_name.as_str()).eq(names.iter().copied()) {
                return stats;
            }
        }
        panic!("never spoke of {names:?}");
    }
}

/// What reports of one cluster say together.
#[derive(Debug, Default)]
struct Sum {
    issued: u64,
    successful: u64,
    failed: u64,
    dropped: u64,
    zones: Vec<String>,
    /// Address, successful, failed, issued of each that was told.
    endpoints: Vec<(u32, u64, u64, u64)>,
    categories: Vec<(String, u64)>,
}

impl Sum {
    fn add(&mut self, stats: &ClusterStats) {
        let interval = stats.load_report_interval.unwrap();
        assert!(interval.seconds > 0 || interval.nanos > 0);
        for locality in &stats.upstream_locality_stats {
            self.issued += locality.total_issued_requests;
            self.successful += locality.total_successful_requests;
            self.failed += locality.total_error_requests;
            self.zones.push(locality.locality.clone().unwrap().zone);
            for endpoint in &locality.upstream_endpoint_stats {
                use tidegate_xds::pb::envoy::config::core::v3::address::Address;
                use tidegate_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
                let Some(Address::SocketAddress(at)) = endpoint.address.clone().unwrap().address else { panic!() };
                let Some(PortSpecifier::PortValue(port)) = at.port_specifier else { panic!() };
                let (ok, bad) = (endpoint.total_successful_requests, endpoint.total_error_requests);
                self.endpoints.push((port, ok, bad, endpoint.total_issued_requests));
            }
        }
        self.dropped += stats.total_dropped_requests;
        let categories = stats.dropped_requests.iter();
        self.categories.extend(categories.map(|drop| (drop.category.clone(), drop.dropped_count)));
    }
}

fn bootstrap(server: &Server, port: u16, admin: u16, upstream: &Upstream) -> String {
    let routes = "[{match: {prefix: /shed}, route: {cluster: shed}}, {match: {prefix: /full}, route: {cluster: full}}, {match: {prefix: /dead}, route: {cluster: dead}}, {match: {prefix: /}, route: {cluster: up}}]";
    let clusters =
        [("up", upstream.port), ("shed", upstream.port), ("dead", 1), ("full", upstream.port), ("lrs", server.port)];
    let zone = |name: &str| format!("cluster_name: {name}\n      endpoints: [{{ locality: {{ region: r, zone: z }}, ");
    let text = http_bootstrap(port, routes, &clusters)
        .replace("cluster_name: up\n      endpoints: [{ ", &zone("up"))
        .replace(
            "  - name: full\n",
            "  - name: full\n    circuit_breakers: { thresholds: [{ max_requests: 0 }] }\n",
        )
        .replace(
            "cluster_name: shed\n",
            "cluster_name: shed\n      policy: { drop_overloads: [{ category: c, drop_percentage: { numerator: 100 } }] }\n",
        )
        .replace(
            "  - name: lrs\n    type: STATIC\n",
            "  - name: lrs\n    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }\n",
        );
    format!(
        "node: {{ id: node, cluster: test }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
cluster_manager:
  load_stats_config: {{ api_type: GRPC, grpc_services: [{{ envoy_grpc: {{ cluster_name: lrs }} }}] }}
{text}"
    )
}

fn wanted(clusters: &[&str]) -> LoadStatsResponse {
    let clusters = clusters.iter().map(ToString::to_string).collect();
    LoadStatsResponse { clusters, report_endpoint_granularity: true, ..LoadStatsResponse::default() }
}

#[test]
fn what_is_wanted_is_told_from_then_on_and_by_endpoint() {
    let upstream = Upstream::scripted(|seen| {
        Answer::Bytes(match seen.line() {
            "GET /bad HTTP/1.1" => b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".to_vec(),
            _ => ok("hello"),
        })
    });
    let (server, port, admin) = (Server::start(), free_port(), free_port());
    let _gateway = Gateway::start(&bootstrap(&server, port, admin, &upstream));
    let first = server.next();
    let node = first.node.unwrap();
    assert_eq!((node.id.as_str(), first.cluster_stats.len()), ("node", 0));
    assert!(node.client_features.contains(&"envoy.lrs.supports_send_all_clusters".to_owned()));
    let mut client = Client::new(port);
    assert_eq!(client.get("/").status, 200, "before anybody wanted to know");
    eventually("a stream", || server.service.wishes.lock().unwrap().is_some());
    server.wish(wanted(&["up", "dead", "nowhere"]));
    let quiet = server.speaks_of(&["dead", "up"]);
    assert!(quiet.iter().all(|stats| stats.upstream_locality_stats.is_empty()), "{quiet:?}");
    for (path, status) in [("/", 200), ("/bad", 500), ("/", 200), ("/dead", 503)] {
        assert_eq!(client.get(path).status, status, "{path}");
    }
    let up = server.until("up", |sum| sum.successful + sum.failed == 3);
    assert_eq!((up.issued, up.successful, up.failed, up.dropped), (3, 2, 1, 0));
    assert!(up.zones.iter().all(|zone| zone == "z"));
    let (ok, bad) = up.endpoints.iter().fold((0, 0), |(ok, bad), one| (ok + one.1, bad + one.2));
    assert_eq!((ok, bad), (2, 1));
    assert!(up.endpoints.iter().all(|(port, ..)| *port == u32::from(upstream.port)));
    client.get("/dead");
    let dead = server.until("dead", |sum| sum.failed > 0);
    assert_eq!((dead.issued, dead.successful), (0, 0), "what never got a connection was not issued");

    server.wish(LoadStatsResponse { send_all_clusters: true, ..LoadStatsResponse::default() });
    server.speaks_of(&["dead", "full", "lrs", "shed", "up"]);
    assert_eq!(client.get("/full").status, 503);
    let full = server.until("full", |sum| sum.dropped > 0);
    assert_eq!((full.dropped, full.issued, full.failed), (1, 0, 1), "a breaker that opens on a connection");
    assert_eq!(client.get("/shed").status, 503);
    let shed = server.until("shed", |sum| sum.dropped > 0);
    assert_eq!((shed.dropped, shed.issued, shed.categories), (1, 0, vec![("c".to_owned(), 1)]));
    assert_eq!(client.get("/").status, 200);
    let up = server.until("up", |sum| sum.successful > 0);
    assert!(up.endpoints.is_empty(), "endpoints were not asked for");
}

/// As in Envoy, the next stream comes after five seconds and goes on where the last one ended.
#[test]
fn a_stream_that_ends_is_opened_again_and_nothing_is_lost() {
    let upstream = Upstream::text("hello");
    let (server, port, admin) = (Server::start(), free_port(), free_port());
    let _gateway = Gateway::start(&bootstrap(&server, port, admin, &upstream));
    assert!(server.next().cluster_stats.is_empty());
    eventually("a stream", || server.service.wishes.lock().unwrap().is_some());
    server.wish(wanted(&["up"]));
    server.speaks_of(&["up"]);
    let sender = server.service.wishes.lock().unwrap().take().unwrap();
    sender.send(Err(Status::unavailable("no"))).unwrap();
    drop(sender);
    let mut told = String::new();
    eventually("an error", || {
        told = Client::new(admin).get("/stats?filter=^load_reporter").text();
        told.contains("load_reporter.errors: 1\n")
    });
    assert!(told.contains("load_reporter.requests: 1\n") && told.contains("load_reporter.retries: 0\n"), "{told}");
    assert_eq!(Client::new(port).get("/").status, 200, "while nobody listens");
    let after = server.until("up", |sum| sum.successful == 1);
    assert_eq!(after.issued, 1);
    assert!(Client::new(admin).get("/stats?filter=^load_reporter").text().contains("load_reporter.retries: 1\n"));
}

#[test]
fn whom_nobody_can_reach_is_refused() {
    let (server, upstream) = (Server::start(), Upstream::text("hello"));
    for (from, to, reason) in [
        ("api_type: GRPC", "api_type: REST", "load_stats_config.api_type: must be GRPC or DELTA_GRPC"),
        ("cluster_name: lrs }", "cluster_name: nowhere }", "Unknown gRPC client cluster 'nowhere'"),
        (
            "api_type: GRPC",
            "api_type: GRPC, transport_api_version: V2",
            "xDS transport protocol versions are deprecated",
        ),
    ] {
        let bootstrap = bootstrap(&server, free_port(), free_port(), &upstream);
        let mut gateway = Gateway::spawn(&bootstrap.replace(from, to), &[]);
        gateway.wait_for(reason);
        assert!(!gateway.wait().success());
    }
}
