//! TLS both ways: a gateway that re-encrypts to a gateway that asks who comes.

use crate::support::certificates::Authority;
use crate::support::control_plane::{ControlPlane, bootstrap_of};
use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway};

const DOWNSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const UPSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// A listener that answers everything itself, with what it knows of its peer.
fn listener(name: &str, port: u16, chains: &str) -> String {
    format!(
        "  - name: {name}\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}\n    filter_chains:\n{chains}"
    )
}

/// A chain whose answer tells what the handshake was.
fn telling_chain(matched: &str, context: &str) -> String {
    format!(
        "    - filter_chain_match: {{ {matched} }}
      transport_socket:
        name: tls
        typed_config: {{ '@type': {DOWNSTREAM}, {context} }}
      filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inner
          http_filters: [{{ name: r, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200 }} }}]
              response_headers_to_add:
              - header: {{ key: x-told, value: '%DOWNSTREAM_TLS_VERSION% %REQUESTED_SERVER_NAME% %PROTOCOL% %DOWNSTREAM_PEER_URI_SAN%' }}
"
    )
}

/// A plain listener whose first path segment names the cluster.
fn entrance(port: u16, clusters: &[&str]) -> String {
    let route = |name: &&str| format!("{{ match: {{ prefix: /{name} }}, route: {{ cluster: {name} }} }}");
    let routes: Vec<String> = clusters.iter().map(route).collect();
    let routes = routes.join(", ");
    listener(
        "entrance",
        port,
        &format!(
            "    - filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: outer
          http_filters: [{{ name: r, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]
          route_config:
            virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}]
"
        ),
    )
}

fn cluster(name: &str, port: u16, context: &str, more: &str) -> String {
    let socket =
        format!("transport_socket: {{ name: tls, typed_config: {{ '@type': {UPSTREAM}, {context} }} }}\n    {more}");
    crate::support::cluster(name, port, &socket)
}

fn bootstrap(listeners: &str, clusters: &str) -> String {
    format!("node: {{ id: node, cluster: test }}\nstatic_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}")
}

fn told(port: u16, path: &str) -> (u16, String) {
    let response = Client::new(port).get(path);
    (response.status, response.header("x-told").unwrap_or_default().to_owned())
}

#[test]
fn each_side_learns_who_the_other_is_or_hangs_up() {
    let (directory, root, other) = (Directory::new(), Authority::new("root"), Authority::new("other"));
    let (port, inner) = (free_port(), free_port());
    let ca = root.trusted(&directory, "root.pem");
    let foreign_ca = other.trusted(&directory, "other.pem");
    let server = root.certificate(&directory, "server", &["a.test", "*.b.test"]);
    let client = root.certificate(&directory, "client", &["spiffe://td/client"]);
    let foreign = other.certificate(&directory, "foreign", &["spiffe://td/client"]);
    let chain = telling_chain(
        "",
        &format!(
            "require_client_certificate: true, common_tls_context: {{ alpn_protocols: [h2, http/1.1], \
             tls_certificates: [{server}], validation_context: {{ trusted_ca: {ca}, \
             match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ prefix: 'spiffe://td/' }} }}] }} }}"
        ),
    );
    let context = |certificate: &str, ca: &str, more: &str| {
        format!(
            "sni: a.test, common_tls_context: {{ tls_certificates: [{certificate}], validation_context: {{ trusted_ca: {ca} }} }}{more}"
        )
    };
    let options = |body: &str| {
        let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        format!("typed_extension_protocol_options: {{ {key}: {{ '@type': type.googleapis.com/{key}, {body} }} }}")
    };
    let auto = options("auto_config: {}");
    let by_host = options(
        "upstream_http_protocol_options: { auto_sni: true, auto_san_validation: true }, explicit_http_config: { http_protocol_options: {} }",
    );
    let clusters = [
        ("good", context(&client, &ca, ""), ""),
        ("auto", context(&client, &ca, ""), auto.as_str()),
        ("foreign", context(&foreign, &ca, ""), ""),
        ("distrust", context(&client, &foreign_ca, ""), ""),
        ("misnamed", context(&client, &ca, ", auto_sni_san_validation: true").replace("a.test", "c.test"), ""),
        ("named", context(&client, &ca, ", auto_sni_san_validation: true").replace("a.test", "x.b.test"), ""),
        ("host", context(&client, &ca, "").replace("sni: a.test, ", ""), by_host.as_str()),
    ];
    let names: Vec<&str> = clusters.iter().map(|(name, ..)| *name).chain(["bare"]).collect();
    let bare = format!("sni: a.test, common_tls_context: {{ validation_context: {{ trusted_ca: {ca} }} }}");
    let clusters: String = clusters
        .iter()
        .map(|(name, context, more)| cluster(name, inner, context, more))
        .chain([cluster("bare", inner, &bare, "")])
        .collect();
    let listeners = entrance(port, &names) + &listener("inner", inner, &chain);
    let _gateway = Gateway::start(&bootstrap(&listeners, &clusters));
    assert_eq!(told(port, "/good"), (200, "TLSv1.2 a.test HTTP/1.1 spiffe://td/client".into()));
    assert_eq!(told(port, "/auto"), (200, "TLSv1.2 a.test HTTP/2 spiffe://td/client".into()));
    assert_eq!(told(port, "/named").0, 200);
    for refused in ["/foreign", "/distrust", "/misnamed", "/bare"] {
        assert_eq!(told(port, refused), (503, String::new()), "{refused}");
    }
    let mut client = Client::new(port);
    client.send("GET /host HTTP/1.1\r\nhost: y.b.test:8080\r\n\r\n");
    assert_eq!(client.response().header("x-told"), Some("TLSv1.2 y.b.test HTTP/1.1 spiffe://td/client"));
    client.send("GET /host HTTP/1.1\r\nhost: elsewhere.test\r\n\r\n");
    assert_eq!(client.response().status, 503, "the host's certificate has no such name");
}

