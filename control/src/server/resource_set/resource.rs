//! One resource as it is served: name, version, bytes, what it names. It must not know which others there are.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, FieldPath, Location, SourceMap, canonical, validate, walk};
use xxhash_rust::xxh64::xxh64;

use super::references::{self, Reference};
use super::types::ResourceType;

/// A resource may have as many bytes: clients of gRPC take messages of 4 MiB unless they are told otherwise, and something stands
/// around it.
const LARGEST: usize = (4 << 20) - 1024;

/// The longest name, in bytes: a client that asks for a longer one is turned away.
pub(in crate::server) const LONGEST_NAME: usize = 4096;

/// A resource's version: a hash of what it says, however it is encoded, so that the same content has the same version for ever
/// and everywhere: after a restart, from another replica, with its fields in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(NonZeroU64);

impl Version {
    fn of(kind: ResourceType, bytes: &[u8]) -> Self {
        let content = canonical(kind.message(), bytes);
        Self(NonZeroU64::new(xxh64(&content, 0)).unwrap_or(NonZeroU64::MIN))
    }

    /// The version that a client says it has; none if no resource of ours ever had it.
    pub fn parse(text: &str) -> Option<Self> {
        let well_formed = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u64::from_str_radix(text, 16).ok().filter(|_| well_formed).and_then(NonZeroU64::new).map(Self)
    }

    pub(super) fn number(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A resource.
#[derive(Debug)]
pub struct Resource {
    pub kind: ResourceType,
    pub name: Arc<str>,
    pub version: Version,
    pub body: Any,
    pub references: Box<[Reference]>,
    /// The file that it came from, and where it begins there.
    pub origin: Option<(Arc<str>, Option<Location>)>,
}

/// A message that is put into resources, and has been checked by the schema's rules.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Vec<u8>,
    references: Box<[Reference]>,
}

impl Piece {
    /// # Errors
    /// Every rule that is broken.
    pub(crate) fn new(message: &str, bytes: Vec<u8>) -> Result<Self, Vec<FieldError>> {
        validate(message, &bytes)?;
        let references = references::of(message, &bytes, None).into();
        Ok(Self { bytes, references })
    }

    /// A message's bytes with these in the repeated field of this number.
    pub(crate) fn join(message: &[u8], field: u32, items: &[Arc<Self>]) -> Vec<u8> {
        let mut joined = message.to_vec();
        items.iter().for_each(|item| prost::encoding::bytes::encode(field, &item.bytes, &mut joined));
        joined
    }
}

/// Two with one name are the same where their versions are.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.kind == other.kind && self.name == other.name
    }
}

impl Resource {
    /// Reads a resource and checks it by the schema's rules.
    ///
    /// # Errors
    /// A type that is not served, no name, and every rule that is broken.
    pub fn read(body: Any) -> Result<Self, Vec<FieldError>> {
        Self::from_source(body, None)
    }

    /// The same for one that stands in a file, `path` below its root.
    ///
    /// # Errors
    /// As [`Resource::read`]; paths are the file's.
    pub fn read_in(body: Any, file: &Arc<str>, map: &SourceMap, path: &FieldPath) -> Result<Self, Vec<FieldError>> {
        let mut resource = Self::from_source(body, Some((map, path))).map_err(|errors| {
            let mut errors: Vec<_> = errors.into_iter().map(|error| error.under(path)).collect();
            map.place(&mut errors);
            errors
        })?;
        resource.origin = Some((file.clone(), map.locate(path)));
        Ok(resource)
    }

    fn from_source(body: Any, source: Option<(&SourceMap, &FieldPath)>) -> Result<Self, Vec<FieldError>> {
        let fail = |path: FieldPath, reason: String| vec![FieldError::new(path, reason)];
        let Some(kind) = ResourceType::of_url(&body.type_url) else {
            return Err(fail(FieldPath::root(), format!("'{}' is not a type of resources", body.type_url)));
        };
        let name = name_of(kind, &body.value);
        let named = |error: FieldError| match &name {
            Some(name) => error.in_resource(name),
            None => error,
        };
        validate(kind.message(), &body.value).map_err(|errors| errors.into_iter().map(named).collect::<Vec<_>>())?;
        let Some(name) = name else {
            return Err(fail(FieldPath::root().field(kind.name_field()), "a resource needs a name".to_owned()));
        };
        if name.len() > LONGEST_NAME {
            let reason = format!("{} bytes; a name may have {LONGEST_NAME}", name.len());
            return Err(fail(FieldPath::root().field(kind.name_field()), reason));
        }
        fits(&name, &body.value)?;
        let version = Version::of(kind, &body.value);
        let references = references::of(kind.message(), &body.value, source).into();
        let body = Any { type_url: kind.url(), value: body.value };
        Ok(Self { kind, name: name.into(), version, body, references, origin: None })
    }

    /// One that is put together: `message`, with `items` in one of its repeated fields, which is `value` as a whole. The items
    /// have been checked, each by itself: the schema has no rule for all of them together.
    ///
    /// # Errors
    /// As [`Resource::read`], of the message without them.
    pub(crate) fn compose(
        message: Any,
        value: Vec<u8>,
        field: &str,
        items: &[Arc<Piece>],
    ) -> Result<Self, Vec<FieldError>> {
        let mut resource = Self::from_source(message, None)?;
        fits(&resource.name, &value)?;
        let mut references = std::mem::take(&mut resource.references).into_vec();
        for (index, item) in items.iter().enumerate() {
            let base = FieldPath::root().field(field).index(index);
            let named =
                |reference: &Reference| Reference { path: reference.path.clone().under(&base), ..reference.clone() };
            references.extend(item.references.iter().map(named));
        }
        resource.version = Version::of(resource.kind, &value);
        resource.body.value = value;
        resource.references = references.into();
        Ok(resource)
    }

    /// The same as it stands in a store of this name, where it has no lines.
    #[must_use]
    pub fn kept_in(&self, store: &Arc<str>) -> Self {
        let placeless = |reference: &Reference| Reference { location: None, ..reference.clone() };
        Self {
            kind: self.kind,
            name: self.name.clone(),
            version: self.version,
            body: self.body.clone(),
            references: self.references.iter().map(placeless).collect(),
            origin: Some((store.clone(), None)),
        }
    }

    /// Whether both have the same content, and stand at the same place.
    pub(super) fn is_same_in_place(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || (self == other && self.origin == other.origin && self.references == other.references)
    }

    /// `file:line`, or nothing for what came from no file.
    pub fn place(&self, location: Option<Location>) -> String {
        match &self.origin {
            Some((file, start)) => match location.or(*start) {
                Some(location) => format!("{file}:{}", location.line),
                None => file.to_string(),
            },
            None => String::new(),
        }
    }
}

/// Whether every client can take it.
fn fits(name: &str, value: &[u8]) -> Result<(), Vec<FieldError>> {
    if value.len() <= LARGEST {
        return Ok(());
    }
    let reason = format!("{} bytes; clients of gRPC take {LARGEST} at most", value.len());
    Err(vec![FieldError::new(FieldPath::root(), reason).in_resource(name)])
}

fn name_of(kind: ResourceType, bytes: &[u8]) -> Option<String> {
    let mut name = None;
    let mut outermost = true;
    walk::walk(kind.message(), bytes, &mut |visited| {
        if std::mem::take(&mut outermost) {
            name = visited.texts(kind.name_field()).pop().map(|(_, name)| name);
        }
    });
    name
}
