//! The short form: every example is taken by a gateway, does there what it says, and is followed while it is edited.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::upstream::{Answer, ok};
use crate::support::{Client, Upstream};

/// `tidegate quickstart PATH`, ended when dropped.
struct Quickstart {
    child: Child,
    admin: u16,
    log: PathBuf,
    _directory: Directory,
}

impl Quickstart {
    fn start(path: &Path) -> Self {
        let (directory, admin) = (Directory::new(), free_port());
        let log = directory.0.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .arg("quickstart")
            .arg(path)
            .args(["--concurrency", "1", "--admin", &format!("127.0.0.1:{admin}")])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let running = Self { child, admin, log, _directory: directory };
        running.says("listening");
        running
    }

    /// Waits until its log holds this.
    fn says(&self, text: &str) -> String {
        let mut log = String::new();
        eventually(text, || {
            log = std::fs::read_to_string(&self.log).unwrap();
            log.contains(text)
        });
        log
    }

    fn stats(&self, filter: &str) -> String {
        Client::new(self.admin).get(&format!("/stats?filter={filter}")).text()
    }

    fn end(mut self, signal: &str) -> Option<i32> {
        Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status().unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/short")
}

/// A text whose listeners are on free ports, and these ports in the order of the old ones.
fn on_free_ports(texts: &[String]) -> (Vec<String>, Vec<u16>) {
    let mut texts = texts.to_vec();
    let mut ports = Vec::new();
    for port in 10000..10020 {
        let old = format!("127.0.0.1:{port}");
        if texts.iter().any(|text| text.contains(&old)) {
            let new = free_port();
            texts.iter_mut().for_each(|text| *text = text.replace(&old, &format!("127.0.0.1:{new}")));
            ports.push(new);
        }
    }
    (texts, ports)
}

#[test]
fn every_example_is_taken() {
    let examples = std::fs::read_dir(configs()).unwrap().map(|entry| entry.unwrap().path());
    let examples: Vec<_> = examples.filter(|path| path.extension().is_none_or(|it| it == "yaml")).collect();
    assert!(examples.len() > 3);
    for example in examples {
        let directory = Directory::new();
        let files: Vec<PathBuf> = match std::fs::read_dir(&example) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => vec![example.clone()],
        };
        let texts: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        let (texts, ports) = on_free_ports(&texts);
        for (file, text) in files.iter().zip(texts) {
            directory.put(file.file_name().unwrap().to_str().unwrap(), &text);
        }
        let running = Quickstart::start(&directory.0);
        let name = example.display();
        for line in running.stats("update_rejected").lines() {
            assert!(line.ends_with(": 0"), "{name}: {line}\n{}", std::fs::read_to_string(&running.log).unwrap());
        }
        let listeners = Client::new(running.admin).get("/listeners").text();
        assert_eq!(listeners.lines().count(), ports.len(), "{name}: {listeners}");
        let routes = running.stats("rds.*update_success");
        assert_eq!(routes.lines().filter(|line| line.ends_with(": 1")).count(), ports.len(), "{name}: {routes}");
    }
}

const HOSTS: &str = "tidegate: v1
listen: { web: 127.0.0.1:PORT }
upstreams:
  u: { endpoints: [127.0.0.1:UPSTREAM], balance: ring_hash }
  gone: { endpoints: [127.0.0.1:GONE] }
