//! Routes that come when a request asks for them, as its filters see them. It must not know how they come.

use std::sync::Arc;

use tidegate_filters::http::RequestHead;
use tidegate_filters::http::filter::{Asking, Lacking, LazyRoutes};

use super::{Connection, Exchange};
use crate::demand::What;
use crate::http::options::RouteSource;
use crate::route::{Outcome, RouteTable, Scopes};

/// A host name is no longer, and a port has six more.
const LONGEST_HOST: usize = 253 + 6;

impl Connection {
    fn lacks(&self, head: &RequestHead) -> Option<What> {
        match &self.hcm.routes {
            RouteSource::Scoped(scoped) => match &scoped.scopes {
                Scopes::Discovered(source) => Some(What::Scope { source: Arc::clone(source), key: scoped.key(head)? }),
                Scopes::Inline(_) => None,
            },
            RouteSource::Rds(routes) => {
                let host = std::str::from_utf8(head.authority.as_bytes()).ok()?;
                let host = Some(host).filter(|host| !host.is_empty() && host.len() <= LONGEST_HOST)?;
                Some(What::Host { routes: Arc::clone(routes), host: host.to_ascii_lowercase() })
            }
            RouteSource::Inline(_) => None,
        }
    }
}

impl LazyRoutes for Connection {
    fn ask(&self, head: &RequestHead, seen: u64) -> Option<Asking> {
        let answer = self.shared.demands().ask(self.lacks(head)?, seen)?;
        Some(Box::pin(async move { answer.await.unwrap_or(false) }))
    }
}

impl Exchange<'_> {
    /// What could still come for a request that found no route in this table. Virtual hosts of a scope's routes are not asked for,
    /// as in Envoy.
    pub(super) fn lazy_routes(&self, outcome: &Outcome, table: Option<&RouteTable>) -> Option<Lacking> {
        if !matches!(outcome, Outcome::NoRoute(_) | Outcome::NoVirtualHost) {
            return None;
        }
        let comes = match &self.connection.hcm.routes {
            RouteSource::Scoped(scoped) => matches!(scoped.scopes, Scopes::Discovered(_)),
            RouteSource::Rds(_) => table.is_some_and(|table| table.config.discovers_hosts),
            RouteSource::Inline(_) => false,
        };
        let seen = self.configuration.as_ref().map_or(0, |snapped| snapped.snapshot.version);
        comes.then(|| Lacking { routes: Arc::clone(self.connection) as _, seen })
    }
}
