//! `envoy.extensions.filters.network.sni_cluster.v3.SniCluster`: the name that a client asks for (SNI) is the cluster that a TCP proxy
//! behind it takes. It must not know proxies.

use std::sync::Arc;

use tidegate_xds::pb::envoy::extensions::filters::network::sni_cluster::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{NetworkFilter, NetworkFilterConfig, NetworkFilterFactory, NetworkStep};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;
use crate::filter_state_value::tcp_proxy::CLUSTER;
use crate::metadata::{Sharing, Text};
use crate::runtime::Runtime;

const MESSAGE: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";

struct Config;

impl NetworkFilterConfig for Config {
    fn new_connection(self: Arc<Self>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter))
    }
}

struct Filter;

impl NetworkFilter for Filter {
    fn on_connection<'a>(&'a mut self, connection: &'a mut ConnectionInfo, _: &'a dyn Runtime) -> NetworkStep<'a> {
        if let Some(name) = connection.requested_server_name.as_deref().filter(|name| !name.is_empty()) {
            let cluster = Arc::new(Text(name.to_owned()));
            // What another filter has fixed stays.
            connection.filter_state.set(CLUSTER, cluster, false, Sharing::None);
        }
        NetworkStep::Continue
    }
}

pub(super) struct Factory;

impl NetworkFilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        const { &[Coverage { message: MESSAGE, enforced: &[], listed: &[] }] }
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn NetworkFilterConfig>, FieldError> {
        let _: pb::SniCluster = context.decode(config)?;
        Ok(Arc::new(Config))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn the_name_is_the_cluster() {
        let bench = Bench::new(&Factory);
        let named = |name: Option<&str>| {
            let mut connection = connection();
            connection.requested_server_name = name.map(Into::into);
            let mut filter = bench.compile("{}").unwrap().new_connection().unwrap();
            assert!(matches!(filter.on_connection(&mut connection, &NoRuntime), NetworkStep::Continue));
            connection.filter_state.get(CLUSTER).and_then(|cluster| cluster.text())
        };
        assert_eq!(named(Some("a.test")).as_deref(), Some("a.test"));
        assert_eq!((named(Some("")), named(None)), (None, None));
    }
}
