//! What delta streams are told, response by response.

use std::time::Duration;

use tidegate_xds::pb::google::rpc::Status;

use super::*;
use crate::server::testing::{CDS, EDS, LDS, RDS, cluster, endpoints, listener, routes, set};
use crate::server::{Counts, Resource, State};

struct Client {
    server: Delta,
    now: Instant,
    /// What it refused last.
    refused: Vec<String>,
}

impl Client {
    fn new(set: Arc<ResourceSet>) -> Self {
        Self {
            server: Delta::new(set, true, ControlPlane::default(), Arc::default()),
            now: Instant::now(),
            refused: Vec::new(),
        }
    }

    /// Responses in short: the last word of the type, nonce, what came, and what is gone, with a minus.
    fn heard(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(response) = self.server.next_response(self.now) {
            let kind = response.type_url.rsplit('.').next().unwrap();
            let came = response.resources.iter().map(|wrapper| {
                assert_eq!(wrapper.resource.as_ref().unwrap().type_url, response.type_url);
                format!(" {}", wrapper.name)
            });
            let gone = response.removed_resources.iter().map(|name| format!(" -{name}"));
            all.push(format!("{kind} {}:{}", response.nonce, came.chain(gone).collect::<String>()));
        }
        all
    }

    fn say(&mut self, request: DeltaDiscoveryRequest) -> Vec<String> {
        if let Some(news) = self.server.receive(request, self.now) {
            self.refused = news.said.iter().map(|resource| resource.name.to_string()).collect();
        }
        self.heard()
    }

    fn ask(&mut self, type_url: &str, more: &[&str], less: &[&str]) -> Vec<String> {
        self.say(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: more.iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: less.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        })
    }

    fn answer(&mut self, type_url: &str, nonce: &str, error: Option<&str>) -> Vec<String> {
        self.say(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail: error.map(|error| Status { code: 13, message: error.to_owned(), details: Vec::new() }),
            ..DeltaDiscoveryRequest::default()
        })
    }

    fn update(&mut self, resources: impl IntoIterator<Item = Arc<Resource>>) -> Vec<String> {
        self.server.update(&set(resources));
        self.heard()
    }

    fn states(&self) -> Vec<(String, State)> {
        self.server.resources().into_iter().map(|status| (status.name.to_string(), status.state)).collect()
    }
}

#[test]
fn everything_is_asked_for_by_naming_none_and_then_only_changes_come() {
    let mut client = Client::new(set([cluster("a", ""), cluster("b", "")]));
    assert_eq!(client.ask(CDS, &[], &[]), ["Cluster 1: a b"]);
    assert!(client.answer(CDS, "1", None).is_empty());
    assert_eq!(client.update([cluster("a", "x"), cluster("b", ""), cluster("c", "")]), ["Cluster 2: a c"]);
    assert!(client.answer(CDS, "2", None).is_empty());
    assert!(client.update([cluster("a", "x"), cluster("b", ""), cluster("c", "")]).is_empty());
    assert_eq!(client.update([cluster("a", "x"), cluster("c", "")]), ["Cluster 3: -b"]);
}

#[test]
fn that_there_is_nothing_is_said_to_who_asks_for_everything() {
    let mut client = Client::new(set([]));
    assert_eq!(client.ask(LDS, &[], &[]), ["Listener 1:"]);
    assert_eq!(client.ask(RDS, &["r"], &[]), ["RouteConfiguration 2: -r"]);
    // Endpoints are never asked for by silence.
    assert!(client.ask(EDS, &[], &[]).is_empty());
}

#[test]
fn names_come_and_go() {
    let mut client = Client::new(set([endpoints("a", ""), endpoints("b", "")]));
    assert_eq!(client.ask(EDS, &["a", "none"], &[]), ["ClusterLoadAssignment 1: a -none"]);
    assert_eq!(client.ask(EDS, &["b"], &["a"]), ["ClusterLoadAssignment 2: b"]);
    client.answer(EDS, "1", None);
    client.answer(EDS, "2", None);
    assert!(client.update([endpoints("a", "x"), endpoints("b", "")]).is_empty());
    let more = client.update([endpoints("b", "x"), endpoints("none", "")]);
    assert_eq!(more, ["ClusterLoadAssignment 3: b none"]);
    // Asked for again, it is said again.
    assert_eq!(client.ask(EDS, &["b"], &[]), ["ClusterLoadAssignment 4: b"]);
}

