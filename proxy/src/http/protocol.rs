//! Options of the protocols themselves, as either side of the proxy sets them (`Http1ProtocolOptions`,
//! `Http2ProtocolOptions`, `HttpProtocolOptions`). They must not know connection managers or clusters.

use std::time::Duration;

/// `headers_with_underscores_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    #[default]
    Allow,
    Reject,
    Drop,
}

/// HTTP/1 of one side.
#[derive(Debug, Clone, Copy, Default)]
pub struct Http1Options {
    pub allow_absolute_url: bool,
    pub accept_http_10: bool,
    pub enable_trailers: bool,
    pub allow_chunked_length: bool,
    pub header_case: HeaderCase,
    pub send_fully_qualified_url: bool,
    /// Requests: any token is a method, not only the registered ones.
    pub allow_custom_methods: bool,
}

/// How HTTP/1 header names are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderCase {
    #[default]
    Lower,
    ProperWords,
    Preserve,
}

/// HTTP/2 of one side.
#[derive(Debug, Clone, Copy)]
pub struct Http2Options {
    pub max_concurrent_streams: u32,
    pub initial_stream_window_bytes: u32,
    pub initial_connection_window_bytes: u32,
    pub header_table_bytes: u32,
    pub allow_connect: bool,
    pub keepalive: Option<Keepalive>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            initial_stream_window_bytes: 16 << 20,
            initial_connection_window_bytes: 24 << 20,
            header_table_bytes: 4096,
            allow_connect: false,
            keepalive: None,
        }
    }
}

/// HTTP/2 PINGs on a connection.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    pub interval: Option<Duration>,
    pub timeout: Duration,
    /// PING first when a connection was idle this long.
    pub idle_interval: Option<Duration>,
}
