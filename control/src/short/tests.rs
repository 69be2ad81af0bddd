//! The short form from outside: what is read, what is refused and where, what it expands to; and that schema, documentation
//! and examples say the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::server::{Resource, ResourceSet};

mod validator;

fn parsed(name: &str, text: &str) -> Result<Parsed, Vec<String>> {
    let told = |error: FieldError| {
        let line = error.location.map(|place| place.line).unwrap_or_default();
        FieldError { location: None, ..error }.to_string().split_off(0) + &format!(" @{line}")
    };
    Parsed::read(&name.into(), text.as_bytes(), Format::Yaml).map_err(|errors| errors.into_iter().map(told).collect())
}

/// What one file expands to, with nothing beside it.
fn expanded(text: &str) -> Result<Vec<Arc<Resource>>, Vec<String>> {
    let file = parsed("a.yaml", text)?;
    expand(&[Part { file: &file, of_group: false }], &Outside::These(&BTreeSet::new()), &ResourceSet::default())
}

fn document(resources: Vec<Arc<Resource>>) -> Value {
    let mut set = ResourceSet::default();
    resources.into_iter().for_each(|resource| set.insert(resource));
    set.to_json()["resources"].take()
}

fn of_type<'a>(document: &'a Value, kind: &str) -> &'a Value {
    let ends = |resource: &&Value| resource["@type"].as_str().is_some_and(|url| url.ends_with(kind));
    document.as_array().unwrap().iter().find(ends).unwrap()
}

