//! What streams and polls are asked for by name, after what the store needs. It must not know what resources mean.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tidegate_control::client::{Interest, WILDCARD};
use tidegate_filters::context::ConfigSource;

use super::{Discovery, polled_from};
use crate::config::store::{AskedHost, Kind, Moved, Store};

impl Discovery {
    /// What is asked for by name: what moved of it, all names of a stream at once, each with its own time.
    pub(super) fn sync_named(&mut self, kind: Kind, store: &mut Store) {
        let moved = store.take_moved(kind);
        if moved.is_empty() {
            return;
        }
        let mut again: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut changed: BTreeMap<usize, Interest> = BTreeMap::new();
        let mut moved_carried = Vec::new();
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
            for (&at, stream) in &self.streams {
                let asks = stream.asks(kind, &name);
                if asks && begins_anew && place == Some(at) {
                    again.entry(at).or_default().push(name.to_string());
                }
                if asks == (place == Some(at)) {
                    continue;
                }
                // What nobody needs any more is let go.
                if kind.is_whole() {
                    // What is here already was brought for others: it is asked for again. (Envoy asks for nothing, and waits in
                    // vain.)
                    let anew = !asks && kind == Kind::VirtualHost && stream.asked.contains_key(&kind);
                    again.entry(at).or_default().extend(anew.then(|| WILDCARD.to_owned()));
                    moved_carried.push((at, Arc::clone(&name), !asks));
                } else {
                    let interest = changed.entry(at).or_insert_with(|| stream.interest(kind));
                    if asks { interest.remove(&name) } else { interest.insert(&name) }
                }
            }
        }
        for (at, name, carries) in moved_carried {
            if let Some(stream) = self.streams.get_mut(&at) {
                stream.carried.set(kind, &name, carries);
                changed.insert(at, stream.carried.interest(kind, stream.asked.get(&kind)));
            }
        }
        for (at, stream) in &mut self.streams {
            stream.ask_again(kind, again.get(at).map_or(&[], Vec::as_slice));
            if let Some(interest) = changed.remove(at) {
                stream.ask(kind, interest);
            }
        }
        self.close_unneeded();
    }

    /// Virtual hosts that requests ask for, or that are forgotten.
    pub(super) fn sync_asked_hosts(&mut self, store: &mut Store) {
        for AskedHost { routes, name, asks } in store.take_asked_hosts() {
            let Some(stream) = self.streams.values_mut().find(|stream| stream.asks(Kind::VirtualHost, &routes)) else {
                continue;
            };
            stream.carried.ask_host(&routes, &name, asks);
            let interest = stream.carried.interest(Kind::VirtualHost, stream.asked.get(&Kind::VirtualHost));
            stream.ask(Kind::VirtualHost, interest);
            if asks {
                self.subscriptions.asked_on_stream(Kind::VirtualHost, &routes, store);
            }
        }
    }
}
