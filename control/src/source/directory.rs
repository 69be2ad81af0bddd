//! A directory of resources in YAML and JSON, looked at again and again. What its files say is served together or not at all.
//!
//! Each file holds `resources: [{"@type": ...}, ...]`, or one resource with its `@type`, or begins with `tidegate: v1` and is of
//! the short form; those are expanded together. A directory in it is a group of nodes: its `node.yaml` says which (see
//! [`Group::pattern`]), its other files what they get beside and in place of what lies above. One file may stand for a directory
//! with nothing else in it. It must not know what a resource means.

mod assemble;
pub(super) mod file;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tidegate_xds::pb::envoy::config::core::v3::Node;

use self::file::Held;
use super::{Elsewhere, Refused, Registries, Source, aside};
use crate::server::{Group, Resource, ResourceSet, Sets};
use crate::short::Parsed;

/// How often the directory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Several files are often written one after another: they are read once nothing has changed for so long.
const SETTLE: Duration = Duration::from_millis(50);

/// A directory in which something is written without end is read as it is after so many looks.
const MOST_LOOKS: usize = 20;

/// The file that says which nodes a group has.
const NODE: &str = "node";

/// The source. All that takes long is done aside, so that who waits for it goes on with other things.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    seen: Option<Listing>,
    contents: Arc<Mutex<Contents>>,
}

/// What was read; of a file that has not changed it stays.
#[derive(Debug, Default)]
struct Contents {
    root: PathBuf,
    elsewhere: Elsewhere,
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
    Of(Held),
    Node(Box<Node>),
}

/// What one directory holds.
#[derive(Debug, Default)]
struct Part<'a> {
    node: Option<&'a Node>,
    resources: Vec<&'a Arc<Resource>>,
    short: Vec<&'a Parsed>,
}

impl Source for Directory {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        let mut amid_writing = 0;
        loop {
            let mut listing = self.list().await;
            if self.seen.as_ref() == Some(&listing) {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            // The first time there is nobody who could be writing.
            for _ in 0..if self.seen.is_some() { MOST_LOOKS } else { 0 } {
                tokio::time::sleep(SETTLE).await;
                let now = self.list().await;
                if std::mem::replace(&mut listing, now) == listing {
                    break;
                }
            }
            self.seen = Some(listing.clone());
            let contents = Arc::clone(&self.contents);
            let (read, listing) = aside(move || (contents.lock().read(&listing), listing)).await;
            // Half of what somebody writes in place is not what is meant: it is read again once it is whole.
            if amid_writing < MOST_LOOKS && self.list().await != listing {
                amid_writing += 1;
                continue;
            }
            let sets = read?;
            self.contents.lock().last = sets.clone();
            return Ok(sets);
        }
    }
}

impl Directory {
    /// `held_elsewhere`: clusters that proxies have by themselves.
    pub fn new(root: PathBuf, held_elsewhere: impl IntoIterator<Item = String>) -> Self {
        let elsewhere = Elsewhere { clusters: held_elsewhere.into_iter().collect(), ..Elsewhere::default() };
        let contents = Contents { root: root.clone(), elsewhere, ..Contents::default() };
        Self { root, seen: None, contents: Arc::new(Mutex::new(contents)) }
    }

    /// Lets resources name services of these registries.
    #[must_use]
    pub fn with_registries(self, registries: Registries) -> Self {
        self.contents.lock().elsewhere.registries = registries;
        self
    }

    /// What is there now.
    ///
    /// # Errors
    /// As [`Source::next`].
    pub(super) fn load(&self) -> Result<Arc<Sets>, Refused> {
        self.contents.lock().read(&list(&self.root))
    }

    async fn list(&self) -> Listing {
        let root = self.root.clone();
        aside(move || list(&root)).await
    }
}

impl Contents {
    fn read(&mut self, listing: &Listing) -> Result<Arc<Sets>, Refused> {
        let listing = listing.as_ref().map_err(|fault| Refused { faults: vec![fault.clone()] })?;
        self.files.retain(|path, _| listing.contains_key(path));
        for (path, stamp) in listing {
            if self.files.get(path).is_none_or(|read| read.stamp != *stamp) {
                let content = self.read_file(path);
                self.files.insert(path.clone(), Read { stamp: *stamp, content });
            }
        }
        let faults: Vec<String> =
            listing.keys().filter_map(|path| self.files.get(path)?.content.as_ref().err()).flatten().cloned().collect();
        if faults.is_empty() { self.assemble(listing) } else { Err(Refused { faults }) }
    }

    fn read_file(&self, path: &Path) -> Result<Content, Vec<String>> {
        let relative = path.strip_prefix(&self.root).ok().filter(|relative| !relative.as_os_str().is_empty());
        let name: Arc<str> = relative.unwrap_or(path).display().to_string().into();
        let text = std::fs::read(path).map_err(|error| vec![format!("{name}: {error}")])?;
        if text.is_empty() && self.files.get(path).is_some_and(Read::says_something) {
            return Err(vec![format!("{name}: empty; remove the file if nothing of it is to be served")]);
        }
        if self.group_of(path).is_some() && path.file_stem().is_some_and(|stem| stem == NODE) {
            return file::node(&name, path, &text).map(|node| Content::Node(Box::new(node)));
        }
        file::held(&name, path, &text).map(Content::Of)
    }

    /// The directory that a file's group is.
    fn group_of<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        path.parent().filter(|parent| path != self.root && *parent != self.root)
    }
}

impl Read {
    /// Whether it held anything, right or wrong.
    fn says_something(&self) -> bool {
        !matches!(&self.content, Ok(Content::Of(Held::Resources(resources))) if resources.is_empty())
    }
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino(), length: meta.len(), modified: meta.modified().ok() }
    }
}

/// The files of a directory and of those in it, by path; or the one that it is.
fn list(root: &Path) -> Listing {
    let mut found = BTreeMap::new();
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    if let Ok(meta) = std::fs::metadata(root)
        && meta.is_file()
    {
        found.insert(root.to_owned(), Stamp::of(&meta));
        return Ok(found);
    }
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
                found.insert(path, Stamp::of(&meta));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
