//! What the files of a directory say together: what all nodes get, what each group gets, and whether that holds together.
//! It must not know how files are read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::file::Held;
use super::{Content, Contents, Group, NODE, Part, PathBuf, Refused, Resource, ResourceSet, Sets, Stamp};
use crate::server::ResourceType;
use crate::short::{self, Outside};

type ByName = HashMap<(ResourceType, Arc<str>), Arc<Resource>>;

impl Contents {
    /// The sets of all groups, each checked as a whole.
    pub(super) fn assemble(&self, listing: &BTreeMap<PathBuf, Stamp>) -> Result<Arc<Sets>, Refused> {
        let mut faults = Vec::new();
        let mut parts: BTreeMap<Option<&Path>, Part<'_>> = BTreeMap::new();
        parts.entry(None).or_default();
        for path in listing.keys() {
            let part = parts.entry(self.group_of(path)).or_default();
            match self.files.get(path).map(|read| &read.content) {
                Some(Ok(Content::Of(Held::Resources(resources)))) => part.resources.extend(resources),
                Some(Ok(Content::Of(Held::Short(file)))) => part.short.push(file),
                Some(Ok(Content::Node(node))) => part.node = Some(node),
                Some(Err(_)) | None => {}
            }
        }
        let above = parts.remove(&None).unwrap_or_default();
        let shared = self.shared(&above, &mut faults);
        let rest = self.set(shared.values(), &self.last.rest, &mut faults);
        let mut groups = Vec::new();
        for (path, part) in parts {
            let name =
                path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(node) = part.node else {
                faults.push(format!("{name}: no {NODE}.yaml says which nodes this group has"));
                continue;
            };
            let before = self.last.groups.iter().find(|group| *group.name == *name).map(|group| &group.set);
            let before = before.unwrap_or(&self.last.rest);
            let all = self.of_group(&shared, &above, &part, before, &mut faults);
            let set = self.set(all.values(), before, &mut faults);
            groups.push(Group { name: name.into(), pattern: node.clone(), set });
        }
        if !faults.is_empty() {
            // What all groups share is found wanting in each of them.
            let mut told = BTreeSet::new();
            faults.retain(|fault| told.insert(fault.clone()));
            return Err(Refused { faults });
        }
        Ok(Arc::new(Sets { rest, groups }))
    }

    /// What all nodes get.
    fn shared(&self, above: &Part<'_>, faults: &mut Vec<String>) -> ByName {
        let expanded = self.expand(&[(above, false)], above.resources.iter().copied(), &self.last.rest, faults);
        unique(above.resources.iter().copied().chain(&expanded), faults)
    }

    /// What the nodes of a group get: what all get, and in its place what the group's own files say.
    fn of_group(
        &self,
        shared: &ByName,
        above: &Part<'_>,
        own: &Part<'_>,
        before: &ResourceSet,
        faults: &mut Vec<String>,
    ) -> ByName {
        let mut all = shared.clone();
        if own.short.is_empty() {
            all.extend(unique(own.resources.iter().copied(), faults));
            return all;
        }
        // Hosts of the group may be served on listeners from above: what they expand to is made anew.
        let beside = above.resources.iter().chain(&own.resources).copied();
        let expanded = self.expand(&[(above, false), (own, true)], beside, before, faults);
        let is_own = |resource: &&Arc<Resource>| {
            resource.origin.as_ref().is_some_and(|(file, _)| own.short.iter().any(|own| own.name() == file))
        };
        all.extend(expanded.iter().map(|resource| (key(resource), resource.clone())));
        all.extend(unique(own.resources.iter().copied().chain(expanded.iter().filter(is_own)), faults));
        all
    }

    fn expand<'a>(
        &self,
        parts: &[(&Part<'_>, bool)],
        beside: impl Iterator<Item = &'a Arc<Resource>>,
        before: &ResourceSet,
        faults: &mut Vec<String>,
    ) -> Vec<Arc<Resource>> {
        let mut files = Vec::new();
        for (part, of_group) in parts {
            files.extend(part.short.iter().map(|file| short::Part { file, of_group: *of_group }));
        }
        if files.is_empty() {
            return Vec::new();
        }
        let clusters = beside.filter(|resource| resource.kind == ResourceType::CLUSTER);
        let mut others: BTreeSet<&str> = clusters.map(|cluster| &*cluster.name).collect();
        others.extend(self.elsewhere.clusters.iter().map(String::as_str));
        short::expand(&files, &Outside::These(&others), before).unwrap_or_else(|wrong| {
            faults.extend(wrong);
            Vec::new()
        })
    }

    fn set<'a>(
        &self,
        resources: impl Iterator<Item = &'a Arc<Resource>>,
        before: &Arc<ResourceSet>,
        faults: &mut Vec<String>,
    ) -> Arc<ResourceSet> {
        let set = before.turned_into(resources.cloned());
        faults
            .extend(set.dangling(before, &|reference| self.elsewhere.holds(reference)).iter().map(ToString::to_string));
        if set.version() == before.version() { before.clone() } else { Arc::new(set) }
    }
}

fn key(resource: &Arc<Resource>) -> (ResourceType, Arc<str>) {
    (resource.kind, resource.name.clone())
}

fn unique<'a>(resources: impl Iterator<Item = &'a Arc<Resource>>, faults: &mut Vec<String>) -> ByName {
    let mut all = ByName::new();
    for resource in resources {
        if let Some(before) = all.insert(key(resource), resource.clone()) {
            let (kind, name) = (resource.kind.short(), &resource.name);
            let (here, there) = (resource.place(None), before.place(None));
            faults.push(format!("{here}: there is a {kind} '{name}' already, at {there}"));
        }
    }
    all
}
