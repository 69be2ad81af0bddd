//! What a forwarding route says (`RouteAction`): the cluster, what the request becomes, how long and how often it is tried.
//! It must not know clusters beyond their names.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value};
use tidegate_filters::http::{HeaderKey, HeaderMutations, Headers};
use tidegate_filters::matching::Matcher;
use tidegate_filters::runtime::Keyed;

use super::RouteInput;
use super::entry::Overrides;
use super::hash::{self, HashPolicy};
use super::internal_redirect::InternalRedirectPolicy;
use super::mirror::MirrorPolicy;
use super::retry::{HedgePolicy, RetryPolicy};
use super::rewrite::{HostRewrite, PathRewrite};
use super::timeout::Timeouts;
use super::upgrade::{ConnectConfig, Upgrade};
use crate::cluster::circuit_breaker::RoutingPriority;

/// `RouteAction`, compiled. There may be very many, of which few say much: what is rare stands behind a pointer.
pub struct ForwardAction {
    pub cluster: ClusterSelector,
    /// When there is no such cluster; 503 unless set.
    pub cluster_not_found: StatusCode,
    /// What hosts of the cluster must have in their `envoy.lb` metadata.
    pub metadata_match: Option<Arc<MetadataMatch>>,
    pub path_rewrite: Option<Box<PathRewrite>>,
    pub host_rewrite: HostRewrite,
    /// Whether a host that is rewritten is appended to `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    pub timeouts: Timeouts,
    /// The route's, else its virtual host's; one that never retries where neither has any.
    pub retry: Arc<RetryPolicy>,
    pub hedge: HedgePolicy,
    /// The route's, else its virtual host's, else the route configuration's.
    pub mirrors: Arc<[MirrorPolicy]>,
    pub hash: Box<[HashPolicy]>,
    pub priority: RoutingPriority,
    pub upgrades: Box<[Upgrade]>,
    /// Tunnels end here: a CONNECT's payload and a CONNECT-UDP's datagrams leave HTTP.
    pub connect: Option<ConnectConfig>,
    pub internal_redirect: Option<Box<InternalRedirectPolicy>>,
}

impl ForwardAction {
    /// One that forwards to `cluster` and says nothing else.
    pub fn to(cluster: ClusterSelector) -> Self {
        Self {
            cluster,
            cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
            metadata_match: None,
            path_rewrite: None,
            host_rewrite: HostRewrite::Keep,
            append_x_forwarded_host: false,
            timeouts: Timeouts::default(),
            retry: Arc::default(),
            hedge: HedgePolicy::default(),
            mirrors: Arc::default(),
            hash: Box::default(),
            priority: RoutingPriority::Default,
            upgrades: Box::default(),
            connect: None,
            internal_redirect: None,
        }
    }
}

/// `metadata_match`'s `envoy.lb`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetadataMatch(pub Map<String, Value>);

/// Where the cluster's name comes from.
pub enum ClusterSelector {
    Named(Arc<str>),
    /// The request names it.
    Header(HeaderKey),
    Weighted(Box<WeightedClusters>),
    /// A matcher tree over the request names it (a cluster specifier plugin); none where it leads nowhere.
    Tree(Arc<Matcher<Arc<str>>>),
    /// An optional plugin that nobody has: the route is passed over, as by Envoy.
    Nothing,
}

/// `weighted_clusters`.
pub struct WeightedClusters {
    pub clusters: Vec<Arc<WeightedCluster>>,
    /// `header_name`: draws in place of the stream's random value, when it has one value and that is an integer.
    pub random_header: Option<HeaderKey>,
    /// `use_hash_policy`.
    pub use_hash_policy: bool,
}

/// One of them.
pub struct WeightedCluster {
    pub cluster: ClusterName,
    /// May be 0. The key is `runtime_key_prefix.name`.
    pub weight: Keyed<u64>,
    /// The route's, with what this cluster adds.
    pub metadata_match: Option<Arc<MetadataMatch>>,
    pub request_headers: HeaderMutations,
    pub response_headers: HeaderMutations,
    /// Set before the route's mutations; its own rewrite goes over it.
    pub host_rewrite: Option<HeaderValue>,
    /// The route's, merged with this cluster's own.
    pub overrides: Arc<Overrides>,
}

/// A cluster's name, or the header that has it.
pub enum ClusterName {
    Fixed(Arc<str>),
    Header(HeaderKey),
}

impl WeightedClusters {
    /// The place of the cluster that this request draws: Envoy's intervals `[0, w1), [w1, w1 + w2), …` of the sum.
    /// `None` when the runtime set all weights to 0, or the sum over 2³²−1.
    pub(crate) fn draw(&self, input: &RouteInput<'_>, policies: &[HashPolicy]) -> Option<usize> {
        let weight = |cluster: &Arc<WeightedCluster>| cluster.weight.get(input.runtime);
        let total = self.clusters.iter().try_fold(0_u64, |sum, cluster| sum.checked_add(weight(cluster)))?;
        if total == 0 || total > u64::from(u32::MAX) {
            return None;
        }
        let by_hash = || if self.use_hash_policy { hash::hash_only(policies, input) } else { None };
        let random = self.random_header.as_ref().and_then(|name| only_integer(input, name));
        let drawn = random.or_else(by_hash).unwrap_or(input.random) % total;
        let mut end = 0;
        self.clusters.iter().position(|cluster| {
            end += weight(cluster);
            drawn < end
        })
    }
}

/// The header's value, if it has exactly one and that is an integer.
fn only_integer(input: &RouteInput<'_>, name: &HeaderKey) -> Option<u64> {
    let mut values = input.head.values(name);
    let value = values.next().filter(|_| values.next().is_none())?;
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}
