//! `envoy.extensions.filters.http.on_demand.v3.OnDemand`: holds a request that has no route while its routes are asked for, and
//! begins it anew once they have come; what has come of its body is kept. Where nothing comes it goes on as it is.
//!
//! Acts: routes that come on demand. Clusters do not yet: `odcds` is refused.

use std::sync::Arc;

use tidegate_xds::pb::envoy::extensions::filters::http::on_demand::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::filter::{OverrideConfig, Verdict};
use super::{FilterFactory, HttpFilter, HttpFilterConfig, Overrides, Request, Step, StreamContext};
use crate::context::CompileContext;

const MESSAGE: &str = "envoy.extensions.filters.http.on_demand.v3.OnDemand";
const OVERRIDE: &str = "envoy.extensions.filters.http.on_demand.v3.PerRouteConfig";

struct Config;

struct Filter;

impl HttpFilterConfig for Config {
    fn new_stream(self: Arc<Self>, _: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter))
    }
}

impl HttpFilter for Filter {
    fn on_request<'a>(&'a mut self, request: &'a mut Request, stream: &'a mut StreamContext) -> Step<'a> {
        let asked = stream.lazy_routes.as_ref().filter(|_| stream.route.is_none());
        match asked.and_then(|routes| routes.ask(&request.head)) {
            None => Step::Continue,
            Some(answer) => Step::wait(async move {
                if answer.await {
                    stream.recreate_stream();
                }
                Verdict::Continue
            }),
        }
    }
}

pub(super) struct Factory;

impl FilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn override_message(&self) -> Option<&'static str> {
        Some(OVERRIDE)
    }

    fn coverage(&self) -> &'static [Coverage] {
        COVERAGE
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
        context.decode::<pb::OnDemand>(config)?;
        Ok(Arc::new(Config))
    }

    fn compile_override(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
        context.decode::<pb::PerRouteConfig>(config)?;
        // All that it could say is of clusters.
        Ok(Arc::new(()))
    }
}

const COVERAGE: &[Coverage] = &[
    Coverage { message: MESSAGE, enforced: &[], listed: &[] },
    Coverage { message: OVERRIDE, enforced: &[], listed: &[] },
];

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;
    use crate::http::RequestHead;
    use crate::http::filter::{Asking, Lacking, LazyRoutes};
    use crate::http::testing::*;

    /// Routes that come or do not, and how often they were asked for.
    struct Routes(Option<bool>, AtomicU32);

    impl LazyRoutes for Routes {
        fn ask(&self, _: &RequestHead, seen: u64) -> Option<Asking> {
            assert_eq!(seen, 7);
            self.1.fetch_add(1, Relaxed);
            let comes = self.0?;
            Some(Box::pin(std::future::ready(comes)))
        }
    }

    #[tokio::test]
    async fn a_request_without_a_route_waits_and_begins_anew_where_one_has_come() {
        for (has_route, comes, asked, anew) in [
            (true, Some(true), 0, false),
            (false, None, 1, false),
            (false, Some(false), 1, false),
            (false, Some(true), 1, true),
        ] {
            let mut filter = Bench::new(&Factory).filter("{}").unwrap();
            let (routes, mut stream) = (Arc::new(Routes(comes, AtomicU32::new(0))), stream());
            stream.lazy_routes = Some(Lacking { routes: Arc::clone(&routes) as _, seen: 7 });
            stream.route = stream.route.filter(|_| has_route);
            let reply = on_request(&mut *filter, &mut get("/", &[]), &mut stream).await;
            assert!(reply.is_none());
            assert_eq!((routes.1.load(Relaxed), stream.asks.recreate), (asked, anew), "{has_route} {comes:?}");
        }
    }

    #[test]
    fn clusters_on_demand_are_refused() {
        let error = Bench::new(&Factory).compile("odcds: {source: {ads: {}}}").err().unwrap();
        assert_eq!(error, "odcds: not supported yet: odcds");
    }
}
