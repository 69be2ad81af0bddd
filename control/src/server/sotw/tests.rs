//! What streams of the state of the world are told, response by response.

use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::google::rpc::Status;

use super::*;
use crate::server::testing::{CDS, EDS, LDS, RDS, cluster, endpoints, listener, routes, set};
use crate::server::{Counts, Resource, Sets, State};

struct Client {
    server: Sotw,
    now: Instant,
    /// What it refused last.
    refused: Vec<String>,
}

fn name(body: &tidegate_xds::pb::google::protobuf::Any) -> String {
    use prost::Message;
    match body.type_url.as_str() {
        EDS => ClusterLoadAssignment::decode(&*body.value).unwrap().cluster_name,
        // The name is the first field of all the others.
        _ => Cluster::decode(&body.value[..2 + usize::from(body.value[1])]).unwrap().name,
    }
}

impl Client {
    fn new(set: Arc<ResourceSet>) -> Self {
        Self::after(&[], set)
    }

    /// At a server that served others before.
    fn after(before: &[Arc<ResourceSet>], set: Arc<ResourceSet>) -> Self {
        let past = Past::default();
        for rest in before {
            past.keep(&Sets { rest: rest.clone(), groups: Vec::new() });
        }
        let server = Sotw::new(set, true, ControlPlane::default(), Arc::new(past));
        Self { server, now: Instant::now(), refused: Vec::new() }
    }

    fn heard(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(response) = self.server.next_response(self.now) {
            let kind = response.type_url.rsplit('.').next().unwrap();
            let came: String = response.resources.iter().map(|body| format!(" {}", name(body))).collect();
            all.push(format!("{kind} {}:{came}", response.nonce));
        }
        all
    }

    fn say(&mut self, type_url: &str, nonce: &str, names: &[&str], error: Option<&str>) -> Vec<String> {
        let request = DiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            error_detail: error.map(|error| Status { code: 13, message: error.to_owned(), details: Vec::new() }),
            ..DiscoveryRequest::default()
        };
        if let Some(news) = self.server.receive(request, self.now) {
            self.refused = news.said.iter().map(|resource| resource.name.to_string()).collect();
        }
        self.heard()
    }

    fn update(&mut self, resources: impl IntoIterator<Item = Arc<Resource>>) -> Vec<String> {
        self.server.update(&set(resources));
        self.heard()
    }
}

#[test]
fn clusters_are_said_together_whenever_one_changes() {
    let mut client = Client::new(set([cluster("a", ""), cluster("b", "")]));
    assert_eq!(client.say(CDS, "", &[], None), ["Cluster 1: a b"]);
    assert!(client.say(CDS, "1", &[], None).is_empty());
    assert_eq!(client.update([cluster("a", "x"), cluster("b", "")]), ["Cluster 2: a b"]);
    assert!(client.say(CDS, "2", &[], None).is_empty());
    assert!(client.update([cluster("a", "x"), cluster("b", ""), endpoints("a", "")]).is_empty());
}

#[test]
fn of_endpoints_only_what_changed_is_said() {
    let mut client = Client::new(set([endpoints("a", ""), endpoints("b", "")]));
    assert_eq!(client.say(EDS, "", &["a", "b"], None), ["ClusterLoadAssignment 1: a b"]);
    client.say(EDS, "1", &["a", "b"], None);
    let heard = client.update([endpoints("a", "x"), endpoints("b", ""), endpoints("c", "")]);
    assert_eq!(heard, ["ClusterLoadAssignment 2: a"]);
    assert_eq!(client.say(EDS, "2", &["a", "b", "c"], None), ["ClusterLoadAssignment 3: c"]);
    client.say(EDS, "3", &["a", "b", "c"], None);
    // What is gone cannot be said of endpoints.
    assert!(client.update([endpoints("b", "")]).is_empty());
    assert!(client.say(EDS, "3", &["b"], None).is_empty());
    assert!(client.update([endpoints("b", ""), endpoints("c", "")]).is_empty());
}

#[test]
fn an_answer_to_an_older_response_is_ignored() {
    let mut client = Client::new(set([endpoints("a", "")]));
    client.say(EDS, "", &["a"], None);
    assert_eq!(client.update([endpoints("a", "x"), endpoints("b", "")]), ["ClusterLoadAssignment 2: a"]);
    assert!(client.say(EDS, "1", &["a", "b"], Some("stale")).is_empty());
    assert!(client.server.types()[0].refusal.is_none());
    assert_eq!(client.say(EDS, "2", &["a", "b"], None), ["ClusterLoadAssignment 3: b"]);
}