hosts:
- names: [shop.example]
  response_headers: { set: { x-level: host, x-host: '1' } }
  routes:
  - { match: /api, to: u, rewrite: { prefix: / } }
  - { match: /v1, to: u, rewrite: { prefix: /v2/ } }
  - { match: /dir/, to: u, rewrite: { prefix: /other } }
  - { match: { path: /whole }, to: u, rewrite: { path: '/a\\1', host: inner } }
  - { match: { regex: '/user/[0-9]+' }, to: u, rewrite: { regex: '^/user/(.)', with: '/u/\\1' } }
  - { match: { path: /m, methods: [POST, PUT] }, respond: { body: write } }
  - { match: { path: /m, headers: { x-a: { present: false } }, query: { q: '1' } }, respond: { body: query } }
  - { match: { path: /m, headers: { x-a: { prefix: b, not: true } } }, respond: { body: not b } }
  - { match: /old, redirect: { prefix: /new, host: new.example, status: 308 } }
  - { match: /away, redirect: { scheme: https, path: /, query: false } }
  - { match: { path: /limited }, respond: {}, limits: { rate: { requests: 2, per: 1h, by: client } } }
  - { match: { path: /short }, to: u, limits: { body: 4B } }
  - { match: { path: /hash }, to: u, hash: { cookie: c, ttl: 1h }, response_headers: { set: { x-level: route }, add: { x-p: '100%' } } }
  - { match: { path: /retry }, to: gone, retry: { times: 2, backoff: 1ms } }
  - { match: { path: /cors }, to: u, cors: { origins: ['https://*.example'], methods: [PUT], max_age: 1m } }
- names: ['*.example']
  routes: [{ respond: { status: 421 } }]
";

#[test]
fn routes_do_what_they_say() {
    let upstream = Upstream::scripted(|seen| {
        let host = seen.header("host").unwrap_or_default();
        Answer::Bytes(ok(&format!("{} {host}", seen.line().split(' ').nth(1).unwrap_or_default())))
    });
    let (directory, port) = (Directory::new(), free_port());
    let numbers = [("PORT", port), ("UPSTREAM", upstream.port), ("GONE", free_port())];
    let text = numbers.iter().fold(HOSTS.to_owned(), |text, (name, port)| {
        text.replace(&format!("127.0.0.1:{name}"), &format!("127.0.0.1:{port}"))
    });
    let path = directory.put("a.yaml", &text);
    let running = Quickstart::start(&path);
    let ask = |request: &str| {
        let request = request.replacen(' ', " /", usize::from(!request.contains(" /")));
        let (line, headers) = request.split_once('\n').unwrap_or((&request, ""));
        let host = if headers.contains("host: ") { "" } else { "host: shop.example\r\n" };
        let headers = headers.replace('\n', "\r\n");
        let mut client = Client::new(port);
        client.send(format!("{line} HTTP/1.1\r\n{host}{headers}\r\n"));
        client.response()
    };
    for (request, body) in [
        ("GET /api/x?q", "/x?q shop.example"),
        ("GET /api", "/ shop.example"),
        ("GET /v1/x", "/v2/x shop.example"),
        ("GET /v1", "/v2 shop.example"),
        ("GET /dir/x", "/other/x shop.example"),
        ("GET /whole", "/a\\1 inner"),
        ("GET /user/17", "/u/17 shop.example"),
        ("PUT /m\ncontent-length: 0\n", "write"),
        ("GET /m?q=1", "query"),
        ("GET /m?q=1\nx-a: c\n", "not b"),
    ] {
        assert_eq!(ask(request).text(), body, "{request}");
    }
    for (request, status) in [
        ("GET /apis", 404),
        ("GET /m\nx-a: bc\n", 404),
        ("GET /user/17/x", 404),
        ("GET /m\nhost: other.example\n", 421),
        ("GET /m\nhost: other\n", 404),
        ("GET /limited", 200),
        ("GET /limited", 200),
        ("GET /limited", 429),
        ("GET /retry", 503),
    ] {
        assert_eq!(ask(request).status, status, "{request}");
    }
    let moved = ask("GET /old/x?q");
    assert_eq!((moved.status, moved.header("location")), (308, Some("http://new.example/new/x?q")));
    assert_eq!(ask("GET /away/x?q").header("location"), Some("https://shop.example/"));
    let mut client = Client::new(port);
    client.send("POST /short HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 5\r\n\r\nabcde");
    assert_eq!(client.response().status, 413);
    let hashed = ask("GET /hash");
    assert!(hashed.header("set-cookie").is_some_and(|cookie| cookie.starts_with("c=\"") && cookie.contains("Path=/")));
    assert_eq!(["x-level", "x-host", "x-p"].map(|name| hashed.header(name)), [Some("route"), Some("1"), Some("100%")]);
    let preflight = ask("OPTIONS /cors\norigin: https://a.example\naccess-control-request-method: PUT\n");
    let allowed = ["origin", "methods"].map(|what| preflight.header(&format!("access-control-allow-{what}")));
    assert_eq!((preflight.status, allowed), (200, [Some("https://a.example"), Some("PUT")]));
    assert_eq!(preflight.header("access-control-max-age"), Some("60"));
    let retried = running.stats("cluster.gone.upstream_rq_retry$");
    assert!(retried.contains("upstream_rq_retry: 2"), "{retried}");
}

