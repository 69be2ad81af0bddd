//! State of the world: each response of a type says all that is asked for. Envoy's order of requests: types in the order in
//! which they were first asked for, one request a change, none for a type that is paused.
//! It must not know how messages travel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use prost::{Message as _, Name as _};
use tidegate_xds::any;
use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource as Wrapper};
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::pb::google::rpc::Status;

use super::ttl::Ttl;
use super::{Handler, Interest, Resource, Update, earlier, lifetime, rejection};

/// So many requests may be due, and then one of each type more.
const MOST_DUE: usize = 1000;

/// One stream's state, kept over reconnects.
#[derive(Debug)]
pub struct Sotw {
    node: Node,
    node_once: bool,
    node_sent: bool,
    connected: bool,
    types: Vec<Type>,
    /// Places in `types` that have a request to send, in order.
    queue: VecDeque<usize>,
}

#[derive(Debug)]
struct Type {
    url: String,
    interest: Interest,
    /// Of the response that was accepted last; kept over reconnects.
    version: String,
    /// Of the response that came last on this stream.
    nonce: String,
    rejection: Option<Status>,
    pauses: usize,
    /// A request fell due while it was paused.
    pending: bool,
    ttl: Ttl,
}

impl Sotw {
    /// `node_once`: the node goes into a stream's first request only (`set_node_on_first_message_only`).
    pub fn new(node: Node, node_once: bool) -> Self {
        Self { node, node_once, node_sent: false, connected: false, types: Vec::new(), queue: VecDeque::new() }
    }

    /// Asks for something else of a type than before. Another request is due even where the interest is the same: that is
    /// how Envoy asks again for what a changed cluster needs.
    pub fn ask(&mut self, type_url: &str, interest: Interest) {
        let place = match self.place(type_url) {
            Some(place) => place,
            None => {
                self.types.push(Type {
                    url: type_url.to_owned(),
                    interest: Interest::default(),
                    version: String::new(),
                    nonce: String::new(),
                    rejection: None,
                    pauses: 0,
                    pending: false,
                    ttl: Ttl::default(),
                });
                self.types.len() - 1
            }
        };
        let gone = self.types[place].interest.names_asked().difference(interest.names_asked());
        let gone: Vec<Arc<str>> = gone.cloned().collect();
        gone.iter().for_each(|name| self.types[place].ttl.forget(name));
        self.types[place].interest = interest;
        self.due(place);
    }

    /// Holds back the requests of a type; as often as [`Sotw::resume`] is to follow.
    pub fn pause(&mut self, type_url: &str) {
        if let Some(place) = self.place(type_url) {
            self.types[place].pauses += 1;
        }
    }

    pub fn resume(&mut self, type_url: &str) {
        let Some(place) = self.place(type_url) else { return };
        let kind = &mut self.types[place];
        kind.pauses = kind.pauses.saturating_sub(1);
        if kind.pauses == 0 && std::mem::take(&mut kind.pending) {
            self.due(place);
        }
    }

    /// A new stream: everything is asked for again, with the versions that act and no nonce.
    pub fn connected(&mut self) {
        self.connected = true;
        self.node_sent = false;
        self.queue.clear();
        for place in 0..self.types.len() {
            self.types[place].nonce.clear();
            self.due(place);
        }
    }

    pub fn disconnected(&mut self) {
        self.connected = false;
        self.queue.clear();
    }

    /// Takes as little room as it can.
    pub fn compact(&mut self) {
        self.types.iter_mut().for_each(|kind| kind.interest.compact());
    }

    /// How many requests are due.
    pub fn requests_due(&self) -> usize {
        self.queue.len()
    }

    /// The next request to send, if one is due.
    pub fn next_request(&mut self) -> Option<DiscoveryRequest> {
        let place = self.queue.pop_front()?;
        let with_node = !self.node_once || !std::mem::replace(&mut self.node_sent, true);
        let kind = &mut self.types[place];
        Some(DiscoveryRequest {
            version_info: kind.version.clone(),
            node: with_node.then(|| self.node.clone()),
            resource_names: kind.interest.names_asked().iter().map(|name| name.to_string()).collect(),
            type_url: kind.url.clone(),
            response_nonce: kind.nonce.clone(),
            error_detail: kind.rejection.take(),
            ..DiscoveryRequest::default()
        })
    }

