//! One type on a delta stream: what is asked for, what was said and not answered, what was refused. It must not know other
//! types, nor how a message looks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tidegate_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use tidegate_xds::pb::google::rpc::Status;

use crate::server::WILDCARD;
use crate::server::resource_set::{Kind, Resource, ResourceType, Version};
use crate::server::rollout::Progress;
use crate::server::status::{Counts, News, Refusal, ResourceStatus, State, TypeStatus};
use crate::server::subscription::Subscription;

/// A response to who asks by name ends with the resource that makes it this long: each stream keeps a buffer as long as its
/// longest response. Everything is told in one: Envoy begins to listen once the clusters of its first response are warm.
const MAX_BYTES: usize = 64 << 10;

/// Of more responses than this that were not answered, what the oldest held is forgotten.
const MOST_UNANSWERED: usize = 64;

/// Of more versions than this it is forgotten that they were refused.
const MOST_KNOWN_REFUSED: usize = 256;

/// What is said of a name: what there is, or that there is nothing.
pub(super) type Word = (Arc<str>, Option<Arc<Resource>>);

/// What a response held.
#[derive(Debug)]
struct Sent {
    nonce: u64,
    words: Vec<(Arc<str>, Option<Version>)>,
}

#[derive(Debug)]
pub(super) struct Watch {
    subscription: Subscription,
    /// A response is owed even if it says nothing: who asks for everything waits to hear that there is nothing.
    owed: bool,
    /// What the client came back with and is no more, as long as it may need it.
    held: BTreeSet<Arc<str>>,
    /// How long these names are together.
    held_bytes: usize,
    unanswered: VecDeque<Sent>,
    /// What was refused together with others, in parts that are tried one by one.
    retries: VecDeque<Vec<Arc<str>>>,
    /// What was refused by itself; it is not sent again before it changes.
    refused: BTreeMap<Arc<str>, Refusal>,
    /// The last refusal, unless something was accepted since.
    refusal: Option<Refusal>,
    /// The versions that were refused since something was accepted, to tell news from what is known.
    known_refused: BTreeSet<String>,
}

impl Watch {
    /// What a stream's first request of a type asks for. `lingers`: what is gone is not told before [`Watch::let_go`].
    pub(super) fn new(kind: ResourceType, served: Kind, request: &DeltaDiscoveryRequest, lingers: bool) -> Self {
        let mut subscription = Subscription::new(kind, served);
        let names = &request.resource_names_subscribe;
        if names.is_empty() && kind.has_silent_wildcard() {
            subscription.add(WILDCARD);
        }
        names.iter().for_each(|name| subscription.add(name));
        let mut held = BTreeSet::<Arc<str>>::new();
        for (name, version) in &request.initial_resource_versions {
            let here = Version::parse(version);
            match subscription.get(name) {
                Some(resource) if here == Some(resource.version) => subscription.settle(name),
                // It is due already if it was asked for.
                Some(_) => {}
                None if subscription.covers(name) && lingers => {
                    subscription.settle(name);
                    held.insert(name.as_str().into());
                }
                None if subscription.covers(name) => subscription.raise(name),
                None => {}
            }
        }
        let owed = subscription.is_wildcard() && request.initial_resource_versions.is_empty();
        Self {
            subscription,
            owed,
            held_bytes: held.iter().map(|name| name.len()).sum(),
            held,
            unanswered: VecDeque::new(),
            retries: VecDeque::new(),
            refused: BTreeMap::new(),
            refusal: None,
            known_refused: BTreeSet::new(),
        }
    }

    pub(super) fn kind(&self) -> ResourceType {
        self.subscription.kind
    }

    pub(super) fn names(&self) -> usize {
        self.subscription.names().len()
    }

    /// Of all that the client makes this hold.
    pub(super) fn name_bytes(&self) -> usize {
        self.subscription.name_bytes() + self.held_bytes
    }

    pub(super) fn served(&self) -> &Kind {
        self.subscription.served()
    }

    pub(super) fn serve(&mut self, served: &Kind) {
        self.subscription.serve(served);
    }

    /// How much the client came back with that is no more and was not told so.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// The client needs nothing any more that is gone.
    pub(super) fn let_go(&mut self) {
        self.held_bytes = 0;
        for name in std::mem::take(&mut self.held) {
            if self.subscription.covers(&name) && self.subscription.get(&name).is_none() {
                self.subscription.raise(&name);
            }
        }
    }

    /// Takes an answer, a change of what is asked for, or both. Gives what was refused if that is news.
    pub(super) fn receive(&mut self, request: &DeltaDiscoveryRequest, now: Instant) -> Option<News> {
        let answered = Some(&request.response_nonce).filter(|nonce| !nonce.is_empty());
        let news = answered.and_then(|nonce| self.answered(nonce, request.error_detail.as_ref(), now));
        for name in &request.resource_names_unsubscribe {
            self.subscription.remove(name);
        }
        for name in &request.resource_names_subscribe {
            self.subscription.add(name);
        }
        if !request.resource_names_unsubscribe.is_empty() {
            let subscription = &self.subscription;
            self.refused.retain(|name, _| subscription.covers(name));
        }
        news
    }

