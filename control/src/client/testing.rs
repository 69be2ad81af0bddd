//! A handler that remembers, and messages in short.

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::Resource as Wrapper;
use tidegate_xds::pb::google::protobuf::Any;

use super::{Handler, Update};

pub(super) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(super) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Rejects what holds a resource called `bad`.
#[derive(Default)]
pub(super) struct Recorder(pub Vec<Update>);

impl Recorder {
    /// What came last: names with versions, then what is gone, with a minus.
    pub(super) fn last(&self) -> Vec<String> {
        let update = self.0.last().expect("nothing came");
        let came = update.resources.iter().map(|resource| format!("{}@{}", resource.name, resource.version));
        came.chain(update.removed.iter().map(|name| format!("-{name}"))).collect()
    }
}

impl Handler for Recorder {
    fn name_of(&self, body: &Any) -> Option<String> {
        String::from_utf8(body.value.clone()).ok()
    }

    fn rejected(&mut self, _: &str, _: &str) {}

    fn apply(&mut self, update: Update) -> Result<(), String> {
        if update.resources.iter().any(|resource| resource.name == "bad") {
            return Err("bad: it is".to_owned());
        }
        self.0.push(update);
        Ok(())
    }
}

pub(super) fn node() -> Node {
    Node { id: "n".to_owned(), ..Node::default() }
}

/// A body that is its own name.
pub(super) fn body(type_url: &str, name: &str) -> Any {
    Any { type_url: type_url.to_owned(), value: name.into() }
}

pub(super) fn wrapper(type_url: &str, name: &str, version: &str) -> Wrapper {
    Wrapper {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(body(type_url, name)),
        ..Wrapper::default()
    }
}

pub(super) fn seconds(seconds: i64) -> Option<tidegate_xds::pb::google::protobuf::Duration> {
    Some(tidegate_xds::pb::google::protobuf::Duration { seconds, nanos: 0 })
}
