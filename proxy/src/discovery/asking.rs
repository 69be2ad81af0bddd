//! What streams and polls are asked for by name, after what the store needs. It must not know what resources mean.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tidegate_control::client::WILDCARD;
use tidegate_filters::context::ConfigSource;

use super::{Discovery, Stream, polled_from};
use crate::config::origin::name_of;
use crate::config::store::{AskedHost, Kind, Moved, Store};

impl Discovery {
    /// What is asked for by name: what moved of it, all names of a stream at once, each with its own time.
    pub(super) fn sync_named(&mut self, kind: Kind, store: &mut Store) {
        let moved = store.take_moved(kind);
        if moved.is_empty() {
            return;
        }
        let mut changes: BTreeMap<usize, Change> = BTreeMap::new();
        for Moved { name, source, again: begins_anew } in moved {
            let place = source.as_ref().and_then(|source| self.place_of(kind, source));
            let wait = source.as_ref().and_then(ConfigSource::wait);
            if begins_anew || wait.is_none() {
                self.waits.forget(kind, &name);
            }
            match wait {
                None => self.subscriptions.forget(kind, &name),
                Some(wait) => {
                    self.subscriptions.set_polled(kind, &name, polled_from(source.as_ref()).is_some());
                    if self.waits.begin(kind, &name, wait, Instant::now()) {
                        self.subscriptions.begin(kind, &name, store);
                    }
                }
            }
            self.polls.set(kind, &name, polled_from(source.as_ref()), begins_anew);
            for (&at, stream) in &mut self.streams {
                if stream.kind == Some(kind) {
                    match place == Some(at) {
                        true => stream.stats.follow(&name, &store.subscription_scopes(kind, &name)),
                        false => stream.stats.leave(&name),
                    }
                }
                let (asks, is_to_ask) = (stream.asks(kind, &name), place == Some(at));
                let name = || Arc::<str>::from(name_of(&name));
                // What nobody needs any more is let go.
                match (asks, is_to_ask) {
                    (false, true) => changes.entry(at).or_default().more.push(name()),
                    (true, false) => changes.entry(at).or_default().less.push(name()),
                    (true, true) if begins_anew => changes.entry(at).or_default().again.push(name()),
                    (true, true) | (false, false) => {}
                }
            }
        }
        for (at, change) in changes {
            if let Some(stream) = self.streams.get_mut(&at) {
                stream.move_to(kind, change);
            }
        }
        self.close_unneeded();
    }

    /// Virtual hosts that requests ask for, or that are forgotten.
    pub(super) fn sync_asked_hosts(&mut self, store: &mut Store) {
        let mut changes: BTreeMap<usize, Change> = BTreeMap::new();
        for AskedHost { routes, name, asks } in store.take_asked_hosts() {
            let mut streams = self.streams.iter_mut();
            let Some((&at, stream)) = streams.find(|(_, stream)| stream.asks(Kind::VirtualHost, &routes)) else {
                continue;
            };
            stream.carried.ask_host(&routes, &name, asks);
            let change = changes.entry(at).or_default();
            if asks {
                change.more.push(name);
                self.subscriptions.asked_on_stream(Kind::VirtualHost, &routes, store);
            } else {
                change.less.push(name);
            }
        }
        for (at, Change { more, less, .. }) in changes {
            if let Some(stream) = self.streams.get_mut(&at) {
                stream.move_hosts(&more, &less);
            }
        }
    }
}

/// What a stream is to ask for otherwise than before.
#[derive(Default)]
struct Change {
    again: Vec<Arc<str>>,
    more: Vec<Arc<str>>,
    less: Vec<Arc<str>>,
}

impl Stream {
    fn move_to(&mut self, kind: Kind, change: Change) {
        let Change { mut again, more, less } = change;
        // What is here already was brought for others: it is asked for again. (Envoy asks for nothing, and waits in vain.)
        if kind == Kind::VirtualHost && !more.is_empty() && self.asked.contains_key(&kind) {
            again.push(WILDCARD.into());
        }
        self.ask_again(kind, &again);
        if !kind.is_whole() {
            return self.change(kind, &more, &less);
        }
        if !more.is_empty() || !less.is_empty() {
            more.iter().for_each(|name| self.carried.set(kind, name, true));
            less.iter().for_each(|name| self.carried.set(kind, name, false));
            self.ask(kind, self.carried.interest(kind, self.asked.get(&kind)));
        }
    }

    fn move_hosts(&mut self, more: &[Arc<str>], less: &[Arc<str>]) {
        let kind = Kind::VirtualHost;
        match self.asked.get(&kind) {
            Some(asked) if asked.names_asked().contains(WILDCARD) => self.change(kind, more, less),
            before => self.ask(kind, self.carried.interest(kind, before)),
        }
    }
}
