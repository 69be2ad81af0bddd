//! The binary from outside: one file a behaviour, real sockets on loopback, no sleeps.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail loudly")]
#![allow(unreachable_pub, reason = "fixtures are shared by all files of this binary")]

mod support;

mod access_logs;
mod attacks;
mod backpressure;
mod bodies;
mod command_line;
mod configs;
mod connect_udp;
mod control;
mod debug_log;
mod discovery;
mod discovery_told;
mod drain;
mod errors;
mod files;
mod filters;
mod framing;
mod headers;
mod http2;
mod http2_connection;
mod kept;
mod listeners;
mod load_reports;
mod memory;
mod namespace;
mod polls;
mod proxy_protocol;
mod scoped_routes;
mod short;
mod tcp;
mod tls;
mod tls_upstream;
mod tries;
mod upgrades;
mod virtual_hosts;