#[test]
fn a_name_chooses_the_chain_and_none_falls_back_to_one_that_asks_less() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let (port, inner) = (free_port(), free_port());
    let ca = root.trusted(&directory, "root.pem");
    let server = root.certificate(&directory, "server", &["a.test"]);
    let open = format!("common_tls_context: {{ tls_certificates: [{server}] }}");
    let strict = format!(
        "require_client_certificate: true, common_tls_context: {{ tls_certificates: [{server}], validation_context: {{ trusted_ca: {ca} }} }}"
    );
    let chains =
        telling_chain("server_names: [open.test]", &open) + &telling_chain("server_names: ['*.strict.test']", &strict);
    let context = |sni: &str| {
        format!(
            "sni: {sni}, common_tls_context: {{ tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}, validation_context: {{ trusted_ca: {ca} }} }}"
        )
    };
    let listeners = entrance(port, &["open", "strict", "unknown"]) + &listener("inner", inner, &chains);
    let clusters = cluster("open", inner, &context("open.test"), "")
        + &cluster("strict", inner, &context("x.strict.test"), "")
        + &cluster("unknown", inner, &context("unknown.test"), "");
    let _gateway = Gateway::start(&bootstrap(&listeners, &clusters));
    assert_eq!(told(port, "/open"), (200, "TLSv1.3 open.test HTTP/1.1".into()));
    assert_eq!(told(port, "/strict").0, 503);
    assert_eq!(told(port, "/unknown").0, 503);
}

/// What a request says of itself chooses the socket, and no connection is used for a request that chooses another.
#[test]
fn a_matcher_chooses_the_transport_socket() {
    const NAMED: &str =
        "type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction";
    const STATE: &str =
        "type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3.FilterStateInput";
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let (port, inner) = (free_port(), free_port());
    let certificate = root.certificate(&directory, "server", &["a.test"]);
    let chain = telling_chain("", &format!("common_tls_context: {{ tls_certificates: [{certificate}] }}"));
    let socket = |name: &str| {
        format!(
            "{{ name: {name}, transport_socket: {{ name: tls, typed_config: {{ '@type': {UPSTREAM}, sni: {name}.test, common_tls_context: {{}} }} }} }}"
        )
    };
    let to =
        |name: &str| format!("{name}: {{ action: {{ name: a, typed_config: {{ '@type': {NAMED}, name: {name} }} }} }}");
    let matcher = format!(
        "transport_socket_matches: [{}, {}]\n    transport_socket_matcher: {{ matcher_tree: {{ input: {{ name: i, typed_config: {{ '@type': {STATE}, key: k }} }}, exact_match_map: {{ map: {{ {}, {} }} }} }} }}",
        socket("one"),
        socket("two"),
        to("one"),
        to("two"),
    );
    let up = crate::support::cluster("up", inner, &matcher);
    let state = "{ name: s, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config, on_request_headers: \
                 [{ object_key: k, factory_key: envoy.string, format_string: { text_format_source: { inline_string: '%REQ(:path)%' } }, shared_with_upstream: ONCE }] } }, { name: r";
    let entrance = entrance(port, &["up"]).replacen("{ name: r", state, 1).replacen("%REQ(:path)%", "%REQ(x-k)%", 1);
    let gateway = bootstrap(&(entrance + &listener("inner", inner, &chain)), &up);
    let _gateway = Gateway::start(&gateway);
    let mut client = Client::new(port);
    let mut asked = |choice: &str| {
        let response = client.send(format!("GET /up HTTP/1.1\r\nhost: a\r\nx-k: {choice}\r\n\r\n")).response();
        let told = response.header("x-told").unwrap_or_default().to_owned();
        (response.status, told.split(' ').nth(1).unwrap_or_default().to_owned())
    };
    for (choice, expected) in [("one", "one.test"), ("two", "two.test"), ("one", "one.test")] {
        assert_eq!(asked(choice), (200, expected.to_owned()));
    }
    // Nothing is chosen: the cluster's own socket is plain, and so no connection to a host that ends TLS.
    assert_eq!(asked("three").0, 502);
}

