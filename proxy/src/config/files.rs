//! Resources in files (`path_config_source`): read, and read again when a file is moved into place.
//! It must not know what the resources mean.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prost::Name;
use tidegate_xds::pb::envoy::service::discovery::v3::{DiscoveryResponse, Resource as Wrapper};
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, Format, UnknownFields, any};

/// How often files are looked at. A move into place (or of a symbolic link above it) shows as another inode. Asking the
/// kernel to tell (inotify, as Envoy does) would save next to nothing: ten files cost 0.1 ms of CPU a second and a thousand
/// 10 ms, while a process may have few such requests open at once (Envoy aborts at the 128th file of a usual system).
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What becomes of fields in files that the schema does not know: `--reject-unknown-dynamic-fields` and
/// `--ignore-unknown-dynamic-fields`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownDynamicFields {
    /// They are left out, counted and told.
    #[default]
    Warn,
    /// They are left out and counted.
    Ignore,
    Reject,
}

/// What a file holds: a `DiscoveryResponse` of resources of one type.
#[derive(Debug)]
pub(crate) struct FileResources {
    pub version: String,
    pub resources: Vec<Any>,
    /// Fields that were left out.
    pub unknown: Vec<FieldError>,
}

/// Which file it was when it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// A new file may be given the inode of the one before the last.
    born: Option<SystemTime>,
}

/// The file behind a path, links followed; `None` while there is none.
pub(crate) fn identity(path: &Path) -> Option<Identity> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Identity { device: meta.dev(), inode: meta.ino(), born: meta.created().ok() })
}

/// Reads a `DiscoveryResponse` whose resources are all of `type_name`. They may be wrapped, as those of a stream: what the
/// wrapper says of name, version and time to live is not looked at, as in Envoy.
pub(crate) fn read(
    path: &Path,
    type_name: &str,
    unknown: UnknownDynamicFields,
) -> Result<FileResources, Vec<FieldError>> {
    let fail = |reason: String| vec![FieldError::new(tidegate_xds::FieldPath::root(), reason)];
    let unknown = match unknown {
        UnknownDynamicFields::Reject => UnknownFields::Reject,
        UnknownDynamicFields::Warn | UnknownDynamicFields::Ignore => UnknownFields::Collect,
    };
    let text =
        std::fs::read(path).map_err(|error| fail(format!("unable to read file: {}: {error}", path.display())))?;
    let mut loaded: tidegate_xds::Loaded<DiscoveryResponse> =
        tidegate_xds::load(&text, Format::of_path(path), unknown).map_err(|errors| in_file(path, errors))?;
    for (index, resource) in loaded.message.resources.iter_mut().enumerate() {
        if any::type_name(&resource.type_url) == Some(&Wrapper::full_name()) {
            let path = tidegate_xds::FieldPath::root().field("resources").index(index);
            let wrapper: Wrapper = any::unpack(resource, &path).map_err(|error| vec![error])?;
            *resource = wrapper.resource.unwrap_or_default();
        }
        if any::type_name(&resource.type_url) != Some(type_name) {
            let path = tidegate_xds::FieldPath::root().field("resources").index(index);
            let reason = format!("expected {type_name}, found '{}'", resource.type_url);
            return Err(vec![FieldError::new(path, reason)]);
        }
    }
    let DiscoveryResponse { version_info, resources, .. } = loaded.message;
    Ok(FileResources { version: version_info, resources, unknown: loaded.unknown })
}

fn in_file(path: &Path, errors: Vec<FieldError>) -> Vec<FieldError> {
    let name = path.display().to_string();
    errors.into_iter().map(|error| error.in_resource(&name)).collect()
}

/// A file that is watched.
#[derive(Debug)]
pub(crate) struct Watched {
    pub path: PathBuf,
    seen: Option<Identity>,
}

impl Watched {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Whether another file stands there than the one that was seen last.
    pub(crate) fn changed(&mut self) -> bool {
        let now = identity(&self.path);
        let changed = now.is_some() && now != self.seen;
        if changed {
            self.seen = now;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_resource_is_what_it_holds() {
        let path = std::env::temp_dir().join(format!("tidegate-wrapped-{}.yaml", std::process::id()));
        let read = |resource: &str| {
            let wrapper = "type.googleapis.com/envoy.service.discovery.v3.Resource";
            let text = format!("resources: [{{ '@type': {wrapper}, name: other, version: '7', ttl: 1s{resource} }}]");
            std::fs::write(&path, text).unwrap();
            super::read(&path, "envoy.config.cluster.v3.Cluster", UnknownDynamicFields::Reject)
        };
        let read_one =
            read(", resource: { '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a }").unwrap();
        assert_eq!(read_one.resources[0].type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
        assert!(
            read(
                ", resource: { '@type': type.googleapis.com/envoy.config.route.v3.VirtualHost, name: a, domains: [b] }"
            )
            .is_err()
        );
        let empty = read("").unwrap_err();
        assert!(empty[0].to_string().contains("expected envoy.config.cluster.v3.Cluster, found ''"), "{}", empty[0]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_move_into_place_is_a_change_and_nothing_else_is() {
        let directory = std::env::temp_dir().join(format!("tidegate-files-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("a.yaml");
        let mut watched = Watched::new(path.clone());
        assert!(!watched.changed());
        std::fs::write(&path, "version_info: '1'").unwrap();
        assert!(watched.changed());
        assert!(!watched.changed());
        std::fs::write(directory.join("b.yaml"), "version_info: '2'").unwrap();
        std::fs::rename(directory.join("b.yaml"), &path).unwrap();
        assert!(watched.changed());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
