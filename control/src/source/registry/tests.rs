//! Fixtures after the documented APIs; not the real servers.

use std::sync::Arc;

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::follow::Found;
use super::testing::{Asked, secure_server, server};
use super::whole::Whole;
use super::*;
use crate::server::{Group, ResourceSet, Sets};
use crate::source::testing::Certificates;
use crate::source::{Refused, Source, read};

const PATIENCE: Duration = Duration::from_secs(20);

/// A source that gives what it is handed.
struct Handed(mpsc::Receiver<Arc<Sets>>);

impl Source for Handed {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        match self.0.recv().await {
            Some(sets) => Ok(sets),
            None => std::future::pending().await,
        }
    }
}

fn sets(clusters: &[&str]) -> Arc<Sets> {
    let one = |(index, service): (usize, &&str)| {
        format!(
            "{{ '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: c{index}, type: EDS, eds_cluster_config: {{ service_name: {service}, eds_config: {{ ads: {{}} }} }} }},"
        )
    };
    let text: String = clusters.iter().enumerate().map(one).collect();
    let resources = read("test", Path::new("test.yaml"), format!("resources: [{text}]").as_bytes()).unwrap();
    Arc::new(Sets { rest: Arc::new(ResourceSet::default().turned_into(resources)), groups: Vec::new() })
}

fn parse(text: &str, token: Option<&str>) -> Result<Registry, RegistryError> {
    Registry::parse(text, Access { token: token.map(str::to_owned), security: None })
}

fn registered(registry: Registry) -> (mpsc::Sender<Arc<Sets>>, Registered) {
    let (hand, handed) = mpsc::channel(4);
    (hand, Registered::new(Handed(handed), Registries::new(vec![registry]).unwrap()))
}

async fn next(source: &mut Registered) -> Arc<Sets> {
    tokio::time::timeout(PATIENCE, source.next()).await.expect("nothing came").unwrap()
}

async fn asked(requests: &mut mpsc::Receiver<Asked>) -> Asked {
    tokio::time::timeout(PATIENCE, requests.recv()).await.expect("nothing was asked").unwrap()
}

/// `priority zone address:port weight`, and `!` for what is not healthy.
fn endpoints(sets: &Sets, service: &str) -> Vec<String> {
    use prost::Message;
    use tidegate_xds::pb::envoy::config::core::v3::HealthStatus;
    use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use tidegate_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    let Some(found) = sets.rest.kind(ResourceType::ENDPOINTS).get(service) else { return vec!["none".to_owned()] };
    let assignment = ClusterLoadAssignment::decode(&*found.body.value).unwrap();
    assert_eq!(assignment.cluster_name, service);
    let mut told = Vec::new();
    for locality in assignment.endpoints {
        let zone = locality.locality.map(|locality| locality.zone).unwrap_or_default();
        for endpoint in locality.lb_endpoints {
            let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!("a name") };
            let address = format!("{:?}", host.address);
            let after = |key: &str| {
                let rest = address.split(key).nth(1).unwrap();
                rest.chars()
                    .skip_while(|c| !c.is_ascii_hexdigit())
                    .take_while(|c| !"\",)".contains(*c))
                    .collect::<String>()
            };
            let (address, port) = (after(" address: \""), after("PortValue"));
            let sick = if endpoint.health_status == HealthStatus::Unhealthy as i32 { " !" } else { "" };
            let weight = endpoint.load_balancing_weight.unwrap().value;
            told.push(format!("{} {zone} {address}:{port} {weight}{sick}", locality.priority));
        }
    }
    told
}

fn consul_entry(address: &str, weight: u32) -> String {
    format!(
        r#"{{"Node":{{"Node":"n","Address":"10.9.9.9","Datacenter":"dc1"}},"Service":{{"ID":"web-1","Service":"web","Tags":[],"Address":"{address}","Port":8080,"Meta":{{"version":"v1"}},"Weights":{{"Passing":{weight},"Warning":1}}}},"Checks":[{{"Status":"passing"}}]}}"#
    )
}

fn consul(url: &str, token: Option<&str>, pause: Duration) -> Registry {
    let registry = parse(url, token).unwrap();
    let Kind::Consul(consul) = registry.kind else { panic!("another kind") };
    Registry { kind: Kind::Consul(consul.impatient(pause)), ..registry }
}

