//! What keeps requests from a cluster before any host is looked at. It must not know hosts.

use http::{HeaderName, HeaderValue, StatusCode};
use tidegate_filters::http::{LocalReply, StreamContext};
use tidegate_filters::stream_info::ResponseFlags;

use super::Job;
use super::charge::Account;
use crate::http::headers::{X_ENVOY_DROP_OVERLOAD, X_ENVOY_OVERLOADED, X_ENVOY_UNCONDITIONAL_DROP_OVERLOAD};
use crate::route::ForwardAction;

/// The reply where the route's cluster is not there.
pub(super) fn not_found(job: &Job<'_>, action: &ForwardAction) -> Box<LocalReply> {
    job.connection.hcm.router_stats.no_cluster().inc();
    Box::new(LocalReply::new(action.cluster_not_found, "cluster_not_found").flag(ResponseFlags::NO_CLUSTER_FOUND))
}

/// Turns a request away while the cluster is in maintenance or its control plane sheds load.
pub(super) fn admit(job: &Job<'_>, account: &Account, stream: &StreamContext) -> Result<(), Box<LocalReply>> {
    let cluster = &account.cluster;
    let silent = job.connection.hcm.router.suppress_envoy_headers;
    let runtime = job.connection.shared.runtime();
    let maintenance = runtime.integer(cluster.maintenance_key());
    if maintenance.is_some_and(|percent| stream.random % 100 < percent) {
        account.code(StatusCode::SERVICE_UNAVAILABLE, false, None);
        cluster.count_drop(false);
        cluster.stats().traffic.upstream_rq_maintenance_mode().inc();
        let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "maintenance_mode")
            .body("maintenance mode")
            .flag(ResponseFlags::UPSTREAM_OVERFLOW);
        return Err(Box::new(if silent { reply } else { reply.header(X_ENVOY_OVERLOADED, TRUE) }));
    }
    if cluster.drops(runtime, stream.random) {
        account.code(StatusCode::SERVICE_UNAVAILABLE, false, None);
        cluster.count_drop(true);
        let (reply, header) = dropped(cluster.drops_all(runtime));
        return Err(Box::new(if silent { reply } else { reply.header(header, TRUE) }));
    }
    Ok(())
}

/// The reply to a request that is dropped, as one of many or as all are, and the header that says so.
fn dropped(all: bool) -> (LocalReply, HeaderName) {
    let (details, body, flag, header) = if all {
        (
            "unconditional_drop_overload",
            "unconditional drop overload",
            ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD,
            X_ENVOY_UNCONDITIONAL_DROP_OVERLOAD,
        )
    } else {
        ("drop_overload", "drop overload", ResponseFlags::DROP_OVERLOAD, X_ENVOY_DROP_OVERLOAD)
    };
    (LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, details).body(body).flag(flag), header)
}

const TRUE: HeaderValue = HeaderValue::from_static("true");
