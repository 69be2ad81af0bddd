//! Resources that are changed one request at a time, or several together, and kept in one file. Each change is checked as a
//! whole and says, if its author wishes, which versions it expects to find. It must not know how a request travels.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::directory::file;
use super::{Elsewhere, Refused, Registries, Source};
use crate::server::resource_set::Version;
use crate::server::{Resource, ResourceSet, ResourceType, Sets};

const FILE: &str = "resources.json";

/// The store.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    elsewhere: Elsewhere,
    /// Held while a change is checked and written: changes come one after another.
    writing: Mutex<()>,
    sets: watch::Sender<Arc<Sets>>,
}

/// What a change expects to find where it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Anything,
    Nothing,
    Version(Version),
}

/// Several resources that change together.
#[derive(Debug, Default)]
pub struct Change {
    pub put: Vec<(Arc<Resource>, Option<Expected>)>,
    pub delete: Vec<(ResourceType, Arc<str>, Option<Expected>)>,
    /// The version of all that is there, if nothing may have changed meanwhile.
    pub of: Option<String>,
}

/// What became of one resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    pub kind: ResourceType,
    pub name: Arc<str>,
    pub before: Option<Arc<Resource>>,
    pub after: Option<Arc<Resource>>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Something else is there than was expected.
    #[error("{0}")]
    Conflict(String),
    #[error("there is no {kind} '{1}'", kind = .0.short())]
    Missing(ResourceType, Arc<str>),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("cannot be written: {0}")]
    Storage(#[from] io::Error),
}

impl Store {
    /// Opens a directory, with what was kept there. `held_elsewhere`: clusters that proxies have by themselves; `registries`: whose
    /// services resources may name.
    ///
    /// # Errors
    /// What is kept there cannot be read, or does not hold together.
    pub fn open(
        directory: &Path,
        held_elsewhere: impl IntoIterator<Item = String>,
        registries: Registries,
    ) -> Result<Arc<Self>, Refused> {
        let path = directory.join(FILE);
        let failed = |error: io::Error| Refused { faults: vec![format!("{}: {error}", path.display())] };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let resources = match std::fs::read(&path) {
            Ok(text) => file::alone(&FILE.into(), &path, &text).map_err(|faults| Refused { faults })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        let store = Self {
            directory: directory.to_owned(),
            elsewhere: Elsewhere { clusters: held_elsewhere.into_iter().collect(), registries },
            writing: Mutex::default(),
            sets: watch::Sender::new(Arc::default()),
        };
        let empty = ResourceSet::default();
        let set = empty.turned_into(resources);
        store.check(&set, &empty)?;
        store.sets.send_replace(Arc::new(Sets { rest: Arc::new(set), groups: Vec::new() }));
        Ok(Arc::new(store))
    }

    /// What fills a control plane from here.
    pub fn source(&self) -> impl Source + use<> {
        let mut receiver = self.sets.subscribe();
        receiver.mark_changed();
        Following(receiver)
    }

    /// All that is there.
    pub fn set(&self) -> Arc<ResourceSet> {
        self.sets.borrow().rest.clone()
    }

    /// Makes a change, or says what it would be; what stays as it is is not told.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn change(&self, change: Change, only_say: bool) -> Result<Vec<Changed>, ChangeError> {
        let _one_by_one = self.writing.lock();
        let before = self.set();
        if let Some(of) = change.of.filter(|of| *of != before.version()) {
            return Err(ChangeError::Conflict(format!("expected version {of} of all, found {}", before.version())));
        }
        let mut after = ResourceSet::clone(&before);
        for (resource, expected) in change.put {
            expect(&after, resource.kind, &resource.name, expected)?;
            after.insert(resource);
        }
        for (kind, name, expected) in change.delete {
            expect(&after, kind, &name, expected)?;
            if after.remove(kind, &name).is_none() {
                return Err(ChangeError::Missing(kind, name));
            }
        }
        self.check(&after, &before)?;
        let changed: Vec<Changed> = ResourceType::all().flat_map(|kind| changes(kind, &before, &after)).collect();
        if !only_say && !changed.is_empty() {
            self.write(&after)?;
            self.sets.send_replace(Arc::new(Sets { rest: Arc::new(after), groups: Vec::new() }));
        }
        Ok(changed)
    }

    fn check(&self, set: &ResourceSet, before: &ResourceSet) -> Result<(), Refused> {
        let dangling = set.dangling(before, &|reference| self.elsewhere.holds(reference));
        let faults: Vec<String> = dangling.iter().map(ToString::to_string).collect();
        if faults.is_empty() { Ok(()) } else { Err(Refused { faults }) }
    }

    /// Writes all beside, then moves it into place: what is there is always whole. There may be keys in it.
    fn write(&self, set: &ResourceSet) -> io::Result<()> {
        let json = set.to_json();
        let (new, path) = (self.directory.join(".resources.json.new"), self.directory.join(FILE));
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        writeln!(file, "{json:#}")?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(&self.directory)?.sync_all()
    }
}

