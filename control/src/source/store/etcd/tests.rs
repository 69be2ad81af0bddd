//! Replicas and an etcd in this process: what they serve while it changes, lies, and goes away.

mod fake;
mod proxies;
mod real;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tidegate_xds::any;
use tidegate_xds::pb::envoy::config::cluster::v3::{
    Cluster, cluster::ClusterDiscoveryType, cluster::CustomClusterType,
};
use tidegate_xds::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig;

use super::*;
use crate::server::testing::{cluster, endpoints};
use crate::server::{Resource, ResourceType};
use crate::source::Source;
use crate::source::store::{Change, ChangeError, Expected, Following};
use crate::source::testing::Certificates;
use fake::{Fake, Member};

fn url(members: &[&Member]) -> EtcdUrl {
    let members: Vec<String> = members.iter().map(|member| member.address.to_string()).collect();
    EtcdUrl::parse(&format!("etcd://{}/t", members.join(","))).unwrap().unwrap()
}

fn with_user(url: EtcdUrl) -> EtcdUrl {
    EtcdUrl { user: Some("me".to_owned()), ..url }
}

fn password(text: &str) -> Access {
    Access { password: Some(Password(text.to_owned())), security: None }
}

async fn replica(url: EtcdUrl) -> Kept {
    within(Kept::connect(url, Access::default(), Elsewhere::default())).await.unwrap()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it never happens")
}

/// Waits for something that a replica does by itself.
async fn until(what: impl Fn() -> bool) {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn key(resource: &Resource) -> String {
    format!("/t/{}/{}", resource.kind.short(), resource.name)
}

fn keep(fake: &Fake, resources: &[Arc<Resource>]) {
    fake.write(resources.iter().map(|resource| (key(resource), Some(mirror::written(resource)))).collect());
}

fn put(resource: Arc<Resource>, expected: Option<Expected>) -> Change {
    Change { put: vec![(resource, expected)], ..Change::default() }
}

fn delete(name: &str) -> Change {
    Change { delete: vec![(ResourceType::CLUSTER, name.into(), None)], ..Change::default() }
}

fn names(set: &ResourceSet) -> BTreeSet<String> {
    ResourceType::all()
        .flat_map(|kind| set.kind(kind).iter().map(|one| one.name.to_string()).collect::<Vec<_>>())
        .collect()
}

/// A cluster that names another.
fn naming(name: &str, other: &str) -> Arc<Resource> {
    let config = ClusterConfig { clusters: vec![other.to_owned()] };
    let custom = CustomClusterType { name: "x".to_owned(), typed_config: Some(any::pack(&config)) };
    let cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(custom));
    let message = Cluster { name: name.to_owned(), cluster_discovery_type, ..Cluster::default() };
    Arc::new(Resource::read(any::pack(&message)).unwrap())
}

/// What it refuses now.
fn refusal(replica: &Kept) -> Option<String> {
    replica.told().borrow().as_ref().err().map(ToString::to_string)
}

fn fault(replica: &Kept) -> Option<String> {
    replica.link().fault.map(|(reason, _)| reason)
}

#[tokio::test]
async fn everything_is_read_at_one_revision_and_followed_from_there() {
    let fake = Fake::new();
    let many: Vec<Arc<Resource>> = (0..600).map(|number| cluster(&format!("c{number:03}"), "")).collect();
    keep(&fake, &many);
    fake.put("/tide/Cluster/x", "of somebody else");
    let between = cluster("between", "");
    fake.make(|state| {
        // It takes the place of one that was read, and deletes one that was not.
        state.before_page = vec![
            ("/t/Cluster/c000".to_owned(), Some(mirror::written(&cluster("c000", "new")))),
            ("/t/Cluster/c599".to_owned(), None),
            (key(&between), Some(mirror::written(&between))),
        ];
    });
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    let mut source = Following::new(replica.told());
    let first = within(source.next()).await.unwrap();
    assert!(first.rest.len() == 600, "{}", first.rest.len());
    until(|| replica.set().kind(ResourceType::CLUSTER).get("between").is_some()).await;
    assert_eq!(replica.set().len(), 600);
    assert!(replica.set().kind(ResourceType::CLUSTER).get("c599").is_none());
    let state = fake.state.lock();
    let revisions: Vec<i64> = state.ranges.iter().map(|range| range.revision).collect();
    assert_eq!((revisions, state.watches.as_slice()), (vec![0, 3, 3], [4].as_slice()));
}