/// In TLS with whom the right authority vouches for, and which believes us; files that are exchanged count for what comes next.
#[tokio::test]
async fn a_registry_is_spoken_to_in_tls() {
    let certificates = Certificates::new();
    let (address, mut requests) = secure_server(certificates.server()).await;
    let url = format!("consul+https://{address}");
    let secured = |security| Access { token: None, security: Some(security) };
    let registry = Registry::parse(&url, secured(certificates.client(true))).unwrap();
    let (hand, mut source) = registered(registry);
    hand.send(sets(&["consul/web"])).await.unwrap();
    let ((), given) = tokio::join!(
        async { asked(&mut requests).await.answer("200 OK", "", &format!("[{}]", consul_entry("10.0.0.1", 3))) },
        next(&mut source)
    );
    assert_eq!(endpoints(&given, "consul/web"), ["0  10.0.0.1:8080 3"]);
    drop(source);

    let refused = async |security| {
        let registry = Registry::parse(&url, secured(security)).unwrap();
        registry.ask("web", &mut 0).await.unwrap_err().to_string()
    };
    assert!(refused(Certificates::new().client(true)).await.contains("TLS: "));
    refused(certificates.client(false)).await;
    let wrong =
        Registry::parse(&url.replace("+https", ""), secured(certificates.client(true))).map(|_| ()).unwrap_err();
    assert!(wrong.to_string().contains("there are certificates, but no TLS"), "{wrong}");
    // For another address than the one that is asked; then the files are exchanged.
    let others = Certificates::new();
    let security = others.client(true);
    others.sign("127.0.0.2");
    let (elsewhere, _requests) = secure_server(others.server()).await;
    let registry = |address| Registry::parse(&format!("consul+https://{address}"), secured(security.clone())).unwrap();
    let said = registry(elsewhere).ask("web", &mut 0).await.unwrap_err().to_string();
    assert!(said.contains("verify"), "{said}");
    others.sign("127.0.0.1");
    let (elsewhere, mut requests) = secure_server(others.server()).await;
    let (registry, mut cursor) = (registry(elsewhere), 0);
    let answering = async { asked(&mut requests).await.answer("200 OK", "", "[]") };
    assert!(tokio::join!(registry.ask("web", &mut cursor), answering).0.is_ok());
}

#[tokio::test]
async fn what_is_too_long_changes_nothing() {
    let (address, mut requests) = server().await;
    let (hand, mut source) = registered(consul(&format!("consul://{address}"), None, Duration::ZERO));
    hand.send(sets(&["consul/web"])).await.unwrap();
    let given = tokio::spawn(async move { next(&mut source).await });
    let index = "x-consul-index: 1\r\n";
    let many = format!("[{}{{}}]", "{},".repeat(json::MOST_INSTANCES));
    for body in [format!("{}[]", " ".repeat(8 << 20)), many] {
        asked(&mut requests).await.answer("200 OK", index, &body);
    }
    let whole = asked(&mut requests).await;
    assert!(!whole.target.contains("index="), "{}", whole.target);
    whole.answer("200 OK", index, &format!("[{}]", consul_entry("10.0.0.1", 3)));
    assert_eq!(endpoints(&given.await.unwrap(), "consul/web"), ["0  10.0.0.1:8080 3"]);
}

/// An index that moves each time is no reason to ask without end.
#[tokio::test]
async fn consul_is_asked_at_a_pace() {
    let (address, mut requests) = server().await;
    let pause = Duration::from_millis(25);
    let (hand, mut source) = registered(consul(&format!("consul://{address}"), None, pause));
    let began = Instant::now();
    hand.send(sets(&["consul/hot"])).await.unwrap();
    tokio::spawn(async move { while source.next().await.is_ok() {} });
    for number in 0..6 {
        let asked = asked(&mut requests).await;
        assert!(began.elapsed() >= number * pause, "asked {number} times again after {:?}", began.elapsed());
        let body = format!("[{}]", consul_entry("10.0.0.1", number + 1));
        asked.answer("200 OK", &format!("x-consul-index: {}\r\n", number + 1), &body);
    }
}