fn expect(set: &ResourceSet, kind: ResourceType, name: &str, expected: Option<Expected>) -> Result<(), ChangeError> {
    let here = set.kind(kind).get(name).map(|resource| resource.version);
    let wrong = match expected {
        None => false,
        Some(Expected::Anything) => here.is_none(),
        Some(Expected::Nothing) => here.is_some(),
        Some(Expected::Version(version)) => here != Some(version),
    };
    if !wrong {
        return Ok(());
    }
    let found = here.map_or_else(|| "nothing".to_owned(), |version| format!("version {version}"));
    Err(ChangeError::Conflict(format!("{} '{name}': found {found}", kind.short())))
}

fn changes(kind: ResourceType, before: &ResourceSet, after: &ResourceSet) -> Vec<Changed> {
    let (before, after) = (before.kind(kind), after.kind(kind));
    let changed = |(name, after): (&Arc<str>, Option<&Arc<Resource>>)| {
        let (before, after) = (before.get(name).cloned(), after.cloned());
        Changed { kind, name: name.clone(), before, after }
    };
    before.changes(after).map(changed).collect()
}

struct Following(watch::Receiver<Arc<Sets>>);

impl Source for Following {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        // An error means that the store is gone: nothing will change any more.
        if self.0.changed().await.is_err() {
            return std::future::pending().await;
        }
        Ok(self.0.borrow_and_update().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::cluster;
    use tidegate_xds::any;
    use tidegate_xds::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tidegate-store-{}-{name}", std::process::id()));
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn put(resource: Arc<Resource>, expected: Option<Expected>) -> Change {
        Change { put: vec![(resource, expected)], ..Change::default() }
    }

    fn delete(name: &str, expected: Option<Expected>) -> Change {
        Change { delete: vec![(ResourceType::CLUSTER, name.into(), expected)], ..Change::default() }
    }

    /// A cluster that names others.
    fn naming(names: &[&str]) -> Arc<Resource> {
        use tidegate_xds::pb::envoy::config::cluster::v3::{
            Cluster, cluster::ClusterDiscoveryType, cluster::CustomClusterType,
        };
        let config = ClusterConfig { clusters: names.iter().map(ToString::to_string).collect() };
        let custom = CustomClusterType { name: "x".to_owned(), typed_config: Some(any::pack(&config)) };
        let cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(custom));
        let message = Cluster { name: "all".to_owned(), cluster_discovery_type, ..Cluster::default() };
        Arc::new(Resource::read(any::pack(&message)).unwrap())
    }

    #[tokio::test]
    async fn changes_are_kept_and_followed() {
        let scratch = Scratch::new("kept");
        let store = Store::open(&scratch.0, [], Registries::default()).unwrap();
        let mut source = store.source();
        assert!(source.next().await.unwrap().rest.is_empty());
        let changed = store.change(put(cluster("a", ""), None), false).unwrap();
        assert!(changed.len() == 1 && changed[0].before.is_none() && changed[0].after.is_some());
        assert_eq!(source.next().await.unwrap().rest.len(), 1);
        assert!(store.change(put(cluster("a", ""), None), false).unwrap().is_empty());
        assert_eq!(store.change(put(cluster("a", "x"), None), true).unwrap().len(), 1);
        let again = Store::open(&scratch.0, [], Registries::default()).unwrap();
        assert_eq!(again.set().version(), store.set().version());
        again.change(delete("a", None), false).unwrap();
        assert!(Store::open(&scratch.0, [], Registries::default()).unwrap().set().is_empty());
    }

    #[test]
    fn a_change_that_expects_something_else_is_not_made() {
        let scratch = Scratch::new("expected");
        let store = Store::open(&scratch.0, [], Registries::default()).unwrap();
        let first = cluster("a", "");
        let conflict = |change: Change| match store.change(change, false) {
            Err(ChangeError::Conflict(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(conflict(put(first.clone(), Some(Expected::Anything))), "Cluster 'a': found nothing");
        store.change(put(first.clone(), Some(Expected::Nothing)), false).unwrap();
        let found = format!("Cluster 'a': found version {}", first.version);
        assert_eq!(conflict(put(cluster("a", "x"), Some(Expected::Nothing))), found);
        store.change(put(cluster("a", "x"), Some(Expected::Version(first.version))), false).unwrap();
        conflict(put(cluster("a", "y"), Some(Expected::Version(first.version))));
        conflict(delete("a", Some(Expected::Version(first.version))));
        let of = Some("0".repeat(16));
        assert!(
            conflict(Change { of, ..put(cluster("b", ""), None) }).starts_with("expected version 0000000000000000")
        );
        assert!(matches!(store.change(delete("b", None), false), Err(ChangeError::Missing(..))));
    }

    #[test]
    fn what_does_not_hold_together_is_not_made() {
        let scratch = Scratch::new("whole");
        let store = Store::open(&scratch.0, [], Registries::default()).unwrap();
        let alone = store.change(put(naming(&["a"]), None), false).unwrap_err().to_string();
        assert!(alone.ends_with("there is no Cluster 'a'"), "{alone}");
        let both = vec![(naming(&["a"]), None), (cluster("a", ""), None)];
        assert_eq!(store.change(Change { put: both, ..Change::default() }, false).unwrap().len(), 2);
        assert!(matches!(store.change(delete("a", None), false), Err(ChangeError::Refused(_))));
        assert_eq!(store.set().len(), 2);
    }
}