#[tokio::test]
async fn a_revision_in_parts_is_served_as_a_whole() {
    let fake = Fake::new();
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    fake.make(|state| state.fragments = true);
    let mut source = Following::new(replica.told());
    within(source.next()).await.unwrap();
    // The one that names comes first.
    keep(&fake, &[naming("a", "b"), cluster("b", "")]);
    assert_eq!(within(source.next()).await.unwrap().rest.len(), 2);
}

#[tokio::test]
async fn after_a_compaction_everything_is_read_anew_and_nothing_is_gone_meanwhile() {
    let fake = Fake::new();
    let stay: Vec<Arc<Resource>> = (0..50).map(|number| cluster(&format!("stay{number}"), "")).collect();
    keep(&fake, &stay);
    keep(&fake, &[cluster("goes", "")]);
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    let mut source = Following::new(replica.told());
    let first = within(source.next()).await.unwrap();
    fake.cut(|state| {
        let came = cluster("came", "");
        state.write_all(vec![("/t/Cluster/goes".to_owned(), None)]);
        state.write_all(vec![(key(&came), Some(mirror::written(&came)))]);
        Fake::compact(state);
    });
    let mut last = first.clone();
    while last.rest.kind(ResourceType::CLUSTER).get("came").is_none() {
        last = within(source.next()).await.unwrap();
        assert!(stay.iter().all(|one| last.rest.kind(ResourceType::CLUSTER).get(&one.name).is_some()));
    }
    assert!(last.rest.len() == 51 && !names(&last.rest).contains("goes"));
    // What did not change is still the same object.
    let of = |set: &Sets| set.rest.kind(ResourceType::CLUSTER).get("stay7").unwrap().clone();
    assert!(Arc::ptr_eq(&of(&first), &of(&last)));
    until(|| fault(&replica).is_none()).await;
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", "")]);
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    fake.cut(|state| state.write_all(vec![("/t/Cluster/b".to_owned(), Some(mirror::written(&cluster("b", ""))))]));
    until(|| replica.set().len() == 2).await;
    let state = fake.state.lock();
    assert_eq!(state.watches, [3, 3]);
    assert_eq!(state.ranges.iter().filter(|range| !range.count_only).count(), 1);
}

#[tokio::test]
async fn what_is_served_outlives_the_leader() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", "")]);
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    fake.make(|state| state.leader = false);
    until(|| fault(&replica).is_some_and(|reason| reason.contains("no leader"))).await;
    let unmade = within(replica.change(put(cluster("b", ""), None), false)).await.unwrap_err();
    assert!(matches!(&unmade, ChangeError::Unreachable(why) if why.contains("no leader")), "{unmade}");
    assert_eq!((replica.set().len(), refusal(&replica)), (1, None));
    fake.make(|state| state.leader = true);
    until(|| fault(&replica).is_none()).await;
    within(replica.change(put(cluster("b", ""), None), false)).await.unwrap();
    assert_eq!(replica.set().len(), 2);
}

#[tokio::test]
async fn another_member_takes_the_place_of_a_lost_one() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", "")]);
    let (one, other) = (fake.member().await, fake.member().await);
    let replica = replica(url(&[&one, &other])).await;
    assert_eq!(replica.link().member, one.address.to_string());
    one.kill();
    keep(&fake, &[cluster("b", "")]);
    until(|| replica.set().len() == 2).await;
    until(|| fault(&replica).is_none()).await;
    assert_eq!(replica.link().member, other.address.to_string());
    within(replica.change(put(cluster("c", ""), None), false)).await.unwrap();
    other.kill();
    until(|| fault(&replica).is_some()).await;
    assert_eq!((replica.set().len(), refusal(&replica)), (3, None));
}

#[tokio::test]
async fn a_start_waits_for_etcd() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", "")]);
    let member = fake.member().await;
    fake.make(|state| state.leader = false);
    let url = url(&[&member]);
    let starting = tokio::spawn(async move { Kept::connect(url, Access::default(), Elsewhere::default()).await });
    until(|| fake.state.lock().leaderless > 1).await;
    assert!(!starting.is_finished());
    fake.make(|state| state.leader = true);
    assert_eq!(within(starting).await.unwrap().unwrap().set().len(), 1);
}

