//! What control planes brought last, kept on disk (`--snapshot-dir`): a process that starts while its control plane is away
//! serves that. It must not know what resources mean, nor when they are needed.
//!
//! One file holds everything: a `DeltaDiscoveryResponse`, written beside and moved into place, which nobody but the owner can
//! read, since resources may hold keys in line.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use prost::Message;
use tidegate_control::client::Interest;
use tidegate_xds::pb::envoy::config::core::v3::{ControlPlane as Identifier, Node};
use tidegate_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
use tidegate_xds::pb::google::protobuf::Any;

use super::carried::Carried;
use super::resources::Apply;
use super::stream::{Event, Happened};
use super::{Discovery, Stream};
use crate::config::origin::{Origin, name_of};
use crate::config::store::{Kind, Ledger, Store, routes_of, scope_of};

/// The format, in its name: another one is not read.
const FILE: &str = "resources.v1.pb";

/// What is longer was not written by us.
const MOST_BYTES: u64 = 1 << 30;

/// The resources of one file.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    by_kind: BTreeMap<Kind, BTreeMap<String, Resource>>,
    /// Of each type, as its source named it.
    versions: BTreeMap<Kind, String>,
    pub(crate) at: Option<SystemTime>,
}

/// Whose resources they are.
fn owner(node: &Node) -> String {
    format!("{}/{}", node.cluster, node.id)
}

impl Kept {
    /// What a process of this node kept last; nothing where there is no such file, or none that can be read.
    pub(crate) fn read(directory: &Path, node: &Node) -> Self {
        let path = directory.join(FILE);
        let bytes = match read_file(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot read what was kept");
                return Self::default();
            }
        };
        let Ok(file) = DeltaDiscoveryResponse::decode(&*bytes) else {
            tracing::warn!(file = %path.display(), "cannot read what was kept");
            return Self::default();
        };
        if file.control_plane.as_ref().map(|owner| &*owner.identifier) != Some(&*owner(node)) {
            tracing::warn!(file = %path.display(), "what was kept is another node's");
            return Self::default();
        }
        let at = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
        let mut kept = Self { at, ..Self::default() };
        for resource in file.resources {
            let Some(kind) = resource.resource.as_ref().and_then(|body| Kind::of(&body.type_url)) else { continue };
            // A name that is an alias of the type alone carries what its source called all of it.
            kept.versions.entry(kind).or_insert_with(|| resource.version.clone());
            kept.by_kind.entry(kind).or_default().insert(resource.name.clone(), resource);
        }
        kept
    }

    fn is_empty(&self) -> bool {
        self.by_kind.is_empty()
    }

    /// What a stream asks for and what has not come; of scopes those of one source, of virtual hosts those of route configurations
    /// that it carries.
    fn wanted(
        &self,
        kind: Kind,
        interest: &Interest,
        carried: &Carried,
        origin: &Origin,
        has_come: impl Fn(&str) -> bool,
    ) -> Vec<Resource> {
        let Some(all) = self.by_kind.get(&kind) else { return Vec::new() };
        if kind == Kind::Scope {
            let Some(source) = carried.scopes().filter(|source| !has_come(source)) else { return Vec::new() };
            let own = all.iter().filter_map(|(entry, resource)| Some((scope_of(source, entry)?, resource)));
            return own.map(|(name, resource)| Resource { name: name.to_owned(), ..resource.clone() }).collect();
        }
        if kind == Kind::VirtualHost {
            let lacks =
                |name: &str| routes_of(name).is_some_and(|routes| carried.has(kind, routes) && !has_come(routes));
            return all.iter().filter(|(name, _)| lacks(name)).map(|(_, resource)| resource.clone()).collect();
        }
        if matches!(kind, Kind::Cluster | Kind::Listener) {
            return if has_come("") { Vec::new() } else { all.values().cloned().collect() };
        }
        let called = interest.names_asked().iter().map(|name| (name, origin.call(name)));
        let lacking = called.filter(|(_, called)| !has_come(called));
        let kept = lacking.filter_map(|(name, called)| Some((name, all.get(&called)?)));
        kept.map(|(name, resource)| Resource { name: name.to_string(), ..resource.clone() }).collect()
    }
}

/// Writes what acts.
///
/// # Errors
/// The file system's.
pub(crate) fn write(directory: &Path, node: &Node, ledger: &Ledger) -> io::Result<()> {
    let mut file = DeltaDiscoveryResponse {
        control_plane: Some(Identifier { identifier: owner(node) }),
        ..DeltaDiscoveryResponse::default()
    };
    for kind in Kind::ALL {
        for (name, entry) in ledger.of_kind(kind) {
            let Some(text) = entry.acting.filter(|_| !entry.is_static) else { continue };
            let body = Any { type_url: kind.type_url().to_owned(), value: text.bytes.to_vec() };
            let (name, version) = (name.to_string(), text.version.to_string());
            file.resources.push(Resource { name, version, resource: Some(body), ..Resource::default() });
        }
    }
    fs::create_dir_all(directory)?;
    let beside = directory.join(format!("{FILE}.{}", std::process::id()));
    let put = put(&beside, &file.encode_to_vec()).and_then(|()| fs::rename(&beside, directory.join(FILE)));
    if put.is_err() {
        // A full disk must not be left fuller.
        let _ = fs::remove_file(&beside);
    }
    put
}

