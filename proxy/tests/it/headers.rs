//! Which headers a host gets beside the client's, and in which order.

use crate::support::gateway::free_port;
use crate::support::{Client, Gateway, Upstream, http_bootstrap_with};

#[test]
fn what_is_added_to_a_request_stands_in_envoys_order() {
    let (upstream, port) = (Upstream::text("hello"), free_port());
    let options = "use_remote_address: true
          via: edge";
    let routes = "[{ match: { prefix: / }, route: { cluster: up } }]";
    let bootstrap = http_bootstrap_with(port, options, routes, &[("up", upstream.port)], "");
    // An outsider's: it comes from an address that is not internal.
    let outside = bootstrap.replace(
        "via: edge",
        "via: edge
          internal_address_config: { cidr_ranges: [{ address_prefix: 10.0.0.0, prefix_len: 8 }] }",
    );
    let _gateway = Gateway::start(&outside);
    assert_eq!(Client::new(port).get("/").status, 200);
    let head = upstream.next().head;
    let names: Vec<_> =
        head.split("\r\n").skip(1).filter_map(|line| line.split_once(": ")).map(|(name, _)| name).collect();
    let added = ["x-forwarded-for", "x-forwarded-proto", "via", "x-envoy-external-address", "x-request-id"];
    let places: Vec<_> = added.iter().map(|name| names.iter().position(|other| other == name)).collect();
    assert!(places.is_sorted() && places.iter().all(Option::is_some), "{head}");
}
