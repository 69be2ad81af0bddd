//! The runtime: layers of values that operators change while traffic flows, merged for readers into one map. Static layers
//! come from the bootstrap, disk layers from a directory that is moved into place, the admin layer from `/runtime_modify`.
//! It must not know what a key is for, nor how a value is written: `config::runtime` reads it.
//!
//! See <https://www.envoyproxy.io/docs/envoy/latest/configuration/operations/runtime>.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tidegate_filters::context::ConfigSource;
use tidegate_filters::runtime::Runtime;
use tidegate_stats::{Store, stats_block};

use crate::config::files::Watched;
use crate::config::runtime::read_value;

stats_block! {
    /// `runtime.*`.
    pub struct RuntimeStats {
        counters {
            deprecated_feature_use, load_error, load_success, override_dir_exists, override_dir_not_exists,
        }
        gauges { admin_overrides_active, deprecated_feature_seen_since_process_start, num_keys, num_layers }
        histograms {}
    }
}

/// One value, as every kind of reader sees it. A reader whose kind it is not acts as if it were not there.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Entry {
    /// As it was written.
    pub text: String,
    pub integer: Option<u64>,
    pub double: Option<f64>,
    pub boolean: Option<bool>,
    /// Numerator and denominator.
    pub fraction: Option<(u64, u64)>,
}

/// A layer's values by key.
pub type Values = BTreeMap<Arc<str>, Entry>;

/// A layer, lowest first: the values of later ones win.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    pub name: Arc<str>,
    pub source: LayerSource,
}

/// Where a layer's values come from.
#[derive(Debug, Clone, PartialEq)]
pub enum LayerSource {
    Static(Arc<Values>),
    /// A directory whose files are keys; it is read again when `symlink_root` leads elsewhere.
    Disk {
        symlink_root: PathBuf,
        directory: PathBuf,
    },
    /// What `/runtime_modify` sets.
    Admin,
    /// What a control plane says (RTDS).
    Discovered {
        resource: Arc<str>,
        source: ConfigSource,
    },
}

/// The layers of a process.
pub struct Layers {
    layers: Vec<Layer>,
    admin: Mutex<Arc<Values>>,
    /// By the name of the resource.
    discovered: Mutex<HashMap<Arc<str>, Arc<Values>>>,
    roots: Mutex<Vec<Watched>>,
    merged: ArcSwap<Merged>,
    stats: RuntimeStats,
}

/// The layers as of one load.
#[derive(Default)]
pub struct Merged {
    /// Names and values of the layers that are there; a disk layer without its directory is not.
    pub layers: Vec<(Arc<str>, Arc<Values>)>,
    values: HashMap<Arc<str>, Entry, ahash::RandomState>,
}

/// Why values could not be set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModifyError {
    #[error("No admin layer specified")]
    NoAdminLayer,
    #[error("{key}: {reason}")]
    Unreadable { key: String, reason: String },
}

impl Layers {
    /// Reads all layers. A disk layer that cannot be read is left out.
    pub fn new(layers: Vec<Layer>, stats: &Arc<Store>) -> Self {
        let roots = layers.iter().filter_map(|layer| match &layer.source {
            LayerSource::Disk { symlink_root, .. } => Some(Watched::new(symlink_root.clone())),
            LayerSource::Static(_) | LayerSource::Admin | LayerSource::Discovered { .. } => None,
        });
        let mut roots: Vec<_> = roots.collect();
        roots.iter_mut().for_each(|root| {
            root.changed();
        });
        let runtime = Self {
            layers,
            admin: Mutex::default(),
            discovered: Mutex::default(),
            roots: Mutex::new(roots),
            merged: ArcSwap::default(),
            stats: RuntimeStats::new(&stats.root().scope("runtime.")),
        };
        // Envoy loads a second time once layers from a control plane could have arrived; its counters show that.
        runtime.load();
        runtime.load();
        runtime
    }

    /// Reads the layers again if a disk layer's root was moved. Called whenever files are looked at.
    pub fn reload_if_moved(&self) {
        // Every root is looked at, or a second one that moved would be seen late.
        let moved = self.roots.lock().iter_mut().filter_map(|root| root.changed().then_some(())).count();
        if moved > 0 {
            self.load();
        }
    }

    /// Sets values of the admin layer; an empty one takes away what was set here before.
    ///
    /// # Errors
    /// Without an admin layer, and when a value is not YAML. Nothing is set then.
    pub fn modify(&self, values: &[(String, String)]) -> Result<(), ModifyError> {
        if !self.layers.iter().any(|layer| layer.source == LayerSource::Admin) {
            return Err(ModifyError::NoAdminLayer);
        }
        {
            let mut admin = self.admin.lock();
            let mut next = Values::clone(&admin);
            for (key, text) in values {
                next.remove(key.as_str());
                if !text.is_empty() {
                    let entry =
                        read_value(text).map_err(|reason| ModifyError::Unreadable { key: key.clone(), reason })?;
                    next.insert(key.as_str().into(), entry);
                }
            }
            self.stats.admin_overrides_active().set(u64::from(!next.is_empty()));
            *admin = Arc::new(next);
        }
        self.load();
        Ok(())
    }