/// A connection is for the names of its chain alone, where that is wanted.
#[test]
fn a_request_for_a_name_of_another_chain_is_misdirected() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let (port, inner) = (free_port(), free_port());
    let certificate = root.certificate(&directory, "server", &["a.test", "*.b.test", "127.0.0.1"]);
    let context = format!("common_tls_context: {{ tls_certificates: [{certificate}] }}");
    let chains = telling_chain("server_names: [a.test, '*.deep.test']", &context) + &telling_chain("", &context);
    let up = |name: &str| format!("sni: {name}, common_tls_context: {{}}");
    let listeners = entrance(port, &["named", "any"]) + &listener("inner", inner, &chains);
    let clusters = cluster("named", inner, &up("a.test"), "") + &cluster("any", inner, &up("other.test"), "");
    let runtime = "layered_runtime: { layers: [{ name: a, static_layer: { tidegate.http.refuse_misdirected_requests: true } }] }\n";
    let _gateway = Gateway::start(&(runtime.to_owned() + &bootstrap(&listeners, &clusters)));
    let asked = |path: &str, host: &str| {
        let mut client = Client::new(port);
        client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).response().status
    };
    for (host, named, any) in [
        ("a.test", 200, 200),
        ("A.TEST.:443", 200, 200),
        ("x.deep.test", 200, 421),
        ("deep.test", 421, 421),
        ("c.b.test", 421, 200),
        ("d.c.b.test", 421, 421),
        ("other.test", 421, 421),
        ("[::1]", 421, 421),
        ("127.0.0.1:8443", 421, 200),
    ] {
        assert_eq!((asked("/named", host), asked("/any", host)), (named, any), "{host}");
    }
}

#[test]
fn secrets_from_files_are_waited_for_and_follow_their_files() {
    let (directory, root, other) = (Directory::new(), Authority::new("root"), Authority::new("other"));
    let (port, inner) = (free_port(), free_port());
    let path = directory.0.display().to_string();
    let secret = |name: &str, body: &str| {
        directory
            .put(&format!("{name}.yaml"), &format!("resources:\n- {{ '@type': {SECRET}, name: {name}, {body} }}\n"));
    };
    let ca = root.trusted(&directory, "root.pem");
    let certificate = root.certificate(&directory, "server", &["a.test"]);
    secret("server", &format!("tls_certificate: {certificate}"));
    secret("trust", &format!("validation_context: {{ trusted_ca: {ca} }}"));
    let sds = |name: &str| {
        format!("{{ name: {name}, sds_config: {{ path_config_source: {{ path: {path}/{name}.yaml }} }} }}")
    };
    let chain = telling_chain(
        "",
        &format!("common_tls_context: {{ tls_certificate_sds_secret_configs: [{}] }}", sds("server")),
    );
    let context = format!(
        "sni: a.test, common_tls_context: {{ combined_validation_context: {{ default_validation_context: {{ \
         match_typed_subject_alt_names: [{{ san_type: DNS, matcher: {{ exact: a.test }} }}] }}, \
         validation_context_sds_secret_config: {} }} }}",
        sds("trust")
    );
    let listeners = entrance(port, &["up"]) + &listener("inner", inner, &chain);
    // One request a connection: each shakes hands.
    let once = "max_requests_per_connection: 1";
    let _gateway = Gateway::start(&bootstrap(&listeners, &cluster("up", inner, &context, once)));
    assert_eq!(told(port, "/up").0, 200);
    // Another root's certificate: the cluster does not trust it.
    let (chain, key) = other.issue(&["a.test"]);
    directory.put("server.pem", &chain);
    directory.put("server.key", &key);
    eventually("the new certificate is presented", || told(port, "/up").0 == 503);
    // Junk: what was good serves on. It is trusted again, since the root's own file says so.
    directory.put("server.pem", "junk");
    directory.put("root.pem", &other.pem);
    eventually("the new root is trusted", || told(port, "/up").0 == 200);
    // The secret itself is another.
    let certificate = root.certificate(&directory, "third", &["a.test"]);
    secret("server", &format!("tls_certificate: {certificate}"));
    eventually("the other secret is presented", || told(port, "/up").0 == 503);
}