    /// A response was taken or refused. What was refused by itself waits until it changes; what was refused with others is
    /// tried in halves.
    fn answered(&mut self, nonce: &str, error: Option<&Status>, now: Instant) -> Option<News> {
        let place = self.unanswered.iter().position(|sent| sent.nonce.to_string() == nonce);
        let sent = place.and_then(|place| self.unanswered.remove(place));
        let Some(error) = error else {
            self.refusal = self.refusal.take().filter(|_| !self.refused.is_empty() || !self.retries.is_empty());
            if self.refusal.is_none() {
                self.known_refused.clear();
            }
            return None;
        };
        let is_answer = sent.is_some();
        let words = sent.map(|sent| sent.words).unwrap_or_default();
        let version = match words.as_slice() {
            [(_, version)] => version.map(|version| version.to_string()).unwrap_or_default(),
            _ => self.served().version(),
        };
        let refusal = Refusal::new(version, error, now);
        self.refusal = Some(refusal.clone());
        if self.known_refused.len() == MOST_KNOWN_REFUSED {
            self.known_refused.clear();
        }
        let is_news = is_answer && self.known_refused.insert(refusal.version.clone());
        let news = is_news.then(|| News { refusal: refusal.clone(), said: self.still(&words) });
        let current = |(name, version): (Arc<str>, Option<Version>)| {
            let same = self.subscription.get(&name).map(|resource| resource.version) == version;
            let stands = same && self.subscription.covers(&name) && !self.subscription.is_name_due(&name);
            stands.then_some(name)
        };
        let mut names: Vec<_> = words.into_iter().filter_map(current).collect();
        match names.len() {
            0 => {}
            1 => self.refused.extend(names.pop().map(|name| (name, refusal))),
            count => {
                let rest = names.split_off(count / 2);
                self.retries.extend([names, rest]);
            }
        }
        news
    }

    /// What was refused holds removals back as long as it is what is wanted.
    pub(super) fn progress(&self, newest: &Kind) -> Progress {
        let wanted = |name: &str| newest.get(name).is_some_and(|resource| self.served().get(name) == Some(resource));
        if self.owed || self.subscription.is_due() || !self.retries.is_empty() {
            Progress::Sending
        } else if !self.unanswered.is_empty() {
            Progress::Waiting
        } else if self.refused.keys().any(|name| wanted(name)) {
            Progress::Rejected
        } else {
            Progress::Settled
        }
    }

    /// What is to be said next, under this nonce.
    pub(super) fn next_words(&mut self, nonce: u64) -> Option<Vec<Word>> {
        let mut words = self.due_words();
        let owed = std::mem::take(&mut self.owed);
        while words.is_empty() && !owed {
            let names = self.retries.pop_front()?;
            // What fell due meanwhile is said by itself, what nobody asks for any more is not.
            let asked = names.into_iter().filter(|name| self.subscription.covers(name));
            words = asked.map(|name| self.word(name)).collect();
        }
        if self.unanswered.len() == MOST_UNANSWERED {
            self.unanswered.pop_front();
        }
        let sent = words.iter().map(|(name, resource)| (name.clone(), resource.as_ref().map(|found| found.version)));
        self.unanswered.push_back(Sent { nonce, words: sent.collect() });
        Some(words)
    }

    fn due_words(&mut self) -> Vec<Word> {
        let (mut words, mut bytes) = (Vec::new(), 0);
        while (bytes < MAX_BYTES || self.subscription.is_wildcard())
            && let Some(name) = self.subscription.pop_due()
        {
            self.refused.remove(&name);
            let word = self.word(name);
            bytes += word.0.len() + word.1.as_ref().map_or(0, |resource| resource.body.value.len());
            words.push(word);
        }
        words
    }

    fn word(&self, name: Arc<str>) -> Word {
        let resource = self.subscription.get(&name).cloned();
        (name, resource)
    }

    /// Of what was said that which is still so.
    fn still(&self, words: &[(Arc<str>, Option<Version>)]) -> Vec<Arc<Resource>> {
        let current = |(name, version): &(Arc<str>, Option<Version>)| {
            self.subscription.get(name).filter(|resource| Some(resource.version) == *version).cloned()
        };
        words.iter().filter_map(current).collect()
    }

    pub(super) fn status(&self) -> TypeStatus {
        TypeStatus {
            kind: self.kind(),
            wildcard: self.subscription.is_wildcard(),
            names: self.subscription.names().len(),
            version: self.served().version(),
            counts: Counts::new(
                self.subscription.count(),
                self.subscription.count_due() + self.retries.iter().map(Vec::len).sum::<usize>(),
                self.unanswered.iter().map(|sent| sent.words.len()).sum(),
                self.refused.len(),
            ),
            refusal: self.refusal.clone(),
            refused: self.refused.keys().cloned().collect(),
        }
    }

    /// All that was asked for, names of nothing too.
    pub(super) fn resources(&self) -> Vec<ResourceStatus> {
        let on_the_way: BTreeMap<&str, ()> =
            self.unanswered.iter().flat_map(|sent| &sent.words).map(|(name, _)| (&**name, ())).collect();
        let retried: BTreeMap<&str, ()> = self.retries.iter().flatten().map(|name| (&**name, ())).collect();
        let asked = self.subscription.asked();
        let absent = self.subscription.names().iter().filter(|name| self.subscription.get(name).is_none());
        let all = asked.into_iter().map(|resource| (resource.name.clone(), Some(resource)));
        all.chain(absent.map(|name| (name.clone(), None)))
            .map(|(name, resource)| {
                let refusal = self.refused.get(&name).cloned();
                let state = if self.subscription.is_name_due(&name) || retried.contains_key(&*name) {
                    State::NotSent
                } else if on_the_way.contains_key(&*name) {
                    State::Unanswered
                } else if refusal.is_some() {
                    State::Refused
                } else {
                    State::Synced
                };
                ResourceStatus { kind: self.kind(), name, resource, state, refusal }
            })
            .collect()
    }
}
