//! What delta streams say, request by request.

use std::time::Duration;

use super::super::testing::{CDS, EDS, Recorder, node, seconds, wrapper};
use super::*;

fn response(type_url: &str, nonce: &str, came: &[(&str, &str)], gone: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources: came.iter().map(|(name, version)| wrapper(type_url, name, version)).collect(),
        removed_resources: gone.iter().map(|name| (*name).to_owned()).collect(),
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// Requests in short: the last word of the type, nonce, +subscribed, -unsubscribed, what is here, and an error.
fn said(client: &mut Delta) -> Vec<String> {
    let (due, mut all) = (client.requests_due(), Vec::new());
    while let Some(request) = client.next_request() {
        assert!(request.node.is_some());
        let kind = request.type_url.rsplit('.').next().unwrap();
        let plus = request.resource_names_subscribe.iter().map(|name| format!(" +{name}"));
        let minus = request.resource_names_unsubscribe.iter().map(|name| format!(" -{name}"));
        let mut here: Vec<_> =
            request.initial_resource_versions.iter().map(|(name, version)| format!(" {name}@{version}")).collect();
        here.sort();
        let error = request.error_detail.map_or(String::new(), |error| format!(" {}:{}", error.code, error.message));
        let words: String = plus.chain(minus).chain(here).collect();
        all.push(format!("{kind} n{}{words}{error}", request.response_nonce));
    }
    assert_eq!((all.len(), client.requests_due()), (due, 0), "as many as were due");
    all
}

fn started() -> (Delta, Recorder, Instant) {
    let mut client = Delta::new(node(), false);
    client.ask(CDS, &Interest::everything());
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n"]);
    (client, Recorder::default(), Instant::now())
}

#[test]
fn everything_is_asked_for_by_naming_none() {
    let (mut client, mut handler, now) = started();
    client.receive(response(CDS, "a", &[("x", "1"), ("y", "1")], &[]), &mut handler, now);
    assert_eq!(said(&mut client), ["Cluster na"]);
    client.receive(response(CDS, "b", &[("x", "2")], &["y"]), &mut handler, now);
    assert_eq!((said(&mut client), handler.last()), (vec!["Cluster nb".into()], vec!["x@2".into(), "-y".to_owned()]));
    client.disconnected();
    assert!(said(&mut client).is_empty());
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n x@2"]);
}

#[test]
fn a_rejected_response_is_not_here() {
    let (mut client, mut handler, now) = started();
    client.receive(response(CDS, "a", &[("x", "1")], &[]), &mut handler, now);
    client.receive(response(CDS, "b", &[("bad", "1"), ("good", "1")], &[]), &mut handler, now);
    assert_eq!(said(&mut client), ["Cluster na", "Cluster nb 13:bad: it is"]);
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n x@1"]);
}

#[test]
fn names_come_and_go() {
    let (mut client, mut handler, now) = started();
    client.ask(EDS, &Interest::names(["x", "y"]));
    assert_eq!(said(&mut client), ["ClusterLoadAssignment n +x +y"]);
    client.receive(response(EDS, "a", &[("x", "1")], &[]), &mut handler, now);
    client.ask(EDS, &Interest::names(["x", "z"]));
    assert_eq!(said(&mut client), ["ClusterLoadAssignment na +z -y"]);
    client.ask(EDS, &Interest::names(["x", "z"]));
    assert!(said(&mut client).is_empty());
    client.receive(response(EDS, "b", &[], &["x"]), &mut handler, now);
    assert_eq!(said(&mut client), ["ClusterLoadAssignment nb"]);
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n", "ClusterLoadAssignment n +x +z"]);
    client.ask(EDS, &Interest::default());
    assert_eq!(said(&mut client), ["ClusterLoadAssignment n -x -z"]);
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n"]);
}

#[test]
fn what_is_let_go_and_wanted_again_is_asked_for_again() {
    let (mut client, mut handler, now) = started();
    client.ask(EDS, &Interest::names(["x"]));
    said(&mut client);
    client.receive(response(EDS, "a", &[("x", "1")], &[]), &mut handler, now);
    said(&mut client);
    client.ask(EDS, &Interest::default());
    client.ask(EDS, &Interest::names(["x"]));
    assert_eq!(said(&mut client), ["ClusterLoadAssignment n +x"]);
}

#[test]
fn the_wildcard_lives_beside_names() {
    let mut client = Delta::new(node(), false);
    let (mut handler, now) = (Recorder::default(), Instant::now());
    client.ask(CDS, &Interest::names(["*", "x"]));
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n +* +x"]);
    client.receive(response(CDS, "a", &[("x", "1"), ("y", "1")], &[]), &mut handler, now);
    client.ask(CDS, &Interest::names(["*"]));
    assert_eq!(said(&mut client), ["Cluster na -x"]);
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n x@1 y@1"]);
    client.ask(CDS, &Interest::names(["y"]));
    assert_eq!(said(&mut client), ["Cluster n +y -*"]);
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n +y y@1"]);
}

#[test]
fn answers_go_first_and_in_order_but_for_paused_types() {
    let (mut client, mut handler, now) = started();
    client.ask(EDS, &Interest::names(["x"]));
    said(&mut client);
    client.pause(CDS);
    client.receive(response(CDS, "a", &[("x", "1")], &[]), &mut handler, now);
    client.ask(EDS, &Interest::names(["x", "y"]));
    client.receive(response(EDS, "b", &[("x", "1")], &[]), &mut handler, now);
    assert_eq!(said(&mut client), ["ClusterLoadAssignment nb +y"]);
    client.resume(CDS);
    assert_eq!(said(&mut client), ["Cluster na"]);
}

#[test]
fn what_contradicts_itself_is_rejected() {
    let (mut client, mut handler, now) = started();
    let duplicate = response(CDS, "a", &[("x", "1"), ("x", "2")], &[]);
    let both = response(CDS, "b", &[("x", "1")], &["x"]);
    let mut other = response(EDS, "c", &[("x", "1")], &[]);
    other.type_url = CDS.to_owned();
    for (message, reason) in [
        (duplicate, "duplicate name x found among added/updated resources"),
        (both, "duplicate name x found in the union of added+removed resources"),
        (other, "does not match the message-wide type URL"),
    ] {
        client.receive(message, &mut handler, now);
        let said = said(&mut client);
        assert!(said[0].contains(reason), "{said:?}");
    }
    client.receive(response(EDS, "d", &[("x", "1")], &[]), &mut handler, now);
    assert!(said(&mut client).is_empty() && handler.0.is_empty());
}

#[test]
fn heartbeats_prolong_and_silence_ends() {
    let (mut client, mut handler, now) = started();
    let second = Duration::from_secs(1);
    let mut first = response(CDS, "a", &[("x", "1")], &[]);
    first.resources[0].ttl = seconds(2);
    let mut heartbeat = first.clone();
    heartbeat.resources[0].resource = None;
    client.receive(first, &mut handler, now);
    client.receive(heartbeat, &mut handler, now + second);
    assert_eq!((handler.last(), client.next_expiry()), (Vec::<String>::new(), Some(now + 3 * second)));
    client.expire(&mut handler, now + 3 * second);
    assert_eq!(handler.last(), ["-x"]);
    said(&mut client);
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n"]);
}

#[test]
fn a_server_that_reads_nothing_is_owed_so_many_answers() {
    let (mut client, mut handler, now) = started();
    for index in 0..=MOST_ANSWERS {
        client.receive(response(CDS, &index.to_string(), &[], &[]), &mut handler, now);
    }
    let said = said(&mut client);
    assert_eq!((said.len(), &*said[0]), (MOST_ANSWERS, "Cluster n1"));
}

/// What changes of what is asked for is said, and no more: twice the same name is once.
#[test]
fn a_change_says_only_what_is_new() {
    let (mut client, _, _) = started();
    let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<Vec<_>>();
    client.change(EDS, &names(&["a", "b"]), &[]);
    assert_eq!(said(&mut client), ["ClusterLoadAssignment n +a +b"]);
    client.change(EDS, &names(&["b", "c"]), &names(&["a", "z"]));
    assert_eq!(said(&mut client), ["ClusterLoadAssignment n +c -a"]);
    client.change(EDS, &names(&["b"]), &[]);
    assert!(said(&mut client).is_empty());
}

#[test]
fn the_node_is_told_once_a_stream_where_that_is_asked_for() {
    let mut client = Delta::new(node(), true);
    client.ask(CDS, &Interest::everything());
    client.ask(EDS, &Interest::names(["a"]));
    for _ in 0..2 {
        client.connected();
        let told: Vec<bool> =
            std::iter::from_fn(|| client.next_request()).map(|request| request.node.is_some()).collect();
        assert_eq!(told, [true, false]);
        client.disconnected();
    }
}

#[test]
fn what_was_here_before_the_first_request_is_told_with_it() {
    let mut client = Delta::new(node(), false);
    client.ask(CDS, &Interest::everything());
    let kept = response(CDS, "", &[("x", "1")], &[]);
    client.receive(kept, &mut Recorder::default(), Instant::now());
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n x@1"]);
}

#[test]
fn a_collection_brings_what_is_of_it_and_nothing_else() {
    let (mut client, mut handler, now) = (Delta::new(node(), false), Recorder::default(), Instant::now());
    client.ask(CDS, &Interest::names(["xdstp://a/T/c/*?x=1&y=2"]));
    client.connected();
    assert_eq!(said(&mut client), ["Cluster n +xdstp://a/T/c/*?x=1&y=2"]);
    let of = "xdstp://a/T/c/one?y=2&x=1";
    client.receive(response(CDS, "a", &[(of, "1"), ("xdstp://a/T/c/one", "1"), ("two", "1")], &[]), &mut handler, now);
    assert_eq!((said(&mut client), handler.last()), (vec!["Cluster na".into()], vec![format!("{of}@1")]));
    client.receive(response(CDS, "b", &[("two", "2")], &["three"]), &mut handler, now);
    assert_eq!((said(&mut client), handler.0.len()), (vec!["Cluster nb".to_owned()], 1));
    client.disconnected();
    client.connected();
    assert_eq!(said(&mut client), [format!("Cluster n +xdstp://a/T/c/*?x=1&y=2 {of}@1")]);
    client.receive(response(CDS, "c", &[], &[of]), &mut handler, now);
    assert_eq!(handler.last(), [format!("-{of}")]);
}
