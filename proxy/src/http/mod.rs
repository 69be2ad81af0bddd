//! HTTP: codecs, the connection manager, one exchange, the router.
//! It must not know protos, nor how listeners and hosts are managed.

mod access_logs;
mod client_cert;
pub mod codec;
mod connect_udp;
pub(crate) mod connection_manager;
pub(crate) mod downstream;
mod exchange;
pub(crate) mod headers;
pub(crate) mod host;
mod http2_connection;
mod lifetime;
pub(crate) mod limits;
pub mod local_reply;
pub mod options;
pub mod path;
mod progress;
pub mod protocol;
mod proxy_status;
mod redirect;
mod relay;
mod request_headers;
pub(crate) mod response_headers;
mod router;
pub mod stats;
mod timers;
pub(crate) mod watermark;
pub(crate) mod wire_bytes;

pub use access_logs::AccessLogOptions;
pub(crate) use connection_manager::{count_refused, count_unsecured, serve};
pub use options::HttpConnectionManager;
pub(crate) use request_headers::request_id;
