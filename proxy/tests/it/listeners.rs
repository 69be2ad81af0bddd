//! Listeners: what comes, changes and goes while connections live, sockets of other kinds, and bounds of what is buffered.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::gateway::{Directory, connect, eventually, free_port};
use crate::support::upstream::{Answer, ok};
use crate::support::{Client, Gateway, Upstream, cluster, http_bootstrap, http_bootstrap_with};

fn bootstrap(directory: &Directory) -> String {
    let path = directory.0.join("lds.yaml");
    format!(
        "node: {{ id: node, cluster: test }}
dynamic_resources: {{ lds_config: {{ path_config_source: {{ path: {} }} }} }}
",
        path.display()
    )
}

/// A chain that answers with its own name as `server`, from a table of its own or from a file.
fn chain(rule: &str, server: &str, routes: &str) -> String {
    format!(
        "  - filter_chain_match: {rule}
    filters:
    - name: http
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: t
        server_name: {server}
        {routes}
        http_filters: [{{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]
"
    )
}

const OK: &str = "route_config: { virtual_hosts: [{ name: all, domains: ['*'], routes: [{ match: { prefix: / }, direct_response: { status: 200 } }] }] }";

fn listener(name: &str, port: u16, more: &str, chains: &[String]) -> String {
    format!(
        "- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: {name}
  address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
{more}  filter_chains:
{}",
        chains.concat()
    )
}

fn resources(listeners: &[String]) -> String {
    format!("resources:\n{}", listeners.concat())
}

fn server(client: &mut Client) -> String {
    client.get("/").header("server").unwrap_or_default().to_owned()
}

fn refused(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err()
}

#[test]
fn listeners_come_change_and_go() {
    let directory = Directory::new();
    let (first, second, third) = (free_port(), free_port(), free_port());
    let one = listener("one", first, "", &[chain("{}", "one", OK)]);
    directory.put("lds.yaml", &resources(std::slice::from_ref(&one)));
    let _gateway = Gateway::start_with(&bootstrap(&directory), &["--drain-time-s", "30"]);
    let mut old = Client::new(first);
    assert_eq!(server(&mut old), "one");

    let two = |port| listener("two", port, "", &[chain("{}", "two", OK)]);
    directory.put("lds.yaml", &resources(&[one, two(second)]));
    eventually("the new listener", || !refused(second));
    assert_eq!(server(&mut Client::new(second)), "two");

    directory.put("lds.yaml", &resources(&[two(third)]));
    eventually("the moved listener", || !refused(third));
    eventually("the end of the removed and the old address", || refused(first) && refused(second));
    assert_eq!(server(&mut old), "one", "a connection of a removed listener was cut");
}

#[test]
fn a_socket_is_kept_when_others_come_beside_it_or_cannot_be_had() {
    let directory = Directory::new();
    let (first, second) = (free_port(), free_port());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    // Without shared ports the same address cannot be bound a second time.
    let beside = |port: u16| {
        let address = format!("{{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}");
        let more = format!("  enable_reuse_port: false\n  additional_addresses: [{address}]\n");
        resources(&[listener("main", first, &more, &[chain("{}", "main", OK)])])
    };
    let alone = listener("main", first, "  enable_reuse_port: false\n", &[chain("{}", "main", OK)]);
    directory.put("lds.yaml", &resources(&[alone]));
    let mut gateway = Gateway::start_with(&bootstrap(&directory), &["--drain-time-s", "30"]);
    assert_eq!(server(&mut Client::new(first)), "main");

    directory.put("lds.yaml", &beside(second));
    eventually("the second address", || !refused(second));
    assert_eq!(server(&mut Client::new(first)), "main");

    directory.put("lds.yaml", &beside(taken.local_addr().unwrap().port()));
    gateway.wait_for("could not be bound");
    for port in [first, second] {
        assert_eq!(server(&mut Client::new(port)), "main", "an update that cannot be bound took what served");
    }
}

#[test]
fn a_changed_chain_drains_its_own_connections_only() {
    let directory = Directory::new();
    let (first, second) = (free_port(), free_port());
    let more = format!(
        "  additional_addresses: [{{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {second} }} }} }}]\n"
    );
    let listener = |name: &str| {
        let chains = [
            chain(&format!("{{ destination_port: {first} }}"), "same", OK),
            chain(&format!("{{ destination_port: {second} }}"), name, OK),
        ];
        resources(&[listener("main", first, &more, &chains)])
    };
    directory.put("lds.yaml", &listener("before"));
    let flags = ["--drain-time-s", "30", "--drain-strategy", "immediate"];
    let _gateway = Gateway::start_with(&bootstrap(&directory), &flags);
    let (mut kept, mut drained) = (Client::new(first), Client::new(second));
    assert_eq!((server(&mut kept), server(&mut drained)), ("same".to_owned(), "before".to_owned()));

    directory.put("lds.yaml", &listener("after"));
    eventually("the new chain", || server(&mut Client::new(second)) == "after");
    let last = drained.get("/");
    assert_eq!((last.header("server"), last.header("connection")), (Some("before"), Some("close")));
    assert_eq!(kept.get("/").header("connection"), None, "a connection of the chain that stayed is told to go");
}

#[test]
fn a_drain_ends_also_a_connection_that_has_said_nothing_and_may_idle() {
    let directory = Directory::new();
    let port = free_port();
    let listener = |name: &str| {
        let forever = format!("common_http_protocol_options: {{ idle_timeout: 0s }}\n        {OK}");
        resources(&[listener("main", port, "", &[chain("{}", name, &forever)])])
    };
    directory.put("lds.yaml", &listener("before"));
    let _gateway = Gateway::start_with(&bootstrap(&directory), &["--drain-time-s", "1"]);
    let mut silent = connect(port);
    // The next connection is served: so this one has been accepted.
    assert_eq!(server(&mut Client::new(port)), "before");
    directory.put("lds.yaml", &listener("after"));
    eventually("the new chain", || server(&mut Client::new(port)) == "after");
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
}

#[test]
fn routes_of_a_draining_chain_still_change() {
    let directory = Directory::new();
    let port = free_port();
    let rds = format!(
        "rds: {{ route_config_name: routes, config_source: {{ path_config_source: {{ path: {}/rds.yaml }} }} }}",
        directory.0.display()
    );
    let routes = |status: u16| {
        format!(
            "resources: [{{ '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: routes, virtual_hosts: \
             [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: {status} }} }}] }}] }}]"
        )
    };
    let listener = |name: &str, routes: &str| resources(&[listener("main", port, "", &[chain("{}", name, routes)])]);
    directory.put("rds.yaml", &routes(201));
    directory.put("lds.yaml", &listener("before", &rds));
    // Half an hour, so that the gradual drain hardly ever tells the connection to go.
    let _gateway = Gateway::start_with(&bootstrap(&directory), &["--drain-time-s", "1800"]);
    let mut old = Client::new(port);
    assert_eq!(old.get("/").status, 201);

    directory.put("lds.yaml", &listener("after", OK));
    eventually("the new chain", || server(&mut Client::new(port)) == "after");
    directory.put("rds.yaml", &routes(202));
    eventually("new routes for the old connection", || old.get("/").status == 202);
}

#[test]
fn what_waits_to_be_accepted_is_served_when_a_listener_goes() {
    let directory = Directory::new();
    let (port, other) = (free_port(), free_port());
    let stays = listener("other", other, "", &[chain("{}", "other", OK)]);
    let goes = listener("goes", port, "", &[chain("{}", "goes", OK)]);
    directory.put("lds.yaml", &resources(&[stays.clone(), goes]));
    let gateway = Gateway::start_with(&bootstrap(&directory), &["--drain-time-s", "30"]);
    gateway.signal("STOP");
    directory.put("lds.yaml", &resources(&[stays]));
    let mut waiting: Vec<_> = (0..20).map(|_| Client::new(port)).collect();
    for client in &mut waiting {
        client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    }
    gateway.signal("CONT");
    for client in &mut waiting {
        assert_eq!(client.response().status, 200);
    }
    eventually("the end of the listener", || refused(port));
}

#[test]
fn no_request_of_busy_connections_is_cut_by_a_drain() {
    let upstream = Upstream::scripted(|_| Answer::Bytes(ok("done")));
    let port = free_port();
    let routes = "[{ match: { prefix: / }, route: { cluster: up } }]";
    let bootstrap = http_bootstrap(port, routes, &[("up", upstream.port)]);
    let mut gateway = Gateway::start_with(&bootstrap, &["--drain-time-s", "10"]);
    let (begun, all_begun) = std::sync::mpsc::channel();
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let begun = begun.clone();
            std::thread::spawn(move || {
                let mut client = Client::new(port);
                assert_eq!(client.get("/").text(), "done");
                begun.send(()).unwrap();
                loop {
                    let response = client.get("/");
                    assert_eq!((response.status, response.text().as_str()), (200, "done"));
                    if response.header("connection") == Some("close") {
                        return;
                    }
                }
            })
        })
        .collect();
    for _ in &clients {
        all_begun.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    gateway.signal("TERM");
    for client in clients {
        client.join().expect("every request gets its whole answer");
    }
    assert!(gateway.wait().success());
}

#[test]
fn unix_sockets_have_their_mode_and_may_be_abstract() {
    let directory = Directory::new();
    let path = directory.0.join("in.sock");
    let name = format!("tidegate-it-{}", free_port());
    let http = http_bootstrap(free_port(), "[{ match: { prefix: / }, direct_response: { status: 200 } }]", &[]);
    let main = http.replace(
        "    address: { socket_address: { address: 127.0.0.1, port_value:",
        &format!(
            "    additional_addresses: [{{ address: {{ pipe: {{ path: '@{name}' }} }} }}]\n    \
             address: {{ pipe: {{ path: {}, mode: 384 }} }} # {{",
            path.display()
        ),
    );
    let _gateway = Gateway::start(&main);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    use std::os::linux::net::SocketAddrExt;
    let abstracted = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    for mut stream in [UnixStream::connect(&path).unwrap(), UnixStream::connect_addr(&abstracted).unwrap()] {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}

/// Writes until nobody takes more for a while; how much was taken.
fn fill(stream: &mut TcpStream) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(1500))).unwrap();
    let piece = vec![b'x'; 256 << 10];
    let mut taken = 0;
    while taken < TOO_MUCH {
        match stream.write(&piece) {
            Ok(n) => taken += n,
            Err(_) => break,
        }
    }
    taken
}