/// Two files and a control plane have each a secret of one name: whoever names one of them trusts nobody else's.
#[test]
fn a_secret_of_one_source_is_never_that_of_another() {
    let (directory, control) = (Directory::new(), ControlPlane::start());
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let (port, inner) = (free_port(), free_port());
    let trust = |authority: &Authority| {
        let ca = serde_json::to_string(&authority.pem).unwrap();
        format!("{{ '@type': {SECRET}, name: trust, validation_context: {{ trusted_ca: {{ inline_string: {ca} }} }} }}")
    };
    let put = |file: &str, authority: &Authority| {
        directory.put(file, &format!("resources:\n- {}\n", trust(authority)));
    };
    put("root.yaml", &root);
    put("other.yaml", &other);
    let file = |name: &str| format!("{{ path_config_source: {{ path: {} }} }}", directory.0.join(name).display());
    let own = "{ resource_api_version: V3, initial_fetch_timeout: 0s, api_config_source: { api_type: GRPC, transport_api_version: V3, \
               grpc_services: [{ envoy_grpc: { cluster_name: xds } }] } }";
    let trusting = |name: &str, source: &str| {
        let context = format!(
            "sni: a.test, common_tls_context: {{ validation_context_sds_secret_config: {{ name: trust, sds_config: {source} }} }}"
        );
        cluster(name, inner, &context, "max_requests_per_connection: 1")
    };
    let server = root.certificate(&directory, "server", &["a.test"]);
    let chain = telling_chain("", &format!("common_tls_context: {{ tls_certificates: [{server}] }}"));
    let listeners = entrance(port, &["up", "stray", "own"]) + &listener("inner", inner, &chain);
    let clusters = trusting("up", &file("root.yaml")) + &trusting("stray", &file("other.yaml")) + &trusting("own", own);
    let xds = bootstrap_of(control.port, "GRPC");
    let (_, xds) = xds.split_once("  clusters:\n").unwrap();
    let admin = free_port();
    let admin_at =
        format!("admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n");
    let gateway = Gateway::spawn(&(admin_at + &bootstrap(&listeners, &(clusters + xds))), &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Secret v n [trust]");
    control.answer("1", "a", &[trust(&other)]);
    assert_eq!(control.asked(), "Secret v1 na [trust]");
    let mut gateway = gateway;
    gateway.wait_for("listening");
    assert_eq!([told(port, "/up").0, told(port, "/stray").0, told(port, "/own").0], [200, 503, 503]);
    control.answer("2", "b", &[trust(&root)]);
    assert_eq!(control.asked(), "Secret v2 nb [trust]");
    eventually("the control plane's is trusted", || told(port, "/own").0 == 200);
    assert_eq!([told(port, "/up").0, told(port, "/stray").0], [200, 503]);
    put("other.yaml", &root);
    put("root.yaml", &other);
    eventually("the files' are trusted", || told(port, "/stray").0 == 200 && told(port, "/up").0 == 503);
    assert_eq!(told(port, "/own").0, 200);
    // What tells them apart is nobody's business.
    let dump = Client::new(admin).get("/config_dump?mask=dynamic_active_secrets").text();
    assert!(dump.matches("\"name\": \"trust\"").count() >= 3 && !dump.contains("\\u0000"), "{dump}");
}

#[test]
fn secrets_from_a_control_plane_are_waited_for() {
    const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let (root, control) = (Authority::new("root"), ControlPlane::start());
    let (port, inner) = (free_port(), free_port());
    let inline = |text: &str| format!("{{ inline_string: {} }}", serde_json::to_string(text).unwrap());
    let secret = |name: &str, body: &str| format!("{{ '@type': {SECRET}, name: {name}, {body} }}");
    let sds = |name: &str| format!("{{ name: {name}, sds_config: {{ ads: {{}}, resource_api_version: V3 }} }}");
    let trust = secret("trust", &format!("validation_context: {{ trusted_ca: {} }}", inline(&root.pem)));
    let (chain, key) = root.issue(&["a.test"]);
    let pair = format!("certificate_chain: {}, private_key: {}", inline(&chain), inline(&key));
    let server = secret("server", &format!("tls_certificate: {{ {pair} }}"));
    // Of a resource in a list the first line is its item; here it is by itself.
    let alone = |kind: &str, item: &str| format!("'@type': {kind}\n{}", item.replacen("  - ", "    ", 1));
    let outdented = |text: String| {
        text.lines()
            .map(|line| line.strip_prefix("    ").unwrap_or(line))
            .fold(String::new(), |all, line| all + line + "\n")
    };
    let context =
        format!("sni: a.test, common_tls_context: {{ validation_context_sds_secret_config: {} }}", sds("trust"));
    let up = outdented(alone(CLUSTER, &cluster("up", inner, &context, "")));
    let chain = telling_chain(
        "",
        &format!("common_tls_context: {{ tls_certificate_sds_secret_configs: [{}] }}", sds("server")),
    );
    let inside = outdented(alone(LISTENER, &listener("inner", inner, &chain)));
    let outside = outdented(alone(LISTENER, &entrance(port, &["up"])));
    let mut gateway = Gateway::spawn(&control.bootstrap("GRPC"), &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Cluster v n []");
    control.answer("1", "a", &[up]);
    assert_eq!(control.asked(), "Secret v n [trust]");
    assert_eq!(control.asked(), "Cluster v1 na []");
    control.answer("1", "b", std::slice::from_ref(&trust));
    assert_eq!(control.asked(), "Listener v n []");
    assert_eq!(control.asked(), "Secret v1 nb [trust]");
    control.answer("1", "c", &[inside, outside]);
    assert_eq!(control.asked(), "Secret v1 nb [server,trust]");
    assert_eq!(control.asked(), "Listener v1 nc []");
    control.answer("2", "d", &[trust, server]);
    assert_eq!(control.asked(), "Secret v2 nd [server,trust]");
    gateway.wait_for("listening");
    assert_eq!(told(port, "/up").0, 200);
}

/// It is the operator's to renew it: the gateway serves on with what it has, and says so.
#[test]
fn an_expired_certificate_is_presented_on_and_told() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let (port, inner, admin) = (free_port(), free_port(), free_port());
    let (chain, key) = root.issue_until(&["a.test"], 2020);
    let chain = directory.put("server.pem", &chain).display().to_string();
    let key = directory.put("server.key", &key).display().to_string();
    let certificate = format!("certificate_chain: {{ filename: {chain} }}, private_key: {{ filename: {key} }}");
    directory.put(
        "sds.yaml",
        &format!("resources:\n- {{ '@type': {SECRET}, name: 'old:one', tls_certificate: {{ {certificate} }} }}\n"),
    );
    let named = format!(
        "common_tls_context: {{ tls_certificate_sds_secret_configs: [{{ name: 'old:one', sds_config: {{ path_config_source: {{ path: {} }} }} }}] }}",
        directory.0.join("sds.yaml").display()
    );
    let listeners = entrance(port, &["up"]) + &listener("inner", inner, &telling_chain("", &named));
    let bootstrap = bootstrap(&listeners, &cluster("up", inner, "sni: a.test, common_tls_context: {}", ""));
    let admin_at =
        format!("admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n");
    let mut gateway = Gateway::spawn(&(admin_at + "stats_flush_on_admin: true\n" + &bootstrap), &[]);
    let told_so = gateway.wait_for("a certificate has expired");
    assert!(told_so.contains(&format!("listener.127.0.0.1_{inner}.ssl.")), "{told_so}");
    gateway.wait_for("listening");
    assert_eq!(told(port, "/up").0, 200);
    let stats = Client::new(admin).get("/stats?filter=expir").text();
    let expiry = format!("listener.127.0.0.1_{inner}.ssl.certificate.old:one.expiration_unix_time_seconds: 1577836800");
    assert!(stats.contains(&expiry) && stats.contains("server.days_until_first_cert_expiring: 0"), "{stats}");
    let certificates = Client::new(admin).get("/certs").text();
    assert!(certificates.contains("\"days_until_expiration\": \"0\""), "{certificates}");
}

/// As a mesh's agent hands them out: certificate and authorities on a stream of their own, behind a unix socket.
#[test]
fn secrets_come_over_a_unix_socket() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let (port, inner) = (free_port(), free_port());
    let path = directory.0.join("sds.sock");
    let control = ControlPlane::start_at(&path);
    let inline = |text: &str| format!("{{ inline_string: {} }}", serde_json::to_string(text).unwrap());
    let (chain, key) = root.issue(&["spiffe://mesh/a"]);
    let pair = format!("certificate_chain: {}, private_key: {}", inline(&chain), inline(&key));
    let own = format!("{{ '@type': {SECRET}, name: default, tls_certificate: {{ {pair} }} }}");
    let ca = inline(&root.pem);
    let trust = format!("{{ '@type': {SECRET}, name: ROOTCA, validation_context: {{ trusted_ca: {ca} }} }}");
    let sds = |name: &str| {
        format!(
            "{{ name: {name}, sds_config: {{ resource_api_version: V3, initial_fetch_timeout: 0s, api_config_source: {{ api_type: GRPC, \
             transport_api_version: V3, grpc_services: [{{ envoy_grpc: {{ cluster_name: agent }} }}] }} }} }}"
        )
    };
    let both = format!(
        "common_tls_context: {{ tls_certificate_sds_secret_configs: [{}], combined_validation_context: {{ default_validation_context: \
         {{ match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ prefix: 'spiffe://mesh/' }} }}] }}, \
         validation_context_sds_secret_config: {} }} }}",
        sds("default"),
        sds("ROOTCA")
    );
    let chain = telling_chain("", &format!("require_client_certificate: true, {both}"));
    let listeners = entrance(port, &["up"]) + &listener("inner", inner, &chain);
    let agent = format!(
        "  - name: agent
    connect_timeout: 1s
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment: {{ cluster_name: agent, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ pipe: {{ path: {} }} }} }} }}] }}] }}
",
        path.display()
    );
    let mut gateway = Gateway::spawn(&bootstrap(&listeners, &(cluster("up", inner, &both, "") + &agent)), &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Secret v n [ROOTCA,default]");
    control.answer("1", "a", &[own, trust]);
    assert_eq!(control.asked(), "Secret v1 na [ROOTCA,default]");
    gateway.wait_for("listening");
    let (status, told) = told(port, "/up");
    assert!(status == 200 && told.ends_with(" spiffe://mesh/a"), "{status} {told}");
}