#[test]
fn what_is_asked_for_again_is_said_again() {
    let mut client = Client::new(set([endpoints("a", "")]));
    client.say(EDS, "", &["a"], None);
    assert!(client.say(EDS, "1", &["a"], None).is_empty());
    assert_eq!(client.say(EDS, "1", &["a"], None), ["ClusterLoadAssignment 2: a"]);
    assert!(client.say(EDS, "2", &["a"], None).is_empty());
}

#[test]
fn a_refusal_is_kept_until_something_is_accepted() {
    let mut client = Client::new(set([cluster("a", "")]));
    client.say(CDS, "", &[], None);
    assert!(client.say(CDS, "1", &[], Some("no")).is_empty());
    assert_eq!(client.server.types()[0].refusal.as_ref().unwrap().reason, "no");
    assert_eq!(client.server.resources()[0].state, State::Refused);
    assert_eq!(client.update([cluster("a", "x")]), ["Cluster 2: a"]);
    assert_eq!(client.server.resources()[0].state, State::Unanswered);
    assert_eq!(client.server.types()[0].counts, Counts { unanswered: 1, ..Counts::default() });
    client.say(CDS, "2", &[], None);
    assert_eq!(client.server.resources()[0].state, State::Synced);
    assert!(client.server.types()[0].refusal.is_none());
}

#[test]
fn a_refusal_is_news_once_for_each_version() {
    let mut client = Client::new(set([cluster("a", "")]));
    client.say(CDS, "", &[], None);
    let refuse = |nonce: &str| DiscoveryRequest {
        type_url: CDS.to_owned(),
        response_nonce: nonce.to_owned(),
        error_detail: Some(tidegate_xds::pb::google::rpc::Status { message: "no".to_owned(), ..Default::default() }),
        ..DiscoveryRequest::default()
    };
    let told = |client: &mut Client, nonces: &[&str]| -> Vec<String> {
        let all = nonces.iter().filter_map(|nonce| client.server.receive(refuse(nonce), client.now));
        all.map(|news| news.refusal.version).collect()
    };
    let version = client.server.types()[0].version.clone();
    assert_eq!(told(&mut client, &["7", "1", "1", ""]), [version]);
    client.update([cluster("a", "x")]);
    let version = client.server.types()[0].version.clone();
    assert_eq!(told(&mut client, &["1", "2", "2"]), [version]);
}

#[test]
fn who_comes_back_with_everything_is_left_alone() {
    let world = set([cluster("a", ""), endpoints("a", "")]);
    let version = world.kind(ResourceType::CLUSTER).version();
    let mut client = Client::new(world.clone());
    let request = |type_url: &str, version_info: String, names: &[&str]| DiscoveryRequest {
        type_url: type_url.to_owned(),
        version_info,
        resource_names: names.iter().map(ToString::to_string).collect(),
        ..DiscoveryRequest::default()
    };
    client.server.receive(request(CDS, version.clone(), &[]), client.now);
    assert!(client.heard().is_empty());
    assert_eq!(client.update([cluster("a", "x"), endpoints("a", "")]), ["Cluster 1: a"]);
    let mut other = Client::new(world.clone());
    other.server.receive(request(CDS, "older".to_owned(), &[]), other.now);
    assert_eq!(other.heard(), ["Cluster 1: a"]);
    other.say(CDS, "1", &[], None);
    // A version of endpoints does not tell which names the client had.
    let version = world.kind(ResourceType::ENDPOINTS).version();
    other.server.receive(request(EDS, version, &["a"]), other.now);
    assert_eq!(other.heard(), ["ClusterLoadAssignment 2: a"]);
}

#[test]
fn who_comes_back_is_told_of_clusters_first() {
    let mut client = Client::new(set([cluster("a", ""), cluster("b", ""), routes("r", "2"), listener("l", "2")]));
    for (type_url, names) in [(LDS, vec![]), (RDS, vec!["r".to_owned()]), (CDS, vec![])] {
        let request = DiscoveryRequest {
            type_url: type_url.to_owned(),
            version_info: "older".to_owned(),
            resource_names: names,
            ..DiscoveryRequest::default()
        };
        client.server.receive(request, client.now);
    }
    assert_eq!(client.heard(), ["Cluster 1: a b"]);
    assert_eq!(client.say(CDS, "1", &[], None), ["Listener 2: l", "RouteConfiguration 3: r"]);
}

