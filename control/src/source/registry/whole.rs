//! What a source gave, with endpoints in it that it does not have itself. News of one service cost what they change, not what
//! there is. It must not know where endpoints come from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Registries;
use crate::server::{Resource, ResourceSet, ResourceType, Sets};

/// The sets of a source, and which of them name which service of a registry.
#[derive(Debug)]
pub(super) struct Whole {
    sets: Sets,
    /// By service; 0 is the rest, and the groups come after it.
    named_in: BTreeMap<Arc<str>, Vec<usize>>,
}

impl Whole {
    /// As the source gave them.
    pub(super) fn new(base: &Sets, registries: &Registries) -> Self {
        let mut named_in: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for (index, (_, set)) in base.all().enumerate() {
            for service in needed(set, registries) {
                let places = named_in.entry(Arc::clone(service)).or_default();
                // Several clusters may name it.
                if places.last() != Some(&index) {
                    places.push(index);
                }
            }
        }
        Self { sets: base.clone(), named_in }
    }

    /// The services of registries that are named and not in the set that names them.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<str>> {
        self.named_in.keys()
    }

    /// Whether somebody needs the endpoints of a service.
    pub(super) fn names(&self, service: &str) -> bool {
        self.named_in.contains_key(service)
    }

    /// Puts endpoints where they are named; whether that changes anything.
    pub(super) fn insert(&mut self, endpoints: &Arc<Resource>) -> bool {
        let mut changed = false;
        for index in self.named_in.get(&endpoints.name).into_iter().flatten() {
            let set = match index.checked_sub(1) {
                None => Some(&mut self.sets.rest),
                Some(group) => self.sets.groups.get_mut(group).map(|group| &mut group.set),
            };
            let Some(set) = set else { continue };
            let before = set.kind(ResourceType::ENDPOINTS).get(&endpoints.name);
            if before.is_none_or(|before| before.version != endpoints.version) {
                Arc::make_mut(set).insert(Arc::clone(endpoints));
                changed = true;
            }
        }
        changed
    }

    /// All together; what is as it was in `given` is the same object.
    pub(super) fn since(&mut self, given: Option<&Sets>) -> &Sets {
        let Some(given) = given else { return &self.sets };
        keep(&mut self.sets.rest, &given.rest);
        for group in &mut self.sets.groups {
            if let Some(before) = given.groups.iter().find(|before| before.name == group.name) {
                keep(&mut group.set, &before.set);
            }
        }
        &self.sets
    }
}

fn keep(set: &mut Arc<ResourceSet>, before: &Arc<ResourceSet>) {
    if !Arc::ptr_eq(set, before) && set.version() == before.version() {
        *set = Arc::clone(before);
    }
}

/// The services of registries that a set names and does not hold itself.
fn needed<'a>(set: &'a ResourceSet, registries: &'a Registries) -> impl Iterator<Item = &'a Arc<str>> {
    let references = set.kind(ResourceType::CLUSTER).iter().flat_map(|cluster| &cluster.references);
    let ours = references.filter(|reference| registries.have(reference)).map(|reference| &reference.name);
    ours.filter(|name| set.kind(ResourceType::ENDPOINTS).get(name).is_none())
}
