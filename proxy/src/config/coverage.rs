//! Everything that acts, gathered from where it is compiled: what the audit of a configuration goes by.
//! It must not know any field itself.

use std::collections::HashMap;

use tidegate_filters::http::FilterFactory;
use tidegate_xds::{Coverage, CoverageSource};

/// What is compiled in this folder; each message stands in one of these.
const OWN: [&[Coverage]; 20] = [
    super::bootstrap_coverage::COVERAGE,
    super::sources::COVERAGE,
    super::cluster::COVERAGE,
    super::discovered_filter::COVERAGE,
    super::grpc_services::COVERAGE,
    super::http_coverage::COVERAGE,
    super::listener::COVERAGE,
    super::node::COVERAGE,
    super::overload::COVERAGE,
    super::proxy_tlvs::COVERAGE,
    super::route::COVERAGE,
    super::router::COVERAGE,
    super::runtime::COVERAGE,
    super::scoped_routes::COVERAGE,
    super::stats::COVERAGE,
    super::tcp_proxy::COVERAGE,
    super::tls::COVERAGE,
    super::upstream_filters::COVERAGE,
    super::values::COVERAGE,
    super::virtual_hosts::COVERAGE,
];

/// The coverage of all messages that this build understands.
pub struct All(HashMap<&'static str, Coverage, ahash::RandomState>);

impl All {
    /// All that acts with these HTTP filters.
    pub(super) fn of(http: &[&'static dyn FilterFactory]) -> Self {
        let http = http.iter().map(|factory| factory.coverage());
        let network = tidegate_filters::network::FACTORIES.iter().map(|factory| factory.coverage());
        let listener = tidegate_filters::listener::FACTORIES.iter().map(|factory| factory.coverage());
        // Those that own a message come before those that only hold it.
        let shared: [&'static [Coverage]; 7] = [
            tidegate_filters::access_log::COVERAGE,
            tidegate_filters::format::COVERAGE,
            tidegate_filters::http::header_options::COVERAGE,
            tidegate_filters::http::rate_limit::COVERAGE,
            tidegate_filters::listener::DISABLED_COVERAGE,
            tidegate_filters::matching::COVERAGE,
            tidegate_filters::runtime::COVERAGE,
        ];
        let groups = OWN.into_iter().chain(http).chain(network).chain(listener).chain(shared);
        let mut all: HashMap<&'static str, Coverage, ahash::RandomState> = HashMap::default();
        for coverage in groups.flatten() {
            all.entry(coverage.message).or_insert(*coverage);
        }
        All(all)
    }
}

impl All {
    /// Every message that this build understands.
    pub(super) fn messages(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }
}

impl CoverageSource for All {
    fn of(&self, message: &str) -> Option<&Coverage> {
        self.0.get(message)
    }

    fn opaque(&self, message: &str) -> bool {
        [super::cluster::OPAQUE, super::grpc_services::OPAQUE, tidegate_filters::matching::cel::OPAQUE]
            .iter()
            .any(|opaque| opaque.contains(&message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two the first would act and the other only seem to.
    #[test]
    fn a_message_stands_in_one_place() {
        let mut seen = std::collections::HashSet::new();
        let twice: Vec<_> =
            OWN.into_iter().flatten().map(|of| of.message).filter(|message| !seen.insert(*message)).collect();
        assert!(twice.is_empty(), "{twice:#?}");
    }

    /// A field that acts must not be refused for what it holds.
    #[test]
    fn what_acts_may_be_set() {
        let registry = crate::config::registry::Registry::built_in();
        let coverage = registry.coverage();
        let mut holes: Vec<_> = coverage.0.values().flat_map(|of| of.holes(coverage)).collect();
        holes.sort();
        assert!(holes.is_empty(), "{holes:#?}");
    }

    #[test]
    fn every_name_exists_in_the_schema() {
        let mistakes: Vec<_> = crate::config::registry::Registry::built_in()
            .coverage()
            .0
            .values()
            .flat_map(tidegate_xds::Coverage::mistakes)
            .collect();
        assert!(mistakes.is_empty(), "{mistakes:#?}");
    }
}
