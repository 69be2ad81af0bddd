//! `envoy.extensions.filters.network.set_filter_state.v3.Config`: puts formatted text into a connection's filter state.
//! It must not know who reads it.
//!
//! Acts: all fields. What waits for the end of a TLS handshake acts at once on a connection without TLS, as in Envoy; of one with
//! TLS, what does not wait sees no handshake yet.

use std::sync::Arc;
use std::time::SystemTime;

use tidegate_xds::pb::envoy::extensions::filters::network::set_filter_state::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{Arrival, Closing, NetworkFilter, NetworkFilterConfig, NetworkFilterFactory, NetworkStep};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;
use crate::filter_state_value::{self, FilterStateValue};
use crate::format::FormatContext;
use crate::matching::{count, gather};
use crate::runtime::Runtime;
use crate::stream_info::StreamInfo;

const MESSAGE: &str = "envoy.extensions.filters.network.set_filter_state.v3.Config";

struct Config {
    at_once: Vec<FilterStateValue>,
    on_handshake: Vec<FilterStateValue>,
    on_data: Vec<FilterStateValue>,
}

impl NetworkFilterConfig for Config {
    fn new_connection(self: Arc<Self>) -> Option<Box<dyn NetworkFilter>> {
        let idle = [&self.at_once, &self.on_handshake, &self.on_data].iter().all(|values| values.is_empty());
        (!idle).then(|| Box::new(Filter { config: self, saw_data: false }) as _)
    }
}

struct Filter {
    config: Arc<Config>,
    saw_data: bool,
}

impl NetworkFilter for Filter {
    fn on_connection<'a>(
        &'a mut self,
        connection: &'a mut ConnectionInfo,
        runtime: &'a dyn Runtime,
    ) -> NetworkStep<'a> {
        let tls = connection.tls.take();
        set(&self.config.at_once, connection, runtime);
        connection.tls = tls;
        set(&self.config.on_handshake, connection, runtime);
        if !self.config.on_data.is_empty() {
            connection.late_filter_state.get_or_insert_default();
        }
        NetworkStep::Continue
    }

    fn reads_data(&self) -> bool {
        !self.config.on_data.is_empty()
    }

    fn on_data(&mut self, arrival: &mut Arrival<'_>) -> Option<Closing> {
        if std::mem::replace(&mut self.saw_data, true) {
            return None;
        }
        let connection = arrival.connection;
        let late = connection.late_filter_state.as_ref()?;
        for value in &self.config.on_data {
            let mut info = StreamInfo::new(Arc::new(connection.clone()), connection.start, SystemTime::now());
            info.filter_state = connection.filter_state_now().into_owned();
            info.bytes.body_received = arrival.received;
            let context = FormatContext { runtime: arrival.runtime, ..FormatContext::of(&info) };
            if let Some(text) = value.render(&context) {
                value.set(text, &mut late.lock());
            }
        }
        None
    }
}

fn set(values: &[FilterStateValue], connection: &mut ConnectionInfo, runtime: &dyn Runtime) {
    for value in values {
        let info = StreamInfo::new(Arc::new(connection.clone()), connection.start, SystemTime::now());
        let context = FormatContext { runtime, ..FormatContext::of(&info) };
        if let Some(text) = value.render(&context) {
            value.set(text, &mut connection.filter_state);
        }
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
        let mut values = |field, values: &[_]| FilterStateValue::compile_all(field, values, context);
        Ok(Arc::new(Config {
            at_once: values("on_new_connection", &config.on_new_connection)?,
            on_handshake: values("on_downstream_tls_handshake", &config.on_downstream_tls_handshake)?,
            on_data: values("on_downstream_data", &config.on_downstream_data)?,
        }))
    }
}

const GROUPS: [&[Coverage]; 2] = [OWN_COVERAGE, filter_state_value::COVERAGE];
const COVERAGE: &[Coverage] = &gather::<{ count(&GROUPS) }>(&GROUPS);
const OWN_COVERAGE: &[Coverage] = &[Coverage {
    message: MESSAGE,
    enforced: &["on_new_connection", "on_downstream_tls_handshake", "on_downstream_data"],
    listed: &[],
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tls::testing::{peer, uri};
    use crate::metadata::Metadata;
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
    }

    fn value(key: &str, text: &str) -> String {
        format!(
            "[{{object_key: {key}, factory_key: envoy.string, format_string: {{text_format_source: {{inline_string: \
             '{text}'}}}}}}]"
        )
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn only_what_waits_for_the_handshake_sees_it() {
        let names = "%DOWNSTREAM_PEER_URI_SAN%";
        let [early, late] = [value("a", names), value("b", names)];
        let config = format!("{{on_new_connection: {early}, on_downstream_tls_handshake: {late}}}");
        let mut filter = Bench::new(&Factory).compile(&config).unwrap().new_connection().unwrap();
        let mut connection = connection();
        connection.tls = Some(Arc::new(peer(|params| params.subject_alt_names = vec![uri("spiffe://a/b")])));
        assert_eq!(closed(filter.on_connection(&mut connection, &NoRuntime)), None);
        let text = |key: &str| connection.filter_state.get(key).and_then(|object| object.text());
        assert_eq!((text("a").as_deref(), text("b").as_deref()), (Some("-"), Some("spiffe://a/b")));
        assert!(connection.tls.is_some());
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn what_waits_for_data_is_set_once() {
        let config = format!(
            "{{on_downstream_tls_handshake: {}, on_downstream_data: {}}}",
            value("a", "tls"),
            value("b", "%FILTER_STATE(a:PLAIN)%-%BYTES_RECEIVED%")
        );
        let mut filter = Bench::new(&Factory).compile(&config).unwrap().new_connection().unwrap();
        let mut connection = connection();
        assert_eq!(closed(filter.on_connection(&mut connection, &NoRuntime)), None);
        let text =
            |connection: &ConnectionInfo| connection.filter_state_now().get("b").and_then(|object| object.text());
        assert_eq!(text(&connection), None);
        for data in [&b"xy"[..], b"z"] {
            assert_eq!(filter.on_data(&mut arrival(data, &connection, &mut Metadata::default())), None);
        }
        assert_eq!(text(&connection).as_deref(), Some("tls-2"));
    }
}
