//! Incremental xDS: only what changed is asked for, sent and answered. Answers go first, in the order in which responses came;
//! then changes of interest, types in the order in which they were first asked for; both as Envoy.
//! It must not know how messages travel.

mod state;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use state::State;
use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tidegate_xds::pb::google::rpc::Status;

use super::{Handler, Interest, earlier, rejection};

/// A server that reads no answers is owed so many; of more, those to its last responses.
const MOST_ANSWERS: usize = 1000;

/// One stream's state, kept over reconnects.
#[derive(Debug)]
pub struct Delta {
    node: Node,
    node_once: bool,
    node_sent: bool,
    connected: bool,
    types: Vec<Type>,
    answers: VecDeque<Answer>,
}

#[derive(Debug)]
struct Type {
    state: State,
    pauses: usize,
}

/// An answer that is due.
#[derive(Debug)]
struct Answer {
    place: usize,
    nonce: String,
    rejection: Option<Status>,
}

impl Delta {
    /// `node_once`: the node goes into a stream's first request only (`set_node_on_first_message_only`).
    pub fn new(node: Node, node_once: bool) -> Self {
        Self { node, node_once, node_sent: false, connected: false, types: Vec::new(), answers: VecDeque::new() }
    }

    /// Asks for something else of a type than before; what is the same costs nothing.
    pub fn ask(&mut self, type_url: &str, interest: &Interest) {
        self.state(type_url).ask(interest);
    }

    /// Asks for some names more and some less of a type; it costs what changes.
    pub fn change(&mut self, type_url: &str, more: &[Arc<str>], less: &[Arc<str>]) {
        self.state(type_url).change(more, less);
    }

    fn state(&mut self, type_url: &str) -> &mut State {
        let place = self.place(type_url).unwrap_or_else(|| {
            self.types.push(Type { state: State::new(type_url), pauses: 0 });
            self.types.len() - 1
        });
        &mut self.types[place].state
    }

    /// Asks once more for names of a type that were asked for before.
    pub fn ask_again(&mut self, type_url: &str, names: &[Arc<str>]) {
        if let Some(place) = self.place(type_url) {
            self.types[place].state.ask_again(names);
        }
    }

    /// Holds back the requests of a type; as often as [`Delta::resume`] is to follow.
    pub fn pause(&mut self, type_url: &str) {
        if let Some(place) = self.place(type_url) {
            self.types[place].pauses += 1;
        }
    }

    pub fn resume(&mut self, type_url: &str) {
        if let Some(place) = self.place(type_url) {
            let kind = &mut self.types[place];
            kind.pauses = kind.pauses.saturating_sub(1);
        }
    }

    /// A new stream: everything is asked for again, and the server told what is here.
    pub fn connected(&mut self) {
        self.connected = true;
        self.node_sent = false;
        self.answers.clear();
        self.types.iter_mut().for_each(|kind| kind.state.stream_began());
    }

    pub fn disconnected(&mut self) {
        self.connected = false;
        self.answers.clear();
    }

    /// Takes as little room as it can.
    pub fn compact(&mut self) {
        self.types.iter_mut().for_each(|kind| kind.state.compact());
    }

    /// How many requests are due.
    pub fn requests_due(&self) -> usize {
        if !self.connected {
            return 0;
        }
        let answers = self.answers.iter().filter(|answer| self.types[answer.place].pauses == 0);
        let answered = |place| self.answers.iter().any(|answer| answer.place == place);
        let changed = self.types.iter().enumerate();
        // An answer says what has changed, too.
        let changed = changed.filter(|(place, kind)| kind.pauses == 0 && kind.state.is_due() && !answered(*place));
        answers.count() + changed.count()
    }

    /// The next request to send, if one is due.
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !self.connected {
            return None;
        }
        let types = &self.types;
        if let Some(first) = self.answers.iter().position(|answer| types[answer.place].pauses == 0) {
            let answer = self.answers.remove(first)?;
            let node = self.node();
            let mut request = self.types[answer.place].state.request(node);
            request.response_nonce = answer.nonce;
            request.error_detail = answer.rejection;
            return Some(request);
        }
        let place = self.types.iter().position(|kind| kind.pauses == 0 && kind.state.is_due())?;
        let node = self.node();
        Some(self.types[place].state.request(node))
    }

    /// Where the next request is to tell it.
    fn node(&mut self) -> Option<Node> {
        let told = self.node_once && std::mem::replace(&mut self.node_sent, true);
        (!told).then(|| self.node.clone())
    }

    /// Takes a response: hands what it brings to `handler`, and makes the answer due.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse, handler: &mut impl Handler, now: Instant) {
        let Some(place) = self.place(&response.type_url) else { return };
        let nonce = response.nonce.clone();
        let taken = self.types[place].state.take(response, handler, now);
        if self.answers.len() >= MOST_ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back(Answer { place, nonce, rejection: taken.err().map(|reason| rejection(&reason)) });
    }

    /// When [`Delta::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.types.iter().map(|kind| kind.state.next_expiry()).fold(None, earlier)
    }

    /// Tells `handler` of what outlived its time.
    pub fn expire(&mut self, handler: &mut impl Handler, now: Instant) {
        self.types.iter_mut().for_each(|kind| kind.state.expire(handler, now));
    }

    fn place(&self, type_url: &str) -> Option<usize> {
        self.types.iter().position(|kind| kind.state.type_url() == type_url)
    }
}

#[cfg(test)]
mod tests;