#[test]
fn the_wildcard_lives_beside_names() {
    let mut client = Client::new(set([cluster("a", ""), cluster("b", "")]));
    assert_eq!(client.ask(CDS, &["a"], &[]), ["Cluster 1: a"]);
    assert_eq!(client.ask(CDS, &["*"], &[]), ["Cluster 2: b"]);
    // The client cannot tell whether the wildcard has it too.
    assert_eq!(client.ask(CDS, &[], &["a"]), ["Cluster 3: a"]);
    assert!(client.ask(CDS, &["b"], &["*"]).iter().eq(&["Cluster 4: b"]));
    for nonce in ["1", "2", "3", "4"] {
        client.answer(CDS, nonce, None);
    }
    assert_eq!(client.update([cluster("a", "x"), cluster("b", "x")]), ["Cluster 5: b"]);
}

#[test]
fn who_comes_back_is_told_what_changed_meanwhile() {
    let (a, b) = (cluster("a", ""), cluster("b", ""));
    let here = [("a", a.version.to_string()), ("b", "1".to_owned()), ("gone", "7".to_owned())];
    let world = set([a, b, cluster("c", "")]);
    let mut client = Client::new(world.clone());
    let mut request = DeltaDiscoveryRequest { type_url: CDS.to_owned(), ..DeltaDiscoveryRequest::default() };
    request.initial_resource_versions = here.map(|(name, version)| (name.to_owned(), version)).into();
    let mut alone = Delta::new(world.clone(), false, ControlPlane::default(), Arc::default());
    alone.receive(request.clone(), client.now);
    assert_eq!(alone.next_response(client.now).unwrap().removed_resources, ["gone"]);
    assert_eq!(client.say(request.clone()), ["Cluster 1: b c"]);
    assert_eq!(client.server.name_bytes(), "gone".len());
    assert!(client.answer(CDS, "1", None).is_empty());
    client.now = client.server.deadline().unwrap();
    assert_eq!(client.heard(), ["Cluster 2: -gone"]);
    assert_eq!(client.server.name_bytes(), 0);
    let mut same = Client::new(set([cluster("a", "")]));
    request.initial_resource_versions.retain(|name, _| name == "a");
    assert!(same.say(request).is_empty());
}

#[test]
fn what_is_refused_together_is_taken_apart_until_the_bad_one_is_alone() {
    let mut client = Client::new(set(["a", "b", "bad", "d"].map(|name| cluster(name, ""))));
    assert_eq!(client.ask(CDS, &[], &[]), ["Cluster 1: a b bad d"]);
    assert_eq!(client.answer(CDS, "1", Some("no")), ["Cluster 2: a b", "Cluster 3: bad d"]);
    assert_eq!(client.refused, ["a", "b", "bad", "d"]);
    assert!(client.answer(CDS, "2", None).is_empty());
    assert_eq!(client.answer(CDS, "3", Some("no")), ["Cluster 4: bad", "Cluster 5: d"]);
    assert!(client.answer(CDS, "4", Some("it is bad")).is_empty());
    assert_eq!(client.refused, ["bad"]);
    assert!(client.answer(CDS, "5", None).is_empty());
    let states = client.states();
    assert_eq!(states[2], ("bad".to_owned(), State::Refused));
    assert!(states.iter().filter(|(name, _)| name != "bad").all(|(_, state)| *state == State::Synced));
    let status = client.server.resources().remove(2);
    let refusal = status.refusal.unwrap();
    assert_eq!((refusal.reason.as_str(), refusal.code), ("it is bad", 13));
    assert_eq!(refusal.version, status.resource.unwrap().version.to_string());
    let status = client.server.types().remove(0);
    assert_eq!(status.refused, ["bad".into()]);
    assert_eq!(status.counts, Counts { synced: 3, refused: 1, ..Counts::default() });
    // It is kept apart until it changes, and then sent like any other.
    assert_eq!(client.update(["a", "b", "bad", "d", "e"].map(|name| cluster(name, ""))), ["Cluster 6: e"]);
    let better = ["a", "b", "d", "e"].map(|name| cluster(name, "")).into_iter().chain([cluster("bad", "x")]);
    assert_eq!(client.update(better), ["Cluster 7: bad"]);
    client.answer(CDS, "7", None);
    assert!(client.server.types()[0].refusal.is_none());
}