#[test]
fn who_comes_back_with_what_was_served_here_loses_it_last() {
    let old = set([cluster("a", ""), cluster("same", ""), listener("l", "1")]);
    let new = [cluster("b", ""), cluster("same", ""), listener("l", "2")];
    let mut client = Client::after(std::slice::from_ref(&old), set(new.clone()));
    for (type_url, kind) in [(CDS, ResourceType::CLUSTER), (LDS, ResourceType::LISTENER)] {
        let version_info = old.kind(kind).version();
        let request = DiscoveryRequest { type_url: type_url.to_owned(), version_info, ..DiscoveryRequest::default() };
        client.server.receive(request, client.now);
    }
    assert_eq!(client.heard(), ["Cluster 1: a b same"]);
    assert_eq!(client.say(CDS, "1", &[], None), ["Listener 2: l"]);
    assert!(client.say(LDS, "2", &[], None).is_empty());
    client.now = client.server.deadline().unwrap();
    assert_eq!(client.heard(), ["Cluster 3: b same"]);
    // Alone, clusters are said as they are.
    let past = Past::default();
    past.keep(&Sets { rest: old.clone(), groups: Vec::new() });
    let mut alone = Sotw::new(set(new), false, ControlPlane::default(), Arc::new(past));
    let version_info = old.kind(ResourceType::CLUSTER).version();
    let request = DiscoveryRequest { type_url: CDS.to_owned(), version_info, ..DiscoveryRequest::default() };
    alone.receive(request, client.now);
    assert_eq!(alone.next_response(client.now).unwrap().resources.len(), 2);
}

#[test]
fn absence_is_said_of_what_a_grpc_client_asks_for_by_name() {
    let mut client = Client::new(set([listener("l", "")]));
    assert_eq!(client.say(LDS, "", &["none"], None), ["Listener 1:"]);
    assert_eq!(client.say(LDS, "1", &["none", "l"], None), ["Listener 2: l"]);
    client.say(LDS, "2", &["none", "l"], None);
    assert_eq!(client.update([]), ["Listener 3:"]);
    assert!(client.say(RDS, "", &["r"], None).is_empty());
    assert_eq!(client.update([routes("r", "")]), ["RouteConfiguration 4: r"]);
}

#[test]
fn to_name_nothing_later_asks_for_nothing() {
    let mut client = Client::new(set([cluster("a", "")]));
    assert_eq!(client.say(CDS, "", &["*"], None), ["Cluster 1: a"]);
    client.say(CDS, "1", &[], None);
    assert!(client.update([cluster("a", "x")]).is_empty());
    assert!(client.say(EDS, "", &[], None).is_empty());
}

#[test]
fn removals_wait_until_routes_are_accepted() {
    let world = |version: &str, name: &str| [cluster(name, ""), routes("r", version), listener("l", version)];
    let mut client = Client::new(set(world("1", "a")));
    client.say(CDS, "", &[], None);
    client.say(LDS, "", &[], None);
    client.say(RDS, "", &["r"], None);
    client.say(CDS, "1", &[], None);
    client.say(LDS, "2", &[], None);
    client.say(RDS, "3", &["r"], None);
    assert_eq!(client.update(world("2", "b")), ["Cluster 4: a b"]);
    assert_eq!(client.say(CDS, "4", &[], None), ["Listener 5: l", "RouteConfiguration 6: r"]);
    assert!(client.say(LDS, "5", &[], None).is_empty());
    assert_eq!(client.say(RDS, "6", &["r"], None), ["Cluster 7: b"]);
}

#[test]
fn what_was_refused_may_go() {
    let mut client = Client::new(set([cluster("a", "")]));
    client.say(CDS, "", &[], None);
    client.say(CDS, "1", &[], None);
    assert_eq!(client.update([cluster("a", ""), cluster("bad", "")]), ["Cluster 2: a bad"]);
    assert!(client.say(CDS, "1", &[], Some("no")).is_empty() && client.refused.is_empty());
    assert!(client.say(CDS, "2", &[], Some("no")).is_empty());
    assert_eq!(client.refused, ["a", "bad"]);
    assert_eq!(client.update([cluster("a", "")]), ["Cluster 3: a"]);
    client.say(CDS, "3", &[], None);
    assert!(client.server.types()[0].refusal.is_none());
}

#[test]
fn removals_wait_while_what_is_wanted_is_refused() {
    let world = |version: &str, name: &str| [cluster(name, ""), routes("r", version)];
    let mut client = Client::new(set(world("1", "a")));
    client.say(CDS, "", &[], None);
    client.say(RDS, "", &["r"], None);
    client.say(CDS, "1", &[], None);
    client.say(RDS, "2", &["r"], None);
    assert_eq!(client.update(world("2", "b")), ["Cluster 3: a b"]);
    assert_eq!(client.say(CDS, "3", &[], None), ["RouteConfiguration 4: r"]);
    assert!(client.say(RDS, "4", &["r"], Some("no")).is_empty());
    assert_eq!(client.update(world("3", "b")), ["RouteConfiguration 5: r"]);
    assert_eq!(client.say(RDS, "5", &["r"], None), ["Cluster 6: b"]);
}
