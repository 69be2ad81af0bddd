//! Sets: versions, what changed, what is named and not there.

use prost::Name;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use tidegate_xds::{FieldPath, Format, UnknownFields, any, load};

use super::*;

fn cluster(name: &str, alt: &str) -> Arc<Resource> {
    let message = Cluster { name: name.to_owned(), alt_stat_name: alt.to_owned(), ..Cluster::default() };
    Arc::new(Resource::read(any::pack(&message)).unwrap())
}

fn set(resources: impl IntoIterator<Item = Arc<Resource>>) -> ResourceSet {
    let mut set = ResourceSet::default();
    resources.into_iter().for_each(|resource| set.insert(resource));
    set
}

fn read(text: &str) -> ResourceSet {
    let loaded = load::<DiscoveryResponse>(text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap();
    let resources = loaded.message.resources.into_iter().enumerate();
    set(resources.map(|(index, body)| {
        let path = FieldPath::root().field("resources").index(index);
        Arc::new(Resource::read_in(body, &"a.yaml".into(), &loaded.source, &path).unwrap())
    }))
}

#[test]
fn versions_follow_content_and_nothing_else() {
    let one = set([cluster("a", ""), cluster("b", "")]);
    let other = set([cluster("b", ""), cluster("a", "x"), cluster("a", "")]);
    assert_eq!((one.version(), one.len()), (other.version(), 2));
    let mut changed = one.clone();
    changed.insert(cluster("a", "x"));
    assert_ne!(one.kind(ResourceType::CLUSTER).version(), changed.kind(ResourceType::CLUSTER).version());
    assert_eq!(one.kind(ResourceType::LISTENER).version(), changed.kind(ResourceType::LISTENER).version());
    changed.insert(cluster("a", ""));
    assert_eq!(one.version(), changed.version());
    changed.remove(ResourceType::CLUSTER, "a");
    changed.remove(ResourceType::CLUSTER, "b");
    assert!(changed.is_empty() && changed.remove(ResourceType::CLUSTER, "b").is_none());
    assert_eq!(changed.version(), ResourceSet::default().version());
    // What is swapped between two names is a change.
    let (here, there) = (set([cluster("a", "x"), cluster("b", "y")]), set([cluster("a", "y"), cluster("b", "x")]));
    assert_ne!(here.version(), there.version());
}

#[test]
fn a_version_does_not_tell_how_a_resource_was_written() {
    let one = r#"resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: c
  metadata: { filter_metadata: { a: { x: 1, y: 2 }, b: {}, c: {}, d: {} } }
  typed_extension_protocol_options:
    p: { "@type": type.googleapis.com/google.protobuf.Struct, value: { x: 1, y: [2] } }
    q: { "@type": type.googleapis.com/google.protobuf.Struct, value: {} }
"#;
    let other = r#"resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  typed_extension_protocol_options:
    q: { "@type": type.googleapis.com/google.protobuf.Struct, value: {} }
    p: { "@type": type.googleapis.com/google.protobuf.Struct, value: { y: [2], x: 1 } }
  metadata: { filter_metadata: { d: {}, c: {}, b: {}, a: { y: 2, x: 1 } } }
  name: c
"#;
    let version = read(one).version();
    assert_eq!(version, read(other).version());
    assert_eq!(version, read(&read(one).to_json().to_string()).version());
    // It is the same everywhere and for ever.
    assert_eq!(version, "d0fd7d28c891c6e8");
    assert_ne!(version, read(&one.replace("y: [2]", "y: [3]")).version());
}

#[test]
fn a_version_is_read_as_it_is_written() {
    let version = cluster("a", "").version;
    assert_eq!(Version::parse(&version.to_string()), Some(version));
    for other in ["", "1", "+00000000000000a", "00000000000000AB", "0000000000000000", "g000000000000000"] {
        assert_eq!(Version::parse(other), None, "{other}");
    }
}

#[test]
fn what_no_client_could_take_is_refused() {
    let of = |length: usize| {
        let message = Cluster { name: "a".to_owned(), alt_stat_name: "x".repeat(length), ..Cluster::default() };
        Resource::read(any::pack(&message)).map_err(|errors| errors[0].to_string())
    };
    assert!(of(4 << 19).is_ok());
    let long = Cluster { name: "x".repeat(5000), ..Cluster::default() };
    let reason = Resource::read(any::pack(&long)).unwrap_err()[0].to_string();
    assert_eq!(reason, "name: 5000 bytes; a name may have 4096");
    let reason = of(4 << 20).unwrap_err();
    assert_eq!(reason, "resource 'a': 4194313 bytes; clients of gRPC take 4193280 at most");
}

#[test]
fn two_sets_differ_in_what_changed() {
    let before = set((0..100).map(|number| cluster(&format!("c{number:02}"), "")));
    let mut after = before.clone();
    after.insert(cluster("c07", "x"));
    after.insert(cluster("new", ""));
    after.insert(cluster("c50", ""));
    after.remove(ResourceType::CLUSTER, "c99");
    let changes = before.kind(ResourceType::CLUSTER).changes(after.kind(ResourceType::CLUSTER));
    let mut changes: Vec<_> = changes.map(|(name, resource)| (name.to_string(), resource.is_some())).collect();
    changes.sort();
    assert_eq!(changes, [("c07".into(), true), ("c99".into(), false), ("new".into(), true)]);
}

#[test]
fn what_is_no_resource_is_refused() {
    let unknown = any::pack(&tidegate_xds::pb::google::rpc::Status::default());
    let unknown = Resource::read(unknown).unwrap_err();
    assert_eq!(unknown[0].to_string(), "'type.googleapis.com/google.rpc.Status' is not a type of resources");
    let nameless = Resource::read(any::pack(&Cluster::default())).unwrap_err();
    assert_eq!(nameless[0].to_string(), "name: must not be empty");
    let broken = any::pack(&Cluster { name: "a".to_owned(), ..Cluster::default() });
    let broken = tidegate_xds::pb::google::protobuf::Any { value: vec![0x0a, 9], ..broken };
    assert!(Resource::read(broken).is_err());
    assert_eq!(ResourceType::CLUSTER.message(), Cluster::full_name());
}

const ROUTES: &str = r#"resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: r
  virtual_hosts:
  - name: v
    domains: ["*"]
    routes:
    - match: { prefix: /a }
      route: { cluster: a }
    - match: { prefix: / }
      route:
        cluster: b
"#;

#[test]
fn what_is_named_and_not_there_is_found_with_its_line() {
    let nothing = ResourceSet::default();
    let mut set = read(ROUTES);
    set.insert(cluster("a", ""));
    let found = set.dangling(&nothing, &|_| false);
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    let path = "virtual_hosts[0].routes[1].route.cluster";
    assert_eq!(found, [format!("a.yaml:12: RouteConfiguration 'r': {path}: there is no Cluster 'b'")]);
    assert!(set.dangling(&nothing, &|reference| &*reference.name == "b").is_empty());
    set.insert(cluster("b", ""));
    assert!(set.dangling(&nothing, &|_| false).is_empty());
}

#[test]
fn what_still_names_a_resource_that_is_gone_is_found() {
    let mut whole = read(ROUTES);
    whole.insert(cluster("a", ""));
    whole.insert(cluster("b", ""));
    let mut less = whole.clone();
    less.remove(ResourceType::CLUSTER, "a");
    assert_eq!(less.dangling(&whole, &|_| false).len(), 1);
    let mut more = whole.clone();
    more.insert(cluster("c", ""));
    assert!(more.dangling(&whole, &|_| false).is_empty());
}

#[test]
fn a_set_turned_into_another_shares_what_did_not_change() {
    let names: Vec<String> = (0..1000).map(|number| format!("c{number:04}")).collect();
    let before = set(names.iter().map(|name| cluster(name, "")));
    let content = |name: &str| if name == "c0500" { "x" } else { "" };
    let after = before.turned_into(names.iter().skip(1).map(|name| cluster(name, content(name))));
    assert_eq!(after.version(), set(names.iter().skip(1).map(|name| cluster(name, content(name)))).version());
    let (before, after) = (before.kind(ResourceType::CLUSTER), after.kind(ResourceType::CLUSTER));
    assert_eq!(before.changes(after).count(), 2);
    let kept =
        before.iter().filter(|resource| after.get(&resource.name).is_some_and(|other| Arc::ptr_eq(resource, other)));
    assert_eq!(kept.count(), 998);
}