fn expand(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("expand").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_it_stands_for_is_shown() {
    let directory = Directory::new();
    let text = "tidegate: v1\nlisten: { web: 127.0.0.1:80 }\nhosts: [{ routes: [{ to: u }] }]\n";
    let hosts = directory.put("hosts.yaml", text);
    let (code, _, wrong) = expand(&[hosts.to_str().unwrap()]);
    let told = format!("error: {}:3: hosts[0].routes[0].to: there is no upstream 'u'\n", hosts.display());
    assert_eq!((code, wrong), (Some(1), told));
    directory.put("upstreams.yaml", "tidegate: v1\nupstreams: { u: { endpoints: [127.0.0.1:1] } }\n");
    let path = directory.0.to_str().unwrap();
    let (code, yaml, _) = expand(&[path]);
    assert!(
        code == Some(0)
            && yaml.starts_with(
                "resources:\n- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: u\n"
            ),
        "{yaml}"
    );
    let (_, json, _) = expand(&[path, "--format", "json"]);
    assert!(json.starts_with("{\n  \"resources\": [\n") && json.contains("\"route_config_name\": \"web\""), "{json}");
    // What is shown says the same as what it was made from.
    let again = Directory::new();
    again.put("all.yaml", &yaml);
    assert_eq!(expand(&[again.0.to_str().unwrap()]).1, yaml);
    let (code, _, wrong) = expand(&[path, "--group", "edge"]);
    assert!(code == Some(1) && wrong.contains("there is no group 'edge'; there are: default"), "{wrong}");
    assert!(expand(&["--schema"]).1.contains("\"$schema\""));
}

#[test]
fn files_are_checked_before_they_are_served() {
    let directory = Directory::new();
    let check = |name: &str, text: &str| {
        let path = directory.put(name, text);
        let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("check").arg(&path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap().replace(path.to_str().unwrap(), name))
    };
    let text = "tidegate: v1\nlisten: { web: 127.0.0.1:80 }\nhosts: [{ routes: [{ respond: {} }] }]\n";
    assert_eq!(check("a.yaml", text), (Some(0), "a.yaml: OK\n".to_owned()));
    let told = "a.yaml:3: hosts[0].routes[0].respnd: unknown field `respnd`; did you mean `respond`?\na.yaml: refused, 1 error\n";
    assert_eq!(check("a.yaml", &text.replace("respond", "respnd")), (Some(1), told.to_owned()));
    // What the data plane cannot do is told, too.
    let cluster = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: c\ntype: ORIGINAL_DST\n";
    directory.put("a.yaml", text);
    directory.put("c.yaml", cluster);
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("check").arg(&directory.0).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && told.starts_with("c.yaml:1: Cluster 'c': "), "{told}");
}

/// The demonstration in a directory of its own, and the ports of gateway, demo-a and demo-b.
fn demonstration(directory: &Directory) -> [u16; 3] {
    let files = ["gateway.yaml", "demo-upstreams.yaml"];
    let texts = files.map(|file| std::fs::read_to_string(configs().join("quickstart").join(file)).unwrap());
    let (texts, ports) = on_free_ports(&texts);
    for (file, text) in files.iter().zip(texts) {
        directory.put(file, &text);
    }
    ports.try_into().unwrap()
}