#[test]
fn a_control_plane_is_asked_over_tls_and_no_other_one() {
    let (directory, root, other) = (Directory::new(), Authority::new("root"), Authority::new("other"));
    let (control, front) = (ControlPlane::start(), free_port());
    let server = root.certificate(&directory, "server", &["xds.test"]);
    // Something else ends TLS before the control plane.
    let chain = format!(
        "    - transport_socket:
        name: tls
        typed_config: {{ '@type': {DOWNSTREAM}, common_tls_context: {{ alpn_protocols: [h2], tls_certificates: [{server}] }} }}
      filters:
      - name: tcp
        typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: xds }}
"
    );
    let plain = crate::support::cluster("xds", control.port, "");
    let _front = Gateway::start(&bootstrap(&listener("front", front, &chain), &plain));
    let asking = |authority: &Authority, name: &str| {
        let ca = authority.trusted(&directory, name);
        let socket = format!(
            "transport_socket: {{ name: tls, typed_config: {{ '@type': {UPSTREAM}, sni: xds.test, auto_sni_san_validation: true, \
             common_tls_context: {{ validation_context: {{ trusted_ca: {ca} }} }} }} }}"
        );
        bootstrap_of(front, "GRPC").replace("connect_timeout: 1s", &format!("connect_timeout: 1s\n    {socket}"))
    };
    let mut misled = Gateway::spawn(&asking(&other, "other.pem"), &[]);
    misled.wait_for("CERTIFICATE_VERIFY_FAILED");
    let _gateway = Gateway::spawn(&asking(&root, "root.pem"), &[]);
    assert_eq!(control.asked(), "connected");
    assert_eq!(control.asked(), "Cluster v n []");
}

