//! A list of routes, indexed by their paths, of which the first that matches is taken with its cluster drawn.
//! It must not know whose list it is.

use std::sync::Arc;

use tidegate_filters::http::{HeaderKey, Headers};
use tidegate_filters::matching::{Matcher, Outcome as Matched};

use super::entry::{Action, Route, RouteEntry};
use super::forward::{ClusterName, ClusterSelector, WeightedCluster};
use super::input::{Mismatch, RouteInput, Trace, TriedRoute};
use super::matcher::{PathMatch, PathView};
use super::path_index::PathIndex;

/// Routes of which the first that matches wins.
pub(crate) struct RouteList {
    slots: Box<[Slot]>,
    index: PathIndex,
    /// Places of the routes that a request without a path may take.
    pathless: Box<[usize]>,
}

struct Slot {
    entry: Arc<RouteEntry>,
    choices: Choices,
}

/// The routes that one entry can become, made ahead where their cluster is known ahead.
enum Choices {
    One(Arc<Route>),
    /// The request names the cluster.
    ByHeader(HeaderKey),
    ByTree(Arc<Matcher<Arc<str>>>),
    Nothing,
    /// One for each weighted cluster; `None` where the request names it.
    Weighted(Box<[Option<Arc<Route>>]>),
}

impl RouteList {
    pub(crate) fn new(entries: Vec<Arc<RouteEntry>>) -> Self {
        let index = PathIndex::new(entries.iter().map(|entry| entry.matching.path.key()));
        let pathless =
            (0..entries.len()).filter(|at| matches!(entries[*at].matching.path, PathMatch::Connect)).collect();
        let slots = entries.into_iter().map(|entry| Slot { choices: Choices::new(&entry), entry }).collect();
        Self { slots, index, pathless }
    }

    pub(super) fn find(
        &self,
        input: &RouteInput<'_>,
        ignore_parameters: bool,
        trace: Option<&mut Trace>,
    ) -> Option<Arc<Route>> {
        let view = PathView::new(input.head, ignore_parameters);
        let take = |at: usize| {
            let slot = &self.slots[at];
            slot.entry.matching.matches(view, input).then(|| slot.choose(input)).flatten()
        };
        match trace {
            Some(trace) => self.scan(view, input, trace),
            None if input.head.path.is_empty() => self.pathless.iter().copied().find_map(take),
            None => self.index.candidates(view.path).find_map(take),
        }
    }

    /// Tries every route in turn, and notes what each fails on.
    fn scan(&self, view: PathView<'_>, input: &RouteInput<'_>, trace: &mut Trace) -> Option<Arc<Route>> {
        let pathless = input.head.path.is_empty();
        let mut tried = self.slots.iter().enumerate().filter(|(at, _)| !pathless || self.pathless.contains(at));
        tried.find_map(|(index, slot)| {
            let mismatch = slot.entry.matching.mismatch(view, input);
            let route = if mismatch.is_none() { slot.choose(input) } else { None };
            let mismatch = mismatch.or_else(|| route.is_none().then(|| slot.choices.mismatch()));
            trace.tried.push(TriedRoute { index, name: Arc::clone(&slot.entry.name), mismatch });
            route
        })
    }
}

impl Choices {
    fn new(entry: &Arc<RouteEntry>) -> Self {
        let with = |cluster: Option<Arc<str>>, weighted: Option<Arc<WeightedCluster>>| {
            Arc::new(Route { entry: Arc::clone(entry), cluster, weighted })
        };
        let Action::Forward(action) = &entry.action else { return Self::One(with(None, None)) };
        match &action.cluster {
            ClusterSelector::Named(name) => Self::One(with(Some(Arc::clone(name)), None)),
            ClusterSelector::Header(header) => Self::ByHeader(header.clone()),
            ClusterSelector::Tree(tree) => Self::ByTree(Arc::clone(tree)),
            ClusterSelector::Nothing => Self::Nothing,
            ClusterSelector::Weighted(weighted) => Self::Weighted(
                weighted
                    .clusters
                    .iter()
                    .map(|cluster| match &cluster.cluster {
                        ClusterName::Fixed(name) => Some(with(Some(Arc::clone(name)), Some(Arc::clone(cluster)))),
                        ClusterName::Header(_) => None,
                    })
                    .collect(),
            ),
        }
    }
}

