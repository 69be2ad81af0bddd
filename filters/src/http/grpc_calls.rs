//! Counters of gRPC calls by cluster, service and method (Envoy's `Grpc::Context`): `cluster.<name>.<kind>.<service>.<method>.*`.
//! It must not know which filter counts, nor what a message is.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderName};
use parking_lot::RwLock;
use tidegate_stats::{OwnedCounter, OwnedHistogram, Scope, Unit};

use super::named_counters::{LONGEST_NAME_BYTES, MOST_NAMES};

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// gRPC's own status codes, as they are written.
const CODES: [&str; 17] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];

type Map<T> = HashMap<Box<str>, T, ahash::RandomState>;

/// What one filter counts in; it stays for as long as its configuration.
pub(super) struct Calls {
    root: Scope,
    /// `grpc` or `grpc-web`.
    kind: &'static str,
    /// Services are named with `_` in place of dots.
    replaces_dots: bool,
    made: RwLock<Made>,
}

#[derive(Default)]
struct Made {
    clusters: Map<OfCluster>,
    total: usize,
}

#[derive(Default)]
struct OfCluster {
    /// Of methods that are not counted apart.
    all: Option<Arc<CallCounters>>,
    services: Map<Map<Arc<CallCounters>>>,
}

/// Service and method of a gRPC path.
pub(super) fn service_and_method(path: &[u8]) -> Option<(&str, &str)> {
    let path = std::str::from_utf8(path).ok()?;
    path.strip_prefix('/')?.split_once('/').filter(|(_, method)| !method.contains('/'))
}

impl Calls {
    pub(super) fn new(root: Scope, kind: &'static str, replaces_dots: bool) -> Self {
        Self { root, kind, replaces_dots, made: RwLock::default() }
    }

    /// The counters of one method of a cluster, or of all of them. Paths come from clients: past so many names, or with a
    /// longer one, nothing more is counted apart.
    pub(super) fn counters(&self, cluster: &str, method: Option<(&str, &str)>) -> Option<Arc<CallCounters>> {
        if let Some(known) = self.made.read().find(cluster, method) {
            return Some(Arc::clone(known));
        }
        if method.is_some_and(|(service, method)| service.len() + method.len() > LONGEST_NAME_BYTES) {
            return None;
        }
        let mut made = self.made.write();
        if let Some(known) = made.find(cluster, method) {
            return Some(Arc::clone(known));
        }
        if made.total >= MOST_NAMES {
            return None;
        }
        made.total += 1;
        let counters = Arc::new(CallCounters::new(self.root.scope(&self.name(cluster, method))));
        let of_cluster = made.clusters.entry(cluster.into()).or_default();
        match method {
            None => of_cluster.all = Some(Arc::clone(&counters)),
            Some((service, method)) => {
                of_cluster.services.entry(service.into()).or_default().insert(method.into(), Arc::clone(&counters));
            }
        }
        Some(counters)
    }

    fn name(&self, cluster: &str, method: Option<(&str, &str)>) -> String {
        let cluster = cluster.replace(':', "_");
        match method {
            None => format!("cluster.{cluster}.{}.", self.kind),
            Some((service, method)) => {
                let service = if self.replaces_dots { service.replace('.', "_").into() } else { Cow::from(service) };
                format!("cluster.{cluster}.{}.{service}.{method}.", self.kind)
            }
        }
    }
}

impl Made {
    fn find(&self, cluster: &str, method: Option<(&str, &str)>) -> Option<&Arc<CallCounters>> {
        let of_cluster = self.clusters.get(cluster)?;
        match method {
            None => of_cluster.all.as_ref(),
            Some((service, method)) => of_cluster.services.get(service)?.get(method),
        }
    }
}

/// What is counted of one method, each under a name that comes with its first use.
pub(super) struct CallCounters {
    scope: Scope,
    codes: [OnceLock<OwnedCounter>; CODES.len()],
    success: OnceLock<OwnedCounter>,
    failure: OnceLock<OwnedCounter>,
    total: OnceLock<OwnedCounter>,
    requests: OnceLock<OwnedCounter>,
    responses: OnceLock<OwnedCounter>,
    time: OnceLock<OwnedHistogram>,
}

