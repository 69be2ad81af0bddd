//! A directory of resources in YAML and JSON, looked at again and again. What its files say is served together or not at all.
//!
//! Each file holds `resources: [{"@type": ...}, ...]`, or one resource with its `@type`. A directory in it is a group of nodes:
//! its `node.yaml` says which (see [`Group::pattern`]), its other files what they get beside and in place of what lies above.
//! It must not know what a resource means.

pub(super) mod file;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_xds::pb::envoy::config::core::v3::Node;

use super::{Refused, Source};
use crate::server::resource_set::Reference;
use crate::server::{Group, Resource, ResourceSet, ResourceType, Sets};

/// How often the directory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Several files are often written one after another: they are read once nothing has changed for so long.
const SETTLE: Duration = Duration::from_millis(50);

/// A directory in which something is written without end is read as it is after so many looks.
const MOST_LOOKS: usize = 20;

/// The file that says which nodes a group has.
const NODE: &str = "node";

/// The source.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// Clusters that proxies have from their bootstrap: naming them is no fault.
    held_elsewhere: BTreeSet<String>,
    seen: Option<Listing>,
    files: HashMap<PathBuf, Read>,
    last: Arc<Sets>,
}

/// Which file it was: a move into place shows as another inode, a write as another time or length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

type Listing = Result<BTreeMap<PathBuf, Stamp>, String>;

/// A file as it was read last.
#[derive(Debug)]
struct Read {
    stamp: Stamp,
    content: Result<Content, Vec<String>>,
}

#[derive(Debug)]
enum Content {
    Resources(Vec<Arc<Resource>>),
    Node(Box<Node>),
}

/// What one directory holds.
#[derive(Debug, Default)]
struct Part<'a> {
    node: Option<&'a Node>,
    resources: Vec<&'a Arc<Resource>>,
}

impl Source for Directory {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        loop {
            let mut listing = list(&self.root);
            if self.seen.as_ref() == Some(&listing) {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            // The first time there is nobody who could be writing.
            for _ in 0..if self.seen.is_some() { MOST_LOOKS } else { 0 } {
                tokio::time::sleep(SETTLE).await;
                let now = list(&self.root);
                if std::mem::replace(&mut listing, now) == listing {
                    break;
                }
            }
            self.seen = Some(listing.clone());
            let sets = self.read(listing)?;
            self.last = sets.clone();
            return Ok(sets);
        }
    }
}

impl Directory {
    /// `held_elsewhere`: clusters that proxies have by themselves.
    pub fn new(root: PathBuf, held_elsewhere: impl IntoIterator<Item = String>) -> Self {
        Self {
            root,
            held_elsewhere: held_elsewhere.into_iter().collect(),
            seen: None,
            files: HashMap::new(),
            last: Arc::default(),
        }
    }

    fn read(&mut self, listing: Listing) -> Result<Arc<Sets>, Refused> {
        let listing = listing.map_err(|fault| Refused { faults: vec![fault] })?;
        self.files.retain(|path, _| listing.contains_key(path));
        for (path, stamp) in &listing {
            if self.files.get(path).is_none_or(|read| read.stamp != *stamp) {
                let content = self.read_file(path);
                self.files.insert(path.clone(), Read { stamp: *stamp, content });
            }
        }
        let faults: Vec<String> =
            listing.keys().filter_map(|path| self.files.get(path)?.content.as_ref().err()).flatten().cloned().collect();
        if faults.is_empty() { self.assemble(&listing) } else { Err(Refused { faults }) }
    }

    fn read_file(&self, path: &Path) -> Result<Content, Vec<String>> {
        let name: Arc<str> = path.strip_prefix(&self.root).unwrap_or(path).display().to_string().into();
        let text = std::fs::read(path).map_err(|error| vec![format!("{name}: {error}")])?;
        let in_group = path.parent() != Some(&self.root);
        if in_group && path.file_stem().is_some_and(|stem| stem == NODE) {
            return file::node(&name, path, &text).map(|node| Content::Node(Box::new(node)));
        }
        file::resources(&name, path, &text).map(Content::Resources)
    }

    /// The sets of all groups, each checked as a whole.
    fn assemble(&self, listing: &BTreeMap<PathBuf, Stamp>) -> Result<Arc<Sets>, Refused> {
        let mut faults = Vec::new();
        let mut parts: BTreeMap<Option<&Path>, Part<'_>> = BTreeMap::new();
        parts.entry(None).or_default();
        for path in listing.keys() {
            let part = parts.entry(path.parent().filter(|parent| *parent != self.root)).or_default();
            match self.files.get(path).map(|read| &read.content) {
                Some(Ok(Content::Resources(resources))) => part.resources.extend(resources),
                Some(Ok(Content::Node(node))) => part.node = Some(node),
                Some(Err(_)) | None => {}
            }
        }
        let shared = parts.remove(&None).map(|part| unique(part.resources, &mut faults)).unwrap_or_default();
        let rest = self.set(shared.values(), &self.last.rest, &mut faults);
        let mut groups = Vec::new();
        for (path, Part { node, resources }) in parts {
            let name =
                path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(node) = node else {
                faults.push(format!("{name}: no {NODE}.yaml says which nodes this group has"));
                continue;
            };
            let mut all = shared.clone();
            all.extend(unique(resources, &mut faults));
            let before = self.last.groups.iter().find(|group| *group.name == *name).map(|group| &group.set);
            let set = self.set(all.values(), before.unwrap_or(&self.last.rest), &mut faults);
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

    fn set<'a>(
        &self,
        resources: impl Iterator<Item = &'a Arc<Resource>>,
        before: &Arc<ResourceSet>,
        faults: &mut Vec<String>,
    ) -> Arc<ResourceSet> {
        let set = before.turned_into(resources.cloned());
        let held = |reference: &Reference| {
            reference.to == ResourceType::CLUSTER && self.held_elsewhere.contains(&*reference.name)
        };
        faults.extend(set.dangling(before, &held).iter().map(ToString::to_string));
        if set.version() == before.version() { before.clone() } else { Arc::new(set) }
    }
}

type ByName = HashMap<(ResourceType, Arc<str>), Arc<Resource>>;

fn unique(resources: Vec<&Arc<Resource>>, faults: &mut Vec<String>) -> ByName {
    let mut all = ByName::with_capacity(resources.len());
    for resource in resources {
        if let Some(before) = all.insert((resource.kind, resource.name.clone()), resource.clone()) {
            let (kind, name) = (resource.kind.short(), &resource.name);
            let (here, there) = (resource.place(None), before.place(None));
            faults.push(format!("{here}: there is a {kind} '{name}' already, at {there}"));
        }
    }
    all
}

/// The files of a directory and of those in it, by path.
fn list(root: &Path) -> Listing {
    let mut found = BTreeMap::new();
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let mut directories = vec![(root.to_owned(), true)];
    while let Some((directory, outermost)) = directories.pop() {
        for entry in std::fs::read_dir(&directory).map_err(|error| failed(&directory, error))? {
            let path = entry.map_err(|error| failed(&directory, error))?.path();
            let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            // What is gone again since it was listed shows the next time.
            let Some(meta) = std::fs::metadata(&path).ok().filter(|_| !hidden) else { continue };
            let known =
                path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|it| extension == *it));
            if meta.is_dir() && outermost {
                directories.push((path, false));
            } else if meta.is_file() && known {
                let modified = meta.modified().ok();
                let stamp = Stamp { device: meta.dev(), inode: meta.ino(), length: meta.len(), modified };
                found.insert(path, stamp);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