#[tokio::test]
async fn members_are_spoken_to_in_tls() {
    let (fake, certificates, others) = (Fake::new(), Certificates::new(), Certificates::new());
    keep(&fake, &[cluster("a", "")]);
    let member = fake.secure_member(certificates.server()).await;
    let secured = |security| Access { password: None, security };
    let url = || EtcdUrl { secure: true, ..url(&[&member]) };
    let told = async |url: EtcdUrl, security| {
        within(Kept::connect(url, secured(security), Elsewhere::default())).await.unwrap_err().to_string()
    };
    assert_eq!(told(url(), None).await, "etcd: etcd+https:// requires --store-ca FILE");
    let plain = EtcdUrl { secure: false, ..url() };
    assert!(told(plain, Some(certificates.client(true))).await.contains("no TLS: etcd+https://"));

    let replica = within(Kept::connect(url(), secured(Some(certificates.client(true))), Elsewhere::default()));
    let replica = replica.await.unwrap();
    assert_eq!(replica.set().len(), 1);
    within(replica.change(put(cluster("b", ""), None), false)).await.unwrap();
    // One that another authority vouches for is not believed, and who shows nothing is not let in.
    for security in [others.client(true), certificates.client(false)] {
        let session = Session::open(&member.address.to_string(), None, Some(security)).await;
        let asked = match session {
            Ok(session) => {
                session.range(messages::RangeRequest { key: b"x".to_vec(), ..Default::default() }).await.map(drop)
            }
            Err(fault) => Err(fault),
        };
        assert!(matches!(&asked, Err(session::Fault::Unreachable(_))), "{asked:?}");
    }
}

#[tokio::test]
async fn users_are_let_in_and_stay_so() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", "")]);
    let member = fake.member().await;
    let known = || with_user(url(&[&member]));
    let connect =
        async |url: EtcdUrl, text: &str| within(Kept::connect(url, password(text), Elsewhere::default())).await;
    let told = |refused: Result<Kept, Refused>| refused.unwrap_err().to_string();
    assert!(told(connect(known(), "right").await).ends_with("authentication is not enabled"));
    fake.make(|state| state.user = Some(("me".to_owned(), "right".to_owned())));
    let said = told(within(Kept::connect(url(&[&member]), Access::default(), Elsewhere::default())).await);
    assert!(said.contains("it wants to know who asks"), "{said}");
    let said = told(connect(known(), "wrong").await);
    assert!(said.contains("authentication failed") && !said.contains("wrong"), "{said}");
    assert!(
        told(within(Kept::connect(known(), Access::default(), Elsewhere::default())).await)
            .contains("a password is required")
    );
    assert!(told(connect(url(&[&member]), "right").await).contains("a password without a user"));

    let replica = connect(known(), "right").await.unwrap();
    // Tokens are good for a while only.
    fake.make(|state| state.token = "token-2".to_owned());
    within(replica.change(put(cluster("b", ""), None), false)).await.unwrap();
    assert_eq!(replica.set().len(), 2);
    // The password is another one: whoever knows it not, serves on.
    fake.cut(|state| state.user = Some(("me".to_owned(), "other".to_owned())));
    until(|| fault(&replica).is_some_and(|reason| reason.contains("authentication failed"))).await;
    keep(&fake, &[cluster("c", "")]);
    assert_eq!(replica.set().len(), 2);
    fake.make(|state| state.user = Some(("me".to_owned(), "right".to_owned())));
    until(|| replica.set().len() == 3).await;
    assert!(!format!("{:?} {:?}", replica, AuthenticateOf("right")).contains("right"));
}

/// A request for a token, to be printed.
struct AuthenticateOf(&'static str);

impl std::fmt::Debug for AuthenticateOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let request = messages::AuthenticateRequest { name: "me".to_owned(), password: self.0.to_owned() };
        write!(f, "{request:?}")
    }
}

