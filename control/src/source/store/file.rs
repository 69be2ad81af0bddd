//! Resources in one file: a change writes it anew. It must not know how a request travels.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::change::changes;
use super::{Change, ChangeError, Changed, Told};
use crate::server::{ResourceSet, Sets};
use crate::source::directory::file;
use crate::source::{Elsewhere, Refused};

const FILE: &str = "resources.json";

/// Whoever serves a directory holds a lock on this file in it: of two that write, one would take the other's changes back.
const LOCK: &str = ".lock";

/// A directory with the file in it.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    /// Held until it is closed.
    _lock: std::fs::File,
    elsewhere: Elsewhere,
    /// Held while a change is checked and written: changes come one after another.
    writing: Mutex<()>,
    told: watch::Sender<Told>,
    set: Mutex<Arc<ResourceSet>>,
}

impl Kept {
    /// Opens a directory, with what was kept there.
    pub(super) fn open(directory: &Path, elsewhere: Elsewhere) -> Result<Self, Refused> {
        let path = directory.join(FILE);
        let failed = |error: io::Error| Refused { faults: vec![format!("{}: {error}", path.display())] };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let lock = lock(directory)?;
        let resources = match std::fs::read(&path) {
            Ok(text) => file::alone(&FILE.into(), &path, &text).map_err(|faults| Refused { faults })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        let empty = ResourceSet::default();
        let set = Arc::new(empty.turned_into(resources));
        elsewhere.check(&set, &empty)?;
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
            elsewhere,
            writing: Mutex::default(),
            told: watch::Sender::new(Ok(Arc::new(Sets { rest: set.clone(), groups: Vec::new() }))),
            set: Mutex::new(set),
        })
    }

    pub(super) fn told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    pub(super) fn set(&self) -> Arc<ResourceSet> {
        self.set.lock().clone()
    }

    pub(super) fn change(&self, change: Change, only_say: bool) -> Result<Vec<Changed>, ChangeError> {
        let _one_by_one = self.writing.lock();
        let before = self.set();
        let mut after = change.made(&before)?;
        self.elsewhere.check(&after, &before)?;
        let changed = changes(&before, &after);
        if !only_say && !changed.is_empty() {
            self.write(&after)?;
            // What somebody sent has no place any more once it is here.
            for resource in changed.iter().filter_map(|changed| changed.after.as_ref()) {
                after.insert(Arc::new(resource.kept_in(&FILE.into())));
            }
            let after = Arc::new(after);
            *self.set.lock() = after.clone();
            // What was told before is of no use any more.
            let _ = self.told.send_replace(Ok(Arc::new(Sets { rest: after, groups: Vec::new() })));
        }
        Ok(changed)
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

fn lock(directory: &Path) -> Result<std::fs::File, Refused> {
    let path = directory.join(LOCK);
    let fault = |reason: &str| Refused { faults: vec![format!("{}: {reason}", path.display())] };
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|error| fault(&error.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(fault("another control plane uses this store")),
        Err(std::fs::TryLockError::Error(error)) => Err(fault(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::cluster;
    use crate::server::{Resource, ResourceType};
    use crate::source::Source;
    use crate::source::store::{Expected, Following, Store};
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
        let store = Kept::open(&scratch.0, Elsewhere::default()).unwrap();
        let mut source = Following::new(store.told());
        assert!(source.next().await.unwrap().rest.is_empty());
        let changed = store.change(put(cluster("a", ""), None), false).unwrap();
        assert!(changed.len() == 1 && changed[0].before.is_none() && changed[0].after.is_some());
        assert_eq!(source.next().await.unwrap().rest.len(), 1);
        assert!(store.change(put(cluster("a", ""), None), false).unwrap().is_empty());
        assert_eq!(store.change(put(cluster("a", "x"), None), true).unwrap().len(), 1);
        let version = store.set().version();
        let other = Kept::open(&scratch.0, Elsewhere::default()).unwrap_err().to_string();
        assert!(other.ends_with("/.lock: another control plane uses this store"), "{other}");
        drop(store);
        let again = Kept::open(&scratch.0, Elsewhere::default()).unwrap();
        assert_eq!(again.set().version(), version);
        again.change(delete("a", None), false).unwrap();
        drop(again);
        assert!(Kept::open(&scratch.0, Elsewhere::default()).unwrap().set().is_empty());
    }

    /// Writing takes long, and may have to wait for another.
    #[tokio::test]
    async fn a_change_holds_nobody_up() {
        let scratch = Scratch::new("aside");
        let kept = Arc::new(Kept::open(&scratch.0, Elsewhere::default()).unwrap());
        let store = Store(super::super::Kept::File(kept.clone()));
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let _writing = kept.writing.lock();
            begun.send(()).unwrap();
            ends.recv_timeout(std::time::Duration::from_secs(5))
        });
        has_begun.recv().unwrap();
        let mut change = std::pin::pin!(store.change(put(cluster("a", ""), None), false));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(change.as_mut().poll(&mut context).is_pending(), "it waits for the other, and all with it");
        end.send(()).unwrap();
        assert_eq!(change.await.unwrap().len(), 1);
        other.join().unwrap().unwrap();
    }

    #[test]
    fn a_change_that_expects_something_else_is_not_made() {
        let scratch = Scratch::new("expected");
        let store = Kept::open(&scratch.0, Elsewhere::default()).unwrap();
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
        let store = Kept::open(&scratch.0, Elsewhere::default()).unwrap();
        let alone = store.change(put(naming(&["a"]), None), false).unwrap_err().to_string();
        assert!(alone.ends_with("there is no Cluster 'a'"), "{alone}");
        let both = vec![(naming(&["a"]), None), (cluster("a", ""), None)];
        assert_eq!(store.change(Change { put: both, ..Change::default() }, false).unwrap().len(), 2);
        assert!(matches!(store.change(delete("a", None), false), Err(ChangeError::Refused(_))));
        assert_eq!(store.set().len(), 2);
    }
}
