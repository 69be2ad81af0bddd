//! State of the world: each response of a type says what is asked for. Clusters, listeners and scopes are always said
//! together, since absence means that they are gone; of other types only what changed is sent.
//! It must not know how messages travel; time is handed in.

mod watch;

use std::sync::Arc;
use std::time::Instant;

use tidegate_xds::pb::envoy::config::core::v3::ControlPlane;
use tidegate_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use watch::Watch;

use super::resource_set::{ResourceSet, ResourceType};
use super::rollout::{Rollout, Standing, order};
use super::{Dialect, News, Past, ResourceStatus, TypeStatus};

/// One stream.
#[derive(Debug)]
pub struct Sotw {
    rollout: Rollout,
    /// By type, in the order of additions.
    watches: Vec<Watch>,
    nonce: u64,
    control_plane: ControlPlane,
    past: Arc<Past>,
}

impl Dialect for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(set: Arc<ResourceSet>, aggregated: bool, control_plane: ControlPlane, past: Arc<Past>) -> Self {
        Self { rollout: Rollout::new(set, aggregated), watches: Vec::new(), nonce: 0, control_plane, past }
    }

    fn update(&mut self, set: &Arc<ResourceSet>) {
        self.rollout.begin(set);
        self.serve();
    }

    fn receive(&mut self, request: DiscoveryRequest, now: Instant) -> Option<News> {
        let kind = ResourceType::of_url(&request.type_url)?;
        match self.watches.binary_search_by_key(&kind, Watch::kind) {
            Ok(place) => self.watches[place].receive(&request, self.rollout.newest(kind), now),
            Err(place) => {
                if !request.version_info.is_empty() {
                    self.resume(kind, &request.version_info, now);
                }
                let served = self.rollout.served(kind).clone();
                self.watches.insert(place, Watch::new(kind, served, &request));
                None
            }
        }
    }

    fn next_response(&mut self, now: Instant) -> Option<DiscoveryResponse> {
        self.advance(now);
        for place in order(self.watches.len(), self.rollout.is_removing()) {
            let watch = &mut self.watches[place];
            if self.rollout.holds(watch.kind()) {
                continue;
            }
            let Some(resources) = watch.next_resources(self.nonce + 1) else { continue };
            self.nonce += 1;
            return Some(DiscoveryResponse {
                version_info: watch.served().version(),
                resources: resources.iter().map(|resource| resource.body.clone()).collect(),
                type_url: watch.kind().url(),
                nonce: self.nonce.to_string(),
                control_plane: Some(self.control_plane.clone()),
                ..DiscoveryResponse::default()
            });
        }
        None
    }

    fn deadline(&self) -> Option<Instant> {
        self.rollout.deadline()
    }

    fn names(&self) -> usize {
        self.watches.iter().map(Watch::names).sum()
    }

    fn name_bytes(&self) -> usize {
        self.watches.iter().map(Watch::name_bytes).sum()
    }

    fn types(&self) -> Vec<TypeStatus> {
        self.watches.iter().map(Watch::status).collect()
    }

    fn resources(&self) -> Vec<ResourceStatus> {
        self.watches.iter().flat_map(Watch::resources).collect()
    }
}

impl Sotw {
    /// A client comes back. Which clusters it has is known where they were served here; where they were not, those that are
    /// gone go with the first response.
    fn resume(&mut self, kind: ResourceType, version: &str, now: Instant) {
        self.rollout.resume(now);
        if kind == ResourceType::CLUSTER
            && let Some(had) = self.past.find(version)
        {
            self.rollout.keep(&had);
        }
    }

    fn advance(&mut self, now: Instant) {
        loop {
            let of = |watch: &Watch| (watch.kind(), watch.progress(self.rollout.newest(watch.kind())), 0);
            if !self.rollout.advance(Standing::of(self.watches.iter().map(of)), now) {
                return;
            }
            self.serve();
        }
    }

    fn serve(&mut self) {
        for watch in &mut self.watches {
            watch.serve(self.rollout.served(watch.kind()));
        }
    }
}

#[cfg(test)]
mod tests;
