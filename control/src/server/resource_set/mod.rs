//! What a control plane serves: resources by type and name, immutable, with versions. A changed set shares with the one
//! before what did not change, so that an update and the comparison of two sets cost what changed.
//! It must not know who is served, nor what a resource means.

mod references;
mod resource;
#[cfg(test)]
mod tests;
mod types;

use std::collections::HashMap;
use std::sync::Arc;

use imbl::OrdMap;
pub use imbl::ordmap::DiffItem;
use prost::{Message, Name};
pub use references::Reference;
pub(super) use resource::LONGEST_NAME;
pub(crate) use resource::Piece;
pub use resource::{Resource, Version};
use tidegate_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use tidegate_xds::to_whole_json;
pub use types::ResourceType;
use xxhash_rust::xxh64::xxh64;

/// All resources of one type.
#[derive(Debug, Clone, Default)]
pub struct Kind {
    resources: OrdMap<Arc<str>, Arc<Resource>>,
    /// The sum of what [`share`] gives for each of them: an update costs what changed, and the order in which resources
    /// came does not matter.
    sum: u64,
}

/// A resource's share of the version of its type.
fn share(resource: &Resource) -> u64 {
    xxh64(resource.name.as_bytes(), resource.version.number())
}

/// The version of some resources of one type.
pub(super) fn version_of<'a>(resources: impl Iterator<Item = &'a Arc<Resource>>) -> String {
    let sum = resources.fold(0u64, |sum, resource| sum.wrapping_add(share(resource)));
    format!("{sum:016x}")
}

impl Kind {
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    pub fn len(&self) -> usize {
        self.resources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The same content has the same version.
    pub fn version(&self) -> String {
        format!("{:016x}", self.sum)
    }

    /// What is other in `newer`; what both share is not looked at.
    pub fn changes<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = (&'a Arc<str>, Option<&'a Arc<Resource>>)> {
        self.resources.diff(&newer.resources).map(|item| match item {
            DiffItem::Add(name, resource) | DiffItem::Update { new: (name, resource), .. } => (name, Some(resource)),
            DiffItem::Remove(name, _) => (name, None),
        })
    }

    pub(super) fn insert(&mut self, resource: Arc<Resource>) {
        self.sum = self.sum.wrapping_add(share(&resource));
        if let Some(before) = self.resources.insert(resource.name.clone(), resource) {
            self.sum = self.sum.wrapping_sub(share(&before));
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Arc<Resource>> {
        let gone = self.resources.remove(name)?;
        self.sum = self.sum.wrapping_sub(share(&gone));
        Some(gone)
    }
}

/// What is served together.
#[derive(Debug, Clone)]
pub struct ResourceSet {
    kinds: Vec<Kind>,
}

impl Default for ResourceSet {
    fn default() -> Self {
        Self { kinds: vec![Kind::default(); ResourceType::COUNT] }
    }
}

/// Something is named that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dangling {
    pub from: Arc<str>,
    pub kind: ResourceType,
    pub reference: Reference,
    /// `file:line`, or nothing for what came from no file.
    pub place: String,
}

impl std::fmt::Display for Dangling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        let Self { from, kind, reference, .. } = self;
        let (to, name) = (reference.to.short(), &reference.name);
        write!(f, "{} '{from}': {}: there is no {to} '{name}'", kind.short(), reference.path)
    }
}

impl ResourceSet {
    pub fn kind(&self, kind: ResourceType) -> &Kind {
        // Every set has all types.
        &self.kinds[kind.place()]
    }

    pub(super) fn kind_mut(&mut self, kind: ResourceType) -> &mut Kind {
        &mut self.kinds[kind.place()]
    }

    pub fn insert(&mut self, resource: Arc<Resource>) {
        self.kind_mut(resource.kind).insert(resource);
    }

    pub fn remove(&mut self, kind: ResourceType, name: &str) -> Option<Arc<Resource>> {
        self.kind_mut(kind).remove(name)
    }

    /// A set of exactly these resources, of which no two have one type and name; it shares with this one what is in both.
    #[must_use]
    pub fn turned_into(&self, resources: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let mut wanted: Vec<HashMap<Arc<str>, Arc<Resource>>> = vec![HashMap::new(); ResourceType::COUNT];
        for resource in resources {
            wanted[resource.kind.place()].insert(resource.name.clone(), resource);
        }
        let mut turned = self.clone();
        for (kind, mut wanted) in turned.kinds.iter_mut().zip(wanted) {
            let mut gone = Vec::new();
            for here in kind.iter() {
                match wanted.get(&here.name) {
                    Some(resource) if here.is_same_in_place(resource) => drop(wanted.remove(&here.name)),
                    Some(_) => {}
                    None => gone.push(here.name.clone()),
                }
            }
            gone.iter().for_each(|name| drop(kind.remove(name)));
            wanted.into_values().for_each(|resource| kind.insert(resource));
        }
        turned
    }

    /// All of it as JSON, secrets too: what a file of a source may hold.
    pub fn to_json(&self) -> serde_json::Value {
        let resources = self.kinds.iter().flat_map(Kind::iter).map(|resource| resource.body.clone());
        let response = DiscoveryResponse { resources: resources.collect(), ..DiscoveryResponse::default() };
        to_whole_json(&DiscoveryResponse::full_name(), &response.encode_to_vec())
    }

    pub fn len(&self) -> usize {
        self.kinds.iter().map(Kind::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.kinds.iter().all(Kind::is_empty)
    }

    /// The same content has the same version.
    pub fn version(&self) -> String {
        let sums: Vec<u8> = self.kinds.iter().flat_map(|kind| kind.sum.to_le_bytes()).collect();
        format!("{:016x}", xxh64(&sums, 0))
    }

    /// What is named and not there. `held_elsewhere` tells which names proxies have by themselves. Where nothing is gone since
    /// `before`, which held together, only what changed is looked at.
    pub fn dangling(&self, before: &Self, held_elsewhere: &dyn Fn(&Reference) -> bool) -> Vec<Dangling> {
        let pairs = || before.kinds.iter().zip(&self.kinds);
        let gone = pairs().any(|(before, now)| before.changes(now).any(|(_, resource)| resource.is_none()));
        let mut found = Vec::new();
        let mut check = |resource: &Arc<Resource>| {
            let is_there = |reference: &Reference| self.kind(reference.to).get(&reference.name).is_some();
            let missing =
                resource.references.iter().filter(|reference| !is_there(reference) && !held_elsewhere(reference));
            found.extend(missing.map(|reference| Dangling {
                from: resource.name.clone(),
                kind: resource.kind,
                reference: reference.clone(),
                place: resource.place(reference.location),
            }));
        };
        if gone {
            self.kinds.iter().flat_map(Kind::iter).for_each(&mut check);
        } else {
            pairs().flat_map(|(before, now)| before.changes(now)).filter_map(|(_, resource)| resource).for_each(check);
        }
        found
    }
}
