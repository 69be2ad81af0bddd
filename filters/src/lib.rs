//! The filter contract, the one home of matchers and of the substitution formatter, and the built-in filters.
//! Filters know heads, bodies and what a stream is; they must not know sockets, pools, snapshots or the proxy.

pub mod access_log;
pub mod connection;
pub mod context;
pub mod filter_state_value;
pub mod format;
pub mod http;
pub mod listener;
pub mod matching;
pub mod metadata;
pub mod network;
mod rbac;
pub mod runtime;
pub mod shown;
pub mod stream_info;
pub mod token_bucket;
