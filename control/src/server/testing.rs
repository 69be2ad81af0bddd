//! Resources and sets in short.

use std::sync::Arc;

use tidegate_xds::any;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::envoy::config::listener::v3::Listener;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;

use super::resource_set::{Resource, ResourceSet};

pub(crate) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

pub(crate) fn cluster(name: &str, content: &str) -> Arc<Resource> {
    let message = Cluster { name: name.to_owned(), alt_stat_name: content.to_owned(), ..Cluster::default() };
    Arc::new(Resource::read(any::pack(&message)).unwrap())
}

pub(crate) fn endpoints(name: &str, content: &str) -> Arc<Resource> {
    let mut message = ClusterLoadAssignment { cluster_name: name.to_owned(), ..ClusterLoadAssignment::default() };
    if !content.is_empty() {
        message.named_endpoints.insert(content.to_owned(), Default::default());
    }
    Arc::new(Resource::read(any::pack(&message)).unwrap())
}

pub(crate) fn listener(name: &str, content: &str) -> Arc<Resource> {
    let message = Listener { name: name.to_owned(), stat_prefix: content.to_owned(), ..Listener::default() };
    Arc::new(Resource::read(any::pack(&message)).unwrap())
}

pub(crate) fn routes(name: &str, content: &str) -> Arc<Resource> {
    let headers = Some(content.to_owned()).filter(|content| !content.is_empty());
    let message = RouteConfiguration {
        name: name.to_owned(),
        request_headers_to_remove: headers.into_iter().collect(),
        ..RouteConfiguration::default()
    };
    Arc::new(Resource::read(any::pack(&message)).unwrap())
}

pub(crate) fn set(resources: impl IntoIterator<Item = Arc<Resource>>) -> Arc<ResourceSet> {
    let mut set = ResourceSet::default();
    resources.into_iter().for_each(|resource| set.insert(resource));
    Arc::new(set)
}