    /// Takes a response: hands what it brings to `handler`, and makes the answer due.
    pub fn receive(&mut self, response: DiscoveryResponse, handler: &mut impl Handler, now: Instant) {
        let Some(place) = self.place(&response.type_url) else { return };
        let nonce = response.nonce.clone();
        let kind = &mut self.types[place];
        if kind.interest.is_empty() {
            kind.nonce = nonce;
            if response.resources.is_empty() {
                kind.version = response.version_info;
            } else {
                self.due(place);
            }
            return;
        }
        match kind.take(response, handler, now) {
            Ok(version) => kind.version = version,
            Err(reason) => kind.rejection = Some(rejection(&reason)),
        }
        kind.nonce = nonce;
        self.due(place);
    }

    /// When [`Sotw::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.types.iter().map(|kind| kind.ttl.next()).fold(None, earlier)
    }

    /// Tells `handler` of what outlived its time.
    pub fn expire(&mut self, handler: &mut impl Handler, now: Instant) {
        for kind in &mut self.types {
            let removed = kind.ttl.expired(now);
            if !removed.is_empty() {
                let update = Update {
                    type_url: kind.url.clone(),
                    version: String::new(),
                    resources: Vec::new(),
                    removed,
                    whole: false,
                    delta: false,
                };
                // There is nobody to answer, and nothing that could be wrong with less.
                let _ = handler.apply(update);
            }
        }
    }

    fn place(&self, type_url: &str) -> Option<usize> {
        self.types.iter().position(|kind| kind.url == type_url)
    }

    fn due(&mut self, place: usize) {
        if !self.connected {
            return;
        }
        if self.types[place].pauses > 0 {
            self.types[place].pending = true;
        } else {
            // A request says all that there is to say: one more of a type says nothing to a server that reads none.
            if self.queue.len() < MOST_DUE || !self.queue.contains(&place) {
                self.queue.push_back(place);
            }
        }
    }
}

impl Type {
    /// The version that acts now.
    fn take(
        &mut self,
        response: DiscoveryResponse,
        handler: &mut impl Handler,
        now: Instant,
    ) -> Result<String, String> {
        let version = response.version_info;
        let shared: Arc<str> = version.as_str().into();
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut alive = Vec::new();
        for body in response.resources {
            let resource = unwrapped(body, &self.url, &shared, handler);
            let resource = resource.inspect_err(|reason| handler.rejected(&self.url, reason))?;
            alive.push((resource.name.clone(), resource.ttl));
            let heartbeat = resource.body.is_none() && *resource.version == *self.version;
            if heartbeat {
                continue;
            }
            if self.interest.covers(&resource.name) {
                resources.push(resource);
            }
        }
        // Of a collection everything comes, or nothing: then nothing was said of it.
        if self.interest.is_wildcard() || !resources.is_empty() {
            let update = Update {
                type_url: self.url.clone(),
                version: version.clone(),
                resources,
                removed: Vec::new(),
                whole: self.interest.is_whole(),
                delta: false,
            };
            handler.apply(update)?;
        }
        for (name, ttl) in alive {
            self.ttl.refresh(&name, ttl, now);
        }
        Ok(version)
    }
}

/// A resource out of its wrapper, where it has one (TTL).
pub(super) fn unwrapped(
    body: Any,
    type_url: &str,
    version: &Arc<str>,
    handler: &impl Handler,
) -> Result<Resource, String> {
    let mismatch = |found: &str| format!("{found} does not match the message-wide type URL {type_url}");
    if any::type_name(&body.type_url) != Some(&Wrapper::full_name()) {
        if body.type_url != type_url {
            return Err(mismatch(&body.type_url));
        }
        let name = handler.name_of(&body).ok_or_else(|| format!("a resource of type {type_url} cannot be read"))?;
        return Ok(Resource { name, version: Arc::clone(version), aliases: Vec::new(), body: Some(body), ttl: None });
    }
    let wrapper =
        Wrapper::decode(&*body.value).map_err(|error| format!("a wrapped resource cannot be read: {error}"))?;
    if let Some(inner) = &wrapper.resource
        && inner.type_url != type_url
    {
        return Err(mismatch(&inner.type_url));
    }
    let own_name = || wrapper.resource.as_ref().and_then(|inner| handler.name_of(inner));
    let name = if wrapper.name.is_empty() { own_name().unwrap_or_default() } else { wrapper.name.clone() };
    let version = if wrapper.version.is_empty() { Arc::clone(version) } else { wrapper.version.into() };
    Ok(Resource { name, version, aliases: wrapper.aliases, body: wrapper.resource, ttl: lifetime(wrapper.ttl) })
}

#[cfg(test)]
mod tests;
