//! Many proxies in one process: each an aggregated delta stream on a connection of its own that asks for all clusters and for
//! the endpoints of each. It tells as lines of JSON when all of them have everything, and when a change has reached the last.
//! Run by `fleet.py`; it must not know which control plane it talks to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tidegate_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a proxy has to tell.
enum News {
    /// It has all clusters and all endpoints.
    Whole,
    /// A change of endpoints came; the version of the set that it belongs to.
    Changed(String),
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: fleet ADDRESS PROXIES CLUSTERS");
    let (address, proxies, clusters) = (next()?, next()?.parse::<usize>()?, next()?.parse::<usize>()?);
    let (news, mut told) = mpsc::channel(1024);
    let started = Instant::now();
    let mut fleet = tokio::task::JoinSet::new();
    for number in 0..proxies {
        fleet.spawn(proxy(format!("http://{address}"), format!("proxy-{number}"), clusters, news.clone()));
    }
    drop(news);
    let mut whole = 0;
    let mut changed: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        let heard = tokio::select! {
            heard = told.recv() => heard,
            Some(ended) = fleet.join_next() => return Err(format!("a proxy ended: {:?}", ended?).into()),
        };
        match heard {
            None => return Ok(()),
            Some(News::Whole) => {
                whole += 1;
                if whole == proxies {
                    println!(r#"{{"whole": {proxies}, "seconds": {:.3}}}"#, started.elapsed().as_secs_f64());
                }
            }
            Some(News::Changed(version)) => {
                let count = changed.entry(version).or_default();
                *count += 1;
                if *count == proxies {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
                    println!(r#"{{"reached": {proxies}, "at": {now:.6}}}"#);
                }
            }
        }
    }
}

async fn proxy(address: String, id: String, clusters: usize, news: mpsc::Sender<News>) -> Result<(), Failure> {
    let channel = Endpoint::from_shared(address)?.connect_timeout(Duration::from_secs(60)).connect().await?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let (requests, receiver) = mpsc::channel(4);
    let node = Some(Node { id, cluster: "fleet".to_owned(), ..Node::default() });
    requests.send(DeltaDiscoveryRequest { node, type_url: CDS.to_owned(), ..Default::default() }).await?;
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
    let (mut asked, mut have) = (0, 0);
    while let Some(response) = responses.message().await? {
        let DeltaDiscoveryResponse { type_url, nonce, resources, system_version_info, .. } = response;
        let mut request = DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..Default::default() };
        if request.type_url == EDS {
            let before = have;
            have += resources.len();
            if before < clusters && have >= clusters {
                news.send(News::Whole).await?;
            } else if before >= clusters {
                news.send(News::Changed(system_version_info)).await?;
            }
        }
        let is_cds = request.type_url == CDS;
        requests.send(std::mem::take(&mut request)).await?;
        if is_cds && asked < clusters {
            asked += resources.len();
            let names = resources.into_iter().map(|resource| resource.name).collect();
            let ask = DeltaDiscoveryRequest {
                type_url: EDS.to_owned(),
                resource_names_subscribe: names,
                ..Default::default()
            };
            requests.send(ask).await?;
        }
    }
    Ok(())
}
