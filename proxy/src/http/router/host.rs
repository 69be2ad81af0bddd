//! Which host a try goes to, and what is said of it in logs.
//! It must not know how hosts are balanced, nor what becomes of the try.

use std::sync::Arc;

use tidegate_filters::http::StreamContext;
use tidegate_filters::stream_info::{CloseType, UpstreamInfo};

use super::Shared;
use crate::cluster::host::Host;
use crate::cluster::lb::{MetadataMatch, PickContext};
use crate::cluster::pool::Stream;
use crate::route::HostPredicate;

/// Picks a host for the next try; `tried` are those before.
pub(super) fn choose(shared: &Shared<'_>, tried: &[Arc<Host>]) -> Option<Arc<Host>> {
    let policy = shared.retry();
    let unwanted = |host: &Host| {
        policy.host_predicates.iter().any(|predicate| match predicate {
            HostPredicate::Previous => tried.iter().any(|before| before.state.id == host.state.id),
            HostPredicate::Canary => host.canary,
            HostPredicate::Metadata(wanted) => host
                .metadata
                .namespace("envoy.lb")
                .is_some_and(|metadata| wanted.iter().all(|(key, value)| metadata.get(key) == Some(value))),
        })
    };
    let mut context = PickContext::new(shared.cluster.next_sequence(), rand::random());
    context.hash = shared.hash;
    if !tried.is_empty() && !policy.host_predicates.is_empty() {
        context.excluded = Some(&unwanted);
        context.retries = policy.host_attempts;
    }
    let cluster = &shared.cluster;
    let divided = cluster.config().balancing.subsets.is_some();
    let wanted = shared.route.metadata_match().filter(|_| divided).map(|wanted| MetadataMatch::new(&wanted.0));
    context.metadata_match = wanted.as_ref();
    let priorities = tried.iter().map(|host| host.priority);
    let loads = policy.priority.and_then(|previous| cluster.hosts().loads_after(priorities, previous.update_frequency));
    context.priority_loads = loads.as_ref();
    let picked = cluster.pick(&context, None).map(|picked| picked.host);
    if picked.is_none() {
        cluster.stats().traffic.upstream_cx_none_healthy().inc();
    }
    picked
}

/// A try begins: what was known of the one before is gone.
pub(super) fn forget(upstream: &mut UpstreamInfo) {
    upstream.remember_host();
    let UpstreamInfo { cluster, observability_name, cluster_metadata, attempts, tried, .. } = std::mem::take(upstream);
    *upstream =
        UpstreamInfo { cluster, observability_name, cluster_metadata, attempts, tried, ..UpstreamInfo::default() };
}

/// The try goes to this host.
pub(super) fn note(host: &Host, upstream: &mut UpstreamInfo) {
    upstream.host = Some(host.address.clone());
    upstream.host_name = Some(Arc::clone(&host.hostname));
    upstream.locality = Some(Arc::clone(&host.locality));
    upstream.host_metadata = Some(Arc::clone(&host.metadata));
    upstream.close_type = Some(CloseType::Normal);
}

/// The try has its connection.
pub(super) fn note_connection(opened: &Stream, stream: &mut StreamContext) {
    let upstream = &mut stream.info.upstream;
    let Some(facts) = opened.facts() else {
        upstream.datagrams = true;
        return;
    };
    upstream.local_address.clone_from(&facts.local);
    upstream.connection_id = Some(facts.id);
    upstream.tls.clone_from(&facts.tls);
    upstream.filter_state.clone_from(&facts.shared);
    upstream.protocol = (!matches!(opened, Stream::Tcp(_))).then_some(facts.protocol);
    stream.info.timings.upstream_connect_start = Some(facts.connect_start);
    stream.info.timings.upstream_connect_complete = Some(facts.connected);
}