/// The first route of a host whose routes are given.
fn route(routes: &str) -> Value {
    let text = format!(
        "tidegate: v1\nlisten: {{ web: 127.0.0.1:80 }}\nupstreams: {{ u: {{ balance: maglev, endpoints: [] }} }}\nhosts: [{{ routes: [{routes}] }}]\n"
    );
    let document = document(expanded(&text).unwrap());
    of_type(&document, ".RouteConfiguration")["virtual_hosts"][0]["routes"][0].clone()
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn examples() -> Vec<(PathBuf, String)> {
    let folders = [configs().join("short"), configs().join("short/quickstart")];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let yaml = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    yaml.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

const SITE: &str = "tidegate: v1
listen:
  web: 127.0.0.1:8080
hosts:
- names: [a.example]
  routes:
  - to: app
upstreams:
  app:
    endpoints: [127.0.0.1:1, 127.0.0.1:2]
";

#[test]
fn a_site_is_four_resources() {
    let made = expanded(SITE).unwrap();
    let kinds: Vec<_> = made.iter().map(|resource| (resource.kind.short(), &*resource.name)).collect();
    let expected =
        [("Cluster", "app"), ("ClusterLoadAssignment", "app"), ("Listener", "web"), ("RouteConfiguration", "web")];
    assert_eq!(kinds, expected);
    let places: Vec<_> = made.iter().map(|resource| resource.place(None)).collect();
    assert_eq!(places, ["a.yaml:9", "a.yaml:9", "a.yaml:3", "a.yaml:3"]);
    // What is served holds together.
    let mut set = ResourceSet::default();
    made.into_iter().for_each(|resource| set.insert(resource));
    assert!(set.dangling(&ResourceSet::default(), &|_| false).is_empty());
    // What is printed is what a file of a source may hold.
    let text = yaml(&set.to_json());
    let again = crate::source::read("b.yaml", Path::new("b.yaml"), text.as_bytes()).unwrap();
    assert_eq!(document(again), set.to_json()["resources"]);
}

#[test]
fn what_is_wrong_has_its_line_its_path_and_the_nearest_name() {
    for (wrong, told) in [
        ("  bcklog: 5", "listen[\"web\"].bcklog: unknown field `bcklog` @5"),
        ("  adress: 127.0.0.1:81", "listen[\"web\"].adress: unknown field `adress`; did you mean `address`? @5"),
        ("  tls: {}", "listen[\"web\"].tls: not supported yet: listen[\"web\"].tls @5"),
        (
            "  header_timeout: 10",
            "listen[\"web\"].header_timeout: expected a time with its unit that is not 0, such as `10s`, found the number 10; put it in quotes @5",
        ),
        (
            "  header_timeout: 0s",
            "listen[\"web\"].header_timeout: expected a time with its unit that is not 0, such as `10s`, found \"0s\" @5",
        ),
        (
            "  protocol: htpp1",
            "listen[\"web\"].protocol: \"htpp1\" is not one of `auto`, `http1`, `http2`; did you mean `http1`? @5",
        ),
        (
            "  trusted_hops: -1",
            "listen[\"web\"].trusted_hops: expected a whole number from 0 to 100, found the number -1 @5",
        ),
        (
            "  max_connections: '5'",
            "listen[\"web\"].max_connections: expected a whole number from 1 to 4000000, found \"5\" @5",
        ),
        ("  proxy_protocol: maybe", "listen[\"web\"].proxy_protocol: expected true or false, found \"maybe\" @5"),
    ] {
        let text = format!("tidegate: v1\nlisten:\n  web:\n    address: 127.0.0.1:80\n  {wrong}\n");
        assert_eq!(parsed("a.yaml", &text).unwrap_err(), [told], "{wrong}");
    }
    let twice = "tidegate: v1\nlisten: {}\nhosts: []\nlisten: {}\n";
    assert_eq!(parsed("a.yaml", twice).unwrap_err(), ["`listen` is set again below, which counts @2"]);
    assert_eq!(parsed("a.yaml", "tidegate: v2").unwrap_err().len(), 1);
    assert_eq!(parsed("a.yaml", "tidegate: v1\nlisten: { 'a b': 127.0.0.1:1 }").unwrap_err().len(), 1);
    // All of it at once, in the order of the file.
    let many = "tidegate: v1\nlisten: { a: x }\nhosts: [{ routes: [{}] }]\nupstreams: { u: {} }\n";
    let lines: Vec<_> = parsed("a.yaml", many).unwrap_err();
    let expected = [
        "listen[\"a\"]: expected an IP address and a port, such as `0.0.0.0:8080` or `[::]:8080`, found \"x\" @2",
        "hosts[0].routes[0]: needs one of `to`, `redirect`, `respond` @3",
        "upstreams[\"u\"].endpoints: is required @4",
    ];
    assert_eq!(lines, expected);
}

/// Files but for their first line, and what is said of them.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("limits: { body: 1B }", "limits: acts only beside `hosts`, which is not there @2"),
    (
        "limits: { body: 1B }\nhosts: []",
        "limits.body: acts only on a host that has none of its own, and there is none @2",
    ),
    (
        "hosts:\n- routes: [{ respond: {}, limits: { rate: { requests: 1 } } }]\n  limits: { rate: { requests: 2 } }",
        "hosts[0].limits.rate: acts only on a route that has none of its own, and there is none @4",
    ),
    (
        "hosts:\n- routes: [{ respond: {} }]\n  limits: { body: 1B }\nlimits:\n  body: 2B",
        "limits.body: acts only on a host that has none of its own, and there is none @6",
    ),
    ("access_log: stdout", "access_log: acts only beside `listen`, which is not there @2"),
    (
        "listen: { a: { address: 127.0.0.1:1, access_log: none } }\naccess_log: stdout",
        "access_log: acts only on a listener of this file that says none itself @3",
    ),
    (
        "listen: { a: { address: 127.0.0.1:1, access_log: { to: none, format: json } } }",
        "listen[\"a\"].access_log.format: acts only where there is a log @2",
    ),
    (
        "hosts:\n- routes: [{ respond: {} }]\n  cors: { origins: ['*'] }",
        "hosts[0].cors: acts only on a route with `to` that says none itself @4",
    ),
    (
        "hosts:\n- routes: [{ redirect: { path: / } }]\n  request_headers: { remove: [a] }",
        "hosts[0].request_headers: acts only on a route with `to` @4",
    ),
];

#[test]
fn what_would_do_nothing_is_refused() {
    let told = |routes: &str| {
        let text = format!(
            "tidegate: v1\nlisten: {{ w: 127.0.0.1:80 }}\nhosts: [{{ routes: [{routes}] }}]\nupstreams: {{ u: {{ endpoints: [] }} }}\n"
        );
        expanded(&text).unwrap_err().join("; ")
    };
    for (route, reason) in [
        ("{ to: u, respond: {} }", "routes[0].respond: only one of `to`, `respond` may be there"),
        ("{ respond: {}, timeout: 1s }", "routes[0].timeout: acts only beside `to`, which is not there"),
        ("{ to: u, rewrite: { prefix: /a } }", "rewrite.prefix: acts only where the route matches by `prefix`"),
        ("{ redirect: { status: 308 } }", "redirect: leads to where it came from"),
        ("{ to: u, hash: { header: x } }", "hash: acts only where an upstream has `balance: ring_hash`"),
        ("{ to: u, hash: { header: x, ttl: 1s } }", "hash.ttl: acts only beside `cookie`"),
        ("{ to: u, rewrite: { regex: a, with: '\\1' } }", "with: `\\1` is none of the 0 groups"),
        ("{ to: u, retry: { when: [] } }", "retry.when: without a reason"),
        ("{ to: u, limits: { rate: { requests: 1, per: 10ms } } }", "limits.rate.per: must be 50ms at least"),
        ("{ to: u, cors: { origins: ['*'], credentials: true } }", "cors.credentials: any site could act"),
        ("{ to: u, request_headers: { set: { Host: a } } }", "set[\"host\"]: a header that routing owns"),
        ("{ to: { u: 0 } }", "to: one of the shares must be more than 0"),
        ("{ match: { prefix: /a, path: /b }, to: u }", "path: only one of `prefix`, `path` may be there"),
        ("{ match: { regex: '(' }, to: u }", "regex: no regular expression: unclosed group"),
        ("{ to: v }", "hosts[0].routes[0].to: there is no upstream 'v'; did you mean 'u'?"),
        ("{ to: { u: 1, v: 1 } }", "hosts[0].routes[0].to[\"v\"]: there is no upstream 'v'"),
        ("{ to: u, limits: {} }", "limits: limits nothing: say `rate` or `body`"),
        ("{ to: u, rewrite: {} }", "rewrite: changes nothing"),
        ("{ to: u, response_headers: {} }", "response_headers: changes nothing"),
        ("{ to: u, request_headers: { set: { x: a }, remove: [X] } }", "remove[0]: does nothing beside `set`"),
        ("{ respond: { status: 204, body: a } }", "respond.body: a response with status 204 has none"),
        ("{ to: u }, { match: /a, respond: {} }", "routes[1]: is never reached: `routes[0]` takes all requests"),
    ] {
        let told = told(route);
        assert!(told.contains(reason), "{route}: {told}");
    }
    for (text, reason) in WITHOUT_EFFECT {
        assert_eq!(parsed("a.yaml", &format!("tidegate: v1\n{text}\n")).unwrap_err(), [*reason], "{text}");
    }
    let name = "tidegate: v1\nupstreams:\n  u:\n    endpoints: [web.internal:80]\n";
    assert!(parsed("a.yaml", name).unwrap_err()[0].contains("'web.internal' is no IP address"));
}

#[test]
fn a_prefix_is_replaced_with_one_slash_between() {
    let rewritten = |from: &str, to: &str| {
        let route = route(&format!("{{ match: {from}, to: u, rewrite: {{ prefix: {to} }} }}"))["route"].clone();
        (route["prefix_rewrite"].as_str().map(str::to_owned), route["regex_rewrite"]["pattern"]["regex"].clone())
    };
    let plain = |text: &str| (Some(text.to_owned()), Value::Null);
    assert_eq!(rewritten("/api", "/v2"), plain("/v2"));
    assert_eq!(rewritten("/api", "/v2/"), plain("/v2"));
    assert_eq!(rewritten("/api/", "/v2"), plain("/v2/"));
    assert_eq!(rewritten("/", "/v2"), plain("/v2/"));
    assert_eq!(rewritten("/api/", "/"), plain("/"));
    assert_eq!(rewritten("/a.b", "/"), (None, json!("^/a\\.b/*")));
}

#[test]
fn routes_match_what_they_say() {
    let matched = |text: &str| route(&format!("{{ match: {text}, to: u }}"))["match"].clone();
    assert_eq!(matched("/api"), json!({"path_separated_prefix": "/api"}));
    assert_eq!(matched("/api/"), json!({"prefix": "/api/"}));
    assert_eq!(matched("{ path: /a }"), json!({"path": "/a"}));
    assert_eq!(route("{ to: u }")["match"], json!({"prefix": "/"}));
    let headers =
        matched("{ methods: [GET, HEAD], headers: { X-A: { present: false }, x-b: { exact: c, not: true } } }");
    let method = json!({"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}});
    assert_eq!(headers["headers"][0], method);
    assert_eq!(headers["headers"][1]["name"], "x-a");
    assert_eq!(headers["headers"][1]["present_match"], false);
    assert_eq!(headers["headers"][2]["invert_match"], true);
    let value = route("{ to: u, response_headers: { set: { x: 50% } } }")["response_headers_to_add"][0].clone();
    assert_eq!(value["header"], json!({"key": "x", "value": "50%%"}));
}

#[test]
fn limits_are_taken_from_the_nearest() {
    let text = "tidegate: v1
listen: { web: 127.0.0.1:80 }
limits: { body: 1MiB, rate: { requests: 1 } }
hosts:
- limits: { rate: { requests: 2 } }
  routes:
  - { match: /a, respond: {}, limits: { rate: { requests: 3, burst: 5, by: client } } }
  - respond: {}
- names: [other]
  routes: [{ respond: {} }]
";
    let document = document(expanded(text).unwrap());
    let hosts = &of_type(&document, ".RouteConfiguration")["virtual_hosts"];
    let host = &hosts[0];
    let bucket = |level: &Value| level["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"].clone();
    assert_eq!(bucket(host)["token_bucket"], json!({"max_tokens": 2, "tokens_per_fill": 2, "fill_interval": "1s"}));
    assert_eq!(bucket(&host["routes"][0])["token_bucket"]["max_tokens"], 5);
    assert_eq!(bucket(&host["routes"][0])["descriptors"][0]["token_bucket"]["tokens_per_fill"], 3);
    assert_eq!(bucket(&host["routes"][1]), Value::Null);
    assert_eq!(bucket(&hosts[1])["token_bucket"]["max_tokens"], 1);
    let body = &host["typed_per_filter_config"]["envoy.filters.http.buffer"]["buffer"];
    assert_eq!(body["max_request_bytes"], 1 << 20);
}

/// Files as parts: whether it is a group's, name, text.
fn together(files: &[(bool, &str, &str)]) -> Result<Vec<Arc<Resource>>, Vec<String>> {
    let read: Vec<_> = files.iter().map(|(group, name, text)| (*group, parsed(name, text).unwrap())).collect();
    let parts: Vec<_> = read.iter().map(|(of_group, file)| Part { file, of_group: *of_group }).collect();
    expand(&parts, &Outside::These(&BTreeSet::from(["raw"])), &ResourceSet::default())
}

#[test]
fn files_name_what_others_define() {
    let listen = "tidegate: v1\nlisten: { web: 127.0.0.1:80, api: 127.0.0.1:81 }\n";
    let host = |name: &str, to: &str| format!("tidegate: v1\nhosts:\n- names: [{name}]\n  routes: [{{ to: {to} }}]\n");
    let upstream = "tidegate: v1\nupstreams: { u: { endpoints: [] } }\n";
    let (one, two) = (host("one", "u"), host("two", "raw"));
    let made =
        together(&[(false, "l", listen), (false, "1", &one), (false, "2", &two), (false, "u", upstream)]).unwrap();
    let document = document(made);
    let names: Vec<_> = document.as_array().unwrap().iter().filter_map(|resource| resource["name"].as_str()).collect();
    assert_eq!(names, ["u", "api", "web", "api", "web"]);
    assert_eq!(document[5]["virtual_hosts"][1]["domains"], json!(["two"]));
    let faults = together(&[(false, "l.yaml", listen), (false, "m.yaml", listen)]).unwrap_err();
    assert_eq!(faults[0], "m.yaml:2: listen[\"web\"]: there is a listener 'web' already, at l.yaml:2");
    let faults =
        together(&[(false, "l", listen), (false, "1.yaml", &one), (false, "2.yaml", &one), (false, "u", upstream)]);
    assert_eq!(faults.unwrap_err()[0], "2.yaml:3: hosts[0].names[0]: 'one' is there already on 'api', at 1.yaml:3");
    let nowhere = together(&[(false, "1.yaml", &two)]).unwrap_err();
    assert_eq!(nowhere, ["1.yaml:3: hosts[0]: there is no listener that it could be served on"]);
    let port = "tidegate: v1\nlisten: { a: 127.0.0.1:80, b: 127.0.0.1:80 }\n";
    let faults = together(&[(false, "p.yaml", port)]).unwrap_err();
    assert_eq!(faults, ["p.yaml:2: listen[\"b\"]: 127.0.0.1:80 is taken by the listener at p.yaml:2"]);
}

#[test]
fn a_file_alone_may_name_what_a_store_has() {
    let text = SITE.replace("to: app", "to: elsewhere");
    let made = crate::source::read("a.yaml", Path::new("a.yaml"), text.as_bytes()).unwrap();
    assert!(made.iter().any(|resource| resource.references.iter().any(|reference| &*reference.name == "elsewhere")));
    assert!(expanded(&text).unwrap_err()[0].starts_with("a.yaml:7: hosts[0].routes[0].to: there is no upstream"));
    let many: String = (0..200).map(|number| format!("  - {{ match: /{number}, to: elsewhere }}\n")).collect();
    assert_eq!(expanded(&SITE.replace("  - to: app\n", &many)).unwrap_err().len(), 100);
}

#[test]
fn a_group_takes_the_place_of_what_all_nodes_get() {
    let above = "tidegate: v1
listen: { web: 127.0.0.1:80 }
upstreams: { u: { endpoints: [127.0.0.1:1] } }
hosts: [{ names: [a, b], routes: [{ to: u }] }]
";
    let own = "tidegate: v1
upstreams: { u: { endpoints: [127.0.0.1:2] } }
hosts: [{ names: [a], routes: [{ respond: {} }] }]
";
    for files in [[(false, "all", above), (true, "own", own)], [(true, "own", own), (false, "all", above)]] {
        let document = document(together(&files).unwrap());
        let hosts = &of_type(&document, ".RouteConfiguration")["virtual_hosts"];
        assert_eq!((&hosts[0]["domains"], &hosts[1]["domains"]), (&json!(["a"]), &json!(["b"])));
        let endpoint = &of_type(&document, ".ClusterLoadAssignment")["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        assert_eq!(endpoint["address"]["socket_address"]["port_value"], 2);
    }
}

// ---- Schema, documentation, examples ----

#[test]
fn the_schema_beside_the_examples_is_this_one() {
    let path = configs().join("short.schema.json");
    let same = std::fs::read_to_string(&path).is_ok_and(|text| text == format!("{:#}\n", schema()));
    assert!(same, "run `tidegate expand --schema > configs/short.schema.json`");
}

#[test]
fn the_page_lists_every_field() {
    let text = std::fs::read_to_string(configs().join("short/README.md")).unwrap();
    let shown = text.split_once("<!-- fields:begin -->\n").and_then(|(_, rest)| rest.split_once("<!-- fields:end -->"));
    assert!(
        shown.unwrap().0 == page(),
        "between the markers of configs/short/README.md there should stand:\n{}",
        page()
    );
}

#[test]
fn examples_are_read_and_valid_by_the_schema() {
    let schema = schema();
    for (path, text) in examples() {
        let value = plain(text.as_bytes(), Format::Yaml).unwrap().value;
        assert_eq!(validator::faults(&schema, &value), [""; 0], "{}", path.display());
        parsed("a.yaml", &text).unwrap_or_else(|faults| panic!("{}: {faults:?}", path.display()));
    }
}

#[test]
fn examples_expand() {
    let all = std::fs::read_dir(configs().join("short")).unwrap().map(|entry| entry.unwrap().path());
    let all: Vec<_> = all.filter(|path| path.extension().is_none_or(|extension| extension == "yaml")).collect();
    assert!(all.len() > 3);
    for path in all {
        let sets = crate::source::load(&path).unwrap_or_else(|refused| panic!("{}: {refused}", path.display()));
        assert!(sets.rest.len() > 2, "{}", path.display());
    }
}

#[test]
fn examples_have_every_field() {
    let records = super::schema::records();
    let mut missing: BTreeSet<String> = BTreeSet::new();
    for (record, of) in &records {
        missing.extend(of["properties"].as_object().unwrap().keys().map(|field| format!("{record}.{field}")));
    }
    let root = json!({"$ref": "#/$defs/File", "$defs": records});
    for (_, text) in examples() {
        let value = plain(text.as_bytes(), Format::Yaml).unwrap().value;
        validator::visit(&root, &value, &mut |record, field| {
            missing.remove(&format!("{record}.{field}"));
        });
    }
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn what_the_reader_refuses_by_its_form_the_schema_refuses_too() {
    let schema = schema();
    for text in [
        "{}",
        "{ tidegate: v2 }",
        "{ tidegate: v1, more: 1 }",
        "{ tidegate: v1, listen: { a: 80 } }",
        "{ tidegate: v1, listen: { a: { address: '127.0.0.1:80', protocol: spdy } } }",
        "{ tidegate: v1, hosts: [{}] }",
        "{ tidegate: v1, listen: { a: { address: '127.0.0.1:80', max_connections: '5' } } }",
        "{ tidegate: v1, hosts: [{ routes: [{ to: a, respond: {} }] }] }",
        "{ tidegate: v1, hosts: [{ routes: [{ respond: {}, timeout: 1s }] }] }",
        "{ tidegate: v1, hosts: [{ routes: [{ to: a, match: { path: /a, prefix: /a } }] }] }",
        "{ tidegate: v1, hosts: [{ routes: [{ to: a, timeout: 15 }] }] }",
        "{ tidegate: v1, upstreams: { a: { endpoints: [{ weight: 1 }] } } }",
        "{ tidegate: v1, upstreams: { a: { endpoints: [], limits: { retries: 0 } } } }",
    ] {
        let value = plain(text.as_bytes(), Format::Yaml).unwrap().value;
        assert!(!validator::faults(&schema, &value).is_empty(), "the schema takes {text}");
        assert!(parsed("a.yaml", text).is_err(), "the reader takes {text}");
    }
}
