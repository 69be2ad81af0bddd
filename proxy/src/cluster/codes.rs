//! Responses counted by code and class, under names that exist once they are used (Envoy's `CodeStatsImpl`):
//! `upstream_rq_200`, `upstream_rq_2xx`, `upstream_rq_completed`, `internal.…`, `external.…`, `canary.…`, `zone.…`.
//! It must not know where responses come from.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use http::StatusCode;
use parking_lot::RwLock;
use tidegate_stats::{OwnedCounter, OwnedHistogram, Scope, Unit};

/// The counters of one cluster (or virtual cluster). Before the first response there is next to nothing.
pub struct CodeStats {
    scope: Scope,
    used: OnceLock<Box<Prefixes>>,
}

struct Prefixes {
    all: Codes,
    internal: Codes,
    external: Codes,
    canary: Codes,
    zones: RwLock<HashMap<Box<str>, Arc<Codes>>>,
}

impl CodeStats {
    /// Counts below `scope`, which ends in a dot.
    pub fn new(scope: &Scope) -> Self {
        Self { scope: scope.clone(), used: OnceLock::new() }
    }

    /// A response that was handed on. `internal` says whether the client was one of us.
    pub fn count(&self, status: StatusCode, internal: bool) {
        let prefixes = self.prefixes();
        prefixes.all.count(status);
        prefixes.side(internal).count(status);
    }

    /// The same response, when a canary host gave it.
    pub fn count_canary(&self, status: StatusCode) {
        self.prefixes().canary.count(status);
    }

    /// The same response, when both our zone and the host's are known.
    pub fn count_zone(&self, from: &str, to: &str, status: StatusCode) {
        self.zone(from, to).count(status);
    }

    /// How long it took from the request's first byte upwards.
    pub fn record_time(&self, millis: u64, internal: bool) {
        let prefixes = self.prefixes();
        prefixes.all.record_time(millis);
        prefixes.side(internal).record_time(millis);
    }

    /// The same time, when a canary host took it.
    pub fn record_canary_time(&self, millis: u64) {
        self.prefixes().canary.record_time(millis);
    }

    /// The same time, when both our zone and the host's are known.
    pub fn record_zone_time(&self, from: &str, to: &str, millis: u64) {
        self.zone(from, to).record_time(millis);
    }

    fn prefixes(&self) -> &Prefixes {
        self.used.get_or_init(|| {
            Box::new(Prefixes {
                all: Codes { completed_is_static: true, ..Codes::new(&self.scope, "") },
                internal: Codes::new(&self.scope, "internal."),
                external: Codes::new(&self.scope, "external."),
                canary: Codes::new(&self.scope, "canary."),
                zones: RwLock::default(),
            })
        })
    }

    fn zone(&self, from: &str, to: &str) -> Arc<Codes> {
        let prefix = format!("zone.{from}.{to}.");
        let zones = &self.prefixes().zones;
        if let Some(codes) = zones.read().get(prefix.as_str()) {
            return Arc::clone(codes);
        }
        let codes = Codes::new(&self.scope, &prefix);
        Arc::clone(zones.write().entry(prefix.into()).or_insert_with(|| Arc::new(codes)))
    }
}

impl Prefixes {
    fn side(&self, internal: bool) -> &Codes {
        if internal { &self.internal } else { &self.external }
    }
}

/// Responses that were thrown away for a retry: `retry.upstream_rq_503` and its like.
pub struct RetryCodes {
    scope: Scope,
    used: OnceLock<Box<Codes>>,
}

impl RetryCodes {
    pub fn new(scope: &Scope) -> Self {
        Self { scope: scope.clone(), used: OnceLock::new() }
    }

    pub fn count(&self, status: StatusCode) {
        self.used.get_or_init(|| Box::new(Codes::new(&self.scope, "retry."))).count(status);
    }
}

/// The counters under one prefix. Reading them takes no lock, and before the first response there are none.
struct Codes {
    /// The cluster's.
    scope: Scope,
    prefix: Box<str>,
    /// Whether `upstream_rq_completed` is one of the cluster's own names, counted elsewhere.
    completed_is_static: bool,
    used: OnceLock<Box<Used>>,
    time: OnceLock<OwnedHistogram>,
}

struct Used {
    scope: Scope,
    completed: Option<OwnedCounter>,
    /// `1xx` to `5xx`.
    classes: [OnceLock<Box<Class>>; 5],
}

struct Class {
    total: OwnedCounter,
    codes: [OnceLock<OwnedCounter>; 100],
}

impl Codes {
    fn new(scope: &Scope, prefix: &str) -> Self {
        Self {
            scope: scope.clone(),
            prefix: prefix.into(),
            completed_is_static: false,
            used: OnceLock::new(),
            time: OnceLock::new(),
        }
    }

    /// Codes outside of 100 to 599 count as completed only.
    fn count(&self, status: StatusCode) {
        let used = self.used.get_or_init(|| Box::new(self.first_use()));
        if let Some(completed) = &used.completed {
            completed.inc();
        }
        let code = usize::from(status.as_u16());
        let Some(class) = used.classes.get((code / 100).wrapping_sub(1)) else { return };
        let class = class.get_or_init(|| Box::new(Class::new(&used.scope, code / 100)));
        class.total.inc();
        class.codes[code % 100].get_or_init(|| used.scope.counter(&format!("upstream_rq_{code}"))).inc();
    }

    fn first_use(&self) -> Used {
        let scope = self.scope();
        let completed = (!self.completed_is_static).then(|| scope.counter("upstream_rq_completed"));
        Used { scope, completed, classes: Default::default() }
    }

    fn record_time(&self, millis: u64) {
        self.time.get_or_init(|| self.scope().histogram("upstream_rq_time", Unit::Milliseconds)).record(millis);
    }

    fn scope(&self) -> Scope {
        if self.prefix.is_empty() { self.scope.clone() } else { self.scope.scope(&self.prefix) }
    }
}

impl Class {
    fn new(scope: &Scope, class: usize) -> Self {
        let total = scope.counter(&format!("upstream_rq_{class}xx"));
        Self { total, codes: [const { OnceLock::new() }; 100] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_counts_by_code_by_class_and_by_who_asked() {
        let scope = tidegate_stats::Store::new().root().scope("cluster.a.");
        let codes = CodeStats::new(&scope);
        codes.count(StatusCode::OK, false);
        codes.count(StatusCode::OK, true);
        codes.count(StatusCode::NOT_FOUND, false);
        codes.count_canary(StatusCode::OK);
        codes.count_zone("a", "b", StatusCode::OK);
        let value = |prefix: &str, name: &str| {
            if prefix.is_empty() { scope.counter(name).value() } else { scope.scope(prefix).counter(name).value() }
        };
        assert_eq!(value("", "upstream_rq_200"), 2);
        assert_eq!(value("", "upstream_rq_4xx"), 1);
        assert_eq!(value("external.", "upstream_rq_completed"), 2);
        assert_eq!(value("external.", "upstream_rq_404"), 1);
        assert_eq!(value("internal.", "upstream_rq_2xx"), 1);
        assert_eq!(value("canary.", "upstream_rq_completed"), 1);
        assert_eq!(value("zone.a.b.", "upstream_rq_200"), 1);
    }

    #[test]
    fn odd_codes_only_complete() {
        let scope = tidegate_stats::Store::new().root().scope("cluster.a.");
        let codes = CodeStats::new(&scope);
        codes.count(StatusCode::from_u16(799).unwrap(), false);
        assert_eq!(scope.scope("external.").counter("upstream_rq_completed").value(), 1);
    }
}
