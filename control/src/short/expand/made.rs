//! What a file of the short form expands to by itself, so that an edit costs its own file. It must not know other files.

use std::sync::Arc;

use serde_json::Value;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, FieldPath, Format, Location, UnknownFields, any, decode};

use super::{encoded, listener, route, upstream};
use crate::server::Resource;
use crate::server::resource_set::Piece;
use crate::short::Parsed;
use crate::short::shape::Or;

/// In the order of the file; faults with their place.
#[derive(Debug)]
pub(in crate::short) struct Made {
    /// A cluster each, and its endpoints where they are known.
    pub(super) upstreams: Vec<Result<Vec<Arc<Resource>>, Vec<String>>>,
    pub(super) listeners: Vec<Result<Arc<Resource>, Vec<String>>>,
    /// Virtual hosts with all their names.
    pub(super) hosts: Vec<Result<Arc<Piece>, Vec<String>>>,
}

impl Made {
    pub(in crate::short) fn of(parsed: &Parsed) -> Self {
        let file = &parsed.file;
        let upstreams = file.upstreams.0.iter().map(|(name, of)| {
            let path = FieldPath::root().field("upstreams").key(&name.0);
            let place = parsed.upstreams.get(&name.0);
            upstream::resources(&name.0, of).iter().map(|value| resource(value, parsed, &path, place)).collect()
        });
        let listeners = file.listen.0.iter().map(|(name, Or(listen))| {
            let path = FieldPath::root().field("listen").key(&name.0);
            let log = listen.access_log.as_ref().or(file.access_log.as_ref()).map(|Or(log)| log);
            let value = listener::resource(&name.0, listen, log);
            resource(&value, parsed, &path, parsed.listeners.get(&name.0))
        });
        let hosts = file.hosts.iter().enumerate().map(|(index, of)| {
            let names: Vec<&str> = of.names.iter().map(|name| name.0.as_str()).collect();
            host(parsed, index, &names)
        });
        Self { upstreams: upstreams.collect(), listeners: listeners.collect(), hosts: hosts.collect() }
    }
}

/// A host of a file as a virtual host with these names.
pub(super) fn host(parsed: &Parsed, index: usize, names: &[&str]) -> Result<Arc<Piece>, Vec<String>> {
    const MESSAGE: &str = "envoy.config.route.v3.VirtualHost";
    let value = route::virtual_host(&parsed.file.hosts[index], &parsed.file, names);
    let part = encoded(MESSAGE, &value).and_then(|bytes| Piece::new(MESSAGE, bytes));
    let path = FieldPath::root().field("hosts").index(index);
    part.map(Arc::new).map_err(|errors| told(parsed, &path, &errors))
}

/// One resource, read as if it stood in a file.
fn resource(
    value: &Value,
    file: &Parsed,
    path: &FieldPath,
    place: Option<&Location>,
) -> Result<Arc<Resource>, Vec<String>> {
    let read = || {
        let text = value.to_string();
        let bytes = decode("google.protobuf.Any", text.as_bytes(), Format::Json, UnknownFields::Reject)?.bytes;
        let body: Any = any::decode(&bytes, &FieldPath::root()).map_err(|error| vec![error])?;
        Resource::read(body)
    };
    let mut resource: Resource = read().map_err(|errors| told(file, path, &errors))?;
    resource.origin = Some((file.name.clone(), place.copied()));
    Ok(Arc::new(resource))
}

/// Each fault with its place.
pub(super) fn told(file: &Parsed, path: &FieldPath, errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|error| file.fault(path, &error.to_string())).collect()
}
