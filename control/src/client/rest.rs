//! Polling: each request asks for all of it and names the version that acts; each response says all that there is, or that
//! nothing has changed. As Envoy's `HttpSubscriptionImpl`, one poll asks for everything of a type or for one name.
//! It must not know how messages travel, nor when the next poll is.

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::sotw::unwrapped;
use super::{Handler, Update};

/// What one poll asks for, and the version of what came last.
#[derive(Debug)]
pub struct Rest {
    request: DiscoveryRequest,
}

/// What a response brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Brought {
    /// The handler took it.
    Resources,
    /// There is nothing under the name that was asked for. Whether that may be is the handler's to say: this version was not
    /// taken yet ([`Rest::take`]).
    Nothing(String),
}

/// Why a response was rejected.
#[derive(Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Before the handler saw it.
    Unreadable(String),
    /// By the handler.
    Refused(String),
}

impl Rest {
    /// Asks for what has this name; none: for everything of the type.
    pub fn new(node: Node, type_url: &str, name: Option<&str>) -> Self {
        let request = DiscoveryRequest {
            node: Some(node),
            resource_names: name.into_iter().map(str::to_owned).collect(),
            type_url: type_url.to_owned(),
            ..DiscoveryRequest::default()
        };
        Self { request }
    }

    /// What is sent with each poll.
    pub fn request(&self) -> &DiscoveryRequest {
        &self.request
    }

    /// Takes a response: hands what it brings to `handler`. What it says of its own type is not looked at, as in Envoy; the
    /// resources say theirs.
    ///
    /// # Errors
    /// Why it is rejected; the next poll names the version before.
    pub fn receive(&mut self, response: DiscoveryResponse, handler: &mut impl Handler) -> Result<Brought, Rejected> {
        let (type_url, version) = (&self.request.type_url, response.version_info);
        let mut resources = Vec::with_capacity(response.resources.len());
        let shared = version.as_str().into();
        for body in response.resources {
            resources.push(unwrapped(body, type_url, &shared, handler).map_err(Rejected::Unreadable)?);
        }
        let asked = self.request.resource_names.first();
        if let (Some(asked), Some(first)) = (asked, resources.first()) {
            let count = resources.len();
            let kind = type_url.rsplit('.').next().unwrap_or_default();
            if count > 1 {
                return Err(Rejected::Unreadable(format!("Unexpected {kind} resource length: {count}")));
            }
            if first.name != *asked {
                return Err(Rejected::Unreadable(format!("Unexpected {kind} (expecting {asked}): {}", first.name)));
            }
        }
        if asked.is_some() && resources.is_empty() {
            return Ok(Brought::Nothing(version));
        }
        let (type_url, whole) = (type_url.clone(), asked.is_none());
        let update = Update { type_url, version: version.clone(), resources, removed: Vec::new(), whole, delta: false };
        handler.apply(update).map_err(Rejected::Refused)?;
        self.take(version);
        Ok(Brought::Resources)
    }

    /// This version acts: the next poll names it.
    pub fn take(&mut self, version: String) {
        self.request.version_info = version;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::testing::{CDS, EDS, Recorder, body, node};

    fn response(version: &str, type_url: &str, names: &[&str]) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: version.to_owned(),
            resources: names.iter().map(|name| body(type_url, name)).collect(),
            ..DiscoveryResponse::default()
        }
    }

    #[test]
    fn only_what_was_taken_moves_the_version() {
        let (mut rest, mut taken) = (Rest::new(node(), CDS, None), Recorder::default());
        assert_eq!((rest.request().version_info.as_str(), rest.request().resource_names.len()), ("", 0));
        assert_eq!(rest.receive(response("1", CDS, &["a", "b"]), &mut taken), Ok(Brought::Resources));
        assert_eq!((taken.last(), taken.0[0].whole), (vec!["a@1".to_owned(), "b@1".to_owned()], true));
        let refused = rest.receive(response("2", CDS, &["a", "bad"]), &mut taken);
        assert_eq!(refused, Err(Rejected::Refused("bad: it is".to_owned())));
        assert_eq!(rest.request().version_info, "1");
        assert_eq!(rest.receive(response("3", CDS, &[]), &mut taken), Ok(Brought::Resources));
        assert_eq!((taken.last().len(), rest.request().version_info.as_str()), (0, "3"));
    }

    #[test]
    fn one_name_brings_one_resource_of_that_name_or_none() {
        let (mut rest, mut taken) = (Rest::new(node(), EDS, Some("a")), Recorder::default());
        assert_eq!(rest.request().resource_names, ["a"]);
        let mut answer =
            |version, type_url, names: &[&str]| rest.receive(response(version, type_url, names), &mut taken);
        assert_eq!(answer("1", EDS, &["a"]), Ok(Brought::Resources));
        assert_eq!(answer("2", EDS, &[]), Ok(Brought::Nothing("2".to_owned())));
        let rejected = |reason: &str| Err(Rejected::Unreadable(reason.to_owned()));
        assert_eq!(answer("3", EDS, &["a", "b"]), rejected("Unexpected ClusterLoadAssignment resource length: 2"));
        assert_eq!(answer("3", EDS, &["b"]), rejected("Unexpected ClusterLoadAssignment (expecting a): b"));
        let other = format!("{CDS} does not match the message-wide type URL {EDS}");
        assert_eq!(answer("3", CDS, &["a"]), rejected(&other));
        assert_eq!((rest.request().version_info.as_str(), taken.0.len()), ("1", 1));
        rest.take("2".to_owned());
        assert_eq!(rest.request().version_info, "2");
    }
}
