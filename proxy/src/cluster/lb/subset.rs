//! Subsets: a cluster divided by its hosts' `envoy.lb` metadata, of which a route asks for one (`lb_subset_config`,
//! `envoy.extensions.load_balancing_policies.subset.v3.Subset`). It must not know how a host is chosen within a subset.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Picked, Tuning};
use crate::cluster::host::Host;
use crate::cluster::host_set::{HostSet, Sorted};

/// How a cluster is divided.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetConfig {
    /// Each has different keys; the first of equal ones counts.
    pub selectors: Vec<Selector>,
    pub fallback: Fallback,
    /// The metadata of the default subset.
    pub default_subset: MetadataMatch,
    /// Localities keep their weights within a subset.
    pub locality_weight_aware: bool,
    /// Their weights shrink with the share of hosts that a subset leaves them.
    pub scale_locality_weight: bool,
    /// When the fallback has no host, any host will do.
    pub panic_mode_any: bool,
    /// A host whose value is a list is in the subset of each element.
    pub list_as_any: bool,
    /// `fallback_list` in a route's metadata names variants to try in order.
    pub metadata_fallback_list: bool,
    /// Keys that no selector has are left out of a route's metadata.
    pub allow_redundant_keys: bool,
}

/// A set of keys by whose values hosts are grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// Sorted.
    pub keys: Vec<String>,
    /// Instead of the general fallback.
    pub fallback: Option<SelectorFallback>,
    /// Only the first host of a group counts, whatever its priority and health.
    pub single_host: bool,
}

/// What happens when a route's metadata fits no subset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    #[default]
    None,
    Any,
    Default,
}

/// What happens when a route asks by a selector's keys for values that no host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorFallback {
    To(Fallback),
    /// Asks again with these keys only.
    Keys(Vec<String>),
}

/// Which hosts a pick was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The cluster is not divided.
    Whole,
    /// The subset that was asked for (`lb_subsets_selected`).
    Selected,
    /// A selector's own fallback.
    SelectorFallback,
    /// The general fallback (`lb_subsets_fallback`).
    Fallback,
    /// Any host since the fallback had none (`lb_subsets_fallback_panic`).
    FallbackPanic,
}

/// Metadata that hosts must hold under `envoy.lb`, made once for a route.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetadataMatch {
    /// Sorted by name.
    criteria: Vec<(String, Value)>,
    /// What the subset of exactly these values is found by.
    key: Box<str>,
}