    /// The layers that are discovered, by the name of their resource.
    pub(crate) fn discovered(&self) -> impl Iterator<Item = (String, ConfigSource)> {
        self.layers.iter().filter_map(|layer| match &layer.source {
            LayerSource::Discovered { resource, source } => Some((resource.to_string(), source.clone())),
            _ => None,
        })
    }

    /// Replaces the values of a layer that is discovered.
    pub(crate) fn discover(&self, resource: &str, values: Values) {
        self.discovered.lock().insert(resource.into(), Arc::new(values));
        self.load();
    }

    /// The layers as of now, for `/runtime`.
    pub fn merged(&self) -> Arc<Merged> {
        self.merged.load_full()
    }

    fn load(&self) {
        let mut merged = Merged::default();
        let (mut disks, mut failed) = (0, false);
        let admin = Arc::clone(&self.admin.lock());
        for layer in &self.layers {
            let values = match &layer.source {
                LayerSource::Static(values) => Arc::clone(values),
                LayerSource::Admin => Arc::clone(&admin),
                LayerSource::Discovered { resource, .. } => {
                    self.discovered.lock().get(resource).cloned().unwrap_or_default()
                }
                LayerSource::Disk { directory, .. } if !directory.is_dir() => continue,
                LayerSource::Disk { directory, .. } => match read_directory(directory) {
                    Ok(values) => {
                        disks += 1;
                        Arc::new(values)
                    }
                    Err(reason) => {
                        tracing::warn!(layer = %layer.name, %reason, "cannot read a runtime layer");
                        failed = true;
                        continue;
                    }
                },
            };
            merged.push(Arc::clone(&layer.name), values);
        }
        self.count(&merged, disks, failed);
        self.merged.store(Arc::new(merged));
    }

    fn count(&self, merged: &Merged, disks: usize, failed: bool) {
        self.stats.num_layers().set(merged.layers.len() as u64);
        self.stats.num_keys().set(merged.values.len() as u64);
        if failed {
            self.stats.load_error().inc()
        } else {
            self.stats.load_success().inc()
        }
        // Envoy counts an override directory from the second disk layer on.
        if disks > 1 { self.stats.override_dir_exists().inc() } else { self.stats.override_dir_not_exists().inc() }
    }

    fn get<T>(&self, key: &str, of: impl FnOnce(&Entry) -> Option<T>) -> Option<T> {
        self.merged.load().get(key).and_then(of)
    }
}

impl Runtime for Layers {
    fn integer(&self, key: &str) -> Option<u64> {
        self.get(key, |entry| entry.integer)
    }

    fn double(&self, key: &str) -> Option<f64> {
        self.get(key, |entry| entry.double)
    }

    fn boolean(&self, key: &str) -> Option<bool> {
        self.get(key, |entry| entry.boolean)
    }

    fn string(&self, key: &str) -> Option<String> {
        self.get(key, |entry| Some(entry.text.clone()))
    }

    fn fraction(&self, key: &str) -> Option<(u64, u64)> {
        self.get(key, |entry| entry.fraction)
    }
}

impl Merged {
    /// The value that acts.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.values.get(key)
    }

    /// Every key that has a value, sorted.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.values.keys().map(AsRef::as_ref).collect();
        keys.sort_unstable();
        keys
    }

    fn push(&mut self, name: Arc<str>, values: Arc<Values>) {
        self.values.extend(values.iter().map(|(key, entry)| (Arc::clone(key), entry.clone())));
        self.layers.push((name, values));
    }
}

/// How deep directories are followed.
const MAX_DEPTH: usize = 16;

fn read_directory(directory: &Path) -> Result<Values, String> {
    let mut values = Values::new();
    walk(directory, "", 1, &mut values)?;
    Ok(values)
}

