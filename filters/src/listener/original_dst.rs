//! `envoy.extensions.filters.listener.original_dst.v3.OriginalDst`: where a connection was going before the kernel redirected
//! it here becomes its local address, by which listeners and chains are chosen.
//!
//! It has no fields. Not done: `traffic_direction` of Windows, and internal listeners' original destinations.

use std::sync::Arc;

use tidegate_xds::pb::envoy::extensions::filters::listener::original_dst::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{AcceptedSocket, Inspect, ListenerFilter, ListenerFilterConfig, ListenerFilterFactory};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;
use crate::stream_info::Address;

const MESSAGE: &str = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst";

struct Config;

impl ListenerFilterConfig for Config {
    fn new_connection(&self, _: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>> {
        Some(Box::new(Filter))
    }
}

struct Filter;

impl ListenerFilter for Filter {
    fn max_read_bytes(&self) -> usize {
        0
    }

    fn on_data(&mut self, _: &[u8], _: bool, connection: &mut ConnectionInfo, socket: &dyn AcceptedSocket) -> Inspect {
        if let Some(address) = socket.original_destination() {
            connection.local = Address::Ip(address);
            connection.local_restored = true;
        }
        Inspect::Done { consume: 0 }
    }
}

/// The filter that a listener has without naming it (`use_original_dst`).
pub fn original_destination() -> Arc<dyn ListenerFilterConfig> {
    Arc::new(Config)
}

pub(super) struct Factory;

impl ListenerFilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        &[Coverage { message: MESSAGE, enforced: &[], listed: &[] }]
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Box<dyn ListenerFilterConfig>, FieldError> {
        let pb::OriginalDst {} = context.decode(config)?;
        Ok(Box::new(Config))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn the_original_destination_is_the_local_address() {
        let bench = Bench::new(&Factory);
        let mut connection = connection();
        let before = connection.local.clone();
        let mut filter = bench.filter("{}", &connection).unwrap();
        filter.on_data(&[], false, &mut connection, &Socket(None));
        assert_eq!((&connection.local, connection.local_restored), (&before, false));
        filter.on_data(&[], false, &mut connection, &Socket(Some("1.2.3.4:5".parse().unwrap())));
        assert_eq!((connection.local.to_string().as_str(), connection.local_restored), ("1.2.3.4:5", true));
    }
}
