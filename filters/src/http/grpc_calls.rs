//! Counters of gRPC calls by cluster, service and method (Envoy's `Grpc::Context`): `cluster.<name>.<kind>.<service>.<method>.*`.
//! It must not know which filter counts, nor what a message is.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName};
use parking_lot::Mutex;
use tidegate_stats::Scope;

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Paths come from clients: past so many names nothing more is counted apart.
const MOST_NAMES: usize = 4096;

/// The scopes that one filter counts in; they stay for as long as its configuration.
pub(super) struct Calls {
    root: Scope,
    /// `grpc` or `grpc-web`.
    kind: &'static str,
    scopes: Mutex<HashMap<String, Scope>>,
}

/// Service and method of a gRPC path.
pub(super) fn service_and_method(path: &[u8]) -> Option<(&str, &str)> {
    let path = std::str::from_utf8(path).ok()?;
    path.strip_prefix('/')?.split_once('/').filter(|(_, method)| !method.contains('/'))
}

impl Calls {
    pub(super) fn new(root: Scope, kind: &'static str) -> Self {
        Self { root, kind, scopes: Mutex::default() }
    }

    /// The scope of one method of a cluster, or of all of them.
    pub(super) fn scope(&self, cluster: &str, method: Option<(&str, &str)>) -> Option<Scope> {
        let mut name = format!("cluster.{}.{}.", cluster.replace(':', "_"), self.kind);
        if let Some((service, method)) = method {
            name.push_str(service);
            name.push('.');
            name.push_str(method);
            name.push('.');
        }
        let mut scopes = self.scopes.lock();
        if let Some(scope) = scopes.get(&name) {
            return Some(scope.clone());
        }
        if scopes.len() >= MOST_NAMES {
            return None;
        }
        let scope = self.root.scope(&name);
        scopes.insert(name, scope.clone());
        Some(scope)
    }
}

/// Counts the status that headers or trailers tell, if they do.
pub(super) fn count_status(scope: &Scope, headers: &HeaderMap) {
    let Some(status) = headers.get(GRPC_STATUS).and_then(|value| value.to_str().ok()) else { return };
    // A name is made of what the upstream says: only of numbers, then.
    if status.parse::<u8>().is_ok() {
        scope.counter(status).inc();
        scope.counter(if status == "0" { "success" } else { "failure" }).inc();
        scope.counter("total").inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_stats::Store;

    #[test]
    fn what_was_counted_stays_after_the_call() {
        let store = Store::new();
        let calls = Calls::new(store.root(), "grpc");
        let status = std::iter::once((GRPC_STATUS, http::HeaderValue::from_static("5"))).collect();
        count_status(&calls.scope("a:b", service_and_method(b"/s.S/M")).unwrap(), &status);
        let counted = crate::http::testing::counted(&store);
        assert_eq!(
            counted,
            ["cluster.a_b.grpc.s.S.M.5: 1", "cluster.a_b.grpc.s.S.M.failure: 1", "cluster.a_b.grpc.s.S.M.total: 1"]
        );
        assert_eq!(service_and_method(b"/a/b/c"), None);
    }

    #[test]
    fn clients_cannot_make_names_without_end() {
        let calls = Calls::new(Store::new().root(), "grpc");
        let named = (0..MOST_NAMES + 5).filter(|n| calls.scope("c", Some(("s", &n.to_string()))).is_some());
        assert_eq!(named.count(), MOST_NAMES);
    }
}