/// The kernel holds some megabytes on each of two connections; beyond them the gateway would have to hold it.
const TOO_MUCH: usize = 64 << 20;

#[test]
fn a_peer_that_does_not_read_bounds_what_is_taken_from_the_other() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free_port();
    let filter = "{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: up }";
    let bootstrap = format!(
        "static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    per_connection_buffer_limit_bytes: 32768
    filter_chains: [{{ filters: [{{ name: f, typed_config: {filter} }}] }}]
  clusters:
{}",
        cluster("up", silent.local_addr().unwrap().port(), "")
    );
    let _gateway = Gateway::start(&bootstrap);
    let mut client = connect(port);
    let (mut host, _) = silent.accept().unwrap();
    assert!(fill(&mut client) < TOO_MUCH, "the host reads nothing, and yet all was taken from the client");
    assert!(fill(&mut host) < TOO_MUCH, "the client reads nothing, and yet all was taken from the host");
}

#[test]
fn a_client_that_does_not_read_bounds_what_is_taken_of_a_response() {
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free_port();
    let routes = "[{ match: { prefix: / }, route: { cluster: up, timeout: 0s } }]";
    let upstream = host.local_addr().unwrap().port();
    let bootstrap =
        http_bootstrap_with(port, "", routes, &[("up", upstream)], "per_connection_buffer_limit_bytes: 32768")
            .replace("  - name: main\n", "  - name: main\n    per_connection_buffer_limit_bytes: 32768\n");
    let _gateway = Gateway::start(&bootstrap);
    let mut client = Client::new(port);
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    let (mut host, _) = host.accept().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", TOO_MUCH * 2);
    host.write_all(head.as_bytes()).unwrap();
    assert!(fill(&mut host) < TOO_MUCH, "the client reads nothing, and yet all was taken of the response");
}

