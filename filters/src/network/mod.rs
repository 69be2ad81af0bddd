//! The contract of network filters that stand before the last one of a chain: they let a connection in, or close it.
//! They must not know sockets; the last filter (HTTP, TCP proxy, …) is the proxy's own.

mod connection_limit;
mod local_ratelimit;
mod rbac;
mod set_filter_state;
mod sni_cluster;
#[cfg(test)]
pub(crate) mod testing;

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidegate_xds::pb::google::protobuf as wkt;
use tidegate_xds::{Coverage, FieldError};

use crate::connection::ConnectionInfo;
use crate::context::CompileContext;
use crate::metadata::Metadata;
use crate::runtime::Runtime;
use crate::stream_info::ResponseFlags;

/// What a network filter answers before a byte is read.
pub enum NetworkStep<'a> {
    Continue,
    /// Waits before the next filter sees the connection (a delayed rejection, a check elsewhere).
    Wait(Pin<Box<dyn Future<Output = NetworkVerdict> + Send + 'a>>),
    Close(Closing),
}

/// What a wait ends in.
pub enum NetworkVerdict {
    Continue,
    Close(Closing),
}

/// How a connection is closed, and what its log lines say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// Envoy's `%DOWNSTREAM_LOCAL_CLOSE_REASON%`.
    pub reason: Cow<'static, str>,
    /// Envoy's `%CONNECTION_TERMINATION_DETAILS%`.
    pub details: Option<Cow<'static, str>>,
    pub flags: ResponseFlags,
    /// How long the connection stays, unread, before it is closed.
    pub delay: Duration,
}

impl Closing {
    /// At once, with nothing for the log lines.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), details: None, flags: ResponseFlags::empty(), delay: Duration::ZERO }
    }
}

/// One filter of one connection; dropped when the connection ends.
pub trait NetworkFilter: Send {
    /// A connection was made: before any byte is read.
    fn on_connection<'a>(
        &'a mut self,
        connection: &'a mut ConnectionInfo,
        runtime: &'a dyn Runtime,
    ) -> NetworkStep<'a> {
        let _ = (connection, runtime);
        NetworkStep::Continue
    }

    /// Whether it decides without what a TLS handshake tells: then it is asked before there is one.
    fn goes_first(&self) -> bool {
        false
    }

    /// Whether `on_data` is of interest.
    fn reads_data(&self) -> bool {
        false
    }

    /// Bytes came from downstream, before the last filter sees them. What it closes is closed.
    fn on_data(&mut self, arrival: &mut Arrival<'_>) -> Option<Closing> {
        let _ = arrival;
        None
    }
}

/// Bytes from downstream, and what is known of the connection beside them.
pub struct Arrival<'a> {
    /// Empty when the client sends no more.
    pub data: &'a [u8],
    /// All bytes so far, these among them.
    pub received: u64,
    pub connection: &'a ConnectionInfo,
    /// The connection's dynamic metadata, which its log lines show.
    pub metadata: &'a mut Metadata,
    pub runtime: &'a dyn Runtime,
}

/// A network filter's compiled configuration.
pub trait NetworkFilterConfig: Send + Sync {
    /// False where it is to be discovered and has not come: connections are closed.
    fn is_there(&self) -> bool {
        true
    }

    fn new_connection(self: Arc<Self>) -> Option<Box<dyn NetworkFilter>>;
}

/// Makes a network filter's configuration from its proto; registered in one sorted list.
pub trait NetworkFilterFactory: Send + Sync {
    fn message(&self) -> &'static str;
    fn coverage(&self) -> &'static [Coverage];
    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn NetworkFilterConfig>, FieldError>;
}

/// Every built-in one, sorted by message: one line each.
pub const FACTORIES: &[&dyn NetworkFilterFactory] = &[
    &connection_limit::Factory,
    &local_ratelimit::Factory,
    &rbac::Factory,
    &set_filter_state::Factory,
    &sni_cluster::Factory,
];

/// A duration in whole milliseconds, as Envoy reads them; none is 0.
pub(crate) fn milliseconds(duration: Option<&wkt::Duration>) -> Duration {
    let Some(duration) = duration else { return Duration::ZERO };
    let (seconds, nanos) = (u64::try_from(duration.seconds), u32::try_from(duration.nanos));
    Duration::from_secs(seconds.unwrap_or(0)) + Duration::from_millis(u64::from(nanos.unwrap_or(0)) / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::FACTORIES;

    #[test]
    fn factories_are_sorted_and_cover_what_exists() {
        assert!(FACTORIES.is_sorted_by_key(|factory| factory.message()));
        for factory in FACTORIES {
            let mistakes: Vec<_> = factory.coverage().iter().flat_map(tidegate_xds::Coverage::mistakes).collect();
            assert!(mistakes.is_empty(), "{}: {mistakes:#?}", factory.message());
            assert!(factory.coverage().iter().any(|coverage| coverage.message == factory.message()));
        }
    }
}
