//! `envoy.extensions.filters.network.set_filter_state.v3.Config`: puts formatted text into a connection's filter state.
//! It must not know who reads it.
//!
//! Acts: `on_new_connection`, for objects that `envoy.string` makes. Refused: what waits for data or for TLS.

use std::sync::Arc;
use std::time::SystemTime;

use tidegate_xds::pb::envoy::extensions::filters::network::set_filter_state::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{NetworkFilter, NetworkFilterConfig, NetworkFilterFactory, NetworkStep};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;
use crate::filter_state_value::{self, FilterStateValue};
use crate::format::FormatContext;
use crate::matching::{count, gather};
use crate::runtime::Runtime;
use crate::stream_info::StreamInfo;

const MESSAGE: &str = "envoy.extensions.filters.network.set_filter_state.v3.Config";

struct Config(Vec<FilterStateValue>);

impl NetworkFilterConfig for Config {
    fn new_connection(self: Arc<Self>) -> Option<Box<dyn NetworkFilter>> {
        (!self.0.is_empty()).then(|| Box::new(Filter(self)) as _)
    }
}

struct Filter(Arc<Config>);

impl NetworkFilter for Filter {
    fn on_connection<'a>(
        &'a mut self,
        connection: &'a mut ConnectionInfo,
        runtime: &'a dyn Runtime,
    ) -> NetworkStep<'a> {
        for value in &self.0.0 {
            let info = StreamInfo::new(Arc::new(connection.clone()), connection.start, SystemTime::now());
            let context = FormatContext { runtime, ..FormatContext::of(&info) };
            if let Some(text) = value.render(&context) {
                value.set(text, &mut connection.filter_state);
            }
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
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn NetworkFilterConfig>, FieldError> {
        let config: pb::Config = context.decode(config)?;
        let values = FilterStateValue::compile_all("on_new_connection", &config.on_new_connection, context)?;
        Ok(Arc::new(Config(values)))
    }
}

const GROUPS: [&[Coverage]; 2] = [OWN_COVERAGE, filter_state_value::COVERAGE];
const COVERAGE: &[Coverage] = &gather::<{ count(&GROUPS) }>(&GROUPS);
const OWN_COVERAGE: &[Coverage] = &[Coverage { message: MESSAGE, enforced: &["on_new_connection"], listed: &[] }];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::*;

    #[test]
    fn later_values_see_earlier_ones() {
        let bench = Bench::new(&Factory);
        let config = bench.compile(
            "on_new_connection:
- {object_key: a, factory_key: envoy.string, format_string: {text_format_source: {inline_string: 'from %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%'}}}
- {object_key: b, factory_key: envoy.string, format_string: {text_format_source: {inline_string: '<%FILTER_STATE(a:PLAIN)%>'}}}",
        );
        let mut filter = config.unwrap().new_connection().unwrap();
        let mut connection = connection();
        assert_eq!(closed(filter.on_connection(&mut connection, &NoRuntime)), None);
        let text = |key: &str| connection.filter_state.get(key).and_then(|object| object.text());
        assert_eq!(text("b").as_deref(), Some("<from 127.0.0.1>"));
        let late = bench.compile("on_downstream_data: [{object_key: a, factory_key: envoy.string}]");
        assert!(late.err().unwrap().starts_with("on_downstream_data"));
    }
}
