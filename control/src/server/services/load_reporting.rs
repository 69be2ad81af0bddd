//! LRS: clients are asked for reports at an interval, and the last one is kept. It must not know what is done with them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingService;
use tidegate_xds::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use tidegate_xds::pb::google::protobuf::Duration as ProtoDuration;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::discovery::Responses;
use crate::server::loads::Loads;
use crate::server::resource_set::ResourceType;
use crate::server::status::shown;
use crate::server::stream::Context;

/// A client that says this takes a request for all of its clusters.
const ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

/// The service.
#[derive(Debug)]
pub(super) struct LoadReporting {
    pub(super) context: Arc<Context>,
    pub(super) loads: Arc<Loads>,
    pub(super) interval: Duration,
}

#[tonic::async_trait]
impl LoadReportingService for LoadReporting {
    type StreamLoadStatsStream = Responses<LoadStatsResponse>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let (context, loads, interval) = (self.context.clone(), self.loads.clone(), self.interval);
        let mut reports = request.into_inner();
        let task = tokio::spawn(async move {
            let mut ending = context.ending.clone();
            let told = tokio::select! {
                () = take(&context, &loads, interval, &mut reports, &sender) => false,
                // An error means that the server is gone already.
                _ = ending.wait_for(|ending| *ending) => true,
            };
            if told {
                // A client that listens no longer needs no reason.
                let _ = sender.send(Err(Status::unavailable("the control plane ends"))).await;
            }
        });
        Ok(Response::new(Responses::new(receiver, task)))
    }
}

async fn take(
    context: &Context,
    loads: &Arc<Loads>,
    interval: Duration,
    reports: &mut Streaming<LoadStatsRequest>,
    sender: &mpsc::Sender<Result<LoadStatsResponse, Status>>,
) {
    let Ok(Some(first)) = reports.message().await else { return };
    let node = first.node.unwrap_or_default();
    tracing::info!(node = shown(&node.id), "a client reports its load");
    let reporting = loads.reporter(&node.id);
    if sender.send(Ok(wish(context, &node, interval))).await.is_err() {
        return;
    }
    reporting.report(first.cluster_stats, Instant::now());
    // A stream that breaks ends like one that is closed: the client begins another.
    while let Ok(Some(report)) = reports.message().await {
        reporting.report(report.cluster_stats, Instant::now());
    }
}

/// What a client is to report.
fn wish(context: &Context, node: &Node, interval: Duration) -> LoadStatsResponse {
    let all = node.client_features.iter().any(|feature| feature == ALL_CLUSTERS);
    let set = context.sets.borrow().of(node).1.clone();
    let clusters = set.kind(ResourceType::CLUSTER).iter().map(|cluster| cluster.name.to_string());
    LoadStatsResponse {
        clusters: if all { Vec::new() } else { clusters.collect() },
        send_all_clusters: all,
        load_reporting_interval: Some(ProtoDuration {
            seconds: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(interval.subsec_nanos()).unwrap_or(0),
        }),
        report_endpoint_granularity: true,
    }
}
