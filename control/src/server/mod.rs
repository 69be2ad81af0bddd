//! The server's side of xDS (<https://www.envoyproxy.io/docs/envoy/v1.40.0/api-docs/xds_protocol>): what there is, what
//! each client asked for, and what it is told. It must not know what a resource means, nor where it comes from.
//!
//! [`Sotw`] and [`Delta`] are the two dialects of one stream, without sockets; [`Server`] is gRPC and HTTP around them.

mod clients;
pub(crate) mod connections;
mod delta;
mod fetch;
mod groups;
mod loads;
mod past;
mod refusal;
pub mod resource_set;
mod rollout;
pub(crate) mod services;
mod sotw;
mod status;
mod stream;
mod subscription;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;

use std::sync::Arc;
use std::time::Instant;

pub use clients::{Client, Clients};
pub use delta::Delta;
pub use groups::{Group, REST, Sets};
pub use loads::{Load, Loads};
pub use past::Past;
pub use resource_set::{Resource, ResourceSet, ResourceType};
pub use services::{Options, Server};
pub use sotw::Sotw;
pub use status::{Counts, News, Refusal, ResourceStatus, State, TypeStatus};
use tidegate_xds::pb::envoy::config::core::v3::ControlPlane;

use crate::client::WILDCARD;

/// One stream of a client, in one of the dialects.
pub trait Dialect: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    /// A stream that begins. `aggregated`: it is of many types, whose order matters. `past`: what a client that comes back may
    /// have.
    fn new(set: Arc<ResourceSet>, aggregated: bool, control_plane: ControlPlane, past: Arc<Past>) -> Self;

    /// There is a newer set. What was not sent of the one before is skipped.
    fn update(&mut self, set: &Arc<ResourceSet>);

    /// The client said something. Gives what it refused, once for each version of what it was sent.
    fn receive(&mut self, request: Self::Request, now: Instant) -> Option<News>;

    /// What to say next; it counts as sent.
    fn next_response(&mut self, now: Instant) -> Option<Self::Response>;

    /// When [`Dialect::next_response`] is worth asking even if nothing happens.
    fn deadline(&self) -> Option<Instant>;

    /// How many names are asked for.
    fn names(&self) -> usize;

    /// How long all names are together that the client makes this hold.
    fn name_bytes(&self) -> usize;

    fn types(&self) -> Vec<TypeStatus>;

    fn resources(&self) -> Vec<ResourceStatus>;
}
