//! Files of the short form to xDS resources: all of them together, since one may name what another defines. Every resource is
//! decoded and checked by Envoy's schema like one that was written by hand. It must not know where files come from.

mod filters;
mod listener;
mod made;
mod route;
mod upstream;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, FieldPath, Format, UnknownFields, decode, nearest};

pub(super) use self::made::Made;
use super::Parsed;
use super::form::{Destination, File, Host, Listen, Route, Upstream, Version};
use super::shape::{MOST_FAULTS, Or};
use crate::server::resource_set::Piece;
use crate::server::{Resource, ResourceSet, ResourceType};

/// A file, and whether it is one of a group of nodes: what it defines then takes the place of what all nodes get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) file: &'a Parsed,
    pub(crate) of_group: bool,
}

/// Which clusters there are beside those of the short form.
pub(crate) enum Outside<'a> {
    /// Nobody knows: whoever takes the resources checks what they name.
    Unknown,
    These(&'a BTreeSet<&'a str>),
}

/// Something with a name, and where it is defined.
struct Defined<'a, T> {
    part: Part<'a>,
    path: FieldPath,
    /// Among those of its file.
    index: usize,
    value: &'a T,
}

type ByName<'a, T> = BTreeMap<&'a str, Defined<'a, T>>;

/// A host on one listener, with the names that are its own there.
struct Served<'a> {
    file: &'a Parsed,
    /// Among those of its file.
    index: usize,
    host: &'a Host,
    names: Vec<&'a str>,
}

struct Expansion<'a> {
    listeners: ByName<'a, Listen>,
    upstreams: ByName<'a, Upstream>,
    outside: &'a Outside<'a>,
    faults: Vec<String>,
}