impl MetadataMatch {
    /// The criteria of a struct, as in `metadata_match.filter_metadata["envoy.lb"]`.
    pub fn new(values: &Map<String, Value>) -> Self {
        Self::of(values.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// These criteria with others laid over them, as those of a weighted cluster over its route's.
    #[must_use]
    pub fn merged(&self, values: &Map<String, Value>) -> Self {
        let kept = self.criteria.iter().filter(|(name, _)| !values.contains_key(name)).cloned();
        Self::of(kept.chain(values.iter().map(|(name, value)| (name.clone(), value.clone()))).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.criteria.is_empty()
    }

    fn of(mut criteria: Vec<(String, Value)>) -> Self {
        criteria.sort_by(|a, b| a.0.cmp(&b.0));
        let key = key_of(criteria.iter().map(|(name, value)| (name.as_str(), value)));
        Self { criteria, key }
    }

    /// Those of the criteria whose names are among `keys`.
    fn reduced(&self, keys: &[String]) -> Self {
        Self::of(self.criteria.iter().filter(|(name, _)| keys.contains(name)).cloned().collect())
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.criteria.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    /// Whether a host's metadata holds all of it.
    fn holds_for(&self, host: &Host, list_as_any: bool) -> bool {
        self.criteria.iter().all(|(name, wanted)| match host.metadata.get("envoy.lb", [name.as_str()]) {
            Some(Value::Array(list)) if list_as_any && list.iter().any(|element| same(element, wanted)) => true,
            Some(value) => same(value, wanted),
            None => false,
        })
    }
}

/// Whether two values are the same to protobuf: all numbers are doubles.
fn same(a: &Value, b: &Value) -> bool {
    let mut texts = (String::new(), String::new());
    write_value(a, &mut texts.0);
    write_value(b, &mut texts.1);
    texts.0 == texts.1
}

/// One text for names and values, the same for all that are equal.
fn key_of<'a>(criteria: impl Iterator<Item = (&'a str, &'a Value)>) -> Box<str> {
    let mut key = String::new();
    for (name, value) in criteria {
        write_value(&Value::from(name), &mut key);
        key.push(':');
        write_value(value, &mut key);
        key.push(',');
    }
    key.into()
}

fn write_value(value: &Value, into: &mut String) {
    match value {
        Value::Number(number) => into.push_str(&number.as_f64().unwrap_or(f64::NAN).to_string()),
        Value::Array(list) => {
            into.push('[');
            for element in list {
                write_value(element, into);
                into.push(',');
            }
            into.push(']');
        }
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            into.push('{');
            into.push_str(&key_of(fields.into_iter().map(|(name, value)| (name.as_str(), value))));
            into.push('}');
        }
        other => into.push_str(&other.to_string()),
    }
}

/// The subsets of one host set.
pub struct Subsets {
    by_key: HashMap<Box<str>, Subset, ahash::RandomState>,
    default: Option<Box<HostSet>>,
    /// Hosts that are not picked, since another one is the single host of their group.
    pub(crate) single_host_duplicates: u64,
}

enum Subset {
    Hosts(Box<HostSet>),
    Single(Arc<Host>),
}

impl Subsets {
    pub(crate) fn build(config: &SubsetConfig, sorted: &Sorted, tuning: Tuning) -> Self {
        let mut duplicates = 0;
        let mut singles: HashMap<Box<str>, Arc<Host>> = HashMap::new();
        // Which hosts are in each group, by where they stand.
        let mut groups: HashMap<Box<str>, Vec<Place>> = HashMap::new();
        for (place, host) in places(sorted) {
            for selector in &config.selectors {
                for key in keys_of(host, &selector.keys, config.list_as_any) {
                    if !selector.single_host {
                        groups.entry(key).or_default().push(place);
                        continue;
                    }
                    match singles.entry(key) {
                        Entry::Occupied(_) => duplicates += 1,
                        Entry::Vacant(vacant) => drop(vacant.insert(Arc::clone(host))),
                    }
                }
            }
        }
        let build = |members: &[Place]| Box::new(subset(config, sorted, members, tuning));
        let mut by_key: HashMap<_, _, _> =
            groups.into_iter().map(|(key, members)| (key, Subset::Hosts(build(&members)))).collect();
        by_key.extend(singles.into_iter().map(|(key, host)| (key, Subset::Single(host))));
        let default = config.uses_default().then(|| {
            let fits = |host: &Host| config.default_subset.holds_for(host, config.list_as_any);
            let members: Vec<_> = places(sorted).filter(|(_, host)| fits(host)).map(|(place, _)| place).collect();
            build(&members)
        });
        Self { by_key, default, single_host_duplicates: duplicates }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// How many of these subsets are not among the others.
    pub(crate) fn not_in(&self, others: Option<&Self>) -> usize {
        self.by_key.keys().filter(|key| others.is_none_or(|others| !others.by_key.contains_key(*key))).count()
    }

    /// Finds the subset that is asked for, or what stands for it, and picks there. `whole` is the set that they divide.
    pub(super) fn pick(
        &self,
        config: &SubsetConfig,
        whole: &HostSet,
        wanted: Option<&MetadataMatch>,
        mut pick: impl FnMut(&HostSet) -> Option<Picked>,
    ) -> Option<Picked> {
        let variants =
            wanted.filter(|_| config.metadata_fallback_list).and_then(|wanted| wanted.value("fallback_list"));
        let (Some(wanted), Some(Value::Array(variants))) = (wanted, variants) else {
            return self.pick_once(config, whole, wanted, &mut pick);
        };
        let others: Vec<_> = wanted.criteria.iter().map(|(name, _)| name.clone()).collect();
        let others: Vec<_> = others.into_iter().filter(|name| name != "fallback_list").collect();
        let base = wanted.reduced(&others);
        if variants.is_empty() {
            return self.pick_once(config, whole, Some(&base), &mut pick);
        }
        let none = Map::new();
        let variants = variants.iter().map(|variant| base.merged(variant.as_object().unwrap_or(&none)));
        variants.into_iter().find_map(|variant| self.pick_once(config, whole, Some(&variant), &mut pick))
    }

    fn pick_once(
        &self,
        config: &SubsetConfig,
        whole: &HostSet,
        wanted: Option<&MetadataMatch>,
        pick: &mut impl FnMut(&HostSet) -> Option<Picked>,
    ) -> Option<Picked> {
        let reduced = match wanted {
            Some(wanted) if config.allow_redundant_keys => {
                config.best_selector(wanted).map(|keys| wanted.reduced(keys))
            }
            _ => None,
        };
        let wanted = reduced.as_ref().or(wanted).filter(|wanted| !wanted.is_empty());
        if let Some(wanted) = wanted {
            if let Some(subset) = self.by_key.get(&wanted.key) {
                return subset.pick(pick);
            }
            match config.selector_fallback(wanted) {
                Some(SelectorFallback::To(fallback)) => {
                    return self.fallback(*fallback, whole, pick, Outcome::SelectorFallback);
                }
                Some(SelectorFallback::Keys(keys)) => {
                    // Fewer keys each time, so this ends.
                    return self.pick_once(config, whole, Some(&wanted.reduced(keys)), pick);
                }
                None => {}
            }
        }
        let found = self.fallback(config.fallback, whole, pick, Outcome::Fallback);
        if found.is_some() || !config.panic_mode_any || config.fallback == Fallback::None {
            return found;
        }
        self.fallback(Fallback::Any, whole, pick, Outcome::FallbackPanic)
    }

    fn fallback(
        &self,
        fallback: Fallback,
        whole: &HostSet,
        pick: &mut impl FnMut(&HostSet) -> Option<Picked>,
        outcome: Outcome,
    ) -> Option<Picked> {
        let picked = match fallback {
            Fallback::None => None,
            Fallback::Any => pick(whole),
            Fallback::Default => self.default.as_deref().and_then(pick),
        };
        picked.map(|picked| Picked { subset: outcome, ..picked })
    }
}

impl Subset {
    fn pick(&self, pick: &mut impl FnMut(&HostSet) -> Option<Picked>) -> Option<Picked> {
        match self {
            Self::Hosts(hosts) => pick(hosts).map(|picked| Picked { subset: Outcome::Selected, ..picked }),
            Self::Single(host) => Some(Picked { host: Arc::clone(host), panic: false, subset: Outcome::Selected }),
        }
    }
}

impl SubsetConfig {
    fn uses_default(&self) -> bool {
        let by_selector = |selector: &Selector| selector.fallback == Some(SelectorFallback::To(Fallback::Default));
        self.fallback == Fallback::Default || self.selectors.iter().any(by_selector)
    }

    /// The fallback of the selector whose keys are exactly those asked for.
    fn selector_fallback(&self, wanted: &MetadataMatch) -> Option<&SelectorFallback> {
        let names = || wanted.criteria.iter().map(|(name, _)| name);
        let selector = self.selectors.iter().find(|selector| selector.keys.iter().eq(names()))?;
        selector.fallback.as_ref()
    }

    /// The keys of the largest selector that are all asked for; of equally large ones the first.
    fn best_selector(&self, wanted: &MetadataMatch) -> Option<&[String]> {
        let covered = |selector: &&Selector| selector.keys.iter().all(|key| wanted.value(key).is_some());
        let best = self.selectors.iter().filter(covered).rev().max_by_key(|selector| selector.keys.len())?;
        Some(&best.keys)
    }
}

/// Priority, locality and number of a host.
type Place = (usize, usize, usize);

fn places(sorted: &Sorted) -> impl Iterator<Item = (Place, &Arc<Host>)> {
    sorted.priorities.iter().enumerate().flat_map(|(priority, localities)| {
        localities.iter().enumerate().flat_map(move |(locality, from)| {
            from.hosts.iter().enumerate().map(move |(number, host)| ((priority, locality, number), host))
        })
    })
}

/// The keys of the groups that a host is in; none when it lacks one of the names.
fn keys_of(host: &Host, names: &[String], list_as_any: bool) -> Vec<Box<str>> {
    let mut groups: Vec<Vec<(&str, &Value)>> = Vec::new();
    for (position, name) in names.iter().enumerate() {
        let Some(value) = host.metadata.get("envoy.lb", [name.as_str()]) else { return Vec::new() };
        let values = match value {
            Value::Array(list) if list_as_any => list.as_slice(),
            value => std::slice::from_ref(value),
        };
        let before = if position == 0 { vec![Vec::new()] } else { std::mem::take(&mut groups) };
        for group in before {
            for value in values {
                let mut group = group.clone();
                group.push((name.as_str(), value));
                groups.push(group);
            }
        }
    }
    groups.into_iter().map(|group| key_of(group.into_iter())).collect()
}

/// The host set of some of the hosts.
fn subset(config: &SubsetConfig, sorted: &Sorted, members: &[Place], tuning: Tuning) -> HostSet {
    let mut part = sorted.clone();
    for (priority, localities) in part.priorities.iter_mut().enumerate() {
        for (locality, of) in localities.iter_mut().enumerate() {
            let all = of.hosts.len();
            let mut number = 0;
            of.hosts.retain(|_| {
                number += 1;
                members.binary_search(&(priority, locality, number - 1)).is_ok()
            });
            if config.scale_locality_weight && of.weight > 0 && all > 0 {
                let scaled = f64::from(of.weight) * of.hosts.len() as f64 / all as f64;
                of.weight = (scaled.round() as u32).max(1);
            }
        }
    }
    HostSet::of(&part, config.locality_weight_aware, tuning)
}

#[cfg(test)]
mod tests {
    use tidegate_filters::metadata::Metadata;

    use super::*;
    use crate::cluster::host_set::HostSet;
    use crate::cluster::lb::testing::{FixedLoads, assignment, endpoints, locality, number, set};
    use crate::cluster::lb::{Balancing, PickContext, Scheduler, pick};

    fn object(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    fn config(selectors: &[&[&str]], fallback: Fallback) -> SubsetConfig {
        let selector = |keys: &&[&str]| Selector {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            fallback: None,
            single_host: false,
        };
        SubsetConfig {
            selectors: selectors.iter().map(selector).collect(),
            fallback,
            default_subset: MetadataMatch::default(),
            locality_weight_aware: false,
            scale_locality_weight: false,
            panic_mode_any: false,
            list_as_any: false,
            metadata_fallback_list: false,
            allow_redundant_keys: false,
        }
    }

    /// Hosts 1, 2, … with these metadata.
    fn hosts(metadata: &[&str], config: &SubsetConfig) -> (HostSet, Balancing) {
        let mut list = endpoints(1, &vec![1; metadata.len()]);
        for (endpoint, text) in list.iter_mut().zip(metadata) {
            let mut own = Metadata::default();
            own.set("envoy.lb", object(text));
            endpoint.metadata = own.into();
        }
        let balancing = Balancing { subsets: Some(Arc::new(config.clone())), ..Balancing::default() };
        (set(&assignment(vec![locality("", 0, 0, list)]), &balancing), balancing)
    }

    /// The hosts that a route with this metadata gets, and how.
    fn ask((hosts, balancing): &(HostSet, Balancing), wanted: Option<&str>) -> (Vec<usize>, Option<Outcome>) {
        let wanted = wanted.map(|text| MetadataMatch::new(&object(text)));
        let mut found = Vec::new();
        let mut outcome = None;
        for sequence in 0..8 {
            let context = PickContext { metadata_match: wanted.as_ref(), ..PickContext::new(sequence, sequence) };
            let loads = FixedLoads::default();
            if let Some(picked) = pick(hosts, balancing, &loads, &context, &mut Scheduler::default(), None) {
                found.push(number(&picked.host));
                outcome = Some(picked.subset);
            }
        }
        found.sort_unstable();
        found.dedup();
        (found, outcome)
    }

    const HOSTS: [&str; 4] =
        [r#"{"v": "1", "s": "prod"}"#, r#"{"v": "2", "s": "prod"}"#, r#"{"v": "1", "s": "dev"}"#, r#"{"x": 1}"#];

    #[test]
    fn a_route_gets_the_hosts_with_its_values() {
        let set = hosts(&HOSTS, &config(&[&["v"], &["s", "v"]], Fallback::None));
        assert_eq!(ask(&set, Some(r#"{"v": "1"}"#)), (vec![1, 3], Some(Outcome::Selected)));
        assert_eq!(ask(&set, Some(r#"{"v": "1", "s": "dev"}"#)), (vec![3], Some(Outcome::Selected)));
        assert_eq!(ask(&set, Some(r#"{"v": "3"}"#)), (vec![], None));
        assert_eq!(ask(&set, Some(r#"{"s": "dev"}"#)), (vec![], None));
        assert_eq!(ask(&set, None), (vec![], None));
        assert_eq!(ask(&set, Some("{}")), (vec![], None));
    }

    #[test]
    fn fallbacks_stand_in() {
        let any = hosts(&HOSTS, &config(&[&["v"]], Fallback::Any));
        assert_eq!(ask(&any, Some(r#"{"v": "9"}"#)), (vec![1, 2, 3, 4], Some(Outcome::Fallback)));
        assert_eq!(ask(&any, None), (vec![1, 2, 3, 4], Some(Outcome::Fallback)));
        let mut default = config(&[&["v"]], Fallback::Default);
        default.default_subset = MetadataMatch::new(&object(r#"{"s": "prod"}"#));
        assert_eq!(ask(&hosts(&HOSTS, &default), None), (vec![1, 2], Some(Outcome::Fallback)));
        default.default_subset = MetadataMatch::new(&object(r#"{"s": "none"}"#));
        assert_eq!(ask(&hosts(&HOSTS, &default), None), (vec![], None));
        default.panic_mode_any = true;
        assert_eq!(ask(&hosts(&HOSTS, &default), None), (vec![1, 2, 3, 4], Some(Outcome::FallbackPanic)));
    }

    #[test]
    fn a_selector_may_have_its_own_fallback() {
        let mut own = config(&[&["s", "v"], &["v"]], Fallback::None);
        own.selectors[0].fallback = Some(SelectorFallback::Keys(vec!["v".to_owned()]));
        own.selectors[1].fallback = Some(SelectorFallback::To(Fallback::Any));
        let set = hosts(&HOSTS, &own);
        assert_eq!(ask(&set, Some(r#"{"v": "2", "s": "dev"}"#)), (vec![2], Some(Outcome::Selected)));
        assert_eq!(ask(&set, Some(r#"{"v": "9", "s": "dev"}"#)).1, Some(Outcome::SelectorFallback));
    }

    #[test]
    fn redundant_keys_lists_and_single_hosts() {
        let mut redundant = config(&[&["v"], &["s", "v"]], Fallback::None);
        redundant.allow_redundant_keys = true;
        let set = hosts(&HOSTS, &redundant);
        assert_eq!(ask(&set, Some(r#"{"v": "1", "s": "dev", "other": 1}"#)).0, [3]);
        assert_eq!(ask(&set, Some(r#"{"v": "1", "other": 1}"#)).0, [1, 3]);

        let mut lists = config(&[&["v"]], Fallback::None);
        lists.list_as_any = true;
        let set = hosts(&[r#"{"v": ["1", "2"]}"#, r#"{"v": "2"}"#], &lists);
        assert_eq!(ask(&set, Some(r#"{"v": "2"}"#)).0, [1, 2]);

        let mut single = config(&[&["v"]], Fallback::None);
        single.selectors[0].single_host = true;
        let set = hosts(&[r#"{"v": 1}"#, r#"{"v": 1.0}"#, r#"{"v": 2}"#], &single);
        assert_eq!(ask(&set, Some(r#"{"v": 1}"#)).0, [1]);
        assert_eq!(set.0.subsets.as_ref().unwrap().single_host_duplicates, 1);
    }

    #[test]
    fn variants_are_tried_in_order() {
        let mut variants = config(&[&["v"], &["s", "v"]], Fallback::None);
        variants.metadata_fallback_list = true;
        let set = hosts(&HOSTS, &variants);
        let wanted = r#"{"v": "1", "fallback_list": [{"v": "9"}, {"s": "dev"}, {"v": "2"}]}"#;
        assert_eq!(ask(&set, Some(wanted)).0, [3]);
        assert_eq!(ask(&set, Some(r#"{"v": "2", "fallback_list": []}"#)).0, [2]);
    }

    #[test]
    fn a_weighted_clusters_metadata_lies_over_its_routes() {
        let route = MetadataMatch::new(&object(r#"{"b": 1, "a": 2}"#));
        let merged = route.merged(&object(r#"{"a": "x"}"#));
        assert_eq!(merged, MetadataMatch::new(&object(r#"{"a": "x", "b": 1}"#)));
    }
}
