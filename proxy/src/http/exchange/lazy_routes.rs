//! Routes that come when a request asks for them, as its filters see them. It must not know how they come.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tidegate_filters::http::RequestHead;
use tidegate_filters::http::filter::LazyRoutes;

use super::{Connection, Exchange};
use crate::demand::What;
use crate::http::options::RouteSource;
use crate::route::{Outcome, Scopes};

/// Those of a request that found no route in a snapshot.
struct Lazy {
    connection: Arc<Connection>,
    /// That snapshot's version.
    seen: u64,
}

impl Lazy {
    fn lacks(&self, head: &RequestHead) -> Option<What> {
        match &self.connection.hcm.routes {
            RouteSource::Scoped(scoped) => match &scoped.scopes {
                Scopes::Discovered(source) => Some(What::Scope { source: Arc::clone(source), key: scoped.key(head)? }),
                Scopes::Inline(_) => None,
            },
            RouteSource::Inline(_) | RouteSource::Rds(_) => None,
        }
    }
}

impl LazyRoutes for Lazy {
    fn ask(&self, head: &RequestHead) -> Option<Pin<Box<dyn Future<Output = bool> + Send>>> {
        let answer = self.connection.shared.demands().ask(self.lacks(head)?, self.seen)?;
        Some(Box::pin(async move { answer.await.unwrap_or(false) }))
    }
}

impl Exchange<'_> {
    /// What could still come for a request that found no route.
    pub(super) fn lazy_routes(&self) -> Option<Arc<dyn LazyRoutes>> {
        let comes = match (&self.outcome, &self.connection.hcm.routes) {
            (Outcome::NoRoute(_) | Outcome::NoVirtualHost, RouteSource::Scoped(scoped)) => {
                matches!(scoped.scopes, Scopes::Discovered(_))
            }
            _ => false,
        };
        let seen = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.version);
        comes.then(|| Arc::new(Lazy { connection: Arc::clone(self.connection), seen }) as _)
    }
}
