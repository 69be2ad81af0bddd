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
    /// This process's own, where it is known.
    zone: Option<Arc<str>>,
    /// Whether `upstream_rq_completed` is one of the cluster's own names, counted elsewhere.
    completed_is_static: bool,
    used: OnceLock<Box<Prefixes>>,
}

/// Who asked, who answered, and how much of it is counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sides<'a> {
    /// The client was one of us.
    pub internal: bool,
    /// A canary host answered.
    pub canary: bool,
    /// The host's zone; may be empty.
    pub zone: &'a str,
    /// Counts as completed only, neither by code nor by class; in the counters by side both remain, as in Envoy.
    pub without_codes: bool,
}

/// Names that requests may give their stats are kept up to this many for a cluster: they come over the wire.
const MAX_ALTERNATIVES: usize = 1000;

struct Prefixes {
    all: Codes,
    internal: Codes,
    external: Codes,
    canary: Codes,
    /// From our zone, by that of the host.
    zones: RwLock<HashMap<Box<str>, Arc<Codes>>>,
    alternatives: RwLock<HashMap<Box<str>, Arc<CodeStats>>>,
}

impl CodeStats {
    /// Counts below a cluster's `scope`, which ends in a dot; with the process's own `zone` also by zones.
    pub fn new(scope: &Scope, zone: Option<Arc<str>>) -> Self {
        Self { scope: scope.clone(), zone, completed_is_static: true, used: OnceLock::new() }
    }

    /// A response that was handed on.
    pub fn count(&self, status: StatusCode, sides: Sides<'_>) {
        let all = &self.prefixes().all;
        self.each(sides, |codes| codes.count(status, sides.without_codes && std::ptr::eq(codes, all)));
    }

    /// How long the whole response took.
    pub fn record_time(&self, millis: u64, sides: Sides<'_>) {
        self.each(sides, |codes| codes.record_time(millis));
    }

    fn each(&self, sides: Sides<'_>, act: impl Fn(&Codes)) {
        let prefixes = self.prefixes();
        act(&prefixes.all);
        if sides.canary {
            act(&prefixes.canary);
        }
        act(if sides.internal { &prefixes.internal } else { &prefixes.external });
        if let Some(own) = self.zone.as_deref().filter(|_| !sides.zone.is_empty()) {
            act(&self.between(own, sides.zone));
        }
    }

    /// The counters below `<name>.`, for requests that bring a name of their own; `None` once there are too many.
    pub fn alternative(&self, name: &str) -> Option<Arc<Self>> {
        let all = &self.prefixes().alternatives;
        if let Some(found) = all.read().get(name) {
            return Some(Arc::clone(found));
        }
        let mut all = all.write();
        if all.len() >= MAX_ALTERNATIVES {
            return None;
        }
        let scope = self.scope.scope(&format!("{name}."));
        let zone = self.zone.clone();
        let new = || Arc::new(Self { scope, zone, completed_is_static: false, used: OnceLock::new() });
        Some(Arc::clone(all.entry(name.into()).or_insert_with(new)))
    }

    fn prefixes(&self) -> &Prefixes {
        self.used.get_or_init(|| {
            Box::new(Prefixes {
                all: Codes { completed_is_static: self.completed_is_static, ..Codes::new(&self.scope, "") },
                internal: Codes::new(&self.scope, "internal."),
                external: Codes::new(&self.scope, "external."),
                canary: Codes::new(&self.scope, "canary."),
                zones: RwLock::default(),
                alternatives: RwLock::default(),
            })
        })
    }

    fn between(&self, own: &str, host: &str) -> Arc<Codes> {
        let zones = &self.prefixes().zones;
        if let Some(codes) = zones.read().get(host) {
            return Arc::clone(codes);
        }
        let codes = Codes::new(&self.scope, &format!("zone.{own}.{host}."));
        Arc::clone(zones.write().entry(host.into()).or_insert_with(|| Arc::new(codes)))
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

    pub fn count(&self, status: StatusCode, without_codes: bool) {
        self.used.get_or_init(|| Box::new(Codes::new(&self.scope, "retry."))).count(status, without_codes);
    }
}

/// The counters under one prefix. Reading them takes no lock, and before the first response there are none.
pub(crate) struct Codes {
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
    /// Counts below a `prefix` in a `scope` that ends in a dot.
    pub(crate) fn new(scope: &Scope, prefix: &str) -> Self {
        Self {
            scope: scope.clone(),
            prefix: prefix.into(),
            completed_is_static: false,
            used: OnceLock::new(),
            time: OnceLock::new(),
        }
    }

    /// Codes outside of 100 to 599 count as completed only.
    pub(crate) fn count(&self, status: StatusCode, without_codes: bool) {
        let used = self.used.get_or_init(|| Box::new(self.first_use()));
        if let Some(completed) = &used.completed {
            completed.inc();
        }
        if without_codes {
            return;
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

    /// How long a whole response took.
    pub(crate) fn record_time(&self, millis: u64) {
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
        let codes = CodeStats::new(&scope, Some("a".into()));
        let internal = Sides { internal: true, zone: "b", ..Sides::default() };
        codes.count(StatusCode::OK, Sides { canary: true, ..Sides::default() });
        codes.count(StatusCode::OK, internal);
        codes.count(StatusCode::NOT_FOUND, Sides::default());
        codes.count(StatusCode::NOT_FOUND, Sides { without_codes: true, ..Sides::default() });
        let value = |prefix: &str, name: &str| {
            if prefix.is_empty() { scope.counter(name).value() } else { scope.scope(prefix).counter(name).value() }
        };
        assert_eq!(value("", "upstream_rq_200"), 2);
        assert_eq!(value("", "upstream_rq_4xx"), 1);
        assert_eq!(value("external.", "upstream_rq_completed"), 3);
        assert_eq!(value("", "upstream_rq_404"), 1);
        assert_eq!(value("external.", "upstream_rq_404"), 2);
        assert_eq!(value("internal.", "upstream_rq_2xx"), 1);
        assert_eq!(value("canary.", "upstream_rq_completed"), 1);
        assert_eq!(value("zone.a.b.", "upstream_rq_200"), 1);
    }

    #[test]
    fn odd_codes_only_complete() {
        let scope = tidegate_stats::Store::new().root().scope("cluster.a.");
        let codes = CodeStats::new(&scope, None);
        codes.count(StatusCode::from_u16(799).unwrap(), Sides::default());
        assert_eq!(scope.scope("external.").counter("upstream_rq_completed").value(), 1);
    }

    #[test]
    fn a_request_may_name_its_stats() {
        let scope = tidegate_stats::Store::new().root().scope("cluster.a.");
        let codes = CodeStats::new(&scope, None);
        codes.alternative("mine").unwrap().count(StatusCode::OK, Sides::default());
        let mine = scope.scope("mine.");
        assert_eq!(mine.counter("upstream_rq_completed").value(), 1);
        assert_eq!(mine.scope("external.").counter("upstream_rq_200").value(), 1);
        for index in 1..MAX_ALTERNATIVES {
            assert!(codes.alternative(&index.to_string()).is_some());
        }
        assert!(codes.alternative("one more").is_none());
    }
}