/// Expands files. What of a file does not hang on others is made once and kept with it; so is what is as in `before`, the set
/// that was served last.
///
/// # Errors
/// Each fault with `file:line` and its path.
pub(crate) fn expand(
    parts: &[Part<'_>],
    outside: &Outside<'_>,
    before: &ResourceSet,
) -> Result<Vec<Arc<Resource>>, Vec<String>> {
    let mut expansion = Expansion { listeners: ByName::new(), upstreams: ByName::new(), outside, faults: Vec::new() };
    expansion.define(parts);
    let hosts = expansion.attach(parts);
    let mut resources = Vec::new();
    let mut faults = Vec::new();
    for defined in expansion.upstreams.values() {
        match &defined.part.file.made().upstreams[defined.index] {
            Ok(made) => resources.extend(made.iter().cloned()),
            Err(wrong) => faults.extend(wrong.iter().cloned()),
        }
    }
    for (name, defined) in &expansion.listeners {
        let hosts = hosts.get(name).map(Vec::as_slice).unwrap_or_default();
        let listener = defined.part.file.made().listeners[defined.index].clone();
        for made in [listener, routes(name, defined, hosts, before)] {
            match made {
                Ok(resource) => resources.push(resource),
                Err(wrong) => faults.extend(wrong),
            }
        }
    }
    expansion.faults.extend(faults);
    if expansion.faults.is_empty() { Ok(resources) } else { Err(expansion.faults) }
}

/// The routes of a listener: its hosts, each as it was made with its file, one after another.
fn routes(
    name: &str,
    defined: &Defined<'_, Listen>,
    hosts: &[Served<'_>],
    before: &ResourceSet,
) -> Result<Arc<Resource>, Vec<String>> {
    let Defined { part: Part { file, .. }, path, .. } = defined;
    let told = |errors: Vec<FieldError>| made::told(file, path, &errors);
    let kind = ResourceType::ROUTES;
    let part = |served: &Served<'_>| match served.names.len() == served.host.names.len() {
        true => served.file.made().hosts[served.index].clone(),
        // A group has taken some of its names.
        false => made::host(served.file, served.index, &served.names),
    };
    let items: Vec<Arc<Piece>> = hosts.iter().map(part).collect::<Result<_, _>>()?;
    let message = encoded(kind.message(), &route::configuration(name, hosts)).map_err(told)?;
    let (field, number) = route::VIRTUAL_HOSTS;
    let value = Piece::join(&message, number, &items);
    let origin = Some((file.name.clone(), file.listeners.get(name).copied()));
    let same = |before: &&Arc<Resource>| before.body.value == value && before.origin == origin;
    if let Some(before) = before.kind(kind).get(name).filter(same) {
        return Ok(Arc::clone(before));
    }
    let message = Any { type_url: kind.url(), value: message };
    let made = Resource::compose(message, value, field, &items).map_err(told)?;
    Ok(Arc::new(Resource { origin, ..made }))
}

/// A message that was made as JSON.
fn encoded(message: &str, value: &Value) -> Result<Vec<u8>, Vec<FieldError>> {
    Ok(decode(message, value.to_string().as_bytes(), Format::Json, UnknownFields::Reject)?.bytes)
}

impl<'a> Expansion<'a> {
    fn tell(&mut self, file: &Parsed, path: &FieldPath, reason: impl FnOnce(&Self) -> String) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(file.fault(path, &reason(self)));
        }
    }

    fn define(&mut self, parts: &[Part<'a>]) {
        for part in parts {
            let File { tidegate: Version::V1, listen, upstreams, .. } = &part.file.file;
            for (index, (name, Or(value))) in listen.0.iter().enumerate() {
                let path = FieldPath::root().field("listen").key(&name.0);
                let defined = Defined { part: *part, path, index, value };
                self.faults.extend(put(&mut self.listeners, "a listener", &name.0, defined));
            }
            for (index, (name, value)) in upstreams.0.iter().enumerate() {
                let path = FieldPath::root().field("upstreams").key(&name.0);
                let defined = Defined { part: *part, path, index, value };
                self.faults.extend(put(&mut self.upstreams, "an upstream", &name.0, defined));
            }
        }
        let mut taken: HashMap<SocketAddr, &Defined<'_, Listen>> = HashMap::new();
        for defined in self.listeners.values() {
            if let Some(before) = taken.insert(defined.value.address.0, defined) {
                let there = before.part.file.place(&before.path);
                let reason = format!("{} is taken by the listener at {there}", defined.value.address.0);
                self.faults.push(defined.part.file.fault(&defined.path, &reason));
            }
        }
    }

    /// The hosts of each listener, in the order of the files.
    fn attach(&mut self, parts: &[Part<'a>]) -> HashMap<&'a str, Vec<Served<'a>>> {
        let mut claimed: HashMap<(&str, &str), (Part<'_>, FieldPath)> = HashMap::new();
        let mut hosts: HashMap<&str, Vec<Served<'_>>> = HashMap::new();
        // A group's own come first: they take names away from what all nodes get.
        let (own, shared): (Vec<&Part<'_>>, Vec<&Part<'_>>) = parts.iter().partition(|part| part.of_group);
        for part in own.into_iter().chain(shared) {
            for (number, host) in part.file.file.hosts.iter().enumerate() {
                let path = FieldPath::root().field("hosts").index(number);
                for (index, route) in host.routes.iter().enumerate() {
                    self.check_destinations(part.file, route, &path.clone().field("routes").index(index));
                }
                for listener in self.listeners_of(*part, host, &path) {
                    let mut names = Vec::new();
                    for (index, name) in host.names.iter().enumerate() {
                        let path = path.clone().field("names").index(index);
                        match claimed.get(&(listener, name.0.as_str())) {
                            Some((before, at)) if before.of_group == part.of_group => {
                                self.tell(part.file, &path, |_| {
                                    let there = before.file.place(at);
                                    format!("'{}' is there already on '{listener}', at {there}", name.0)
                                });
                            }
                            Some(_) => {}
                            None => {
                                claimed.insert((listener, &name.0), (*part, path));
                                names.push(name.0.as_str());
                            }
                        }
                    }
                    if !names.is_empty() {
                        let served = Served { file: part.file, index: number, host, names };
                        hosts.entry(listener).or_default().push(served);
                    }
                }
            }
        }
        hosts
    }

    /// The listeners that a host names, or those of its file, or all.
    fn listeners_of(&mut self, part: Part<'a>, host: &'a Host, path: &FieldPath) -> Vec<&'a str> {
        if host.listen.is_empty() {
            let own = &part.file.file.listen.0;
            let names: Vec<&str> = match own.is_empty() {
                false => own.iter().map(|(name, _)| name.0.as_str()).collect(),
                true => self.listeners.keys().copied().collect(),
            };
            if names.is_empty() {
                self.tell(part.file, path, |_| "there is no listener that it could be served on".to_owned());
            }
            return names;
        }
        let mut names = BTreeSet::new();
        for (index, name) in host.listen.iter().enumerate() {
            let path = path.clone().field("listen").index(index);
            match self.listeners.get_key_value(name.0.as_str()) {
                Some((name, _)) => drop(names.insert(*name)),
                None => self.tell(part.file, &path, |all| missing("listener", &name.0, all.listeners.keys().copied())),
            }
        }
        names.into_iter().collect()
    }

    /// Whether upstreams are there, and whether one of them asks for a route's hash.
    fn check_destinations(&mut self, file: &Parsed, route: &Route, path: &FieldPath) {
        let (names, is_split): (Vec<&str>, bool) = match &route.to {
            None => return,
            Some(Destination::One(name)) => (vec![&name.0], false),
            Some(Destination::Split(split)) => (split.0.iter().map(|(name, _)| name.0.as_str()).collect(), true),
        };
        let mut asks_for_hash = false;
        for name in names {
            let at = path.clone().field("to");
            let at = if is_split { at.key(name) } else { at };
            match (self.upstreams.get(name), self.outside) {
                (Some(defined), _) => asks_for_hash |= upstream::asks_for_hash(defined.value),
                (None, Outside::These(others)) if !others.contains(name) => {
                    self.tell(file, &at, |all| {
                        missing("upstream", name, all.upstreams.keys().chain(others.iter()).copied())
                    });
                    asks_for_hash = true;
                }
                (None, _) => asks_for_hash = true,
            }
        }
        if route.hash.is_some() && !asks_for_hash {
            self.tell(file, &path.clone().field("hash"), |_| {
                "acts only where an upstream has `balance: ring_hash` or `balance: maglev`".to_owned()
            });
        }
    }
}

/// Puts a name where it belongs; what is wrong with that.
fn put<'a, T>(all: &mut ByName<'a, T>, what: &str, name: &'a str, defined: Defined<'a, T>) -> Option<String> {
    match all.get(name) {
        Some(before) if before.part.of_group == defined.part.of_group => {
            let there = before.part.file.place(&before.path);
            Some(defined.part.file.fault(&defined.path, &format!("there is {what} '{name}' already, at {there}")))
        }
        Some(before) if before.part.of_group => None,
        _ => {
            all.insert(name, defined);
            None
        }
    }
}

fn missing<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("there is no {what} '{name}'; did you mean '{near}'?"),
        None => format!("there is no {what} '{name}'"),
    }
}

/// A message within an `Any`: its type, and its fields.
fn typed(name: &str, mut fields: Value) -> Value {
    let mut message = json!({"@type": format!("type.googleapis.com/{name}")});
    if let (Some(message), Some(fields)) = (message.as_object_mut(), fields.as_object_mut()) {
        message.append(fields);
    }
    message
}

/// Everything is asked of the control plane that the resource came from.
fn aggregated() -> Value {
    json!({"resource_api_version": "V3", "ads": {}})
}

/// As protobuf's JSON has it.
fn duration(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        milliseconds => format!("{}.{milliseconds:03}s", duration.as_secs()),
    }
}

/// What an upstream or a client may make us hold on one connection: Envoy's value for the edge.
const CONNECTION_BUFFER_BYTES: u32 = 32 << 10;