#[test]
fn the_demonstration_keeps_its_promises() {
    for signal in ["INT", "TERM"] {
        let directory = Directory::new();
        let [gateway, ..] = demonstration(&directory);
        let running = Quickstart::start(&directory.0);
        let mut client = Client::new(gateway);
        let page = client.get("/");
        assert!(page.text().contains("Tidegate is running"));
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        let of_a = (0..200).filter(|_| client.get("/split").text() == "hello from demo-a\n").count();
        assert!((120..200).contains(&of_a), "{of_a} of 200");
        for _ in 0..10 {
            client.send("GET /split HTTP/1.1\r\nhost: test\r\nx-demo: b\r\n\r\n");
            assert_eq!(client.response().text(), "hello from demo-b\n");
        }
        let statuses: Vec<u16> = (0..6).map(|_| client.get("/limited").status).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 429]);
        assert!(Client::new(running.admin).get("/clusters").text().contains("demo-a::"));
        drop(client);
        assert_eq!(running.end(signal), Some(0), "{signal}");
    }
}

/// Requests in a loop, on connections that stay and on new ones, until told to stop; how many there were.
fn load(port: u16, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut kept = Client::new(port);
        while !stop.load(Relaxed) {
            let response = kept.get("/split");
            assert_eq!(response.status, 200, "{}", response.text());
            // Whoever is told that a connection ends comes again on another.
            if response.header("connection") == Some("close") {
                kept = Client::new(port);
            }
            assert_eq!(Client::new(port).get("/split").status, 200);
            answered.fetch_add(2, Relaxed);
        }
    })
}

#[test]
fn editing_a_file_changes_the_traffic_and_loses_no_request() {
    let directory = Directory::new();
    let [gateway, ..] = demonstration(&directory);
    let running = Quickstart::start(&directory.0);
    let file = directory.0.join("gateway.yaml");
    let original = std::fs::read_to_string(&file).unwrap();
    let all_to = |name: &str| original.replace("to: { demo-a: 80, demo-b: 20 }", &format!("to: {name}"));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load = load(gateway, stop.clone(), answered.clone());
    let answers = |name: &str| {
        let mut client = Client::new(gateway);
        (0..20).all(|_| client.get("/split").text() == format!("hello from {name}\n"))
    };
    let in_place = |text: &str| {
        // As `>` of a shell does it: emptied, then written piece by piece.
        let mut open = std::fs::File::create(&file).unwrap();
        for piece in text.as_bytes().chunks(700) {
            open.write_all(piece).unwrap();
        }
    };
    let mut slowest = Duration::ZERO;
    for round in 0..6 {
        let name = ["demo-b", "demo-a"][round % 2];
        let text = all_to(name);
        let begun = Instant::now();
        if round % 3 == 0 {
            in_place(&text);
        } else {
            directory.put("gateway.yaml", &text);
        }
        eventually(&format!("the traffic goes to {name}"), || answers(name));
        slowest = slowest.max(begun.elapsed());
    }
    // A listener that changes is followed by new connections, and the old ones are not cut.
    let more = all_to("demo-a").replace("access_log: stdout", "access_log: none");
    directory.put("gateway.yaml", &more);
    eventually("the listener is the new one", || running.stats("lds.update_success$").contains(": 2\n"));
    // What is wrong changes nothing, and is told with its line.
    let wrong =
        more.replace("  - match: { path: /split }\n    to: demo-a", "  - match: { path: /split }\n    too: demo-b");
    let line = wrong.lines().position(|line| line.contains("too:")).unwrap() + 1;
    in_place(&wrong);
    running.says(&format!(
        "refused: gateway.yaml:{line}: hosts[0].routes[1].too: unknown field `too`; did you mean `to`?"
    ));
    assert!(answers("demo-a"));
    // So is what only the gateway can find wrong.
    in_place(&more.replace("access_log: none", "access_log: /no/such/folder/log"));
    let told = running.says("/no/such/folder/log");
    assert!(told.contains("refused: gateway.yaml:8: Listener 'gateway': "), "{told}");
    in_place("");
    running.says("refused: gateway.yaml: empty; remove the file");
    assert!(answers("demo-a"));
    directory.put("gateway.yaml", &all_to("demo-b"));
    eventually("what was wrong is mended", || answers("demo-b"));
    stop.store(true, Relaxed);
    load.join().unwrap();
    println!("{} requests while the file was edited, the slowest change took {slowest:?}", answered.load(Relaxed));
    // Half a second where nothing else runs; the rest is for machines on which much does.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert_eq!(running.end("INT"), Some(0));
}
