//! Envoy's configuration schema as data: decoding, validation, coverage, errors that name a field.
//! It must not know what any resource means.

pub mod any;
mod audit;
mod canonical;
mod decode;
mod document;
mod error;
mod json;
mod load;
mod plain;
pub mod protos;
#[cfg(test)]
mod random;
mod record;
pub mod schema;
mod to_json;
mod validate;
pub mod walk;
mod wire;
mod yaml;

pub use audit::{Audit, Coverage, CoverageSource, audit};
pub use canonical::canonical;
pub use decode::{Decoded, Format, UnknownFields, decode, merge, nearest, root_keys};
pub use document::SourceMap;
/// Envoy's API as typed messages; those that it lacks are in [`protos`].
pub use envoy_types::pb;
pub use error::{FieldError, FieldPath, Location};
pub use load::{Loaded, load, load_any, load_bytes, load_resource};
pub use plain::{Plain, plain};
pub use to_json::{to_json, to_whole_json};
pub use validate::validate;