#[test]
fn our_control_plane_lets_in_who_has_a_certificate() {
    let (directory, root, other) = (Directory::new(), Authority::new("root"), Authority::new("other"));
    let source = Directory::new();
    source.put(
        "a.yaml",
        "resources:\n- { '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, type: STATIC }\n",
    );
    let (port, admin) = (free_port(), free_port());
    let (chain, key) = root.issue(&["xds.test"]);
    let (chain, key) = (directory.put("control.pem", &chain), directory.put("control.key", &key));
    let ca = directory.put("root.pem", &root.pem);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("control").arg("--source").arg(&source.0).args(["--listen", &format!("127.0.0.1:{port}")]);
    let clients = directory.put("clients.pem", &root.pem);
    command.arg("--tls-certificate").arg(&chain).arg("--tls-key").arg(key).arg("--tls-client-ca").arg(clients);
    let mut control = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let asking = |certificate: &str| {
        let socket = format!(
            "transport_socket: {{ name: tls, typed_config: {{ '@type': {UPSTREAM}, sni: xds.test, auto_sni_san_validation: true, \
             common_tls_context: {{ {certificate} validation_context: {{ trusted_ca: {{ filename: {} }} }} }} }} }}",
            ca.display()
        );
        let bootstrap = bootstrap_of(port, "DELTA_GRPC")
            .replace("connect_timeout: 1s", &format!("connect_timeout: 1s\n    {socket}"));
        format!(
            "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n{bootstrap}"
        )
    };
    let shown = |authority: &Authority, name: &str| {
        format!("tls_certificates: [{}],", authority.certificate(&directory, name, &["spiffe://td/gateway"]))
    };
    for certificate in [String::new(), shown(&other, "foreign")] {
        let mut turned_away = Gateway::spawn(&asking(&certificate), &[]);
        turned_away.wait_for("the stream to the control plane closed");
    }
    let known = |name: &str| Client::new(admin).get("/clusters").text().contains(&format!("{name}::"));
    let let_in = || std::net::TcpStream::connect(("127.0.0.1", admin)).is_ok() && known("a");
    let gateway = Gateway::spawn(&asking(&shown(&root, "gateway")), &[]);
    eventually("it is let in", let_in);
    drop(gateway);
    // Others are trusted from now on.
    directory.put("clients.pem", &other.pem);
    let _gateway = Gateway::spawn(&asking(&shown(&other, "foreign")), &[]);
    eventually("the other is let in", let_in);
    control.kill().unwrap();
    control.wait().unwrap();
}