impl Choices {
    /// Why there is no cluster to take.
    fn mismatch(&self) -> Mismatch {
        match self {
            Self::Nothing => Mismatch::new("cluster_specifier_plugin", "a plugin that is known"),
            _ => Mismatch::new("weighted_clusters", "a sum of runtime weights over 0"),
        }
    }
}

impl Slot {
    /// Draws the cluster. `None` when there is nothing to draw from: then the next route is tried, as in Envoy.
    fn choose(&self, input: &RouteInput<'_>) -> Option<Arc<Route>> {
        match &self.choices {
            Choices::One(route) => Some(Arc::clone(route)),
            Choices::ByHeader(header) => Some(self.named_by(header, None, input)),
            Choices::Nothing => None,
            Choices::ByTree(tree) => {
                let cluster = match tree.matches(&input.match_data()) {
                    Matched::Action(cluster) => Arc::clone(cluster),
                    Matched::NoMatch | Matched::NotYet => Arc::default(),
                };
                Some(Arc::new(Route { entry: Arc::clone(&self.entry), cluster: Some(cluster), weighted: None }))
            }
            Choices::Weighted(routes) => {
                let Action::Forward(action) = &self.entry.action else { return None };
                let ClusterSelector::Weighted(weighted) = &action.cluster else { return None };
                let drawn = weighted.draw(input, &action.hash)?;
                match (routes.get(drawn)?, weighted.clusters.get(drawn)?) {
                    (Some(route), _) => Some(Arc::clone(route)),
                    (None, cluster) => match &cluster.cluster {
                        ClusterName::Header(header) => Some(self.named_by(header, Some(Arc::clone(cluster)), input)),
                        ClusterName::Fixed(_) => None,
                    },
                }
            }
        }
    }

    fn named_by(
        &self,
        header: &HeaderKey,
        weighted: Option<Arc<WeightedCluster>>,
        input: &RouteInput<'_>,
    ) -> Arc<Route> {
        let name = input.head.first(header).unwrap_or_default();
        let cluster = Some(Arc::from(String::from_utf8_lossy(name)));
        Arc::new(Route { entry: Arc::clone(&self.entry), cluster, weighted })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method};
    use tidegate_filters::http::HeaderMutations;
    use tidegate_filters::runtime::{Fraction, Keyed};

    use super::*;
    use crate::route::forward::WeightedClusters;
    use crate::route::matcher::Criterion;
    use crate::route::testing::{Spec, World, decide, exact, get, one_host, prefix, regex, table};
    use crate::route::{RouteConfig, TlsRequirement, route};

    #[test]
    fn the_first_route_that_matches_wins() {
        let table = one_host(vec![
            Spec::new("re", regex("/re/[0-9]+")),
            Spec::new("short", prefix("/re")),
            Spec::new("exact", exact("/re/1x")),
            Spec::new("rest", prefix("/")),
        ]);
        let world = World::new();
        for (path, expected) in [("/re/12?x", "re"), ("/re/1x", "short"), ("/x", "rest"), ("*", "no route *")] {
            assert_eq!(decide(&table, &world, &get("h", path)), expected, "{path}");
        }
    }

    #[test]
    fn a_trace_says_what_each_route_failed_on() {
        let mut never = Spec::new("never", prefix("/a"));
        never.criteria = vec![Criterion::Runtime(Fraction::NEVER)];
        let table = one_host(vec![Spec::new("b", prefix("/b")), never, Spec::new("a", exact("/a"))]);
        let (world, head) = (World::new(), get("h", "/a"));
        let mut trace = Trace::default();
        let found = route(&table, &world.input(&head), Some(&mut trace));
        assert_eq!(found.route().unwrap().cluster.as_deref(), Some("a"));
        let mismatches: Vec<_> =
            trace.tried.iter().map(|tried| tried.mismatch.as_ref().map(Mismatch::to_string)).collect();
        assert_eq!(
            mismatches,
            [Some("prefix wants /b".to_owned()), Some("runtime_fraction wants 0 of 100".to_owned()), None]
        );
        assert_eq!(trace.cluster.as_deref(), Some("a"));
    }

    #[test]
    fn a_request_without_path_takes_a_connect_route_only() {
        let table = one_host(vec![Spec::new("all", prefix("")), Spec::new("connect", PathMatch::Connect)]);
        let world = World::new();
        let mut head = get("h:1", "");
        head.method = Method::CONNECT;
        assert_eq!(decide(&table, &world, &head), "connect");
        head.path = HeaderValue::from_static("/x");
        assert_eq!(decide(&table, &world, &head), "all");
    }