#[tokio::test]
async fn replicas_change_what_all_serve_with_the_same_versions() {
    let fake = Fake::new();
    let member = fake.member().await;
    let (one, other) = (replica(url(&[&member])).await, replica(url(&[&member])).await);
    let changed = within(one.change(put(cluster("a", "x"), Some(Expected::Nothing)), false)).await.unwrap();
    let version = one.set().kind(ResourceType::CLUSTER).get("a").unwrap().version;
    assert_eq!((changed.len(), changed[0].after.as_ref().unwrap().version), (1, version));
    until(|| other.set().len() == 1).await;
    assert_eq!(
        (other.set().version(), other.set().kind(ResourceType::CLUSTER).get("a").unwrap().version),
        (one.set().version(), version)
    );
    let conflict = async |change: Change| match within(other.change(change, false)).await {
        Err(ChangeError::Conflict(reason)) => reason,
        made => panic!("{made:?}"),
    };
    let found = format!("Cluster 'a': found version {version}");
    assert_eq!(conflict(put(cluster("a", "y"), Some(Expected::Nothing))).await, found);
    assert!(within(other.change(put(cluster("a", "x"), None), false)).await.unwrap().is_empty());
    assert_eq!(within(other.change(put(cluster("a", "y"), None), true)).await.unwrap().len(), 1);
    assert_eq!(other.set().kind(ResourceType::CLUSTER).get("a").unwrap().version, version);
    within(other.change(put(cluster("a", "y"), Some(Expected::Version(version))), false)).await.unwrap();
    until(|| one.set().version() == other.set().version()).await;
    let of = Some(one.set().version());
    within(one.change(Change { of: of.clone(), ..delete("a") }, false)).await.unwrap();
    until(|| other.set().is_empty()).await;
    assert!(conflict(Change { of, ..put(cluster("b", ""), None) }).await.starts_with("expected version "));
    assert!(matches!(within(other.change(delete("a"), false)).await, Err(ChangeError::Missing(..))));
}

#[tokio::test]
async fn what_came_between_is_looked_at_before_a_change_is_made() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", ""), cluster("b", "")]);
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    let before_txn = |writes: Vec<(&str, Option<Bytes>)>| {
        fake.make(|state| state.before_txn = writes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
    };
    let version = replica.set().kind(ResourceType::CLUSTER).get("a").unwrap().version;
    let expecting = || put(cluster("a", "mine"), Some(Expected::Version(version)));
    // Somebody else was first.
    before_txn(vec![("/t/Cluster/a", Some(mirror::written(&cluster("a", "theirs"))))]);
    let conflict = within(replica.change(expecting(), false)).await.unwrap_err();
    assert!(matches!(conflict, ChangeError::Conflict(_)), "{conflict}");
    // Without an expectation the last one counts.
    before_txn(vec![("/t/Cluster/a", Some(mirror::written(&cluster("a", "again"))))]);
    within(replica.change(put(cluster("a", "mine"), None), false)).await.unwrap();
    assert!(fake.value("/t/Cluster/a").unwrap().windows(4).any(|part| part == b"mine"));
    // A deletion is seen, though nothing is put.
    before_txn(vec![("/t/Cluster/a", None)]);
    let conflict =
        within(replica.change(put(cluster("a", "more"), Some(Expected::Anything)), false)).await.unwrap_err();
    assert_eq!(conflict.to_string(), "Cluster 'a': found nothing");
    // What another replica deletes cannot be named any more, though the change is of another key.
    before_txn(vec![("/t/Cluster/b", None), ("/t/changed", Some(Bytes::new()))]);
    let refused = within(replica.change(put(naming("c", "b"), None), false)).await.unwrap_err();
    assert!(refused.to_string().ends_with("there is no Cluster 'b'"), "{refused}");
    assert_eq!(fake.value("/t/Cluster/c"), None);
}

#[tokio::test]
async fn many_changes_at_once_are_all_made() {
    let fake = Fake::new();
    let member = fake.member().await;
    let (one, other) = (replica(url(&[&member])).await, replica(url(&[&member])).await);
    let (one, other) = (Arc::new(one), Arc::new(other));
    let mut running = tokio::task::JoinSet::new();
    for number in 0..20 {
        let replica = if number % 2 == 0 { one.clone() } else { other.clone() };
        running.spawn(async move {
            replica.change(put(cluster(&format!("c{number}"), ""), Some(Expected::Nothing)), false).await.unwrap();
        });
    }
    within(running.join_all()).await;
    until(|| one.set().len() == 20 && other.set().len() == 20).await;
    assert_eq!(one.set().version(), other.set().version());
}

