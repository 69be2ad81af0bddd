//! What `stats_config` says about how stats are shown: which ones, with which tags, in which buckets.
//! It must not know how its matchers are written.

use crate::histogram::DEFAULT_BUCKETS;
use crate::tags::TagRules;

/// Whether a name matches; whoever compiles the configuration gives it.
pub type NameMatcher = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// `stats_config`, compiled.
#[derive(Default)]
pub struct Rules {
    pub tags: TagRules,
    pub shown: Shown,
    /// The first that matches a histogram's name gives its buckets.
    pub buckets: Vec<Buckets>,
    /// `deferred_stat_options`: stats that may come late are not there before the first of them is written.
    pub defers: bool,
}

/// `stats_matcher`: what it does not let through does not exist for readers.
#[derive(Default)]
pub enum Shown {
    #[default]
    All,
    None,
    Only(NameMatcher),
    AllBut(NameMatcher),
}

/// `histogram_bucket_settings`: the upper bounds of the buckets of some histograms, ascending.
pub struct Buckets {
    pub matches: NameMatcher,
    pub bounds: Box<[f64]>,
}

impl Rules {
    pub(crate) fn shows(&self, name: &str) -> bool {
        match &self.shown {
            Shown::All => true,
            Shown::None => false,
            Shown::Only(matches) => matches(name),
            Shown::AllBut(matches) => !matches(name),
        }
    }

    /// The upper bounds of a histogram's buckets.
    pub fn buckets(&self, name: &str) -> &[f64] {
        let set = self.buckets.iter().find(|buckets| (buckets.matches)(name));
        set.map_or(&DEFAULT_BUCKETS, |buckets| &buckets.bounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[test]
    fn what_is_not_shown_is_not_read() {
        let rules = Rules { shown: Shown::AllBut(Box::new(|name| name.starts_with("a."))), ..Rules::default() };
        let store = Store::with_rules(rules);
        store.root().counter("a.hidden").inc();
        store.root().counter("b.seen").inc();
        let names: Vec<_> = store.counters().into_iter().map(|counter| counter.name).collect();
        assert_eq!(names, ["b.seen"]);
    }

    #[test]
    fn the_first_buckets_that_match_act() {
        let of = |name: &'static str, bounds: &[f64]| Buckets {
            matches: Box::new(move |other| other == name),
            bounds: bounds.into(),
        };
        let rules = Rules { buckets: vec![of("a", &[1.0]), of("a", &[2.0])], ..Rules::default() };
        assert_eq!(rules.buckets("a"), [1.0]);
        assert_eq!(rules.buckets("b"), DEFAULT_BUCKETS);
    }
}
