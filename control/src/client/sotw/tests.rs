//! What state-of-the-world streams say, request by request.

use std::time::Duration;

use super::super::testing::{CDS, EDS, Recorder, body, node, seconds, wrapper};
use super::*;

fn response(type_url: &str, version: &str, nonce: &str, names: &[&str]) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.to_owned(),
        resources: names.iter().map(|name| body(type_url, name)).collect(),
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        ..DiscoveryResponse::default()
    }
}

/// Requests in short: the last word of the type, version, nonce, names, and what stands out.
fn said(client: &mut Sotw) -> Vec<String> {
    let (due, mut all) = (client.requests_due(), Vec::new());
    while let Some(request) = client.next_request() {
        let kind = request.type_url.rsplit('.').next().unwrap();
        let node = if request.node.is_some() { " node" } else { "" };
        let error = request.error_detail.map_or(String::new(), |error| format!(" {}:{}", error.code, error.message));
        let (version, nonce, names) = (request.version_info, request.response_nonce, request.resource_names);
        all.push(format!("{kind} v{version} n{nonce} {names:?}{node}{error}"));
    }
    assert_eq!((all.len(), client.requests_due()), (due, 0), "as many as were due");
    all
}

fn started() -> (Sotw, Recorder, Instant) {
    let mut client = Sotw::new(node(), true);
    client.ask(CDS, Interest::everything());
    client.connected();
    assert_eq!(said(&mut client), ["Cluster v n [] node"]);
    (client, Recorder::default(), Instant::now())
}

#[test]
fn nothing_is_sent_without_a_stream() {
    let mut client = Sotw::new(node(), false);
    client.ask(CDS, Interest::everything());
    client.ask(EDS, Interest::names(["a"]));
    assert!(client.next_request().is_none());
    client.connected();
    assert_eq!(said(&mut client), ["Cluster v n [] node", "ClusterLoadAssignment v n [\"a\"] node"]);
}

#[test]
fn what_is_good_is_accepted_and_what_is_bad_keeps_the_version() {
    let (mut client, mut handler, now) = started();
    client.receive(response(CDS, "1", "a", &["x", "y"]), &mut handler, now);
    assert_eq!(said(&mut client), ["Cluster v1 na []"]);
    assert_eq!(handler.last(), ["x@1", "y@1"]);
    assert!(handler.0[0].whole);
    client.receive(response(CDS, "2", "b", &["x", "bad"]), &mut handler, now);
    assert_eq!(said(&mut client), ["Cluster v1 nb [] 13:bad: it is"]);
    client.receive(response(CDS, "3", "c", &[]), &mut handler, now);
    assert_eq!(said(&mut client), ["Cluster v3 nc []"]);
    assert!(handler.last().is_empty());
}

#[test]
fn other_types_are_rejected() {
    let (mut client, mut handler, now) = started();
    let mut other = response(CDS, "1", "b", &[]);
    other.resources.push(body(EDS, "x"));
    client.receive(other, &mut handler, now);
    assert!(said(&mut client)[0].contains("does not match the message-wide type URL"));
    client.receive(response(EDS, "1", "c", &["x"]), &mut handler, now);
    assert!(said(&mut client).is_empty() && handler.0.is_empty());
}

#[test]
fn a_new_stream_begins_with_what_acts_and_without_nonces() {
    let (mut client, mut handler, now) = started();
    client.receive(response(CDS, "1", "a", &["x"]), &mut handler, now);
    client.ask(EDS, Interest::names(["x"]));
    assert_eq!(said(&mut client), ["Cluster v1 na []", "ClusterLoadAssignment v n [\"x\"]"]);
    client.receive(response(CDS, "2", "b", &["bad"]), &mut handler, now);
    client.disconnected();
    assert!(said(&mut client).is_empty());
    client.connected();
    let again = said(&mut client);
    assert!(again[0].starts_with("Cluster v1 n [] node"), "{again:?}");
    assert_eq!(again[1], "ClusterLoadAssignment v n [\"x\"]");
}

