//! Which HTTP filters a process knows: the built-in ones, and what a test adds to them.
//! It must not know what any filter does.

use std::sync::OnceLock;

use tidegate_filters::http::{FACTORIES, FilterFactory};
use tidegate_xds::any;

use super::coverage;

/// The filters that configurations may name, and all fields that act with them.
pub struct Registry {
    http: Vec<&'static dyn FilterFactory>,
    coverage: coverage::All,
}

impl Registry {
    /// What the binary knows.
    pub fn built_in() -> &'static Self {
        static BUILT_IN: OnceLock<Registry> = OnceLock::new();
        BUILT_IN.get_or_init(|| Self::with_http_filters(&[]))
    }

    /// More HTTP filters than the built-in ones.
    pub fn with_http_filters(more: &[&'static dyn FilterFactory]) -> Self {
        let http: Vec<_> = FACTORIES.iter().chain(more).copied().collect();
        let coverage = coverage::All::of(&http);
        Self { http, coverage }
    }

    /// The fields that act.
    pub(crate) fn coverage(&self) -> &coverage::All {
        &self.coverage
    }

    /// The factory of an HTTP filter, by type URL.
    pub(crate) fn http_filter(&self, type_url: &str) -> Option<&'static dyn FilterFactory> {
        let name = any::type_name(type_url)?;
        self.http.iter().find(|factory| factory.message() == name).copied()
    }

    /// The factory whose `typed_per_filter_config` has this type URL.
    pub(crate) fn route_override(&self, type_url: &str) -> Option<&'static dyn FilterFactory> {
        let name = any::type_name(type_url)?;
        let takes = |factory: &&&'static dyn FilterFactory| {
            factory.override_message() == Some(name) || factory.message() == name
        };
        self.http.iter().find(takes).copied()
    }
}