#[test]
fn what_is_wrong_with_a_context_is_told_at_its_field() {
    let (directory, root) = (Directory::new(), Authority::new("root"));
    let server = root.certificate(&directory, "server", &["a.test"]);
    let inner = free_port();
    for (context, field, reason) in [
        ("common_tls_context: {}".to_owned(), "transport_socket.typed_config", "No TLS certificates found"),
        (
            format!(
                "common_tls_context: {{ tls_certificates: [{server}], validation_context: {{ match_typed_subject_alt_names: [{{ san_type: DNS, matcher: {{ exact: a }} }}] }} }}"
            ),
            "common_tls_context.validation_context",
            "SAN-based verification of peer certificates without trusted CA is insecure",
        ),
        (
            format!(
                "common_tls_context: {{ tls_certificates: [{server}], tls_params: {{ tls_minimum_protocol_version: TLSv1_0, tls_maximum_protocol_version: TLSv1_1 }} }}"
            ),
            "common_tls_context.tls_params",
            "TLS 1.0 and TLS 1.1 are not supported",
        ),
        (
            "common_tls_context: { tls_certificate_sds_secret_configs: [{ name: nowhere }] }".to_owned(),
            "tls_certificate_sds_secret_configs[0].name",
            "Unknown static secret: nowhere",
        ),
        (
            format!(
                "session_ticket_keys: {{ keys: [{{ inline_string: short }}] }}, common_tls_context: {{ tls_certificates: [{server}] }}"
            ),
            "session_ticket_keys.keys",
            "Length 5, expected length 80",
        ),
    ] {
        let text = bootstrap(&listener("inner", inner, &telling_chain("", &context)), "").replace("  clusters:\n", "");
        let file = directory.put("refused.yaml", &text);
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("check").arg(file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(field) && said.contains(reason), "{context}: {said}");
    }
}