#[test]
fn a_change_of_interest_repeats_version_and_nonce() {
    let (mut client, mut handler, now) = started();
    client.ask(EDS, Interest::names(["x"]));
    assert_eq!(said(&mut client).len(), 1);
    client.receive(response(EDS, "1", "a", &["x", "other"]), &mut handler, now);
    assert_eq!(handler.last(), ["x@1"]);
    assert!(!handler.0[0].whole);
    assert_eq!(said(&mut client), ["ClusterLoadAssignment v1 na [\"x\"]"]);
    client.ask(EDS, Interest::names(["x", "y"]));
    assert_eq!(said(&mut client), ["ClusterLoadAssignment v1 na [\"x\", \"y\"]"]);
    client.receive(response(EDS, "2", "b", &["other"]), &mut handler, now);
    assert_eq!(handler.0.len(), 1);
    assert_eq!(said(&mut client), ["ClusterLoadAssignment v2 nb [\"x\", \"y\"]"]);
}

#[test]
fn a_paused_type_says_all_at_once_when_it_goes_on() {
    let (mut client, mut handler, now) = started();
    client.pause(CDS);
    client.pause(CDS);
    client.receive(response(CDS, "1", "a", &["x"]), &mut handler, now);
    client.ask(EDS, Interest::names(["x"]));
    assert_eq!(said(&mut client), ["ClusterLoadAssignment v n [\"x\"]"]);
    client.receive(response(CDS, "2", "b", &["x"]), &mut handler, now);
    client.resume(CDS);
    assert!(said(&mut client).is_empty());
    client.resume(CDS);
    assert_eq!(said(&mut client), ["Cluster v2 nb []"]);
    client.resume(CDS);
    assert!(said(&mut client).is_empty());
}

#[test]
fn what_nobody_asks_for_is_not_taken() {
    let (mut client, mut handler, now) = started();
    client.ask(EDS, Interest::names(["x"]));
    client.ask(EDS, Interest::default());
    assert_eq!(said(&mut client).len(), 2);
    client.receive(response(EDS, "1", "a", &["x"]), &mut handler, now);
    assert_eq!(said(&mut client), ["ClusterLoadAssignment v na []"]);
    client.receive(response(EDS, "2", "b", &[]), &mut handler, now);
    assert!(said(&mut client).is_empty() && handler.0.is_empty());
}

#[test]
fn what_has_a_time_to_live_dies_without_heartbeats() {
    let (mut client, mut handler, now) = started();
    let second = Duration::from_secs(1);
    let alive = |version: &str, whole: bool| {
        let mut response = response(CDS, version, "n", &[]);
        let mut inner = wrapper(CDS, "x", version);
        inner.ttl = seconds(2);
        if !whole {
            inner.resource = None;
        }
        response.resources.push(tidegate_xds::any::pack(&inner));
        response
    };
    client.receive(alive("1", true), &mut handler, now);
    assert_eq!((handler.last(), client.next_expiry()), (vec!["x@1".to_owned()], Some(now + 2 * second)));
    client.receive(alive("1", false), &mut handler, now + second);
    assert_eq!(client.next_expiry(), Some(now + 3 * second));
    client.expire(&mut handler, now + 2 * second);
    client.expire(&mut handler, now + 3 * second);
    assert_eq!((handler.last(), client.next_expiry()), (vec!["-x".to_owned()], None));
}

#[test]
fn requests_that_nobody_reads_are_said_once_in_the_end() {
    let mut client = Sotw::new(node(), false);
    client.connected();
    client.ask(CDS, Interest::everything());
    (0..2 * MOST_DUE).for_each(|_| client.ask(EDS, Interest::names(["a"])));
    assert_eq!(client.requests_due(), MOST_DUE);
}

#[test]
fn a_collection_brings_what_is_of_it_and_all_of_that() {
    let (mut client, mut handler, now) = (Sotw::new(node(), true), Recorder::default(), Instant::now());
    client.ask(CDS, Interest::names(["xdstp://a/T/c/*?x=1"]));
    client.connected();
    client.receive(response(CDS, "1", "a", &["xdstp://a/T/c/one?x=1", "two"]), &mut handler, now);
    assert_eq!((handler.last(), handler.0[0].whole), (vec!["xdstp://a/T/c/one?x=1@1".to_owned()], true));
    client.receive(response(CDS, "2", "b", &["two"]), &mut handler, now);
    assert_eq!(handler.0.len(), 1, "nothing was said of it");
    assert_eq!(said(&mut client).last().unwrap(), "Cluster v2 nb [\"xdstp://a/T/c/*?x=1\"]");
}
