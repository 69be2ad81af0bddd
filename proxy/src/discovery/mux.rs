//! The two dialects of a stream behind one face, and where their requests go. It must not know resources.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tidegate_control::client::{Delta, Handler, Interest, Sotw};
use tidegate_filters::context::ControlPlane;
use tidegate_xds::pb::envoy::config::core::v3::Node;
use tidegate_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio::sync::mpsc::Sender;

use super::gate::Gate;
use super::stream::{Event, Happened};
use crate::stats::control_plane::ControlPlaneStats;

/// A stream's state and, while it is open, its requests' way out.
pub(super) enum Mux {
    Sotw(Sotw, Option<Sender<DiscoveryRequest>>),
    Delta(Delta, Option<Sender<DeltaDiscoveryRequest>>),
}

impl Mux {
    pub(super) fn new(control_plane: &ControlPlane, node: Node) -> Self {
        if control_plane.delta {
            Self::Delta(Delta::new(node, control_plane.node_once), None)
        } else {
            Self::Sotw(Sotw::new(node, control_plane.node_once), None)
        }
    }

    pub(super) fn ask(&mut self, type_url: &str, interest: Interest) {
        match self {
            Self::Sotw(sotw, _) => sotw.ask(type_url, interest),
            Self::Delta(delta, _) => delta.ask(type_url, &interest),
        }
    }

    /// Some names more and some less: `interest` is what is asked for now.
    pub(super) fn change(&mut self, type_url: &str, interest: &Interest, more: &[Arc<str>], less: &[Arc<str>]) {
        match self {
            Self::Sotw(sotw, _) => sotw.ask(type_url, interest.clone()),
            Self::Delta(delta, _) => delta.change(type_url, more, less),
        }
    }

    /// The interest is the same, and some of it is asked for once more.
    pub(super) fn ask_again(&mut self, type_url: &str, interest: &Interest, names: &[Arc<str>]) {
        match self {
            Self::Sotw(sotw, _) => sotw.ask(type_url, interest.clone()),
            Self::Delta(delta, _) => delta.ask_again(type_url, names),
        }
    }

    pub(super) fn pause(&mut self, type_url: &str) {
        match self {
            Self::Sotw(sotw, _) => sotw.pause(type_url),
            Self::Delta(delta, _) => delta.pause(type_url),
        }
    }

    pub(super) fn resume(&mut self, type_url: &str) {
        match self {
            Self::Sotw(sotw, _) => sotw.resume(type_url),
            Self::Delta(delta, _) => delta.resume(type_url),
        }
    }

    /// Takes as little room as it can.
    pub(super) fn compact(&mut self) {
        match self {
            Self::Sotw(sotw, _) => sotw.compact(),
            Self::Delta(delta, _) => delta.compact(),
        }
    }

    pub(super) fn connected(&mut self, happened: Happened) {
        match (self, happened) {
            (Self::Sotw(sotw, out), Happened::Sotw(Event::Connected(sender))) => {
                *out = Some(sender);
                sotw.connected();
            }
            (Self::Delta(delta, out), Happened::Delta(Event::Connected(sender))) => {
                *out = Some(sender);
                delta.connected();
            }
            _ => {}
        }
    }

    pub(super) fn disconnected(&mut self) {
        match self {
            Self::Sotw(sotw, out) => {
                *out = None;
                sotw.disconnected();
            }
            Self::Delta(delta, out) => {
                *out = None;
                delta.disconnected();
            }
        }
    }

