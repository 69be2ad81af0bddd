//! The contract of listener filters: they look at an accepted connection's first bytes and say what it is, before a
//! filter chain is chosen. They must not know sockets beyond what is handed to them.

mod client_hello;
mod disabled;
mod fingerprint;
mod http_inspector;
mod md5;
mod original_dst;
mod proxy_header;
mod proxy_protocol;
#[cfg(test)]
mod testing;
mod tls_inspector;
mod tlvs;

use std::net::SocketAddr;

pub use disabled::{COVERAGE as DISABLED_COVERAGE, Disabled};
pub use original_dst::original_destination;
use tidegate_xds::{Coverage, FieldError};
pub use tlvs::{HOST_TLVS, PassedTlvs, host_tlvs};

use crate::connection::ConnectionInfo;
use crate::context::CompileContext;

/// What a listener filter answers to the bytes seen so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Inspect {
    /// Done; `consume` bytes were the filter's own (a PROXY header) and nobody else sees them.
    Done { consume: usize },
    /// More bytes are needed.
    NeedMore,
    /// Close the connection.
    Reject(&'static str),
}

/// A socket, as far as a listener filter may ask.
pub trait AcceptedSocket {
    /// `SO_ORIGINAL_DST`: where the connection was going before it was redirected here.
    fn original_destination(&self) -> Option<SocketAddr>;
}

/// One filter of one accepted connection.
pub trait ListenerFilter: Send {
    /// Bytes that it may ask to look at; 0 for none, and then it runs at once with an empty slice.
    fn max_read_bytes(&self) -> usize;

    /// `bytes` holds all that was peeked so far; `end` says that the peer sends no more.
    fn on_data(
        &mut self,
        bytes: &[u8],
        end: bool,
        connection: &mut ConnectionInfo,
        socket: &dyn AcceptedSocket,
    ) -> Inspect;
}

/// A listener filter's compiled configuration.
pub trait ListenerFilterConfig: Send + Sync {
    /// False where it is to be discovered and has not come: connections are closed.
    fn is_there(&self) -> bool {
        true
    }

    /// A filter for one connection; `None` where `filter_disabled` says so.
    fn new_connection(&self, connection: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>>;
}

/// Makes a listener filter's configuration from its proto; registered in one sorted list.
pub trait ListenerFilterFactory: Send + Sync {
    fn message(&self) -> &'static str;
    fn coverage(&self) -> &'static [Coverage];
    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Box<dyn ListenerFilterConfig>, FieldError>;
}

/// Every built-in one, sorted by message: one line each.
pub const FACTORIES: &[&dyn ListenerFilterFactory] =
    &[&http_inspector::Factory, &original_dst::Factory, &proxy_protocol::Factory, &tls_inspector::Factory];

#[cfg(test)]
mod tests {
    use super::FACTORIES;

    #[test]
    fn factories_are_sorted_and_cover_what_exists() {
        assert!(FACTORIES.is_sorted_by_key(|factory| factory.message()));
        for factory in FACTORIES {
            let mistakes: Vec<_> = factory.coverage().iter().flat_map(tidegate_xds::Coverage::mistakes).collect();
            assert!(mistakes.is_empty(), "{}: {mistakes:#?}", factory.message());
        }
    }
}
