//! For tests of listener filters: a filter from a configuration's text, and bytes shown to it.
//! It must not know any filter.

use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_stats::Store;
use tidegate_xds::FieldPath;

use super::{AcceptedSocket, Inspect, ListenerFilter, ListenerFilterConfig, ListenerFilterFactory};
use crate::connection::ConnectionInfo;
use crate::context::{CompileContext, Defaults, Needs};
pub(super) use crate::http::testing::connection;
use crate::http::testing::{checked, counted};

pub(super) struct Bench {
    store: Arc<Store>,
    factory: &'static dyn ListenerFilterFactory,
}

impl Bench {
    pub(super) fn new(factory: &'static dyn ListenerFilterFactory) -> Self {
        Self { store: Store::new(), factory }
    }

    pub(super) fn compile(&self, yaml: &str) -> Result<Box<dyn ListenerFilterConfig>, String> {
        let bytes = checked(self.factory.message(), yaml, self.factory.coverage())?;
        let mut needs = Needs::default();
        let mut context = CompileContext {
            resource: "r",
            path: FieldPath::root(),
            defaults: Defaults::Envoy,
            stats: self.store.root(),
            needs: &mut needs,
        };
        self.factory.compile(&bytes, &mut context).map_err(|error| format!("{}: {}", error.path, error.reason))
    }

    pub(super) fn filter(&self, yaml: &str, connection: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>> {
        self.compile(yaml).unwrap().new_connection(connection)
    }

    pub(super) fn counted(&self) -> Vec<String> {
        counted(&self.store)
    }
}

/// A socket that was redirected, or not.
pub(super) struct Socket(pub Option<SocketAddr>);

impl AcceptedSocket for Socket {
    fn original_destination(&self) -> Option<SocketAddr> {
        self.0
    }
}

impl dyn ListenerFilter {
    /// Shows it bytes, more to come.
    pub(super) fn inspect(&mut self, bytes: &[u8], connection: &mut ConnectionInfo) -> Inspect {
        self.on_data(bytes, false, connection, &Socket(None))
    }
}