    pub(super) fn receive(&mut self, happened: Happened, handler: &mut impl Handler, now: Instant) {
        match (self, happened) {
            (Self::Sotw(sotw, _), Happened::Sotw(Event::Received(response))) => sotw.receive(response, handler, now),
            (Self::Delta(delta, _), Happened::Delta(Event::Received(response))) => {
                delta.receive(response, handler, now);
            }
            _ => {}
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        match self {
            Self::Sotw(sotw, _) => sotw.next_expiry(),
            Self::Delta(delta, _) => delta.next_expiry(),
        }
    }

    pub(super) fn expire(&mut self, handler: &mut impl Handler, now: Instant) {
        match self {
            Self::Sotw(sotw, _) => sotw.expire(handler, now),
            Self::Delta(delta, _) => delta.expire(handler, now),
        }
    }

    /// Sends what is due and may go.
    pub(super) fn send(&mut self, gate: &mut Gate, now: Instant, stats: &ControlPlaneStats) {
        let mut waiting = self.waiting();
        if !gate.is_worth_trying(waiting, now) {
            return;
        }
        while waiting > 0 && self.has_room() && gate.lets_pass(waiting, now, stats) {
            self.send_one();
            waiting = self.waiting();
        }
        gate.leaves(waiting, stats);
    }

    /// When requests that are due and do not fit may go; none where they do, or none are due.
    pub(super) fn room(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>> {
        if self.has_room() || self.waiting() == 0 {
            return None;
        }
        match self {
            Self::Sotw(_, out) => out.as_ref().map(room),
            Self::Delta(_, out) => out.as_ref().map(room),
        }
    }

    /// One that has ended takes none any more, and says so itself.
    fn has_room(&self) -> bool {
        match self {
            Self::Sotw(_, out) => out.as_ref().is_none_or(|out| out.capacity() > 0 || out.is_closed()),
            Self::Delta(_, out) => out.as_ref().is_none_or(|out| out.capacity() > 0 || out.is_closed()),
        }
    }

    fn waiting(&self) -> usize {
        match self {
            Self::Sotw(sotw, Some(_)) => sotw.requests_due(),
            Self::Delta(delta, Some(_)) => delta.requests_due(),
            Self::Sotw(_, None) | Self::Delta(_, None) => 0,
        }
    }

    /// What cannot go, because the stream has just ended, is said again on the next one.
    fn send_one(&mut self) {
        match self {
            Self::Sotw(sotw, Some(out)) => {
                if let Some(request) = sotw.next_request() {
                    let refused = request.error_detail.as_ref().map(|error| error.message.as_str()).unwrap_or_default();
                    tracing::debug!(
                        "Sending DiscoveryRequest for {}: version '{}', nonce '{}', names {:?} {refused}",
                        request.type_url,
                        request.version_info,
                        request.response_nonce,
                        request.resource_names
                    );
                    let _ = out.try_send(request);
                }
            }
            Self::Delta(delta, Some(out)) => {
                if let Some(request) = delta.next_request() {
                    let refused = request.error_detail.as_ref().map(|error| error.message.as_str()).unwrap_or_default();
                    tracing::debug!(
                        "Sending DeltaDiscoveryRequest for {}: nonce '{}', subscribes {:?}, unsubscribes {:?} {refused}",
                        request.type_url,
                        request.response_nonce,
                        request.resource_names_subscribe,
                        request.resource_names_unsubscribe
                    );
                    let _ = out.try_send(request);
                }
            }
            Self::Sotw(_, None) | Self::Delta(_, None) => {}
        }
    }
}

fn room<T: Send>(out: &Sender<T>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
    Box::pin(async { out.reserve().await.map(drop).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tidegate_stats::Store;
    use tokio::sync::mpsc;

    use super::*;

    /// A server that reads nothing: what is due waits where later wishes are added to it, and goes once there is room.
    #[test]
    fn requests_wait_while_none_is_read() {
        let (now, stats) = (Instant::now(), ControlPlaneStats::at(&Store::new().root()));
        let (mut mux, mut gate) = (Mux::Delta(Delta::new(Node::default(), false), None), Gate::new(None, now));
        let (sender, mut read) = mpsc::channel(1);
        mux.connected(Happened::Delta(Event::Connected(sender)));
        mux.ask("one", Interest::names(["a"]));
        mux.ask("two", Interest::names(["a"]));
        mux.send(&mut gate, now, &stats);
        mux.ask("two", Interest::names(["a", "b"]));
        mux.send(&mut gate, now, &stats);
        assert!(mux.room().is_some_and(|room| room.now_or_never().is_none()));
        assert_eq!(read.try_recv().unwrap().type_url, "one");
        assert!(read.try_recv().is_err());
        assert!(mux.room().is_none());
        mux.send(&mut gate, now, &stats);
        let last = read.try_recv().unwrap();
        assert_eq!(
            (last.type_url.as_str(), last.resource_names_subscribe),
            ("two", vec!["a".to_owned(), "b".to_owned()])
        );
        assert!(mux.room().is_none());
    }
}