    fn weighted(weights: &[(&str, u64)]) -> Spec {
        let clusters = weights.iter().map(|(name, weight)| {
            let cluster = match name.strip_prefix('@') {
                Some(header) => ClusterName::Header(HeaderKey::new(header)),
                None => ClusterName::Fixed(Arc::from(*name)),
            };
            Arc::new(WeightedCluster {
                cluster,
                weight: Keyed { key: None, default: *weight },
                metadata_match: None,
                request_headers: HeaderMutations::default(),
                response_headers: HeaderMutations::default(),
                host_rewrite: None,
                overrides: Arc::default(),
            })
        });
        let random_header = Some(HeaderKey::new("x-random"));
        let weighted = WeightedClusters { clusters: clusters.collect(), random_header, use_hash_policy: false };
        Spec { cluster: ClusterSelector::Weighted(Box::new(weighted)), ..Spec::new("w", prefix("/")) }
    }

    #[test]
    fn weights_divide_the_random_value() {
        let table = one_host(vec![weighted(&[("a", 3), ("zero", 0), ("@x-c", 1)])]);
        let mut world = World::new();
        let mut head = get("h", "/");
        head.headers.insert("x-c", HeaderValue::from_static("c"));
        let mut drawn = |random: u64, head: &http::HeaderMap| {
            world.random = random;
            let head = tidegate_filters::http::RequestHead { headers: head.clone(), ..get("h", "/") };
            let outcome = route(&table, &world.input(&head), None);
            outcome.route().unwrap().cluster.as_deref().unwrap().to_owned()
        };
        let names: Vec<String> = (0..5).map(|random| drawn(random, &head.headers)).collect();
        assert_eq!(names, ["a", "a", "a", "c", "a"]);
        head.headers.insert("x-random", HeaderValue::from_static("3"));
        assert_eq!(drawn(0, &head.headers), "c");
        head.headers.append("x-random", HeaderValue::from_static("3"));
        assert_eq!(drawn(0, &head.headers), "a");
    }

    #[test]
    fn an_absent_cluster_header_names_the_empty_cluster() {
        let by_header = ClusterSelector::Header(HeaderKey::new("x-c"));
        let table = one_host(vec![Spec { cluster: by_header, ..Spec::new("h", prefix("/")) }]);
        let (world, head) = (World::new(), get("h", "/"));
        assert_eq!(route(&table, &world.input(&head), None).route().unwrap().cluster.as_deref(), Some(""));
    }

    mod against_a_scan {
        use super::*;
        use proptest::prelude::*;

        fn any_path() -> impl Strategy<Value = PathMatch> {
            let text = || "[/ab]{0,4}";
            let cased =
                |ignore_case, bytes: String| crate::route::Text { bytes: bytes.into_bytes().into(), ignore_case };
            prop_oneof![
                (any::<bool>(), text()).prop_map(move |(case, text)| PathMatch::Prefix(cased(case, text))),
                (any::<bool>(), text()).prop_map(move |(case, text)| PathMatch::Exact(cased(case, text))),
                (any::<bool>(), text()).prop_map(move |(case, text)| PathMatch::SeparatedPrefix(cased(case, text))),
                "(/|a|b|a\\*|b\\?|\\.|\\(a\\|b\\)|\\[ab\\]\\+){0,4}".prop_map(|text| regex(&text)),
                Just(PathMatch::Connect),
            ]
        }

        proptest! {
            /// `decide` compares the index's answer with the linear scan's.
            #[test]
            fn the_index_decides_as_a_scan_does(
                paths in prop::collection::vec(any_path(), 0..12), path in "(/|a|b|A|;|\\?){0,6}", connect: bool, parameters: bool,
            ) {
                let specs = paths.into_iter().enumerate().map(|(at, path)| Spec::new(&at.to_string(), path)).collect();
                let config = RouteConfig { ignore_path_parameters: parameters, ..RouteConfig::default() };
                let table = table(config, vec![(&["*"], TlsRequirement::None, specs)]);
                let mut head = get("h", &path);
                if connect {
                    head.method = Method::CONNECT;
                }
                decide(&table, &World::new(), &head);
            }
        }
    }
}
