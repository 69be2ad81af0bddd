//! `envoy.extensions.filters.http.header_mutation.v3.HeaderMutation`: changes the headers of requests and responses.
//!
//! Acts: `request_mutations` and `response_mutations` of the filter, then those of all levels of the route, the most
//! specific first, or last with `most_specific_header_mutations_wins`. Query parameters and trailers are refused.

use std::any::Any;
use std::sync::Arc;

use tidegate_xds::pb::envoy::extensions::filters::http::header_mutation::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::header_mutations::HeaderEdits;
use super::{
    FilterFactory, HttpFilter, HttpFilterConfig, Overrides, Request, RequestHead, Response, Step, StreamContext,
};
use crate::context::CompileContext;

const MESSAGE: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const PER_ROUTE: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";

struct Config {
    own: Arc<Mutations>,
    most_specific_last: bool,
}

#[derive(Default)]
struct Mutations {
    request: HeaderEdits,
    response: HeaderEdits,
}

/// Those of a route's levels, least specific first.
struct Levels(Vec<Arc<Mutations>>);

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        let mut mutations = vec![Arc::clone(&self.own)];
        let levels = overrides.get::<Levels>().into_iter().flat_map(|levels| levels.0.iter().cloned());
        mutations.extend(levels);
        if !self.most_specific_last {
            mutations[1..].reverse();
        }
        Some(Box::new(Filter { mutations, request: None }))
    }
}

struct Filter {
    mutations: Vec<Arc<Mutations>>,
    /// The request, where the response's headers may depend on it.
    request: Option<Box<RequestHead>>,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        for mutations in &self.mutations {
            mutations.request.apply_request(&mut request.head, &stream.info);
        }
        let dynamic = self.mutations.iter().any(|mutations| mutations.response.is_dynamic());
        self.request = dynamic.then(|| Box::new(request.head.clone()));
        Step::Continue
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, stream: &'a mut StreamContext) -> Step<'a> {
        for mutations in &self.mutations {
            mutations.response.apply_response(&mut response.head, self.request.as_deref(), &stream.info);
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
        Some(PER_ROUTE)
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        let config: pb::HeaderMutation = context.decode(config)?;
        let own = Arc::new(Mutations::compile(config.mutations, context)?);
        Ok(Arc::new(Config { own, most_specific_last: config.most_specific_header_mutations_wins }))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        let config: pb::HeaderMutationPerRoute = context.decode(config)?;
        Ok(Arc::new(Levels(vec![Arc::new(Mutations::compile(config.mutations, context)?)])))
    }

    fn merge(&self, levels: &[OverrideConfig]) -> Option<OverrideConfig> {
        let levels = levels.iter().filter_map(|level| level.downcast_ref::<Levels>());
        let all: Arc<dyn Any + Send + Sync> =
            Arc::new(Levels(levels.flat_map(|level| level.0.iter().cloned()).collect()));
        Some(all)
    }
}

const COVERAGE: &[Coverage] = &[
    Coverage { message: MESSAGE, enforced: &["mutations", "most_specific_header_mutations_wins"], listed: &[] },
    Coverage { message: PER_ROUTE, enforced: &["mutations"], listed: &[] },
    Coverage {
        message: "envoy.extensions.filters.http.header_mutation.v3.Mutations",
        enforced: &["request_mutations", "response_mutations"],
        listed: &[],
    },
];

impl Mutations {
    fn compile(mutations: Option<pb::Mutations>, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let Some(mutations) = mutations else { return Ok(Self::default()) };
        context.within("mutations", |context| {
            Ok(Self {
                request: HeaderEdits::compile("request_mutations", &mutations.request_mutations, context)?,
                response: HeaderEdits::compile("response_mutations", &mutations.response_mutations, context)?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;
    use crate::http::testing::*;

    fn level(value: &str) -> String {
        format!(
            "mutations: {{request_mutations: [{{append: {{append_action: OVERWRITE_IF_EXISTS_OR_ADD, header: {{key: x-w, \
             value: {value}}}}}}}, {{append: {{header: {{key: x-{value}, value: '%REQ(x-w)%'}}}}}}]}}"
        )
    }

    #[test]
    fn all_levels_act_in_their_order() {
        let bench = Bench::new(&Factory);
        let levels = [level("host"), level("route")];
        let levels = levels.each_ref().map(String::as_str);
        let pass = |config: &str| {
            let mut filter = bench.filter_with(config, &levels).unwrap();
            let mut request = get("/p", &[("gone", "1")]);
            now(on_request(&mut *filter, &mut request, &mut stream()));
            lines(&request.head.headers)
        };
        assert_eq!(pass("{}"), ["gone: 1", "x-host: host", "x-route: route", "x-w: host"]);
        let config = "{most_specific_header_mutations_wins: true, mutations: {request_mutations: [{remove: gone}]}}";
        assert_eq!(pass(config), ["x-host: host", "x-route: route", "x-w: route"]);
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn a_response_may_speak_of_its_request() {
        let mut filter = Bench::new(&Factory)
            .filter(
                "mutations:
  request_mutations: [{append: {header: {key: x-r, value: '%REQ(:path)%'}}}]
  response_mutations:
  - append: {header: {key: x-empty, value: '%REQ(nope)%'}}
  - append: {header: {key: x-keep, value: '%REQ(nope)%'}, keep_empty_value: true}
  - append: {header: {key: x-a, value: '%REQ(x-r)% %RESP(x-b)%'}}
  - remove: x-b",
            )
            .unwrap();
        let mut stream = stream();
        now(on_request(&mut *filter, &mut get("/p", &[]), &mut stream));
        let mut out = response(200, &[("x-b", "b")], Body::Empty);
        now(on_response(&mut *filter, &mut out, &mut stream));
        assert_eq!(lines(&out.head.headers), ["x-a: /p b", "x-keep: "]);
    }

    #[test]
    fn what_is_not_done_is_refused() {
        let bench = Bench::new(&Factory);
        let error = bench.compile("mutations: {request_mutations: [{append: {header: {key: ':path', value: x}}}]}");
        let place = "mutations.request_mutations[0].append.header.key: ";
        assert_eq!(error.err().unwrap(), format!("{place}:-prefixed or host headers may not be modified"));
        assert!(bench.compile("mutations: {query_parameter_mutations: [{remove: x}]}").is_err());
    }
}