#[tokio::test]
async fn what_somebody_else_wrote_wrongly_is_refused_and_can_be_put_right() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", ""), cluster("b", "")]);
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    let served = replica.set().version();
    fake.put("/t/Cluster/a", "'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\nnothing: 1\n");
    until(|| refusal(&replica).is_some()).await;
    let reason = refusal(&replica).unwrap();
    assert!(reason.starts_with("/t/Cluster/a:3: ") && reason.contains("nothing"), "{reason}");
    // Nothing else moves until it is right: what is served is always a state that was meant.
    keep(&fake, &[cluster("c", "")]);
    until(|| replica.link().revision == 4).await;
    assert_eq!(replica.set().version(), served);
    let refused = within(replica.change(put(cluster("d", ""), None), false)).await.unwrap_err();
    assert_eq!(refused.to_string(), reason);
    let expecting = within(replica.change(put(cluster("a", "x"), Some(Expected::Nothing)), false)).await.unwrap_err();
    assert_eq!(expecting.to_string(), "Cluster 'a': found what cannot be read");
    within(replica.change(put(cluster("a", "right"), None), false)).await.unwrap();
    assert_eq!((refusal(&replica), replica.set().len()), (None, 3));
    fake.put("/t/Cluster/b", "[");
    until(|| refusal(&replica).is_some()).await;
    within(replica.change(delete("b"), false)).await.unwrap();
    assert_eq!((refusal(&replica), replica.set().len(), fake.value("/t/Cluster/b")), (None, 2, None));
    // A start has nothing that it could serve in its place.
    fake.put("/t/Nothing/x", "");
    let refused = within(Kept::connect(url(&[&member]), Access::default(), Elsewhere::default())).await.unwrap_err();
    assert!(refused.to_string().starts_with("/t/Nothing/x: no resource has this key"), "{refused}");
}

#[tokio::test]
async fn what_does_not_hold_together_is_not_served() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", ""), naming("b", "a")]);
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    assert!(matches!(within(replica.change(delete("a"), false)).await, Err(ChangeError::Refused(_))));
    fake.delete("/t/Cluster/a");
    until(|| refusal(&replica).is_some()).await;
    let reason = refusal(&replica).unwrap();
    assert!(
        reason.starts_with("/t/Cluster/b:1: Cluster 'b': ") && reason.ends_with("there is no Cluster 'a'"),
        "{reason}"
    );
    assert_eq!(replica.set().len(), 2);
    keep(&fake, &[cluster("a", "")]);
    until(|| refusal(&replica).is_none()).await;
}

#[tokio::test]
async fn an_etcd_without_its_data_empties_nobody() {
    let fake = Fake::new();
    let all = [cluster("a", ""), cluster("b", ""), endpoints("e", "")];
    keep(&fake, &all);
    keep(&fake, &all);
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    let served = replica.set().version();
    fake.cut(Fake::wipe);
    until(|| refusal(&replica).is_some()).await;
    assert!(refusal(&replica).unwrap().contains("the 3 resources from before are served"));
    until(|| fault(&replica).is_none()).await;
    within(replica.change(put(cluster("a", ""), None), false)).await.unwrap();
    assert!(refusal(&replica).is_some() && replica.set().version() == served);
    let rest = [cluster("b", ""), endpoints("e", "")].map(|resource| (resource, None));
    within(replica.change(Change { put: rest.into(), ..Change::default() }, false)).await.unwrap();
    assert_eq!((refusal(&replica), replica.set().version()), (None, served));
    within(replica.change(delete("b"), false)).await.unwrap();
    assert_eq!(replica.set().len(), 2);
}

#[tokio::test]
async fn an_etcd_that_was_restored_is_served_as_it_is() {
    let fake = Fake::new();
    keep(&fake, &[cluster("a", ""), cluster("b", "")]);
    keep(&fake, &[cluster("b", "late")]);
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    fake.cut(|state| {
        Fake::wipe(state);
        let kept = [cluster("a", ""), cluster("b", "")];
        state.write_all(kept.iter().map(|one| (key(one), Some(mirror::written(one)))).collect());
    });
    // Its history goes on from an earlier revision.
    until(|| replica.link().revision == 2 && fault(&replica).is_none()).await;
    let early = cluster("b", "").version;
    assert_eq!(replica.set().kind(ResourceType::CLUSTER).get("b").unwrap().version, early);
    keep(&fake, &[cluster("c", "")]);
    until(|| replica.set().len() == 3).await;
    assert_eq!(refusal(&replica), None);
}

#[tokio::test]
async fn a_change_that_is_too_long_for_etcd_says_so() {
    let fake = Fake::new();
    let member = fake.member().await;
    let replica = replica(url(&[&member])).await;
    let many = |count: usize| {
        let put = (0..count).map(|number| (cluster(&format!("c{number}"), ""), None)).collect();
        Change { put, ..Change::default() }
    };
    let refused = within(replica.change(many(128), false)).await.unwrap_err();
    assert!(matches!(&refused, ChangeError::TooMuch(why) if why.contains("--max-txn-ops")), "{refused}");
    assert!(replica.set().is_empty());
    within(replica.change(many(127), false)).await.unwrap();
    assert_eq!(replica.set().len(), 127);
}
