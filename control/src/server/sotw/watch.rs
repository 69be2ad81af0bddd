//! One type on a stream of the state of the world: what is asked for, what was said, how it was answered. It must not know
//! other types, nor how a message looks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tidegate_xds::pb::envoy::service::discovery::v3::DiscoveryRequest;

use crate::server::WILDCARD;
use crate::server::resource_set::{Kind, Resource, ResourceType};
use crate::server::rollout::Progress;
use crate::server::status::{Counts, News, Refusal, ResourceStatus, State, TypeStatus};
use crate::server::subscription::Subscription;

#[derive(Debug)]
pub(super) struct Watch {
    subscription: Subscription,
    /// Of the response that went out last; 0 before the first.
    nonce: u64,
    answered: bool,
    /// Some names were given once on this stream: to give none means nothing now, not everything.
    named: bool,
    /// A response is owed even if it says nothing: that there is nothing.
    owed: bool,
    refusal: Option<Refusal>,
    /// The newest there was when that was refused.
    refused_of: String,
}

impl Watch {
    /// What a stream's first request of a type asks for. A client that comes back with what is served is left alone, unless
    /// it asks by name: its version does not tell which names it had.
    pub(super) fn new(kind: ResourceType, served: Kind, request: &DiscoveryRequest) -> Self {
        let mut subscription = Subscription::new(kind, served);
        let named = !request.resource_names.is_empty();
        if !named && kind.has_silent_wildcard() {
            subscription.add(WILDCARD);
        }
        request.resource_names.iter().for_each(|name| subscription.add(name));
        let everything = subscription.is_wildcard();
        let has_all = everything && request.version_info == subscription.served().version();
        if has_all {
            subscription.settle_all();
        }
        let owed = !has_all && (everything || (kind.is_whole() && named));
        Self { subscription, nonce: 0, answered: true, named, owed, refusal: None, refused_of: String::new() }
    }

    pub(super) fn kind(&self) -> ResourceType {
        self.subscription.kind
    }

    pub(super) fn names(&self) -> usize {
        self.subscription.names().len()
    }

    pub(super) fn name_bytes(&self) -> usize {
        self.subscription.name_bytes()
    }

    pub(super) fn served(&self) -> &Kind {
        self.subscription.served()
    }

    pub(super) fn serve(&mut self, served: &Kind) {
        self.subscription.serve(served);
    }

    /// Takes an answer, a change of what is asked for, or both; nothing from one that answers an older response. Gives what
    /// was refused if that is news.
    pub(super) fn receive(&mut self, request: &DiscoveryRequest, newest: &Kind, now: Instant) -> Option<News> {
        let current = if self.nonce == 0 { String::new() } else { self.nonce.to_string() };
        if request.response_nonce != current {
            return None;
        }
        let is_answer = !std::mem::replace(&mut self.answered, true);
        let mut news = None;
        if let Some(error) = &request.error_detail {
            let refusal = Refusal::new(self.served().version(), error, now);
            let again = self.refusal.as_ref().is_some_and(|before| before.version == refusal.version);
            let is_news = is_answer && !again;
            news = is_news.then(|| News { refusal: refusal.clone(), said: self.subscription.asked() });
            self.refusal = Some(refusal);
            self.refused_of = newest.version();
        } else if is_answer {
            self.refusal = None;
        }
        let changed = self.ask(&request.resource_names);
        // The same again, without having been told anything: what a changed cluster needs is asked for so.
        if !changed && !is_answer && request.error_detail.is_none() && !self.subscription.is_wildcard() {
            self.subscription.raise_names();
        }
        news
    }

    fn ask(&mut self, names: &[String]) -> bool {
        if names.is_empty() && !self.named {
            return false;
        }
        self.named = true;
        let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let mut before: BTreeSet<Arc<str>> = self.subscription.names().clone();
        before.extend(self.subscription.is_wildcard().then(|| WILDCARD.into()));
        let gone: Vec<&Arc<str>> = before.iter().filter(|name| !wanted.contains(&***name)).collect();
        let new: Vec<&&str> = wanted.iter().filter(|name| !before.contains(**name)).collect();
        gone.iter().for_each(|name| self.subscription.remove(name));
        new.iter().for_each(|name| self.subscription.add(name));
        self.owed |= !new.is_empty() && self.says_all();
        !gone.is_empty() || !new.is_empty()
    }

    /// Whether each response holds all that is asked for.
    fn says_all(&self) -> bool {
        self.kind().is_whole() || self.subscription.is_wildcard()
    }

    /// What was refused holds removals back as long as it is what is wanted.
    pub(super) fn progress(&self, newest: &Kind) -> Progress {
        if self.owed || self.subscription.is_due() {
            Progress::Sending
        } else if !self.answered {
            Progress::Waiting
        } else if self.refusal.is_some() && self.refused_of == newest.version() {
            Progress::Rejected
        } else {
            Progress::Settled
        }
    }

    /// What is to be said next, under this nonce.
    pub(super) fn next_resources(&mut self, nonce: u64) -> Option<Vec<Arc<Resource>>> {
        let resources = if self.says_all() {
            if !std::mem::take(&mut self.owed) && !self.subscription.is_due() {
                return None;
            }
            self.subscription.settle_all();
            self.subscription.asked()
        } else {
            // To be absent means nothing for these types: what is gone cannot be said.
            let due: Vec<_> = std::iter::from_fn(|| self.subscription.pop_due()).collect();
            due.iter().filter_map(|name| self.subscription.get(name)).cloned().collect()
        };
        if resources.is_empty() && !self.says_all() {
            return None;
        }
        (self.nonce, self.answered) = (nonce, false);
        Some(resources)
    }

    pub(super) fn status(&self) -> TypeStatus {
        let all = self.subscription.count();
        let told_together = self.says_all() && (self.owed || self.subscription.is_due());
        let not_sent = if told_together { all } else { self.subscription.count_due() };
        let counts = match (self.answered, &self.refusal) {
            (false, _) => Counts::new(all, not_sent, all - not_sent.min(all), 0),
            (true, Some(_)) => Counts::new(all, not_sent, 0, all - not_sent.min(all)),
            (true, None) => Counts::new(all, not_sent, 0, 0),
        };
        TypeStatus {
            kind: self.kind(),
            wildcard: self.subscription.is_wildcard(),
            names: self.subscription.names().len(),
            version: self.served().version(),
            counts,
            refusal: self.refusal.clone(),
            refused: Vec::new(),
        }
    }

    /// All that was asked for, names of nothing too. An answer is to a response as a whole: it stands for all of them.
    pub(super) fn resources(&self) -> Vec<ResourceStatus> {
        let asked = self.subscription.asked();
        let absent = self.subscription.names().iter().filter(|name| self.subscription.get(name).is_none());
        let all = asked.into_iter().map(|resource| (resource.name.clone(), Some(resource)));
        all.chain(absent.map(|name| (name.clone(), None)))
            .map(|(name, resource)| {
                let state = if self.owed || self.subscription.is_name_due(&name) {
                    State::NotSent
                } else if !self.answered {
                    State::Unanswered
                } else if self.refusal.is_some() {
                    State::Refused
                } else {
                    State::Synced
                };
                ResourceStatus { kind: self.kind(), name, resource, state, refusal: self.refusal.clone() }
            })
            .collect()
    }
}
