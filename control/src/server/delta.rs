//! Incremental xDS: only what changed is sent. What a client refuses together is sent again in halves, so that what is good
//! arrives and what is bad is kept apart: a client that rejects a response has nothing of it.
//! It must not know how messages travel; time is handed in.

mod watch;

use std::sync::Arc;
use std::time::Instant;

use tidegate_xds::pb::envoy::config::core::v3::ControlPlane;
use tidegate_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wrapper,
};
use watch::{Watch, Word};

use super::resource_set::{ResourceSet, ResourceType};
use super::rollout::{Rollout, Standing, order};
use super::{Dialect, News, Past, ResourceStatus, TypeStatus};

/// One stream.
#[derive(Debug)]
pub struct Delta {
    rollout: Rollout,
    /// By type, in the order of additions.
    watches: Vec<Watch>,
    nonce: u64,
    control_plane: ControlPlane,
}

impl Dialect for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(set: Arc<ResourceSet>, aggregated: bool, control_plane: ControlPlane, _: Arc<Past>) -> Self {
        Self { rollout: Rollout::new(set, aggregated), watches: Vec::new(), nonce: 0, control_plane }
    }

    fn update(&mut self, set: &Arc<ResourceSet>) {
        self.rollout.begin(set);
        self.serve();
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest, now: Instant) -> Option<News> {
        let kind = ResourceType::of_url(&request.type_url)?;
        match self.watches.binary_search_by_key(&kind, Watch::kind) {
            Ok(place) => self.watches[place].receive(&request, now),
            Err(place) => {
                if !request.initial_resource_versions.is_empty() {
                    self.rollout.resume(now);
                }
                let (served, lingers) = (self.rollout.served(kind).clone(), self.rollout.lingers(kind));
                self.watches.insert(place, Watch::new(kind, served, &request, lingers));
                None
            }
        }
    }

    fn next_response(&mut self, now: Instant) -> Option<DeltaDiscoveryResponse> {
        self.advance(now);
        for place in order(self.watches.len(), self.rollout.is_removing()) {
            let watch = &mut self.watches[place];
            if self.rollout.holds(watch.kind()) {
                continue;
            }
            let Some(words) = watch.next_words(self.nonce + 1) else { continue };
            self.nonce += 1;
            return Some(response(watch, words, self.nonce, &self.control_plane));
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

impl Delta {
    fn advance(&mut self, now: Instant) {
        loop {
            let of = |watch: &Watch| (watch.kind(), watch.progress(self.rollout.newest(watch.kind())), watch.held());
            if !self.rollout.advance(Standing::of(self.watches.iter().map(of)), now) {
                return;
            }
            self.serve();
        }
    }

    fn serve(&mut self) {
        for watch in &mut self.watches {
            watch.serve(self.rollout.served(watch.kind()));
            if self.rollout.is_removing() {
                watch.let_go();
            }
        }
    }
}

fn response(watch: &Watch, words: Vec<Word>, nonce: u64, control_plane: &ControlPlane) -> DeltaDiscoveryResponse {
    let mut response = DeltaDiscoveryResponse {
        system_version_info: watch.served().version(),
        type_url: watch.kind().url(),
        nonce: nonce.to_string(),
        control_plane: Some(control_plane.clone()),
        ..DeltaDiscoveryResponse::default()
    };
    for (name, resource) in words {
        match resource {
            Some(resource) => response.resources.push(Wrapper {
                name: resource.name.to_string(),
                version: resource.version.to_string(),
                resource: Some(resource.body.clone()),
                ..Wrapper::default()
            }),
            None => response.removed_resources.push(name.to_string()),
        }
    }
    response
}

#[cfg(test)]
mod tests;
