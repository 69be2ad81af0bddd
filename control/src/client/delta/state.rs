//! One type on a delta stream: what is asked for, what is here in which version, and what to tell the server of both.
//! It must not know of other types.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wrapper,
};

use crate::client::ttl::Ttl;
use crate::client::{Handler, Interest, Resource, Update, WILDCARD, lifetime, xdstp};

/// What is known of one type.
#[derive(Debug)]
pub(super) struct State {
    type_url: String,
    /// What was asked for by name, the wildcard included, with the version that is here.
    asked: BTreeMap<Arc<str>, Option<Arc<str>>>,
    /// How many of them are collections.
    collections: usize,
    /// What the wildcard and collections brought.
    by_wildcard: BTreeMap<Arc<str>, Arc<str>>,
    /// What was asked for by name once and may be part of the wildcard too: the server will tell.
    ambiguous: BTreeMap<Arc<str>, Arc<str>>,
    /// The wildcard is meant by naming nothing, as long as nothing was ever named.
    legacy_wildcard: bool,
    to_subscribe: BTreeSet<Arc<str>>,
    to_unsubscribe: BTreeSet<Arc<str>>,
    /// Something was sent on this stream.
    begun: bool,
    ttl: Ttl,
}

impl State {
    pub(super) fn new(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            asked: BTreeMap::new(),
            collections: 0,
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
                self.add(&WILDCARD.into());
            }
            self.legacy_wildcard = !self.begun && !asked;
            return;
        }
        let less: Vec<_> = self.asked.keys().filter(|name| !interest.names_asked().contains(*name)).cloned().collect();
        let more: Vec<_> = interest.names_asked().iter().cloned().collect();
        self.change(&more, &less);
    }

    pub(super) fn change(&mut self, more: &[Arc<str>], less: &[Arc<str>]) {
        for name in more {
            if !self.asked.contains_key(name) {
                self.add(name);
            }
        }
        for name in less {
            if self.asked.contains_key(name) {
                self.remove(name);
            }
        }
    }

    pub(super) fn ask_again(&mut self, names: &[Arc<str>]) {
        let asked = names.iter().filter(|name| self.asked.contains_key(*name));
        self.to_subscribe.extend(asked.cloned());
    }

    fn add(&mut self, name: &Arc<str>) {
        if **name != *WILDCARD {
            self.legacy_wildcard = false;
        }
        let here = self.by_wildcard.remove(name).or_else(|| self.ambiguous.remove(name));
        self.asked.insert(Arc::clone(name), here);
        self.collections += usize::from(xdstp::is_collection(name));
        // Whoever let go of it may have forgotten it: it is asked for again.
        self.to_unsubscribe.remove(name);
        self.to_subscribe.insert(Arc::clone(name));
    }

    fn remove(&mut self, name: &Arc<str>) {
        let here = self.asked.remove(name).flatten();
        self.collections -= usize::from(xdstp::is_collection(name));
        self.to_subscribe.remove(name);
        if **name == *WILDCARD {
            self.by_wildcard.keys().chain(self.ambiguous.keys()).for_each(|gone| self.ttl.forget(gone));
            self.by_wildcard.clear();
            self.ambiguous.clear();
        } else if let (true, Some(version)) = (self.asked.contains_key(WILDCARD), here) {
            self.ambiguous.insert(Arc::clone(name), version);
        } else {
            self.ttl.forget(name);
        }
        self.legacy_wildcard = false;
        self.to_unsubscribe.insert(Arc::clone(name));
    }

    pub(super) fn stream_began(&mut self) {
        self.begun = false;
        // The first request says everything that is asked for; what is not was never asked for on this stream.
        self.to_subscribe.clear();
        self.to_unsubscribe.clear();
    }

    /// Maps that were filled in order are half empty.
    pub(super) fn compact(&mut self) {
        for map in [&mut self.by_wildcard, &mut self.ambiguous] {
            *map = std::mem::take(map).into_iter().collect();
        }
        self.asked = std::mem::take(&mut self.asked).into_iter().collect();
    }

    /// Whether there is something to say without being asked.
    pub(super) fn is_due(&self) -> bool {
        if !self.begun {
            // A first request that names nothing would ask for everything.
            return !self.asked.is_empty() || self.legacy_wildcard;
        }
        !self.to_subscribe.is_empty() || !self.to_unsubscribe.is_empty()
    }

    /// What is to be said now, with the node where it is to be told; a stream's first request says everything.
    pub(super) fn request(&mut self, node: Option<Node>) -> DeltaDiscoveryRequest {
        let mut request =
            DeltaDiscoveryRequest { node, type_url: self.type_url.clone(), ..DeltaDiscoveryRequest::default() };
        if !std::mem::replace(&mut self.begun, true) {
            let by_naming_none = self.means_wildcard_by_naming_none();
            let here = self.asked.iter().filter_map(|(name, version)| Some((name, version.as_ref()?)));
            let here = here.chain(&self.by_wildcard).chain(&self.ambiguous);
            request.initial_resource_versions =
                here.map(|(name, version)| (name.to_string(), version.to_string())).collect();
            self.to_subscribe.extend(self.asked.keys().cloned());
            if by_naming_none {
                self.to_subscribe.clear();
            }
            self.to_unsubscribe.clear();
        }
        let said = |names| std::mem::take::<BTreeSet<Arc<str>>>(names).iter().map(|name| name.to_string()).collect();
        request.resource_names_subscribe = said(&mut self.to_subscribe);
        request.resource_names_unsubscribe = said(&mut self.to_unsubscribe);
        request
    }

    fn means_wildcard_by_naming_none(&mut self) -> bool {
        if self.legacy_wildcard {
            self.asked.insert(WILDCARD.into(), None);
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
        let mut alive = Vec::with_capacity(resources.len());
        let mut came = Vec::with_capacity(resources.len());
        let mut version: Arc<str> = system_version_info.as_str().into();
        for wrapper in resources {
            // Often all have the same, and one holds it.
            if *wrapper.version != *version {
                version = wrapper.version.as_str().into();
            }
            alive.push((wrapper.name.clone(), Arc::clone(&version), lifetime(wrapper.ttl)));
            if !self.is_heartbeat(&wrapper) {
                came.push(resource(wrapper, &version));
            }
        }
        let mut removed = removed_resources.clone();
        let answered = !came.is_empty() || !removed.is_empty();
        if self.collections > 0 {
            came.retain(|resource| self.is_asked(&resource.name));
            removed.retain(|name| self.is_asked(name));
        }
        let update = Update {
            type_url: self.type_url.clone(),
            version: system_version_info,
            resources: came,
            removed,
            whole: false,
            delta: true,
        };
        // What is of no collection that was asked for is nobody's.
        if !answered || !update.resources.is_empty() || !update.removed.is_empty() {
            handler.apply(update)?;
        }
        // Naming none means everything also before it was said: what was kept on disk comes first.
        let wildcard = self.legacy_wildcard || self.asked.contains_key(WILDCARD);
        for (name, version, ttl) in alive {
            if let Some(here) = self.asked.get_mut(name.as_str()) {
                *here = Some(version);
            } else if wildcard || (self.collections > 0 && self.is_asked(&name)) {
                self.ambiguous.remove(name.as_str());
                self.by_wildcard.insert(name.as_str().into(), version);
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

    /// Where there are collections: whether a resource is of one of them, or asked for by its own name.
    fn is_asked(&self, name: &str) -> bool {
        self.asked.contains_key(WILDCARD)
            || self.asked.contains_key(name)
            || xdstp::collection_of(name).is_some_and(|collection| self.asked.contains_key(&*collection))
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
        let here = match self.asked.get(wrapper.name.as_str()) {
            Some(here) => here.as_ref(),
            None => self.by_wildcard.get(wrapper.name.as_str()).or_else(|| self.ambiguous.get(wrapper.name.as_str())),
        };
        wrapper.resource.is_none()
            && here.is_some_and(|here| **here == *wrapper.version)
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
                delta: true,
            };
            // There is nobody to answer, and nothing that could be wrong with less.
            let _ = handler.apply(update);
        }
    }
}

fn resource(wrapper: Wrapper, version: &Arc<str>) -> Resource {
    Resource {
        name: wrapper.name,
        version: Arc::clone(version),
        aliases: wrapper.aliases,
        body: wrapper.resource,
        ttl: lifetime(wrapper.ttl),
    }
}
