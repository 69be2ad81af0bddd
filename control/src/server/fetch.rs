//! Discovery by single requests: gRPC's Fetch methods, and REST. It must not know how a message travels.

use std::sync::Arc;

use tidegate_xds::pb::envoy::config::core::v3::ControlPlane;
use tidegate_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::WILDCARD;
use super::resource_set::{Resource, ResourceSet, ResourceType, version_of};

/// What a client asks for that has nothing but its last version to go by; none: it has it already.
pub(super) fn fetch(
    set: &ResourceSet,
    kind: ResourceType,
    request: &DiscoveryRequest,
    control_plane: &ControlPlane,
) -> Option<DiscoveryResponse> {
    let served = set.kind(kind);
    let names = &request.resource_names;
    let everything = names.is_empty() && kind.has_silent_wildcard() || names.iter().any(|name| name == WILDCARD);
    let resources: Vec<&Arc<Resource>> =
        if everything { served.iter().collect() } else { names.iter().filter_map(|name| served.get(name)).collect() };
    // The version of what is answered: other names are another answer.
    let version_info = version_of(resources.iter().copied());
    (version_info != request.version_info).then(|| DiscoveryResponse {
        version_info,
        resources: resources.iter().map(|resource| resource.body.clone()).collect(),
        type_url: kind.url(),
        control_plane: Some(control_plane.clone()),
        ..DiscoveryResponse::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::{cluster, endpoints, set};

    #[test]
    fn an_answer_has_a_version_of_its_own() {
        let world = set([cluster("a", ""), cluster("b", ""), endpoints("a", ""), endpoints("b", "")]);
        let ask = |kind, names: &[&str], version: &str| {
            let resource_names = names.iter().map(ToString::to_string).collect();
            let version_info = version.to_owned();
            let request = DiscoveryRequest { resource_names, version_info, ..DiscoveryRequest::default() };
            fetch(&world, kind, &request, &ControlPlane::default())
        };
        let all = ask(ResourceType::CLUSTER, &[], "").unwrap();
        assert_eq!((all.resources.len(), &all.version_info), (2, &world.kind(ResourceType::CLUSTER).version()));
        assert!(ask(ResourceType::CLUSTER, &[], &all.version_info).is_none());
        let one = ask(ResourceType::ENDPOINTS, &["a", "none"], "").unwrap();
        assert_eq!(one.resources.len(), 1);
        assert!(ask(ResourceType::ENDPOINTS, &["a"], &one.version_info).is_none());
        assert!(ask(ResourceType::ENDPOINTS, &["a", "b"], &one.version_info).is_some());
        assert!(ask(ResourceType::ENDPOINTS, &[], "").unwrap().resources.is_empty());
    }
}
