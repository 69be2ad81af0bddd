//! `CircuitBreakers` as thresholds by routing priority.

use std::sync::{Arc, LazyLock};

use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::cluster::v3::CircuitBreakers;
use tidegate_xds::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds as ThresholdsProto;
use tidegate_xds::pb::envoy::config::core::v3::RoutingPriority as PriorityProto;

use crate::cluster::circuit_breaker::{RetryBudget, RoutingPriority, Thresholds};

pub(super) fn compile(
    proto: Option<&CircuitBreakers>,
    context: &CompileContext<'_>,
) -> Result<Arc<[Thresholds; 2]>, FieldError> {
    /// What most clusters have.
    static DEFAULT: LazyLock<Arc<[Thresholds; 2]>> = LazyLock::new(Arc::default);
    let Some(proto) = proto else {
        return Ok(Arc::clone(&DEFAULT));
    };
    for (index, limits) in proto.per_host_thresholds.iter().enumerate() {
        let only_connections = ThresholdsProto {
            priority: limits.priority,
            max_connections: limits.max_connections,
            track_remaining: limits.track_remaining,
            ..Default::default()
        };
        if *limits != only_connections {
            let field = format!("circuit_breakers.per_host_thresholds[{index}]");
            return Err(context.error_at(&field, "Unsupported field in per_host_thresholds"));
        }
    }
    Ok(Arc::new(RoutingPriority::ALL.map(|priority| {
        let per_host = first_of(&proto.per_host_thresholds, priority).and_then(|limits| limits.max_connections);
        let mut thresholds = first_of(&proto.thresholds, priority).map(thresholds).unwrap_or_default();
        thresholds.max_connections_per_host = per_host.map(|limit| limit.value);
        thresholds
    })))
}

/// The first entry of a priority counts.
fn first_of(thresholds: &[ThresholdsProto], priority: RoutingPriority) -> Option<&ThresholdsProto> {
    let wanted = match priority {
        RoutingPriority::Default => PriorityProto::Default,
        RoutingPriority::High => PriorityProto::High,
    };
    thresholds.iter().find(|thresholds| thresholds.priority == wanted as i32)
}

fn thresholds(proto: &ThresholdsProto) -> Thresholds {
    let default = Thresholds::default();
    let budget = RetryBudget::default();
    Thresholds {
        max_connections: proto.max_connections.map_or(default.max_connections, |limit| limit.value),
        max_pending_requests: proto.max_pending_requests.map_or(default.max_pending_requests, |limit| limit.value),
        max_requests: proto.max_requests.map_or(default.max_requests, |limit| limit.value),
        max_retries: proto.max_retries.map_or(default.max_retries, |limit| limit.value),
        max_connection_pools: proto
            .max_connection_pools
            .map_or(default.max_connection_pools, |limit| limit.value.into()),
        retry_budget: proto.retry_budget.as_ref().map(|proto| RetryBudget {
            percent: proto.budget_percent.map_or(budget.percent, |percent| percent.value),
            min_concurrency: proto.min_retry_concurrency.map_or(budget.min_concurrency, |minimum| minimum.value),
        }),
        track_remaining: proto.track_remaining,
        max_connections_per_host: None,
    }
}
