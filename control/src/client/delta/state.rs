//! One type on a delta stream: what is asked for, what is here in which version, and what to tell the server of both.
//! It must not know of other types.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wrapper,
};

use crate::client::ttl::Ttl;
use crate::client::{Handler, Interest, Resource, Update, WILDCARD, lifetime};

/// What is known of one type.
#[derive(Debug)]
pub(super) struct State {
    type_url: String,
    /// What was asked for by name, the wildcard included, with the version that is here.
    asked: BTreeMap<String, Option<String>>,
    /// What the wildcard brought.
    by_wildcard: BTreeMap<String, String>,
    /// What was asked for by name once and may be part of the wildcard too: the server will tell.
    ambiguous: BTreeMap<String, String>,
    /// The wildcard is meant by naming nothing, as long as nothing was ever named.
    legacy_wildcard: bool,
    to_subscribe: BTreeSet<String>,
    to_unsubscribe: BTreeSet<String>,
    /// Something was sent on this stream.
    begun: bool,
    ttl: Ttl,
}

impl State {
    pub(super) fn new(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            asked: BTreeMap::new(),
            by_wildcard: BTreeMap::new(),
            ambiguous: BTreeMap::new(),
            legacy_wildcard: false,
            to_subscribe: BTreeSet::new(),
            to_unsubscribe: BTreeSet::new(),
            begun: false,
            ttl: Ttl::default(),
        }
    }

    pub(super) fn type_url(&self) -> &str {
        &self.type_url
    }

    pub(super) fn ask(&mut self, interest: &Interest) {
        if interest.is_legacy_wildcard() {
            let asked = self.asked.contains_key(WILDCARD);
            // Naming none means everything only as the first thing that is said.
            if self.begun && !asked {
                self.add(WILDCARD.to_owned());
            }
            self.legacy_wildcard = !self.begun && !asked;
            return;
        }
        let added: Vec<String> =
            interest.names_asked().iter().filter(|name| !self.asked.contains_key(*name)).cloned().collect();
        let removed: Vec<String> =
            self.asked.keys().filter(|name| !interest.names_asked().contains(*name)).cloned().collect();
        added.into_iter().for_each(|name| self.add(name));
        removed.into_iter().for_each(|name| self.remove(name));
    }

    pub(super) fn ask_again(&mut self, names: &[String]) {
        let asked = names.iter().filter(|name| self.asked.contains_key(name.as_str()));
        self.to_subscribe.extend(asked.cloned());
    }

    fn add(&mut self, name: String) {
        if name != WILDCARD {
            self.legacy_wildcard = false;
        }
        let here = self.by_wildcard.remove(&name).or_else(|| self.ambiguous.remove(&name));
        self.asked.insert(name.clone(), here);
        // Whoever let go of it may have forgotten it: it is asked for again.
        self.to_unsubscribe.remove(&name);
        self.to_subscribe.insert(name);
    }

    fn remove(&mut self, name: String) {
        let here = self.asked.remove(&name).flatten();
        self.to_subscribe.remove(&name);
        if name == WILDCARD {
            self.by_wildcard.keys().chain(self.ambiguous.keys()).for_each(|gone| self.ttl.forget(gone));
            self.by_wildcard.clear();
            self.ambiguous.clear();
        } else if let (true, Some(version)) = (self.asked.contains_key(WILDCARD), here) {
            self.ambiguous.insert(name.clone(), version);
        } else {
            self.ttl.forget(&name);
        }
        self.legacy_wildcard = false;
        self.to_unsubscribe.insert(name);
    }

    pub(super) fn stream_began(&mut self) {
        self.begun = false;
        // The first request says everything that is asked for; what is not was never asked for on this stream.
        self.to_subscribe.clear();
        self.to_unsubscribe.clear();
    }

    /// Whether there is something to say without being asked.
    pub(super) fn is_due(&self) -> bool {
        if !self.begun {
            // A first request that names nothing would ask for everything.
            return !self.asked.is_empty() || self.legacy_wildcard;
        }
        !self.to_subscribe.is_empty() || !self.to_unsubscribe.is_empty()
    }

    /// What is to be said now; a stream's first request says everything.
    pub(super) fn request(&mut self, node: &Node) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.type_url.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        if !std::mem::replace(&mut self.begun, true) {
            let by_naming_none = self.means_wildcard_by_naming_none();
            let here = self.asked.iter().filter_map(|(name, version)| Some((name, version.as_ref()?)));
            let here = here.chain(&self.by_wildcard).chain(&self.ambiguous);
            request.initial_resource_versions = here.map(|(name, version)| (name.clone(), version.clone())).collect();
            self.to_subscribe.extend(self.asked.keys().cloned());
            if by_naming_none {
                self.to_subscribe.clear();
            }
            self.to_unsubscribe.clear();
        }
        request.resource_names_subscribe = std::mem::take(&mut self.to_subscribe).into_iter().collect();
        request.resource_names_unsubscribe = std::mem::take(&mut self.to_unsubscribe).into_iter().collect();
        request
    }

    fn means_wildcard_by_naming_none(&mut self) -> bool {
        if self.legacy_wildcard {
            self.asked.insert(WILDCARD.to_owned(), None);
            return true;
        }
        let unchanged = self.to_subscribe.is_empty() && self.to_unsubscribe.is_empty();
        unchanged && self.asked.len() == 1 && self.asked.contains_key(WILDCARD)
    }

    /// # Errors
    /// Why the response is rejected; nothing of it is here then, as far as the server is told.
    pub(super) fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
        handler: &mut impl Handler,
        now: Instant,
    ) -> Result<(), String> {
        self.check(&response).inspect_err(|reason| handler.rejected(&self.type_url, reason))?;
        let DeltaDiscoveryResponse { system_version_info, resources, removed_resources, .. } = response;
        let alive: Vec<_> = resources
            .iter()
            .map(|wrapper| (wrapper.name.clone(), wrapper.version.clone(), lifetime(wrapper.ttl)))
            .collect();
        let resources = resources.into_iter().filter(|wrapper| !self.is_heartbeat(wrapper));
        let update = Update {
            type_url: self.type_url.clone(),
            version: system_version_info,
            resources: resources.map(resource).collect(),
            removed: removed_resources.clone(),
            whole: false,
        };
        handler.apply(update)?;
        let wildcard = self.asked.contains_key(WILDCARD);
        for (name, version, ttl) in alive {
            if let Some(here) = self.asked.get_mut(&name) {
                *here = Some(version);
            } else if wildcard {
                self.ambiguous.remove(&name);
                self.by_wildcard.insert(name.clone(), version);
            } else {
                continue;
            }
            self.ttl.refresh(&name, ttl, now);
        }
        for name in &removed_resources {
            self.gone(name);
        }
        Ok(())
    }

    fn check(&self, response: &DeltaDiscoveryResponse) -> Result<(), String> {
        let mut names = HashSet::new();
        for wrapper in &response.resources {
            if !names.insert(wrapper.name.as_str()) {
                return Err(format!("duplicate name {} found among added/updated resources", wrapper.name));
            }
            let nothing_inside = wrapper.resource.is_none() && !wrapper.aliases.is_empty();
            if nothing_inside || self.is_heartbeat(wrapper) {
                continue;
            }
            let found = wrapper.resource.as_ref().map_or("", |body| body.type_url.as_str());
            if found != response.type_url {
                return Err(format!(
                    "type URL {found} embedded in an individual Any does not match the message-wide type URL {}",
                    response.type_url
                ));
            }
        }
        match response.removed_resources.iter().find(|name| !names.insert(name.as_str())) {
            Some(name) => Err(format!("duplicate name {name} found in the union of added+removed resources")),
            None => Ok(()),
        }
    }

    /// Says only that what is here lives on. Virtual hosts (VHDS) mean nothing by a body that is not there.
    fn is_heartbeat(&self, wrapper: &Wrapper) -> bool {
        let here = match self.asked.get(&wrapper.name) {
            Some(here) => here.as_ref(),
            None => self.by_wildcard.get(&wrapper.name).or_else(|| self.ambiguous.get(&wrapper.name)),
        };
        wrapper.resource.is_none()
            && here == Some(&wrapper.version)
            && !self.type_url.ends_with("/envoy.config.route.v3.VirtualHost")
    }

    /// The server has it no longer; what was asked for by name is still waited for. False: it was not here.
    fn gone(&mut self, name: &str) -> bool {
        self.ttl.forget(name);
        if let Some(here) = self.asked.get_mut(name) {
            *here = None;
            return true;
        }
        self.ambiguous.remove(name).is_some() | self.by_wildcard.remove(name).is_some()
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.ttl.next()
    }

    pub(super) fn expire(&mut self, handler: &mut impl Handler, now: Instant) {
        let expired = self.ttl.expired(now);
        let removed: Vec<String> = expired.into_iter().filter(|name| self.gone(name)).collect();
        if !removed.is_empty() {
            let update = Update {
                type_url: self.type_url.clone(),
                version: String::new(),
                resources: Vec::new(),
                removed,
                whole: false,
            };
            // There is nobody to answer, and nothing that could be wrong with less.
            let _ = handler.apply(update);
        }
    }
}

fn resource(wrapper: Wrapper) -> Resource {
    Resource {
        name: wrapper.name,
        version: wrapper.version,
        aliases: wrapper.aliases,
        body: wrapper.resource,
        ttl: lifetime(wrapper.ttl),
    }
}
