//! `envoy.extensions.filters.http.header_mutation.v3.HeaderMutation`: changes the headers of requests and responses.
//!
//! Acts: all fields. The filter's mutations go first, then those of all levels of the route, the most specific first, or last
//! with `most_specific_header_mutations_wins`. Trailers are changed where there are any.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use tidegate_xds::pb::envoy::extensions::filters::http::header_mutation::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::OverrideConfig;
use super::header_mutations::{Direction, HeaderEdits};
use super::query_edits::{self, QueryEdits};
use super::{
    Body, BodyError, FilterFactory, Frame, HttpFilter, HttpFilterConfig, Overrides, Request, RequestHead, Response,
    ResponseHead, Step, StreamContext,
};
use crate::context::CompileContext;
use crate::format::FormatContext;
use crate::matching::{count, gather};
use crate::stream_info::StreamInfo;

const MESSAGE: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const PER_ROUTE: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";

struct Config {
    own: Arc<Mutations>,
    most_specific_last: bool,
}

#[derive(Default)]
struct Mutations {
    request: HeaderEdits,
    query: QueryEdits,
    request_trailers: HeaderEdits,
    response: HeaderEdits,
    response_trailers: HeaderEdits,
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

/// What values may refer to, beside the heads.
fn facts(stream: &StreamContext) -> FormatContext<'_> {
    FormatContext { route: stream.route.as_deref(), ..FormatContext::of(&stream.info) }
}

struct Filter {
    mutations: Vec<Arc<Mutations>>,
    /// The request, where the response's headers may depend on it.
    request: Option<Box<RequestHead>>,
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        for mutations in &self.mutations {
            mutations.request.apply_request(&mut request.head, facts(stream));
            mutations.query.apply(&mut request.head, &stream.info);
        }
        let dynamic =
            |mutations: &Arc<Mutations>| mutations.response.is_dynamic() || mutations.response_trailers.is_dynamic();
        self.request = self.mutations.iter().any(dynamic).then(|| Box::new(request.head.clone()));
        if self.mutations.iter().any(|mutations| !mutations.request_trailers.is_empty()) {
            let facts = Facts { info: stream.info.clone(), request: Some(request.head.clone()), response: None };
            self.edit_trailers(&mut request.body, Direction::Request, facts);
        }
        Step::Continue
    }

    fn on_response<'a>(&'a mut self, response: &'a mut Response, stream: &'a mut StreamContext) -> Step<'a> {
        for mutations in &self.mutations {
            mutations.response.apply_response(&mut response.head, self.request.as_deref(), facts(stream));
        }
        if self.mutations.iter().any(|mutations| !mutations.response_trailers.is_empty()) {
            let request = self.request.as_deref().cloned();
            let mut info = stream.info.clone();
            info.response_code = Some(response.head.status);
            let facts = Facts { info, request, response: Some(response.head.clone()) };
            self.edit_trailers(&mut response.body, Direction::Response, facts);
        }
        Step::Continue
    }
}

impl Filter {
    fn edit_trailers(&self, body: &mut Body, direction: Direction, facts: Facts) {
        if let Body::Stream(_) = body {
            let mutations = self.mutations.clone();
            *body = Body::stream(Edited { body: body.take(), direction, mutations, facts: Box::new(facts) });
        }
    }
}

/// What the values of trailers may refer to, as of the headers.
struct Facts {
    info: StreamInfo,
    request: Option<RequestHead>,
    response: Option<ResponseHead>,
}

/// A body whose trailers are changed.
struct Edited {
    body: Body,
    direction: Direction,
    mutations: Vec<Arc<Mutations>>,
    facts: Box<Facts>,
}

impl Edited {
    fn edit(&self, trailers: &mut HeaderMap) {
        let context = FormatContext {
            request: self.facts.request.as_ref(),
            response: self.facts.response.as_ref(),
            ..FormatContext::of(&self.facts.info)
        };
        for mutations in &self.mutations {
            let edits = match self.direction {
                Direction::Request => &mutations.request_trailers,
                Direction::Response => &mutations.response_trailers,
            };
            edits.apply_trailers(trailers, self.direction, &context);
        }
    }
}

impl http_body::Body for Edited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut frame = ready!(self.body.poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            self.edit(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::Body::size_hint(&self.body)
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

    fn works_upstream(&self) -> bool {
        true
    }

    fn coverage(&self) -> &'static [Coverage] {
        ALL_COVERAGE
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
        enforced: &[
            "request_mutations",
            "query_parameter_mutations",
            "response_mutations",
            "response_trailers_mutations",
            "request_trailers_mutations",
        ],
        listed: &[],
    },
];
const GROUPS: [&[Coverage]; 2] = [COVERAGE, query_edits::COVERAGE];
const ALL_COVERAGE: &[Coverage] = &gather::<{ count(&GROUPS) }>(&GROUPS);

impl Mutations {
    fn compile(mutations: Option<pb::Mutations>, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let Some(mutations) = mutations else { return Ok(Self::default()) };
        context.within("mutations", |context| {
            Ok(Self {
                request: HeaderEdits::compile("request_mutations", &mutations.request_mutations, context)?,
                query: QueryEdits::compile("query_parameter_mutations", &mutations.query_parameter_mutations, context)?,
                request_trailers: HeaderEdits::compile(
                    "request_trailers_mutations",
                    &mutations.request_trailers_mutations,
                    context,
                )?,
                response: HeaderEdits::compile("response_mutations", &mutations.response_mutations, context)?,
                response_trailers: HeaderEdits::compile(
                    "response_trailers_mutations",
                    &mutations.response_trailers_mutations,
                    context,
                )?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::whole;
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
        let error = bench.compile("mutations: {query_parameter_mutations: [{}]}").err().unwrap();
        assert_eq!(error, "mutations.query_parameter_mutations[0]: either append or remove must be set");
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn trailers_and_queries_are_changed_too() {
        let mut filter = Bench::new(&Factory)
            .filter(
                "mutations:
  request_trailers_mutations: [{append: {header: {key: x-added, value: 'r-%REQ(:method)%'}}}, {remove: x-gone}]
  response_trailers_mutations: [{remove_on_match: {key_matcher: {prefix: x-tmp-}}}]
  query_parameter_mutations: [{append: {record: {key: a, value: '1'}, action: ADD_IF_ABSENT}}, {remove: gone}]",
            )
            .unwrap();
        let mut stream = stream();
        let trailers = |name: &'static str| whole(Bytes::from_static(b"x"), Some(header_map(&[(name, "1")])));
        let mut asked = request(http::Method::POST, "/?z=%41&gone=1", &[], trailers("x-gone"));
        now(on_request(&mut *filter, &mut asked, &mut stream));
        assert_eq!(asked.head.path, "/?a=1&z=A");
        assert_eq!(lines(&now(drain(&mut asked.body)).unwrap().1), ["x-added: r-POST"]);
        let mut out = response(200, &[], trailers("x-tmp-a"));
        now(on_response(&mut *filter, &mut out, &mut stream));
        assert_eq!(lines(&now(drain(&mut out.body)).unwrap().1), Vec::<String>::new());
    }
}
