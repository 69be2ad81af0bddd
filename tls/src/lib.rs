//! TLS on rustls with aws-lc-rs, both ways: certificates and keys, what is trusted, the contexts of listeners and clusters, and
//! their handshakes (Envoy's `transport_sockets/tls`). It must not know configuration messages, who connects, or what is said
//! once a handshake is over.

pub mod certificate;
pub mod client;
pub mod failure;
mod hello;
pub mod identity;
mod kept;
mod names;
pub mod ocsp;
pub mod parameters;
mod pem;
pub mod server;
pub mod session;
mod signing;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod tickets;
pub mod validation;
mod verifier;

pub use certificate::Certificate;
pub use client::{ClientContext, ClientSettings};
pub use failure::Failure;
pub use identity::Identity;
pub use parameters::Parameters;
pub use server::{ServerContext, ServerSettings, Staple};
pub use session::Session;
pub use stream::TlsStream;
pub use validation::Validation;

/// Why secrets or settings are refused. It says what is wrong, never what a key is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Refused {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
