//! HTTP/1 on `httparse`: heads and bodies both ways, strict wherever two parsers could read differently.
//! One parser reads each head. It must not know sockets beyond reading and writing bytes.
//!
//! Stricter than Envoy, deliberately and whatever the defaults in force: bare LF and bare CR, obs-fold, more than one space
//! in a start line, more than one Host, user information in Host or target, versions other than 1.0 and 1.1, bodies on
//! upgrades, `transfer-encoding` in HTTP/1.0 requests, long chunk extensions and an unasked 101 are all refused.

pub(crate) mod body;
mod chunk;
mod connection;
pub(crate) mod encode;
pub(crate) mod fields;
pub(crate) mod io;
mod names;
pub(crate) mod outgoing;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod server;
mod target;
#[cfg(test)]
mod tests;

/// How a message's body is delimited on the wire (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Until the peer closes: old responses, and tunnels both ways.
    UntilClose,
}
