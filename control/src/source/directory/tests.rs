//! Directories as people write them: whole, half, wrong, and mended.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::server::ResourceType;

/// A directory that is gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidegate-source-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Moves a file into place, as whoever wants no half file to be read.
    fn put(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = self.0.join(".new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.0.join(name)).unwrap();
    }

    fn source(&self) -> Directory {
        Directory::new(self.0.clone(), ["xds".to_owned()])
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

fn clusters(names: &[&str]) -> String {
    let line = |name: &&str| format!("- {{ \"@type\": {CLUSTER}, name: {name} }}\n");
    format!("resources:\n{}", names.iter().map(line).collect::<String>())
}

fn routes(cluster: &str) -> String {
    let routes = format!("routes: [{{ match: {{ prefix: / }}, route: {{ cluster: {cluster} }} }}]");
    format!("\"@type\": {ROUTES}\nname: r\nvirtual_hosts:\n- name: v\n  domains: ['*']\n  {routes}\n")
}

fn names(set: &ResourceSet) -> Vec<String> {
    ResourceType::all().flat_map(|kind| set.kind(kind).iter()).map(|resource| resource.name.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn files_are_served_together() {
    let (scratch, json) = (Scratch::new(), format!("{{\"@type\": \"{CLUSTER}\", \"name\": \"c\"}}"));
    scratch.put("clusters.yaml", &clusters(&["a", "b"]));
    scratch.put("one.json", &json);
    scratch.put("routes.yml", &routes("xds"));
    scratch.put("README.md", "# not a resource");
    scratch.put(".hidden.yaml", "not: one either");
    scratch.put("empty.yaml", "# nothing yet\n");
    let mut source = scratch.source();
    let first = source.next().await.unwrap();
    assert_eq!(names(&first.rest), ["a", "b", "c", "r"]);
    scratch.put("clusters.yaml", &clusters(&["b", "d"]));
    let second = source.next().await.unwrap();
    assert_eq!(names(&second.rest), ["b", "c", "d", "r"]);
    let cluster = |sets: &Sets, name: &str| sets.rest.kind(ResourceType::CLUSTER).get(name).cloned().unwrap();
    assert!(Arc::ptr_eq(&cluster(&first, "c"), &cluster(&second, "c")));
    scratch.remove("one.json");
    assert_eq!(names(&source.next().await.unwrap().rest), ["b", "d", "r"]);
}

async fn faults(source: &mut Directory) -> Vec<String> {
    source.next().await.unwrap_err().faults
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_told_with_its_line_and_changes_nothing() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &clusters(&["a", "b"]));
    scratch.put("r.yaml", &routes("a"));
    let mut source = scratch.source();
    let good = source.next().await.unwrap();
    scratch.put("a.yaml", &clusters(&["b"]));
    let path = "virtual_hosts[0].routes[0].route.cluster";
    assert_eq!(
        faults(&mut source).await,
        [format!("r.yaml:6: RouteConfiguration 'r': {path}: there is no Cluster 'a'")]
    );
    scratch.put("a.yaml", "resources:\n- name: x\n");
    assert_eq!(faults(&mut source).await, ["a.yaml:2: resources[0]: `@type` is missing"]);
    scratch.put("a.yaml", &format!("resources:\n- \"@type\": {CLUSTER}\n  name: a\n  conect_timeout: 1s\n"));
    let typo = faults(&mut source).await;
    assert!(typo[0].starts_with("a.yaml:4: resources[0].conect_timeout: ") && typo[0].contains("connect_timeout"));
    scratch.put("a.yaml", &format!("resources:\n- \"@type\": {CLUSTER}\n  name: a\n\n  connect_timeout: 0s\n"));
    let rule = "a.yaml:5: resource 'a': resources[0].connect_timeout: 0s must be more than 0s";
    assert_eq!(faults(&mut source).await, [rule]);
    scratch.put("a.yaml", "clusters: []\n");
    let found = "a.yaml:1: expected `resources`, one resource with its `@type`, or the short form with `tidegate: v1`; found `clusters`";
    assert_eq!(faults(&mut source).await, [found]);
    for (text, found) in [
        (format!("\n- \"@type\": {CLUSTER}\n  name: a\n"), "2: a list"),
        ("\n\nname\n".to_owned(), "3: text"),
        ("7".to_owned(), "1: a number"),
        ("# none\nresources:\n".to_owned(), "2: `resources` with nothing in it"),
        ("version_info: a\n".to_owned(), "1: none of them"),
    ] {
        scratch.put("a.yaml", &text);
        let (line, found) = found.split_once(": ").unwrap();
        let told = faults(&mut source).await;
        assert!(told[0].starts_with(&format!("a.yaml:{line}: expected ")), "{told:?}");
        assert!(told[0].ends_with(&format!("; found {found}")), "{told:?}");
    }
    scratch.put("a.yaml", &clusters(&["a", "b"]));
    let mended = source.next().await.unwrap();
    assert!(Arc::ptr_eq(&good.rest, &mended.rest), "nothing changed after all");
    scratch.put("more.yaml", &clusters(&["c", "a"]));
    assert_eq!(faults(&mut source).await, ["more.yaml:3: there is a Cluster 'a' already, at a.yaml:2"]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_within_is_a_group() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &clusters(&["a", "b"]));
    scratch.put("edge/node.yaml", "id: edge-*\n");
    scratch.put("edge/own.yaml", &format!("\"@type\": {CLUSTER}\nname: b\nalt_stat_name: of_edge\n"));
    let mut source = scratch.source();
    let sets = source.next().await.unwrap();
    let node = |id: &str| Node { id: id.to_owned(), ..Node::default() };
    let (group, set) = sets.of(&node("edge-1"));
    assert_eq!((group, names(set)), ("edge", vec!["a".to_owned(), "b".to_owned()]));
    let version = |set: &ResourceSet| set.kind(ResourceType::CLUSTER).get("b").unwrap().version;
    assert_ne!(version(set), version(sets.of(&node("n")).1));
    scratch.put("lost/own.yaml", &clusters(&["x"]));
    assert_eq!(faults(&mut source).await, ["lost: no node.yaml says which nodes this group has"]);
    scratch.put("lost/node.yaml", "identity: x\n");
    assert!(faults(&mut source).await[0].starts_with("lost/node.yaml:1: identity: "));
}

const HOSTS: &str = "tidegate: v1
listen: { web: 127.0.0.1:80 }
hosts:
- routes:
  - to: UPSTREAM
";

#[tokio::test(start_paused = true)]
async fn the_short_form_stands_beside_resources() {
    let scratch = Scratch::new();
    scratch.put("hosts.yaml", &HOSTS.replace("UPSTREAM", "{ short: 1, raw: 1, xds: 1 }"));
    scratch.put("upstreams.yaml", "tidegate: v1\nupstreams: { short: { endpoints: [127.0.0.1:1] } }\n");
    scratch.put("raw.yaml", &clusters(&["raw"]));
    let mut source = scratch.source();
    let good = source.next().await.unwrap();
    assert_eq!(names(&good.rest), ["raw", "short", "short", "web", "web"]);
    // Another resource names what the short form defines.
    scratch.put("routes.yaml", &routes("short"));
    assert_eq!(names(&source.next().await.unwrap().rest).len(), 6);
    // What a file names is looked for again when another one changes.
    scratch.put("raw.yaml", &clusters(&["row"]));
    let path = "hosts[0].routes[0].to[\"raw\"]";
    let told = faults(&mut source).await;
    assert_eq!(told[0], format!("hosts.yaml:5: {path}: there is no upstream 'raw'; did you mean 'row'?"));
    scratch.put("raw.yaml", &clusters(&["raw"]));
    source.next().await.unwrap();
    scratch.put("hosts.yaml", &HOSTS.replace("to:", "too:"));
    let told = faults(&mut source).await;
    assert_eq!(told[0], "hosts.yaml:5: hosts[0].routes[0].too: unknown field `too`; did you mean `to`?");
    scratch.put("hosts.yaml", &HOSTS.replace("UPSTREAM", "short"));
    scratch.put("again.yaml", &clusters(&["short"]));
    assert_eq!(faults(&mut source).await, ["upstreams.yaml:2: there is a Cluster 'short' already, at again.yaml:2"]);
}

#[tokio::test(start_paused = true)]
async fn a_group_has_hosts_of_its_own_on_listeners_of_all() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &(HOSTS.replace("UPSTREAM", "u") + "upstreams: { u: { endpoints: [] } }\n"));
    scratch.put("edge/node.yaml", "id: edge-*\n");
    scratch.put("edge/own.yaml", "tidegate: v1\nhosts: [{ names: [own], routes: [{ respond: {} }] }]\n");
    let mut source = scratch.source();
    let sets = source.next().await.unwrap();
    let hosts = |set: &ResourceSet| set.to_json()["resources"][3]["virtual_hosts"].as_array().unwrap().len();
    assert_eq!((hosts(&sets.rest), hosts(&sets.groups[0].set)), (1, 2));
    // A resource of the group is one more of what its own short form says, and takes the place of what all have.
    scratch.put("edge/raw.yaml", &format!("\"@type\": {ROUTES}\nname: web\n"));
    assert_eq!(source.next().await.unwrap().groups[0].set.len(), 4);
    scratch.put("edge/own.yaml", "tidegate: v1\nlisten: { web: 127.0.0.1:81 }\n");
    let told = faults(&mut source).await;
    assert_eq!(told, ["edge/own.yaml:2: there is a RouteConfiguration 'web' already, at edge/raw.yaml:1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_emptied_in_place_is_half_written() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &clusters(&["a"]));
    scratch.put("b.yaml", "");
    let mut source = scratch.source();
    let good = source.next().await.unwrap();
    for _ in 0..2 {
        fs::write(scratch.0.join("a.yaml"), "").unwrap();
        assert_eq!(faults(&mut source).await, ["a.yaml: empty; remove the file if nothing of it is to be served"]);
        scratch.put("b.yaml", "# changed\n");
    }
    fs::write(scratch.0.join("a.yaml"), clusters(&["a"])).unwrap();
    assert!(Arc::ptr_eq(&source.next().await.unwrap().rest, &good.rest));
    scratch.remove("a.yaml");
    assert!(source.next().await.unwrap().rest.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_file_stands_for_a_directory() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &clusters(&["a"]));
    scratch.put("b.yaml", &clusters(&["b"]));
    let path = scratch.0.join("a.yaml");
    let mut source = Directory::new(path.clone(), []);
    assert_eq!(names(&source.next().await.unwrap().rest), ["a"]);
    scratch.put("a.yaml", "clusters: []\n");
    assert!(faults(&mut source).await[0].starts_with(&format!("{}:1: expected `resources`", path.display())));
    scratch.put("a.yaml", &clusters(&["c"]));
    assert_eq!(names(&source.next().await.unwrap().rest), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_gone_is_a_fault() {
    let scratch = Scratch::new();
    let mut source = scratch.source();
    assert!(source.next().await.unwrap().rest.is_empty());
    fs::remove_dir(&scratch.0).unwrap();
    assert_eq!(faults(&mut source).await.len(), 1);
    fs::create_dir(&scratch.0).unwrap();
    source.next().await.unwrap();
}

#[tokio::test]
async fn the_example_of_the_project_is_served() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/control/resources");
    let sets = Directory::new(root, []).next().await.unwrap();
    assert_eq!(
        (names(&sets.rest), sets.groups.len()),
        (["service", "service", "main", "routes"].map(str::to_owned).into(), 1)
    );
}

/// A file of its own hosts and upstreams.
fn team(number: usize, port: u16) -> String {
    let mut text = "tidegate: v1\nhosts:\n".to_owned();
    for host in 0..10 {
        let to = format!("to: u{number}-{host}");
        text += &format!(
            "- names: [h{host}.t{number}.example]\n  routes: [{{ match: /a, {to} }}, {{ match: /b, {to} }}]\n"
        );
    }
    text += "upstreams:\n";
    for host in 0..10 {
        text += &format!("  u{number}-{host}: {{ endpoints: [127.0.0.1:{port}] }}\n");
    }
    text
}

#[tokio::test(start_paused = true)]
async fn what_an_edit_does_not_touch_is_not_made_again() {
    let scratch = Scratch::new();
    scratch.put("listen.yaml", "tidegate: v1\nlisten: { web: 127.0.0.1:80, other: 127.0.0.1:81 }\n");
    // Hosts of a file that has no listener are on all of them.
    let on_web = |port: u16| team(1, port).replace("- names:", "- listen: [web]\n  names:");
    scratch.put("a.yaml", &on_web(1));
    scratch.put("b.yaml", &(team(2, 1) + "listen: { own: 127.0.0.1:82 }\n"));
    let mut source = scratch.source();
    let first = source.next().await.unwrap();
    let is_kept = |second: &Sets, kind: ResourceType, name: &str| {
        Arc::ptr_eq(first.rest.kind(kind).get(name).unwrap(), second.rest.kind(kind).get(name).unwrap())
    };
    // Another port: neither routes nor what other files say.
    scratch.put("a.yaml", &on_web(2));
    let second = source.next().await.unwrap();
    assert!(!is_kept(&second, ResourceType::ENDPOINTS, "u1-0"));
    assert!(is_kept(&second, ResourceType::CLUSTER, "u2-0") && is_kept(&second, ResourceType::ENDPOINTS, "u2-0"));
    assert!(["web", "other", "own"].iter().all(|name| is_kept(&second, ResourceType::ROUTES, name)));
    // Other routes: those of its listeners.
    scratch.put("a.yaml", &on_web(2).replace("/b", "/c"));
    let third = source.next().await.unwrap();
    assert!(!is_kept(&third, ResourceType::ROUTES, "web") && is_kept(&third, ResourceType::ROUTES, "own"));
    assert!(is_kept(&third, ResourceType::LISTENER, "web") && is_kept(&third, ResourceType::CLUSTER, "u1-0"));
}

/// `cargo test --workspace --lib edit_of_one_of_many -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn edit_of_one_of_many() {
    let scratch = Scratch::new();
    scratch.put("listen.yaml", "tidegate: v1\nlisten: { web: 127.0.0.1:80 }\n");
    (0..1000).for_each(|number| scratch.put(&format!("t{number}.yaml"), &team(number, 1)));
    let source = scratch.source();
    for (edit, text) in [("none", team(7, 1)), ("an endpoint", team(7, 2)), ("a route", team(7, 2).replace("/b", "/c"))]
    {
        scratch.put("t7.yaml", &text);
        let began = std::time::Instant::now();
        let sets = source.load().unwrap();
        println!("{edit}: {:?} for {} resources", began.elapsed(), sets.rest.len());
        source.contents.lock().last = sets;
    }
}