fn walk(directory: &Path, prefix: &str, depth: usize, values: &mut Values) -> Result<(), String> {
    let fail = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    if depth > MAX_DEPTH {
        return Err(fail(directory, &format!("more than {MAX_DEPTH} directories deep")));
    }
    for entry in std::fs::read_dir(directory).map_err(|error| fail(directory, &error))? {
        let path = entry.map_err(|error| fail(directory, &error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        // Links are followed: a mounted ConfigMap consists of them.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            walk(&path, &key, depth + 1, values)?;
        } else if metadata.is_file() {
            let text = std::fs::read_to_string(&path).map_err(|error| fail(&path, &error))?;
            values.insert(key.into(), read_value(&without_comments(&text)).map_err(|reason| fail(&path, &reason))?);
        }
    }
    Ok(())
}

/// A file's lines but those that begin with `#` and empty ones, without space at the end.
fn without_comments(text: &str) -> String {
    let lines: Vec<&str> = text.split('\n').filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    lines.join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, values: &[(&str, &str)]) -> Layer {
        let values = values.iter().map(|(key, text)| ((*key).into(), read_value(text).unwrap())).collect();
        Layer { name: name.into(), source: LayerSource::Static(Arc::new(values)) }
    }

    fn admin() -> Layer {
        Layer { name: "admin".into(), source: LayerSource::Admin }
    }

    fn set(layers: &Layers, key: &str, text: &str) -> Result<(), ModifyError> {
        layers.modify(&[(key.into(), text.into())])
    }

    fn stats(store: &Store) -> HashMap<String, u64> {
        let readings = store.counters().into_iter().chain(store.gauges());
        readings.map(|reading| (reading.name, reading.value)).collect()
    }

    #[test]
    fn later_layers_win() {
        let layers = Layers::new(vec![layer("a", &[("x", "1"), ("y", "2")]), layer("b", &[("x", "3")])], &Store::new());
        assert_eq!((layers.integer("x"), layers.integer("y"), layers.integer("z")), (Some(3), Some(2), None));
    }

    #[test]
    fn the_admin_layer_is_changed_and_changed_back() {
        let store = Store::new();
        let layers = Layers::new(vec![layer("a", &[("x", "1")]), admin()], &store);
        set(&layers, "x", "false").unwrap();
        assert_eq!((layers.boolean("x"), layers.integer("x")), (Some(false), None));
        assert_eq!(stats(&store)["runtime.admin_overrides_active"], 1);
        set(&layers, "x", "").unwrap();
        assert_eq!(layers.integer("x"), Some(1));
        assert_eq!(stats(&store)["runtime.admin_overrides_active"], 0);
        assert_eq!(stats(&store)["runtime.load_success"], 4);
    }

    #[test]
    fn nothing_is_set_without_an_admin_layer_nor_from_what_cannot_be_read() {
        let layers = Layers::new(vec![layer("a", &[("x", "1")])], &Store::new());
        assert_eq!(set(&layers, "x", "2"), Err(ModifyError::NoAdminLayer));
        let layers = Layers::new(vec![admin()], &Store::new());
        let both = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "{".to_owned())];
        assert!(matches!(layers.modify(&both), Err(ModifyError::Unreadable { key, .. }) if key == "b"));
        assert_eq!(layers.integer("a"), None);
    }

    #[test]
    fn a_discovered_layer_is_empty_until_it_comes_and_stands_in_its_place() {
        let source = ConfigSource::File { path: "r.yaml".into(), watched_directory: None };
        let discovered =
            Layer { name: "rtds".into(), source: LayerSource::Discovered { resource: "shared".into(), source } };
        let layers = vec![layer("a", &[("x", "1"), ("y", "1")]), discovered, layer("b", &[("y", "3")])];
        let layers = Layers::new(layers, &Store::new());
        assert_eq!((layers.merged().layers.len(), layers.integer("x")), (3, Some(1)));
        let values = ["x", "y"].map(|key| (key.into(), read_value("2").unwrap()));
        layers.discover("shared", values.into_iter().collect());
        assert_eq!((layers.integer("x"), layers.integer("y")), (Some(2), Some(3)));
        assert_eq!(layers.stats.load_success().value(), 3);
        layers.discover("shared", Values::new());
        assert_eq!(layers.integer("x"), Some(1));
    }

    #[test]
    fn a_directory_is_a_layer_and_is_read_again_when_moved() {
        let root = std::env::temp_dir().join(format!("tidegate-runtime-{}", std::process::id()));
        let write = |version: &str, key: &str, text: &str| {
            let path = root.join(version).join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("v1", "envoy/health/min", "# a comment\n 5 \n\n");
        write("v1", "envoy/share", "{numerator: 5, denominator: TEN_THOUSAND}");
        write("v2", "envoy/health/min", "6");
        let link = |version: &str| {
            std::os::unix::fs::symlink(root.join(version), root.join("next")).unwrap();
            std::fs::rename(root.join("next"), root.join("current")).unwrap();
        };
        link("v1");
        let disk = |directory: &str| LayerSource::Disk {
            symlink_root: root.join("current"),
            directory: root.join("current").join(directory),
        };
        let layers = vec![
            Layer { name: "disk".into(), source: disk("envoy") },
            Layer { name: "absent".into(), source: disk("nothing") },
        ];
        let layers = Layers::new(layers, &Store::new());
        assert_eq!(layers.integer("health.min"), Some(5));
        assert_eq!(layers.fraction("share"), Some((5, 10_000)));
        assert_eq!(layers.merged().layers.len(), 1);
        layers.reload_if_moved();
        assert_eq!(layers.stats.load_success().value(), 2);
        link("v2");
        layers.reload_if_moved();
        assert_eq!((layers.integer("health.min"), layers.fraction("share")), (Some(6), None));
        std::fs::remove_dir_all(root).unwrap();
    }
}
