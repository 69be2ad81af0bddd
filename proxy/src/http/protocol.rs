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
#[derive(Debug, Clone, Copy, PartialEq, Default)]
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
    Preserve(Preserved),
}

impl HeaderCase {
    /// What is kept of a message that is read, if anything is.
    pub(crate) fn preserved(self) -> Option<Preserved> {
        match self {
            Self::Preserve(preserved) => Some(preserved),
            Self::Lower | Self::ProperWords => None,
        }
    }
}

/// What a message goes on with beside the spelling of its names (`PreserveCaseFormatterConfig`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Preserved {
    /// `forward_reason_phrase`
    pub reason: bool,
    /// `formatter_type_on_envoy_headers`: headers that it did not bring are written in proper case.
    pub proper_words: bool,
}

/// HTTP/2 of one side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Http2Options {
    pub max_concurrent_streams: u32,
    pub initial_stream_window_bytes: u32,
    pub initial_connection_window_bytes: u32,
    pub header_table_bytes: u32,
    pub allow_connect: bool,
    pub keepalive: Option<Keepalive>,
    pub floods: FloodLimits,
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
            floods: FloodLimits::default(),
        }
    }
}

/// How many frames a peer may send that cost it nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FloodLimits {
    /// `max_consecutive_inbound_frames_with_empty_payload`.
    pub empty_frames: u32,
    /// `max_inbound_priority_frames_per_stream`.
    pub priority_frames_per_stream: u32,
    /// `max_inbound_window_update_frames_per_data_frame_sent`.
    pub window_updates_per_data_frame: u32,
    /// `max_outbound_control_frames`: Envoy counts the answers that are queued. Here none are, for nothing is read while one
    /// waits; so many that ask for one may come at once, and more as answers are sent and time passes.
    pub control_frames: u32,
    /// `stream_reset_burst`: so many streams a client may reset at once, and `stream_reset_rate` more each second.
    pub reset_burst: u64,
    pub reset_rate: u64,
}

impl Default for FloodLimits {
    fn default() -> Self {
        Self {
            empty_frames: 1,
            priority_frames_per_stream: 100,
            window_updates_per_data_frame: 10,
            control_frames: 1000,
            reset_burst: 1000,
            reset_rate: 33,
        }
    }
}

/// HTTP/2 PINGs on a connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keepalive {
    pub interval: Option<Duration>,
    /// Up to so much of the interval is added to it.
    pub jitter_percent: f64,
    pub timeout: Duration,
    /// PING beside the first stream after a connection was idle this long.
    pub idle_interval: Option<Duration>,
}
