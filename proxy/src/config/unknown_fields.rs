//! What becomes of fields in dynamic resources that the schema does not know. It must not know where resources come from.

use tidegate_stats::Scope;
use tidegate_xds::FieldError;

use super::files::UnknownDynamicFields;
use crate::stats::server::ServerStats;

/// The rule of the command line, and where such fields are counted.
pub(crate) struct UnknownRule {
    pub(crate) fields: UnknownDynamicFields,
    stats: ServerStats,
}

impl UnknownRule {
    pub(crate) fn new(fields: UnknownDynamicFields, root: &Scope) -> Self {
        Self { fields, stats: ServerStats::new(&root.scope("server.")) }
    }

    /// Whether resources that hold such fields are rejected.
    pub(crate) fn rejects(&self) -> bool {
        self.fields == UnknownDynamicFields::Reject
    }

    /// Counts fields that are left out, and tells of them.
    pub(crate) fn note(&self, resource: &str, unknown: &[FieldError]) {
        self.stats.dynamic_unknown_fields().add(unknown.len() as u64);
        if self.fields == UnknownDynamicFields::Warn {
            for error in unknown {
                tracing::warn!(resource, %error, "left out");
            }
        }
    }
}
