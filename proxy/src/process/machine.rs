//! What the machine gives a process: workers, and an address. It must not know what they are for.

use std::net::{IpAddr, SocketAddr, UdpSocket};

/// As many workers as processors, or as the cgroup's quota gives (`std` knows both).
pub fn default_concurrency() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The node's first address of the version of `any` that is not loopback, as Envoy's `--local-address-ip-version` finds it.
pub fn node_address(any: IpAddr) -> Option<IpAddr> {
    let documented: IpAddr =
        if any.is_ipv4() { [192, 0, 2, 1].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into() };
    // Connecting a datagram socket sends nothing; it asks the routing table which address would be used.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(documented, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