/// With more services than connections, one is waited for at a time and all are followed.
#[tokio::test]
async fn services_take_turns() {
    let (address, mut requests) = server().await;
    let registry = consul(&format!("consul://{address}"), None, Duration::ZERO);
    let (hand, mut source) = registered(Registry { turns: Turns::new(1, 1, Duration::ZERO), ..registry });
    hand.send(sets(&["consul/a", "consul/b", "consul/c"])).await.unwrap();
    tokio::spawn(async move { while source.next().await.is_ok() {} });
    let (mut held, mut answered) = (Vec::new(), BTreeMap::new());
    while held.is_empty() || answered.values().filter(|count| **count > 3).count() < 2 {
        let asked = asked(&mut requests).await;
        if asked.target.contains("wait=") {
            held.push(asked);
            assert_eq!(held.len(), 1, "two are waited for");
        } else {
            assert!(!asked.target.contains("index="), "{}", asked.target);
            *answered.entry(asked.target.clone()).or_insert(0) += 1;
            asked.answer("200 OK", "x-consul-index: 1\r\n", "[]");
        }
    }
    assert_eq!(answered.len(), 3);
}

/// Blocking queries; a server that fails or has no leader changes nothing; an index that goes back begins again.
#[tokio::test]
async fn consul_is_followed_by_its_index() {
    let (address, mut requests) = server().await;
    let registry = consul(&format!("consul://{address}?dc=east&tag=a%20b"), Some("secret"), Duration::ZERO);
    let (hand, mut source) = registered(registry);
    hand.send(sets(&["consul/web", "elsewhere"])).await.unwrap();
    let answer = async |requests: &mut mpsc::Receiver<Asked>, expected: &str, index: &str, body: String| {
        let asked = asked(requests).await;
        assert_eq!(asked.target, format!("/v1/health/service/web?passing=true&dc=east&tag=a%20b{expected}"));
        assert!(asked.head.contains("x-consul-token: secret\r\n"), "{}", asked.head);
        asked.answer("200 OK", &format!("x-consul-index: {index}\r\nx-consul-knownleader: true\r\n"), &body);
    };
    let ((), first) =
        tokio::join!(answer(&mut requests, "", "7", format!("[{}]", consul_entry("10.0.0.1", 3))), next(&mut source));
    assert_eq!(endpoints(&first, "consul/web"), ["0  10.0.0.1:8080 3"]);
    assert_eq!(endpoints(&first, "elsewhere"), ["none"], "what has no registry is the source's alone");

    // Nothing new, then a failure, then no leader: what was said last stays. After a failure the whole is asked for again.
    answer(&mut requests, "&index=7&wait=55s", "7", "[]".to_owned()).await;
    asked(&mut requests).await.answer("500 Internal Server Error", "", "rpc error: No cluster leader");
    let lost = asked(&mut requests).await;
    assert!(!lost.target.contains("index="), "{}", lost.target);
    lost.answer("200 OK", "x-consul-index: 9\r\nx-consul-knownleader: false\r\n", "[]");
    // An address of its own it need not have; one that is none is left out.
    let body = format!("[{},{}]", consul_entry("", 1), consul_entry("web.example.com", 1));
    let ((), second) = tokio::join!(answer(&mut requests, "", "9", body), next(&mut source));
    assert_eq!(endpoints(&second, "consul/web"), ["0  10.9.9.9:8080 1"]);

    // The server was restored: the index is another one.
    let body = format!("[{}]", consul_entry("10.0.0.3", 1));
    let ((), third) = tokio::join!(answer(&mut requests, "&index=9&wait=55s", "2", body.clone()), next(&mut source));
    assert_eq!(endpoints(&third, "consul/web"), ["0  10.0.0.3:8080 1"]);
    answer(&mut requests, "", "2", body).await;
    let ((), none) = tokio::join!(answer(&mut requests, "&index=2&wait=55s", "3", "[]".to_owned()), next(&mut source));
    assert_eq!(endpoints(&none, "consul/web"), Vec::<String>::new(), "a service whose last instance left is empty");

    // Nobody needs it any more.
    hand.send(sets(&["elsewhere"])).await.unwrap();
    let last = next(&mut source).await;
    assert!(last.rest.kind(ResourceType::ENDPOINTS).is_empty() && source.follows_nothing());
}

