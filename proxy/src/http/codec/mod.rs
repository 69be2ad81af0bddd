//! The only place that knows how bytes become requests and responses. Past it there are heads, bodies and errors;
//! it must not know routes, filters or pools.

pub(crate) mod capsule;
pub(crate) mod error;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod h2_frames;
pub(crate) mod keepalive;
pub(crate) mod metered;
pub mod stats;
mod stream_bytes;

use std::time::Duration;

pub(crate) use error::CodecError;

/// How long the last bytes may take to go out on a connection that is closed.
pub(crate) const LAST_BYTES: Duration = Duration::from_millis(100);