/// A new file that nobody else can read; nothing that stands there is followed or kept.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    written.write_all(bytes)?;
    written.sync_all()
}

/// The bytes of a file that is one: a pipe or a device would be read for ever.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file, or no process of ours wrote so much"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The directory, and what of it is up to date.
pub(crate) struct Keeper {
    directory: PathBuf,
    node: Node,
    /// The count of changes that was written last.
    written: u64,
    writing: Option<tokio::task::JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn new(directory: PathBuf, node: Node) -> Self {
        Self { directory, node, written: 0, writing: None }
    }

    pub(crate) fn read(&self) -> Kept {
        Kept::read(&self.directory, &self.node)
    }

    /// Writes in the background what has changed, one file at a time.
    pub(crate) fn keep(&mut self, ledger: &std::sync::Arc<Ledger>) {
        let changes = ledger.changes();
        if changes == self.written || self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        self.written = changes;
        let (directory, node, ledger) = (self.directory.clone(), self.node.clone(), std::sync::Arc::clone(ledger));
        self.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = write(&directory, &node, &ledger) {
                tracing::warn!(directory = %directory.display(), %error, "cannot keep resources");
            }
        }));
    }

    /// The same, and waits for it.
    pub(crate) async fn finish(&mut self, ledger: &std::sync::Arc<Ledger>) {
        for _ in 0..2 {
            if let Some(writing) = self.writing.take() {
                // What it could not do it has said.
                let _ = writing.await;
            }
            self.keep(ledger);
        }
    }
}

impl Discovery {
    /// From now on what was kept answers in place of control planes, until one of them does. False: nothing was kept.
    pub(crate) fn begin_kept(&mut self, kept: Kept) -> bool {
        if kept.is_empty() || self.heard {
            return false;
        }
        for stream in self.streams.values_mut() {
            // Whatever was asked on its way is asked again, with the versions of what was kept.
            stream.mux.disconnected();
        }
        self.kept = Some(kept);
        true
    }

    /// When what is served was kept, while no control plane has answered.
    pub(crate) fn serves_kept(&self) -> Option<SystemTime> {
        self.kept.as_ref().and_then(|kept| kept.at)
    }

    /// Answers what is asked for and has not come from what was kept.
    pub(crate) fn answer_from_kept(&mut self, store: &mut Store) {
        const ORDER: [Kind; 9] = [
            Kind::Runtime,
            Kind::Secret,
            Kind::Cluster,
            Kind::Endpoints,
            Kind::Listener,
            Kind::Extension,
            Kind::Scope,
            Kind::Route,
            Kind::VirtualHost,
        ];
        let mut last: Option<(Kind, usize, usize)> = None;
        loop {
            let Some(kept) = &self.kept else { return };
            let next =
                ORDER.into_iter().flat_map(|kind| self.streams.iter().map(move |(place, one)| (kind, *place, one)));
            let next = next.into_iter().find_map(|(kind, place, stream)| {
                let asked = stream.asked.get(&kind)?;
                let resources =
                    kept.wanted(kind, asked, &stream.carried, &stream.origin, |name| self.waits.is_over(kind, name));
                (!resources.is_empty()).then_some((kind, place, resources))
            });
            let Some((kind, place, resources)) = next else {
                if self.answer_poll_from_kept(store) || self.give_up_what_was_not_kept(store) {
                    continue;
                }
                return;
            };
            // What was answered once and is still asked for has to wait for a control plane.
            let this = (kind, place, resources.len());
            if last.replace(this) == Some(this) {
                return;
            }
            let version = kept.versions.get(&kind).cloned().unwrap_or_default();
            let Some(stream) = self.streams.get(&place) else { return };
            let received = as_received(stream, kind, version, resources);
            self.happened(place, received, store, Instant::now());
            self.sync(store);
        }
    }

    /// What was not there the last time either is not waited for; false where nothing was waited for.
    fn give_up_what_was_not_kept(&mut self, store: &mut Store) -> bool {
        let given_up = self.waits.give_up();
        for (kind, name) in &given_up {
            self.subscriptions.timed_out(*kind, name, store);
        }
        if !given_up.is_empty() {
            self.sync(store);
        }
        !given_up.is_empty()
    }