impl CallCounters {
    fn new(scope: Scope) -> Self {
        Self {
            scope,
            codes: std::array::from_fn(|_| OnceLock::new()),
            success: OnceLock::new(),
            failure: OnceLock::new(),
            total: OnceLock::new(),
            requests: OnceLock::new(),
            responses: OnceLock::new(),
            time: OnceLock::new(),
        }
    }

    /// Counts the status that headers or trailers tell, if they do.
    pub(super) fn count_status(&self, headers: &HeaderMap) {
        let Some(status) = headers.get(GRPC_STATUS).and_then(|value| value.to_str().ok()) else { return };
        let counter = |kept: &OnceLock<OwnedCounter>, name| kept.get_or_init(|| self.scope.counter(name)).inc();
        match CODES.iter().position(|code| *code == status) {
            Some(code) => counter(&self.codes[code], status),
            // A name is made of what the upstream says: only of numbers, then.
            None if status.parse::<u8>().is_ok() => self.scope.counter(status).inc(),
            None => return,
        }
        match status {
            "0" => counter(&self.success, "success"),
            _ => counter(&self.failure, "failure"),
        }
        counter(&self.total, "total");
    }

    pub(super) fn count_requests(&self, messages: u64) {
        self.requests.get_or_init(|| self.scope.counter("request_message_count")).add(messages);
    }

    pub(super) fn count_responses(&self, messages: u64) {
        self.responses.get_or_init(|| self.scope.counter("response_message_count")).add(messages);
    }

    pub(super) fn record_time(&self, millis: u64) {
        let make = || self.scope.histogram("upstream_rq_time", Unit::Milliseconds);
        self.time.get_or_init(make).record(millis);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_stats::Store;

    fn status(text: &'static str) -> HeaderMap {
        std::iter::once((GRPC_STATUS, http::HeaderValue::from_static(text))).collect()
    }

    #[test]
    fn what_was_counted_stays_after_the_call() {
        let store = Store::new();
        let calls = Calls::new(store.root(), "grpc", false);
        calls.counters("a:b", service_and_method(b"/s.S/M")).unwrap().count_status(&status("5"));
        let counted = crate::http::testing::counted(&store);
        assert_eq!(
            counted,
            ["cluster.a_b.grpc.s.S.M.5: 1", "cluster.a_b.grpc.s.S.M.failure: 1", "cluster.a_b.grpc.s.S.M.total: 1"]
        );
        assert_eq!(service_and_method(b"/a/b/c"), None);
    }

    #[test]
    fn only_numbers_are_counted_as_they_are_written() {
        let store = Store::new();
        let counters = Calls::new(store.root(), "grpc", true).counters("c", Some(("s.S", "M"))).unwrap();
        for text in ["0", "99", "no", "300"] {
            counters.count_status(&status(text));
        }
        let counted = crate::http::testing::counted(&store);
        assert_eq!(
            counted,
            ["0: 1", "99: 1", "failure: 1", "success: 1", "total: 2"]
                .map(|stat| format!("cluster.c.grpc.s_S.M.{stat}"))
        );
    }

    #[test]
    fn clients_cannot_make_names_without_end() {
        let calls = Calls::new(Store::new().root(), "grpc", false);
        let named = (0..MOST_NAMES + 5).filter(|n| calls.counters("c", Some(("s", &n.to_string()))).is_some());
        assert_eq!(named.count(), MOST_NAMES);
        assert!(calls.counters("c", Some(("s", "0"))).is_some() && calls.counters("c", None).is_none());
        let calls = Calls::new(Store::new().root(), "grpc", false);
        assert!(calls.counters("c", Some(("s", &"m".repeat(LONGEST_NAME_BYTES)))).is_none());
    }
}