#[test]
fn a_refusal_is_news_once_for_each_version() {
    let mut client = Client::new(set([cluster("a", ""), cluster("b", "")]));
    client.ask(CDS, &[], &[]);
    let refuse = |nonce: &str| DeltaDiscoveryRequest {
        type_url: CDS.to_owned(),
        response_nonce: nonce.to_owned(),
        error_detail: Some(Status { message: "no".to_owned(), ..Status::default() }),
        ..DeltaDiscoveryRequest::default()
    };
    let told = |client: &mut Client, nonces: &[&str]| -> Vec<String> {
        let all = nonces.iter().filter_map(|nonce| client.server.receive(refuse(nonce), client.now));
        all.map(|news| news.refusal.version).collect()
    };
    let version = client.server.types()[0].version.clone();
    assert_eq!(told(&mut client, &["7", "1", "1", "x"]), [version]);
    // Each is sent again by itself, under its own version.
    assert_eq!(client.heard().len(), 2);
    let versions: Vec<String> =
        client.server.resources().iter().map(|status| status.resource.as_ref().unwrap().version.to_string()).collect();
    assert_eq!(told(&mut client, &["2", "3", "3"]), versions);
}

#[test]
fn what_was_refused_and_changed_meanwhile_is_said_once() {
    let mut client = Client::new(set(["a", "b"].map(|name| cluster(name, ""))));
    client.ask(CDS, &[], &[]);
    client.server.update(&set([cluster("a", "x"), cluster("b", "")]));
    assert_eq!(client.answer(CDS, "1", Some("no")), ["Cluster 2: a"]);
    assert!(client.answer(CDS, "9", Some("of nothing")).is_empty());
}

fn world(version: &str, clusters: &[&str]) -> Vec<Arc<Resource>> {
    let mut all = vec![listener("l", version), routes("r", version)];
    all.extend(clusters.iter().map(|name| cluster(name, "")));
    all.extend(clusters.iter().map(|name| endpoints(name, "")));
    all
}

fn started() -> Client {
    let mut client = Client::new(set(world("1", &["a"])));
    client.ask(RDS, &["r"], &[]);
    client.ask(LDS, &[], &[]);
    client.ask(EDS, &["a"], &[]);
    client.ask(CDS, &[], &[]);
    for (nonce, url) in [("1", RDS), ("2", LDS), ("3", EDS), ("4", CDS)] {
        client.answer(url, nonce, None);
    }
    client
}

#[test]
fn additions_go_first_and_removals_when_they_are_accepted() {
    let mut client = started();
    // What names the new cluster waits until it is accepted, which Envoy does once it has its endpoints.
    assert_eq!(client.update(world("2", &["b"])), ["Cluster 5: b"]);
    assert_eq!(client.ask(EDS, &["b"], &[]), ["ClusterLoadAssignment 6: b"]);
    assert!(client.answer(EDS, "6", None).is_empty());
    assert_eq!(client.answer(CDS, "5", None), ["Listener 7: l", "RouteConfiguration 8: r"]);
    assert!(client.answer(LDS, "7", None).is_empty());
    let heard = client.answer(RDS, "8", None);
    assert_eq!(heard, ["ClusterLoadAssignment 9: -a", "Cluster 10: -a"]);
}