#[test]
fn clients_that_leave_before_they_have_said_enough_are_counted() {
    let (front, inspected, admin) = (free_port(), free_port(), free_port());
    let filter = "    listener_filters: [{ name: p, typed_config: { '@type': \
                  type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol } }]\n";
    let chain: String = chain("{}", "s", OK).lines().map(|line| format!("    {line}\n")).collect();
    let listener = |name: &str, port: u16, more: &str| {
        let address = format!("{{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}");
        format!("  - name: {name}\n    address: {address}\n{more}    filter_chains:\n{chain}")
    };
    let bootstrap = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
static_resources:
  listeners:
{}{}",
        listener("front", front, ""),
        listener("inspected", inspected, filter)
    );
    let _gateway = Gateway::start(&bootstrap);
    connect(front).write_all(b"GET / HT").unwrap();
    drop(connect(inspected));
    connect(inspected).write_all(b"PROX").unwrap();
    // Neither an end nor an error to Envoy.
    let mut reset = connect(inspected);
    reset.write_all(b"PROX").unwrap();
    socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).unwrap();
    drop(reset);
    eventually("nobody is waited for", || {
        Client::new(admin).get("/stats?filter=pre_cx_active").text().lines().all(|line| line.ends_with(": 0"))
    });
    for (filter, expected) in [
        ("downstream_rq_http1_total", "http.t.downstream_rq_http1_total: 1".to_owned()),
        ("destroy_remote_active", "http.t.downstream_cx_destroy_remote_active_rq: 1".to_owned()),
        ("filter_remote_close", format!("listener.127.0.0.1_{inspected}.downstream_listener_filter_remote_close: 2")),
    ] {
        eventually(&expected, || Client::new(admin).get(&format!("/stats?filter={filter}")).text().contains(&expected));
    }
}