    /// The same for one poll; false where there is nothing more to say.
    fn answer_poll_from_kept(&mut self, store: &mut Store) -> bool {
        let Some(kept) = &self.kept else { return false };
        let next = self.polls.asked().find_map(|(kind, name)| {
            let interest = if kind.is_whole() { Interest::everything() } else { Interest::names([name_of(name)]) };
            let (carried, origin) = (Carried::polled(*kind, name), Origin::of_called(name));
            let resources = kept.wanted(*kind, &interest, &carried, &origin, |name| self.waits.is_over(*kind, name));
            (!resources.is_empty()).then(|| (*kind, name.clone(), resources))
        });
        let Some((kind, name, resources)) = next else { return false };
        let Some(rest) = self.polls.of(kind, &name) else { return false };
        let response = DiscoveryResponse {
            version_info: resources.first().map(|first| first.version.clone()).unwrap_or_default(),
            resources: resources.into_iter().filter_map(|resource| resource.resource).collect(),
            ..DiscoveryResponse::default()
        };
        let carried = Carried::polled(kind, &name);
        let (subscriptions, waits, unknown) = (&mut self.subscriptions, &mut self.waits, &self.unknown);
        let (carried, asked, origin) = (&carried, &BTreeMap::new(), &Origin::of_called(&name));
        let mut apply = Apply { store, subscriptions, waits, unknown, carried, asked, origin };
        apply.take_polled(kind, &name, response, rest);
        self.sync(store);
        true
    }
}

fn as_received(stream: &Stream, kind: Kind, version: String, resources: Vec<Resource>) -> Happened {
    let type_url = kind.type_url().to_owned();
    if stream.control_plane.delta {
        let system_version_info = version;
        Happened::Delta(Event::Received(DeltaDiscoveryResponse {
            system_version_info,
            type_url,
            resources,
            ..DeltaDiscoveryResponse::default()
        }))
    } else {
        let resources = resources.into_iter().filter_map(|resource| resource.resource).collect();
        Happened::Sotw(Event::Received(DiscoveryResponse {
            version_info: version,
            type_url,
            resources,
            ..DiscoveryResponse::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::store::Text;

    #[test]
    fn what_is_no_file_is_not_read() {
        let directory = std::env::temp_dir().join(format!("tidegate-kept-pipe-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let made = std::process::Command::new("mkfifo").arg(directory.join(FILE)).status().unwrap();
        assert!(made.success());
        assert!(Kept::read(&directory, &Node::default()).by_kind.is_empty());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_acts_is_kept_for_its_node_alone_and_for_nobody_elses_eyes() {
        let directory = std::env::temp_dir().join(format!("tidegate-kept-{}", std::process::id()));
        let ledger = Ledger::default();
        let text =
            |version: &str| Text { bytes: b"x".as_slice().into(), version: version.into(), at: SystemTime::now() };
        for (kind, name, acts) in [
            (Kind::Cluster, "acting", true),
            (Kind::Cluster, "warming", false),
            (Kind::Route, "r", true),
            (Kind::Scope, "one/a/b", true),
            (Kind::Scope, "two/a/b", true),
            (Kind::VirtualHost, "one/a/b", true),
            (Kind::VirtualHost, "one/b", true),
        ] {
            ledger.takes(kind, &name.into(), text("7"), false);
            if acts {
                ledger.acts(kind, name);
            }
        }
        ledger.takes(Kind::Cluster, &"static".into(), text(""), true);
        ledger.acts(Kind::Cluster, "static");
        let node = |id: &str| Node { id: id.to_owned(), cluster: "c".to_owned(), ..Node::default() };
        write(&directory, &node("a"), &ledger).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(directory.join(FILE)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let kept = Kept::read(&directory, &node("a"));
        let (none, mut carried) = (Carried::default(), Carried::default());
        carried.set(Kind::Scope, &"one".into(), true);
        carried.set(Kind::VirtualHost, &"one/a".into(), true);
        let clusters = kept.wanted(Kind::Cluster, &Interest::everything(), &none, &Origin::default(), |_| false);
        assert_eq!(clusters.iter().map(|one| (&*one.name, &*one.version)).collect::<Vec<_>>(), [("acting", "7")]);
        assert_eq!(
            kept.wanted(Kind::Route, &Interest::names(["r", "s"]), &none, &Origin::default(), |_| false).len(),
            1
        );
        assert!(kept.wanted(Kind::Route, &Interest::names(["r"]), &none, &Origin::default(), |_| true).is_empty());
        let scopes = kept.wanted(Kind::Scope, &Interest::everything(), &carried, &Origin::default(), |_| false);
        assert_eq!(scopes.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["a/b"]);
        assert!(
            kept.wanted(Kind::Scope, &Interest::everything(), &carried, &Origin::default(), |source| source == "one")
                .is_empty()
        );
        let hosts = kept.wanted(Kind::VirtualHost, &Interest::everything(), &carried, &Origin::default(), |_| false);
        assert_eq!(hosts.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["one/a/b"]);
        assert!(Kept::read(&directory, &node("b")).is_empty());
        fs::write(directory.join(FILE), b"\xff\xff").unwrap();
        assert!(Kept::read(&directory, &node("a")).is_empty());
        fs::remove_dir_all(directory).unwrap();
    }
}
