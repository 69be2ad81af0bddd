//! For tests of network filters: a connection without sockets, and a filter from a configuration's text.
//! It must not know any filter.

use std::sync::Arc;
use std::time::Instant;

use tidegate_stats::Store;
use tidegate_xds::FieldPath;

use super::{Arrival, NetworkFilterConfig, NetworkFilterFactory, NetworkStep};
use crate::connection::ConnectionInfo;
use crate::context::{CompileContext, Defaults, Needs};
use crate::http::testing::{checked, counted};
use crate::metadata::Metadata;
pub(crate) use crate::runtime::NoRuntime;
use crate::stream_info::Address;

/// A filter's factory under test, with the stats that it counts in.
pub(crate) struct Bench {
    store: Arc<Store>,
    factory: &'static dyn NetworkFilterFactory,
}

impl Bench {
    pub(crate) fn new(factory: &'static dyn NetworkFilterFactory) -> Self {
        Self { store: Store::new(), factory }
    }

    /// Compiles a configuration as the proxy does: decoded, validated and audited first.
    pub(crate) fn compile(&self, yaml: &str) -> Result<Arc<dyn NetworkFilterConfig>, String> {
        let bytes = checked(self.factory.message(), yaml, self.factory.coverage())?;
        let mut needs = Needs::default();
        let mut context = CompileContext {
            resource: "r",
            path: FieldPath::root(),
            defaults: Defaults::Envoy,
            stats: self.store.root().scope("listener.test."),
            needs: &mut needs,
        };
        self.factory.compile(&bytes, &mut context).map_err(|error| format!("{}: {}", error.path, error.reason))
    }

    /// The counters and gauges that are not 0.
    pub(crate) fn counted(&self) -> Vec<String> {
        counted(&self.store)
    }
}

/// A plain connection from 127.0.0.1:40000 to 127.0.0.1:8080.
pub(crate) fn connection() -> ConnectionInfo {
    let address = |port| Address::Ip(([127, 0, 0, 1], port).into());
    ConnectionInfo::new(1, address(40000), address(8080), Instant::now())
}

/// Bytes of a connection.
pub(crate) fn arrival<'a>(data: &'a [u8], connection: &'a ConnectionInfo, metadata: &'a mut Metadata) -> Arrival<'a> {
    Arrival { data, received: data.len() as u64, connection, metadata, runtime: &NoRuntime }
}

/// The details of a step that must not wait, when it closes.
pub(crate) fn closed(step: NetworkStep<'_>) -> Option<String> {
    match step {
        NetworkStep::Continue => None,
        NetworkStep::Close(closing) => Some(closing.reason.into_owned()),
        NetworkStep::Wait(_) => panic!("a wait"),
    }
}
