//! The client's side of xDS (<https://www.envoyproxy.io/docs/envoy/v1.40.0/api-docs/xds_protocol>), without sockets: what
//! to ask, what a response means, what to answer. It must not know how messages travel; time is handed in.
//!
//! [`Sotw`] and [`Delta`] are the two dialects of one stream, each for all types that share it (ADS) or for one; [`Rest`] is a
//! poll, which has no stream.

pub mod backoff;
mod delta;
mod interest;
pub mod rest;
mod sotw;
mod ttl;
pub mod xdstp;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use backoff::Backoff;
pub use delta::Delta;
pub use interest::Interest;
pub use rest::Rest;
pub use sotw::Sotw;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::pb::google::rpc::Status;

/// The name that asks for every resource of a type.
pub const WILDCARD: &str = "*";

/// The longest explanation that goes to the server with a rejection, in bytes; Envoy's bound.
const MAX_ERROR_BYTES: usize = 4096;

/// What a stream brought of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    pub type_url: String,
    /// The response's version (SotW) or `system_version_info` (delta).
    pub version: String,
    pub resources: Vec<Resource>,
    /// Names of what is gone. Only delta, and what outlived its TTL, says so.
    pub removed: Vec<String>,
    /// The resources are all there are: what is not among them is gone (SotW with a wildcard).
    pub whole: bool,
    /// It came on a stream that says only what changed.
    pub delta: bool,
}

/// One resource as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    pub name: String,
    /// Empty where nobody says it; shared with the state of the stream.
    pub version: Arc<str>,
    /// Other names that it was found by (VHDS).
    pub aliases: Vec<String>,
    /// None: there is no such resource (an alias that led nowhere).
    pub body: Option<Any>,
    pub ttl: Option<Duration>,
}

/// Who takes what comes.
pub trait Handler {
    /// The name of a resource that carries it in its own body; none for what cannot be read.
    fn name_of(&self, body: &Any) -> Option<String>;

    /// A response of this type was rejected before anyone could take it.
    fn rejected(&mut self, type_url: &str, reason: &str);

    /// Takes an update.
    ///
    /// # Errors
    /// Why it is rejected: the explanation that goes to the server.
    fn apply(&mut self, update: Update) -> Result<(), String>;
}

/// A rejection as it goes to the server: Envoy's code, and the explanation cut to a bounded length.
fn rejection(reason: &str) -> Status {
    const INTERNAL: i32 = 13;
    let said = beginning(reason, MAX_ERROR_BYTES);
    let cut = if said.len() < reason.len() { "...(truncated)" } else { "" };
    Status { code: INTERNAL, message: format!("{said}{cut}"), details: Vec::new() }
}

/// The beginning of a text, of so many bytes at most.
pub(crate) fn beginning(text: &str, longest: usize) -> &str {
    let mut end = text.len().min(longest);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A resource's time to live; one that is none, or no longer than nothing, never ends.
fn lifetime(ttl: Option<tidegate_xds::pb::google::protobuf::Duration>) -> Option<Duration> {
    let ttl = ttl?;
    let ttl = Duration::new(u64::try_from(ttl.seconds).ok()?, u32::try_from(ttl.nanos).ok()?);
    (!ttl.is_zero()).then_some(ttl)
}

/// When something is due, the earlier of two.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod testing;