/// Comes back with what an older stream told it of the world: each type is asked for at once.
fn back(client: &mut Client, types: &[&str]) -> Vec<String> {
    let old = set(world("1", &["a"]));
    for type_url in types {
        let kind = ResourceType::of_url(type_url).unwrap();
        let all: Vec<_> = old.kind(kind).iter().collect();
        let names = all.iter().map(|resource| resource.name.to_string());
        let request = DeltaDiscoveryRequest {
            type_url: (*type_url).to_owned(),
            resource_names_subscribe: if kind.has_silent_wildcard() { Vec::new() } else { names.collect() },
            initial_resource_versions: all
                .iter()
                .map(|resource| (resource.name.to_string(), resource.version.to_string()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        };
        client.server.receive(request, client.now);
    }
    client.heard()
}

#[test]
fn who_comes_back_is_told_in_the_same_order() {
    let mut client = Client::new(set(world("2", &["b"])));
    // Removals too would be told at once; and what names the new cluster, though it has no endpoints yet.
    assert_eq!(back(&mut client, &[CDS, EDS, LDS, RDS]), ["Cluster 1: b"]);
    assert_eq!(client.ask(EDS, &["b"], &[]), ["ClusterLoadAssignment 2: b"]);
    assert!(client.answer(EDS, "2", None).is_empty());
    assert_eq!(client.answer(CDS, "1", None), ["Listener 3: l", "RouteConfiguration 4: r"]);
    assert!(client.answer(LDS, "3", None).is_empty());
    assert!(client.answer(RDS, "4", None).is_empty());
    client.now = client.server.deadline().unwrap();
    assert_eq!(client.heard(), ["ClusterLoadAssignment 5: -a", "Cluster 6: -a"]);
}

#[test]
fn what_changes_while_somebody_comes_back_changes_the_end_and_not_the_order() {
    let mut client = Client::new(set(world("2", &["b"])));
    assert_eq!(back(&mut client, &[CDS, EDS, LDS, RDS]), ["Cluster 1: b"]);
    assert_eq!(client.update(world("3", &["c"])), ["Cluster 2: c"]);
    client.answer(CDS, "1", None);
    assert_eq!(client.answer(CDS, "2", None), ["Listener 3: l", "RouteConfiguration 4: r"]);
    client.answer(LDS, "3", None);
    client.answer(RDS, "4", None);
    client.now = client.server.deadline().unwrap();
    assert_eq!(client.heard(), ["ClusterLoadAssignment 5: -a", "Cluster 6: -a -b"]);
}

#[test]
fn who_comes_back_for_removals_alone_may_ask_for_what_names_them_later() {
    let mut client = Client::new(set([listener("l", "1"), routes("r", "2")]));
    assert!(back(&mut client, &[CDS]).is_empty());
    assert_eq!(back(&mut client, &[LDS, RDS]), ["RouteConfiguration 1: r"]);
    client.now += Duration::from_secs(1);
    assert!(client.heard().is_empty());
    assert_eq!(client.answer(RDS, "1", None), ["Cluster 2: -a"]);
}

#[test]
fn nothing_goes_that_what_was_refused_was_to_replace_may_need() {
    let mut client = started();
    client.update(world("2", &["b"]));
    client.answer(CDS, "5", None);
    client.answer(LDS, "6", None);
    assert!(client.answer(RDS, "7", Some("no")).is_empty());
    client.now += Duration::from_secs(3600);
    assert!(client.heard().is_empty());
    assert_eq!(client.update(world("3", &["b"])), ["Listener 8: l", "RouteConfiguration 9: r"]);
    client.answer(LDS, "8", None);
    let heard = client.answer(RDS, "9", None);
    assert_eq!(heard, ["ClusterLoadAssignment 10: -a", "Cluster 11: -a"]);
}

#[test]
fn what_was_refused_may_go() {
    let mut client = started();
    let bad = || world("1", &["a"]).into_iter().chain([cluster("bad", "")]);
    assert_eq!(client.update(bad()), ["Cluster 5: bad"]);
    assert!(client.answer(CDS, "5", Some("no")).is_empty());
    assert_eq!(client.update(world("1", &["a"])), ["Cluster 6: -bad"]);
    client.answer(CDS, "6", None);
    assert!(client.server.types().iter().all(|status| status.refusal.is_none() && status.refused.is_empty()));
}

#[test]
fn an_answer_that_never_comes_holds_the_rest_for_a_time_only() {
    let mut client = started();
    client.update(world("2", &["b"]));
    client.now = client.server.deadline().unwrap();
    assert_eq!(client.heard(), ["Listener 6: l", "RouteConfiguration 7: r"]);
    client.answer(LDS, "6", None);
    client.answer(RDS, "7", None);
    client.now = client.server.deadline().unwrap();
    assert_eq!(client.heard(), ["ClusterLoadAssignment 8: -a", "Cluster 9: -a"]);
}

#[test]
fn long_responses_are_cut_unless_everything_is_asked_for() {
    let big = "x".repeat(30_000);
    let names = ["a", "b", "c", "d"];
    let mut client = Client::new(set(names.map(|name| cluster(name, &big))));
    assert_eq!(client.ask(CDS, &names, &[]), ["Cluster 1: a b c", "Cluster 2: d"]);
    let mut client = Client::new(set(names.map(|name| cluster(name, &big))));
    assert_eq!(client.ask(CDS, &[], &[]), ["Cluster 1: a b c d"]);
}

#[test]
fn an_unknown_type_is_not_answered() {
    let mut client = Client::new(set([]));
    assert!(client.ask("type.googleapis.com/google.rpc.Status", &[], &[]).is_empty());
    assert!(client.ask("", &["x"], &[]).is_empty());
}
