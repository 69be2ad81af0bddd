//! Tells a control plane how loaded clusters are (LRS, `cluster_manager.load_stats_config`): a stream on which it says what it
//! wants to know and how often, and gets a report each time. It must not know what is reported.

mod tally;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use tidegate_stats::{Scope, stats_block};
use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use self::tally::Tally;
use crate::app::Shared;
use crate::config::values::duration;
use crate::discovery::channel::Channel;

const METHOD: &str = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";

/// What a client says that can report all clusters.
const ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

/// From the end of a stream to the next, as in Envoy.
const RETRY: Duration = Duration::from_secs(5);

/// A control plane that asks for more is told this often; Envoy knows no bound.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

stats_block! {
    /// `load_reporter.*`.
    struct ReporterStats {
        counters { errors, requests, responses, retries }
        gauges {}
        histograms {}
    }
}

/// Keeps a stream of reports open until it is dropped.
pub(crate) struct LoadReports {
    task: JoinHandle<()>,
}

impl Drop for LoadReports {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LoadReports {
    /// Needs a runtime: the stream is opened at once.
    pub(crate) fn start(shared: &Arc<Shared>, channel: Channel, mut node: Node, root: &Scope) -> Self {
        node.client_features.push(ALL_CLUSTERS.to_owned());
        let reporter = Reporter {
            shared: Arc::downgrade(shared),
            channel,
            node,
            stats: ReporterStats::new(&root.scope("load_reporter.")),
            wish: None,
            tally: Tally::default(),
        };
        Self { task: tokio::spawn(reporter.run()) }
    }
}

struct Reporter {
    shared: Weak<Shared>,
    channel: Channel,
    node: Node,
    stats: ReporterStats,
    /// What was asked for last, kept over streams.
    wish: Option<LoadStatsResponse>,
    tally: Tally,
}

impl Reporter {
    async fn run(mut self) {
        loop {
            let status = self.once().await;
            tracing::warn!(
                code = status.code() as i32,
                message = status.message(),
                "the stream of load reports closed"
            );
            if status.code() != Code::Ok {
                self.stats.errors().inc();
            }
            tokio::time::sleep(RETRY).await;
            self.stats.retries().inc();
        }
    }

    /// One stream from its beginning to its end.
    async fn once(&mut self) -> Status {
        let (outgoing, reports) = mpsc::channel(1);
        self.report(&outgoing);
        let mut client =
            tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(self.channel.max_message_bytes());
        let codec = ProstCodec::<LoadStatsRequest, LoadStatsResponse>::default();
        let reports = tonic::Request::new(ReceiverStream::new(reports));
        let mut wishes = match client.streaming(reports, PathAndQuery::from_static(METHOD), codec).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        // A stream says first what it wants to know.
        let mut due = None;
        loop {
            let report_time = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                wish = wishes.message() => match wish {
                    Ok(Some(wish)) => {
                        self.stats.requests().inc();
                        self.wish = Some(wish);
                        self.follow();
                    }
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                },
                () = report_time => {
                    self.report(&outgoing);
                    self.follow();
                }
            }
            due = self.interval().and_then(|interval| tokio::time::Instant::now().checked_add(interval));
        }
    }

    /// How often reports are wanted.
    fn interval(&self) -> Option<Duration> {
        let wish = self.wish.as_ref()?;
        Some(wish.load_reporting_interval.as_ref().map_or(Duration::ZERO, duration).max(SHORTEST_INTERVAL))
    }

    /// Counts what is wanted of the clusters that there are now.
    fn follow(&mut self) {
        let (Some(wish), Some(shared)) = (&self.wish, self.shared.upgrade()) else { return };
        let snapshot = shared.snapshot();
        if wish.send_all_clusters {
            let all = snapshot.clusters.keys().map(|name| &**name);
            self.tally.follow(all, &snapshot, Instant::now());
        } else {
            self.tally.follow(wish.clusters.iter().map(String::as_str), &snapshot, Instant::now());
        }
    }

    /// Sends what was counted. While the last report still waits to be sent, this one does not begin: the next says it all.
    fn report(&mut self, outgoing: &mpsc::Sender<LoadStatsRequest>) {
        let (Ok(place), Some(shared)) = (outgoing.try_reserve(), self.shared.upgrade()) else { return };
        let by_endpoint = self.wish.as_ref().is_some_and(|wish| wish.report_endpoint_granularity);
        let cluster_stats = self.tally.report(&shared.snapshot(), by_endpoint, Instant::now());
        place.send(LoadStatsRequest { node: Some(self.node.clone()), cluster_stats });
        self.stats.responses().inc();
    }
}
