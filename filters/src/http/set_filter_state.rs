//! `envoy.extensions.filters.http.set_filter_state.v3.Config`: puts formatted text into a request's filter state.
//!
//! Acts: all fields. After the filter's values come those of all levels of the route, the least specific first.

use std::sync::Arc;

use tidegate_xds::pb::envoy::extensions::filters::http::set_filter_state::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::{FilterFactory, HttpFilter, HttpFilterConfig, Overrides, Request, Step, StreamContext};
use crate::context::CompileContext;
use crate::filter_state_value::{self, FilterStateValue};
use crate::format::FormatContext;
use crate::matching::{count, gather};

const MESSAGE: &str = "envoy.extensions.filters.http.set_filter_state.v3.Config";

struct Config {
    values: Vec<FilterStateValue>,
    clear_route_cache: bool,
}

/// Those of a route's levels, least specific first.
struct Levels(Vec<Arc<Config>>);

struct Filter {
    config: Arc<Config>,
    levels: Option<Arc<Levels>>,
}

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter { config: self, levels: overrides.shared() }))
    }
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let levels = self.levels.iter().flat_map(|levels| &levels.0);
        for config in std::iter::once(&self.config).chain(levels) {
            for value in &config.values {
                let context = FormatContext { request: Some(&request.head), ..FormatContext::of(&stream.info) };
                if let Some(text) = value.render(&context) {
                    value.set(text, &mut stream.info.filter_state);
                }
            }
            if config.clear_route_cache {
                stream.clear_route_cache();
            }
        }
        Step::Continue
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(MESSAGE)
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        Ok(Arc::new(Config::compile(config, context)?))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        Ok(Arc::new(Levels(vec![Arc::new(Config::compile(config, context)?)])))
    }

    fn merge(&self, levels: &[OverrideConfig]) -> Option<OverrideConfig> {
        let levels = levels.iter().filter_map(|level| level.downcast_ref::<Levels>());
        Some(Arc::new(Levels(levels.flat_map(|level| level.0.iter().cloned()).collect())))
    }
}

impl Config {
    fn compile(config: &[u8], context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let config: pb::Config = context.decode(config)?;
        let values = FilterStateValue::compile_all("on_request_headers", &config.on_request_headers, context)?;
        Ok(Self { values, clear_route_cache: config.clear_route_cache })
    }
}

const GROUPS: [&[Coverage]; 2] = [OWN_COVERAGE, filter_state_value::COVERAGE];
const COVERAGE: &[Coverage] = &gather::<{ count(&GROUPS) }>(&GROUPS);
const OWN_COVERAGE: &[Coverage] =
    &[Coverage { message: MESSAGE, enforced: &["on_request_headers", "clear_route_cache"], listed: &[] }];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::*;

    #[test]
    fn text_is_formatted_into_filter_state() {
        let bench = Bench::new(&Factory);
        let mut filter = bench
            .filter(
                "clear_route_cache: true
on_request_headers:
- {object_key: k, factory_key: envoy.string, format_string: {text_format_source: {inline_string: 'p=%REQ(:path)%'}}}
- object_key: none
  factory_key: envoy.string
  skip_if_empty: true
  format_string: {text_format_source: {inline_string: '%REQ(x)%'}, omit_empty_values: true}",
            )
            .unwrap();
        let mut stream = stream();
        now(on_request(&mut *filter, &mut get("/p", &[]), &mut stream));
        let text = |key: &str| stream.info.filter_state.get(key).and_then(|object| object.text());
        assert_eq!((text("k").as_deref(), text("none")), (Some("p=/p"), None));
        assert!(stream.asks.clear_route);
        let level = |name: &str| {
            format!(
                "on_request_headers: [{{object_key: k, factory_key: envoy.string, format_string: {{text_format_source: \
                 {{inline_string: '%FILTER_STATE(k:PLAIN)%,{name}'}}}}}}]"
            )
        };
        let mut filter = bench.filter_with(&level("own"), &[&level("host"), &level("route")]).unwrap();
        let mut stream = super::super::testing::stream();
        now(on_request(&mut *filter, &mut get("/p", &[]), &mut stream));
        let text = stream.info.filter_state.get("k").and_then(|object| object.text());
        assert_eq!(text.as_deref(), Some("-,own,host,route"));
        let unknown = "on_request_headers: [{object_key: k, format_string: {text_format_source: {inline_string: x}}}]";
        let error = "on_request_headers[0].factory_key: not supported yet: objects of 'k'";
        assert_eq!(bench.compile(unknown).err().unwrap(), error);
    }
}