/// Polled at Nacos' pace; an answer that is older than the one before is not taken.
#[tokio::test]
async fn nacos_is_polled_and_never_goes_back() {
    let (address, mut requests) = server().await;
    let registry = parse(&format!("n=nacos://{address}?namespace=prod"), Some("t")).unwrap();
    let Kind::Nacos(nacos) = registry.kind else { panic!("another kind") };
    let (hand, mut source) = registered(Registry { kind: Kind::Nacos(nacos.impatient()), ..registry });
    hand.send(sets(&["n/orders@@web"])).await.unwrap();
    let host = |ip: &str, weight: f64, rest: &str| {
        format!(r#"{{"ip":"{ip}","port":8080,"weight":{weight},"clusterName":"z1","metadata":{{"v":"1"}}{rest}}}"#)
    };
    let answer = async |requests: &mut mpsc::Receiver<Asked>, time: u64, hosts: &[String]| {
        let asked = asked(requests).await;
        let query = "serviceName=orders%40%40web&groupName=orders&namespaceId=prod&accessToken=t";
        assert_eq!(asked.target, format!("/nacos/v1/ns/instance/list?{query}"));
        let hosts = hosts.join(",");
        asked.answer(
            "200 OK",
            "",
            &format!(r#"{{"name":"orders@@web","cacheMillis":0,"lastRefTime":{time},"hosts":[{hosts}]}}"#),
        );
    };
    let many = [
        host("10.0.0.2", 0.5, r#","healthy":false"#),
        host("10.0.0.1", 1.0, r#","healthy":true,"enabled":true"#),
        host("10.0.0.3", 1.0, r#","enabled":false"#),
        host("10.0.0.4", 0.0, ""),
    ];
    let ((), first) = tokio::join!(answer(&mut requests, 20, &many), next(&mut source));
    assert_eq!(endpoints(&first, "n/orders@@web"), ["0 z1 10.0.0.1:8080 100", "0 z1 10.0.0.2:8080 50 !"]);
    answer(&mut requests, 19, &[]).await;
    // One whose clock is wrong is listened to, but it does not outdo those that come later.
    let ((), ahead) = tokio::join!(answer(&mut requests, u64::MAX, &many[..1]), next(&mut source));
    assert_eq!(endpoints(&ahead, "n/orders@@web"), ["0 z1 10.0.0.2:8080 50 !"]);
    asked(&mut requests).await.answer("503 Service Unavailable", "", "starting");
    asked(&mut requests).await.answer("200 OK", "", "not json");
    let one = [host("10.0.0.1", 1.0, "")];
    let ((), second) = tokio::join!(answer(&mut requests, 21, &one), next(&mut source));
    assert_eq!(endpoints(&second, "n/orders@@web"), ["0 z1 10.0.0.1:8080 100"]);
}

/// SRV records with priorities and weights, and the addresses of their targets.
#[tokio::test]
async fn dns_names_are_looked_up_again() {
    use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
    use hickory_resolver::proto::rr::rdata::{A, SRV};
    use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (counted, mut answers) = tokio::sync::watch::channel(0);
    let nth = |counted: &tokio::sync::watch::Sender<u32>| {
        counted.send_modify(|answers| *answers += 1);
        *counted.borrow()
    };
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { return };
            let mut message = Message::from_vec(&buffer[..length]).unwrap();
            message.metadata.message_type = MessageType::Response;
            let query = message.queries[0].clone();
            let record = |data| Record::from_rdata(query.name().clone(), 1, data);
            let name = |text: &str| Name::from_ascii(text).unwrap();
            match query.query_type() {
                // The second time it fails.
                RecordType::SRV if nth(&counted) == 2 => {
                    message.metadata.response_code = ResponseCode::ServFail;
                }
                RecordType::SRV => {
                    message.add_answer(record(RData::SRV(SRV::new(10, 5, 8080, name("a.test.")))));
                    message.add_answer(record(RData::SRV(SRV::new(20, 0, 8081, name("b.test.")))));
                }
                RecordType::A => {
                    let last = if query.name().to_ascii().starts_with('a') { 1 } else { 2 };
                    message.add_answer(record(RData::A(A::new(10, 0, 0, last))));
                }
                _ => {}
            }
            socket.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    let registry = parse(&format!("dns://{address}"), None).unwrap();
    let Kind::Dns(dns) = registry.kind else { panic!("another kind") };
    let (hand, mut source) = registered(Registry { kind: Kind::Dns(dns.impatient()), ..registry });
    hand.send(sets(&["dns/_http._tcp.web.test"])).await.unwrap();
    let first = next(&mut source).await;
    assert_eq!(endpoints(&first, "dns/_http._tcp.web.test"), ["0  10.0.0.1:8080 5", "1  10.0.0.2:8081 1"]);
    let asked_again = answers.wait_for(|answers| *answers > 2);
    tokio::time::timeout(PATIENCE, asked_again).await.expect("it is not asked again").unwrap();
    assert!(source.found.try_recv().is_err(), "a failure changes nothing");
}

/// News of a service touch only the sets that name it, and there only what is of it.
#[test]
fn news_change_what_they_are_about() {
    let set = |services: &[&str]| Arc::clone(&sets(services).rest);
    let group =
        |name: &str, services: &[&str]| Group { name: name.into(), pattern: Default::default(), set: set(services) };
    let base = Sets {
        rest: set(&["consul/a", "consul/a"]),
        groups: vec![group("one", &["consul/b", "elsewhere"]), group("two", &["consul/a", "consul/b"])],
    };
    let registries = Registries::new(vec![parse("consul://a", None).unwrap()]).unwrap();
    let mut whole = Whole::new(&base, &registries);
    assert_eq!(whole.services().map(|name| &**name).collect::<Vec<_>>(), ["consul/a", "consul/b"]);
    let endpoints = |name: &str, port: u16| {
        let instance = Instance {
            priority: 0,
            place: instance::Place::default(),
            address: [10, 0, 0, 1].into(),
            port,
            weight: 1,
            healthy: true,
            labels: BTreeMap::new(),
        };
        Arc::new(instance::assignment(name, &[instance]).unwrap())
    };
    let has = |sets: &Sets, name: &str| {
        sets.all().map(|(_, set)| set.kind(ResourceType::ENDPOINTS).get(name).is_some()).collect::<Vec<_>>()
    };
    assert!(whole.insert(&endpoints("consul/b", 1)));
    let first = whole.since(None).clone();
    assert!(Arc::ptr_eq(&first.rest, &base.rest));
    assert_eq!((has(&first, "consul/a"), has(&first, "consul/b")), (vec![false; 3], vec![false, true, true]));
    // The same again, and what nobody asks for.
    assert!(!whole.insert(&endpoints("consul/b", 1)) && !whole.insert(&endpoints("consul/c", 1)));
    assert!(whole.insert(&endpoints("consul/a", 1)) && whole.insert(&endpoints("consul/a", 2)));
    let second = whole.since(Some(&first)).clone();
    let kept = |group: usize| Arc::ptr_eq(&first.groups[group].set, &second.groups[group].set);
    assert!(kept(0) && !kept(1) && !Arc::ptr_eq(&first.rest, &second.rest));
    // The source says the same once more: what is known goes in again, and nothing is other than before.
    let mut again = Whole::new(&base, &registries);
    assert!(again.insert(&endpoints("consul/a", 2)) && again.insert(&endpoints("consul/b", 1)));
    let third = again.since(Some(&second));
    assert!(Arc::ptr_eq(&third.rest, &second.rest) && Arc::ptr_eq(&third.groups[1].set, &second.groups[1].set));
}

#[tokio::test]
async fn what_is_empty_is_given_too_but_once() {
    let (hand, mut source) = registered(parse("consul://127.0.0.1:1", None).unwrap());
    hand.send(sets(&[])).await.unwrap();
    assert!(next(&mut source).await.rest.is_empty());
    hand.send(sets(&[])).await.unwrap();
    hand.send(sets(&["elsewhere"])).await.unwrap();
    assert_eq!(next(&mut source).await.rest.len(), 1);
}

/// What is new is held back until its endpoints are known, but not for ever.
#[tokio::test(start_paused = true)]
async fn a_silent_registry_holds_nothing_up_for_ever() {
    let registry = parse("consul://127.0.0.1:1", None).unwrap();
    let (hand, mut source) = registered(registry);
    hand.send(sets(&["consul/web"])).await.unwrap();
    let began = Instant::now();
    let given = next(&mut source).await;
    assert!(began.elapsed() >= PATIENCE.min(registered::PATIENCE));
    assert_eq!(endpoints(&given, "consul/web"), ["none"]);
}

/// One that never answers was waited for once: what comes later does not wait for it, and one that is new is waited for.
#[tokio::test(start_paused = true)]
async fn a_silent_service_delays_nothing_twice() {
    let (hand, mut source) = registered(parse("consul://127.0.0.1:1", None).unwrap());
    hand.send(sets(&["consul/dead"])).await.unwrap();
    next(&mut source).await;
    let began = Instant::now();
    hand.send(sets(&["consul/dead", "elsewhere"])).await.unwrap();
    assert_eq!(next(&mut source).await.rest.len(), 2);
    assert_eq!(began.elapsed(), Duration::ZERO);
    // While something new is waited for, more may come: the wait is no longer for that.
    hand.send(sets(&["consul/dead", "consul/new"])).await.unwrap();
    hand.send(sets(&["consul/dead", "consul/new", "consul/newer"])).await.unwrap();
    assert_eq!(next(&mut source).await.rest.len(), 3);
    assert!(began.elapsed() >= registered::PATIENCE && began.elapsed() < 2 * registered::PATIENCE);
}

/// A source that looks whether what is there stays so.
struct Settling;

impl Source for Settling {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(sets(&["elsewhere"]))
    }
}

#[tokio::test(start_paused = true)]
async fn news_do_not_starve_the_source() {
    let mut source = Registered::new(Settling, Registries::default());
    let finding = source.finding.clone();
    tokio::spawn(async move {
        while finding.send(Found { name: "consul/hot".into(), instances: Vec::new() }).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(next(&mut source).await.rest.len(), 1);
}

#[test]
fn what_is_no_registry_is_refused() {
    for (text, reason) in [
        ("consul", "expected SCHEME://HOST"),
        ("etcd://a", "'etcd' is no kind of registry; there are consul, nacos and dns"),
        ("consul://", "registry 'consul': "),
        ("consul://a#b", "registry 'consul': nothing can be done with what follows the '#'"),
        ("east=nacos://me:secret@a", "registry 'east': no user and no password can stand before the host"),
        ("me:secret@a", "registry 'me': expected SCHEME://HOST"),
        ("consul://a?token=x", "'token' is not known; there are dc, tag, ns, partition, filter, stale"),
        ("consul://a?stale=maybe", "stale: expected true or false, found 'maybe'"),
        ("consul://a/v1", "nothing is expected after the host"),
        ("nacos://a?namespaceId=x", "'namespaceId' is not known; there are namespace, clusters"),
        ("dns://a.example.com", "expected ADDRESS or ADDRESS:PORT after dns://"),
        ("dns+https://127.0.0.1", "of DNS only names are asked"),
        ("consul+https://a", "registry 'consul': consul+https:// requires --registry-ca consul=FILE"),
        ("east=nacos+https://a", "nacos+https:// requires --registry-ca east=FILE"),
        ("=consul://a", "a name without '/' is required"),
    ] {
        let refused = parse(text, None).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(reason) && !refused.contains("secret"), "{text}: {refused}");
    }
    // In a filter both may stand.
    assert!(parse("consul://a?filter=Meta.x==%22a@b%22&tag=@", None).is_ok());
    for url in ["consul://a", "nacos://a"] {
        let shown = format!("{:?}", parse(url, Some("secret")).unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }
    let twice = ["consul://a", "consul://b"].map(|text| parse(text, None).unwrap());
    assert!(Registries::new(twice.into()).unwrap_err().to_string().contains("there is another one of this name"));
    assert_eq!(&*parse("east=consul://a?filter=x==y", None).unwrap().name, "east");
}

/// A source that is handed what it gives and refuses.
struct Judged(mpsc::Receiver<Result<Arc<Sets>, Refused>>);

impl Source for Judged {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        match self.0.recv().await {
            Some(told) => told,
            None => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn what_is_as_before_is_given_once_more_after_a_refusal() {
    let (hand, handed) = mpsc::channel(4);
    let mut source = Registered::new(Judged(handed), Registries::default());
    let refused = || Err(Refused { faults: vec!["no".to_owned()] });
    for told in [Ok(sets(&["elsewhere"])), Ok(sets(&["elsewhere"])), refused(), Ok(sets(&["elsewhere"]))] {
        hand.send(told).await.unwrap();
    }
    let mut next = async || tokio::time::timeout(PATIENCE, source.next()).await.expect("nothing came");
    assert_eq!(next().await.unwrap().rest.len(), 1);
    assert!(next().await.is_err());
    assert_eq!(next().await.unwrap().rest.len(), 1);
}
